//! Pooling on the CPU: one task per image, channels in the lanes of the vector unit.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{Adaptive, Geometry};

pub fn max_pool(g: &Geometry, x: &[f32], y: &mut [f32], taps: &mut [u8]) {
    let image = g.p * g.q * g.c;
    y.par_chunks_mut(image)
        .zip(taps.par_chunks_mut(image))
        .enumerate()
        .for_each(|(n, (y, taps))| max_pool_image(g, n, x, y, taps));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn max_pool_image(g: &Geometry, n: usize, x: &[f32], y: &mut [f32], taps: &mut [u8]) {
    let outputs = y.chunks_exact_mut(g.c).zip(taps.chunks_exact_mut(g.c));
    for (output, (y, taps)) in outputs.enumerate() {
        let mut first = true;
        g.for_each_tap(n, output / g.q, output % g.q, |tap, pixel| {
            let x = &x[pixel * g.c..][..g.c];
            if first {
                y.copy_from_slice(x);
                taps.fill(tap as u8);
                first = false;
                return;
            }
            for ((y, winner), &x) in y.iter_mut().zip(taps.iter_mut()).zip(x) {
                let wins = x > *y || x.is_nan();
                *y = if wins { x } else { *y };
                *winner = if wins { tap as u8 } else { *winner };
            }
        });
    }
}

pub fn max_pool_backward(g: &Geometry, dy: &[f32], taps: &[u8], dx: &mut [f32]) {
    let image = g.p * g.q * g.c;
    dx.par_chunks_mut(g.h * g.w * g.c)
        .zip(dy.par_chunks(image))
        .zip(taps.par_chunks(image))
        .for_each(|((dx, dy), taps)| max_pool_backward_image(g, dy, taps, dx));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn max_pool_backward_image(g: &Geometry, dy: &[f32], taps: &[u8], dx: &mut [f32]) {
    dx.fill(0.0);
    for (output, (dy, taps)) in dy.chunks_exact(g.c).zip(taps.chunks_exact(g.c)).enumerate() {
        g.for_each_tap(0, output / g.q, output % g.q, |tap, pixel| {
            let dx = &mut dx[pixel * g.c..][..g.c];
            for ((dx, &dy), &winner) in dx.iter_mut().zip(dy).zip(taps) {
                *dx += if usize::from(winner) == tap { dy } else { 0.0 };
            }
        });
    }
}

pub fn average_pool(g: &Geometry, x: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(g.p * g.q * g.c).enumerate().for_each(|(n, y)| {
        for (output, y) in y.chunks_exact_mut(g.c).enumerate() {
            let (p, q) = (output / g.q, output % g.q);
            y.fill(0.0);
            g.for_each_tap(n, p, q, |_, pixel| {
                for (y, &x) in y.iter_mut().zip(&x[pixel * g.c..]) {
                    *y += x;
                }
            });
            let divisor = g.divisor(p, q) as f32;
            y.iter_mut().for_each(|y| *y /= divisor);
        }
    });
}

pub fn average_pool_backward(g: &Geometry, dy: &[f32], dx: &mut [f32]) {
    let images = dy.par_chunks(g.p * g.q * g.c);
    dx.par_chunks_mut(g.h * g.w * g.c).zip(images).for_each(|(dx, dy)| {
        dx.fill(0.0);
        for (output, dy) in dy.chunks_exact(g.c).enumerate() {
            let (p, q) = (output / g.q, output % g.q);
            let divisor = g.divisor(p, q) as f32;
            g.for_each_tap(0, p, q, |_, pixel| {
                for (dx, &dy) in dx[pixel * g.c..].iter_mut().zip(dy) {
                    *dx += dy / divisor;
                }
            });
        }
    });
}

pub fn adaptive_average_pool(g: &Adaptive, x: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(g.p * g.q * g.c).zip(x.par_chunks(g.h * g.w * g.c)).for_each(|(y, x)| {
        for (output, y) in y.chunks_exact_mut(g.c).enumerate() {
            let (rows, columns) = (Adaptive::window(output / g.q, g.h, g.p), Adaptive::window(output % g.q, g.w, g.q));
            let pixels = (rows.len() * columns.len()) as f32;
            y.fill(0.0);
            for h in rows {
                for x in x[(h * g.w + columns.start) * g.c..].chunks_exact(g.c).take(columns.len()) {
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
                }
            }
            y.iter_mut().for_each(|y| *y /= pixels);
        }
    });
}

/// Each input gathers from the outputs that see it, in their order.
pub fn adaptive_average_pool_backward(g: &Adaptive, dy: &[f32], dx: &mut [f32]) {
    dx.par_chunks_mut(g.h * g.w * g.c).zip(dy.par_chunks(g.p * g.q * g.c)).for_each(|(dx, dy)| {
        for (input, dx) in dx.chunks_exact_mut(g.c).enumerate() {
            dx.fill(0.0);
            for p in Adaptive::outputs_over(input / g.w, g.h, g.p) {
                for q in Adaptive::outputs_over(input % g.w, g.w, g.q) {
                    let pixels = Adaptive::window(p, g.h, g.p).len() * Adaptive::window(q, g.w, g.q).len();
                    let dy = &dy[(p * g.q + q) * g.c..][..g.c];
                    dx.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy / pixels as f32);
                }
            }
        }
    });
}

pub fn global_average_pool(pixels: usize, x: &[f32], channels: usize, y: &mut [f32]) {
    y.par_chunks_mut(channels).zip(x.par_chunks(pixels * channels)).for_each(|(y, x)| {
        y.fill(0.0);
        for x in x.chunks_exact(channels) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y += x;
            }
        }
        y.iter_mut().for_each(|y| *y /= pixels as f32);
    });
}

pub fn global_average_pool_backward(pixels: usize, dy: &[f32], channels: usize, dx: &mut [f32]) {
    dx.par_chunks_mut(pixels * channels).zip(dy.par_chunks(channels)).for_each(|(dx, dy)| {
        for dx in dx.chunks_exact_mut(channels) {
            for (dx, &dy) in dx.iter_mut().zip(dy) {
                *dx = dy / pixels as f32;
            }
        }
    });
}
