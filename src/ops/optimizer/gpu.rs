//! Launches of `kernels/optimizer.cu`.

use super::{AdamW, CLIP_EPSILON, Sgd};
use crate::gpu::{Address, Cost, Gpu};
use crate::ops::control::{Control, GROWTH, LOSSES, Values};
use crate::parameters;
use crate::tensor::{DType, Device, Tensor, TensorMut};

const THREADS: u32 = 256;
/// Numbers per block of `square_sums`.
const CHUNK: usize = 4096;

parameters! {
    struct SquareSums: 24 bytes { g: Address, partial: Address, count: u64 }
}

parameters! {
    struct Decide: 72 bytes {
        control: Address,
        loss: Address,
        partial: Address,
        losses: Address,
        beta1: f64,
        beta2: f64,
        partials: u32,
        capacity: u32,
        is_scaled: u32,
        growth_steps: u32,
        limit: f32,
        clip_epsilon: f32,
    }
}

parameters! {
    struct Update: 88 bytes {
        w: Address,
        g: Address,
        first: Address,
        second: Address,
        control: Address,
        count: u64,
        rate: f32,
        weight_decay: f32,
        beta1: f32,
        beta2: f32,
        rest1: f32,
        rest2: f32,
        epsilon: f32,
        correction1: f32,
        correction2: f32,
        nesterov: u32,
    }
}

fn decision(control: &Control, loss: &Tensor, partial: Address, partials: usize, betas: [f64; 2]) -> Decide {
    Decide {
        control: control.address(),
        loss: loss.address(),
        partial,
        losses: control.losses_address(),
        beta1: betas[0],
        beta2: betas[1],
        partials: partials as u32,
        capacity: LOSSES as u32,
        is_scaled: control.is_scaled().into(),
        growth_steps: GROWTH,
        limit: f32::INFINITY,
        clip_epsilon: CLIP_EPSILON as f32,
    }
}

/// Decides whether the step with this loss and these gradients updates anything.
pub fn decide(control: &Control, loss: &Tensor, gradients: &[&Tensor], betas: [f64; 2]) {
    decide_within(control, loss, gradients, betas, None);
}

/// The same with gradients whose common norm, where it exceeds `limit`, updates are to make shorter.
pub fn decide_within(control: &Control, loss: &Tensor, gradients: &[&Tensor], betas: [f64; 2], limit: Option<f64>) {
    let gpu = control.gpu();
    let counts = gradients.iter().map(|gradient| gradient.shape().len().div_ceil(CHUNK));
    let total: usize = counts.clone().sum();
    let mut partial = Tensor::uninit([total], DType::F32, Device::Gpu(gpu));
    let base = partial.view_mut().address();
    let mut first = 0;
    for (gradient, blocks) in gradients.iter().zip(counts) {
        assert!(gradient.is_contiguous(), "the gradient of an arena has no padding of its own");
        let count = gradient.shape().len() as u64;
        let parameters = SquareSums { g: gradient.address(), partial: base.offset(4 * first), count };
        gpu.account(|| Cost::moving(gradient.bytes(), 4 * blocks));
        // SAFETY: a block for each of `blocks` partial sums; the gradient holds `count` numbers.
        unsafe { gpu.launch("optimizer", "square_sums", DType::F32, [blocks as u32, 1, 1], THREADS, &parameters) };
        first += blocks;
    }
    let limit = limit.map_or(f32::INFINITY, |limit| limit as f32);
    let parameters = Decide { limit, ..decision(control, loss, base, total, betas) };
    gpu.account(|| Cost::moving(4 * total + size_of::<Values>(), size_of::<Values>()));
    // SAFETY: `total` partial sums were written above; the control block holds `LOSSES` losses.
    unsafe { gpu.launch("optimizer", "decide", DType::F32, [1, 1, 1], THREADS, &parameters) }
}

/// Notes a batch whose gradient is only gathered: its loss, and whether the running statistics may follow it.
pub fn note(control: &Control, loss: &Tensor) {
    let parameters = decision(control, loss, Address::NULL, 0, [0.0; 2]);
    control.gpu().account(|| Cost::moving(4 + size_of::<Values>(), size_of::<Values>()));
    // SAFETY: reads a loss, and reads and writes the control block, which holds `LOSSES` losses.
    unsafe { control.gpu().launch("optimizer", "note", DType::F32, [1, 1, 1], 32, &parameters) }
}

