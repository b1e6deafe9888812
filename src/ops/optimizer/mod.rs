//! One update of a whole arena of parameters, as PyTorch defines SGD and AdamW.
//!
//! ```text
//! SGD      g += weight_decay·w      v = momentum·v + g  (v = g at the first step)      w −= learning_rate·v
//! AdamW    w −= learning_rate·weight_decay·w
//!          m = β₁·m + (1 − β₁)·g     u = β₂·u + (1 − β₂)·g²
//!          w −= learning_rate/(1 − β₁ᵗ) · m / (√u/√(1 − β₂ᵗ) + ε)
//! ```
//!
//! Padding in an arena is zero, has a zero gradient, and so stays zero.

pub mod cpu;
pub mod gpu;
pub mod reference;

use super::control::Control;
use crate::tensor::{Implementation, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub learning_rate: f64,
    pub momentum: f64,
    pub weight_decay: f64,
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

/// `velocity` starts as zeros, which makes the first step PyTorch's. On a GPU, `control` may multiply the learning rate,
/// unscale the gradient, or withhold the update.
pub fn sgd(rule: &Sgd, parameters: &mut Tensor, gradient: &Tensor, velocity: &mut Tensor, control: Option<&Control>) {
    assert_eq!(parameters.shape(), gradient.shape(), "SGD");
    if let Implementation::Gpu(gpu) = gradient.implementation() {
        return gpu::sgd(gpu, rule, parameters, gradient, velocity, control);
    }
    let (w, v) = (parameters.view_mut(), velocity.view_mut());
    match gradient.implementation() {
        Implementation::Reference => reference::sgd::<f64>(rule, w.data(), gradient.data(), v.data()),
        _ => cpu::sgd(rule, w.data(), gradient.data(), v.data()),
    }
}

/// `first` and `second`, the moments, start as zeros. On a GPU, `control` may multiply the learning rate, unscale the
/// gradient, withhold the update, and counts the steps in place of the rule.
pub fn adamw(
    rule: &AdamW,
    parameters: &mut Tensor,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    control: Option<&Control>,
) {
    assert_eq!(parameters.shape(), gradient.shape(), "AdamW");
    if let Implementation::Gpu(gpu) = gradient.implementation() {
        return gpu::adamw(gpu, rule, parameters, gradient, first, second, control);
    }
    let (w, m, u) = (parameters.view_mut(), first.view_mut(), second.view_mut());
    match gradient.implementation() {
        Implementation::Reference => reference::adamw::<f64>(rule, w.data(), gradient.data(), m.data(), u.data()),
        _ => cpu::adamw(rule, w.data(), gradient.data(), m.data(), u.data()),
    }
}

/// Keeps every number in [0, 1].
pub fn clamp(numbers: &mut Tensor, control: Option<&Control>) {
    match numbers.implementation() {
        Implementation::Cpu => numbers.view_mut().data::<f32>().iter_mut().for_each(|w| *w = w.clamp(0.0, 1.0)),
        Implementation::Reference => numbers.view_mut().data::<f64>().iter_mut().for_each(|w| *w = w.clamp(0.0, 1.0)),
        Implementation::Gpu(gpu) => gpu::clamp(gpu, numbers, control),
    }
}
