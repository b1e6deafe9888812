//! dα, from dW or from products that its layers left: `kernels/merge.cu`, and the sums of the sums of chunks.

use std::collections::BTreeMap;

use bytemuck::{Pod, Zeroable};

use super::{FLOAT, List, THREADS, WARP, alpha_of, is_aligned, small};
use crate::gpu::{Address, Cost, Handle};
use crate::ops::merge::{FilterProducts, Segment, Table, Term};
use crate::parameters;
use crate::tensor::{DType, Device, Tensor, TensorMut};

/// Weights, or α of one kind, that a block takes: 16 KB.
const CHUNK: usize = 4096;
/// A row up to here is not cut: with all of it in one chunk its α needs no second sum.
const LONGEST_ROW: usize = 2 * CHUNK;
/// With more partial sums than this, an α gets a block to add them.
const FEW: u32 = 32;

/// Vectors whose weights a chunk adds to its rows': γ and β of the batch norm behind its filters.
const VECTORS: usize = 2;
const NO_VECTOR: u64 = u64::MAX;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GradientChunk {
    begin: u64,
    vectors: [u64; VECTORS],
    rows: u32,
    len: u32,
    pitch: u32,
    period: u32,
    first: u32,
    step: u32,
    is_final: u32,
    padding: u32,
}
const _: () = assert!(size_of::<GradientChunk>() == 56);

parameters! {
    struct Gradient: 64 bytes {
        chunks: Address,
        sources: Address,
        dw: Address,
        dalpha: Address,
        partial: Address,
        alphas: u64,
        partials: u64,
        source_count: u32,
        packed: u32,
    }
}

