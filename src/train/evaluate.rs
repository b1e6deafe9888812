//! What a network says about a split, and the running statistics it says it with.

use super::Target;
use crate::data::SplitName;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::nn::{Mode, Model};
use crate::tape::{Tape, Var};

/// Logits of a split, images × classes, in file order; an error if one is not finite. `watch` is told after each batch how
/// many images are done.
pub fn scores(
    model: &Model,
    target: Target,
    split: SplitName,
    batch_size: usize,
    mut watch: impl FnMut(usize),
) -> Result<Vec<f32>> {
    let model = target.place.host(model);
    let loader = target.in_order(split, model.network.input_channels, batch_size);
    target.check_memory(&model.network, loader.largest_batch(), false, 0)?;
    let mut scores = Vec::new();
    let mut done = 0;
    for (x, images) in target.place.batches(&loader, 0) {
        scores.extend(model.logits(x).to_vec::<f32>());
        target.place.device.check()?;
        done += images;
        watch(done);
    }
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(scores),
        Some(at) => {
            let (image, class) = (at / model.network.classes, at % model.network.classes);
            let message =
                format!("the score of class {class} for image {image} of the {split} split is {}", scores[at]);
            let hint = "the network's numbers are too large for its precision, or --std is too small for these images";
            Err(Error::NotFinite { message, hint: hint.into() })
        }
    }
}

pub fn evaluate(model: &Model, target: Target, split: SplitName, batch_size: usize) -> Result<Metrics> {
    let scores = scores(model, target, split, batch_size, |_| {})?;
    Ok(Metrics::compute(&scores, &target.data.split(split).labels, model.network.classes))
}

/// Replaces the running statistics by their cumulative average over one pass through the training split, in file order
/// and without augmentation: what a blend needs, whose layers see what no source's layers saw.
pub fn reestimate_statistics(model: &mut Model, target: Target, batch_size: usize) -> Result<()> {
    let home = model.device();
    *model = target.place.host(model);
    model.reset_statistics();
    let network = model.network.clone();
    let loader = target.in_order(SplitName::Train, network.input_channels, batch_size);
    target.check_memory(&network, loader.largest_batch(), false, 0)?;
    for (x, images) in target.place.batches(&loader, 0) {
        // A last image on its own, where the smallest layer has one number for it, has no variance.
        if images == 1 && loader.batches_per_epoch() > 1 && target.is_degenerate(&network, 1) && batch_size > 1 {
            continue;
        }
        target.check_batch(&network, images)?;
        let (trunk, head) = (Var::constant(model.trunk.clone()), Var::constant(model.head.clone()));
        let output = network.forward(&mut Tape::new(), &trunk, &head, &model.statistics, x, Mode::Training);
        drop((trunk, head));
        model.update_statistics(&output.statistics.expect("made in training mode"), None, None);
    }
    *model = model.to_device(home);
    Ok(target.place.device.check()?)
}
