//! Batch normalisation on a GPU: `kernels/batch_norm.cu`.

use super::Statistics;
use crate::gpu::{Address, Buffer, Gpu, Handle};
use crate::ops::tile::{THREADS, Tile};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

parameters! {
    struct PartialStatistics: 40 bytes { x: Address, partial: Address, tile: Tile }
}

parameters! {
    struct FinishStatistics: 48 bytes {
        x: Address,
        partial: Address,
        mean: Address,
        variance: Address,
        pixels: u32,
        channels: u32,
        splits: u32,
        span: u32,
    }
}

parameters! {
    struct GradientSums: 56 bytes { x: Address, dy: Address, mean: Address, partial: Address, tile: Tile }
}

parameters! {
    struct FinishGradients: 40 bytes {
        partial: Address,
        rstd: Address,
        dgamma: Address,
        dbeta: Address,
        channels: u32,
        splits: u32,
    }
}

parameters! {
    struct Normalize: 72 bytes {
        x: Address,
        mean: Address,
        rstd: Address,
        gamma: Address,
        beta: Address,
        y: Address,
        tile: Tile,
    }
}

parameters! {
    struct InputGradient: 88 bytes {
        dy: Address,
        x: Address,
        mean: Address,
        rstd: Address,
        gamma: Address,
        dgamma: Address,
        dbeta: Address,
        training: u32,
        padding: u32,
        tile: Tile,
    }
}

parameters! {
    struct Deviation: 24 bytes { variance: Address, rstd: Address, channels: u32, epsilon: f32 }
}

parameters! {
    struct Running: 72 bytes {
        running_mean: Address,
        running_variance: Address,
        mean: Address,
        variance: Address,
        gate: Address,
        kept: f64,
        mean_step: f64,
        variance_step: f64,
        channels: u32,
        padding: u32,
    }
}

/// Channels that one block of the second launch finishes.
const FINISHED: usize = 8;

/// Sums take so many blocks before a thread has more than one pixel, and at most so many pixels per thread: the error of
/// the variance grows with them.
const BLOCKS_OF_SUMS: usize = 512;
const PIXELS_OF_SUMS: usize = 64;
/// What goes element by element has a thread load its channels' numbers once for a few pixels.
const BLOCKS: usize = 1024;
const PIXELS: usize = 8;

fn launch<P: crate::gpu::Parameters>(gpu: &Gpu, name: &'static str, dtype: DType, grid: [u32; 3], parameters: &P) {
    // SAFETY: the callers below own pixels × C numbers of `dtype` in every activation and C f32 in everything per
    // channel, which the contract compares with x's shape and the functions below with the types; a workspace lives
    // until its last launch was made, and what takes its memory next runs behind that.
    unsafe { gpu.launch("batch_norm", name, dtype, grid, THREADS, parameters) }
}

/// The address of an activation.
fn activation(tensor: &Tensor, dtype: DType) -> Address {
    assert!(tensor.is_contiguous() && tensor.dtype() == dtype, "batch norm of {dtype} and {}", tensor.dtype());
    tensor.address()
}

fn activation_mut(tensor: &TensorMut, dtype: DType) -> Address {
    assert!(tensor.is_contiguous() && tensor.dtype() == dtype, "batch norm of {dtype} to {}", tensor.dtype());
    tensor.address()
}

/// The address of what there is one of per channel.
fn per_channel(tensor: &Tensor) -> Address {
    assert_eq!(tensor.dtype(), DType::F32, "per channel");
    tensor.address()
}

fn per_channel_mut(tensor: &TensorMut) -> Address {
    assert_eq!(tensor.dtype(), DType::F32, "per channel");
    tensor.address()
}

fn matrix(x: &Tensor) -> [usize; 2] {
    [x.shape().pixels(), x.shape().channels()]
}

/// Two sums per channel and split.
fn workspace(gpu: Handle, tile: &Tile, channels: usize) -> Buffer {
    gpu.allocate(tile.splits() as usize * 2 * channels * size_of::<f32>())
}

fn blocks(channels: usize, each: usize) -> [u32; 3] {
    [channels.div_ceil(each) as u32, 1, 1]
}

pub fn statistics(gpu: Handle, x: &Tensor, mean: TensorMut, variance: TensorMut) {
    let (dtype, [pixels, channels]) = (x.dtype(), matrix(x));
    assert!(pixels > 0, "statistics of no pixel");
    let x = activation(x, dtype);
    let (mean, variance) = (per_channel_mut(&mean), per_channel_mut(&variance));
    let tile = Tile::new([pixels, channels], dtype, &[x], &[], BLOCKS_OF_SUMS, PIXELS_OF_SUMS);
    let workspace = workspace(gpu, &tile, channels);
    let partial = workspace.address();
    launch(gpu, "batch_norm_statistics", dtype, tile.grid(dtype), &PartialStatistics { x, partial, tile });
    let finish = FinishStatistics {
        x,
        partial,
        mean,
        variance,
        pixels: pixels as u32,
        channels: channels as u32,
        splits: tile.splits(),
        span: tile.span,
    };
    launch(gpu, "batch_norm_statistics_finish", dtype, blocks(channels, FINISHED), &finish);
}

