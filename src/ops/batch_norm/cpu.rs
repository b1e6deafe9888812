//! Batch normalisation on the CPU. Every pass is bound by memory, so each reads its operands once: statistics are taken
//! relative to the first pixel, which keeps the one-pass variance from cancelling, in `f32` within a block of pixels and
//! in `f64` across blocks, in the order of the blocks.

use multiversion::multiversion;
use rayon::prelude::*;

/// Elements per block.
const BLOCK: usize = 1 << 14;

/// Elements of a block that holds whole pixels.
fn block(channels: usize) -> usize {
    (BLOCK / channels).max(1) * channels
}

/// Sums the pairs that `sums` yields per block, in their order.
fn total(channels: usize, sums: Vec<Vec<f32>>) -> Vec<f64> {
    let mut total = vec![0.0; 2 * channels];
    for sum in sums {
        for (total, sum) in total.iter_mut().zip(sum) {
            *total += f64::from(sum);
        }
    }
    total
}

pub fn statistics(x: &[f32], mean: &mut [f32], variance: &mut [f32]) {
    let channels = mean.len();
    let count = (x.len() / channels) as f64;
    let shift = &x[..channels];
    let sums = x.par_chunks(block(channels)).map(|x| deviation_sums(x, shift)).collect();
    let sums = total(channels, sums);
    for c in 0..channels {
        let offset = sums[c] / count;
        mean[c] = (f64::from(shift[c]) + offset) as f32;
        variance[c] = (sums[channels + c] / count - offset * offset).max(0.0) as f32;
        // `max` swallows NaN; the mean does not.
        if offset.is_nan() {
            variance[c] = f32::NAN;
        }
    }
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

/// `y = scale·x + offset`, with both folded per channel.
pub fn normalize(x: &[f32], mean: &[f32], rstd: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
    let scale: Vec<f32> = gamma.iter().zip(rstd).map(|(g, r)| g * r).collect();
    let block = block(mean.len());
    y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| normalize_block(x, mean, &scale, beta, y));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn normalize_block(x: &[f32], mean: &[f32], scale: &[f32], beta: &[f32], y: &mut [f32]) {
    let channels = mean.len();
    let (scale, beta) = (&scale[..channels], &beta[..channels]);
    for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        for c in 0..channels {
            y[c] = (x[c] - mean[c]) * scale[c] + beta[c];
        }
    }
}

pub fn parameter_gradients(x: &[f32], dy: &[f32], mean: &[f32], rstd: &[f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
    let channels = mean.len();
    let block = block(channels);
    let sums = x.par_chunks(block).zip(dy.par_chunks(block)).map(|(x, dy)| gradient_sums(x, dy, mean)).collect();
    let sums = total(channels, sums);
    for c in 0..channels {
        dbeta[c] = sums[c] as f32;
        dgamma[c] = (sums[channels + c] * f64::from(rstd[c])) as f32;
    }
}

/// `Σ dy` and `Σ dy·(x − μ)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn gradient_sums(x: &[f32], dy: &[f32], mean: &[f32]) -> Vec<f32> {
    let channels = mean.len();
    let mut sums = vec![0.0; 2 * channels];
    let (first, second) = sums.split_at_mut(channels);
    for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
        for c in 0..channels {
            first[c] += dy[c];
            second[c] += dy[c] * (x[c] - mean[c]);
        }
    }
    sums
}

/// `dy` becomes `dx`.
#[allow(clippy::too_many_arguments)]
pub fn input_gradient_assign(
    dy: &mut [f32],
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    gamma: &[f32],
    dgamma: &[f32],
    dbeta: &[f32],
    training: bool,
) {
    let channels = mean.len();
    let count = (x.len() / channels) as f32;
    // dx = scale·(dy − offset − (x − μ)·slope)
    let scale: Vec<f32> = gamma.iter().zip(rstd).map(|(g, r)| g * r).collect();
    let (offset, slope): (Vec<f32>, Vec<f32>) = if training {
        (0..channels).map(|c| (dbeta[c] / count, rstd[c] * dgamma[c] / count)).unzip()
    } else {
        (vec![0.0; channels], vec![0.0; channels])
    };
    let block = block(channels);
    dy.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(dy, x)| input_gradient_block(dy, x, mean, &scale, &offset, &slope));
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn input_gradient_block(dy: &mut [f32], x: &[f32], mean: &[f32], scale: &[f32], offset: &[f32], slope: &[f32]) {
    let channels = mean.len();
    let (scale, offset, slope) = (&scale[..channels], &offset[..channels], &slope[..channels]);
    for (dy, x) in dy.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        for c in 0..channels {
            dy[c] = scale[c] * (dy[c] - offset[c] - (x[c] - mean[c]) * slope[c]);
        }
    }
}
