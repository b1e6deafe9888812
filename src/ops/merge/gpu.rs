//! The merge on a GPU: `kernels/merge_blend.cu`, `kernels/merge.cu`, and the tables in device memory that they follow.
//!
//! Sums run in an order that the layout alone decides, never the device, so a result has the same bits on all of them; only
//! how a blend, which adds nothing across weights, is cut into chunks depends on the device. Tables are built when a GPU
//! first needs them: a step can be captured as a graph once it has run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytemuck::{Pod, Zeroable};

use super::constraint::{Constraint, Parametrization};
use super::{Choice, FilterProducts, Parts, Segment, Table, Term};
use crate::gpu::{self, Address, Cost, Handle};
use crate::parameters;
use crate::tensor::{DType, Device, Tensor, TensorMut};

const THREADS: usize = 256;
const WARP: usize = 32;
const FLOAT: usize = size_of::<f32>();

/// Weights that a thread of the blend takes at a time.
const UNIT: usize = 8;
/// Weights of a chunk of the blend: as many as leave so many waves of blocks, of which a multiprocessor holds so many.
const BLEND_CHUNKS: std::ops::RangeInclusive<usize> = THREADS * UNIT..=4 * THREADS * UNIT;
const WAVES: usize = 4;
const RESIDENT: usize = 3;

/// Weights, or α of one kind, that a block takes: 16 KB.
const CHUNK: usize = 4096;
/// A row up to here is not cut: with all of it in one chunk its α needs no second sum.
const LONGEST_ROW: usize = 2 * CHUNK;
/// With more partial sums than this, an α gets a block to add them.
const FEW: u32 = 32;

/// Vectors whose weights a chunk adds to its rows': γ and β of the batch norm behind its filters.
const VECTORS: usize = 2;
const NO_VECTOR: u64 = u64::MAX;

const BLENDED: i32 = -1;
const ZERO: i32 = -2;

/// What four neighbouring weights of the blend share that begin at a multiple of four.
const NOTHING: u32 = 0;
const ONE_ALPHA: u32 = 1;
const FOUR_ALPHAS: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BlendChunk {
    begin: u64,
    len: u32,
    column: u32,
    row_len: u32,
    pitch: u32,
    first: u32,
    row_step: u32,
    period: u32,
    source: i32,
    fours: u32,
    padding: u32,
}
const _: () = assert!(size_of::<BlendChunk>() == 48);

parameters! {
    struct Blend: 64 bytes {
        chunks: Address,
        sources: Address,
        alpha: Address,
        filters: Address,
        rest: Address,
        alphas: u64,
        filters_len: u64,
        source_count: u32,
        packed: u32,
    }
}

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

