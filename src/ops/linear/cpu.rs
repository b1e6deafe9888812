//! The fully connected layer on the CPU: one matrix product each. Heads are small beside the convolutions before them,
//! so one thread serves.

use super::Geometry;
use crate::ops::gemm::{Matrix, gemm};

pub fn forward(g: &Geometry, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
    y.chunks_exact_mut(g.k).for_each(|y| y.copy_from_slice(b));
    let w = Matrix::new(w, g.k, g.c, g.pitch);
    gemm(Matrix::new(x, g.n, g.c, g.c), w.transposed(), y, g.k, true);
}

pub fn input_gradient(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    gemm(Matrix::new(dy, g.n, g.k, g.k), Matrix::new(w, g.k, g.c, g.pitch), dx, g.c, false);
}

pub fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    gemm(Matrix::new(dy, g.n, g.k, g.k).transposed(), Matrix::new(x, g.n, g.c, g.c), dw, g.pitch, false);
}
