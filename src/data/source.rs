//! Where images come from: something that yields them by their numbers, or an error. A data set in memory is one; a folder,
//! or whatever is too large for memory, another.

use std::borrow::Cow;
use std::fmt;

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
            Samples::Eight(samples) => Samples::Eight(resized(samples, [h, w], to, channels).into()),
            Samples::Sixteen(samples) => Samples::Sixteen(resized(samples, [h, w], to, channels).into()),
        };
        Ok(Image { shape: [height, width, channels], samples })
    }
}

/// A sample of eight or sixteen bits.
trait Sample: Copy {
    fn to_f32(self) -> f32;
    /// The nearest one.
    fn from_f32(value: f32) -> Self;
}

impl Sample for u8 {
    fn to_f32(self) -> f32 {
        self.into()
    }

    fn from_f32(value: f32) -> u8 {
        value.round() as u8
    }
}

impl Sample for u16 {
    fn to_f32(self) -> f32 {
        self.into()
    }

    fn from_f32(value: f32) -> u16 {
        value.round() as u16
    }
}

/// H×W×C samples in another size: first each row, then each column.
fn resized<T: Sample>(samples: &[T], [h, w]: [usize; 2], [height, width]: [usize; 2], channels: usize) -> Vec<T> {
    let numbers: Vec<f32> = samples.iter().map(|sample| sample.to_f32()).collect();
    let (rows, columns) = (weights(h, height), weights(w, width));
    let mut wide = vec![0f32; h * width * channels];
    for (row, out) in numbers.chunks_exact(w * channels).zip(wide.chunks_exact_mut(width * channels)) {
        for ((first, weights), out) in columns.iter().zip(out.chunks_exact_mut(channels)) {
            for (pixel, weight) in row[first * channels..].chunks_exact(channels).zip(weights) {
                out.iter_mut().zip(pixel).for_each(|(out, sample)| *out += weight * sample);
            }
        }
    }
    let mut all = vec![0f32; height * width * channels];
    for ((first, weights), out) in rows.iter().zip(all.chunks_exact_mut(width * channels)) {
        for (row, weight) in wide[first * width * channels..].chunks_exact(width * channels).zip(weights) {
            out.iter_mut().zip(row).for_each(|(out, sample)| *out += weight * sample);
        }
    }
    all.into_iter().map(T::from_f32).collect()
}

/// For each of `to` places, the first of `from` that it is made of, and their weights, which sum to 1: a triangle as wide on
/// either side as two places are apart, in the coarser of the two.
fn weights(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    let reach = scale.max(1.0);
    let of_place = |place: usize| {
        let center = (place as f64 + 0.5) * scale;
        let first = (center - reach).floor().max(0.0) as usize;
        let end = ((center + reach).ceil() as usize).min(from);
        let weight = |at: usize| (1.0 - ((at as f64 + 0.5 - center) / reach).abs()).max(0.0);
        let sum: f64 = (first..end).map(weight).sum();
        (first, (first..end).map(|at| (weight(at) / sum) as f32).collect())
    };
    (0..to).map(of_place).collect()
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
    fn weights_are_those_of_triangles() {
        let [halved, doubled] = [weights(4, 2), weights(2, 4)];
        assert_eq!(halved[0].0, 0);
        for (weight, expected) in halved[0].1.iter().zip([3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0]) {
            assert!((weight - expected).abs() < 1e-6, "{halved:?}");
        }
        assert_eq!(doubled[1], (0, vec![0.75, 0.25]));
        assert!(weights(5, 3).iter().all(|(_, weights)| (weights.iter().sum::<f32>() - 1.0).abs() < 1e-6));
        assert_eq!(weights(3, 3)[1].1.iter().filter(|weight| **weight > 0.0).count(), 1);
    }

    #[test]
    fn other_channels_are_refused() {
        let image = grey(Samples::Eight(vec![0; 8].into()));
        let error = image.resized([2, 4, 3]).unwrap_err().to_string();
        assert!(error.contains("1 channels where 3 were expected"), "{error}");
    }
}