parameters! {
    struct ConstrainForward: 40 bytes {
        learned: Address,
        alpha: Address,
        alphas: u64,
        learned_count: u32,
        source_count: u32,
        anchor: u32,
        constraint: u32,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MeanRow {
    first: u32,
    period: u32,
}
const _: () = assert!(size_of::<MeanRow>() == 8);

parameters! {
    struct MeansForward: 32 bytes { rows: Address, alpha: Address, alphas: u64, learned_count: u32, row_count: u32 }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MeanRange {
    first: u32,
    rows: u32,
    period: u32,
    alpha: u32,
}
const _: () = assert!(size_of::<MeanRange>() == 16);

parameters! {
    struct ConstrainBackward: 64 bytes {
        alpha: Address,
        dalpha: Address,
        dlearned: Address,
        begins: Address,
        means: Address,
        alphas: u64,
        learned_count: u32,
        source_count: u32,
        anchor: u32,
        constraint: u32,
    }
}

/// Something that is built once for each GPU.
#[derive(Debug)]
struct PerGpu<T>(Mutex<Vec<(Handle, Arc<T>)>>);

impl<T> Default for PerGpu<T> {
    fn default() -> PerGpu<T> {
        PerGpu(Mutex::default())
    }
}

impl<T> PerGpu<T> {
    fn get(&self, gpu: Handle, build: impl FnOnce() -> T) -> Arc<T> {
        let mut known = lock(&self.0);
        if let Some((_, it)) = known.iter().find(|(at, _)| *at == gpu) {
            return it.clone();
        }
        let it = Arc::new(build());
        known.push((gpu, it.clone()));
        it
    }
}

/// Nothing that panics while one of these locks is held leaves its content half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A list in device memory that does not change.
#[derive(Debug)]
struct List {
    buffer: gpu::Buffer,
    len: usize,
}

impl List {
    fn new<T: Pod>(gpu: Handle, entries: &[T]) -> List {
        let bytes: &[u8] = bytemuck::cast_slice(entries);
        let buffer = gpu.allocate(bytes.len());
        if !bytes.is_empty() {
            gpu.upload(buffer.address(), bytes);
        }
        List { buffer, len: entries.len() }
    }

    fn address(&self) -> Address {
        self.buffer.address()
    }
}

/// What a [`Table`] keeps on GPUs.
#[derive(Debug, Default)]
pub(super) struct Tables {
    blend: PerGpu<List>,
    gradient: PerGpu<GradientTable>,
    /// By where products lie, which depends on what the network does with its filters. All are kept: a captured graph reads
    /// them for as long as it lives.
    of_products: PerGpu<Mutex<BTreeMap<Vec<Term>, Arc<GradientTable>>>>,
    /// Lists of the addresses of sources, all kept too.
    sources: PerGpu<Mutex<BTreeMap<Vec<Address>, Arc<List>>>>,
}

/// Chunks of the first launch, and what the second adds up.
#[derive(Debug)]
struct GradientTable {
    chunks: List,
    shares: List,
    slots: List,
    partials: usize,
    /// Whether an α has many partial sums.
    has_many: bool,
}

impl Tables {
    fn sources(&self, gpu: Handle, sources: &[&Tensor]) -> Arc<List> {
        let addresses: Vec<Address> = sources.iter().map(|source| source.address()).collect();
        let lists = self.sources.get(gpu, Mutex::default);
        let mut lists = lock(&lists);
        lists.entry(addresses).or_insert_with_key(|addresses| Arc::new(List::new(gpu, addresses))).clone()
    }

    fn of_products(&self, gpu: Handle, table: &Table, terms: &[Term]) -> Arc<GradientTable> {
        let known = self.of_products.get(gpu, Mutex::default);
        let mut known = lock(&known);
        if let Some(of_terms) = known.get(terms) {
            return of_terms.clone();
        }
        let of_terms = Arc::new(GradientTable::of_products(gpu, table, terms));
        known.insert(terms.to_vec(), of_terms.clone());
        of_terms
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2³²")
}

/// Where the α of a segment's row lie, and how far apart those of the next row.
fn alpha_of(segment: &Segment) -> Option<(usize, usize, usize)> {
    match segment.choice {
        Choice::Alpha { first, row_step, period } => Some((first, row_step, period)),
        Choice::Source(_) => None,
    }
}

/// Chunks of the blend on a device with so many multiprocessors.
fn blend_chunks(table: &Table, multiprocessors: usize) -> Vec<BlendChunk> {
    let len = table.arena_len() / (WAVES * RESIDENT * multiprocessors.max(1));
    let len = len.clamp(*BLEND_CHUNKS.start(), *BLEND_CHUNKS.end()) / UNIT * UNIT;
    let mut chunks = Vec::new();
    let mut position = 0;
    for segment in table.segments() {
        zero_chunks(&mut chunks, table, len, position, segment.offset);
        let end = segment.offset + (segment.rows - 1) * segment.pitch + segment.row_len;
        for (begin, end) in cuts(len, segment.offset, end) {
            let (row, column) = ((begin - segment.offset) / segment.pitch, (begin - segment.offset) % segment.pitch);
            let (first, row_step, period) = alpha_of(segment).unwrap_or((0, 0, 1));
            let source = match segment.choice {
                Choice::Alpha { .. } => BLENDED,
                Choice::Source(source) => i32::try_from(source).expect("fewer than 2³¹ sources"),
            };
            chunks.push(BlendChunk {
                begin: begin as u64,
                len: small(end - begin),
                column: small(column),
                row_len: small(segment.row_len),
                pitch: small(segment.pitch),
                first: small(first + row * row_step),
                row_step: small(row_step),
                period: small(period),
                source,
                fours: fours(table, segment),
                padding: 0,
            });
        }
        position = end;
    }
    zero_chunks(&mut chunks, table, len, position, table.arena_len());
    chunks
}

fn fours(table: &Table, segment: &Segment) -> u32 {
    let (first, row_step, period) = alpha_of(segment).unwrap_or((0, 0, 1));
    let in_fours = |sizes: &[usize]| sizes.iter().all(|size| size.is_multiple_of(4));
    match period {
        _ if !in_fours(&[segment.offset, segment.pitch]) => NOTHING,
        1 => ONE_ALPHA,
        _ if in_fours(&[first, row_step, period, table.alphas()]) => FOUR_ALPHAS,
        _ => NOTHING,
    }
}

/// Filters and the rest are stored apart: no chunk has some of both.
fn zero_chunks(chunks: &mut Vec<BlendChunk>, table: &Table, len: usize, begin: usize, end: usize) {
    let filters_end = table.filters_len().clamp(begin, end);
    let both = cuts(len, begin, filters_end).chain(cuts(len, filters_end, end));
    chunks.extend(both.map(|(begin, end)| BlendChunk {
        begin: begin as u64,
        len: small(end - begin),
        column: 0,
        row_len: 1,
        pitch: 1,
        first: 0,
        row_step: 0,
        period: 1,
        source: ZERO,
        fours: ONE_ALPHA,
        padding: 0,
    }));
}

/// Stretches of about `len`, all but the first beginning at a multiple of [`UNIT`].
fn cuts(len: usize, begin: usize, end: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = begin;
    std::iter::from_fn(move || {
        let to = ((from + len) / UNIT * UNIT).min(end);
        let cut = (from < end).then_some((from, to));
        from = to;
        cut
    })
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

/// Chunks of a segment whose products are at `terms`: every contribution to it. The first takes the vectors along, or a
/// chunk of its own if the segment is a vector or nothing came of it.
fn product_chunks(table: &Table, segment: &Segment, vectors: &[&Segment], terms: &[Term]) -> Vec<ProductChunk> {
    let Some((first, row_step, period)) = alpha_of(segment) else { return Vec::new() };
    // A vector is one row; here its weights are the rows.
    let is_vector = segment.offset >= table.filters_len();
    let (count, step) = if is_vector { (segment.row_len, usize::from(period > 1)) } else { (segment.rows, row_step) };
    let alone = [segment];
    let with_first: &[&Segment] = if is_vector { &alone } else { vectors };
    let none = Term { offset: segment.offset, filters: count, at: 0, parts: 0 };
    let terms: &[Term] = if terms.is_empty() && !with_first.is_empty() { &[none] } else { terms };
    let mut chunks = Vec::new();
    for (index, term) in terms.iter().enumerate() {
        assert_eq!(term.filters, count, "products of {segment:?}");
        let vectors = if index == 0 { with_first } else { &[] };
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

    fn of_products(gpu: Handle, table: &Table, terms: &[Term]) -> GradientTable {
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

fn is_aligned(addresses: impl IntoIterator<Item = Address>) -> u32 {
    addresses.into_iter().all(|address| address.0.is_multiple_of(16)).into()
}

pub(super) fn blend(gpu: Handle, table: &Table, sources: &[&Tensor], alpha: &Tensor, blend: TensorMut) {
    assert!(blend.dtype() == DType::F32, "the blend is f32");
    assert_eq!(blend.shape().dims(), [table.arena_len()], "the blend");
    let (filters, rest) = (blend.address(), blend.address().offset(table.filters_len() * DType::F32.size()));
    launch_blend(gpu, table, sources, alpha, DType::F32, [filters, rest]);
}

pub(super) fn blend_in_parts(gpu: Handle, table: &Table, sources: &[&Tensor], alpha: &Tensor, parts: Parts) {
    let Parts { filters, rest } = parts;
    assert!(rest.dtype() == DType::F32, "what is no filter is f32");
    launch_blend(gpu, table, sources, alpha, filters.dtype(), [filters.address(), rest.address()]);
}

/// `to`: where filters of `dtype` go, and where the rest goes.
fn launch_blend(gpu: Handle, table: &Table, sources: &[&Tensor], alpha: &Tensor, dtype: DType, to: [Address; 2]) {
    assert!(sources.iter().all(|source| source.dtype() == DType::F32), "sources of a merge are f32");
    assert!(alpha.dtype() == DType::F32, "α are f32");
    let multiprocessors = gpu.description().multiprocessors;
    let chunks = table.on_gpus.blend.get(gpu, || List::new(gpu, &blend_chunks(table, multiprocessors)));
    let is_in_fours = table.filters_len().is_multiple_of(4);
    let parameters = Blend {
        chunks: chunks.address(),
        sources: table.on_gpus.sources(gpu, sources).address(),
        alpha: alpha.address(),
        filters: to[0],
        rest: to[1],
        alphas: table.alphas() as u64,
        filters_len: table.filters_len() as u64,
        source_count: small(sources.len()),
        packed: is_aligned(sources.iter().map(|source| source.address()).chain(to).chain([alpha.address()]))
            & u32::from(is_in_fours),
    };
    gpu.account(|| table.blend_cost_in(dtype, sources.len()));
    let grid = [small(chunks.len), 1, 1];
    // SAFETY: the callers check the sizes of sources, α and both parts against the table, whose chunks lie within them.
    unsafe { gpu.launch("merge_blend", "merge_blend", dtype, grid, THREADS as u32, &parameters) }
}

pub(super) fn alpha_gradient(gpu: Handle, table: &Table, sources: &[&Tensor], dw: &Tensor, dalpha: TensorMut) {
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

pub(super) fn products(gpu: Handle, dw: &Tensor, sources: &[Tensor], products: TensorMut) {
    assert!(sources.iter().all(|source| source.dtype() == DType::F32), "sources of a merge are f32");
    assert!(dw.dtype() == DType::F32 && products.dtype() == DType::F32, "dW and products are f32");
    let (rows, len, pitch) = (dw.shape().rows(), dw.shape().row_len(), dw.pitch());
    let addresses: Vec<Address> = sources.iter().map(Tensor::address).collect();
    // A short row is a warp's, a long one the block's.
    let rows_per_block = (CHUNK / pitch).clamp(1, THREADS / WARP);
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

pub(super) fn alpha_gradient_of_products(
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

/// What a [`Parametrization`] keeps on GPUs.
#[derive(Debug, Default)]
pub(super) struct Means(PerGpu<MeanTable>);

#[derive(Debug)]
struct MeanTable {
    rows: List,
    begins: List,
    ranges: List,
}

impl MeanTable {
    fn new(gpu: Handle, parametrization: &Parametrization) -> MeanTable {
        let rows: Vec<MeanRow> = parametrization
            .means
            .iter()
            .flat_map(|mean| {
                (0..mean.rows)
                    .map(|row| MeanRow { first: small(mean.first + row * mean.period), period: small(mean.period) })
            })
            .collect();
        let mut alpha = parametrization.learned;
        let mut ranges = Vec::new();
        for mean in &parametrization.means {
            let [first, rows, period] = [mean.first, mean.rows, mean.period].map(small);
            ranges.push(MeanRange { first, rows, period, alpha: small(alpha) });
            alpha += mean.rows;
        }
        let (mut begins, mut of_blocks) = (Vec::new(), Vec::<MeanRange>::new());
        for block in (0..parametrization.learned).step_by(THREADS) {
            begins.push(small(of_blocks.len()));
            of_blocks.extend(ranges.iter().filter(|range| {
                let first = range.first as usize;
                first < block + THREADS && first + range.rows as usize * range.period as usize > block
            }));
        }
        begins.push(small(of_blocks.len()));
        MeanTable { rows: List::new(gpu, &rows), begins: List::new(gpu, &begins), ranges: List::new(gpu, &of_blocks) }
    }
}

/// As the kernels number them: clamping is the optimiser's matter.
fn number_of(constraint: Constraint) -> u32 {
    match constraint {
        Constraint::Affine | Constraint::Clamp => 0,
        Constraint::Simplex => 1,
        Constraint::Free => 2,
    }
}

pub(super) fn constrain(gpu: Handle, of: &Parametrization, learned: &Tensor, alpha: TensorMut) {
    assert!(learned.dtype() == DType::F32 && alpha.dtype() == DType::F32, "merge weights are f32");
    let alphas = of.alphas() as u64;
    let parameters = ConstrainForward {
        learned: learned.address(),
        alpha: alpha.address(),
        alphas,
        learned_count: small(of.learned),
        source_count: small(of.sources),
        anchor: small(of.anchor),
        constraint: number_of(of.constraint),
    };
    gpu.account(|| Cost::moving(FLOAT * of.rows() * of.learned, FLOAT * of.sources * of.learned));
    let grid = [small(of.learned.div_ceil(THREADS)), 1, 1];
    // SAFETY: the shapes of both were checked against `of`.
    unsafe { gpu.launch("merge", "merge_constrain", DType::F32, grid, THREADS as u32, &parameters) }
    if of.means.is_empty() {
        return;
    }
    let means = of.on_gpus.0.get(gpu, || MeanTable::new(gpu, of));
    let parameters = MeansForward {
        rows: means.rows.address(),
        alpha: alpha.address(),
        alphas,
        learned_count: small(of.learned),
        row_count: small(means.rows.len),
    };
    let averaged: usize = of.means.iter().map(|mean| mean.rows * mean.period).sum();
    gpu.account(|| Cost::moving(FLOAT * of.sources * averaged, FLOAT * of.sources * means.rows.len));
    let grid = [small(means.rows.len.div_ceil(THREADS / WARP)), small(of.sources), 1];
    // SAFETY: means are of learned α, and their own lie behind those.
    unsafe { gpu.launch("merge", "merge_means", DType::F32, grid, THREADS as u32, &parameters) }
}

pub(super) fn constrain_backward(
    gpu: Handle,
    of: &Parametrization,
    alpha: &Tensor,
    dalpha: &Tensor,
    dlearned: TensorMut,
) {
    let dtypes = [alpha.dtype(), dalpha.dtype(), dlearned.dtype()];
    assert!(dtypes == [DType::F32; 3], "merge weights are f32");
    let means = of.on_gpus.0.get(gpu, || MeanTable::new(gpu, of));
    let parameters = ConstrainBackward {
        alpha: alpha.address(),
        dalpha: dalpha.address(),
        dlearned: dlearned.address(),
        begins: means.begins.address(),
        means: means.ranges.address(),
        alphas: of.alphas() as u64,
        learned_count: small(of.learned),
        source_count: small(of.sources),
        anchor: small(of.anchor),
        constraint: number_of(of.constraint),
    };
    // Of α only the simplex reads anything.
    let alphas = if of.constraint == Constraint::Simplex { of.learned } else { 0 };
    let read = FLOAT * of.sources * (of.alphas() + alphas);
    gpu.account(|| Cost::moving(read, FLOAT * of.rows() * of.learned));
    let grid = [small(of.learned.div_ceil(THREADS)), 1, 1];
    // SAFETY: the shapes of all three were checked against `of`; there are begins for every block and one more.
    unsafe { gpu.launch("merge", "merge_constrain_backward", DType::F32, grid, THREADS as u32, &parameters) }
}
