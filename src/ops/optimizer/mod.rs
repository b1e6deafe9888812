//! One update of an arena of parameters, or of a stretch of it, as PyTorch defines SGD and AdamW.
//!
//! ```text
//! SGD      g += weight_decay·w      v = momentum·v + g  (v = g at the first step)      w −= learning_rate·v
//!          Nesterov's:              w −= learning_rate·(g + momentum·v)
//! AdamW    w −= learning_rate·weight_decay·w
//!          m = β₁·m + (1 − β₁)·g     u = β₂·u + (1 − β₂)·g²
//!          w −= learning_rate/(1 − β₁ᵗ) · m / (√u/√(1 − β₂ᵗ) + ε)
//! ```
//!
//! Before it, gradients of several batches may be gathered into their mean, and those of all arenas be clipped together:
//!
//! ```text
//! gather   s = share·g of the first batch, s + share·g of the others
//! clip     g *= min(1, C / (‖g‖ + 10⁻⁶)), where ‖g‖ is of all that learns: torch.nn.utils.clip_grad_norm_
//! ```
//!
//! Padding in an arena is zero, has a zero gradient, and so stays zero.

pub mod cpu;
pub mod gpu;
pub mod reference;

use super::control::Control;
use crate::tensor::{Implementation, Tensor, TensorMut};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub learning_rate: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    /// Whether it moves by where the velocity is about to lead.
    pub nesterov: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Counted from 1.
    pub step: u64,
}

impl AdamW {
    /// The constants that an element needs: decay factor, step size, and √(1 − β₂ᵗ).
    pub fn factors(&self) -> (f64, f64, f64) {
        let step = self.step as i32;
        let decay = 1.0 - self.learning_rate * self.weight_decay;
        (decay, self.learning_rate / (1.0 - self.beta1.powi(step)), (1.0 - self.beta2.powi(step)).sqrt())
    }
}

/// What is added to a gradient's norm before anything is divided by it, as in PyTorch.
pub const CLIP_EPSILON: f64 = 1e-6;

/// `velocity` starts as zeros, which makes the first step PyTorch's. On a GPU, `control` may multiply the learning rate,
/// unscale and clip the gradient, or withhold the update. Nothing may have padding between rows.
pub fn sgd(rule: &Sgd, w: TensorMut, gradient: &Tensor, velocity: TensorMut, control: Option<&Control>) {
    assert_eq!(w.shape(), gradient.shape(), "SGD");
    if let Implementation::Gpu(gpu) = gradient.implementation() {
        return gpu::sgd(gpu, rule, w, gradient, velocity, control);
    }
    let v = velocity;
    match gradient.implementation() {
        Implementation::Reference => reference::sgd::<f64>(rule, w.data(), gradient.data(), v.data()),
        _ => cpu::sgd(rule, w.data(), gradient.data(), v.data()),
    }
}

/// `first` and `second`, the moments, start as zeros. On a GPU, `control` may multiply the learning rate, unscale and clip
/// the gradient, withhold the update, and counts the steps in place of the rule. Nothing may have padding between rows.
pub fn adamw(
    rule: &AdamW,
    w: TensorMut,
    gradient: &Tensor,
    [first, second]: [TensorMut; 2],
    control: Option<&Control>,
) {
    assert_eq!(w.shape(), gradient.shape(), "AdamW");
    if let Implementation::Gpu(gpu) = gradient.implementation() {
        return gpu::adamw(gpu, rule, w, gradient, [first, second], control);
    }
    let (m, u) = (first, second);
    match gradient.implementation() {
        Implementation::Reference => reference::adamw::<f64>(rule, w.data(), gradient.data(), m.data(), u.data()),
        _ => cpu::adamw(rule, w.data(), gradient.data(), m.data(), u.data()),
    }
}

/// Adds `share` of a batch's gradient to the mean of several, which the first one begins. On a GPU both are what `control`
/// says.
pub fn gather(sum: &mut Tensor, gradient: &Tensor, share: f64, is_first: bool, control: Option<&Control>) {
    assert_eq!(sum.shape(), gradient.shape(), "a mean of gradients");
    match gradient.implementation() {
        Implementation::Gpu(gpu) => {
            gpu::gather(gpu, sum, gradient, control.expect("a batch of several on a GPU has a control block"));
        }
        Implementation::Cpu => cpu::gather(sum.view_mut().data(), gradient.data(), share, is_first),
        Implementation::Reference => {
            reference::gather::<f64>(sum.view_mut().data(), gradient.data(), share, is_first);
        }
    }
}

/// Makes gradients shorter whose common norm exceeds `limit`; returns the norm. On the CPU: a GPU does it while it
/// [decides](gpu::decide).
pub fn clip(gradients: &mut [&mut Tensor], limit: f64) -> f64 {
    let squares = |gradient: &&mut Tensor| match gradient.implementation() {
        Implementation::Cpu => cpu::square_sum(gradient.data()),
        Implementation::Reference => reference::square_sum::<f64>(gradient.data()),
        Implementation::Gpu(_) => panic!("a GPU clips while it decides"),
    };
    let norm = gradients.iter().map(squares).sum::<f64>().sqrt();
    let factor = (limit / (norm + CLIP_EPSILON)).min(1.0);
    // NaN is no limit's matter: it shows in what it makes of the parameters.
    if factor < 1.0 {
        for gradient in gradients {
            gradient.make_unique();
            match gradient.implementation() {
                Implementation::Cpu => cpu::scale(gradient.view_mut().data(), factor),
                _ => reference::scale::<f64>(gradient.view_mut().data(), factor),
            }
        }
    }
    norm
}

/// Keeps every number in [0, 1].
pub fn clamp(numbers: &mut Tensor, control: Option<&Control>) {
    match numbers.implementation() {
        Implementation::Cpu => numbers.view_mut().data::<f32>().iter_mut().for_each(|w| *w = w.clamp(0.0, 1.0)),
        Implementation::Reference => numbers.view_mut().data::<f64>().iter_mut().for_each(|w| *w = w.clamp(0.0, 1.0)),
        Implementation::Gpu(gpu) => gpu::clamp(gpu, numbers, control),
    }
}
