//! Where images come from: something that yields them by their numbers, or an error. A data set in memory is one; a folder,
//! or whatever is too large for memory, another.

use std::borrow::Cow;
use std::fmt;

use fast_image_resize::images::ImageRef;
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

    /// The depth of every sample.
    fn depth(&self) -> Depth;

    /// Those of these numbers, in this order, each of its own size.
    ///
    /// # Errors
    /// If a file cannot be read, or is no image.
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
    /// The same samples, held by somebody else.
    pub fn borrowed(&self) -> Samples<'_> {
        match self {
            Samples::Eight(samples) => Samples::Eight(Cow::Borrowed(samples)),
            Samples::Sixteen(samples) => Samples::Sixteen(Cow::Borrowed(samples)),
        }
    }

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
        if [h, w].contains(&0) {
            return Err(Error::usage("an image without pixels", "leave it out"));
        }
        let to = [height, width];
        let samples = match &self.samples {
            Samples::Eight(samples) => {
                let kind = if channels == 1 { PixelType::U8 } else { PixelType::U8x3 };
                Samples::Eight(resized(samples, [h, w], to, kind).into())
            }
            Samples::Sixteen(samples) => {
                let kind = if channels == 1 { PixelType::U16 } else { PixelType::U16x3 };
                Samples::Sixteen(resized(samples, [h, w], to, kind).into())
            }
        };
        Ok(Image { shape: [height, width, channels], samples })
    }
}

/// H×W×C samples in another size, by the triangle filter and in the fixed point of Pillow, whatever the processor: horizontally, then
/// vertically, each rounded to whole samples.
fn resized<T: bytemuck::Pod>(samples: &[T], from: [usize; 2], to: [usize; 2], kind: PixelType) -> Vec<T> {
    let size = |side: usize| u32::try_from(side).expect("images have fewer than 2³² pixels a side");
    let [[h, w], [height, width]] = [from, to].map(|sides| sides.map(size));
    let source = ImageRef::new(w, h, bytemuck::cast_slice(samples), kind).expect("as many samples as the shape says");
    let mut resized = vec![T::zeroed(); samples.len() / (from[0] * from[1]) * to[0] * to[1]];
    let bytes = bytemuck::cast_slice_mut(&mut resized);
    let mut target = fast_image_resize::images::Image::from_slice_u8(width, height, bytes, kind).expect("of that size");
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize(&source, &mut target, &options).expect("images of one kind");
    resized
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

    /// By hand: 4 to 2 takes triangles two wide, cut off at the edge; 2 to 4 quarters and three quarters.
    #[test]
    fn samples_are_weighed_by_triangles() {
        let of = |samples: Vec<u8>, shape: [usize; 3], to: [usize; 3]| {
            let image = Image { shape, samples: Samples::Eight(samples.into()) };
            let Samples::Eight(samples) = image.resized(to).unwrap().samples else { panic!("of eight bits") };
            samples.into_owned()
        };
        assert_eq!(of(vec![70, 0, 140, 0], [1, 4, 1], [1, 2, 1]), [50, 60]);
        assert_eq!(of(vec![0, 100], [1, 2, 1], [1, 4, 1]), [0, 25, 75, 100]);
        assert_eq!(
            of(vec![0, 10, 20, 100, 110, 120], [2, 1, 3], [4, 1, 3]),
            [0, 10, 20, 25, 35, 45, 75, 85, 95, 100, 110, 120]
        );
    }

    #[test]
    fn other_channels_are_refused() {
        let image = grey(Samples::Eight(vec![0; 8].into()));
        let error = image.resized([2, 4, 3]).unwrap_err().to_string();
        assert!(error.contains("1 channels where 3 were expected"), "{error}");
    }
}
