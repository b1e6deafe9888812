//! The definition of dropout.

use super::{Dropout, words};
use crate::tensor::Element;

pub fn dropout<T: Element>(of: &Dropout, key: [u32; 2], x: &[T], y: &mut [T]) {
    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
        let is_kept = words(i as u64 / 4, of.stream, key)[i % 4] >= of.threshold;
        *y = if is_kept { *x * T::from_f64(f64::from(of.scale)) } else { T::default() };
    }
}
