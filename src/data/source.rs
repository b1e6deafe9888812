//! Where images come from: something that yields them by their numbers, or an error. A data set in memory is one; a folder,
//! or whatever is too large for memory, another.

use std::borrow::Cow;
use std::fmt;
use std::ops::AddAssign;

use multiversion::multiversion;

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

    /// What an image is called, where it is a file of its own.
    fn name(&self, _index: usize) -> Option<&str> {
        None
    }

    /// The file of an image, as it is, where it is one of its own.
    fn file(&self, _index: usize) -> Option<Result<Vec<u8>>> {
        None
    }

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
            Samples::Eight(samples) => Samples::Eight(u8::resize(samples, [h, w], to, channels).into()),
            Samples::Sixteen(samples) => Samples::Sixteen(u16::resize(samples, [h, w], to, channels).into()),
        };
        Ok(Image { shape: [height, width, channels], samples })
    }
}

/// A sample of eight or sixteen bits, and what its weighted sums are held in.
pub(super) trait Sample: Copy + Default + Send + Sync + Sized {
    /// The largest.
    const MAX: f32;
    type Sum: Copy + AddAssign;
    /// Half of the weights' unit, from which a sum begins so that it is rounded.
    const HALF: Self::Sum;
    fn times(self, weight: i32) -> Self::Sum;
    /// The sum in units of the weights, within what a sample can be.
    fn of(sum: Self::Sum) -> Self;
    fn to_f32(self) -> f32;
    /// The next below, within what a sample can be.
    fn truncated(value: f32) -> Self;
    /// The nearest, of two the even one.
    fn rounded(value: f32) -> Self {
        Self::truncated(value.round_ties_even())
    }
    /// An H×W×C image in another size.
    fn resize(samples: &[Self], from: [usize; 2], to: [usize; 2], channels: usize) -> Vec<Self>;
}

/// Weights are whole multiples of 2⁻²², as Pillow has them: with samples of eight bits sums stay below 2³¹.
const BITS: u32 = 22;

impl Sample for u8 {
    const MAX: f32 = 255.0;
    type Sum = i32;
    const HALF: i32 = 1 << (BITS - 1);

    #[inline(always)]
    fn times(self, weight: i32) -> i32 {
        i32::from(self) * weight
    }

    #[inline(always)]
    fn of(sum: i32) -> u8 {
        (sum >> BITS).clamp(0, 255) as u8
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    fn truncated(value: f32) -> u8 {
        // What is beyond becomes the nearest that is not.
        value as u8
    }

    fn resize(samples: &[u8], from: [usize; 2], to: [usize; 2], channels: usize) -> Vec<u8> {
        resized_eight(samples, from, to, channels)
    }
}

impl Sample for u16 {
    const MAX: f32 = 65_535.0;
    type Sum = i64;
    const HALF: i64 = 1 << (BITS - 1);

    #[inline(always)]
    fn times(self, weight: i32) -> i64 {
        i64::from(self) * i64::from(weight)
    }

