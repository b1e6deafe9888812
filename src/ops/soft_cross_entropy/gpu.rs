//! Launches of `kernels/soft_cross_entropy.cu`.

use crate::gpu::{Address, Cost, Handle};
use crate::ops::control::Control;
use crate::ops::softmax_cross_entropy::{CrossEntropy, Form};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

const THREADS: u32 = 256;

parameters! {
    struct Parameters: 64 bytes {
        logits: Address,
        targets: Address,
        weights: Address,
        control: Address,
        loss: Address,
        gradient: Address,
        n: u32,
        classes: u32,
        smoothing: f32,
        padding: u32,
    }
}

pub fn forward_backward(
    gpu: Handle,
    loss: &CrossEntropy,
    logits: &Tensor,
    targets: &Tensor,
    value: TensorMut,
    gradient: TensorMut,
    control: Option<&Control>,
) {
    let weights: Vec<f32> = loss.class_weights.iter().map(|&weight| weight as f32).collect();
    let parameters = Parameters {
        logits: logits.address(),
        targets: targets.address(),
        weights: if weights.is_empty() { Address::NULL } else { gpu.constant(&weights) },
        control: control.map_or(Address::NULL, Control::address),
        loss: value.address(),
        gradient: gradient.address(),
        n: logits.dims()[0] as u32,
        classes: logits.dims()[1] as u32,
        smoothing: loss.label_smoothing as f32,
        padding: 0,
    };
    let read = logits.bytes() + targets.bytes() + size_of_val(weights.as_slice());
    gpu.account(|| Cost::moving(read, value.bytes() + gradient.bytes()));
    let kernel = match loss.form {
        Form::Softmax => "softmax_of_shares",
        Form::Sigmoid => "sigmoid_of_shares",
    };
    // SAFETY: the contract checked the shapes.
    unsafe { gpu.launch("soft_cross_entropy", kernel, DType::F32, [1, 1, 1], THREADS, &parameters) }
}
