//! Convolutions in which every channel has its own single filter: too thin for a matrix product, so channels run in
//! the lanes of the vector unit. `taps` holds the filters transposed, tap by tap, so that channels are contiguous.

use multiversion::multiversion;
use rayon::prelude::*;

use super::Geometry;
use super::finish::Finish;
use super::tile::Shared;
use crate::ops::simd::Isa;

pub fn applies(g: &Geometry) -> bool {
    g.conv.groups == g.c && g.k == g.c
}

fn transpose(g: &Geometry, w: &[f32]) -> Vec<f32> {
    let taps = g.r * g.s;
    let mut transposed = vec![0.0; taps * g.c];
    for c in 0..g.c {
        for tap in 0..taps {
            transposed[tap * g.c + c] = w[c * g.pitch + tap];
        }
    }
    transposed
}

pub fn fprop(isa: Isa, g: &Geometry, x: &[f32], w: &[f32], finish: Option<Finish>, y: &mut [f32]) {
    let taps = transpose(g, w);
    let y = Shared::from(y);
    (0..g.n * g.p).into_par_iter().for_each(|row| {
        let places: Vec<usize> = (row * g.q..(row + 1) * g.q).map(|pixel| pixel * g.c).collect();
        // SAFETY: no two tasks have a row in common.
        unsafe {
            let y = y.row(row * g.q * g.c..(row + 1) * g.q * g.c);
            y.fill(0.0);
            fprop_row(g, x, &taps, row / g.p, row % g.p, y);
        }
        if let Some(finish) = finish {
            // SAFETY: as above.
            unsafe { finish.apply(isa, y, &places, 0..g.c) }
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn fprop_row(g: &Geometry, x: &[f32], taps: &[f32], n: usize, p: usize, y: &mut [f32]) {
    for (q, y) in y.chunks_exact_mut(g.c).enumerate() {
        for r in 0..g.r {
            let Some(h) = g.input_row(p, r) else { continue };
            for s in 0..g.s {
                let Some(w) = g.input_column(q, s) else { continue };
                let x = &x[((n * g.h + h) * g.w + w) * g.c..][..g.c];
                let tap = &taps[(r * g.s + s) * g.c..][..g.c];
                for ((y, &x), &tap) in y.iter_mut().zip(x).zip(tap) {
                    *y += x * tap;
                }
            }
        }
    }
}

pub fn dgrad(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    let taps = transpose(g, w);
    dx.par_chunks_mut(g.h * g.w * g.c).enumerate().for_each(|(n, dx)| {
        dx.fill(0.0);
        dgrad_image(g, dy, &taps, n, dx);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn dgrad_image(g: &Geometry, dy: &[f32], taps: &[f32], n: usize, dx: &mut [f32]) {
    for p in 0..g.p {
        for q in 0..g.q {
            let dy = &dy[((n * g.p + p) * g.q + q) * g.c..][..g.c];
            for r in 0..g.r {
                let Some(h) = g.input_row(p, r) else { continue };
                for s in 0..g.s {
                    let Some(w) = g.input_column(q, s) else { continue };
                    let dx = &mut dx[(h * g.w + w) * g.c..][..g.c];
                    let tap = &taps[(r * g.s + s) * g.c..][..g.c];
                    for ((dx, &dy), &tap) in dx.iter_mut().zip(dy).zip(tap) {
                        *dx += dy * tap;
                    }
                }
            }
        }
    }
}

pub fn wgrad(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let taps = g.r * g.s;
    // One partial sum per image, added in the order of the images.
    let partial: Vec<Vec<f32>> = (0..g.n)
        .into_par_iter()
        .map(|n| {
            let mut sum = vec![0.0; taps * g.c];
            wgrad_image(g, x, dy, n, &mut sum);
            sum
        })
        .collect();
    for c in 0..g.c {
        for tap in 0..taps {
            dw[c * g.pitch + tap] = partial.iter().map(|sum| sum[tap * g.c + c]).sum();
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn wgrad_image(g: &Geometry, x: &[f32], dy: &[f32], n: usize, sum: &mut [f32]) {
    for p in 0..g.p {
        for q in 0..g.q {
            let dy = &dy[((n * g.p + p) * g.q + q) * g.c..][..g.c];
            for r in 0..g.r {
                let Some(h) = g.input_row(p, r) else { continue };
                for s in 0..g.s {
                    let Some(w) = g.input_column(q, s) else { continue };
                    let x = &x[((n * g.h + h) * g.w + w) * g.c..][..g.c];
                    let sum = &mut sum[(r * g.s + s) * g.c..][..g.c];
                    for ((sum, &x), &dy) in sum.iter_mut().zip(x).zip(dy) {
                        *sum += x * dy;
                    }
                }
            }
        }
    }
}
