//! What the kernels for tensor cores would have to divide for, and the host knows: numbers to divide by, and which taps reach which rows
//! of an input whose convolution has a stride.

use super::Geometry;
use crate::parameters;

parameters! {
    /// n / divisor for n below 2³¹ as n·multiplier / 2^shift. The twin of the struct of that name in `kernels/conv2d_tensor.cuh`.
    pub struct Divider: 12 bytes { pub divisor: u32, pub multiplier: u32, pub shift: u32 }
}

impl Divider {
    /// With 2ˡ the power of two that is `divisor` or above it, the multiplier is 2³¹⁺ˡ / divisor rounded up, which is too large by less than
    /// 1: the quotient by less than n / 2³¹⁺ˡ, and so by less than 1 / divisor, which is how far it may be from the next whole number.
    ///
    /// # Panics
    /// If `divisor` is 0 or above 2³¹.
    pub fn new(divisor: usize) -> Divider {
        assert!((1..=1 << 31).contains(&divisor), "division by {divisor}");
        let shift = 31 + divisor.next_power_of_two().trailing_zeros();
        let multiplier = (1u64 << shift).div_ceil(divisor as u64);
        let multiplier = u32::try_from(multiplier).expect("below 2³², since the divisor is above half of 2ˡ");
        Divider { divisor: divisor as u32, multiplier, shift }
    }

    /// As the kernels do it.
    pub fn divide(&self, n: u32) -> u32 {
        ((u64::from(n) * u64::from(self.multiplier)) >> self.shift) as u32
    }
}

/// Strides up to this have residues on tensor cores.
pub const MOST_RESIDUES: usize = 4;

parameters! {
    /// Of an input axis with a stride the rows residue + stride·i: they read output rows through every `tap_step`-th tap alone, from
    /// `first_tap` on, and tap first_tap + j·tap_step reads row from + i + j·step. The twin of the struct of that name in
    /// `kernels/conv2d_tensor.cuh`.
    pub struct Residue: 52 bytes {
        pub residue: i32,
        pub count: i32,
        pub first_tap: i32,
        pub tap_step: i32,
        pub taps: i32,
        pub from: i32,
        pub step: i32,
        pub by_count: Divider,
        pub by_taps: Divider,
    }
}

/// One axis of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// Rows of the input.
    pub size: usize,
    pub taps: usize,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
}

impl Axis {
    /// All residues; those that the stride does not have are empty.
    ///
    /// # Panics
    /// If there are more than [`MOST_RESIDUES`].
    pub fn residues(&self) -> [Residue; MOST_RESIDUES] {
        assert!(self.stride <= MOST_RESIDUES, "a stride of {}", self.stride);
        std::array::from_fn(|residue| self.residue(residue))
    }

    fn residue(&self, residue: usize) -> Residue {
        let Axis { size, taps, stride, padding, dilation } = *self;
        let row = (residue + padding) as i64;
        let reaches = |tap: usize| (row - (tap * dilation) as i64).rem_euclid(stride as i64) == 0;
        let tap_step =
            (1..=stride).find(|period| (period * dilation).is_multiple_of(stride)).expect("the stride is one");
        let first_tap = (0..stride.min(taps)).find(|&tap| reaches(tap)).filter(|_| residue < stride);
        let count = if residue < size.min(stride) { (size - residue).div_ceil(stride) } else { 0 };
        let of_taps = first_tap.map_or(0, |first| (taps - first).div_ceil(tap_step));
        let from = first_tap.map_or(0, |first| (row - (first * dilation) as i64) / stride as i64);
        Residue {
            residue: residue as i32,
            count: count as i32,
            first_tap: first_tap.unwrap_or(0) as i32,
            tap_step: tap_step as i32,
            taps: of_taps as i32,
            from: from as i32,
            step: -((tap_step * dilation / stride) as i32),
            by_count: Divider::new(count.max(1)),
            by_taps: Divider::new(of_taps.max(1)),
        }
    }
}

/// The residues of both axes, H and W, of the input of a convolution.
///
/// # Panics
/// If a stride has more than [`MOST_RESIDUES`].
pub fn residues(g: &Geometry) -> [[Residue; MOST_RESIDUES]; 2] {
    [(g.h, g.r, 0), (g.w, g.s, 1)].map(|(size, taps, axis)| {
        let [stride, padding, dilation] = [g.conv.stride, g.conv.padding, g.conv.dilation].map(|of| of[axis]);
        Axis { size, taps, stride, padding, dilation }.residues()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    #[test]
    fn quotients_are_exact() {
        let most = (1u32 << 31) - 1;
        let mut divisors: Vec<u32> = (1..300).collect();
        divisors.extend((8..31).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]));
        divisors.extend([most, 1 << 31]);
        for divisor in divisors {
            let divider = Divider::new(divisor as usize);
            // Around the first and the last multiples, where a quotient would be wrong first.
            let last = most / divisor * divisor;
            let around = [0, divisor, 2 * (divisor / 2), last, most - most % divisor.max(2), most];
            for n in
                around.into_iter().flat_map(|n| [n.saturating_sub(1), n, n.saturating_add(1)]).filter(|&n| n <= most)
            {
                assert_eq!(divider.divide(n), n / divisor, "{n} / {divisor}");
            }
        }
    }

    /// Every pair of an input row and a tap that an output row reads is one product of one residue.
    #[test]
    fn residues_take_every_tap_that_reaches_their_rows() {
        let mut numbers = Numbers::named("residues");
        let mut below = |count: usize| numbers.next() as usize % count;
        for _ in 0..2000 {
            let axis = Axis {
                size: 1 + below(19),
                taps: 1 + below(4),
                stride: 1 + below(MOST_RESIDUES),
                padding: below(4),
                dilation: 1 + below(3),
            };
            let Some(rows) = (axis.size + 2 * axis.padding).checked_sub(axis.dilation * (axis.taps - 1) + 1) else {
                continue;
            };
            let outputs = (rows / axis.stride + 1) as i32;
            // (input row, tap, output row), by the definition of a convolution.
            let mut expected: Vec<[i32; 3]> = Vec::new();
            for p in 0..outputs {
                let row = |tap: usize| p * axis.stride as i32 - axis.padding as i32 + (tap * axis.dilation) as i32;
                let reads = (0..axis.taps).map(|tap| [row(tap), tap as i32, p]);
                expected.extend(reads.filter(|[h, ..]| (0..axis.size as i32).contains(h)));
            }
            let mut found: Vec<[i32; 3]> = Vec::new();
            for of in axis.residues() {
                assert!(of.taps == 0 || of.first_tap + (of.taps - 1) * of.tap_step < axis.taps as i32, "{axis:?}");
                for (i, j) in (0..of.count).flat_map(|i| (0..of.taps).map(move |j| (i, j))) {
                    let (h, p) = (of.residue + i * axis.stride as i32, of.from + i + j * of.step);
                    assert!(h < axis.size as i32);
                    if (0..outputs).contains(&p) {
                        found.push([h, of.first_tap + j * of.tap_step, p]);
                    }
                }
            }
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected, "{axis:?}");
        }
    }
}
