//! Batch normalisation on the CPU. Every pass is bound by memory, so each reads its operands once; what follows the
//! normalisation runs block by block while the block is in the core's cache. Statistics are taken relative to the mean of
//! the first block of pixels, which keeps the one-pass variance from cancelling. Sums are `f32` within a block and `f64`
//! across blocks, in the order of the blocks.

use multiversion::multiversion;
use rayon::prelude::*;

use super::reference::{Moments, ParameterGradients, PerChannel, Residual, finish_gradients};
use super::{Parts, PartsMut};
use crate::ops::pointwise::cpu::{add_block, relu_backward_block, relu_block};
use crate::tensor::Tensor;

/// Elements per block.
const BLOCK: usize = 1 << 14;

/// Channels of a narrow part that are computed side by side, their numbers per channel in registers.
const LANES: usize = 16;
/// Rows with fewer channels are narrow: a loop over them is too short for the compiler's vectors.
const WIDE: usize = 128;

/// Pixels per block.
fn span(channels: usize) -> usize {
    (BLOCK / channels).max(1)
}

/// Elements of a block that holds whole pixels.
fn block(channels: usize) -> usize {
    span(channels) * channels
}

/// A part of x, whose first channel is the whole's channel `first`.
#[derive(Clone, Copy)]
struct Part<'a> {
    x: &'a [f32],
    first: usize,
    channels: usize,
}

impl<'a> Part<'a> {
    /// Its numbers of the pixels from `begin` on, of a block.
    fn block(self, begin: usize, pixels: usize) -> &'a [f32] {
        &self.x[begin * self.channels..][..pixels * self.channels]
    }

    /// Its channels among those of the whole.
    fn of<'b>(&self, per_channel: &'b [f32]) -> &'b [f32] {
        &per_channel[self.first..][..self.channels]
    }
}

fn list(x: Parts) -> Vec<Part> {
    let mut end = 0;
    let part = |part| {
        let channels = Tensor::shape(part).channels();
        end += channels;
        Part { x: part.data(), first: end - channels, channels }
    };
    x.tensors().iter().map(part).collect()
}

fn is_narrow(channels: usize) -> bool {
    channels < WIDE && channels.is_multiple_of(LANES)
}

#[inline(always)]
fn lanes(numbers: &[f32], first: usize) -> [f32; LANES] {
    numbers[first..][..LANES].try_into().expect("as many lanes")
}

#[inline(always)]
fn lanes_mut(numbers: &mut [f32], first: usize) -> &mut [f32; LANES] {
    (&mut numbers[first..][..LANES]).try_into().expect("as many lanes")
}

/// γ·rstd.
pub fn scale(by: PerChannel<f32>) -> Vec<f32> {
    by.gamma.iter().zip(by.rstd).map(|(g, r)| g * r).collect()
}

/// Two sums per channel over a block of pixels, which `add` adds to for each part.
fn sums_of_parts(parts: &[Part], channels: usize, mut add: impl FnMut(Part, &mut [f32], &mut [f32])) -> Vec<f32> {
    let mut sums = vec![0.0; 2 * channels];
    let (first, second) = sums.split_at_mut(channels);
    for &part in parts {
        let own = part.first..part.first + part.channels;
        add(part, &mut first[own.clone()], &mut second[own]);
    }
    sums
}

