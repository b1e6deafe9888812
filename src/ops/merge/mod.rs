//! The merge: every weight of a network as a weighted sum of the same weight in M source networks.
//!
//! ```text
//! blend      W[i]  = Σ_m α[m, a(i)]·W_m[i]
//! backward   dα[m, j] = Σ_{i : a(i) = j} dW[i]·W_m[i]
//! ```
//!
//! Parameters lie in arenas with identical layout, filters in front and all else behind, and a [`Table`] says for each
//! stretch of them which α it takes: one call merges a whole network. The sources are frozen; only α has a gradient. Both
//! directions are bound by memory: M + 1 passes over the arena each, the least there can be.
//!
//! A step needs less than that of the backward. dα is linear in dW, so where a filter has one α, its *products* do:
//!
//! ```text
//! products   P[m, k] = Σ_{c,r,s} dW[k,c,r,s]·W_m[k,c,r,s]
//! backward   dα[m, j] = Σ_{k : a(k) = j} P[m, k] + the terms of the rest
//! ```
//!
//! A convolution's backward can leave them behind in place of dW ([`conv2d::wgrad_products`](super::conv2d::wgrad_products)),
//! in several parts that one launch for the whole network adds up. On the CPU, where wgrad ends in dW in any case, dα comes
//! from dW.
//!
//! How α comes from what is learned is [`constraint`]'s matter.

pub mod constraint;
pub mod cpu;
mod gpu;
mod projection;
pub mod reference;

use std::sync::Arc;

use super::Cost;
use crate::tape::{self, Arena, Tape, Var};
use crate::tensor::{DType, Implementation, Tensor, TensorMut};

pub use projection::{Reservation, Term};

