//! Batch normalisation on the CPU. Every pass is bound by memory, so each reads its operands once; what follows the
//! normalisation runs block by block while the block is in the core's cache. Statistics are taken relative to the mean of
//! the first block of pixels, which keeps the one-pass variance from cancelling. Sums are `f32` within a block and `f64`
//! across blocks, in the order of the blocks.

use multiversion::multiversion;
use rayon::prelude::*;

use super::reference::{Moments, ParameterGradients, PerChannel, finish_gradients};
use crate::ops::pointwise::cpu::{add_block, relu_backward_block, relu_block};

/// Elements per block.
const BLOCK: usize = 1 << 14;

/// Elements of a block that holds whole pixels.
fn block(channels: usize) -> usize {
    (BLOCK / channels).max(1) * channels
}

/// γ·rstd.
fn scale(by: PerChannel<f32>) -> Vec<f32> {
    by.gamma.iter().zip(by.rstd).map(|(g, r)| g * r).collect()
}

pub fn statistics(x: &[f32], epsilon: f64, mut to: Moments<f32>) {
    let channels = to.mean.len();
    let count = (x.len() / channels) as f64;
    let shift = first_mean(x, channels);
    let of_blocks: Vec<Vec<f32>> = x.par_chunks(block(channels)).map(|x| deviation_sums(x, &shift)).collect();
    let mut sums = vec![0.0; 2 * channels];
    for of_block in of_blocks {
        for (sum, of_block) in sums.iter_mut().zip(of_block) {
            *sum += f64::from(of_block);
        }
    }
    for c in 0..channels {
        let offset = sums[c] / count;
        let squares = sums[channels + c] - sums[c] * offset;
        // Not `max`, which would turn the NaN that comes of an infinity into 0.
        let squares = if squares < 0.0 { 0.0 } else { squares };
        to.set(c, f64::from(shift[c]) + offset, squares, count, epsilon);
    }
}

/// The mean of the first block: unlike the first pixel, never many deviations from that of all pixels.
fn first_mean(x: &[f32], channels: usize) -> Vec<f32> {
    let first = &x[..block(channels).min(x.len())];
    let count = (first.len() / channels) as f32;
    let sums = deviation_sums(first, &x[..channels]);
    x[..channels].iter().zip(sums).map(|(x, sum)| x + sum / count).collect()
}

/// `Σ (x − shift)` and `Σ (x − shift)²`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn deviation_sums(x: &[f32], shift: &[f32]) -> Vec<f32> {
    let channels = shift.len();
    let mut sums = vec![0.0; 2 * channels];
    let (first, second) = sums.split_at_mut(channels);
    for x in x.chunks_exact(channels) {
        for (((first, second), &x), &shift) in first.iter_mut().zip(second.iter_mut()).zip(x).zip(shift) {
            let deviation = x - shift;
            *first += deviation;
            *second += deviation * deviation;
        }
    }
    sums
}

