//! Launches of `kernels/optimizer.cu`.

use super::{AdamW, Sgd};
use crate::gpu::{Address, Cost, Gpu};
use crate::ops::control::{Control, GROWTH, LOSSES, Values};
use crate::parameters;
use crate::tensor::{DType, Device, Tensor};

const THREADS: u32 = 256;
/// Numbers per block of `square_sums`.
const CHUNK: usize = 4096;

parameters! {
    struct SquareSums: 24 bytes { g: Address, partial: Address, count: u64 }
}

parameters! {
    struct Decide: 64 bytes {
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
        padding: f32,
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
    }
}

/// Decides whether the step with this loss and these gradients updates anything.
pub fn decide(control: &Control, loss: &Tensor, gradients: &[&Tensor], betas: [f64; 2]) {
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
    let parameters = decision(control, loss, base, total, betas);
    gpu.account(|| Cost::moving(4 * total + size_of::<Values>(), size_of::<Values>()));
    // SAFETY: `total` partial sums were written above; the control block holds `LOSSES` losses.
    unsafe { gpu.launch("optimizer", "decide", DType::F32, [1, 1, 1], THREADS, &parameters) }
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

fn blank(parameters: &mut Tensor, gradient: &Tensor, control: Option<&Control>) -> Update {
    Update {
        w: parameters.view_mut().address(),
        g: gradient.address(),
        control: control.map_or(Address::NULL, Control::address),
        count: parameters.shape().len() as u64,
        ..bytemuck::Zeroable::zeroed()
    }
}

pub fn sgd(
    gpu: &Gpu,
    rule: &Sgd,
    parameters: &mut Tensor,
    gradient: &Tensor,
    velocity: &mut Tensor,
    control: Option<&Control>,
) {
    assert!(parameters.is_contiguous() && gradient.is_contiguous() && parameters.shape() == velocity.shape(), "SGD");
    let update = Update {
        first: velocity.view_mut().address(),
        rate: rule.learning_rate as f32,
        weight_decay: rule.weight_decay as f32,
        beta1: rule.momentum as f32,
        ..blank(parameters, gradient, control)
    };
    launch(gpu, "sgd", [3, 2], &update);
}

pub fn adamw(
    gpu: &Gpu,
    rule: &AdamW,
    parameters: &mut Tensor,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    control: Option<&Control>,
) {
    assert!(parameters.is_contiguous() && gradient.is_contiguous(), "AdamW");
    assert!(parameters.shape() == first.shape() && first.shape() == second.shape(), "AdamW");
    let step = rule.step as i32;
    let update = Update {
        first: first.view_mut().address(),
        second: second.view_mut().address(),
        rate: rule.learning_rate as f32,
        weight_decay: rule.weight_decay as f32,
        beta1: rule.beta1 as f32,
        beta2: rule.beta2 as f32,
        rest1: (1.0 - rule.beta1) as f32,
        rest2: (1.0 - rule.beta2) as f32,
        epsilon: rule.epsilon as f32,
        correction1: (1.0 - rule.beta1.powi(step)) as f32,
        correction2: (1.0 - rule.beta2.powi(step)).sqrt() as f32,
        ..blank(parameters, gradient, control)
    };
    launch(gpu, "adamw", [4, 3], &update);
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
