//! Training: one loop for everything that learns, and the workflows made of it.
//!
//! | what learns | trunk | head | merge weights |
//! |---|---|---|---|
//! | [`Subject::Everything`]: pre-training, fine-tuning | yes | yes | |
//! | [`Subject::Head`]: a linear probe | | yes | |
//! | [`Subject::Merge`]: the probe of a merge | blended from frozen sources | yes | yes |
//!
//! | | batch norms normalise by | running statistics |
//! |---|---|---|
//! | [`Subject::Everything`] | the batch | follow the batches, as in PyTorch's training mode |
//! | [`Subject::Head`] | the running statistics | stay: features that are frozen depend on the image alone |
//! | [`Subject::Merge`] | the batch, since no statistics belong to a blend that moves | re-estimated before each validation |
//!
//! So what is measured on the validation split after an epoch is what the network that is written computes.

mod compare;
mod evaluate;
mod learn;
mod optimizer;
mod place;
mod recorder;
mod resume;
mod step;

use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use compare::{Baseline, Outcome, Protocol};
pub use evaluate::{evaluate, reestimate_statistics, scores};
pub use learn::{AnchorChoice, LearnOptions, Learning, choose_anchor, learn, probe};
pub(crate) use optimizer::BETAS;
pub use optimizer::{Optimizer, OptimizerKind, Schedule};
pub use place::Place;
pub use recorder::Recorder;
pub use resume::{ResumeFile, Settings};
pub use step::{MergeState, Optimizers, Subject, step};

use crate::checkpoint::Phase;
use crate::data::{Augmentation, Dataset, Loader, LoaderOptions, Normalisation, SplitName};
use crate::error::{Error, Result};
use crate::interrupt::{Listener, interrupted};
use crate::metrics::Metrics;
use crate::nn::{Mode, Model, Network};
use crate::ops::softmax_cross_entropy::CrossEntropy;
use crate::tensor::{Device, Tensor};

/// What a header calls the phases of training; see [`Phase`].
pub const TRAIN: &str = "train";
pub const FINE_TUNE: &str = "fine-tune";
pub const LINEAR_PROBE: &str = "linear probe";
pub const MERGE_WEIGHTS: &str = "merge weights";

/// A data set, how its images become numbers, and where.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub data: &'a Dataset,
    pub normalisation: &'a Normalisation,
    pub place: Place,
}

impl<'a> Target<'a> {
    /// Batches in file order, for evaluation.
    pub fn in_order(&self, split: SplitName, network_channels: usize, batch_size: usize) -> Loader<'a> {
        self.loader(split, network_channels, batch_size, false, None, 0)
    }

    /// Whether a batch of so many images leaves a batch norm one number per channel, whose variance is not defined.
    fn is_degenerate(&self, network: &Network, images: usize) -> bool {
        let pixels = network.pixels_of_smallest_norm(self.data.height, self.data.width);
        pixels.is_some_and(|pixels| pixels * images < 2)
    }

    /// Refuses such a batch, as PyTorch does.
    fn check_batch(&self, network: &Network, images: usize) -> Result<()> {
        if !self.is_degenerate(network, images) {
            return Ok(());
        }
        let (height, width) = (self.data.height, self.data.width);
        let message = format!(
            "a batch of one image of {height}×{width} pixels leaves a batch norm one value per channel, which has no variance"
        );
        Err(Error::usage(message, "use a larger --batch-size, or larger images"))
    }

    /// Refuses a batch whose activations do not fit into the machine's memory, where they lie there: all of a step's are
    /// kept until its backward, elsewhere a stage needs its input and its output. `parameters` are numbers that are made
    /// besides. It is the least that is needed; a batch that passes may still be too large.
    fn check_memory(&self, network: &Network, images: usize, is_step: bool, parameters: usize) -> Result<()> {
        let Some(stages) = network.activations(self.data.height, self.data.width) else { return Ok(()) };
        if self.place.device != Device::Cpu {
            return Ok(());
        }
        let kept = if is_step { stages.iter().sum() } else { stages.iter().copied().max().unwrap_or(0) };
        let needed = size_of::<f32>() as u128 * (kept as u128 * images as u128 + parameters as u128);
        let free = crate::memory::available();
        if needed <= free.into() {
            return Ok(());
        }
        let (height, width) = (self.data.height, self.data.width);
        let message = format!(
            "{images} images of {height}×{width} at a time take {} MiB of memory at least, of which {} MiB are free",
            needed >> 20,
            free >> 20
        );
        let hint = "use a smaller --batch-size, smaller images or a smaller network, or raise the limit (ulimit -v)";
        Err(Error::usage(message, hint))
    }

    fn loader(
        &self,
        split: SplitName,
        network_channels: usize,
        batch_size: usize,
        shuffle: bool,
        augmentation: Option<Augmentation>,
        seed: u64,
    ) -> Loader<'a> {
        let Dataset { height, width, channels, .. } = *self.data;
        let normalisation = self.normalisation.clone();
        let options = LoaderOptions { network_channels, normalisation, batch_size, shuffle, augmentation, seed };
        Loader::new(self.data.split(split), height, width, channels, options)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    pub epochs: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    /// Of merge weights, where there are some.
    pub merge_learning_rate: f64,
    pub optimizer: OptimizerKind,
    pub schedule: Schedule,
    pub weight_decay: f64,
    pub label_smoothing: f64,
    /// Weighs each class by N / (classes · its images).
    pub balance_classes: bool,
    pub augmentation: Option<Augmentation>,
    /// Stops when the validation split's macro F1 has not improved for so many epochs.
    pub patience: Option<usize>,
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            epochs: 10,
            batch_size: 128,
            learning_rate: 1e-3,
            merge_learning_rate: 1e-2,
            optimizer: OptimizerKind::AdamW,
            schedule: Schedule::Cosine,
            weight_decay: 1e-4,
            label_smoothing: 0.0,
            balance_classes: false,
            augmentation: None,
            patience: None,
            seed: 0,
        }
    }
}

