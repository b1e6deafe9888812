//! wgrad on the CPU: `dw = dyᵀ · patches(x)`, block of output pixels by block.
//!
//! A block's rows of dy are packed in panels of filters, and stay in the second level of the cache; its patches are packed a few columns at a
//! time, which stay in the first. How many blocks add to one sum, and how many sums are added up, depends on the shapes alone.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Geometry;
use super::patches::with_scratch;
use super::tile::{Bases, Columns, Outer, Rows, Run, Size};
use super::walk::{Input, Walk};
use crate::ops::simd::Isa;
use crate::tensor::Buffer;

/// Floats of dy in a block.
const BLOCK: usize = 1 << 17;
/// Fewer pixels than this add to the sums too often, and more of one panel leave the first level of the cache.
const PIXELS: Range<usize> = 128..256;
/// Floats that the partial sums may take together: where filters are large, bands of them are work enough for many threads.
const PARTIAL_SUMS: usize = 1 << 20;
/// Tasks per thread that are worth packing patches for twice.
const TASKS: usize = 2;
/// The fewest filters of a task, where there are more.
const BAND: usize = 4;

/// How the sums are cut into tasks: parts of the pixels, which depend on the shapes alone, and each of them by bands of filters.
pub struct Division {
    /// Pixels that are added at a time.
    block: usize,
    parts: usize,
    pixels_per_part: usize,
    /// Whether dy is read where it lies; each part is one task then.
    is_narrow: bool,
    bands: Vec<Range<usize>>,
}

impl Division {
    pub fn new(isa: Isa, g: &Geometry, threads: usize) -> Division {
        let (pixels, dense) = (g.n * g.p * g.q, g.k * g.filter_len());
        let block = (BLOCK / g.k).clamp(PIXELS.start, PIXELS.end);
        let blocks = pixels.div_ceil(block);
        let parts = (PARTIAL_SUMS / dense).clamp(1, 16).min(blocks);
        let pixels_per_part = blocks.div_ceil(parts) * block;
        // So that no thread is without work.
        let group_filters = g.k / g.conv.groups;
        let is_narrow = is_narrow(isa, g) && parts >= threads;
        let bands_per_group = match threads {
            1 => 1,
            _ if is_narrow => 1,
            _ => (TASKS * threads).div_ceil(parts * g.conv.groups).clamp(1, group_filters.div_ceil(BAND)),
        };
        let band = group_filters.div_ceil(bands_per_group);
        let bands = (0..g.conv.groups).flat_map(|group| {
            let (first, end) = (group * group_filters, (group + 1) * group_filters);
            (first..end).step_by(band).map(move |start| start..(start + band).min(end))
        });
        Division { block, parts, pixels_per_part, is_narrow, bands: bands.collect() }
    }

    /// Pixels times filters of each task.
    pub fn tasks(&self, g: &Geometry) -> Vec<usize> {
        let pixels = g.n * g.p * g.q;
        let of_part = |part: usize| (pixels - (part * self.pixels_per_part).min(pixels)).min(self.pixels_per_part);
        let parts = (0..self.parts).map(of_part).filter(|&pixels| pixels > 0);
        parts.flat_map(|pixels| self.bands.iter().map(move |band| pixels * band.len())).collect()
    }
}

/// Overwrites dw.
pub fn wgrad(isa: Isa, g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let Division { block, parts, pixels_per_part, is_narrow, bands } =
        Division::new(isa, g, rayon::current_num_threads());
    let (pixels, dense) = (g.n * g.p * g.q, g.k * g.filter_len());
    if is_narrow {
        let mut partial = Buffer::<f32>::recycled(parts * dense);
        partial.par_chunks_mut(dense).enumerate().for_each(|(part, sums)| {
            let end = ((part + 1) * pixels_per_part).min(pixels);
            let first = (part * pixels_per_part).min(end);
            if first == end {
                return sums.fill(0.0);
            }
            for start in (first..end).step_by(block) {
                add_narrow_block(isa, g, x, dy, start..(start + block).min(end), sums, start > first);
            }
        });
        return add_up_columns(g, &partial, dw);
    }

    let sum = |part: usize, filters: &Range<usize>, sums: &mut [f32], pitch: usize| {
        let end = ((part + 1) * pixels_per_part).min(pixels);
        let first = (part * pixels_per_part).min(end);
        if first == end {
            return sums.fill(0.0);
        }
        for start in (first..end).step_by(block) {
            let block = start..(start + block).min(end);
            add_block(isa, g, x, dy, block, filters.clone(), (sums, pitch), start > first);
        }
    };
    if parts == 1 {
        let tasks = bands.iter().zip(cut(dw, &bands, g.pitch));
        return tasks.collect::<Vec<_>>().into_par_iter().for_each(|(filters, sums)| sum(0, filters, sums, g.pitch));
    }
    let mut partial = Buffer::<f32>::recycled(parts * dense);
    let tasks: Vec<(usize, &Range<usize>, &mut [f32])> = partial
        .chunks_mut(dense)
        .enumerate()
        .flat_map(|(part, sums)| {
            let bands = bands.iter().zip(cut(sums, &bands, g.filter_len()));
            bands.map(move |(filters, sums)| (part, filters, sums)).collect::<Vec<_>>()
        })
        .collect();
    tasks.into_par_iter().for_each(|(part, filters, sums)| sum(part, filters, sums, g.filter_len()));
    add_up(g, &partial, dw);
}

