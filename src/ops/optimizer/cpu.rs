//! The update rules on the CPU: blocks of the arena in parallel, the reference's arithmetic in vector instructions.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{AdamW, Sgd, reference};

/// Elements per task.
const BLOCK: usize = 1 << 14;

pub fn sgd(rule: &Sgd, w: &mut [f32], g: &[f32], v: &mut [f32]) {
    w.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(v.par_chunks_mut(BLOCK))
        .for_each(|((w, g), v)| sgd_block(rule, w, g, v));
}

pub fn adamw(rule: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], u: &mut [f32]) {
    w.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(m.par_chunks_mut(BLOCK).zip(u.par_chunks_mut(BLOCK)))
        .for_each(|((w, g), (m, u))| adamw_block(rule, w, g, m, u));
}

pub fn gather(sum: &mut [f32], g: &[f32], share: f64, is_first: bool) {
    let blocks = sum.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK));
    blocks.for_each(|(sum, g)| reference::gather(sum, g, share, is_first));
}

/// Σ g² in f64: the blocks' sums in the order of the blocks.
pub fn square_sum(g: &[f32]) -> f64 {
    let of_blocks: Vec<f64> = g.par_chunks(BLOCK).map(reference::square_sum).collect();
    of_blocks.into_iter().sum()
}

pub fn scale(g: &mut [f32], factor: f64) {
    g.par_chunks_mut(BLOCK).for_each(|g| reference::scale(g, factor));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn sgd_block(rule: &Sgd, w: &mut [f32], g: &[f32], v: &mut [f32]) {
    reference::sgd(rule, w, g, v);
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn adamw_block(rule: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], u: &mut [f32]) {
    reference::adamw(rule, w, g, m, u);
}
