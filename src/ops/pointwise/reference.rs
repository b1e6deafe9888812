//! The definition of the pointwise ops.

use super::Pull;
use crate::tensor::Element;

pub fn add_assign<T: Element>(sum: &mut [T], term: &[T], row: usize, pitch: usize) {
    for (sum, term) in sum.chunks_mut(pitch).zip(term.chunks(row)) {
        for (s, &t) in sum.iter_mut().zip(term) {
            *s += t;
        }
    }
}

pub fn relu_assign<T: Element>(x: &mut [T]) {
    let zero = T::from_f64(0.0);
    for x in x {
        // Not `max`, which would turn NaN into 0.
        if *x <= zero {
            *x = zero;
        }
    }
}

pub fn relu_backward_assign<T: Element>(dy: &mut [T], y: &[T]) {
    let zero = T::from_f64(0.0);
    for (dy, &y) in dy.iter_mut().zip(y) {
        if y <= zero {
            *dy = zero;
        }
    }
}

#[inline(always)]
pub fn pull_assign<T: Element>(pull: &Pull, dx: &mut [T], x: &[T], towards: &[T]) {
    let [strength, share] = [pull.strength, pull.share].map(T::from_f64);
    for ((dx, &x), &t) in dx.iter_mut().zip(x).zip(towards) {
        *dx += strength * (x - share * t);
    }
}
