//! Batch normalisation on a GPU: `kernels/batch_norm.cu`.

use super::Statistics;
use crate::gpu::{Address, Buffer, Gpu, Handle};
use crate::ops::tile::{Division, THREADS, Tile};
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

/// The error of the variance grows with the pixels of a thread, the time to finish a sum with the blocks.
const OF_SUMS: Division = Division { blocks: 512, pixels: 64 };
/// A thread loads its channels' numbers once for a few pixels.
const OF_ELEMENTS: Division = Division { blocks: 1024, pixels: 8 };

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
    statistics_divided(gpu, OF_SUMS, x, mean, variance);
}

fn statistics_divided(gpu: Handle, division: Division, x: &Tensor, mean: TensorMut, variance: TensorMut) {
    let (dtype, [pixels, channels]) = (x.dtype(), matrix(x));
    assert!(pixels > 0, "statistics of no pixel");
    let x = activation(x, dtype);
    let (mean, variance) = (per_channel_mut(&mean), per_channel_mut(&variance));
    let tile = Tile::new([pixels, channels], dtype, &[x], &[], division);
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
    parameter_gradients_divided(gpu, OF_SUMS, x, dy, [mean, rstd], dgamma, dbeta);
}

fn parameter_gradients_divided(
    gpu: Handle,
    division: Division,
    x: &Tensor,
    dy: &Tensor,
    [mean, rstd]: [&Tensor; 2],
    dgamma: TensorMut,
    dbeta: TensorMut,
) {
    let (dtype, [pixels, channels]) = (x.dtype(), matrix(x));
    let (x, dy) = (activation(x, dtype), activation(dy, dtype));
    let (mean, rstd) = (per_channel(mean), per_channel(rstd));
    let (dgamma, dbeta) = (per_channel_mut(&dgamma), per_channel_mut(&dbeta));
    let tile = Tile::new([pixels, channels], dtype, &[x, dy], &[mean], division);
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
    let tile = Tile::new(matrix, dtype, &[x, y], &[mean, rstd, gamma, beta], OF_ELEMENTS);
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
    let tile = Tile::new(matrix, dtype, &[x, dy], &all, OF_ELEMENTS);
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

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::{input_gradient, normalize, reference};
    use super::*;
    use crate::selftest::numbers::{Numbers, normalized_error};
    use crate::tensor::{Device, Integers};

    /// Few blocks of many pixels each, as only large tensors have in earnest.
    const FEW_BLOCKS: Division = Division { blocks: 2, pixels: 64 };

    fn emulator() -> (Handle, Device) {
        let gpu = Gpu::emulator(3).unwrap();
        (gpu, Device::Gpu(gpu))
    }

    /// Pixels × C on the device, and as they are stored there.
    fn activations(device: Device, dtype: DType, x: &[f64], channels: usize) -> (Tensor, Vec<f64>) {
        let numbers = x.iter().map(|&v| v as f32).collect();
        let tensor = Tensor::from_vec(numbers, [x.len() / channels, channels]).to_device(device).cast(dtype);
        let stored = tensor.to_f64();
        (tensor, stored)
    }

    fn uninit(channels: usize, device: Device) -> Tensor {
        Tensor::uninit([channels], DType::F32, device)
    }

    #[track_caller]
    fn assert_close(actual: &Tensor, expected: &[f64], tolerance: f64) {
        let error = normalized_error(&actual.to_f64(), expected);
        assert!(error <= tolerance, "normalised error {error:.1e}");
    }

    #[test]
    fn threads_with_many_pixels() {
        let (gpu, device) = emulator();
        // No mean near zero, which would ask for digits that its distance from the numbers around it does not have.
        for (dtype, channels, mean) in [
            (DType::F32, 8, 1000.0),
            (DType::F32, 5, -3.0),
            (DType::F32, 1, 0.5),
            (DType::BF16, 16, 0.5),
            (DType::F16, 3, -0.5),
        ] {
            // Two to three tiles of the largest span, and a rest.
            let pixels = FEW_BLOCKS.pixels * (THREADS as usize * 5 / 2) / channels + 37;
            let mut numbers = Numbers(channels as u64);
            let values: Vec<f64> = numbers.reals(pixels * channels).iter().map(|v| mean + v).collect();
            let (x, stored_x) = activations(device, dtype, &values, channels);
            let (dy, stored_dy) = activations(device, dtype, &numbers.reals(pixels * channels), channels);

            let mut outputs = [0; 4].map(|_| uninit(channels, device));
            let [mean, variance, dgamma, dbeta] = &mut outputs;
            statistics_divided(gpu, FEW_BLOCKS, &x, mean.view_mut(), variance.view_mut());
            let mut expected = [0; 4].map(|_| vec![0.0; channels]);
            let [m, v, dg, db] = &mut expected;
            reference::statistics::<f64>(&stored_x, m, v);
            assert_close(mean, m, 1e-6);
            assert_close(variance, v, 1e-5);

            let stored_mean = mean.to_f64();
            parameter_gradients_divided(
                gpu,
                FEW_BLOCKS,
                &x,
                &dy,
                [mean, variance],
                dgamma.view_mut(),
                dbeta.view_mut(),
            );
            reference::parameter_gradients::<f64>(&stored_x, &stored_dy, &stored_mean, &variance.to_f64(), dg, db);
            assert_close(dgamma, dg, 1e-5);
            assert_close(dbeta, db, 1e-5);
        }
    }

    /// What is not finite reaches both sums from wherever it is, among many pixels of a thread.
    #[test]
    fn an_infinity_is_not_clamped_away() {
        let (gpu, device) = emulator();
        let pixels = 3000;
        for place in [0, 1, 1700, pixels - 1] {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut values = Numbers(1).reals(pixels * 4);
                values[place * 4 + 2] = value;
                let (x, _) = activations(device, DType::F32, &values, 4);
                let [mut mean, mut variance] = [0; 2].map(|_| uninit(4, device));
                statistics_divided(gpu, FEW_BLOCKS, &x, mean.view_mut(), variance.view_mut());
                for numbers in [mean.to_f64(), variance.to_f64()] {
                    let finite: Vec<bool> = numbers.iter().map(|v| v.is_finite()).collect();
                    assert_eq!(finite, [true, true, false, true], "{value} at {place}");
                }
            }
        }
    }

    /// The same for what goes element by element, at its own division.
    #[test]
    fn elements_of_threads_with_several_pixels() {
        let (_, device) = emulator();
        // Two pixels per thread.
        let (pixels, channels) = (8_300, 35);
        let mut numbers = Numbers(2);
        let (x, stored_x) = activations(device, DType::F32, &numbers.reals(pixels * channels), channels);
        let (mut dy, stored_dy) = activations(device, DType::F32, &numbers.reals(pixels * channels), channels);
        let tile = Tile::new(matrix(&x), DType::F32, &[], &[], OF_ELEMENTS);
        assert!(tile.span > THREADS / 32, "the shape is too small to test this");
        let channel = [0; 5].map(|_| {
            let numbers: Vec<f32> = numbers.reals(channels).iter().map(|&v| v as f32).collect();
            Tensor::from_vec(numbers, [channels])
        });
        let host = channel.each_ref().map(Tensor::to_f64);
        let [mean, rstd, gamma, beta, dgamma] = channel.map(|tensor| tensor.to_device(device));
        let mut y = Tensor::uninit([pixels, channels], DType::F32, device);
        normalize(&x, &mean, &rstd, &gamma, &beta, y.view_mut());
        let mut expected = vec![0.0; pixels * channels];
        reference::normalize::<f64>(&stored_x, &host[0], &host[1], &host[2], &host[3], &mut expected);
        assert_close(&y, &expected, 1e-6);
        for training in [true, false] {
            dy.view_mut().copy_from(&activations(device, DType::F32, &stored_dy, channels).0);
            input_gradient(dy.view_mut(), &x, &mean, &rstd, &gamma, &dgamma, &beta, training);
            let mut expected = stored_dy.clone();
            let [mean, rstd, gamma, beta, dgamma] = &host;
            reference::input_gradient_assign::<f64>(
                &mut expected,
                &stored_x,
                mean,
                rstd,
                gamma,
                dgamma,
                beta,
                training,
            );
            assert_close(&dy, &expected, 1e-6);
        }
    }

    #[test]
    fn a_gate_of_zero_keeps_the_running_statistics() {
        let (gpu, device) = emulator();
        let on_device = |value: f32| Tensor::from_vec(vec![value; 300], [300]).to_device(device);
        let batch = Statistics { mean: on_device(3.0), variance: on_device(8.0), count: 5 };
        for (gate, mean, variance) in [(Some(0), 1.0, 2.0), (Some(1), 2.0, 6.0), (None, 2.0, 6.0)] {
            let [mut running_mean, mut running_variance] = [on_device(1.0), on_device(2.0)];
            let gate = gate.map(|value: u32| Integers::from_vec(vec![value]).to_device(device));
            let running = [running_mean.view_mut(), running_variance.view_mut()];
            update_running(gpu, running, &batch, 0.5, 1.25, gate.as_ref().map(Integers::address));
            assert_eq!(running_mean.to_f64(), vec![mean; 300]);
            assert_eq!(running_variance.to_f64(), vec![variance; 300]);
        }
    }
}
