//! What the test binaries share.
#![allow(dead_code)]

use medmerge::tensor::Tensor;

/// `√(Σ (a − e)² / Σ e²)`; infinite if anything is not finite, so that NaN fails every comparison.
pub fn normalized_error(actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len(), "lengths");
    let difference: f64 = actual.iter().zip(expected).map(|(a, e)| (a - e) * (a - e)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    let error = (difference / norm.max(1e-300)).sqrt();
    if error.is_finite() || (difference == 0.0 && norm == 0.0) { error } else { f64::INFINITY }
}

/// Panics unless `actual` is within `tolerance` of `expected` by [`normalized_error`].
#[track_caller]
pub fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    let error = normalized_error(actual, expected);
    assert!(error <= tolerance, "{what}: normalised error {error:.3e} > {tolerance:.0e}");
}

/// A stream of numbers that needs no crate and is the same everywhere: splitmix64.
pub struct Numbers(pub u64);

impl Numbers {
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

pub fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// NCHW, as in PyTorch, to NHWC.
pub fn nhwc(values: &[f32], shape: &[usize]) -> Tensor {
    let &[n, c, h, w] = shape else { panic!("{shape:?} is no batch of images") };
    let mut out = vec![0f32; values.len()];
    for i in 0..n {
        for channel in 0..c {
            for pixel in 0..h * w {
                out[(i * h * w + pixel) * c + channel] = values[(i * c + channel) * h * w + pixel];
            }
        }
    }
    Tensor::from_vec(out, [n, h, w, c])
}
