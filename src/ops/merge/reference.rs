//! The definition of the merge and of its backward.

use super::{Choice, FilterProducts, Table};
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

/// Rows of `len` weights, `pitch` apart; `products` is M × K.
pub fn products<T: Element>(len: usize, pitch: usize, dw: &[T], sources: &[&[T]], products: &mut [T]) {
    let filters = products.len() / sources.len();
    for (source, products) in sources.iter().zip(products.chunks_mut(filters)) {
        for ((product, dw), w) in products.iter_mut().zip(dw.chunks(pitch)).zip(source.chunks(pitch)) {
            *product = dw[..len].iter().zip(&w[..len]).map(|(&dw, &w)| dw * w).sum();
        }
    }
}

/// Every term, then what is no filter.
pub fn alpha_gradient_of_products<T: Element>(
    table: &Table,
    sources: &[&[T]],
    products: &FilterProducts,
    dalpha: &mut [T],
) {
    dalpha.fill(T::default());
    for segment in table.segments() {
        let Choice::Alpha { first, row_step, period } = segment.choice else { continue };
        for (m, dalpha) in dalpha.chunks_mut(table.alphas().max(1)).enumerate() {
            for term in products.terms.iter().filter(|term| term.offset == segment.offset) {
                for part in 0..term.parts {
                    let at = term.at + (part * sources.len() + m) * term.filters;
                    for (row, &sum) in products.sums.data::<T>()[at..][..term.filters].iter().enumerate() {
                        dalpha[first + row * row_step] += sum;
                    }
                }
            }
            if segment.offset >= table.filters_len() {
                let dw = &products.rest.data::<T>()[segment.offset - table.filters_len()..];
                for column in 0..segment.row_len {
                    dalpha[first + column % period] += dw[column] * sources[m][segment.offset + column];
                }
            }
        }
    }
}
