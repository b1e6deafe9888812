//! Training: one loop for everything that learns, and the workflows made of it.
//!
//! | what learns | trunk | head | merge weights |
//! |---|---|---|---|
//! | [`Subject::Everything`]: pre-training, fine-tuning | yes | yes | |
//! | [`Subject::Head`]: a linear probe | | yes | |
//! | [`Subject::Merge`]: the probe of a merge | blended from frozen sources | yes | yes |
//! | [`Subject::EverythingAndMerge`]: fine-tuning, merge weights [learned on](Change) | yes, and the change of the blend | yes | yes |
//! | [`Subject::Distilled`]: fine-tuning, features kept near [those of others](Teachers) | yes | yes | |
//!
//! | | batch norms normalise by | running statistics |
//! |---|---|---|
//! | [`Subject::Everything`], [`Subject::EverythingAndMerge`], [`Subject::Distilled`] | the batch | follow the batches, as in PyTorch's training mode |
//! | [`Subject::Head`] | the running statistics | stay: features that are frozen depend on the image alone |
//! | [`Subject::Merge`] | the batch, since no statistics belong to a blend that moves | re-estimated before each validation |
//!
//! So what is measured on the validation split after an epoch is what the network that is written computes.

mod ahead;
mod align;
mod average;
mod batches;
mod change;
mod compare;
mod distill;
mod evaluate;
mod fisher;
mod fit;
mod learn;
mod optimizer;
mod parts;
mod place;
mod rates;
mod recorder;
mod replays;
mod resume;
mod selection;
mod step;
mod training;
mod validation;
mod watch;

use serde::{Deserialize, Serialize};

pub use align::{align, correlations};
pub use average::Average;
pub use batches::{Batch, Batches, Loaded};
pub use change::Change;
pub use compare::{Kind, LearnOn, LearnRecipe, Outcome, Protocol, Recipe, Seeded, Stage, Tuning, check_sources};
pub use distill::Teachers;
pub use evaluate::{Evaluator, evaluate, reestimate_statistics, scores};
pub use fit::TargetImages;
pub use learn::{
    Anchor, AnchorChoice, LearnOptions, Learning, Probe, Tried, choose_anchor, learn, learn_best, learn_for, probe,
};
pub(crate) use optimizer::BETAS;
pub use optimizer::{DecayOf, Optimizer, OptimizerKind, Schedule};
pub use place::Place;
pub use rates::{RateCurve, RatePoint, RateSearch, find_rate};
pub use recorder::Recorder;
pub use resume::{ResumeFile, Settings};
use selection::has_lost_patience;
pub use selection::{SelectBy, best_epoch, best_epoch_by};
pub use step::{MergeState, Optimizers, StepGradients, Subject, Turn, apply, gradients, step};
pub use training::{train, train_resumable};

use crate::checkpoint::Phase;
use crate::data::{Augmentation, Dataset, Loader, LoaderOptions, Normalisation, SplitName, Task};
use crate::error::{Error, Result};
use crate::nn::{Model, Network};
use crate::tensor::Device;