pub fn parameter_gradients(
    gpu: Handle,
    x: &Tensor,
    dy: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    dgamma: TensorMut,
    dbeta: TensorMut,
) {
    let (dtype, [pixels, channels]) = (x.dtype(), matrix(x));
    let (x, dy) = (activation(x, dtype), activation(dy, dtype));
    let (mean, rstd) = (per_channel(mean), per_channel(rstd));
    let (dgamma, dbeta) = (per_channel_mut(&dgamma), per_channel_mut(&dbeta));
    let tile = Tile::new([pixels, channels], dtype, &[x, dy], &[mean], BLOCKS_OF_SUMS, PIXELS_OF_SUMS);
    let workspace = workspace(gpu, &tile, channels);
    let partial = workspace.address();
    launch(gpu, "batch_norm_gradients", dtype, tile.grid(dtype), &GradientSums { x, dy, mean, partial, tile });
    let finish = FinishGradients { partial, rstd, dgamma, dbeta, channels: channels as u32, splits: tile.splits() };
    launch(gpu, "batch_norm_gradients_finish", dtype, blocks(channels, FINISHED), &finish);
}

pub fn normalize(gpu: &Gpu, x: &Tensor, mean: &Tensor, rstd: &Tensor, gamma: &Tensor, beta: &Tensor, y: TensorMut) {
    let (dtype, matrix) = (x.dtype(), matrix(x));
    let (x, y) = (activation(x, dtype), activation_mut(&y, dtype));
    let [mean, rstd, gamma, beta] = [mean, rstd, gamma, beta].map(per_channel);
    let tile = Tile::new(matrix, dtype, &[x, y], &[mean, rstd, gamma, beta], BLOCKS, PIXELS);
    let parameters = Normalize { x, mean, rstd, gamma, beta, y, tile };
    launch(gpu, "batch_norm_normalize", dtype, tile.grid(dtype), &parameters);
}

#[allow(clippy::too_many_arguments)]
pub fn input_gradient(
    gpu: &Gpu,
    dy: TensorMut,
    x: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    gamma: &Tensor,
    dgamma: &Tensor,
    dbeta: &Tensor,
    training: bool,
) {
    let (dtype, matrix) = (x.dtype(), matrix(x));
    let (x, dy) = (activation(x, dtype), activation_mut(&dy, dtype));
    let all = [mean, rstd, gamma, dgamma, dbeta].map(per_channel);
    let tile = Tile::new(matrix, dtype, &[x, dy], &all, BLOCKS, PIXELS);
    let [mean, rstd, gamma, dgamma, dbeta] = all;
    let training = training.into();
    let parameters = InputGradient { dy, x, mean, rstd, gamma, dgamma, dbeta, training, padding: 0, tile };
    launch(gpu, "batch_norm_input_gradient", dtype, tile.grid(dtype), &parameters);
}

pub fn reciprocal_deviation(gpu: &Gpu, variance: &Tensor, epsilon: f64, rstd: TensorMut) {
    let channels = variance.shape().len();
    let parameters = Deviation {
        variance: per_channel(variance),
        rstd: per_channel_mut(&rstd),
        channels: channels as u32,
        epsilon: epsilon as f32,
    };
    launch(gpu, "batch_norm_deviation", DType::F32, blocks(channels, THREADS as usize), &parameters);
}

/// `unbiased` is what makes the variance so.
pub fn update_running(
    gpu: &Gpu,
    [running_mean, running_variance]: [TensorMut; 2],
    batch: &Statistics,
    momentum: f64,
    unbiased: f64,
    gate: Option<Address>,
) {
    let channels = batch.mean.shape().len();
    let parameters = Running {
        running_mean: per_channel_mut(&running_mean),
        running_variance: per_channel_mut(&running_variance),
        mean: per_channel(&batch.mean),
        variance: per_channel(&batch.variance),
        gate: gate.unwrap_or(Address::NULL),
        kept: 1.0 - momentum,
        mean_step: momentum,
        variance_step: momentum * unbiased,
        channels: channels as u32,
        padding: 0,
    };
    launch(gpu, "batch_norm_update_running", DType::F32, blocks(channels, THREADS as usize), &parameters);
}
