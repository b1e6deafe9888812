//! The blend: `kernels/merge_blend.cu`, and how it is cut into chunks.

use bytemuck::{Pod, Zeroable};

use super::{List, THREADS, alpha_of, is_aligned, small};
use crate::gpu::{Address, Handle};
use crate::ops::merge::{Choice, Parts, Segment, Table};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

/// Weights that a thread of the blend takes at a time.
const UNIT: usize = 8;
/// Weights of a chunk of the blend: as many as leave so many waves of blocks, of which a multiprocessor holds so many.
const BLEND_CHUNKS: std::ops::RangeInclusive<usize> = THREADS * UNIT..=4 * THREADS * UNIT;
const WAVES: usize = 4;
const RESIDENT: usize = 3;

const BLENDED: i32 = -1;
const ZERO: i32 = -2;

/// The sharing of α among four neighbouring weights of the blend that begin at a multiple of four.
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

pub fn blend(gpu: Handle, table: &Table, sources: &[&Tensor], alpha: &Tensor, blend: TensorMut) {
    assert!(blend.dtype() == DType::F32, "the blend is f32");
    assert_eq!(blend.shape().dims(), [table.arena_len()], "the blend");
    let (filters, rest) = (blend.address(), blend.address().offset(table.filters_len() * DType::F32.size()));
    launch_blend(gpu, table, sources, alpha, DType::F32, [filters, rest]);
}

pub fn blend_in_parts(gpu: Handle, table: &Table, sources: &[&Tensor], alpha: &Tensor, parts: Parts) {
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
