//! Random numbers that every peer makes alike, in Rust and in Python, so that results can be compared.
//!
//! Element `i` of stream `seed` is a hash of both. `i` counts in PyTorch's order (NCHW, KCRS) whatever the peer's own is.

use rayon::prelude::*;

/// Streams. Merge sources and filters start at the given number and count up.
pub mod seed {
    pub const X: u32 = 1;
    pub const W: u32 = 2;
    pub const DY: u32 = 3;
    pub const LABELS: u32 = 4;
    /// The weights of a step's network: convolutions and hidden layers in torchvision's order, then the head. Those of
    /// source m of a learning step begin at `STEP · (m + 1)`.
    pub const STEP: u32 = 100;
    /// α of source m is stream `ALPHA + m`, indexed by the filter's number in the whole network.
    pub const ALPHA: u32 = 500;
    /// Layer l of source m is stream `SOURCE · (m + 1) + 3 · l`, then +1 its γ, +2 its β.
    pub const SOURCE: u32 = 1000;
    /// Takes the place of m + 1 in the gradient dW.
    pub const GRADIENT: u32 = 100;
}

fn hash(seed: u32, i: u32) -> u32 {
    let mut h = i.wrapping_mul(0x9E37_79B1).wrapping_add(seed.wrapping_mul(0x85EB_CA77));
    h = (h ^ (h >> 16)).wrapping_mul(0x7FEB_352D);
    h = (h ^ (h >> 15)).wrapping_mul(0x846C_A68B);
    h ^ (h >> 16)
}

/// Uniform in [−bound, bound).
pub fn uniform(seed: u32, count: usize, bound: f32) -> Vec<f32> {
    let number = |i| ((hash(seed, i as u32) >> 8) as f32 / 8_388_608.0 - 1.0) * bound;
    (0..count).into_par_iter().map(number).collect()
}

/// Uniform in 0 .. classes.
pub fn labels(count: usize, classes: usize) -> Vec<usize> {
    (0..count).map(|i| (hash(seed::LABELS, i as u32) >> 8) as usize % classes).collect()
}

/// Mean absolute value, the same in every layout: what a check compares.
pub fn mean_abs(values: &[f32]) -> f64 {
    values.iter().map(|v| v.abs() as f64).sum::<f64>() / values.len() as f64
}