/// The rows of bands of filters, `pitch` apart.
fn cut<'a>(mut rows: &'a mut [f32], bands: &[Range<usize>], pitch: usize) -> Vec<&'a mut [f32]> {
    let band = |band: &Range<usize>| {
        // The last row may have no padding.
        let len = (band.len() * pitch).min(rows.len());
        rows.split_off_mut(..len).expect("no longer than what is left")
    };
    bands.iter().map(band).collect()
}

/// dw from its partial sums, K×RSC each.
fn add_up(g: &Geometry, partial: &[f32], dw: &mut [f32]) {
    let (filter_len, dense) = (g.filter_len(), g.k * g.filter_len());
    dw.par_chunks_mut(g.pitch).enumerate().for_each(|(k, filter)| {
        let filter = &mut filter[..filter_len];
        filter.copy_from_slice(&partial[k * filter_len..][..filter_len]);
        for part in partial.chunks_exact(dense).skip(1) {
            for (sum, &term) in filter.iter_mut().zip(&part[k * filter_len..]) {
                *sum += term;
            }
        }
    });
}

/// dw from its partial sums, RSC×K each.
fn add_up_columns(g: &Geometry, partial: &[f32], dw: &mut [f32]) {
    let (filter_len, dense) = (g.filter_len(), g.k * g.filter_len());
    dw.par_chunks_mut(g.pitch).enumerate().for_each(|(k, filter)| {
        for (l, sum) in filter[..filter_len].iter_mut().enumerate() {
            let of_parts = partial[l * g.k + k..].iter().step_by(dense);
            *sum = of_parts.copied().reduce(|all, part| all + part).expect("a part");
        }
    });
}

/// The most channels of x with which packing dy takes longer than it saves.
const NARROW: usize = 32;

/// Whether dy is read where it lies too: filters are whole vectors then.
fn is_narrow(isa: Isa, g: &Geometry) -> bool {
    g.c <= NARROW && g.conv.groups == 1 && g.k.is_multiple_of(Size::of(isa).columns / 2)
}

/// Adds a block of pixels to the sums of all filters, RSC×K, or overwrites them: the same sums as [`add_block`]'s, bit for bit.
fn add_narrow_block(isa: Isa, g: &Geometry, x: &[f32], dy: &[f32], pixels: Range<usize>, sums: &mut [f32], adds: bool) {
    let size = Size::of(isa);
    let dy = &dy[pixels.start * g.k..pixels.end * g.k];
    with_patches(g, x, 0, pixels, |x, bases, runs| {
        let mut row = 0;
        for run in runs {
            let rows = run.len.div_ceil(run.len.div_ceil(size.rows));
            for first in (0..run.len).step_by(rows) {
                for column in (0..g.k).step_by(size.columns) {
                    let mut product = Outer {
                        x,
                        bases,
                        offset: run.offset + first,
                        rows: rows.min(run.len - first),
                        b: &dy[column..],
                        pitch: g.k,
                        columns: (g.k - column).min(size.columns),
                        sums: &mut sums[(row + first) * g.k + column..],
                        adds,
                    };
                    product.multiply(isa);
                }
            }
            row += run.len;
        }
    });
}

