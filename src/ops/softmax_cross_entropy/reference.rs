//! The definition of softmax with cross-entropy.

use super::CrossEntropy;
use crate::tensor::Element;

/// Returns the loss and writes the gradient of `logits`, N×K.
pub fn forward_backward<T: Element>(loss: &CrossEntropy, logits: &[T], labels: &[u32], gradient: &mut [T]) -> f64 {
    let classes = logits.len() / labels.len();
    let weight = |class: usize| loss.class_weights.get(class).copied().unwrap_or(1.0);
    let smoothing = loss.label_smoothing / classes as f64;
    let smoothed: f64 = (0..classes).map(|class| smoothing * weight(class)).sum();
    let norm: f64 = labels.iter().map(|&label| weight(label as usize)).sum();

    let mut total = 0.0;
    for ((row, gradient), &label) in logits.chunks(classes).zip(gradient.chunks_mut(classes)).zip(labels) {
        let label = label as usize;
        let largest = row.iter().map(|z| z.to_f64()).fold(f64::NEG_INFINITY, f64::max);
        let log_sum = largest + row.iter().map(|z| (z.to_f64() - largest).exp()).sum::<f64>().ln();
        let sharp = (1.0 - loss.label_smoothing) * weight(label);
        for (class, (z, gradient)) in row.iter().zip(gradient).enumerate() {
            let log_p = z.to_f64() - log_sum;
            let target = smoothing * weight(class) + if class == label { sharp } else { 0.0 };
            total -= target * log_p;
            *gradient = T::from_f64((log_p.exp() * (sharp + smoothed) - target) / norm);
        }
    }
    total / norm
}
