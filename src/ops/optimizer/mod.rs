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
pub mod reference;

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

/// `velocity` starts as zeros, which makes the first step PyTorch's.
pub fn sgd(rule: &Sgd, parameters: &mut Tensor, gradient: &Tensor, velocity: &mut Tensor) {
    assert_eq!(parameters.shape(), gradient.shape(), "SGD");
    let (w, v) = (parameters.view_mut(), velocity.view_mut());
    match gradient.implementation() {
        Implementation::Cpu => cpu::sgd(rule, w.data(), gradient.data(), v.data()),
        Implementation::Reference => reference::sgd::<f64>(rule, w.data(), gradient.data(), v.data()),
        Implementation::Gpu(_) => todo!(),
    }
}

/// `first` and `second`, the moments, start as zeros.
pub fn adamw(rule: &AdamW, parameters: &mut Tensor, gradient: &Tensor, first: &mut Tensor, second: &mut Tensor) {
    assert_eq!(parameters.shape(), gradient.shape(), "AdamW");
    let (w, m, u) = (parameters.view_mut(), first.view_mut(), second.view_mut());
    match gradient.implementation() {
        Implementation::Cpu => cpu::adamw(rule, w.data(), gradient.data(), m.data(), u.data()),
        Implementation::Reference => reference::adamw::<f64>(rule, w.data(), gradient.data(), m.data(), u.data()),
        Implementation::Gpu(_) => todo!(),
    }
}