/// Adds a block of pixels to the sums of some filters of one group, or overwrites them.
#[expect(clippy::too_many_arguments)]
fn add_block(
    isa: Isa,
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    pixels: Range<usize>,
    filters: Range<usize>,
    (sums, pitch): (&mut [f32], usize),
    adds: bool,
) {
    let size = Size::of(isa);
    let (terms, filter_len) = (pixels.len(), g.filter_len());
    let rows = filters.len().div_ceil(filters.len().div_ceil(size.rows));
    let panels = || filters.clone().step_by(rows).map(|first| first..(first + rows).min(filters.end));
    let products = |packed: &[f32], b: Rows, width: usize, columns: Range<usize>, sums: &mut [f32]| {
        for panel in panels() {
            let own = panel.start - filters.start;
            let mut product = Columns {
                a: &packed[own * terms..][..panel.len() * terms],
                rows: panel.len(),
                b,
                width,
                sums: &mut sums[own * pitch + columns.start..],
                pitch,
                columns: columns.len(),
                adds,
            };
            product.multiply(isa);
        }
    };
    with_scratch(terms * filters.len(), |packed| {
        for panel in panels() {
            let to = &mut packed[(panel.start - filters.start) * terms..][..panel.len() * terms];
            pack_filters(g, dy, pixels.clone(), panel, to);
        }
        let group = filters.start / (g.k / g.conv.groups);
        if lies_in_vectors(isa, g) {
            return with_patches(g, x, group, pixels, |x, bases, runs| {
                let mut column = 0;
                for run in runs {
                    for first in (0..run.len).step_by(size.columns) {
                        let width = (run.len - first).min(size.columns);
                        let columns = column + first..column + first + width;
                        products(packed, Rows::At(x, bases, run.offset + first), width, columns, sums);
                    }
                    column += run.len;
                }
            });
        }
        let segments = segments(g, pixels.clone());
        with_scratch(terms * size.columns, |patches| {
            for first in (0..filter_len).step_by(size.columns) {
                let columns = first..(first + size.columns).min(filter_len);
                let width = if columns.len() <= size.columns / 2 { size.columns / 2 } else { size.columns };
                pack_patches(g, x, group, &segments, columns.clone(), width, &mut patches[..terms * width]);
                products(packed, Rows::Packed(patches, terms), width, columns, sums);
            }
        });
    });
}

/// The most channels of x whose patches are read where they lie: rows of more are so far apart that too many share a set of the cache.
const CLOSE: usize = 128;

/// Whether patches overlap, so that each number would be packed several times, and their runs of columns are whole vectors.
fn lies_in_vectors(isa: Isa, g: &Geometry) -> bool {
    if g.r * g.s == 1 || g.c > CLOSE {
        return false;
    }
    let run = if g.conv.dilation[1] == 1 && g.conv.groups == 1 { g.s * g.c } else { g.group_channels() };
    run.is_multiple_of(Size::of(isa).columns / 2)
}

/// Calls `with` on the patches of some pixels where they lie: the numbers, where in them each patch begins, and its runs of columns.
fn with_patches(g: &Geometry, x: &[f32], group: usize, pixels: Range<usize>, with: impl FnOnce(&[f32], Bases, &[Run])) {
    let tap = |axis: usize, tap: usize| (tap * g.conv.dilation[axis]) as isize - g.conv.padding[axis] as isize;
    let taps = (0..g.r).flat_map(|r| (0..g.s).map(move |s| [tap(0, r), tap(1, s)])).collect();
    let walk = Walk { images: g.n, grid: [g.p, g.q], step: g.conv.stride, taps };
    let len = g.group_channels();
    let input = Input { data: x, size: [g.h, g.w], channels: g.c, group: (group * len, len) };
    let lines = pixels.start / g.q..pixels.end.div_ceil(g.q);
    let skipped = pixels.start - lines.start * g.q;
    walk.with_windows(&input, lines, |x, bases, pitches| {
        with(x, Bases::from(&bases[skipped..][..pixels.len()]), &walk.runs(len, pitches));
    });
}

