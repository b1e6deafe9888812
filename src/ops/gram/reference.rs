//! The definition of products of sample matrices, and of moments.

use super::Numbers;
use crate::tensor::Element;

/// Row `index` of the matrix.
fn row<T: Element>(a: &Numbers<T>, index: usize) -> Vec<T> {
    let Numbers { g, x } = a;
    let (n, p, q) = (index / (g.p * g.q), index / g.q % g.p, index % g.q);
    let mut row = Vec::with_capacity(a.columns());
    for r in 0..g.r {
        for s in 0..g.s {
            for c in 0..g.c {
                row.push(match (g.input_row(p, r), g.input_column(q, s)) {
                    (Some(h), Some(w)) => x[((n * g.h + h) * g.w + w) * g.c + c],
                    _ => T::default(),
                });
            }
        }
    }
    row
}

/// `sum` is D_a × D_b.
pub fn accumulate<T: Element>(a: Numbers<T>, b: Numbers<T>, sum: &mut [T]) {
    for p in 0..a.rows() {
        let (left, right) = (row(&a, p), row(&b, p));
        for (i, &left) in left.iter().enumerate() {
            for (j, &right) in right.iter().enumerate() {
                sum[i * b.columns() + j] += left * right;
            }
        }
    }
}

/// `sum` is 2 × D.
pub fn moments<T: Element>(a: Numbers<T>, sum: &mut [T]) {
    for p in 0..a.rows() {
        for (i, value) in row(&a, p).into_iter().enumerate() {
            sum[i] += value;
            sum[a.columns() + i] += value * value;
        }
    }
}
