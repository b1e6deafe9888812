//! Where images come from: something that yields them by their numbers, or an error. A data set in memory is one; a folder,
//! or whatever is too large for memory, another.

use std::borrow::Cow;
use std::fmt;

use fast_image_resize::images::{Image as Resized, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::check_channels;
use crate::error::{Error, Result};

/// Images that are numbered from 0. Any thread may read.
pub trait Images: fmt::Debug + Send + Sync {
    /// How many there are.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of every sample.
    fn depth(&self) -> Depth;

    /// Those of these numbers, in this order, each of its own size.
    ///
    /// # Errors
    /// Of a file that cannot be read, or is no image.
    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>>;
}

/// Bits of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Depth {
    Eight,
    Sixteen,
}

/// An image as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Image<'a> {
    /// Height, width and channels.
    pub shape: [usize; 3],
    /// H×W×C.
    pub samples: Samples<'a>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Samples<'a> {
    Eight(Cow<'a, [u8]>),
    Sixteen(Cow<'a, [u16]>),
}

impl Samples<'_> {
    /// In the order of a little-endian file.
    pub fn to_bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Samples::Eight(bytes) => Cow::Borrowed(bytes),
            Samples::Sixteen(samples) => samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
        }
    }
}

impl<'a> Image<'a> {
    /// The image in another size, by bilinear interpolation, which averages where it shrinks; itself if it has that size.
    ///
    /// # Errors
    /// If it has other channels.
    pub fn resized(self, [height, width, channels]: [usize; 3]) -> Result<Image<'a>> {
        let [h, w, c] = self.shape;
        if c != channels {
            return Err(check_channels(c, channels).err().unwrap_or_else(|| {
                let message = format!("an image has {c} channels where {channels} were expected");
                Error::usage(message, "give all images of a data set the same channels")
            }));
        }
        if [h, w] == [height, width] {
            return Ok(self);
        }
        let bytes = match &self.samples {
            Samples::Eight(bytes) => bytes,
            Samples::Sixteen(samples) => bytemuck::cast_slice(samples),
        };
        let pixels = match (&self.samples, channels) {
            (Samples::Eight(_), 1) => PixelType::U8,
            (Samples::Eight(_), _) => PixelType::U8x3,
            (Samples::Sixteen(_), 1) => PixelType::U16,
            (Samples::Sixteen(_), _) => PixelType::U16x3,
        };
        let failed = |error: &dyn fmt::Display| {
            let message = format!("an image of {h}×{w} pixels cannot be brought to {height}×{width}: {error}");
            Error::usage(message, "images have one or three channels, and at least one pixel")
        };
        let from = ImageRef::new(w as u32, h as u32, bytes, pixels).map_err(|error| failed(&error))?;
        let mut to = Resized::new(width as u32, height as u32, pixels);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        Resizer::new().resize(&from, &mut to, &options).map_err(|error| failed(&error))?;
        let samples = match self.samples {
            Samples::Eight(_) => Samples::Eight(to.into_vec().into()),
            Samples::Sixteen(_) => {
                let pairs = to.buffer().chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
                Samples::Sixteen(pairs.collect())
            }
        };
        Ok(Image { shape: [height, width, channels], samples })
    }
}

/// Images of one size and eight bits in memory, one after the other.
pub(super) struct InMemory {
    pub bytes: Vec<u8>,
    /// Height, width and channels.
    pub shape: [usize; 3],
}

impl InMemory {
    fn stride(&self) -> usize {
        self.shape.iter().product()
    }
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images of {:?}", self.len(), self.shape)
    }
}

impl Images for InMemory {
    fn len(&self) -> usize {
        self.bytes.len() / self.stride().max(1)
    }

    fn depth(&self) -> Depth {
        Depth::Eight
    }

    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
        let image = |&index: &usize| {
            let bytes = &self.bytes[index * self.stride()..][..self.stride()];
            Image { shape: self.shape, samples: Samples::Eight(bytes.into()) }
        };
        Ok(indices.iter().map(image).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(samples: Samples<'static>) -> Image<'static> {
        Image { shape: [2, 4, 1], samples }
    }

    #[test]
    fn an_image_is_brought_to_another_size() {
        let eight = grey(Samples::Eight(vec![0, 0, 100, 100, 0, 0, 100, 100].into()));
        assert_eq!(eight.clone().resized([2, 4, 1]).unwrap(), eight);
        let halved = eight.clone().resized([1, 2, 1]).unwrap();
        let Samples::Eight(bytes) = &halved.samples else { panic!("{halved:?}") };
        // Each the mean of what it covers, and a little of the neighbour.
        assert!(bytes[0] < 20 && bytes[1] > 80 && halved.shape == [1, 2, 1], "{bytes:?}");
        let sixteen = grey(Samples::Sixteen(vec![0, 0, 60_000, 60_000, 0, 0, 60_000, 60_000].into()));
        let larger = sixteen.resized([4, 8, 1]).unwrap();
        let Samples::Sixteen(samples) = &larger.samples else { panic!("{larger:?}") };
        assert_eq!((samples.len(), samples[0], samples[7]), (32, 0, 60_000));
        assert!(samples[3] > 0 && samples[3] < samples[4] && samples[4] < 60_000, "{samples:?}");
    }

    #[test]
    fn other_channels_are_refused() {
        let image = grey(Samples::Eight(vec![0; 8].into()));
        let error = image.resized([2, 4, 3]).unwrap_err().to_string();
        assert!(error.contains("1 channels where 3 were expected"), "{error}");
    }
}
