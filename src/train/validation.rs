//! A look at the validation split after an epoch.

use super::{Evaluator, Target};
use crate::data::{SplitName, Task};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::nn::Model;

/// What an epoch's network is worth on the validation split.
pub(super) struct Validation {
    pub metrics: Metrics,
    /// The mean of −log p of the label, or of each of several: neither smoothed nor weighed.
    pub loss: f64,
}

/// `None` where the split is empty.
pub(super) fn validate(
    evaluator: &mut Evaluator,
    model: &Model,
    target: Target,
    batch_size: usize,
) -> Result<Option<Validation>> {
    if target.data.val.is_empty() {
        return Ok(None);
    }
    let (classes, labels) = (model.network.classes, &target.data.val.labels);
    let scores = evaluator.scores(model, target, SplitName::Val, batch_size, |_| {})?;
    let task = target.data.task;
    let loss = match task {
        Task::MultiClass => mean_loss(&scores, labels, classes),
        Task::MultiLabel => mean_loss_of_labels(&scores, labels, classes),
    };
    Ok(Some(Validation { metrics: Metrics::of(task, &scores, labels, classes), loss }))
}

/// log Σ exp(s − max s) − (s of the label − max s), in f64, over images in their order.
fn mean_loss(scores: &[f32], labels: &[u32], classes: usize) -> f64 {
    let of_image = |(scores, &label): (&[f32], &u32)| {
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let above = |score: f32| f64::from(score) - f64::from(most);
        scores.iter().map(|&score| above(score).exp()).sum::<f64>().ln() - above(scores[label as usize])
    };
    scores.chunks_exact(classes).zip(labels).map(of_image).sum::<f64>() / labels.len() as f64
}

/// The mean of log(1 + exp(−s)) of labels that an image has, and of log(1 + exp(s)) of others.
fn mean_loss_of_labels(scores: &[f32], labels: &[u32], classes: usize) -> f64 {
    let of_image = |(scores, &label): (&[f32], &u32)| -> f64 {
        let of_label = |(class, &score): (usize, &f32)| {
            let against = f64::from(if Task::MultiLabel.has(label, class) { -score } else { score });
            against.max(0.0) + (-against.abs()).exp().ln_1p()
        };
        scores.iter().enumerate().map(of_label).sum()
    };
    scores.chunks_exact(classes).zip(labels).map(of_image).sum::<f64>() / scores.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities of 1/4 and 3/4, and scores whose exponentials no number holds.
    #[test]
    fn the_loss_is_that_of_the_definition() {
        let scores = [0.0, 3f32.ln(), 1000.0, 1000.0];
        let expected = (4f64.ln() + 2f64.ln()) / 2.0;
        assert!((mean_loss(&scores, &[0, 1], 2) - expected).abs() < 1e-7);
        let expected = ((4f64 / 3.0).ln() + 2f64.ln()) / 2.0;
        assert!((mean_loss(&scores, &[1, 0], 2) - expected).abs() < 1e-7);
        // Probabilities of 1/2 and 3/4, then of 1 twice.
        let expected = (2f64.ln() + (4f64 / 3.0).ln() + 1000.0) / 4.0;
        assert!((mean_loss_of_labels(&scores, &[0b10, 0b01], 2) - expected).abs() < 1e-7);
    }
}