impl TrainOptions {
    /// Refuses what cannot work before anything is read or computed.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String, hint: &str| Err(Error::usage(message, hint));
        if self.epochs == 0 {
            return refuse("0 epochs".into(), "give at least 1");
        }
        if self.patience == Some(0) {
            return refuse("a patience of 0 epochs".into(), "give at least 1, or leave it out");
        }
        if self.batch_size == 0 {
            return refuse("a batch size of 0".into(), "give at least 1; 128 is usual");
        }
        for (name, rate) in [("learning-rate", self.learning_rate), ("merge-learning-rate", self.merge_learning_rate)] {
            if !rate.is_finite() || rate < 0.0 {
                return refuse(format!("--{name} {rate}"), "give a positive number, such as 1e-3");
            }
        }
        if !self.weight_decay.is_finite() || self.weight_decay < 0.0 {
            return refuse(format!("--weight-decay {}", self.weight_decay), "give 0 or a small positive number");
        }
        if let Some(shift) = self.augmentation.as_ref().map(|a| a.shift).filter(|&shift| shift > crate::data::MAX_SIZE)
        {
            return refuse(format!("--shift {shift}"), "give a few pixels; images have at most 1024 a side");
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return refuse(
                format!("--label-smoothing {}", self.label_smoothing),
                "give a number from 0 up to, not including, 1",
            );
        }
        Ok(())
    }
}

impl TrainOptions {
    /// What a header says of a run with these options. A merge alone has merge weights to learn.
    pub fn phase(&self, kind: &str, history: &[EpochRecord]) -> Phase {
        Phase {
            kind: kind.to_string(),
            epoch: best_epoch(history).map_or(0, |record| record.epoch),
            epochs_done: history.len(),
            epochs: self.epochs,
            stopped_early: history.len() < self.epochs
                && self.patience.is_some_and(|patience| has_lost_patience(history, patience)),
            learning_rate: self.learning_rate,
            merge_learning_rate: (kind == MERGE_WEIGHTS).then_some(self.merge_learning_rate),
            schedule: serde_name(&self.schedule),
            optimizer: serde_name(&self.optimizer),
            batch_size: self.batch_size,
            weight_decay: self.weight_decay,
            label_smoothing: self.label_smoothing,
            balances_classes: self.balance_classes,
            flip: self.augmentation.is_some_and(|augmentation| augmentation.flip),
            shift: self.augmentation.map_or(0, |augmentation| augmentation.shift),
            seed: self.seed,
        }
    }
}

/// The name under which a variant stands in JSON.
fn serde_name(variant: &impl Serialize) -> String {
    let name = serde_json::to_value(variant).expect("plain data is JSON");
    name.as_str().expect("a variant without contents").to_string()
}

