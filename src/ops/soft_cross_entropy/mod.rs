//! Cross-entropy with targets that are shares: of images that are several things at once, or mixtures of others.
//!
//! With logits z and targets t (N×K), class weights v (1 where none are given) and label smoothing e, as PyTorch defines both forms:
//!
//! ```text
//! softmax   u = (1 − e)·t + e/K     loss = 1/N · Σ_n Σ_k v[k]·u[n,k]·(−log p[n,k]),      p = softmax(z)
//!                                   dz[n,k] = [ p[n,k]·Σ_j v[j]·u[n,j] − v[k]·u[n,k] ] / N
//!
//! sigmoid   u = (1 − e)·t + e/2     loss = 1/(N·K) · Σ_n Σ_k v[k]·u[n,k]·(−log s[n,k]) + (1 − u[n,k])·(−log(1 − s[n,k]))
//!                                   dz[n,k] = [ s[n,k]·(1 − u[n,k] + v[k]·u[n,k]) − v[k]·u[n,k] ] / (N·K),      s = 1 / (1 + exp(−z))
//! ```
//!
//! The first is `CrossEntropyLoss` of class probabilities, which divides by the images and not by their weights; the second is
//! `BCEWithLogitsLoss`, whose `pos_weight` v is.

pub mod gpu;
pub mod reference;

use super::control::Control;
use super::softmax_cross_entropy::CrossEntropy;
use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Tensor, TensorMut};

/// Writes the mean loss, a single number, and its gradient with respect to the logits. On a GPU the gradient is multiplied
/// by the scale of `control`.
///
/// # Panics
/// If shapes or types do not match.
pub fn forward_backward(
    loss: &CrossEntropy,
    logits: &Tensor,
    targets: &Tensor,
    value: TensorMut,
    gradient: TensorMut,
    control: Option<&Control>,
) {
    let &[_, classes] = logits.dims() else { panic!("cross-entropy of {}", logits.shape()) };
    assert!(targets.shape() == logits.shape() && targets.dtype() == logits.dtype(), "targets of {}", logits.shape());
    assert!([0, classes].contains(&loss.class_weights.len()), "class weights for {classes} classes");
    assert!(value.shape().len() == 1 && gradient.shape() == logits.shape(), "results of a cross-entropy");
    match logits.implementation() {
        Implementation::Gpu(gpu) => gpu::forward_backward(gpu, loss, logits, targets, value, gradient, control),
        Implementation::Reference => {
            let mean =
                reference::forward_backward::<f64>(loss, logits.data(), targets.data(), classes, gradient.data());
            value.fill(mean);
        }
        Implementation::Cpu => {
            let mean =
                reference::forward_backward::<f32>(loss, logits.data(), targets.data(), classes, gradient.data());
            value.fill(mean);
        }
    }
}

impl Tape {
    pub fn soft_cross_entropy(
        &mut self,
        loss: &CrossEntropy,
        logits: &Var,
        targets: &Tensor,
        control: Option<&Control>,
    ) -> Var {
        let z = logits.value();
        self.loss(logits, |value, gradient| forward_backward(loss, z, targets, value, gradient, control))
    }
}