/// The names that a header gives the phases of training; see [`Phase`].
pub const TRAIN: &str = "train";
pub const FINE_TUNE: &str = "fine-tune";
pub const LINEAR_PROBE: &str = "linear probe";
pub const MERGE_WEIGHTS: &str = "merge weights";
pub const FINE_TUNE_MERGE: &str = "fine-tune, merge weights learned on";

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
        let options = LoaderOptions {
            network_channels,
            normalisation: self.normalisation.clone(),
            batch_size,
            shuffle: false,
            augmentation: None,
            seed: 0,
            balance: None,
            shares: None,
        };
        self.loader(split, options)
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

    /// Bytes of the machine's memory that a step of fine-tuning takes at least.
    pub fn memory_of_step(&self, network: &Network, images: usize) -> u128 {
        // The gradient, one moment at least, and the best epoch, beside the trunk itself.
        self.memory(network, images, true, 4 * network.trunk_len).unwrap_or(0)
    }

    /// `None` where activations lie elsewhere.
    fn memory(&self, network: &Network, images: usize, is_step: bool, parameters: usize) -> Option<u128> {
        let stages = network.activations(self.data.height, self.data.width)?;
        let held = if is_step { stages.iter().sum() } else { stages.iter().copied().max().unwrap_or(0) };
        let needed = size_of::<f32>() as u128 * (held as u128 * images as u128 + parameters as u128);
        (self.place.device == Device::Cpu).then_some(needed)
    }

    /// Refuses a batch whose activations do not fit into the machine's memory, where they lie there: all of a step's are
    /// kept until its backward, elsewhere a stage needs its input and its output. `parameters` are numbers that are made
    /// besides. It is the least that is needed; a batch that passes may still be too large.
    fn check_memory(&self, network: &Network, images: usize, is_step: bool, parameters: usize) -> Result<()> {
        let Some(needed) = self.memory(network, images, is_step, parameters) else { return Ok(()) };
        let mut free = crate::memory::available();
        if needed > free.into() {
            // What an earlier run used may wait to be used again, in other sizes.
            crate::tensor::release();
            free = crate::memory::available();
        }
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

    /// Batches of the training split as they are learned from.
    fn shuffled(&self, network_channels: usize, options: &TrainOptions) -> Loader<'a> {
        let (task, classes) = (self.data.task, self.data.classes);
        let mixes = options.augmentation.is_some_and(|augmentation| augmentation.mixes());
        let options = LoaderOptions {
            network_channels,
            normalisation: self.normalisation.clone(),
            batch_size: options.batch_size,
            shuffle: true,
            augmentation: options.augmentation,
            seed: options.seed,
            balance: options.balance_sampling.then_some((task, classes)),
            shares: (mixes || task == Task::MultiLabel || self.data.train.is_soft()).then_some((task, classes)),
        };
        self.loader(SplitName::Train, options)
    }

    fn loader(&self, split: SplitName, options: LoaderOptions) -> Loader<'a> {
        let Dataset { height, width, channels, .. } = *self.data;
        Loader::new(self.data.split(split), height, width, channels, options)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    pub epochs: usize,
    /// As many epochs as have so many steps, rounded up, instead of `epochs`; see [`TrainOptions::for_images`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    pub batch_size: usize,
    /// Batches whose gradients make one update: their mean by images. Batch norms see one batch at a time.
    #[serde(skip_serializing_if = "is_one")]
    pub accumulate: usize,
    pub learning_rate: f64,
    /// Learning rate of the head, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_learning_rate: Option<f64>,
    /// D: the i-th stage of the trunk, counted from the head, learns at Dⁱ times its rate.
    #[serde(skip_serializing_if = "is_unity")]
    pub layer_decay: f64,
    /// Learning rate of merge weights, where there are some.
    pub merge_learning_rate: f64,
    /// λ: the loss has a term λ/2·‖w − w₀‖² of merge weights w that start as w₀.
    pub regularise: f64,
    /// λ of L2-SP: the loss has a term λ/2·‖T − T₀‖² of a trunk T that starts as T₀.
    pub l2_sp: f64,
    /// λ of distillation, where there are [`Teachers`].
    #[serde(skip_serializing_if = "is_zero")]
    pub distill: f64,
    /// d: what is measured and kept after an epoch is not the network N but its [`Average`] A ← d·A + (1 − d)·N; 0 is N itself.
    pub ema: f64,
    pub optimizer: OptimizerKind,
    /// Nesterov's momentum, with SGD.
    #[serde(skip_serializing_if = "is_false")]
    pub nesterov: bool,
    /// What the L2 norm of all gradients together is clipped to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    pub schedule: Schedule,
    /// Epochs without a better one that a plateau may have before rates fall; with [`Schedule::Plateau`] alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plateau_patience: Option<usize>,
    /// Epochs in which the learning rates rise to their values, before the schedule begins; fewer than all.
    #[serde(skip_serializing_if = "is_none")]
    pub warmup: usize,
    pub weight_decay: f64,
    #[serde(skip_serializing_if = "DecayOf::is_all")]
    pub decay_of: DecayOf,
    pub label_smoothing: f64,
    /// Weighs each class by N / (classes · its images).
    pub balance_classes: bool,
    /// Draws each image's class first, so that all classes come equally often.
    #[serde(skip_serializing_if = "is_off")]
    pub balance_sampling: bool,
    pub augmentation: Option<Augmentation>,
    /// Stops when the figure of the validation split has not improved for so many epochs.
    pub patience: Option<usize>,
    /// That figure, by which the best epoch is kept too, and plateaus are seen.
    #[serde(skip_serializing_if = "SelectBy::is_usual")]
    pub select_by: SelectBy,
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            epochs: 10,
            steps: None,
            batch_size: 128,
            accumulate: 1,
            learning_rate: 1e-3,
            head_learning_rate: None,
            layer_decay: 1.0,
            merge_learning_rate: 1e-2,
            regularise: 0.0,
            l2_sp: 0.0,
            distill: 0.0,
            ema: 0.0,
            optimizer: OptimizerKind::AdamW,
            nesterov: false,
            clip_norm: None,
            schedule: Schedule::Cosine,
            plateau_patience: None,
            warmup: 0,
            weight_decay: 1e-4,
            decay_of: DecayOf::All,
            label_smoothing: 0.0,
            balance_classes: false,
            balance_sampling: false,
            augmentation: None,
            patience: None,
            select_by: SelectBy::MacroF1,
            seed: 0,
        }
    }
}

