//! Batch normalisation on a GPU: `kernels/batch_norm.cu`.

use bytemuck::Zeroable;

use super::{Cut, Finish, Moments, ParameterGradients, Parts, PartsMut, PerChannel, Residual, Tiles};
use crate::gpu::{Address, Buffer, Cost, Gpu, Handle};
use crate::ops::pixel_walk::{Division, PixelWalk, THREADS};
use crate::parameters;
use crate::tensor::{DType, Device, Integers, Tensor, TensorMut, part_bytes};

/// Where x lies: part of the parameters of a kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Places {
    /// Channels of the first part, and of each one behind it.
    first: u32,
    each: u32,
    /// Elements from the first part to the second, and from that to the third.
    second: u64,
    pitch: u64,
}
const _: () = assert!(size_of::<Places>() == 24);

impl Places {
    pub fn of(x: Parts) -> Places {
        let elements = |part: Option<&Tensor>| {
            part.map_or(0, |part| part_bytes(part.shape().len(), part.dtype()) / part.dtype().size()) as u64
        };
        let [first, second] = [0, 1].map(|i| x.tensors().get(i));
        let channels = |part: Option<&Tensor>| part.map_or(1, |part| part.shape().channels() as u32);
        Places { first: channels(first), each: channels(second), second: elements(first), pitch: elements(second) }
    }

    fn are_several(&self) -> bool {
        self.pitch > 0
    }

    /// Lengths of runs of channels that lie side by side.
    fn runs(&self) -> [usize; 2] {
        [self.first, if self.are_several() { self.each } else { self.first }].map(|run| run as usize)
    }

    fn kernels(&self) -> &'static Kernels {
        if self.are_several() { &KERNELS_OF_PARTS } else { &KERNELS }
    }
}

parameters! {
    struct PartialStatistics: 64 bytes { x: Address, partial: Address, walk: PixelWalk, places: Places }
}

parameters! {
    struct FinishStatistics: 96 bytes {
        x: Address,
        partial: Address,
        mean: Address,
        rstd: Address,
        batch_mean: Address,
        batch_variance: Address,
        pixels: u32,
        channels: u32,
        splits: u32,
        span: u32,
        epsilon: f32,
        vectorised: u32,
        places: Places,
    }
}

parameters! {
    struct GradientSums: 128 bytes {
        x: Address,
        dy: Address,
        out: Address,
        dz: Address,
        mean: Address,
        rstd: Address,
        gamma: Address,
        beta: Address,
        partial: Address,
        cut: u32,
        padding: u32,
        walk: PixelWalk,
        places: Places,
    }
}

parameters! {
    struct FinishGradients: 56 bytes {
        partial: Address,
        rstd: Address,
        dgamma: Address,
        dbeta: Address,
        means: Address,
        pixels: u32,
        channels: u32,
        splits: u32,
        vectorised: u32,
    }
}

parameters! {
    struct Normalize: 152 bytes {
        x: Address,
        by: [Address; 4],
        residual: Address,
        of_residual: [Address; 4],
        out: Address,
        signs: Address,
        relu: u32,
        padding: u32,
        walk: PixelWalk,
        places: Places,
    }
}

parameters! {
    struct InputGradient: 120 bytes {
        dy: Address,
        dx: Address,
        x: Address,
        mean: Address,
        rstd: Address,
        gamma: Address,
        beta: Address,
        means: Address,
        cut: u32,
        adds: u32,
        walk: PixelWalk,
        places: Places,
    }
}

parameters! {
    struct Deviation: 24 bytes { variance: Address, rstd: Address, count: u32, epsilon: f32 }
}

parameters! {
    struct Running: 48 bytes {
        running: Address,
        batch: Address,
        gate: Address,
        decay: f64,
        step: f64,
        count: u32,
        padding: u32,
    }
}

