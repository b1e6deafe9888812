//! Launches of `kernels/softmax_cross_entropy.cu`.

use super::CrossEntropy;
use crate::gpu::{Address, Cost, Handle};
use crate::ops::control::Control;
use crate::parameters;
use crate::tensor::{DType, Integers, Tensor, TensorMut};

const THREADS: u32 = 256;

parameters! {
    struct Parameters: 64 bytes {
        logits: Address,
        labels: Address,
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
    labels: &Integers<u32>,
    value: TensorMut,
    gradient: TensorMut,
    control: Option<&Control>,
) {
    let weights: Vec<f32> = loss.class_weights.iter().map(|&weight| weight as f32).collect();
    let parameters = Parameters {
        logits: logits.address(),
        labels: labels.address(),
        weights: if weights.is_empty() { Address::NULL } else { gpu.constant(&weights) },
        control: control.map_or(Address::NULL, Control::address),
        loss: value.address(),
        gradient: gradient.address(),
        n: logits.dims()[0] as u32,
        classes: logits.dims()[1] as u32,
        smoothing: loss.label_smoothing as f32,
        padding: 0,
    };
    let read = logits.bytes() + labels.bytes() + size_of_val(weights.as_slice());
    gpu.account(|| Cost::moving(read, value.bytes() + gradient.bytes()));
    // SAFETY: the contract checked the shapes; labels on a GPU are below the number of classes, as every data set's.
    unsafe { gpu.launch("softmax_cross_entropy", "softmax_cross_entropy", DType::F32, [1, 1, 1], THREADS, &parameters) }
}