/// The epoch whose model is kept: the first of those with the best macro F1 on the validation split, or the last one where
/// that split is empty.
pub fn best_epoch(history: &[EpochRecord]) -> Option<&EpochRecord> {
    let is_better = |a: &EpochRecord, b: &EpochRecord| match (a.val_macro_f1, b.val_macro_f1) {
        (Some(a), Some(b)) => a > b,
        _ => true,
    };
    history.iter().reduce(|best, record| if is_better(record, best) { record } else { best })
}

/// Whether the last `patience` epochs brought no better macro F1.
fn has_lost_patience(history: &[EpochRecord], patience: usize) -> bool {
    best_epoch(history).is_some_and(|best| history.len() - best.epoch >= patience)
}

/// What one epoch came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean over the epoch's batches.
    pub train_loss: f64,
    /// On the validation split; `None` where it is empty.
    pub val_accuracy: Option<f64>,
    pub val_macro_f1: Option<f64>,
    pub seconds: f64,
}

/// What happens during training, for whoever shows or saves it.
pub trait Observer {
    /// Another run begins, of several in a row.
    fn phase(&mut self, _name: &str) {}

    /// The epochs that an earlier process has done.
    fn resumed(&mut self, _history: &[EpochRecord]) {}

    fn step(&mut self, _step: usize, _steps: usize, _loss: f32) {}

    /// Images that have been scored, of all there are.
    fn images(&mut self, _done: usize, _images: usize) {}

    /// Whether the run is to end before its next step, as after Ctrl-C: with [`Error::Interrupted`].
    fn stops(&mut self) -> bool {
        false
    }

    /// Something about the whole job that is worth a line for everybody: what a file leaves open, what was taken for it.
    fn remark(&mut self, _text: &str) {}

    /// Something about the run that is worth a line for everybody.
    fn note(&mut self, _text: &str) {}

    /// Something about the run that is worth a line for whoever wants details.
    fn detail(&mut self, _text: &str) {}

    /// After each epoch; `best`, on the CPU, is the model to keep if this epoch is the best so far.
    fn epoch(&mut self, _record: &EpochRecord, _best: Option<&Model>) -> Result<()> {
        Ok(())
    }

    /// The file to which a good checkpoint has been written, if any.
    fn kept(&self) -> Option<std::path::PathBuf> {
        None
    }
}

/// Shows and saves nothing.
pub struct Silent;

impl Observer for Silent {}

/// What is kept of the best epoch.
struct Best {
    macro_f1: f64,
    epoch: usize,
    model: Model,
    numbers: Option<Tensor>,
}

