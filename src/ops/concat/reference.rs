//! The definition of concatenation, one input at a time.

use crate::tensor::Element;

pub fn insert<T: Element>(x: &[T], channels: usize, y: &mut [T], total: usize, first: usize) {
    for (x, y) in x.chunks(channels).zip(y.chunks_mut(total)) {
        y[first..first + channels].copy_from_slice(x);
    }
}

pub fn extract<T: Element>(dy: &[T], total: usize, first: usize, dx: &mut [T], channels: usize) {
    for (dx, dy) in dx.chunks_mut(channels).zip(dy.chunks(total)) {
        dx.copy_from_slice(&dy[first..first + channels]);
    }
}
