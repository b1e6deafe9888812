//! The merge on the CPU, at the speed of memory.
//!
//! Work is cut into runs of rows of about 64 KB. The blend of a run stays in the core's cache while one source after
//! the other streams past it, so each byte crosses the memory bus once, in stretches long enough for the prefetcher. Its
//! sums run in the order of the sources, without fused multiply-adds: the bits are the reference's.
//!
//! Backward takes one dot product per row and source, in 32 fixed lanes, then adds those that share an α in the order of
//! the rows in `f64`. Per-kernel α share nothing and are written in place.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{Choice, Segment, Table};

/// Weights per task.
const RUN: usize = 1 << 14;
const LANES: usize = 32;

pub fn blend(table: &Table, sources: &[&[f32]], alpha: &[f32], blend: &mut [f32]) {
    let mut tasks = Vec::new();
    let mut rest = blend;
    let mut position = 0;
    for segment in table.segments() {
        let (gap, tail) = rest.split_at_mut(segment.offset - position);
        gap.fill(0.0);
        rest = tail;
        position = segment.offset;
        let per_task = (RUN / segment.pitch).max(1);
        for first in (0..segment.rows).step_by(per_task) {
            let rows = per_task.min(segment.rows - first);
            // The padding behind the last row belongs to the gap that follows.
            let len = if first + rows == segment.rows {
                (rows - 1) * segment.pitch + segment.row_len
            } else {
                rows * segment.pitch
            };
            let (run, tail) = rest.split_at_mut(len);
            rest = tail;
            position += len;
            tasks.push((segment, first, run));
        }
    }
    rest.fill(0.0);
    tasks.into_par_iter().for_each(|(segment, first, run)| blend_run(table, sources, alpha, segment, first, run));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn blend_run(table: &Table, sources: &[&[f32]], alpha: &[f32], segment: &Segment, first_row: usize, run: &mut [f32]) {
    let Segment { row_len, pitch, .. } = *segment;
    let start = segment.offset + first_row * pitch;
    let end = start + run.len();
    match segment.choice {
        Choice::Source(source) => run.copy_from_slice(&sources[source][start..end]),
        Choice::Alpha { first, row_step, period } => {
            for (pair, sources) in sources.chunks(2).enumerate() {
                for (i, blend) in run.chunks_mut(pitch).enumerate() {
                    let blend = &mut blend[..row_len];
                    let row = |source: usize| &sources[source][start + i * pitch..][..row_len];
                    let alpha = |source: usize| {
                        let m = 2 * pair + source;
                        &alpha[m * table.alphas() + first + (first_row + i) * row_step..][..period]
                    };
                    match (period, sources.len(), pair) {
                        (1, 2, 0) => scale_two(blend, row(0), row(1), alpha(0)[0], alpha(1)[0]),
                        (1, 2, _) => add_two(blend, row(0), row(1), alpha(0)[0], alpha(1)[0]),
                        (1, _, 0) => scale_one(blend, row(0), alpha(0)[0]),
                        (1, _, _) => add_one(blend, row(0), alpha(0)[0]),
                        _ => {
                            for source in 0..sources.len() {
                                blend_kernels(blend, row(source), alpha(source), 2 * pair + source == 0);
                            }
                        }
                    }
                }
            }
        }
    }
    if pitch > row_len {
        run.chunks_mut(pitch).for_each(|row| row[row_len..].fill(0.0));
    }
}

#[inline(always)]
fn scale_two(blend: &mut [f32], a: &[f32], b: &[f32], alpha: f32, beta: f32) {
    for ((blend, &a), &b) in blend.iter_mut().zip(a).zip(b) {
        *blend = alpha * a + beta * b;
    }
}

#[inline(always)]
fn scale_one(blend: &mut [f32], source: &[f32], alpha: f32) {
    for (blend, &weight) in blend.iter_mut().zip(source) {
        *blend = alpha * weight;
    }
}

#[inline(always)]
fn add_two(blend: &mut [f32], a: &[f32], b: &[f32], alpha: f32, beta: f32) {
    for ((blend, &a), &b) in blend.iter_mut().zip(a).zip(b) {
        *blend = (*blend + alpha * a) + beta * b;
    }
}

#[inline(always)]
fn add_one(blend: &mut [f32], source: &[f32], alpha: f32) {
    for (blend, &weight) in blend.iter_mut().zip(source) {
        *blend += alpha * weight;
    }
}

/// One α per column, repeated with the period of `alpha`.
#[inline(always)]
fn blend_kernels(blend: &mut [f32], source: &[f32], alpha: &[f32], is_first: bool) {
    for (blend, source) in blend.chunks_exact_mut(alpha.len()).zip(source.chunks_exact(alpha.len())) {
        for ((blend, &weight), &alpha) in blend.iter_mut().zip(source).zip(alpha) {
            *blend = if is_first { alpha * weight } else { *blend + alpha * weight };
        }
    }
}

pub fn alpha_gradient(table: &Table, sources: &[&[f32]], dw: &[f32], dalpha: &mut [f32]) {
    dalpha.fill(0.0);
    let (kernels, shared): (Vec<&Segment>, Vec<&Segment>) =
        table.segments().iter().partition(|segment| segment.is_per_kernel());
    for (source, dalpha) in sources.iter().zip(dalpha.chunks_mut(table.alphas().max(1))) {
        for segment in &kernels {
            kernel_gradient(segment, source, dw, dalpha);
        }
    }
    shared_gradient(table, &shared, sources, dw, dalpha);
}

fn kernel_gradient(segment: &Segment, source: &[f32], dw: &[f32], dalpha: &mut [f32]) {
    let Choice::Alpha { first, period, .. } = segment.choice else { unreachable!("a per-kernel segment has α") };
    let rows = dalpha[first..first + segment.rows * period].par_chunks_mut(period);
    rows.with_min_len((RUN / segment.pitch).max(1)).enumerate().for_each(|(row, dalpha)| {
        let range = segment.offset + row * segment.pitch..segment.offset + row * segment.pitch + segment.row_len;
        add_products(&dw[range.clone()], &source[range], dalpha);
    });
}

/// `dalpha[j] += Σ dw·w` over the weights whose column is j modulo the number of α.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn add_products(dw: &[f32], w: &[f32], dalpha: &mut [f32]) {
    let period = dalpha.len();
    for (dw, w) in dw.chunks_exact(period).zip(w.chunks_exact(period)) {
        for ((dalpha, &dw), &w) in dalpha.iter_mut().zip(dw).zip(w) {
            *dalpha += dw * w;
        }
    }
}

