//! The definition of the fully connected layer.

use super::Geometry;
use crate::tensor::Element;

pub fn forward<T: Element>(g: &Geometry, x: &[T], w: &[T], b: &[T], y: &mut [T]) {
    for n in 0..g.n {
        for k in 0..g.k {
            y[n * g.k + k] = (0..g.c).map(|c| x[n * g.c + c] * w[k * g.pitch + c]).sum::<T>() + b[k];
        }
    }
}

pub fn input_gradient<T: Element>(g: &Geometry, dy: &[T], w: &[T], dx: &mut [T]) {
    for n in 0..g.n {
        for c in 0..g.c {
            dx[n * g.c + c] = (0..g.k).map(|k| dy[n * g.k + k] * w[k * g.pitch + c]).sum();
        }
    }
}

pub fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) {
    for k in 0..g.k {
        for c in 0..g.c {
            dw[k * g.pitch + c] = (0..g.n).map(|n| dy[n * g.k + k] * x[n * g.c + c]).sum();
        }
    }
}

pub fn bias_gradient<T: Element>(dy: &[T], db: &mut [T]) {
    let k = db.len();
    for (i, db) in db.iter_mut().enumerate() {
        *db = dy.iter().skip(i).step_by(k).copied().sum();
    }
}
