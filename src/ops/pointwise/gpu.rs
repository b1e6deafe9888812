//! The pointwise ops on a GPU: `kernels/pointwise.cu`.

use super::Pull;
use crate::gpu::{Address, Cost, Gpu};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

parameters! {
    struct Relu: 24 bytes { x: Address, count: u64, vectorised: u32, padding: u32 }
}

parameters! {
    struct Both: 32 bytes { to: Address, from: Address, count: u64, vectorised: u32, padding: u32 }
}

parameters! {
    struct AddRows: 32 bytes { sum: Address, term: Address, count: u32, row: u32, pitch: u32, padding: u32 }
}

parameters! {
    struct Pulled: 56 bytes {
        dx: Address,
        x: Address,
        towards: Address,
        control: Address,
        count: u64,
        strength: f32,
        share: f32,
        vectorised: u32,
        padding: u32,
    }
}

const THREADS: usize = 256;

/// A thread for every `each` elements.
fn grid(count: usize, each: usize) -> [u32; 3] {
    [u32::try_from(count.div_ceil(THREADS * each)).expect("fewer than 2³² blocks"), 1, 1]
}

fn vectorised(addresses: &[Address]) -> u32 {
    addresses.iter().all(|address| address.0.is_multiple_of(16)).into()
}

fn launch<P: crate::gpu::Parameters>(gpu: &Gpu, name: &'static str, dtype: DType, grid: [u32; 3], parameters: &P) {
    // SAFETY: the callers below own tensors of `dtype` at the addresses, as long as the counts beside them say, which
    // they compare; the kernels take nothing else.
    unsafe { gpu.launch("pointwise", name, dtype, grid, THREADS as u32, parameters) }
}

pub fn relu_assign(gpu: &Gpu, x: TensorMut) {
    let (dtype, count) = (x.dtype(), x.shape().len());
    assert!(x.is_contiguous(), "ReLU of padded rows");
    let parameters = Relu { x: x.address(), count: count as u64, vectorised: vectorised(&[x.address()]), padding: 0 };
    gpu.account(|| Cost::moving(x.bytes(), x.bytes()));
    launch(gpu, "relu", dtype, grid(count, 16 / dtype.size()), &parameters);
}

pub fn relu_backward_assign(gpu: &Gpu, dy: TensorMut, y: &Tensor) {
    both(gpu, "relu_backward", dy, y);
}

pub fn pull_assign(gpu: &Gpu, pull: &Pull, dx: TensorMut, x: &Tensor) {
    let (dtype, count, towards) = (dx.dtype(), dx.shape().len(), pull.towards);
    assert!(
        x.dtype() == dtype && towards.dtype() == dtype,
        "{dtype} is pulled with {} and {}",
        x.dtype(),
        towards.dtype()
    );
    assert!(dx.is_contiguous() && x.is_contiguous() && towards.is_contiguous(), "a pull of padded rows");
    gpu.account(|| Cost::moving(3 * dx.bytes(), dx.bytes()));
    let [dx, x, towards] = [dx.address(), x.address(), towards.address()];
    let parameters = Pulled {
        dx,
        x,
        towards,
        control: pull.control.unwrap_or(Address::NULL),
        count: count as u64,
        strength: pull.strength as f32,
        share: pull.share as f32,
        vectorised: vectorised(&[dx, x, towards]),
        padding: 0,
    };
    launch(gpu, "pull", dtype, grid(count, 16 / dtype.size()), &parameters);
}

pub fn add_assign(gpu: &Gpu, sum: TensorMut, term: &Tensor) {
    if sum.is_contiguous() {
        return both(gpu, "add", sum, term);
    }
    let (dtype, shape) = (sum.dtype(), sum.shape());
    assert!(term.is_contiguous() && term.dtype() == dtype, "add {} to {dtype}", term.dtype());
    let dim = |size: usize| u32::try_from(size).expect("fewer than 2³² elements in padded rows");
    let parameters = AddRows {
        sum: sum.address(),
        term: term.address(),
        count: dim(shape.len()),
        row: dim(shape.row_len()),
        pitch: dim(sum.pitch()),
        padding: 0,
    };
    gpu.account(|| Cost::moving(sum.bytes() + term.bytes(), sum.bytes()));
    launch(gpu, "add_rows", dtype, grid(shape.len(), 1), &parameters);
}

/// `from` has the shape of `to`.
fn both(gpu: &Gpu, name: &'static str, to: TensorMut, from: &Tensor) {
    let (dtype, count) = (to.dtype(), to.shape().len());
    assert!(from.dtype() == dtype, "{name} of {dtype} and {}", from.dtype());
    assert!(to.is_contiguous() && from.is_contiguous(), "{name} of padded rows");
    gpu.account(|| Cost::moving(to.bytes() + from.bytes(), to.bytes()));
    let (to, from) = (to.address(), from.address());
    let parameters = Both { to, from, count: count as u64, vectorised: vectorised(&[to, from]), padding: 0 };
    launch(gpu, name, dtype, grid(count, 16 / dtype.size()), &parameters);
}