pub fn normalize(x: &[f32], by: PerChannel<f32>, residual: Option<&[f32]>, relu: bool, out: &mut [f32]) {
    let (scale, block) = (scale(by), block(by.mean.len()));
    let blocks = out.par_chunks_mut(block).zip(x.par_chunks(block));
    blocks.enumerate().for_each(|(i, (out, x))| {
        normalize_block(x, by.mean, &scale, by.beta, out);
        if let Some(residual) = residual {
            add_block(out, &residual[i * block..][..out.len()]);
        }
        if relu {
            relu_block(out);
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn normalize_block(x: &[f32], mean: &[f32], scale: &[f32], beta: &[f32], out: &mut [f32]) {
    let channels = mean.len();
    let (scale, beta) = (&scale[..channels], &beta[..channels]);
    for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        for c in 0..channels {
            out[c] = (x[c] - mean[c]) * scale[c] + beta[c];
        }
    }
}

/// `dy` is `dz` already.
pub fn gradients(x: &[f32], dy: &[f32], by: PerChannel<f32>, to: ParameterGradients<f32>) {
    let block = block(by.mean.len());
    let sums: Vec<Vec<f32>> =
        x.par_chunks(block).zip(dy.par_chunks(block)).map(|(x, dy)| gradient_sums(x, dy, by.mean)).collect();
    finish_gradients(&sums.concat(), x.len() / by.mean.len(), by.rstd, to);
}

/// `dy` counts where x, normalised, is above zero.
pub fn gradients_cut_by_input(x: &[f32], dy: &[f32], by: PerChannel<f32>, to: ParameterGradients<f32>) {
    let (scale, block) = (scale(by), block(by.mean.len()));
    let of_block = |(x, dy): (&[f32], &[f32])| cut_gradient_sums(x, dy, by.mean, &scale, by.beta);
    let sums: Vec<Vec<f32>> = x.par_chunks(block).zip(dy.par_chunks(block)).map(of_block).collect();
    finish_gradients(&sums.concat(), x.len() / by.mean.len(), by.rstd, to);
}

/// `dy` becomes `dz`: zero where `out` is not above it.
pub fn gradients_cut_by_output(
    x: &[f32],
    dy: &mut [f32],
    out: &[f32],
    by: PerChannel<f32>,
    to: ParameterGradients<f32>,
) {
    let block = block(by.mean.len());
    let blocks = x.par_chunks(block).zip(dy.par_chunks_mut(block)).zip(out.par_chunks(block));
    let of_block = |((x, dy), out): ((&[f32], &mut [f32]), &[f32])| {
        relu_backward_block(dy, out);
        gradient_sums(x, dy, by.mean)
    };
    let sums: Vec<Vec<f32>> = blocks.map(of_block).collect();
    finish_gradients(&sums.concat(), x.len() / by.mean.len(), by.rstd, to);
}

/// `Σ dz` and `Σ dz·(x − μ)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn gradient_sums(x: &[f32], dz: &[f32], mean: &[f32]) -> Vec<f32> {
    let channels = mean.len();
    let mut sums = vec![0.0; 2 * channels];
    let (first, second) = sums.split_at_mut(channels);
    for (x, dz) in x.chunks_exact(channels).zip(dz.chunks_exact(channels)) {
        for c in 0..channels {
            first[c] += dz[c];
            second[c] += dz[c] * (x[c] - mean[c]);
        }
    }
    sums
}

/// The same of `dz = dy` where x, normalised, is above zero.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn cut_gradient_sums(x: &[f32], dy: &[f32], mean: &[f32], scale: &[f32], beta: &[f32]) -> Vec<f32> {
    let channels = mean.len();
    let (scale, beta) = (&scale[..channels], &beta[..channels]);
    let mut sums = vec![0.0; 2 * channels];
    let (first, second) = sums.split_at_mut(channels);
    for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
        for c in 0..channels {
            let distance = x[c] - mean[c];
            let dz = if distance * scale[c] + beta[c] <= 0.0 { 0.0 } else { dy[c] };
            first[c] += dz;
            second[c] += dz * distance;
        }
    }
    sums
}

/// From `dy`, or from what `dx` holds where it is `None`; cut where x, normalised, is not above zero if there is a `relu`.
pub fn input_gradient(
    dy: Option<&[f32]>,
    dx: &mut [f32],
    x: &[f32],
    by: PerChannel<f32>,
    relu: bool,
    means: Option<&[f32]>,
) {
    let (channels, scale) = (by.mean.len(), scale(by));
    let block = block(channels);
    dx.par_chunks_mut(block).zip(x.par_chunks(block)).enumerate().for_each(|(i, (dx, x))| {
        if let Some(dy) = dy {
            dx.copy_from_slice(&dy[i * block..][..dx.len()]);
        }
        if relu {
            cut_block(dx, x, by.mean, &scale, by.beta);
        }
        match means.map(|means| means.split_at(channels)) {
            Some((offset, slope)) => input_gradient_block(dx, x, by.mean, &scale, offset, slope),
            None => scale_block(dx, &scale),
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn cut_block(dy: &mut [f32], x: &[f32], mean: &[f32], scale: &[f32], beta: &[f32]) {
    let channels = mean.len();
    let (scale, beta) = (&scale[..channels], &beta[..channels]);
    for (dy, x) in dy.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        for c in 0..channels {
            dy[c] = if (x[c] - mean[c]) * scale[c] + beta[c] <= 0.0 { 0.0 } else { dy[c] };
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn scale_block(dz: &mut [f32], scale: &[f32]) {
    for dz in dz.chunks_exact_mut(scale.len()) {
        for (dz, scale) in dz.iter_mut().zip(scale) {
            *dz *= scale;
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn input_gradient_block(dz: &mut [f32], x: &[f32], mean: &[f32], scale: &[f32], offset: &[f32], slope: &[f32]) {
    let channels = mean.len();
    let (scale, offset, slope) = (&scale[..channels], &offset[..channels], &slope[..channels]);
    for (dz, x) in dz.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        for c in 0..channels {
            dz[c] = scale[c] * (dz[c] - offset[c] - (x[c] - mean[c]) * slope[c]);
        }
    }
}
