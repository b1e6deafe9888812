//! Concatenation on the CPU: blocks of pixels in parallel.

use rayon::prelude::*;

use super::reference;

/// Pixels per task.
const BLOCK: usize = 1024;

pub fn insert(x: &[f32], channels: usize, y: &mut [f32], total: usize, first: usize) {
    y.par_chunks_mut(BLOCK * total)
        .zip(x.par_chunks(BLOCK * channels))
        .for_each(|(y, x)| reference::insert(x, channels, y, total, first));
}

pub fn extract(dy: &[f32], total: usize, first: usize, dx: &mut [f32], channels: usize) {
    dx.par_chunks_mut(BLOCK * channels)
        .zip(dy.par_chunks(BLOCK * total))
        .for_each(|(dx, dy)| reference::extract(dy, total, first, dx, channels));
}
