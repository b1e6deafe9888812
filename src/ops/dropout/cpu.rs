//! Dropout on the CPU: blocks in parallel, four elements for each draw.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{Dropout, words};

/// Elements of a block, a multiple of four.
const BLOCK: usize = 1 << 14;

pub fn dropout(of: &Dropout, key: [u32; 2], x: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(BLOCK)
        .zip(x.par_chunks(BLOCK))
        .enumerate()
        .for_each(|(block, (y, x))| drop_block(of, key, (block * BLOCK / 4) as u64, x, y));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn drop_block(of: &Dropout, key: [u32; 2], first: u64, x: &[f32], y: &mut [f32]) {
    for (quad, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
        for ((y, &x), word) in y.iter_mut().zip(x).zip(words(first + quad as u64, of.stream, key)) {
            *y = if word >= of.threshold { x * of.scale } else { 0.0 };
        }
    }
}
