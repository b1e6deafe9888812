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

pub mod reference;

use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Tensor};

/// What a loss fixes for all its batches.
#[derive(Clone, Debug, Default)]
pub struct CrossEntropy {
    /// One weight per class; empty for 1 each.
    pub class_weights: Vec<f64>,
    /// Between 0 (none) and 1.
    pub label_smoothing: f64,
}

/// The mean loss, a single number, and its gradient with respect to the logits.
///
/// # Panics
/// If a label is not below the number of classes, or counts do not match.
pub fn forward_backward(loss: &CrossEntropy, logits: &Tensor, labels: &[u32]) -> (Tensor, Tensor) {
    let &[n, classes] = logits.dims() else { panic!("cross-entropy of {}", logits.shape()) };
    assert_eq!(labels.len(), n, "labels for {n} rows of logits");
    assert!(labels.iter().all(|&label| (label as usize) < classes), "a label beyond {classes} classes");
    assert!([0, classes].contains(&loss.class_weights.len()), "class weights for {classes} classes");
    let mut gradient = Tensor::uninit(logits.shape(), logits.dtype(), logits.device());
    let value = match logits.implementation() {
        Implementation::Cpu => {
            Tensor::scalar(
                reference::forward_backward::<f32>(loss, logits.data(), labels, gradient.view_mut().data()) as f32
            )
        }
        Implementation::Reference => {
            Tensor::scalar(reference::forward_backward::<f64>(loss, logits.data(), labels, gradient.view_mut().data()))
        }
        Implementation::Gpu(_) => todo!(),
    };
    (value, gradient)
}

impl Tape {
    pub fn softmax_cross_entropy(&mut self, loss: &CrossEntropy, logits: &Var, labels: &[u32]) -> Var {
        let (value, gradient) = forward_backward(loss, logits.value(), labels);
        let id = logits.id();
        self.record(value, &[id], || {
            // The loss is where backward starts, with a seed of 1.
            Box::new(move |seed, gradients| {
                assert_eq!(seed.to_f64(), [1.0], "cross-entropy is a final loss");
                gradients.give(id.expect("recorded because its input wants a gradient"), gradient);
            })
        })
    }
}
