//! The merge: every weight of a network as a weighted sum of the same weight in M source networks.
//!
//! ```text
//! blend      W[i]  = Σ_m α[m, a(i)]·W_m[i]
//! backward   dα[m, j] = Σ_{i : a(i) = j} dW[i]·W_m[i]
//! ```
//!
//! Parameters lie in arenas with identical layout, and a [`Table`] says for each stretch of them which α it takes: one
//! call merges a whole network. The sources are frozen; only α has a gradient. Both directions are bound by memory:
//! M + 1 passes over the arena each, the least there can be.
//!
//! How α comes from what is learned is [`constraint`]'s matter.

pub mod constraint;
pub mod cpu;
mod gpu;
pub mod reference;

use std::sync::Arc;

use super::Cost;
use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Tensor, TensorMut};

/// Where the α of a stretch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The weight at (row, column) takes `α[first + row·row_step + column mod period]`.
    ///
    /// | granularity | row_step | period |
    /// |---|---|---|
    /// | one α for the stretch | 0 | 1 |
    /// | one per row, a filter | 1 | 1 |
    /// | one per row and channel, a kernel | C | C |
    /// | one per column, a vector of K channels as one row | 0 | K |
    Alpha { first: usize, row_step: usize, period: usize },
    /// All of it is taken from one source, as it is.
    Source(usize),
}

/// Rows of one length, `pitch` apart, from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: usize,
    pub rows: usize,
    pub row_len: usize,
    pub pitch: usize,
    pub choice: Choice,
}

impl Segment {
    /// One past the last α that this segment takes.
    fn alpha_end(&self) -> usize {
        match self.choice {
            Choice::Alpha { first, row_step, period } => first + (self.rows - 1) * row_step + period,
            Choice::Source(_) => 0,
        }
    }

    /// Whether each weight of a row has one of many α, and each row its own.
    fn is_per_kernel(&self) -> bool {
        matches!(self.choice, Choice::Alpha { period, .. } if period > 1 && self.rows > 1)
    }
}

/// Which α every weight of an arena takes.
#[derive(Clone, Debug)]
pub struct Table {
    segments: Vec<Segment>,
    alphas: usize,
    arena_len: usize,
    on_gpus: Arc<gpu::Tables>,
}

