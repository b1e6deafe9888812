//! The settings that identify a run: whatever changes its result, by the name of the option that sets it.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Compute;
use crate::checkpoint::Provenance;
use crate::error::Result;
use crate::hex::hex;
use crate::nn::{Architecture, Network};
use crate::tensor::Device;
use crate::train::{DecayOf, Place, Schedule, SelectBy, Settings, TrainOptions};

/// The settings that all training has, and `more`, an object.
pub(super) fn settings(
    network: &(Architecture, &Network),
    options: &TrainOptions,
    (compute, place): (&Compute, Place),
    provenance: &Provenance,
    more: Value,
) -> Result<Settings> {
    let normalisation = provenance.normalisation.as_ref();
    let tiles = if place.device == Device::Cpu { None } else { compute.tiles_hash()? };
    let common = json!({
        "the network": network_hash(network),
        "the content of --data": provenance.data.as_ref().map(|data| &data.sha256),
        "--mean": normalisation.map(|normalisation| &normalisation.mean),
        "--std": normalisation.map(|normalisation| &normalisation.std),
        "--epochs": options.epochs,
        "--batch-size": options.batch_size,
        "--accumulate": (options.accumulate > 1).then_some(options.accumulate),
        "--learning-rate": options.learning_rate,
        "--head-learning-rate": options.head_learning_rate,
        "--layer-decay": (options.layer_decay != 1.0).then_some(options.layer_decay),
        "--schedule": options.schedule,
        "--plateau-patience": (options.schedule == Schedule::Plateau).then(|| options.plateau_patience()),
        "--warmup": (options.warmup > 0).then_some(options.warmup),
        "--optimizer": options.optimizer,
        "--nesterov": options.nesterov.then_some(true),
        "--clip-norm": options.clip_norm,
        "--weight-decay": options.weight_decay,
        "--decay-of": (options.decay_of != DecayOf::All).then_some(options.decay_of),
        "--label-smoothing": options.label_smoothing,
        "--class-weights balanced": options.balance_classes,
        "--sampling balanced": options.balance_sampling.then_some(true),
        "--flip": options.augmentation.is_some_and(|augmentation| augmentation.flip),
        "--shift": options.augmentation.map_or(0, |augmentation| augmentation.shift),
        "augmentation": options.augmentation.filter(|augmentation| !augmentation.is_placement()),
        "--patience": options.patience,
        "--select-by": (options.select_by != SelectBy::MacroF1).then_some(options.select_by),
        "--seed": options.seed,
        "--precision": compute.precision,
        "--no-fusion": !place.is_fused,
        "--device": place.device.to_string().split(':').next(),
        "the tiles of MEDMERGE_TILES": tiles,
    });
    let object = |value: Value| match value {
        Value::Object(entries) => entries,
        other => panic!("{other} is no object"),
    };
    Ok(object(common).into_iter().chain(object(more)).collect())
}

/// SHA-256 of an architecture and of how its parameters lie in memory.
fn network_hash((architecture, network): &(Architecture, &Network)) -> String {
    let layout: Vec<_> = network.parameters.iter().map(|p| (&p.name, p.shape.dims(), p.offset)).collect();
    hex(Sha256::digest(json!([architecture, layout]).to_string()))
}