use projection::OfSources;

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
    filters_len: usize,
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
        Table { segments, alphas, filters_len: 0, arena_len, on_gpus: Arc::default() }
    }

    /// The same, with filters in the first `filters_len` numbers of the arena: what convolutions read as activations are
    /// stored.
    ///
    /// # Panics
    /// If a segment lies on both sides.
    pub fn with_filters(self, filters_len: usize) -> Table {
        assert!(filters_len <= self.arena_len, "filters beyond the arena");
        for segment in &self.segments {
            let end = segment.offset + (segment.rows - 1) * segment.pitch + segment.row_len;
            assert!(segment.offset >= filters_len || end <= filters_len, "{segment:?} is filters and rest");
        }
        Table { filters_len, on_gpus: Arc::default(), ..self }
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

    pub fn filters_len(&self) -> usize {
        self.filters_len
    }

    /// Whether dα can come from products: every filter has one α, and the rest are vectors.
    pub fn takes_products(&self) -> bool {
        self.segments.iter().all(|segment| match segment.choice {
            Choice::Source(_) => true,
            Choice::Alpha { period, .. } if segment.offset < self.filters_len => period == 1,
            Choice::Alpha { period, .. } => segment.rows == 1 && (period == 1 || period == segment.row_len),
        })
    }

    /// The least cost of a blend, padding left out: each source and α read once, the result written once.
    pub fn blend_cost(&self, sources: usize) -> Cost {
        self.blend_cost_in(DType::F32, sources)
    }

    /// The same with filters stored as `dtype`.
    pub fn blend_cost_in(&self, dtype: DType, sources: usize) -> Cost {
        let (blended, taken) = self.weights(|_| true);
        let filters = self.weights(|segment| segment.offset < self.filters_len);
        let (filters, all) = (filters.0 + filters.1, blended + taken);
        let (m, alphas, size) = (sources as u64, self.alphas as u64, size_of::<f32>() as u64);
        let read = size * (m * (blended + alphas) + taken);
        Cost { flops: (2 * m - 1) * blended, read, written: size * (all - filters) + dtype.size() as u64 * filters }
    }

    /// The least cost of [`alpha_gradient`]: each source and dW read once, where an α takes part in them.
    pub fn gradient_cost(&self, sources: usize) -> Cost {
        let (blended, _) = self.weights(|_| true);
        let (m, alphas, size) = (sources as u64, self.alphas as u64, size_of::<f32>() as u64);
        Cost { flops: 2 * m * blended, read: size * (m + 1) * blended, written: size * m * alphas }
    }

    /// How many weights of some segments have an α, and how many are taken as they are.
    fn weights(&self, of: impl Fn(&&Segment) -> bool) -> (u64, u64) {
        self.segments.iter().filter(of).fold((0, 0), |(blended, taken), segment| {
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

/// A blend as a step reads it.
pub struct Parts<'a> {
    /// The first `filters_len` numbers, in any dtype: on a GPU those of the sum are rounded to nearest.
    pub filters: TensorMut<'a>,
    /// And those behind, in the dtype of α.
    pub rest: TensorMut<'a>,
}

/// [`blend`], but with filters and the rest apart.
pub fn blend_in_parts(table: &Table, sources: &[&Tensor], alpha: &Tensor, parts: Parts) {
    table.check(sources, alpha);
    assert_eq!(parts.filters.shape().dims(), [table.filters_len], "the filters of a blend");
    assert_eq!(parts.rest.shape().dims(), [table.arena_len - table.filters_len], "the rest of a blend");
    if let Implementation::Gpu(gpu) = alpha.implementation() {
        return gpu::blend_in_parts(gpu, table, sources, alpha, parts);
    }
    // Nothing on the CPU stores filters in another dtype than the rest: this is for comparisons.
    let mut whole = Tensor::uninit([table.arena_len], alpha.dtype(), alpha.device());
    blend(table, sources, alpha, whole.view_mut());
    parts.filters.copy_from(&whole.window(0, [table.filters_len], 1));
    parts.rest.copy_from(&whole.window(table.filters_len, [table.arena_len - table.filters_len], 1));
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

/// Overwrites `products`, M × K, by those of dW with M sources' filters of the same shape, K×R×S×C, and pitch.
pub fn products(dw: &Tensor, sources: &[Tensor], products: TensorMut) {
    assert_eq!(products.shape().dims(), [sources.len(), dw.shape().rows()], "products of {} sources", sources.len());
    let alike = |source: &Tensor| source.shape() == dw.shape() && source.pitch() == dw.pitch();
    assert!(sources.iter().all(alike), "products of filters that differ in layout");
    let (len, pitch) = (dw.shape().row_len(), dw.pitch());
    match dw.implementation() {
        Implementation::Cpu => {
            let sources: Vec<&[f32]> = sources.iter().map(Tensor::data).collect();
            cpu::products(len, pitch, dw.data(), &sources, products.data());
        }
        Implementation::Reference => {
            let sources: Vec<&[f64]> = sources.iter().map(Tensor::data).collect();
            reference::products::<f64>(len, pitch, dw.data(), &sources, products.data());
        }
        Implementation::Gpu(gpu) => gpu::products(gpu, dw, sources, products),
    }
}

/// The products that the layers of a network left behind in place of dW.
pub struct FilterProducts<'a> {
    /// The sums of all layers, where `terms` say.
    pub sums: &'a Tensor,
    pub terms: &'a [Term],
    /// The gradient of the arena from `filters_len` on.
    pub rest: &'a Tensor,
}

/// Overwrites `dalpha`, M × alphas.
///
/// # Panics
/// If the table does not take products.
pub fn alpha_gradient_of_products(table: &Table, sources: &[&Tensor], products: &FilterProducts, dalpha: TensorMut) {
    assert!(table.takes_products(), "a table whose α are not those of whole filters");
    assert_eq!(dalpha.shape().dims(), [sources.len(), table.alphas], "dα of a merge of {} sources", sources.len());
    assert!(sources.iter().all(|source| source.dims() == [table.arena_len]), "sources of a merge differ in layout");
    assert_eq!(products.rest.dims(), [table.arena_len - table.filters_len], "the gradient of what is no filter");
    for term in products.terms {
        let end = term.at + term.parts * sources.len() * term.filters;
        assert!(end <= products.sums.shape().len(), "{term:?} leaves its sums");
        let known = table.segments.binary_search_by_key(&term.offset, |segment| segment.offset);
        let segment = known.map(|index| &table.segments[index]);
        assert!(segment.is_ok_and(|segment| segment.rows == term.filters), "{term:?} belongs to no segment");
    }
    match dalpha.implementation() {
        Implementation::Cpu => {
            let sources: Vec<&[f32]> = sources.iter().map(|source| source.data()).collect();
            reference::alpha_gradient_of_products::<f32>(table, &sources, products, dalpha.data());
        }
        Implementation::Reference => {
            let sources: Vec<&[f64]> = sources.iter().map(|source| source.data()).collect();
            reference::alpha_gradient_of_products::<f64>(table, &sources, products, dalpha.data());
        }
        Implementation::Gpu(gpu) => gpu::alpha_gradient_of_products(gpu, table, sources, products, dalpha),
    }
}

/// Where dα comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backward {
    Dw,
    Products,
}

impl Backward {
    /// Chooses what suits a step: products, but on the CPU or where filters have more than one α.
    fn of(table: &Table, implementation: Implementation) -> Backward {
        match implementation {
            Implementation::Cpu => Backward::Dw,
            _ if table.takes_products() => Backward::Products,
            _ => Backward::Dw,
        }
    }
}

impl Tape {
    /// The arena of the blended network; its gradient is dW.
    pub fn merge(&mut self, table: &Arc<Table>, sources: &[Tensor], alpha: &Var) -> Var {
        self.merge_by(table, sources, alpha, alpha.value().dtype(), Backward::Dw)
    }

    /// The arena of the blended network as a step reads it that stores activations as `dtype`: filters in `dtype`, the rest
    /// as α. Of the filters' gradient only the products with the sources are asked for, where they suffice.
    pub fn merge_for_step(&mut self, table: &Arc<Table>, sources: &[Tensor], alpha: &Var, dtype: DType) -> Var {
        let backward = Backward::of(table, alpha.value().implementation());
        self.merge_by(table, sources, alpha, dtype, backward)
    }

    /// [`Tape::merge_for_step`] by the form of dα that is named.
    pub fn merge_by(
        &mut self,
        table: &Arc<Table>,
        sources: &[Tensor],
        alpha: &Var,
        dtype: DType,
        backward: Backward,
    ) -> Var {
        let (of_rest, device) = (alpha.value().dtype(), alpha.value().device());
        let frozen: Vec<&Tensor> = sources.iter().collect();
        // tf32 is stored as f32.
        let split = if dtype == of_rest || (dtype, of_rest) == (DType::TF32, DType::F32) {
            let mut whole = Tensor::uninit([table.arena_len], of_rest, device);
            blend(table, &frozen, alpha.value(), whole.view_mut());
            Arena::whole(whole)
        } else {
            let mut filters = Tensor::uninit([table.filters_len], dtype, device);
            let mut rest = Tensor::uninit([table.arena_len - table.filters_len], of_rest, device);
            let parts = Parts { filters: filters.view_mut(), rest: rest.view_mut() };
            blend_in_parts(table, &frozen, alpha.value(), parts);
            Arena::at(table.filters_len, filters, rest)
        };
        let projection = (backward == Backward::Products)
            .then(|| -> Box<dyn tape::Projection> { Box::new(OfSources::new(sources.to_vec(), table.filters_len)) });
        let id = alpha.id();
        self.record_arena(split, table.arena_len, &[id], projection, |arena| {
            let (table, sources) = (table.clone(), sources.to_vec());
            Box::new(move |gradient, gradients| {
                let id = id.expect("recorded because its input wants a gradient");
                let sources: Vec<&Tensor> = sources.iter().collect();
                match gradients.take_products(arena) {
                    None => gradients.contribute(id, |dalpha| alpha_gradient(&table, &sources, &gradient, dalpha)),
                    Some((sums, terms)) => {
                        let products = FilterProducts { sums: &sums, terms: &terms, rest: &gradient };
                        gradients.contribute(id, |dalpha| {
                            alpha_gradient_of_products(&table, &sources, &products, dalpha);
                        });
                    }
                }
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
        // Six filter weights of two bytes, two numbers of four.
        let in_half = table.with_filters(8).blend_cost_in(DType::BF16, 3);
        assert_eq!(in_half, Cost { flops: 30, read: 4 * (3 * (6 + 2) + 2), written: 2 * 6 + 4 * 2 });
    }
}
