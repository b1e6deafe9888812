//! The definition of pooling. Images are N×H×W×C, outputs N×P×Q×C.

use super::{Adaptive, Geometry};
use crate::tensor::Element;

/// Calls `visit(y, tap, x)` with the flat indices of every pair of an output and an input it sees.
fn for_each_pair(g: &Geometry, mut visit: impl FnMut(usize, usize, usize)) {
    for output in 0..g.n * g.p * g.q {
        let (n, p, q) = (output / (g.p * g.q), output / g.q % g.p, output % g.q);
        g.for_each_tap(n, p, q, |tap, pixel| {
            for c in 0..g.c {
                visit(output * g.c + c, tap, pixel * g.c + c);
            }
        });
    }
}

pub fn max_pool<T: Element>(g: &Geometry, x: &[T], y: &mut [T], taps: &mut [u8]) {
    y.fill(T::from_f64(f64::NEG_INFINITY));
    let mut seen = vec![false; y.len()];
    for_each_pair(g, |iy, tap, ix| {
        let is_nan = x[ix].partial_cmp(&x[ix]).is_none();
        let is_first = !std::mem::replace(&mut seen[iy], true);
        if x[ix] > y[iy] || is_nan || is_first {
            y[iy] = x[ix];
            taps[iy] = tap as u8;
        }
    });
}

pub fn max_pool_backward<T: Element>(g: &Geometry, dy: &[T], taps: &[u8], dx: &mut [T]) {
    dx.fill(T::default());
    for_each_pair(g, |iy, tap, ix| {
        if usize::from(taps[iy]) == tap {
            dx[ix] += dy[iy];
        }
    });
}

pub fn average_pool<T: Element>(g: &Geometry, x: &[T], y: &mut [T]) {
    y.fill(T::default());
    for_each_pair(g, |iy, _, ix| y[iy] += x[ix]);
    for (i, y) in y.iter_mut().enumerate() {
        let pixel = i / g.c;
        *y = *y / T::from_f64(g.divisor(pixel / g.q % g.p, pixel % g.q));
    }
}

pub fn average_pool_backward<T: Element>(g: &Geometry, dy: &[T], dx: &mut [T]) {
    dx.fill(T::default());
    for_each_pair(g, |iy, _, ix| {
        let pixel = iy / g.c;
        dx[ix] += dy[iy] / T::from_f64(g.divisor(pixel / g.q % g.p, pixel % g.q));
    });
}

/// Calls `visit(y, pixels, x)` with the flat indices of every pair of an output and an input that it averages over so many.
fn for_each_of_adaptive(g: &Adaptive, mut visit: impl FnMut(usize, f64, usize)) {
    for output in 0..g.n * g.p * g.q {
        let (n, p, q) = (output / (g.p * g.q), output / g.q % g.p, output % g.q);
        let (rows, columns) = (Adaptive::window(p, g.h, g.p), Adaptive::window(q, g.w, g.q));
        let pixels = (rows.len() * columns.len()) as f64;
        for h in rows {
            for w in columns.clone() {
                for c in 0..g.c {
                    visit(output * g.c + c, pixels, ((n * g.h + h) * g.w + w) * g.c + c);
                }
            }
        }
    }
}

pub fn adaptive_average_pool<T: Element>(g: &Adaptive, x: &[T], y: &mut [T]) {
    y.fill(T::default());
    let mut counts = vec![1.0; y.len()];
    for_each_of_adaptive(g, |iy, pixels, ix| {
        y[iy] += x[ix];
        counts[iy] = pixels;
    });
    y.iter_mut().zip(counts).for_each(|(y, count)| *y = *y / T::from_f64(count));
}

pub fn adaptive_average_pool_backward<T: Element>(g: &Adaptive, dy: &[T], dx: &mut [T]) {
    dx.fill(T::default());
    for_each_of_adaptive(g, |iy, pixels, ix| dx[ix] += dy[iy] / T::from_f64(pixels));
}

pub fn global_average_pool<T: Element>(pixels: usize, x: &[T], channels: usize, y: &mut [T]) {
    for (y, x) in y.chunks_mut(channels).zip(x.chunks(pixels * channels)) {
        for (c, y) in y.iter_mut().enumerate() {
            *y = x.iter().skip(c).step_by(channels).copied().sum::<T>() / T::from_f64(pixels as f64);
        }
    }
}

pub fn global_average_pool_backward<T: Element>(pixels: usize, dy: &[T], channels: usize, dx: &mut [T]) {
    for (i, dx) in dx.iter_mut().enumerate() {
        let image = i / (pixels * channels);
        *dx = dy[image * channels + i % channels] / T::from_f64(pixels as f64);
    }
}