impl TrainOptions {
    /// Refuses what cannot work before anything is read or computed.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String, hint: &str| Err(Error::usage(message, hint));
        if self.epochs == 0 || self.steps == Some(0) {
            let what = if self.steps == Some(0) { "steps" } else { "epochs" };
            return refuse(format!("0 {what}"), "give at least 1");
        }
        if self.warmup > 0 && self.steps.is_none() && self.warmup >= self.epochs {
            let message = format!("--warmup {} of {} epochs", self.warmup, self.epochs);
            return refuse(message, "leave an epoch behind it");
        }
        if !(0.0..1.0).contains(&self.ema) {
            return refuse(
                format!("--ema {}", self.ema),
                "give the share of the average that an epoch leaves, below 1: 0.8",
            );
        }
        if self.patience == Some(0) {
            return refuse("a patience of 0 epochs".into(), "give at least 1, or leave it out");
        }
        if self.plateau_patience.is_some() && self.schedule != Schedule::Plateau {
            return refuse("--plateau-patience without --schedule plateau".into(), "give both, or neither");
        }
        if self.batch_size == 0 {
            return refuse("a batch size of 0".into(), "give at least 1; 128 is usual");
        }
        if self.accumulate == 0 {
            return refuse("--accumulate 0".into(), "give at least 1, a batch for each update");
        }
        let of_head = self.head_learning_rate.unwrap_or(self.learning_rate);
        for (name, rate) in [
            ("learning-rate", self.learning_rate),
            ("head-learning-rate", of_head),
            ("merge-learning-rate", self.merge_learning_rate),
        ] {
            if !rate.is_finite() || rate < 0.0 {
                return refuse(format!("--{name} {rate}"), "give a positive number, such as 1e-3");
            }
        }
        if !self.distill.is_finite() || self.distill < 0.0 {
            return refuse(format!("--distill {}", self.distill), "give 0 or a positive number, such as 1");
        }
        self.check_pulls()?;
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            return refuse(format!("--layer-decay {}", self.layer_decay), "give a number above 0 up to 1, such as 0.7");
        }
        if let Some(limit) = self.clip_norm.filter(|limit| !(limit.is_finite() && *limit > 0.0)) {
            return refuse(format!("--clip-norm {limit}"), "give a positive number, such as 1");
        }
        if self.nesterov && self.optimizer != OptimizerKind::Sgd {
            return refuse("--nesterov without --optimizer sgd".into(), "give both, or neither");
        }
        if !self.weight_decay.is_finite() || self.weight_decay < 0.0 {
            return refuse(format!("--weight-decay {}", self.weight_decay), "give 0 or a small positive number");
        }
        self.augmentation.map_or(Ok(()), |augmentation| augmentation.check())?;
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
    /// The same with steps counted in epochs of so many training images.
    pub fn for_images(&self, images: usize) -> TrainOptions {
        let of_epoch = images.div_ceil(self.batch_size.max(1)).div_ceil(self.accumulate.max(1)).max(1);
        let epochs = self.steps.map_or(self.epochs, |steps| steps.div_ceil(of_epoch));
        TrainOptions { epochs, steps: None, ..self.clone() }
    }

    /// Epochs that a plateau may have before rates fall: PyTorch's 10 unless told otherwise.
    pub(crate) fn plateau_patience(&self) -> usize {
        self.plateau_patience.unwrap_or(10)
    }

    /// Refuses pulls beyond where parameters started.
    fn check_pulls(&self) -> Result<()> {
        self.check_pull(
            ("regularise", self.regularise),
            ("merge-learning-rate", self.merge_learning_rate),
            "merge weights",
        )?;
        self.check_pull(("l2-sp", self.l2_sp), ("learning-rate", self.learning_rate), "the trunk")
    }

    fn check_pull(&self, (name, strength): (&str, f64), (of_rate, rate): (&str, f64), what: &str) -> Result<()> {
        if !strength.is_finite() || strength < 0.0 {
            return Err(Error::usage(format!("--{name} {strength}"), "give 0 or a positive number, such as 1"));
        }
        let per_strength = rate * self.optimizer.pulls();
        // By more than rounding.
        if strength * per_strength <= 1.0 + 1e-9 {
            return Ok(());
        }
        let message = format!("--{name} {strength} with --{of_rate} {rate} pulls {what} beyond where learning starts");
        let hint = format!("give {} or less, or a smaller --{of_rate}", (1e3 / per_strength + 1e-6).floor() / 1e3);
        Err(Error::usage(message, hint))
    }

    /// The phase of a run with these options, as a header tells it. A merge alone has merge weights to learn.
    pub fn phase(&self, kind: &str, history: &[EpochRecord]) -> Phase {
        Phase {
            kind: kind.to_string(),
            epoch: best_epoch_by(self.select_by, history).map_or(0, |record| record.epoch),
            epochs_done: history.len(),
            epochs: self.epochs,
            stopped_early: history.len() < self.epochs
                && self.patience.is_some_and(|patience| has_lost_patience(self.select_by, history, patience)),
            select_by: (!self.select_by.is_usual()).then(|| serde_name(&self.select_by)),
            learning_rate: self.learning_rate,
            head_learning_rate: self.head_learning_rate,
            layer_decay: (self.layer_decay != 1.0).then_some(self.layer_decay),
            merge_learning_rate: [MERGE_WEIGHTS, FINE_TUNE_MERGE].contains(&kind).then_some(self.merge_learning_rate),
            schedule: serde_name(&self.schedule),
            plateau_patience: (self.schedule == Schedule::Plateau).then(|| self.plateau_patience()),
            warmup: (self.warmup > 0).then_some(self.warmup),
            optimizer: serde_name(&self.optimizer),
            nesterov: self.nesterov,
            clip_norm: self.clip_norm,
            batch_size: self.batch_size,
            accumulate: (self.accumulate > 1).then_some(self.accumulate),
            weight_decay: self.weight_decay,
            decay_of: (self.decay_of != DecayOf::All).then(|| serde_name(&self.decay_of)),
            label_smoothing: self.label_smoothing,
            l2_sp: (self.l2_sp != 0.0).then_some(self.l2_sp),
            distill: (self.distill != 0.0).then_some(self.distill),
            ema: (self.ema != 0.0).then_some(self.ema),
            balances_classes: self.balance_classes,
            balances_sampling: self.balance_sampling,
            flip: self.augmentation.is_some_and(|augmentation| augmentation.flip),
            shift: self.augmentation.map_or(0, |augmentation| augmentation.shift),
            augmentation: self.augmentation.filter(|augmentation| !augmentation.is_placement()),
            seed: self.seed,
        }
    }
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

fn is_unity(number: &f64) -> bool {
    *number == 1.0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_off(option: &bool) -> bool {
    !option
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// The name under which a variant stands in JSON.
fn serde_name(variant: &impl Serialize) -> String {
    let name = serde_json::to_value(variant).expect("plain data is JSON");
    name.as_str().expect("a variant without contents").to_string()
}

/// The record of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean over the epoch's batches.
    pub train_loss: f64,
    /// Of its last update; where the head or merge weights have others, these are multiplied alike.
    pub learning_rate: f64,
    /// On the validation split; `None` where it is empty.
    pub val_accuracy: Option<f64>,
    pub val_macro_f1: Option<f64>,
    pub val_balanced_accuracy: Option<f64>,
    /// Missing too where all its images are of one class.
    pub val_auc: Option<f64>,
    /// The mean of −log p of the label, neither smoothed nor weighed.
    pub val_loss: Option<f64>,
    pub seconds: f64,
}

/// An observer of what happens during training, which shows or saves it.
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

    /// The file of the last good checkpoint, if one has been written.
    fn last_checkpoint(&self) -> Option<std::path::PathBuf> {
        None
    }
}

/// Shows and saves nothing.
pub struct Silent;

impl Observer for Silent {}
