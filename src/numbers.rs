//! Numbers to check with, and how far apart two lists of them are.

use crate::dtype::DType;

/// A stream of numbers that needs no crate and is the same everywhere: splitmix64.
pub struct Numbers(pub u64);

impl Numbers {
    /// A stream of its own for every name.
    pub fn named(name: &str) -> Numbers {
        Numbers(name.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte))))
    }

    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Uniform in [−1, 1).
    pub fn real(&mut self) -> f64 {
        (self.next() >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }

    pub fn reals(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.real()).collect()
    }

    /// Integers in −3..=3: their sums of products are exact in `f32`.
    pub fn integers(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| (self.next() % 7) as f64 - 3.0).collect()
    }
}

pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `Σ a·b` of f32, in f64 and in their order.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Cosine of the angle between two lists of numbers; NaN where one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// `√(Σ (a − e)² / Σ e²)`; infinite if anything is not finite, so that NaN fails every comparison.
pub fn normalized_error(actual: &[f64], expected: &[f64]) -> f64 {
    error_beyond(actual, expected, |_| 0.0)
}

/// The same, of that part of each difference which exceeds what storing the expected number as `dtype` rounds away.
pub(crate) fn error_beyond_storage(actual: &[f64], expected: &[f64], dtype: DType) -> f64 {
    error_beyond(actual, expected, |expected| half_spacing(expected, dtype))
}

fn error_beyond(actual: &[f64], expected: &[f64], allowed: impl Fn(f64) -> f64) -> f64 {
    assert_eq!(actual.len(), expected.len(), "lengths");
    let beyond = |(&a, &e): (&f64, &f64)| {
        let (difference, allowed) = ((a - e).abs(), allowed(e));
        // A NaN is no less than anything.
        if difference <= allowed { 0.0 } else { difference - allowed }
    };
    let difference: f64 = actual.iter().zip(expected).map(beyond).map(|d| d * d).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    let error = (difference / norm.max(1e-300)).sqrt();
    if error.is_finite() || (difference == 0.0 && norm == 0.0) { error } else { f64::INFINITY }
}

/// The nearest number that an activation stored as `dtype` can have; ties go to the even one. `value` is exact in `f32`.
pub fn stored(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F64 | DType::F32 => value,
        // Ten bits of fraction, ties away from zero: what tensor cores make of it.
        DType::TF32 => f64::from(f32::from_bits(((value as f32).to_bits() + 0x1000) & !0x1FFF)),
        DType::BF16 => half::bf16::from_f32(value as f32).to_f64(),
        DType::F16 => half::f16::from_f32(value as f32).to_f64(),
    }
}

/// Half the distance between neighbours of `value` in `dtype`: what one rounding changes at most. Nothing for `f32`, the
/// precision of the arithmetic itself.
fn half_spacing(value: f64, dtype: DType) -> f64 {
    // Bits of the significand, and the least exponent.
    let (bits, least) = match dtype {
        // Stored in full.
        DType::F64 | DType::F32 | DType::TF32 => return 0.0,
        DType::BF16 => (8, -126),
        DType::F16 => (11, -14),
    };
    let exponent = ((value.to_bits() >> 52 & 0x7FF) as i32 - 1023).max(least);
    2f64.powi(exponent - bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_changes_at_most_half_the_spacing() {
        let mut numbers = Numbers(1);
        for dtype in [DType::BF16, DType::F16] {
            let mut largest: f64 = 0.0;
            for scale in [1e-6, 1e-3, 1.0, 1e3] {
                for value in numbers.reals(10_000) {
                    let value = f64::from((value * scale) as f32);
                    let share = (stored(value, dtype) - value).abs() / half_spacing(value, dtype);
                    assert!(share <= 1.0, "{value} as {dtype}");
                    largest = largest.max(share);
                }
            }
            assert!(largest > 0.99, "{dtype}: the spacing is too wide");
        }
    }

    #[test]
    fn what_is_not_finite_is_infinitely_wrong() {
        for (actual, expected) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN), (f64::NAN, f64::NAN)] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                assert_eq!(error_beyond_storage(&[actual, 0.0], &[expected, 0.0], dtype), f64::INFINITY);
            }
        }
    }
}