    #[inline(always)]
    fn of(sum: i64) -> u16 {
        (sum >> BITS).clamp(0, 65_535) as u16
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    fn truncated(value: f32) -> u16 {
        value as u16
    }

    fn resize(samples: &[u16], from: [usize; 2], to: [usize; 2], channels: usize) -> Vec<u16> {
        resized(samples, from, to, channels)
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
fn resized_eight(samples: &[u8], from: [usize; 2], to: [usize; 2], channels: usize) -> Vec<u8> {
    resized(samples, from, to, channels)
}

/// H×W×C samples in another size, in whole numbers as Pillow computes it: first each row, then each column, each rounded.
#[inline(always)]
fn resized<T: Sample>(samples: &[T], [h, w]: [usize; 2], [height, width]: [usize; 2], channels: usize) -> Vec<T> {
    let mut wide = Cow::Borrowed(samples);
    if w != width {
        wide = Cow::Owned(resized_across(samples, [h, w], width, channels));
    }
    if h == height {
        return wide.into_owned();
    }
    let mut out = vec![T::default(); height * width * channels];
    let mut sums = vec![T::HALF; width * channels];
    for ((first, weights), out) in weights(h, height).iter().zip(out.chunks_exact_mut(width * channels)) {
        sums.fill(T::HALF);
        for (row, &weight) in wide[first * width * channels..].chunks_exact(width * channels).zip(weights) {
            sums.iter_mut().zip(row).for_each(|(sum, sample)| *sum += sample.times(weight));
        }
        out.iter_mut().zip(&sums).for_each(|(out, &sum)| *out = T::of(sum));
    }
    out
}

/// Each row in another width. Rows are brought side by side, some at a time, so that what is done to one sample is done to many.
#[inline(always)]
fn resized_across<T: Sample>(samples: &[T], [h, w]: [usize; 2], width: usize, channels: usize) -> Vec<T> {
    const ROWS: usize = 16;
    let columns = weights(w, width);
    let (from, to) = (w * channels, width * channels);
    let mut out = vec![T::default(); h * to];
    let mut side_by_side = vec![[T::default(); ROWS]; from];
    for (rows, out) in samples.chunks(ROWS * from).zip(out.chunks_mut(ROWS * to)) {
        for (index, row) in rows.chunks_exact(from).enumerate() {
            side_by_side.iter_mut().zip(row).for_each(|(of_rows, &sample)| of_rows[index] = sample);
        }
        for (x, (first, weights)) in columns.iter().enumerate() {
            for channel in 0..channels {
                let mut sums = [T::HALF; ROWS];
                let places = side_by_side[first * channels + channel..].iter().step_by(channels);
                for (samples, &weight) in places.zip(weights) {
                    sums.iter_mut().zip(samples).for_each(|(sum, sample)| *sum += sample.times(weight));
                }
                // Behind the last row there are fewer.
                let out = out[x * channels + channel..].iter_mut().step_by(to);
                out.zip(sums).for_each(|(out, sum)| *out = T::of(sum));
            }
        }
    }
    out
}

/// For each of `to` places, the first of `from` that it is made of, and their weights, which sum to 2²² but for rounding: a triangle
/// as wide on either side as two places are apart, in the coarser of the two.
fn weights(from: usize, to: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    let reach = scale.max(1.0);
    let of_place = |place: usize| {
        let center = (place as f64 + 0.5) * scale;
        let first = (center - reach + 0.5).max(0.0) as usize;
        let end = ((center + reach + 0.5) as usize).min(from);
        let weight = |at: usize| (1.0 - ((at as f64 + 0.5 - center) / reach).abs()).max(0.0);
        let sum: f64 = (first..end).map(weight).sum();
        let unit = f64::from(1 << BITS);
        (first, (first..end).map(|at| (weight(at) / sum * unit + 0.5) as i32).collect())
    };
    (0..to).map(of_place).collect()
}

/// Images of one size and eight bits in memory, one after the other.
pub(super) struct InMemory {
    /// Those of all images, one behind the other.
    pub samples: Samples<'static>,
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
        let samples = match &self.samples {
            Samples::Eight(samples) => samples.len(),
            Samples::Sixteen(samples) => samples.len(),
        };
        samples / self.stride().max(1)
    }

    fn depth(&self) -> Depth {
        match self.samples {
            Samples::Eight(_) => Depth::Eight,
            Samples::Sixteen(_) => Depth::Sixteen,
        }
    }

    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
        let image = |&index: &usize| {
            let place = index * self.stride()..(index + 1) * self.stride();
            let samples = match &self.samples {
                Samples::Eight(samples) => Samples::Eight(samples[place].into()),
                Samples::Sixteen(samples) => Samples::Sixteen(samples[place].into()),
            };
            Image { shape: self.shape, samples }
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

    /// Pillow 12's, by `Image.resize` with BILINEAR.
    #[test]
    fn samples_are_those_of_pillow() {
        let samples = vec![0, 50, 255, 7, 90, 13, 200, 128, 255, 255, 0, 33];
        let image = Image { shape: [3, 4, 1], samples: Samples::Eight(samples.into()) };
        let of = |to: [usize; 3]| match image.clone().resized(to).unwrap().samples {
            Samples::Eight(samples) => samples.into_owned(),
            Samples::Sixteen(_) => panic!("of eight bits"),
        };
        assert_eq!(of([2, 3, 1]), [35, 136, 107, 185, 120, 71]);
        let larger = [[0, 35, 153, 181, 7], [56, 36, 124, 179, 83], [152, 118, 115, 115, 92], [255, 255, 128, 10, 33]];
        assert_eq!(of([4, 5, 1]), larger.concat());
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