/// A few channels of dy, pixel by pixel.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn pack_filters(g: &Geometry, dy: &[f32], pixels: Range<usize>, filters: Range<usize>, to: &mut [f32]) {
    let from = dy[pixels.start * g.k..pixels.end * g.k].chunks_exact(g.k);
    macro_rules! of_width {
        ($($width:literal)*) => {
            match filters.len() {
                $($width => {
                    for (to, from) in to.as_chunks_mut::<$width>().0.iter_mut().zip(from) {
                        *to = from[filters.start..filters.start + $width].try_into().expect("as many");
                    }
                })*
                width => {
                    for (to, from) in to.chunks_exact_mut(width).zip(from) {
                        to.copy_from_slice(&from[filters.clone()]);
                    }
                }
            }
        };
    }
    of_width!(2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// Columns of patches that lie side by side in a line of the image.
struct Piece {
    /// The filter's row.
    r: usize,
    /// From an output pixel's place in the line to the first of them.
    offset: isize,
    len: usize,
    /// The first one's column in the panel.
    at: usize,
}

/// The pieces of a panel of columns, of one group.
fn pieces(g: &Geometry, group: usize, columns: Range<usize>) -> Vec<Piece> {
    let len = g.group_channels();
    // With unit dilation and all channels, the taps of one filter row lie side by side.
    let run = if g.conv.dilation[1] == 1 && g.conv.groups == 1 { g.s * len } else { len };
    let mut pieces = Vec::new();
    let mut column = columns.start;
    while column < columns.end {
        let end = ((column / run + 1) * run).min(columns.end);
        let (r, s, c) = (column / (g.s * len), column / len % g.s, column % len);
        let tap = (s * g.conv.dilation[1]) as isize - g.conv.padding[1] as isize;
        let offset = tap * g.c as isize + (group * len + c) as isize;
        pieces.push(Piece { r, offset, len: end - column, at: column - columns.start });
        column = end;
    }
    pieces
}

/// Output pixels side by side in a line.
struct Segment {
    image: usize,
    row: usize,
    first: usize,
    count: usize,
}

/// A block's pixels, line by line.
fn segments(g: &Geometry, pixels: Range<usize>) -> Vec<Segment> {
    let lines = pixels.start / g.q..pixels.end.div_ceil(g.q);
    let segment = |line: usize| {
        let (first, end) = (pixels.start.max(line * g.q) - line * g.q, pixels.end.min((line + 1) * g.q) - line * g.q);
        Segment { image: line / g.p, row: line % g.p, first, count: end - first }
    };
    lines.map(segment).collect()
}

/// Columns of patches, pixel by pixel, `width` numbers each, of which the last ones may be zeros.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn pack_patches(
    g: &Geometry,
    x: &[f32],
    group: usize,
    segments: &[Segment],
    columns: Range<usize>,
    width: usize,
    to: &mut [f32],
) {
    if columns.len() < width {
        to.fill(0.0);
    }
    let step = g.conv.stride[1] * g.c;
    for piece in pieces(g, group, columns) {
        let mut rest = &mut *to;
        for segment in segments {
            let (to, behind) = rest.split_at_mut(segment.count * width);
            rest = behind;
            match g.input_row(segment.row, piece.r) {
                None => to.chunks_exact_mut(width).for_each(|to| to[piece.at..piece.at + piece.len].fill(0.0)),
                Some(row) => {
                    let line = &x[(segment.image * g.h + row) * g.w * g.c..][..g.w * g.c];
                    let start = (segment.first * step) as isize + piece.offset;
                    match (piece.len == width, width) {
                        (true, 16) => pack_line::<16>(line, [start, step as isize], to),
                        (true, 32) => pack_line::<32>(line, [start, step as isize], to),
                        _ => pack_piece(line, [start, step as isize], &piece, width, to),
                    }
                }
            }
        }
    }
}

/// Whole panels of the patches of output pixels side by side: the first begins in the line at `start`, the next ones `step` behind it.
#[inline(always)]
fn pack_line<const WIDTH: usize>(line: &[f32], [start, step]: [isize; 2], to: &mut [f32]) {
    for (start, to) in (0..).map(|pixel| start + pixel * step).zip(to.as_chunks_mut::<WIDTH>().0) {
        let whole = usize::try_from(start).ok().and_then(|start| line.get(start..start + WIDTH));
        match whole {
            Some(whole) => to.copy_from_slice(whole),
            None => to.iter_mut().zip(start..).for_each(|(to, place)| *to = at_or_zero(line, place)),
        }
    }
}

/// The same of some columns of a panel.
#[inline(always)]
fn pack_piece(line: &[f32], [start, step]: [isize; 2], piece: &Piece, width: usize, to: &mut [f32]) {
    let own = piece.at..piece.at + piece.len;
    for (start, to) in (0..).map(|pixel| start + pixel * step).zip(to.chunks_exact_mut(width)) {
        let whole = usize::try_from(start).ok().and_then(|start| line.get(start..start + piece.len));
        let to = &mut to[own.clone()];
        match whole {
            Some(whole) => to.iter_mut().zip(whole).for_each(|(to, &from)| *to = from),
            None => to.iter_mut().zip(start..).for_each(|(to, place)| *to = at_or_zero(line, place)),
        }
    }
}

fn at_or_zero(line: &[f32], place: isize) -> f32 {
    usize::try_from(place).ok().and_then(|place| line.get(place)).copied().unwrap_or(0.0)
}