/// Trains `subject` on the training split and leaves in `model` (and in the subject's merge weights) the best epoch by
/// macro F1 on the validation split; the last one where that split is empty.
pub fn train(
    model: &mut Model,
    subject: &mut Subject,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<Vec<EpochRecord>> {
    train_resumable(model, subject, target, options, observer, None)
}

/// [`train`], keeping its state in a file after each epoch, and continuing from it where there is one. Merge weights are
/// not part of that state: a merge is not resumable.
pub fn train_resumable(
    model: &mut Model,
    subject: &mut Subject,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
    mut resume: Option<&mut ResumeFile>,
) -> Result<Vec<EpochRecord>> {
    options.check()?;
    let is_merge = matches!(subject, Subject::Merge(_));
    assert!(resume.is_none() || !is_merge, "a merge is not resumable");
    let _listener = Listener::new();
    let channels = model.network.input_channels;
    let loader =
        target.loader(SplitName::Train, channels, options.batch_size, true, options.augmentation, options.seed);
    let is_training = subject.mode() == Mode::Training;
    if is_training {
        target.check_batch(&model.network, loader.smallest_batch())?;
    }
    // The gradient, one moment at least, and the best epoch; or the blend and its gradient.
    let made = if is_training { if is_merge { 2 } else { 3 } } else { 0 };
    target.check_memory(&model.network, loader.largest_batch(), is_training, made * model.network.trunk_len)?;
    if options.patience.is_some() && target.data.val.is_empty() {
        observer.note("--patience has no effect, because the validation split is empty");
    }
    let loss = CrossEntropy {
        class_weights: if options.balance_classes { balanced_weights(target.data) } else { Vec::new() },
        label_smoothing: options.label_smoothing,
    };
    let steps = loader.batches_per_epoch() * options.epochs;
    let mut optimizers = subject.optimizers(options);
    let mut history = Vec::new();
    let mut best: Option<Best> = None;
    let mut done = 0;
    let mut control = None;
    if let Some(file) = &resume
        && let Some(before) = file.load(model, &mut optimizers)?
    {
        (done, history, best, control) = (before.steps, before.history, before.best, before.control);
        observer.resumed(&history);
    }
    // Its own buffers: a transferred trunk is still the source's.
    *model = target.place.host(&model.copy());
    let trunks = subject.move_to(target.place.device);
    let mut recorder = Recorder::new(target.place, optimizers, loss, control);
    for epoch in history.len()..options.epochs {
        if let Some(patience) = options.patience.filter(|&patience| has_lost_patience(&history, patience)) {
            observer.note(&format!(
                "stopped after epoch {epoch} of {}: no better macro F1 on the validation split for {patience} epochs",
                options.epochs
            ));
            break;
        }
        let start = Instant::now();
        let (mut sum, mut batches) = (0.0, 0);
        let first = done;
        let mut feed = recorder.feed(&loader, epoch);
        loop {
            if interrupted() || observer.stops() {
                return Err(Error::Interrupted { kept: observer.kept() });
            }
            let factor = options.schedule.factor(first + batches + recorder.pending(), steps);
            let is_over = !recorder.step(model, subject, &loader, &mut feed, factor)?;
            if recorder.pending() < recorder.patience() && !is_over {
                continue;
            }
            let finished = recorder.losses()?;
            for value in finished.losses {
                done += 1;
                batches += 1;
                if !value.is_finite() {
                    return Err(Error::Diverged { loss: value, step: done, epoch: epoch + 1, kept: observer.kept() });
                }
                sum += f64::from(value);
                observer.step(done, steps, value);
            }
            if finished.diverged {
                return Err(Error::Diverged { loss: f32::NAN, step: done, epoch: epoch + 1, kept: observer.kept() });
            }
            if is_over {
                break;
            }
        }
        recorder.describe().into_iter().for_each(|text| observer.detail(&text));
        let outcome = subject.outcome(model, target, options.batch_size)?;
        let outcome = outcome.as_ref().unwrap_or(model);
        let diverged = |loss| Error::Diverged { loss, step: done, epoch: epoch + 1, kept: observer.kept() };
        let validation = validate(outcome, target, options.batch_size).map_err(|error| match error {
            Error::NotFinite { .. } => diverged(f32::NAN),
            other => other,
        })?;
        let record = EpochRecord {
            epoch: epoch + 1,
            train_loss: sum / batches as f64,
            val_accuracy: validation.as_ref().map(|metrics| metrics.accuracy),
            val_macro_f1: validation.as_ref().map(|metrics| metrics.macro_f1),
            seconds: start.elapsed().as_secs_f64(),
        };
        // A step's loss tells of the parameters before it; what the last step did shows here.
        let is_broken = outcome.first_fault().is_some();
        // What is downloaded from a device that has failed is NaN too.
        target.place.device.check()?;
        if is_broken {
            return Err(diverged(f32::NAN));
        }
        let macro_f1 = record.val_macro_f1.unwrap_or(f64::INFINITY);
        // Without a validation split every epoch counts as an improvement.
        let improved = best.as_ref().is_none_or(|best| macro_f1 > best.macro_f1 || macro_f1 == f64::INFINITY);
        if improved {
            best = Some(Best { macro_f1, epoch, model: outcome.copy(), numbers: subject.numbers() });
        }
        let kept = improved.then(|| outcome.to_device(Device::Cpu));
        target.place.device.check()?;
        observer.epoch(&record, kept.as_ref())?;
        history.push(record);
        if let Some(file) = &mut resume {
            file.save(model, recorder.optimizers(), recorder.control(), best.as_ref(), &history, done)?;
        }
    }
    if let Some(best) = best {
        *model = best.model;
        subject.restore(best.numbers);
    }
    *model = model.to_device(Device::Cpu);
    subject.move_back(trunks);
    target.place.device.check()?;
    Ok(history)
}

fn validate(model: &Model, target: Target, batch_size: usize) -> Result<Option<Metrics>> {
    if target.data.val.is_empty() {
        return Ok(None);
    }
    evaluate(model, target, SplitName::Val, batch_size).map(Some)
}

/// N / (classes · images of the class).
fn balanced_weights(data: &Dataset) -> Vec<f64> {
    let counts = data.class_counts(SplitName::Train);
    let total: usize = counts.iter().sum();
    counts.iter().map(|&count| total as f64 / (counts.len() * count.max(1)) as f64).collect()
}
