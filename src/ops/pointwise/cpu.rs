//! The pointwise ops on the CPU: blocks of the tensor in parallel, vector instructions chosen at run time.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{Pull, reference};

/// Elements per task: large enough to hide rayon's bookkeeping, small enough to balance a few cores.
const BLOCK: usize = 1 << 15;

pub fn add_assign(sum: &mut [f32], term: &[f32]) {
    sum.par_chunks_mut(BLOCK).zip(term.par_chunks(BLOCK)).for_each(|(sum, term)| add_block(sum, term));
}

pub fn relu_assign(x: &mut [f32]) {
    x.par_chunks_mut(BLOCK).for_each(relu_block);
}

pub fn relu_backward_assign(dy: &mut [f32], y: &[f32]) {
    dy.par_chunks_mut(BLOCK).zip(y.par_chunks(BLOCK)).for_each(|(dy, y)| relu_backward_block(dy, y));
}

pub fn pull_assign(pull: &Pull, dx: &mut [f32], x: &[f32], towards: &[f32]) {
    let blocks = dx.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).zip(towards.par_chunks(BLOCK));
    blocks.for_each(|((dx, x), towards)| pull_block(pull, dx, x, towards));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn pull_block(pull: &Pull, dx: &mut [f32], x: &[f32], towards: &[f32]) {
    reference::pull_assign(pull, dx, x, towards);
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(in crate::ops) fn add_block(sum: &mut [f32], term: &[f32]) {
    for (sum, &term) in sum.iter_mut().zip(term) {
        *sum += term;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(in crate::ops) fn relu_block(x: &mut [f32]) {
    for x in x {
        *x = if *x <= 0.0 { 0.0 } else { *x };
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(in crate::ops) fn relu_backward_block(dy: &mut [f32], y: &[f32]) {
    for (dy, &y) in dy.iter_mut().zip(y) {
        *dy = if y <= 0.0 { 0.0 } else { *dy };
    }
}
