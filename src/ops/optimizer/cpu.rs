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

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn sgd_block(rule: &Sgd, w: &mut [f32], g: &[f32], v: &mut [f32]) {
    reference::sgd(rule, w, g, v);
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn adamw_block(rule: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], u: &mut [f32]) {
    reference::adamw(rule, w, g, m, u);
}