/// The kernels that read x.
struct Kernels {
    module: &'static str,
    statistics: &'static str,
    /// For many tiles, and for few.
    statistics_finish: [&'static str; 2],
    gradients: &'static str,
    normalize: &'static str,
    normalize_two: &'static str,
    input_gradient: &'static str,
}

const KERNELS: Kernels = Kernels {
    module: "batch_norm",
    statistics: "batch_norm_statistics",
    statistics_finish: ["batch_norm_statistics_finish", "batch_norm_statistics_finish_few"],
    gradients: "batch_norm_gradients",
    normalize: "batch_norm_normalize",
    normalize_two: "batch_norm_normalize_two",
    input_gradient: "batch_norm_input_gradient",
};

const KERNELS_OF_PARTS: Kernels = Kernels {
    module: "batch_norm_of_parts",
    statistics: "batch_norm_of_parts_statistics",
    statistics_finish: ["batch_norm_of_parts_statistics_finish", "batch_norm_of_parts_statistics_finish_few"],
    gradients: "batch_norm_of_parts_gradients",
    normalize: "batch_norm_of_parts_normalize",
    normalize_two: "batch_norm_of_parts_normalize_two",
    input_gradient: "batch_norm_of_parts_input_gradient",
};

/// Where a gradient passes, as the kernels have it.
const WHOLE: u32 = 0;
const BY_INPUT: u32 = 1;
const BY_OUTPUT: u32 = 2;

/// Channels that a block of the second launch of sums finishes where C is a multiple of them.
const FINISHED: usize = 4;
/// Its threads where there are many tiles, and where there are few: no more than this.
const MANY_FINISHERS: u32 = 512;
const FEW_FINISHERS: u32 = 32;
const FEW: u32 = 2 * FEW_FINISHERS;

/// The error of the variance grows with the pixels of a thread, the time to finish a sum with the blocks.
const OF_SUMS: Division = Division { blocks: 512, pixels: 64 };
/// A thread loads its channels' numbers once for a few pixels.
const OF_ELEMENTS: Division = Division { blocks: 1024, pixels: 8 };

fn launch<P: crate::gpu::Parameters>(gpu: &Gpu, name: &'static str, dtype: DType, grid: [u32; 3], parameters: &P) {
    launch_of(gpu, [KERNELS.module, name], dtype, grid, THREADS, parameters);
}

/// A kernel that reads x.
fn launch_on_x<P: crate::gpu::Parameters>(
    gpu: &Gpu,
    places: Places,
    name: fn(&Kernels) -> &'static str,
    dtype: DType,
    grid: [u32; 3],
    parameters: &P,
) {
    let kernels = places.kernels();
    launch_of(gpu, [kernels.module, name(kernels)], dtype, grid, THREADS, parameters);
}

fn launch_of<P: crate::gpu::Parameters>(
    gpu: &Gpu,
    [module, name]: [&'static str; 2],
    dtype: DType,
    grid: [u32; 3],
    threads: u32,
    parameters: &P,
) {
    // SAFETY: the callers below own pixels × C numbers of `dtype` in every activation, C f32 in everything per channel and
    // splits × 2 × C in sums, which the contract compares with x's shape and the functions below with the types; a
    // workspace lives until its last launch was made, and what takes its memory next runs behind that.
    unsafe { gpu.launch(module, name, dtype, grid, threads, parameters) }
}

/// The second launch of sums: its grid, its threads, which of the two kernels it is, and whether it takes four channels at
/// a time.
fn finishing(channels: u32, splits: u32, [many, few]: [&'static str; 2]) -> ([u32; 3], u32, &'static str, u32) {
    let is_vectorised = (channels as usize).is_multiple_of(FINISHED);
    let grid = blocks(channels as usize, if is_vectorised { FINISHED } else { 1 });
    let (threads, name) = if splits > FEW { (MANY_FINISHERS, many) } else { (FEW_FINISHERS, few) };
    (grid, threads, name, is_vectorised.into())
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

/// The address of the first of several that lie as [`Tensor::parts`] makes them.
fn first_of(parts: &[TensorMut], dtype: DType) -> Address {
    let addresses: Vec<Address> = parts.iter().map(|part| activation_mut(part, dtype)).collect();
    for (pair, part) in addresses.windows(2).zip(parts) {
        assert_eq!(pair[0].offset(part_bytes(part.shape().len(), dtype)), pair[1], "a part behind another one");
    }
    addresses[0]
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

fn optional(tensor: Option<&TensorMut>) -> Address {
    tensor.map_or(Address::NULL, per_channel_mut)
}

/// The address of the first part.
fn parts(x: Parts, dtype: DType) -> Address {
    x.tensors().iter().map(|part| activation(part, dtype)).next().expect("a part")
}

fn matrix(x: Parts) -> [usize; 2] {
    [x.shape().pixels(), x.shape().channels()]
}

/// Two sums per channel and split.
fn workspace(gpu: Handle, walk: &PixelWalk, channels: usize) -> Buffer {
    gpu.allocate(walk.splits() as usize * 2 * channels * size_of::<f32>())
}

/// Bytes of f32.
fn floats(count: usize) -> usize {
    count * size_of::<f32>()
}

fn blocks(channels: usize, each: usize) -> [u32; 3] {
    [channels.div_ceil(each) as u32, 1, 1]
}

pub fn statistics(gpu: Handle, x: Parts, epsilon: f64, to: Moments) {
    statistics_divided(gpu, OF_SUMS, x, epsilon, to);
}

fn statistics_divided(gpu: Handle, division: Division, x: Parts, epsilon: f64, to: Moments) {
    let (dtype, [pixels, channels], places) = (x.dtype(), matrix(x), Places::of(x));
    assert!(pixels > 0, "statistics of no pixel");
    let bytes = x.bytes();
    let x = parts(x, dtype);
    let walk = PixelWalk::new([pixels, channels], &places.runs(), dtype, &[x], &[], division);
    let workspace = workspace(gpu, &walk, channels);
    gpu.account(|| Cost::moving(bytes, workspace.bytes()));
    let partial = workspace.address();
    let parameters = PartialStatistics { x, partial, places, walk };
    launch_on_x(gpu, places, |kernels| kernels.statistics, dtype, walk.grid(dtype), &parameters);
    let [splits, span] = [walk.splits(), walk.span];
    let sizes = [pixels as u32, channels as u32, splits, span];
    finish_statistics(gpu, dtype, (x, places), partial, sizes, epsilon, to);
}

pub fn statistics_of_tiles(gpu: &Gpu, tiles: &Tiles, epsilon: f64, to: Moments) {
    let [splits, _, channels] = *tiles.sums.dims() else { panic!("tiles × 2 × C") };
    let sizes = [tiles.pixels, channels, splits, tiles.span].map(|size| u32::try_from(size).expect("below 2³²"));
    let nowhere = (Address::NULL, Places::zeroed());
    finish_statistics(gpu, DType::F32, nowhere, per_channel(&tiles.sums), sizes, epsilon, to);
}

/// `x` is what the partial means are relative to the first row of.
fn finish_statistics(
    gpu: &Gpu,
    dtype: DType,
    (x, places): (Address, Places),
    partial: Address,
    [pixels, channels, splits, span]: [u32; 4],
    epsilon: f64,
    to: Moments,
) {
    let [batch_mean, batch_variance] = [0, 1].map(|i| optional(to.running.as_ref().map(|running| &running[i])));
    let &Kernels { module, statistics_finish, .. } = places.kernels();
    let (grid, threads, name, vectorised) = finishing(channels, splits, statistics_finish);
    let finish = FinishStatistics {
        x,
        partial,
        mean: per_channel_mut(&to.mean),
        rstd: per_channel_mut(&to.rstd),
        batch_mean,
        batch_variance,
        pixels,
        channels,
        splits,
        span,
        epsilon: epsilon as f32,
        vectorised,
        places,
    };
    let written = if to.running.is_some() { 4 } else { 2 };
    gpu.account(|| Cost::moving(floats((2 * splits * channels) as usize), floats(written * channels as usize)));
    launch_of(gpu, [module, name], dtype, grid, threads, &finish);
}

/// Leaves the signs of a sum with a residual if they are asked for and it is taken 16 bytes at a time.
pub fn normalize(gpu: Handle, x: Parts, by: PerChannel, then: Finish, out: TensorMut) -> Option<Integers<u8>> {
    let (dtype, matrix, places) = (x.dtype(), matrix(x), Places::of(x));
    let of_residual = then.residual.and_then(Residual::by);
    let numbers = floats(4 * matrix[1] * if of_residual.is_some() { 2 } else { 1 });
    let residual = then.residual.map(Residual::tensor);
    let [read, mut written] = [x.bytes() + residual.map_or(0, Tensor::bytes) + numbers, out.bytes()];
    let (x, out) = (parts(x, dtype), activation_mut(&out, dtype));
    let residual = residual.map_or(Address::NULL, |residual| activation(residual, dtype));
    let by = by.all().map(per_channel);
    let of_residual = of_residual.map_or([Address::NULL; 4], |by| by.all().map(per_channel));
    let per_channel = [by, of_residual].concat();
    let walk = PixelWalk::new(matrix, &places.runs(), dtype, &[x, residual, out], &per_channel, OF_ELEMENTS);
    let packs = matrix[0] * matrix[1] * dtype.size() / 16;
    let leaves_signs = then.leaves_signs && residual != Address::NULL && walk.is_vectorised();
    let signs = leaves_signs.then(|| Integers::uninit(packs, Device::Gpu(gpu)));
    written += signs.as_ref().map_or(0, Integers::bytes);
    gpu.account(|| Cost::moving(read, written));
    let (relu, to_signs) = (then.relu.into(), signs.as_ref().map_or(Address::NULL, Integers::address));
    let parameters = Normalize { x, by, residual, of_residual, out, signs: to_signs, relu, padding: 0, places, walk };
    let kernel: fn(&Kernels) -> &'static str = match of_residual[0] {
        Address::NULL => |kernels| kernels.normalize,
        _ => |kernels| kernels.normalize_two,
    };
    launch_on_x(gpu, places, kernel, dtype, walk.grid(dtype), &parameters);
    signs
}

pub fn gradients(gpu: Handle, x: Parts, dy: Cut, by: PerChannel, to: ParameterGradients) {
    gradients_divided(gpu, OF_SUMS, x, dy, by, to);
}

fn gradients_divided(gpu: Handle, division: Division, x: Parts, dy: Cut, by: PerChannel, to: ParameterGradients) {
    let (dtype, [pixels, channels], places) = (x.dtype(), matrix(x), Places::of(x));
    // Where ReLU cut by its output, the gradient in front of it is kept.
    let bytes = x.bytes();
    let (read, written) = if let Cut::ByOutput(..) = dy { (3 * bytes, bytes) } else { (2 * bytes, 0) };
    let x = parts(x, dtype);
    let (cut, dy, out, dz) = match dy {
        Cut::Whole(dy) => (WHOLE, activation(dy, dtype), Address::NULL, Address::NULL),
        Cut::ByInput(dy) => (BY_INPUT, activation(dy, dtype), Address::NULL, Address::NULL),
        Cut::ByOutput(dy, out) => {
            let dy = activation_mut(&dy, dtype);
            (BY_OUTPUT, dy, activation(out, dtype), dy)
        }
    };
    let all = by.all().map(per_channel);
    let walk = PixelWalk::new([pixels, channels], &places.runs(), dtype, &[x, dy, out], &all, division);
    let workspace = workspace(gpu, &walk, channels);
    let partial = workspace.address();
    let [mean, rstd, gamma, beta] = all;
    let sums = GradientSums { x, dy, out, dz, mean, rstd, gamma, beta, partial, cut, padding: 0, places, walk };
    gpu.account(|| Cost::moving(read + floats(4 * channels), written + workspace.bytes()));
    launch_on_x(gpu, places, |kernels| kernels.gradients, dtype, walk.grid(dtype), &sums);
    finish_gradients(gpu, partial, rstd, [pixels as u32, channels as u32, walk.splits()], to);
}

pub fn gradients_of_tiles(gpu: &Gpu, sums: &Tensor, pixels: usize, rstd: &Tensor, to: ParameterGradients) {
    let [splits, _, channels] = *sums.dims() else { panic!("tiles × 2 × C") };
    let sizes = [pixels, channels, splits].map(|size| u32::try_from(size).expect("below 2³²"));
    finish_gradients(gpu, per_channel(sums), per_channel(rstd), sizes, to);
}

fn finish_gradients(
    gpu: &Gpu,
    partial: Address,
    rstd: Address,
    [pixels, channels, splits]: [u32; 3],
    to: ParameterGradients,
) {
    let [dgamma, dbeta, means] = [to.dgamma.as_ref(), to.dbeta.as_ref(), to.means.as_ref()].map(optional);
    let names = ["batch_norm_gradients_finish", "batch_norm_gradients_finish_few"];
    let (grid, threads, name, vectorised) = finishing(channels, splits, names);
    let finish = FinishGradients { partial, rstd, dgamma, dbeta, means, pixels, channels, splits, vectorised };
    let each = to.dgamma.iter().chain(&to.dbeta).chain(&to.means);
    let written = each.map(TensorMut::bytes).sum();
    gpu.account(|| Cost::moving(floats(((2 * splits + 1) * channels) as usize), written));
    launch_of(gpu, [KERNELS.module, name], DType::F32, grid, threads, &finish);
}

pub fn input_gradient(
    gpu: &Gpu,
    dy: Option<&Tensor>,
    dx: PartsMut,
    x: Parts,
    by: PerChannel,
    relu: bool,
    means: Option<&Tensor>,
) {
    let (dtype, matrix, places) = (x.dtype(), matrix(x), Places::of(x));
    let of_sum = if dx.is_added { x.bytes() } else { 0 };
    let read = 2 * x.bytes() + of_sum + floats(4 * matrix[1]) + means.map_or(0, Tensor::bytes);
    gpu.account(|| Cost::moving(read, x.bytes()));
    let adds = dx.is_added.into();
    // They lie as those of x do, as tensors of the same shapes that lie as parts.
    let (x, dx) = (parts(x, dtype), first_of(&dx.tensors, dtype));
    let dy = dy.map_or(dx, |dy| activation(dy, dtype));
    let all = by.all().map(per_channel);
    let means = means.map_or(Address::NULL, per_channel);
    let per_channel = [&all[..], &[means]].concat();
    let walk = PixelWalk::new(matrix, &places.runs(), dtype, &[x, dy, dx], &per_channel, OF_ELEMENTS);
    let [mean, rstd, gamma, beta] = all;
    let cut = if relu { BY_INPUT } else { WHOLE };
    let parameters = InputGradient { dy, dx, x, mean, rstd, gamma, beta, means, cut, adds, places, walk };
    launch_on_x(gpu, places, |kernels| kernels.input_gradient, dtype, walk.grid(dtype), &parameters);
}

pub fn reciprocal_deviation(gpu: &Gpu, variance: &Tensor, epsilon: f64, rstd: TensorMut) {
    let count = variance.shape().len();
    let parameters = Deviation {
        variance: per_channel(variance),
        rstd: per_channel_mut(&rstd),
        count: count as u32,
        epsilon: epsilon as f32,
    };
    gpu.account(|| Cost::moving(variance.bytes(), rstd.bytes()));
    launch(gpu, "batch_norm_deviation", DType::F32, blocks(count, THREADS as usize), &parameters);
}

pub fn update_running(gpu: &Gpu, running: TensorMut, batch: &Tensor, momentum: f64, gate: Option<Address>) {
    let count = batch.shape().len();
    let parameters = Running {
        running: per_channel_mut(&running),
        batch: per_channel(batch),
        gate: gate.unwrap_or(Address::NULL),
        decay: 1.0 - momentum,
        step: momentum,
        count: count as u32,
        padding: 0,
    };
    gpu.account(|| Cost::moving(2 * batch.bytes(), running.bytes()));
    launch(gpu, "batch_norm_update_running", DType::F32, blocks(count, THREADS as usize), &parameters);
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::{input_gradient, normalize, reference};
    use super::*;
    use crate::numbers::{Numbers, normalized_error};

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

            let mut outputs = [0; 6].map(|_| uninit(channels, device));
            let [mean, rstd, mean_again, variance, dgamma, dbeta] = &mut outputs;
            let running = Some([mean_again.view_mut(), variance.view_mut()]);
            let to = Moments { mean: mean.view_mut(), rstd: rstd.view_mut(), running };
            statistics_divided(gpu, FEW_BLOCKS, (&x).into(), 1e-5, to);
            let mut expected = [0; 4].map(|_| vec![0.0; channels]);
            let [m, r, m2, v] = &mut expected;
            let to = reference::Moments { mean: m, rstd: r, running: Some([m2, v]) };
            reference::statistics::<f64>(&stored_x, 1e-5, to);
            for (actual, expected) in [&*mean, mean_again, variance, rstd].into_iter().zip([&*m, m2, v, r]) {
                assert_close(actual, expected, if expected == m { 1e-6 } else { 1e-5 });
            }

            let by = PerChannel { mean, rstd, gamma: mean, beta: mean };
            let to = ParameterGradients { dgamma: Some(dgamma.view_mut()), dbeta: Some(dbeta.view_mut()), means: None };
            gradients_divided(gpu, FEW_BLOCKS, (&x).into(), Cut::Whole(&dy), by, to);
            let sums = reference::gradient_sums::<f64>(&stored_x, &stored_dy, &mean.to_f64());
            let [mut dg, mut db] = [0; 2].map(|_| vec![0.0; channels]);
            let to = reference::ParameterGradients { dgamma: Some(&mut dg), dbeta: Some(&mut db), means: None };
            reference::finish_gradients::<f64>(&sums, pixels, &rstd.to_f64(), to);
            assert_close(dgamma, &dg, 1e-5);
            assert_close(dbeta, &db, 1e-5);
        }
    }

    /// A number that is not finite reaches both sums from wherever it is, among many pixels of a thread.
    #[test]
    fn an_infinity_is_not_clamped_away() {
        let (gpu, device) = emulator();
        let pixels = 3000;
        for place in [0, 1, 1700, pixels - 1] {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut values = Numbers(1).reals(pixels * 4);
                values[place * 4 + 2] = value;
                let (x, _) = activations(device, DType::F32, &values, 4);
                let [mut mean, mut rstd, mut mean_again, mut variance] = [0; 4].map(|_| uninit(4, device));
                let running = Some([mean_again.view_mut(), variance.view_mut()]);
                let to = Moments { mean: mean.view_mut(), rstd: rstd.view_mut(), running };
                statistics_divided(gpu, FEW_BLOCKS, (&x).into(), 1e-5, to);
                for numbers in [mean, rstd, mean_again, variance].map(|numbers| numbers.to_f64()) {
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
        let walk = PixelWalk::new(matrix((&x).into()), &[], DType::F32, &[], &[], OF_ELEMENTS);
        assert!(walk.span > THREADS / 32, "the shape is too small to test this");
        let channel = [1, 1, 1, 1, 2].map(|rows| {
            let numbers: Vec<f32> = numbers.reals(rows * channels).iter().map(|&v| v as f32).collect();
            if rows == 1 { Tensor::from_vec(numbers, [channels]) } else { Tensor::from_vec(numbers, [rows, channels]) }
        });
        let host = channel.each_ref().map(Tensor::to_f64);
        let [mean, rstd, gamma, beta, means] = channel.map(|tensor| tensor.to_device(device));
        let on_host = reference::PerChannel { mean: &host[0], rstd: &host[1], gamma: &host[2], beta: &host[3] };
        let by = PerChannel { mean: &mean, rstd: &rstd, gamma: &gamma, beta: &beta };
        for (residual, relu) in [(false, false), (true, true)] {
            let mut out = Tensor::uninit([pixels, channels], DType::F32, device);
            normalize(&x, by, residual.then_some(&dy), relu, out.view_mut());
            let mut expected = vec![0.0; pixels * channels];
            let residual = residual.then_some(reference::Residual { numbers: &stored_dy, by: None });
            reference::normalize::<f64>(&stored_x, on_host, residual, relu, &mut expected);
            assert_close(&out, &expected, 1e-6);
        }
        for training in [true, false] {
            dy.view_mut().copy_from(&activations(device, DType::F32, &stored_dy, channels).0);
            input_gradient(None, dy.view_mut(), &x, by, true, training.then_some(&means));
            let mut expected = stored_dy.clone();
            reference::cut_by_input::<f64>(&stored_x, &mut expected, on_host);
            let means = training.then_some(&host[4][..]);
            reference::input_gradient_assign::<f64>(&mut expected, &stored_x, on_host, means);
            assert_close(&dy, &expected, 1e-6);
        }
    }

    /// A number so small that it is stored as zero passes no gradient, as if its output had been read.
    #[test]
    fn what_is_stored_as_zero_passes_no_gradient() {
        let (gpu, device) = emulator();
        let one = |value: f32| Tensor::from_vec(vec![value; 8], [8]).to_device(device);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            // Powers of two around the smallest number of every dtype; x is 1 in all of them.
            for exponent in [-24, -25, -26, -126, -133, -134, -135, -149] {
                let tiny = 2f32.powi(exponent + 75) * 2f32.powi(-75);
                let ([x, ones], [zero, unit]) = ([0; 2].map(|_| one(1.0).cast(dtype)), [0.0, 1.0].map(one));
                let [x, dy] = [x, ones].map(|tensor| tensor.reshape([1, 8]));
                let (gamma, beta) = (one(tiny), one(0.0));
                let by = PerChannel { mean: &zero, rstd: &unit, gamma: &gamma, beta: &beta };
                let mut out = Tensor::uninit([1, 8], dtype, device);
                normalize(&x, by, None, true, out.view_mut());
                let passes = out.to_f64()[0] > 0.0;
                let mut dbeta = uninit(8, device);
                let to = ParameterGradients { dgamma: None, dbeta: Some(dbeta.view_mut()), means: None };
                gradients(gpu, (&x).into(), Cut::ByInput(&dy), by, to);
                assert_eq!(dbeta.to_f64()[0], f64::from(u8::from(passes)), "2^{exponent} as {dtype}");
            }
        }
    }

    #[test]
    fn a_gate_of_zero_keeps_the_running_statistics() {
        let (gpu, device) = emulator();
        let on_device = |value: f32| Tensor::from_vec(vec![value; 300], [300]).to_device(device);
        let batch = on_device(3.0);
        for (gate, expected) in [(Some(0), 1.0), (Some(1), 2.0), (None, 2.0)] {
            let mut running = on_device(1.0);
            let gate = gate.map(|value: u32| Integers::from_vec(vec![value]).to_device(device));
            update_running(gpu, running.view_mut(), &batch, 0.5, gate.as_ref().map(Integers::address));
            assert_eq!(running.to_f64(), vec![expected; 300]);
        }
    }
}