parameters! {
    struct LayerProducts: 48 bytes {
        sources: Address,
        dw: Address,
        products: Address,
        rows: u32,
        len: u32,
        pitch: u32,
        rows_per_block: u32,
        source_count: u32,
        packed: u32,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProductChunk {
    first_sum: u64,
    vectors: [u64; VECTORS],
    parts: u32,
    filters: u32,
    rows: u32,
    first: u32,
    step: u32,
    together: u32,
    is_final: u32,
    padding: u32,
}
const _: () = assert!(size_of::<ProductChunk>() == 56);

parameters! {
    struct GradientOfProducts: 80 bytes {
        chunks: Address,
        sources: Address,
        sums: Address,
        rest: Address,
        dalpha: Address,
        partial: Address,
        alphas: u64,
        partials: u64,
        filters_len: u64,
        source_count: u32,
        padding: u32,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Share {
    alpha: u32,
    begin: u32,
    count: u32,
}
const _: () = assert!(size_of::<Share>() == 12);

parameters! {
    struct GradientSum: 56 bytes {
        shares: Address,
        slots: Address,
        partial: Address,
        dalpha: Address,
        alphas: u64,
        partials: u64,
        share_count: u32,
        padding: u32,
    }
}

/// Chunks of the first launch, and what the second adds up.
#[derive(Debug)]
pub(super) struct GradientTable {
    chunks: List,
    shares: List,
    slots: List,
    partials: usize,
    /// Whether an α has many partial sums.
    has_many: bool,
}

/// The α of a vector with one for each of its weights: the first, and how many.
fn vector_alphas(segment: &Segment) -> Option<(usize, usize)> {
    let (first, _, period) = alpha_of(segment)?;
    (segment.rows == 1 && period > 1 && period == segment.row_len).then_some((first, period))
}

/// The α that a segment has one of for each of its rows, and in chunks that need not be cut.
fn row_alphas(segment: &Segment) -> Option<(usize, usize)> {
    let (first, row_step, period) = alpha_of(segment)?;
    (row_step == 1 && period == 1 && segment.row_len <= LONGEST_ROW).then_some((first, segment.rows))
}

/// The segments of dα's chunks, each with the vectors that share all its α: what is in nobody's company comes alone.
fn companies(table: &Table) -> Vec<(&Segment, Vec<&Segment>)> {
    let mut companies: Vec<(&Segment, Vec<&Segment>)> = Vec::new();
    // By α, who takes further vectors.
    let mut hosts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for segment in table.segments() {
        let guest = vector_alphas(segment);
        if let Some(&host) = guest.and_then(|alphas| hosts.get(&alphas))
            && companies[host].1.len() < VECTORS
        {
            companies[host].1.push(segment);
            continue;
        }
        if let Some(alphas) = row_alphas(segment).or(guest) {
            hosts.insert(alphas, companies.len());
        }
        companies.push((segment, Vec::new()));
    }
    companies
}

/// Chunks of dα's first launch whose outputs are still named by α, whether or not they can be written at once.
fn gradient_chunks(segment: &Segment, vectors: &[&Segment]) -> Vec<GradientChunk> {
    let Some((first, row_step, period)) = alpha_of(segment) else { return Vec::new() };
    let chunk = |row: usize, rows: usize, column: usize, len: usize| GradientChunk {
        begin: (segment.offset + row * segment.pitch + column) as u64,
        vectors: std::array::from_fn(|i| vectors.get(i).map_or(NO_VECTOR, |vector| (vector.offset + row) as u64)),
        rows: small(rows),
        len: small(len),
        pitch: small(segment.pitch),
        period: small(period),
        first: small(first + row * row_step),
        step: small(row_step),
        is_final: 1,
        padding: 0,
    };
    if period == 1 && segment.row_len > LONGEST_ROW {
        let piece = segment.row_len.div_ceil(segment.row_len.div_ceil(CHUNK)).next_multiple_of(4);
        let columns = move || (0..segment.row_len).step_by(piece);
        return (0..segment.rows)
            .flat_map(|row| columns().map(move |column| (row, column)))
            .map(|(row, column)| chunk(row, 1, column, piece.min(segment.row_len - column)))
            .collect();
    }
    assert!(segment.row_len.is_multiple_of(period), "a row of {segment:?} is no whole periods");
    // With many α per row the reduction is short and a thread has α of its own: as many of them as else weights.
    let per_row = if period == 1 { segment.pitch } else { period };
    let rows = (CHUNK / per_row).max(1);
    (0..segment.rows).step_by(rows).map(|row| chunk(row, rows.min(segment.rows - row), 0, segment.row_len)).collect()
}

/// A chunk of either form of dα, as the numbering of its outputs sees it.
trait Outputs: Pod {
    /// The α that its outputs belong to, in their order.
    fn alphas(&self) -> Vec<usize>;

    /// Makes them slots from `first` on.
    fn become_partial(&mut self, first: u32);
}

impl Outputs for GradientChunk {
    fn alphas(&self) -> Vec<usize> {
        let (rows, per_row) = self.outputs();
        let (first, step) = (self.first as usize, self.step as usize);
        (0..rows as usize).flat_map(|row| (0..per_row as usize).map(move |i| first + row * step + i)).collect()
    }

    fn become_partial(&mut self, first: u32) {
        let (_, per_row) = self.outputs();
        self.step = if self.step == 0 && self.period == 1 { 0 } else { per_row };
        (self.first, self.is_final) = (first, 0);
    }
}

impl GradientChunk {
    /// How many outputs it has for each of how many rows.
    fn outputs(&self) -> (u32, u32) {
        if self.period == 1 && self.step == 0 { (1, 1) } else { (self.rows, self.period) }
    }
}

impl Outputs for ProductChunk {
    fn alphas(&self) -> Vec<usize> {
        let rows = if self.together == 1 { 1 } else { self.rows as usize };
        (0..rows).map(|row| self.first as usize + row * self.step as usize).collect()
    }

    fn become_partial(&mut self, first: u32) {
        (self.first, self.step, self.is_final) = (first, 1, 0);
    }
}

/// Chunks of a segment whose products are at `terms`: every contribution to it. The first ones take vectors along, the segment
/// itself among them if it is one; chunks without products take those that are left.
fn product_chunks(table: &Table, segment: &Segment, vectors: &[&Segment], terms: &[Term]) -> Vec<ProductChunk> {
    let Some((first, row_step, period)) = alpha_of(segment) else { return Vec::new() };
    // A vector is one row; here its weights are the rows.
    let is_vector = segment.offset >= table.filters_len();
    let (count, step) = if is_vector { (segment.row_len, usize::from(period > 1)) } else { (segment.rows, row_step) };
    let carried: Vec<&Segment> = is_vector.then_some(segment).into_iter().chain(vectors.iter().copied()).collect();
    let mut carried = carried.chunks(VECTORS);
    let none = Term { offset: segment.offset, filters: count, at: 0, parts: 0 };
    let mut chunks = Vec::new();
    for index in 0..terms.len().max(carried.len()) {
        let term = terms.get(index).unwrap_or(&none);
        assert_eq!(term.filters, count, "products of {segment:?}");
        let vectors = carried.next().unwrap_or_default();
        chunks.extend((0..count).step_by(WARP).map(|row| ProductChunk {
            first_sum: (term.at + row) as u64,
            vectors: std::array::from_fn(|i| vectors.get(i).map_or(NO_VECTOR, |vector| (vector.offset + row) as u64)),
            parts: small(term.parts),
            filters: small(term.filters),
            rows: small(WARP.min(count - row)),
            first: small(first + row * step),
            step: small(step),
            together: (step == 0).into(),
            is_final: 1,
            padding: 0,
        }));
    }
    chunks
}

impl GradientTable {
    fn of_dw(gpu: Handle, table: &Table) -> GradientTable {
        let chunks = companies(table).iter().flat_map(|(segment, vectors)| gradient_chunks(segment, vectors)).collect();
        GradientTable::new(gpu, table.alphas(), chunks)
    }

    pub(super) fn of_products(gpu: Handle, table: &Table, terms: &[Term]) -> GradientTable {
        let of_company = |(segment, vectors): (&Segment, Vec<&Segment>)| {
            let of_segment = terms.iter().filter(|term| term.offset == segment.offset);
            product_chunks(table, segment, &vectors, &of_segment.copied().collect::<Vec<_>>())
        };
        let chunks = companies(table).into_iter().flat_map(of_company).collect();
        GradientTable::new(gpu, table.alphas(), chunks)
    }

    /// Numbers the outputs of `chunks`, which are named by α.
    fn new<C: Outputs>(gpu: Handle, alphas: usize, mut chunks: Vec<C>) -> GradientTable {
        // How many chunks contribute to each α.
        let mut counts = vec![0u32; alphas];
        chunks.iter().flat_map(C::alphas).for_each(|j| counts[j] += 1);

        let mut of_slots = Vec::new();
        let mut is_final = vec![false; alphas];
        for chunk in &mut chunks {
            let of_chunk = chunk.alphas();
            if of_chunk.iter().all(|&j| counts[j] == 1) {
                of_chunk.into_iter().for_each(|j| is_final[j] = true);
                continue;
            }
            chunk.become_partial(small(of_slots.len()));
            of_slots.extend(of_chunk);
        }

        // Slots sorted by α, in their own order within one.
        let mut slots_of = vec![0u32; alphas];
        of_slots.iter().for_each(|&j| slots_of[j] += 1);
        let mut begin = 0;
        let mut shares = Vec::new();
        let mut next = vec![0u32; alphas];
        for (j, &count) in slots_of.iter().enumerate() {
            next[j] = begin;
            if !is_final[j] {
                shares.push(Share { alpha: small(j), begin, count });
            }
            begin += count;
        }
        let mut slots = vec![0u32; of_slots.len()];
        for (slot, &j) in of_slots.iter().enumerate() {
            slots[next[j] as usize] = slot as u32;
            next[j] += 1;
        }
        GradientTable {
            chunks: List::new(gpu, &chunks),
            has_many: shares.iter().any(|share| share.count > FEW),
            shares: List::new(gpu, &shares),
            partials: slots.len(),
            slots: List::new(gpu, &slots),
        }
    }

    /// Adds the partial sums, M × partials, of each α.
    fn launch_sum(&self, gpu: Handle, table: &Table, sources: usize, partial: Address, dalpha: Address) {
        let shares = self.shares.len;
        let parameters = GradientSum {
            shares: self.shares.address(),
            slots: self.slots.address(),
            partial,
            dalpha,
            alphas: table.alphas() as u64,
            partials: self.partials as u64,
            share_count: small(shares),
            padding: 0,
        };
        let (name, blocks) = match self.has_many {
            true => ("merge_gradient_many", shares),
            false => ("merge_gradient_few", shares.div_ceil(THREADS)),
        };
        gpu.account(|| Cost::moving(FLOAT * sources * self.partials, FLOAT * sources * shares));
        let grid = [small(blocks), small(sources), 1];
        // SAFETY: `partial` has all slots and dα the table's size; shares name slots and α of the table.
        unsafe { gpu.launch("merge", name, DType::F32, grid, THREADS as u32, &parameters) }
    }
}

pub fn alpha_gradient(gpu: Handle, table: &Table, sources: &[&Tensor], dw: &Tensor, dalpha: TensorMut) {
    assert!(sources.iter().all(|source| source.dtype() == DType::F32), "sources of a merge are f32");
    assert!(dw.dtype() == DType::F32 && dalpha.dtype() == DType::F32, "dW and dα are f32");
    let of_table = table.on_gpus.gradient.get(gpu, || GradientTable::of_dw(gpu, table));
    let mut partial = Tensor::uninit([sources.len(), of_table.partials], DType::F32, Device::Gpu(gpu));
    let (partial, dalpha) = (partial.view_mut().address(), dalpha.address());
    let parameters = Gradient {
        chunks: of_table.chunks.address(),
        sources: table.on_gpus.sources(gpu, sources).address(),
        dw: dw.address(),
        dalpha,
        partial,
        alphas: table.alphas() as u64,
        partials: of_table.partials as u64,
        source_count: small(sources.len()),
        packed: is_aligned(sources.iter().map(|source| source.address()).chain([dw.address()])),
    };
    gpu.account(|| table.gradient_cost(sources.len()));
    let grid = [small(of_table.chunks.len), 1, 1];
    // SAFETY: sources, dW and dα have the table's sizes, its chunks lie within them; `partial` has all slots.
    unsafe { gpu.launch("merge", "merge_gradient", DType::F32, grid, THREADS as u32, &parameters) }
    of_table.launch_sum(gpu, table, sources.len(), partial, dalpha);
}

pub fn products(gpu: Handle, dw: &Tensor, sources: &[Tensor], products: TensorMut) {
    assert!(sources.iter().all(|source| source.dtype() == DType::F32), "sources of a merge are f32");
    assert!(dw.dtype() == DType::F32 && products.dtype() == DType::F32, "dW and products are f32");
    let (rows, len, pitch) = (dw.shape().rows(), dw.shape().row_len(), dw.pitch());
    let addresses: Vec<Address> = sources.iter().map(Tensor::address).collect();
    // A short row is a warp's, which takes two at a time, a long one the block's.
    let rows_per_block = (CHUNK / pitch).clamp(1, 2 * THREADS / WARP);
    let parameters = LayerProducts {
        sources: gpu.constant(&addresses),
        dw: dw.address(),
        products: products.address(),
        rows: small(rows),
        len: small(len),
        pitch: small(pitch),
        rows_per_block: small(rows_per_block),
        source_count: small(sources.len()),
        packed: is_aligned(addresses.into_iter().chain([dw.address()])),
    };
    let (count, weights) = (sources.len(), rows * len);
    let cost = Cost::moving(FLOAT * (count + 1) * weights, FLOAT * count * rows);
    gpu.account(|| Cost { flops: 2 * (count * weights) as u64, ..cost });
    let grid = [small(rows.div_ceil(rows_per_block)), 1, 1];
    // SAFETY: dW and the sources have one shape and pitch, and `products` a number for each source and row of them.
    unsafe { gpu.launch("merge", "merge_products", DType::F32, grid, THREADS as u32, &parameters) }
}

pub fn alpha_gradient_of_products(
    gpu: Handle,
    table: &Table,
    sources: &[&Tensor],
    products: &FilterProducts,
    dalpha: TensorMut,
) {
    let FilterProducts { sums, terms, rest } = products;
    assert!(sources.iter().all(|source| source.dtype() == DType::F32), "sources of a merge are f32");
    assert!([sums.dtype(), rest.dtype(), dalpha.dtype()] == [DType::F32; 3], "gradients are f32");
    let of_terms = table.on_gpus.of_products(gpu, table, terms);
    let mut partial = Tensor::uninit([sources.len(), of_terms.partials], DType::F32, Device::Gpu(gpu));
    let (partial, dalpha) = (partial.view_mut().address(), dalpha.address());
    let parameters = GradientOfProducts {
        chunks: of_terms.chunks.address(),
        sources: table.on_gpus.sources(gpu, sources).address(),
        sums: sums.address(),
        rest: rest.address(),
        dalpha,
        partial,
        alphas: table.alphas() as u64,
        partials: of_terms.partials as u64,
        filters_len: table.filters_len() as u64,
        source_count: small(sources.len()),
        padding: 0,
    };
    // Every product, and what is no filter of the gradient and of each source.
    let (numbers, rest) = (terms.iter().map(|term| term.parts * term.filters).sum::<usize>(), rest.shape().len());
    let read = FLOAT * (sources.len() * (numbers + rest) + rest);
    gpu.account(|| Cost::moving(read, FLOAT * sources.len() * table.alphas()));
    let grid = [small(of_terms.chunks.len), small(sources.len()), 1];
    // SAFETY: sources, `rest` and dα have the table's sizes, every term lies within `sums`; `partial` has all slots.
    unsafe { gpu.launch("merge", "merge_gradient_of_products", DType::F32, grid, THREADS as u32, &parameters) }
    of_terms.launch_sum(gpu, table, sources.len(), partial, dalpha);
}