pub fn statistics(x: Parts, epsilon: f64, mut to: Moments<f32>) {
    let (channels, pixels, parts) = (to.mean.len(), x.shape().pixels(), list(x));
    let (count, span) = (pixels as f64, span(channels));
    let shift = first_mean(&parts, channels, span.min(pixels));
    let of_block = |i: usize| deviation_sums(&parts, i * span, span.min(pixels - i * span), &shift);
    let of_blocks: Vec<Vec<f32>> = (0..pixels.div_ceil(span)).into_par_iter().map(of_block).collect();
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

/// The mean of the first block, of so many pixels: unlike the first pixel, never many deviations from that of all pixels.
fn first_mean(parts: &[Part], channels: usize, pixels: usize) -> Vec<f32> {
    let pixel: Vec<f32> = parts.iter().flat_map(|part| &part.x[..part.channels]).copied().collect();
    let sums = deviation_sums(parts, 0, pixels, &pixel);
    pixel.iter().zip(&sums[..channels]).map(|(x, sum)| x + sum / pixels as f32).collect()
}

/// `Σ (x − shift)` and `Σ (x − shift)²` over the pixels of a block.
fn deviation_sums(parts: &[Part], begin: usize, pixels: usize, shift: &[f32]) -> Vec<f32> {
    sums_of_parts(parts, shift.len(), |part, first, second| {
        add_deviations(part.block(begin, pixels), part.of(shift), first, second);
    })
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn add_deviations(x: &[f32], shift: &[f32], first: &mut [f32], second: &mut [f32]) {
    let channels = shift.len();
    if is_narrow(channels) {
        for c in (0..channels).step_by(LANES) {
            let (shift, mut sum, mut squares) = (lanes(shift, c), lanes(first, c), lanes(second, c));
            for x in x.chunks_exact(channels) {
                let x = lanes(x, c);
                for l in 0..LANES {
                    let deviation = x[l] - shift[l];
                    sum[l] += deviation;
                    squares[l] += deviation * deviation;
                }
            }
            (*lanes_mut(first, c), *lanes_mut(second, c)) = (sum, squares);
        }
        return;
    }
    for x in x.chunks_exact(channels) {
        for (((first, second), &x), &shift) in first.iter_mut().zip(second.iter_mut()).zip(x).zip(shift) {
            let deviation = x - shift;
            *first += deviation;
            *second += deviation * deviation;
        }
    }
}

pub fn normalize(x: Parts, by: PerChannel<f32>, residual: Option<Residual<f32>>, relu: bool, out: &mut [f32]) {
    let of_residual = residual.and_then(|residual| residual.by).map(|by| (by, scale(by)));
    let (channels, scale, parts) = (by.mean.len(), scale(by), list(x));
    let (block, span) = (block(channels), span(channels));
    out.par_chunks_mut(block).enumerate().for_each(|(i, out)| {
        let pixels = out.len() / channels;
        for part in &parts {
            let x = part.block(i * span, pixels);
            let out = &mut out[part.first..];
            normalize_block(x, part.of(by.mean), part.of(&scale), part.of(by.beta), out, channels);
        }
        if let Some(Residual { numbers, .. }) = residual {
            let numbers = &numbers[i * block..][..out.len()];
            match &of_residual {
                None => add_block(out, numbers),
                Some((by, scale)) => {
                    let mut other = vec![0.0; numbers.len()];
                    normalize_block(numbers, by.mean, scale, by.beta, &mut other, channels);
                    add_block(out, &other);
                }
            }
        }
        if relu {
            relu_block(out);
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn normalize_block(x: &[f32], mean: &[f32], scale: &[f32], beta: &[f32], out: &mut [f32], pitch: usize) {
    let channels = mean.len();
    let (scale, beta) = (&scale[..channels], &beta[..channels]);
    if is_narrow(channels) {
        for c in (0..channels).step_by(LANES) {
            let [mean, scale, beta] = [mean, scale, beta].map(|per_channel| lanes(per_channel, c));
            for (out, x) in out.chunks_mut(pitch).zip(x.chunks_exact(channels)) {
                let (out, x) = (lanes_mut(out, c), lanes(x, c));
                for l in 0..LANES {
                    out[l] = (x[l] - mean[l]) * scale[l] + beta[l];
                }
            }
        }
        return;
    }
    for (out, x) in out.chunks_mut(pitch).zip(x.chunks_exact(channels)) {
        let out = &mut out[..channels];
        for c in 0..channels {
            out[c] = (x[c] - mean[c]) * scale[c] + beta[c];
        }
    }
}

/// `dy` is `dz` already.
pub fn gradients(x: Parts, dy: &[f32], by: PerChannel<f32>, to: ParameterGradients<f32>) {
    let (channels, parts) = (by.mean.len(), list(x));
    let sums = sums_of_blocks(dy.par_chunks(block(channels)), |i, dy| gradient_sums(&parts, i, dy, by.mean));
    finish_gradients(&sums, x.shape().pixels(), by.rstd, to);
}

/// `dy` counts where x, normalised, is above zero.
pub fn gradients_cut_by_input(x: Parts, dy: &[f32], by: PerChannel<f32>, to: ParameterGradients<f32>) {
    let (channels, scale, parts) = (by.mean.len(), scale(by), list(x));
    let sums = sums_of_blocks(dy.par_chunks(block(channels)), |i, dy| {
        sums_of_parts(&parts, channels, |part, first, second| {
            let (x, dy) = (part.block(i * span(channels), dy.len() / channels), &dy[part.first..]);
            let [mean, scale, beta] = [by.mean, &scale, by.beta].map(|per_channel| part.of(per_channel));
            add_cut_gradients(x, dy, channels, [mean, scale, beta], first, second);
        })
    });
    finish_gradients(&sums, x.shape().pixels(), by.rstd, to);
}

/// `dy` becomes `dz`: zero where `out` is not above it.
pub fn gradients_cut_by_output(
    x: Parts,
    dy: &mut [f32],
    out: &[f32],
    by: PerChannel<f32>,
    to: ParameterGradients<f32>,
) {
    let (block, parts) = (block(by.mean.len()), list(x));
    let blocks = dy.par_chunks_mut(block).zip(out.par_chunks(block));
    let sums = sums_of_blocks(blocks, |i, (dy, out)| {
        relu_backward_block(dy, out);
        gradient_sums(&parts, i, dy, by.mean)
    });
    finish_gradients(&sums, x.shape().pixels(), by.rstd, to);
}

/// The sums of all blocks, in their order.
fn sums_of_blocks<B: IndexedParallelIterator>(
    blocks: B,
    of_block: impl Fn(usize, B::Item) -> Vec<f32> + Sync + Send,
) -> Vec<f32> {
    let sums: Vec<Vec<f32>> = blocks.enumerate().map(|(i, block)| of_block(i, block)).collect();
    sums.concat()
}

/// `Σ dz` and `Σ dz·(x − μ)` over block `i`.
fn gradient_sums(parts: &[Part], i: usize, dz: &[f32], mean: &[f32]) -> Vec<f32> {
    let channels = mean.len();
    sums_of_parts(parts, channels, |part, first, second| {
        let x = part.block(i * span(channels), dz.len() / channels);
        add_gradients(x, &dz[part.first..], channels, part.of(mean), first, second);
    })
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn add_gradients(x: &[f32], dz: &[f32], pitch: usize, mean: &[f32], first: &mut [f32], second: &mut [f32]) {
    let channels = mean.len();
    let (first, second) = (&mut first[..channels], &mut second[..channels]);
    if is_narrow(channels) {
        for c in (0..channels).step_by(LANES) {
            let (mean, mut sum, mut products) = (lanes(mean, c), lanes(first, c), lanes(second, c));
            for (x, dz) in x.chunks_exact(channels).zip(dz.chunks(pitch)) {
                let (x, dz) = (lanes(x, c), lanes(dz, c));
                for l in 0..LANES {
                    sum[l] += dz[l];
                    products[l] += dz[l] * (x[l] - mean[l]);
                }
            }
            (*lanes_mut(first, c), *lanes_mut(second, c)) = (sum, products);
        }
        return;
    }
    for (x, dz) in x.chunks_exact(channels).zip(dz.chunks(pitch)) {
        let dz = &dz[..channels];
        for c in 0..channels {
            first[c] += dz[c];
            second[c] += dz[c] * (x[c] - mean[c]);
        }
    }
}

/// The same of `dz = dy` where x, normalised, is above zero.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn add_cut_gradients(
    x: &[f32],
    dy: &[f32],
    pitch: usize,
    [mean, scale, beta]: [&[f32]; 3],
    first: &mut [f32],
    second: &mut [f32],
) {
    let channels = mean.len();
    let (scale, beta) = (&scale[..channels], &beta[..channels]);
    let (first, second) = (&mut first[..channels], &mut second[..channels]);
    if is_narrow(channels) {
        for c in (0..channels).step_by(LANES) {
            let [mean, scale, beta] = [mean, scale, beta].map(|per_channel| lanes(per_channel, c));
            let (mut sum, mut products) = (lanes(first, c), lanes(second, c));
            for (x, dy) in x.chunks_exact(channels).zip(dy.chunks(pitch)) {
                let (x, dy) = (lanes(x, c), lanes(dy, c));
                for l in 0..LANES {
                    let distance = x[l] - mean[l];
                    let dz = if distance * scale[l] + beta[l] <= 0.0 { 0.0 } else { dy[l] };
                    sum[l] += dz;
                    products[l] += dz * distance;
                }
            }
            (*lanes_mut(first, c), *lanes_mut(second, c)) = (sum, products);
        }
        return;
    }
    for (x, dy) in x.chunks_exact(channels).zip(dy.chunks(pitch)) {
        let dy = &dy[..channels];
        for c in 0..channels {
            let distance = x[c] - mean[c];
            let dz = if distance * scale[c] + beta[c] <= 0.0 { 0.0 } else { dy[c] };
            first[c] += dz;
            second[c] += dz * distance;
        }
    }
}

/// From `dy`, or from what `dx` holds where it is `None`; cut where x, normalised, is not above zero if there is a `relu`.
pub fn input_gradient(
    dy: Option<&[f32]>,
    dx: PartsMut,
    x: Parts,
    by: PerChannel<f32>,
    relu: bool,
    means: Option<&[f32]>,
) {
    let (total, scale, is_added) = (by.mean.len(), scale(by), dx.is_added);
    let (offset, slope) = means.map(|means| means.split_at(total)).unzip();
    for (part, dx) in list(x).into_iter().zip(dx.tensors) {
        let [mean, scale, beta] = [by.mean, &scale, by.beta].map(|per_channel| part.of(per_channel));
        let means = offset.zip(slope).map(|(offset, slope)| (part.of(offset), part.of(slope)));
        // As many pixels as a block of the whole has.
        let block = span(total) * part.channels;
        let blocks = dx.data::<f32>().par_chunks_mut(block).zip(part.x.par_chunks(block));
        blocks.enumerate().for_each_init(Vec::new, |scratch, (i, (dx, x))| {
            if let (Some(dy), Some((offset, slope)), true) = (dy, means, relu && is_narrow(part.channels)) {
                let dy = &dy[i * span(total) * total + part.first..];
                return narrow_gradient_block(dy, total, x, [mean, scale, beta, offset, slope], is_added, dx);
            }
            scratch.resize(if is_added { dx.len() } else { 0 }, 0.0);
            let dz = if is_added { &mut scratch[..] } else { &mut *dx };
            if let Some(dy) = dy {
                gather_block(&dy[i * span(total) * total + part.first..], total, dz, part.channels);
            }
            if relu {
                cut_block(dz, x, mean, scale, beta);
            }
            match means {
                Some((offset, slope)) => input_gradient_block(dz, x, mean, scale, offset, slope),
                None => scale_block(dz, scale),
            }
            if is_added {
                add_block(dx, scratch);
            }
        });
    }
}

/// All of the below in one pass: of a narrow part, in training, through a ReLU.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn narrow_gradient_block(
    dy: &[f32],
    pitch: usize,
    x: &[f32],
    per_channel: [&[f32]; 5],
    is_added: bool,
    dx: &mut [f32],
) {
    let channels = per_channel[0].len();
    for c in (0..channels).step_by(LANES) {
        let [mean, scale, beta, offset, slope] = per_channel.map(|numbers| lanes(numbers, c));
        let rows = dx.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).zip(dy.chunks(pitch));
        for ((dx, x), dy) in rows {
            let (dx, x, dy) = (lanes_mut(dx, c), lanes(x, c), lanes(dy, c));
            let mut new = [0.0; LANES];
            for l in 0..LANES {
                let distance = x[l] - mean[l];
                let dz = if distance * scale[l] + beta[l] <= 0.0 { 0.0 } else { dy[l] };
                new[l] = scale[l] * (dz - offset[l] - distance * slope[l]);
            }
            for l in 0..LANES {
                dx[l] = if is_added { dx[l] + new[l] } else { new[l] };
            }
        }
    }
}

/// The channels that lie `pitch` apart, without what is between them.
fn gather_block(from: &[f32], pitch: usize, to: &mut [f32], channels: usize) {
    if pitch == channels {
        let count = to.len();
        return to.copy_from_slice(&from[..count]);
    }
    for (to, from) in to.chunks_exact_mut(channels).zip(from.chunks(pitch)) {
        to.copy_from_slice(&from[..channels]);
    }
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
