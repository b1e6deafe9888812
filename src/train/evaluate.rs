//! What a network says about a split, and the running statistics it says it with.

use super::Target;
use crate::data::SplitName;
use crate::metrics::Metrics;
use crate::nn::{Mode, Model};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Logits of a split, images × classes, in file order. `watch` is told after each batch how many images are done.
pub fn scores(
    model: &Model,
    target: Target,
    split: SplitName,
    batch_size: usize,
    mut watch: impl FnMut(usize),
) -> Vec<f32> {
    let loader = target.in_order(split, model.network.input_channels, batch_size);
    let mut scores = Vec::new();
    let mut done = 0;
    for batch in loader.epoch(0) {
        scores.extend(model.logits(Tensor::from_vec(batch.images, batch.shape)).to_vec::<f32>());
        done += batch.labels.len();
        watch(done);
    }
    scores
}

pub fn evaluate(model: &Model, target: Target, split: SplitName, batch_size: usize) -> Metrics {
    let scores = scores(model, target, split, batch_size, |_| {});
    Metrics::compute(&scores, &target.data.split(split).labels, model.network.classes)
}

/// Replaces the running statistics by their cumulative average over one pass through the training split, in file order
/// and without augmentation: what a blend needs, whose layers see what no source's layers saw.
pub fn reestimate_statistics(model: &mut Model, target: Target, batch_size: usize) {
    model.reset_statistics();
    let network = model.network.clone();
    for batch in target.in_order(SplitName::Train, network.input_channels, batch_size).epoch(0) {
        let (trunk, head) = (Var::constant(model.trunk.clone()), Var::constant(model.head.clone()));
        let images = Tensor::from_vec(batch.images, batch.shape);
        let output = network.forward(&mut Tape::new(), &trunk, &head, &model.statistics, images, Mode::Training);
        model.update_statistics(&output.statistics, None, None);
    }
}
