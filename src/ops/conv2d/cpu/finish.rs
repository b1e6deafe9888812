//! What follows a convolution before its results leave the cache: a bias or a batch norm's given statistics, a residual, a ReLU.

use std::ops::Range;

use super::tile::Shared;
use crate::ops::simd::{Isa, Job, Vector};

/// Per channel, `(x − mean)·scale + shift`, without a `normal` `x + shift`.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// Mean and scale.
    pub normal: Option<[&'a [f32]; 2]>,
    pub shift: &'a [f32],
}

impl<'a> Affine<'a> {
    /// Channels from `first` on.
    fn behind(self, first: usize) -> Affine<'a> {
        Affine {
            normal: self.normal.map(|normal| normal.map(|numbers| &numbers[first..])),
            shift: &self.shift[first..],
        }
    }

    fn channels(self) -> usize {
        let normal = self.normal.iter().flatten().map(|numbers| numbers.len());
        normal.chain([self.shift.len()]).min().expect("a shift")
    }

    /// # Safety
    /// As of [`Vector`]'s methods; there are as many channels from `c` on.
    #[inline(always)]
    unsafe fn of<V: Vector>(self, x: V, c: usize) -> V {
        // SAFETY: as the caller promises.
        unsafe {
            let of_channels = |numbers: &[f32]| V::load(numbers.as_ptr().add(c));
            let x = match self.normal {
                Some([mean, scale]) => x.sub(of_channels(mean)).mul(of_channels(scale)),
                None => x,
            };
            x.add(of_channels(self.shift))
        }
    }
}

/// In the order in which it is done.
#[derive(Clone, Copy)]
pub struct Finish<'a> {
    pub affine: Affine<'a>,
    /// Numbers that lie as the results do, and what is done to them before they are added.
    pub residual: Option<(&'a [f32], Option<Affine<'a>>)>,
    pub relu: bool,
}

impl<'a> Finish<'a> {
    /// Of channels from `first` on.
    pub fn behind(self, first: usize) -> Finish<'a> {
        let residual = self.residual.map(|(numbers, affine)| (numbers, affine.map(|affine| affine.behind(first))));
        Finish { affine: self.affine.behind(first), residual, ..self }
    }

    /// Finishes some channels of the pixels that begin in y at `places`.
    ///
    /// # Safety
    /// These are nobody else's meanwhile.
    ///
    /// # Panics
    /// If there are not as many numbers, or the processor lacks the instructions.
    pub unsafe fn apply(self, isa: Isa, y: Shared, places: &[usize], columns: Range<usize>) {
        let channels = self.residual.and_then(|(_, affine)| affine).map_or(usize::MAX, Affine::channels);
        assert!(columns.end <= self.affine.channels().min(channels), "{columns:?} of a batch norm");
        let end = places.iter().max().map_or(0, |place| place + columns.end);
        let numbers = self.residual.map_or(usize::MAX, |(numbers, _)| numbers.len());
        assert!(end <= y.len().min(numbers), "pixels beyond y");
        isa.run(Pixels { finish: self, y, places, columns });
    }
}

/// Pixels of which all reads and writes were checked.
struct Pixels<'a> {
    finish: Finish<'a>,
    y: Shared<'a>,
    places: &'a [usize],
    columns: Range<usize>,
}

impl Job for Pixels<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let whole = self.columns.len() / V::LANES * V::LANES;
        for &place in self.places {
            // SAFETY: the caller's promise, and what was checked.
            unsafe {
                for c in (self.columns.start..self.columns.start + whole).step_by(V::LANES) {
                    self.vector::<V>(place, c);
                }
                for c in self.columns.start + whole..self.columns.end {
                    self.vector::<[f32; 1]>(place, c);
                }
            }
        }
    }
}

impl Pixels<'_> {
    /// # Safety
    /// As [`Affine::of`].
    #[inline(always)]
    unsafe fn vector<V: Vector>(&self, place: usize, c: usize) {
        let Finish { affine, residual, relu } = self.finish;
        // SAFETY: as the caller promises.
        unsafe {
            let at = self.y.start().add(place + c);
            let mut sum = affine.of(V::load(at), c);
            if let Some((numbers, affine)) = residual {
                let term = V::load(numbers.as_ptr().add(place + c));
                sum = sum.add(affine.map_or(term, |affine| affine.of(term, c)));
            }
            if relu { sum.relu() } else { sum }.store(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In whole vectors and behind them.
    #[test]
    fn a_relu_keeps_nan_and_leaves_no_negative_zero() {
        let numbers = [f32::NAN, -1.0, -0.0, 2.0, f32::INFINITY, f32::NEG_INFINITY];
        let expected = [f32::NAN, 0.0, 0.0, 2.0, f32::INFINITY, 0.0];
        let (channels, pixels) = (37, 3);
        let y: Vec<f32> = (0..pixels * channels).map(|i| numbers[i % numbers.len()]).collect();
        let places: Vec<usize> = (0..pixels).map(|pixel| pixel * channels).collect();
        for isa in Isa::here() {
            let mut y = y.clone();
            let shift = vec![0.0; channels];
            let affine = Affine { normal: None, shift: &shift };
            let finish = Finish { affine, residual: None, relu: true };
            // SAFETY: nobody else has y.
            unsafe { finish.apply(isa, Shared::from(&mut y[..]), &places, 0..channels) };
            for (i, y) in y.iter().enumerate() {
                let expected = expected[i % expected.len()];
                let is_same = y.to_bits() == expected.to_bits() || y.is_nan() && expected.is_nan();
                assert!(is_same, "{isa}: {y} where {expected} belongs");
            }
        }
    }
}