impl Table {
    /// `segments` in the order of their offsets, not overlapping; α beyond `alphas` and weights beyond `arena_len` are
    /// not touched.
    ///
    /// # Panics
    /// If a segment breaks these rules, or two per-kernel segments share an α.
    pub fn new(segments: Vec<Segment>, alphas: usize, arena_len: usize) -> Table {
        let mut end = 0;
        let mut kernels_end = 0;
        for segment in &segments {
            assert!(segment.offset >= end && segment.pitch >= segment.row_len, "{segment:?} overlaps another");
            end = segment.offset + (segment.rows - 1) * segment.pitch + segment.row_len;
            assert!(end <= arena_len && segment.alpha_end() <= alphas, "{segment:?} leaves its arena or its α");
            if let Choice::Alpha { first, row_step, period } = segment.choice
                && period > 1
            {
                assert!(segment.row_len.is_multiple_of(period), "{segment:?}");
                if segment.is_per_kernel() {
                    assert!(row_step == period && first >= kernels_end, "{segment:?} shares an α");
                    kernels_end = segment.alpha_end();
                }
            }
        }
        Table { segments, alphas, arena_len, on_gpus: Arc::default() }
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// How many α each source has.
    pub fn alphas(&self) -> usize {
        self.alphas
    }

    pub fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// What a blend must do at least, padding left out: each source and α read once, the result written once.
    pub fn blend_cost(&self, sources: usize) -> Cost {
        let (blended, taken) = self.weights();
        let (m, alphas, size) = (sources as u64, self.alphas as u64, size_of::<f32>() as u64);
        let read = size * (m * (blended + alphas) + taken);
        Cost { flops: (2 * m - 1) * blended, read, written: size * (blended + taken) }
    }

    /// What [`alpha_gradient`] must do at least: each source and dW read once, where an α takes part in them.
    pub fn gradient_cost(&self, sources: usize) -> Cost {
        let (blended, _) = self.weights();
        let (m, alphas, size) = (sources as u64, self.alphas as u64, size_of::<f32>() as u64);
        Cost { flops: 2 * m * blended, read: size * (m + 1) * blended, written: size * m * alphas }
    }

    /// How many weights have an α, and how many are taken as they are.
    fn weights(&self) -> (u64, u64) {
        self.segments.iter().fold((0, 0), |(blended, taken), segment| {
            let count = (segment.rows * segment.row_len) as u64;
            match segment.choice {
                Choice::Alpha { .. } => (blended + count, taken),
                Choice::Source(_) => (blended, taken + count),
            }
        })
    }

    fn check(&self, sources: &[&Tensor], alpha: &Tensor) {
        assert_eq!(alpha.dims(), [sources.len(), self.alphas], "α of a merge of {} sources", sources.len());
        assert!(sources.iter().all(|source| source.dims() == [self.arena_len]), "sources of a merge differ in layout");
    }
}

/// Overwrites what the table covers of `blend`; the rest of it becomes zero.
pub fn blend(table: &Table, sources: &[&Tensor], alpha: &Tensor, blend: TensorMut) {
    table.check(sources, alpha);
    match alpha.implementation() {
        Implementation::Cpu => {
            let sources: Vec<&[f32]> = sources.iter().map(|source| source.data()).collect();
            cpu::blend(table, &sources, alpha.data(), blend.data());
        }
        Implementation::Reference => {
            let sources: Vec<&[f64]> = sources.iter().map(|source| source.data()).collect();
            reference::blend::<f64>(table, &sources, alpha.data(), blend.data());
        }
        Implementation::Gpu(gpu) => gpu::blend(gpu, table, sources, alpha, blend),
    }
}

/// Overwrites `dalpha`, M × alphas.
pub fn alpha_gradient(table: &Table, sources: &[&Tensor], dw: &Tensor, dalpha: TensorMut) {
    assert_eq!(dalpha.shape().dims(), [sources.len(), table.alphas], "dα of a merge of {} sources", sources.len());
    let arenas = sources.iter().chain([&dw]);
    assert!(arenas.into_iter().all(|arena| arena.dims() == [table.arena_len]), "sources of a merge differ in layout");
    match dw.implementation() {
        Implementation::Cpu => {
            let sources: Vec<&[f32]> = sources.iter().map(|source| source.data()).collect();
            cpu::alpha_gradient(table, &sources, dw.data(), dalpha.data());
        }
        Implementation::Reference => {
            let sources: Vec<&[f64]> = sources.iter().map(|source| source.data()).collect();
            reference::alpha_gradient::<f64>(table, &sources, dw.data(), dalpha.data());
        }
        Implementation::Gpu(gpu) => gpu::alpha_gradient(gpu, table, sources, dw, dalpha),
    }
}

impl Tape {
    /// The arena of the blended network.
    pub fn merge(&mut self, table: &Arc<Table>, sources: &[Tensor], alpha: &Var) -> Var {
        let mut arena = Tensor::uninit([table.arena_len], alpha.value().dtype(), alpha.value().device());
        blend(table, &sources.iter().collect::<Vec<_>>(), alpha.value(), arena.view_mut());
        let id = alpha.id();
        self.record(arena, &[id], || {
            let (table, sources) = (table.clone(), sources.to_vec());
            Box::new(move |dw, gradients| {
                let id = id.expect("recorded because its input wants a gradient");
                let sources: Vec<&Tensor> = sources.iter().collect();
                gradients.contribute(id, |dalpha| alpha_gradient(&table, &sources, &dw, dalpha));
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two filters of three weights, padded to four, with an α each; and a vector of two that is taken from one source.
    #[test]
    fn what_a_merge_costs() {
        let filters = Choice::Alpha { first: 0, row_step: 1, period: 1 };
        let segment = |offset, rows, row_len, pitch, choice| Segment { offset, rows, row_len, pitch, choice };
        let segments = vec![segment(0, 2, 3, 4, filters), segment(8, 1, 2, 2, Choice::Source(1))];
        let table = Table::new(segments, 2, 12);
        // Three sources: six weights and two α of each, two weights of one; 3 products and 2 sums for each of six.
        assert_eq!(table.blend_cost(3), Cost { flops: 30, read: 4 * (3 * (6 + 2) + 2), written: 4 * 8 });
        assert_eq!(table.gradient_cost(3), Cost { flops: 36, read: 4 * 4 * 6, written: 4 * 3 * 2 });
    }
}
