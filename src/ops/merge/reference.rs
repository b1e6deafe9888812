//! The definition of the merge and of its backward.

use super::{Choice, Table};
use crate::tensor::Element;

/// Calls `visit(weight, choice)` for every weight, where the choice is the index of its α or a source.
fn for_each_weight(table: &Table, mut visit: impl FnMut(usize, Result<usize, usize>)) {
    for segment in table.segments() {
        for row in 0..segment.rows {
            for column in 0..segment.row_len {
                let choice = match segment.choice {
                    Choice::Alpha { first, row_step, period } => Ok(first + row * row_step + column % period),
                    Choice::Source(source) => Err(source),
                };
                visit(segment.offset + row * segment.pitch + column, choice);
            }
        }
    }
}

pub fn blend<T: Element>(table: &Table, sources: &[&[T]], alpha: &[T], blend: &mut [T]) {
    blend.fill(T::default());
    for_each_weight(table, |i, choice| match choice {
        Ok(j) => {
            let terms = sources.iter().enumerate().map(|(m, source)| alpha[m * table.alphas() + j] * source[i]);
            blend[i] = terms.reduce(|sum, term| sum + term).unwrap_or_default();
        }
        Err(source) => blend[i] = sources[source][i],
    });
}

pub fn alpha_gradient<T: Element>(table: &Table, sources: &[&[T]], dw: &[T], dalpha: &mut [T]) {
    dalpha.fill(T::default());
    for_each_weight(table, |i, choice| {
        if let Ok(j) = choice {
            for (m, source) in sources.iter().enumerate() {
                dalpha[m * table.alphas() + j] += dw[i] * source[i];
            }
        }
    });
}