/// The gradient of every α that several rows, or several segments, share.
fn shared_gradient(table: &Table, segments: &[&Segment], sources: &[&[f32]], dw: &[f32], dalpha: &mut [f32]) {
    let runs: Vec<(&Segment, usize, usize)> = segments
        .iter()
        .filter(|segment| matches!(segment.choice, Choice::Alpha { .. }))
        .flat_map(|&segment| {
            let per_run = (RUN / segment.pitch).max(1);
            (0..segment.rows).step_by(per_run).map(move |first| (segment, first, (first + per_run).min(segment.rows)))
        })
        .collect();
    let partial: Vec<Vec<f64>> =
        runs.par_iter().map(|&(segment, first, end)| run_products(segment, first, end, sources, dw)).collect();

    // Sources share nothing; within one, rows add up in their order.
    dalpha.par_chunks_mut(table.alphas().max(1)).enumerate().for_each(|(m, dalpha)| {
        let mut total = vec![0.0; dalpha.len()];
        for (&(segment, first_row, end), products) in runs.iter().zip(&partial) {
            let Choice::Alpha { first, row_step, period } = segment.choice else { continue };
            let of_source = &products[m * (end - first_row) * period..][..(end - first_row) * period];
            for (row, products) in (first_row..end).zip(of_source.chunks_exact(period)) {
                for (total, product) in total[first + row * row_step..].iter_mut().zip(products) {
                    *total += product;
                }
            }
        }
        for (dalpha, total) in dalpha.iter_mut().zip(total) {
            *dalpha += total as f32;
        }
    });
}

/// For each source, for each row, for each of the row's α: `Σ dw·w`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn run_products(segment: &Segment, first: usize, end: usize, sources: &[&[f32]], dw: &[f32]) -> Vec<f64> {
    let Choice::Alpha { period, .. } = segment.choice else { return Vec::new() };
    let mut products = Vec::with_capacity((end - first) * sources.len() * period);
    for source in sources {
        for row in first..end {
            let start = segment.offset + row * segment.pitch;
            let (dw, source) = (&dw[start..start + segment.row_len], &source[start..start + segment.row_len]);
            if period == 1 {
                products.push(dot(dw, source));
                continue;
            }
            let base = products.len();
            products.resize(base + period, 0.0);
            for (dw, source) in dw.chunks_exact(period).zip(source.chunks_exact(period)) {
                for ((product, &dw), &w) in products[base..].iter_mut().zip(dw).zip(source) {
                    *product += f64::from(dw) * f64::from(w);
                }
            }
        }
    }
    products
}

/// Rows of `len` weights, `pitch` apart; `products` is M × K.
pub fn products(len: usize, pitch: usize, dw: &[f32], sources: &[&[f32]], products: &mut [f32]) {
    let filters = products.len() / sources.len();
    let rows = (RUN / pitch).max(1);
    for (source, products) in sources.iter().zip(products.chunks_mut(filters)) {
        products.par_chunks_mut(rows).enumerate().for_each(|(run, products)| {
            let first = run * rows * pitch;
            row_products(len, pitch, &dw[first..], &source[first..], products);
        });
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn row_products(len: usize, pitch: usize, dw: &[f32], source: &[f32], products: &mut [f32]) {
    for ((product, dw), w) in products.iter_mut().zip(dw.chunks(pitch)).zip(source.chunks(pitch)) {
        *product = dot(&dw[..len], &w[..len]) as f32;
    }
}

/// `Σ a·b` in [`LANES`] sums that are added at the end, one after the other: a tree would be shorter, but then the compiler
/// scatters the loop above over mixed vectors and it runs at half the speed.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 =
        a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest
}