/// Moves the scale of the loss, behind the step's updates.
pub fn rescale(control: &Control, loss: &Tensor) {
    if control.is_scaled() {
        let parameters = decision(control, loss, Address::NULL, 0, [0.0; 2]);
        control.gpu().account(|| Cost::moving(size_of::<Values>(), size_of::<Values>()));
        // SAFETY: reads and writes the control block alone.
        unsafe { control.gpu().launch("optimizer", "rescale", DType::F32, [1, 1, 1], 32, &parameters) }
    }
}

/// `read` and `written` say how many of the four arrays.
fn launch(gpu: &Gpu, name: &'static str, [read, written]: [usize; 2], update: &Update) {
    let array = 4 * update.count as usize;
    gpu.account(|| Cost::moving(read * array, written * array));
    let blocks = update.count.div_ceil(4 * u64::from(THREADS)) as u32;
    // SAFETY: the callers below check that every tensor holds `count` numbers.
    unsafe { gpu.launch("optimizer", name, DType::F32, [blocks, 1, 1], THREADS, update) }
}

fn blank(w: &TensorMut, gradient: &Tensor, control: Option<&Control>) -> Update {
    Update {
        w: w.address(),
        g: gradient.address(),
        control: control.map_or(Address::NULL, Control::address),
        count: w.shape().len() as u64,
        ..bytemuck::Zeroable::zeroed()
    }
}

pub fn sgd(gpu: &Gpu, rule: &Sgd, w: TensorMut, gradient: &Tensor, velocity: TensorMut, control: Option<&Control>) {
    assert!(w.is_contiguous() && gradient.is_contiguous() && w.shape() == velocity.shape(), "SGD");
    let update = Update {
        first: velocity.address(),
        rate: rule.learning_rate as f32,
        weight_decay: rule.weight_decay as f32,
        beta1: rule.momentum as f32,
        nesterov: rule.nesterov.into(),
        ..blank(&w, gradient, control)
    };
    launch(gpu, "sgd", [3, 2], &update);
}

pub fn adamw(
    gpu: &Gpu,
    rule: &AdamW,
    w: TensorMut,
    gradient: &Tensor,
    [first, second]: [TensorMut; 2],
    control: Option<&Control>,
) {
    assert!(w.is_contiguous() && gradient.is_contiguous(), "AdamW");
    assert!(w.shape() == first.shape() && first.shape() == second.shape(), "AdamW");
    let step = rule.step as i32;
    let update = Update {
        first: first.address(),
        second: second.address(),
        rate: rule.learning_rate as f32,
        weight_decay: rule.weight_decay as f32,
        beta1: rule.beta1 as f32,
        beta2: rule.beta2 as f32,
        rest1: (1.0 - rule.beta1) as f32,
        rest2: (1.0 - rule.beta2) as f32,
        epsilon: rule.epsilon as f32,
        correction1: (1.0 - rule.beta1.powi(step)) as f32,
        correction2: (1.0 - rule.beta2.powi(step)).sqrt() as f32,
        ..blank(&w, gradient, control)
    };
    launch(gpu, "adamw", [4, 3], &update);
}

/// Adds the share of a batch's gradient that `control` tells.
pub fn gather(gpu: &Gpu, sum: &mut Tensor, gradient: &Tensor, control: &Control) {
    assert!(sum.is_contiguous() && gradient.is_contiguous() && sum.shape() == gradient.shape(), "a mean of gradients");
    launch(gpu, "gather", [2, 1], &blank(&sum.view_mut(), gradient, Some(control)));
}

/// Keeps every number in [0, 1].
pub fn clamp(gpu: &Gpu, numbers: &mut Tensor, control: Option<&Control>) {
    let itself = numbers.view_mut().address();
    let update = Update {
        w: itself,
        control: control.map_or(Address::NULL, Control::address),
        count: numbers.shape().len() as u64,
        ..bytemuck::Zeroable::zeroed()
    };
    launch(gpu, "clamp", [1, 1], &update);
}
