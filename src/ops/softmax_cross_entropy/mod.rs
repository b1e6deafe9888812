//! Softmax and cross-entropy in one op, because their gradient together is simple.
//!
//! With logits z (N×K), labels l, class weights v (1 where none are given) and label smoothing e, as PyTorch defines it:
//!
//! ```text
//! loss = Σ_n [ (1 − e)·v[l_n]·(−log p[n, l_n]) + (e/K)·Σ_k v[k]·(−log p[n,k]) ] / Σ_n v[l_n],      p = softmax(z)
//! dz[n,k] = [ p[n,k]·((1 − e)·v[l_n] + (e/K)·Σ_j v[j]) − (1 − e)·v[l_n]·[k = l_n] − (e/K)·v[k] ] / Σ_n v[l_n]
//! ```
//!
//! A batch holds at most a few thousand logits, so the reference is fast enough for `f32` too; its sums run in `f64`.

pub mod gpu;
pub mod reference;

use super::control::Control;
use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Integers, Tensor, TensorMut};

/// The settings that a loss fixes for all its batches.
#[derive(Clone, Debug, Default)]
pub struct CrossEntropy {
    /// One weight per class; empty for 1 each.
    pub class_weights: Vec<f64>,
    /// Between 0 (none) and 1.
    pub label_smoothing: f64,
    pub form: Form,
}

/// Whether classes exclude each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// They do: probabilities of an image sum to 1.
    #[default]
    Softmax,
    /// Each is a decision by itself, in [`soft_cross_entropy`](super::soft_cross_entropy) alone.
    Sigmoid,
}

/// Writes the mean loss, a single number, and its gradient with respect to the logits. On a GPU the gradient is multiplied
/// by the scale of `control`.
///
/// # Panics
/// If a label on the CPU is not below the number of classes, or counts do not match.
pub fn forward_backward(
    loss: &CrossEntropy,
    logits: &Tensor,
    labels: &Integers<u32>,
    value: TensorMut,
    gradient: TensorMut,
    control: Option<&Control>,
) {
    let &[n, classes] = logits.dims() else { panic!("cross-entropy of {}", logits.shape()) };
    assert_eq!(labels.len(), n, "labels for {n} rows of logits");
    assert!(loss.form == Form::Softmax, "one label for decisions that are several");
    assert!([0, classes].contains(&loss.class_weights.len()), "class weights for {classes} classes");
    assert!(value.shape().len() == 1 && gradient.shape() == logits.shape(), "results of a cross-entropy");
    if let Implementation::Gpu(gpu) = logits.implementation() {
        return gpu::forward_backward(gpu, loss, logits, labels, value, gradient, control);
    }
    let labels = labels.data();
    assert!(labels.iter().all(|&label| (label as usize) < classes), "a label beyond {classes} classes");
    match logits.implementation() {
        Implementation::Reference => {
            let mean = reference::forward_backward::<f64>(loss, logits.data(), labels, gradient.data());
            value.fill(mean);
        }
        _ => {
            let mean = reference::forward_backward::<f32>(loss, logits.data(), labels, gradient.data());
            value.fill(mean);
        }
    }
}

impl Tape {
    pub fn softmax_cross_entropy(
        &mut self,
        loss: &CrossEntropy,
        logits: &Var,
        labels: &Integers<u32>,
        control: Option<&Control>,
    ) -> Var {
        let z = logits.value();
        self.loss(logits, |value, gradient| forward_backward(loss, z, labels, value, gradient, control))
    }

    /// A loss, a single number, that is written together with its gradient by the logits.
    pub(in crate::ops) fn loss(&mut self, logits: &Var, write: impl FnOnce(TensorMut, TensorMut)) -> Var {
        let z = logits.value();
        let mut value = Tensor::uninit([1], z.dtype(), z.device());
        let mut gradient = Tensor::uninit(z.shape(), z.dtype(), z.device());
        write(value.view_mut(), gradient.view_mut());
        let id = logits.id();
        self.record(value, &[id], || {
            // The loss is where backward starts, so its own gradient is 1.
            Box::new(move |_, gradients| {
                gradients.give(id.expect("recorded because its input wants a gradient"), gradient);
            })
        })
    }
}
