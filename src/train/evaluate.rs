//! The scores that a network gives a split, and the running statistics it gives them with.

use std::collections::HashMap;

use super::batches::{Batches, Loaded};
use super::replays::Replays;
use super::{Place, Target};
use crate::data::SplitName;
use crate::error::{Error, Result};
use crate::gpu::Address;
use crate::metrics::Metrics;
use crate::nn::{Mode, Model};
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Device, Tensor};

/// Scores splits, one after the other, where a job computes: models of one network, images of one size. On a GPU it replays
/// what it recorded.
pub struct Evaluator {
    place: Place,
    replays: Option<Replays>,
    /// Where logits go, N × classes, by the number of images.
    logits: HashMap<usize, Tensor>,
}

/// A network and where its logits go.
struct Scoring<'a> {
    model: &'a Model,
    logits: &'a mut Tensor,
}

impl Scoring<'_> {
    fn addresses(&self) -> Vec<Address> {
        let Model { trunk, head, statistics, .. } = self.model;
        [trunk, head, statistics, &*self.logits].map(Tensor::address).to_vec()
    }
}

impl Evaluator {
    pub fn new(place: Place) -> Evaluator {
        let replays = match place.device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(Replays::new(gpu)),
        };
        Evaluator { place, replays, logits: HashMap::new() }
    }

    /// Launches everything kernel by kernel: the same bits, for comparison.
    pub fn without_graphs(self) -> Evaluator {
        Evaluator { replays: self.replays.map(Replays::without_graphs), ..self }
    }

    /// Logits of a split, images × classes, in file order; an error if one is not finite. `watch` is told after each batch
    /// how many images are done.
    pub fn scores(
        &mut self,
        model: &Model,
        target: Target,
        split: SplitName,
        batch_size: usize,
        mut watch: impl FnMut(usize),
    ) -> Result<Vec<f32>> {
        let model = self.place.bring(model);
        let loader = target.in_order(split, model.network.input_channels, batch_size);
        target.check_memory(&model.network, loader.largest_batch(), false, 0)?;
        let batches = Batches::new(loader, self.place);
        let mut scores = Vec::new();
        let mut done = 0;
        batches.ahead(0, |epoch| {
            for loaded in epoch {
                let loaded = loaded?;
                done += loaded.images();
                scores.extend(self.batch(&model, &batches, loaded)?);
                self.place.device.check()?;
                watch(done);
            }
            Ok::<(), Error>(())
        })?;
        check_scores(&scores, model.network.classes, split)?;
        Ok(scores)
    }

    pub fn evaluate(&mut self, model: &Model, target: Target, split: SplitName, batch_size: usize) -> Result<Metrics> {
        let scores = self.scores(model, target, split, batch_size, |_| {})?;
        let data = target.data;
        Ok(Metrics::of(data.task, &scores, &data.split(split).labels, model.network.classes))
    }

    /// Logits of a batch.
    fn batch(&mut self, model: &Model, batches: &Batches, loaded: Loaded) -> Result<Vec<f32>> {
        let Some(replays) = &mut self.replays else {
            return Ok(model.logits(batches.place(loaded).activations()).to_vec());
        };
        let shape = [loaded.images(), model.network.classes];
        // Before anything is traced: it is no part of the work's own memory.
        let logits =
            self.logits.entry(shape[0]).or_insert_with(|| Tensor::uninit(shape, DType::F32, self.place.device));
        let mut state = Scoring { model, logits };
        replays.run(batches, loaded, &mut state, Scoring::addresses, |state, batch| {
            let logits = state.model.logits(batch.activations());
            state.logits.view_mut().copy_from(&logits);
        })?;
        Ok(logits.to_vec())
    }
}

fn check_scores(scores: &[f32], classes: usize, split: SplitName) -> Result<()> {
    let Some(at) = scores.iter().position(|score| !score.is_finite()) else { return Ok(()) };
    let (image, class) = (at / classes, at % classes);
    let message = format!("the score of class {class} for image {image} of the {split} split is {}", scores[at]);
    let hint = "the network's numbers are too large for its precision, or --std is too small for these images";
    Err(Error::NotFinite { message, hint: hint.into() })
}

/// Logits of a split, images × classes, in file order; an error if one is not finite. `watch` is told after each batch how
/// many images are done.
pub fn scores(
    model: &Model,
    target: Target,
    split: SplitName,
    batch_size: usize,
    watch: impl FnMut(usize),
) -> Result<Vec<f32>> {
    Evaluator::new(target.place).scores(model, target, split, batch_size, watch)
}

pub fn evaluate(model: &Model, target: Target, split: SplitName, batch_size: usize) -> Result<Metrics> {
    Evaluator::new(target.place).evaluate(model, target, split, batch_size)
}

/// Replaces the running statistics by their cumulative average over one pass through the training split, in file order
/// and without augmentation: what a blend needs, whose layers see what no source's layers saw.
pub fn reestimate_statistics(model: &mut Model, target: Target, batch_size: usize) -> Result<()> {
    let home = model.device();
    *model = target.place.bring(model);
    model.reset_statistics();
    let network = model.network.clone();
    let loader = target.in_order(SplitName::Train, network.input_channels, batch_size);
    target.check_memory(&network, loader.largest_batch(), false, 0)?;
    let batches_per_epoch = loader.batches_per_epoch();
    let batches = Batches::new(loader, target.place);
    for loaded in batches.epoch(0) {
        let loaded = loaded?;
        let images = loaded.images();
        // A last image on its own, where the smallest layer has one number for it, has no variance.
        if images == 1 && batches_per_epoch > 1 && target.is_degenerate(&network, 1) && batch_size > 1 {
            continue;
        }
        target.check_batch(&network, images)?;
        let x = batches.place(loaded).activations();
        let (trunk, head) = (Var::constant(model.trunk.clone()), Var::constant(model.head.clone()));
        let output = network.forward(&mut Tape::new(), &trunk, &head, &model.statistics, x, Mode::Training);
        drop((trunk, head));
        model.update_statistics(&output.statistics.expect("made in training mode"), None, None);
    }
    *model = model.to_device(home);
    Ok(target.place.device.check()?)
}
