//! The loop: epochs of steps, each followed by a look at the validation split.

use std::ops::ControlFlow;
use std::time::Instant;

use super::ahead::compile_ahead;
use super::average::Average;
use super::batches::Batches;
use super::evaluate::Evaluator;
use super::recorder::Recorder;
use super::resume::Progress;
use super::selection::{Selection, falls, has_lost_patience};
use super::validation::validate;
use super::{EpochRecord, Observer, ResumeFile, Schedule, SelectBy, Subject, Target, TrainOptions, Turn};
use crate::data::{Dataset, SplitName, Task};
use crate::error::{Error, Result};
use crate::interrupt::{Listener, interrupted};
use crate::nn::{Mode, Model};
use crate::ops::softmax_cross_entropy::{CrossEntropy, Form};
use crate::tensor::{Device, Tensor};

/// Trains `subject` on the training split and leaves in `model` (and in the subject's merge weights) the best epoch on the
/// validation split by the figure of the options; the last one where that split is empty.
pub fn train(
    model: &mut Model,
    subject: &mut Subject,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<Vec<EpochRecord>> {
    train_resumable(model, subject, target, options, observer, None)
}

/// [`train`], keeping its state in a file after each epoch, and continuing from it where there is one.
pub fn train_resumable(
    model: &mut Model,
    subject: &mut Subject,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
    mut state: Option<&mut ResumeFile>,
) -> Result<Vec<EpochRecord>> {
    let options = &options.for_images(target.data.train.len());
    options.check()?;
    let _listener = Listener::new();
    let (mut training, trunks) = Training::new(model, subject, target, options, observer, state.as_deref())?;
    while let Some(epoch) = training.next_epoch() {
        training.epoch(epoch)?;
        if let Some(file) = &mut state {
            training.save(file)?;
        }
    }
    training.finish(trunks)
}

/// How an epoch of steps ended.
pub(super) enum End {
    /// With its last batch.
    Epoch,
    /// At this loss, as was asked for.
    Asked(f32),
    /// A gradient was not finite.
    Diverged,
}

/// A run between two epochs.
pub(super) struct Training<'a> {
    model: &'a mut Model,
    subject: &'a mut Subject,
    target: Target<'a>,
    options: &'a TrainOptions,
    observer: &'a mut dyn Observer,
    batches: Batches<'a>,
    recorder: Recorder,
    evaluator: Evaluator,
    selection: Selection,
    average: Option<Average>,
    /// Steps done, of all there are.
    done: usize,
    pub(super) steps: usize,
}

/// Where a run ends that came to numbers which are none.
#[derive(Clone, Copy)]
struct Divergence {
    step: usize,
    epoch: usize,
}

impl Divergence {
    fn error(self, loss: f32, observer: &dyn Observer) -> Error {
        Error::Diverged { loss, step: self.step, epoch: self.epoch + 1, last_checkpoint: observer.last_checkpoint() }
    }
}

impl<'a> Training<'a> {
    /// Checks that there is room, continues from a state where there is one, and moves everything to its device. Also returns
    /// the frozen sources as they were.
    pub(super) fn new(
        model: &'a mut Model,
        subject: &'a mut Subject,
        target: Target<'a>,
        options: &'a TrainOptions,
        observer: &'a mut dyn Observer,
        state: Option<&ResumeFile>,
    ) -> Result<(Training<'a>, Vec<Tensor>)> {
        let channels = model.network.input_channels;
        let loader = target.shuffled(channels, options);
        let is_training = !matches!(subject, Subject::Head);
        if subject.mode() == Mode::Training {
            target.check_batch(&model.network, loader.smallest_batch())?;
        }
        // The gradient, one moment at least, and the best epoch; or the blend and its gradient; or all of that but one gradient.
        let made = match (is_training, &*subject) {
            (false, _) => 0,
            (true, Subject::Merge(_)) => 2,
            (true, Subject::EverythingAndMerge(_)) => 4,
            (true, _) => 3,
        };
        let teachers = if let Subject::Distilled(teachers) = &*subject { teachers.parameters() } else { 0 };
        // And the sum of gradients that wait for their update.
        let gathered = usize::from(options.accumulate > 1 && made > 2);
        let made = (made + gathered) * model.network.trunk_len + teachers;
        target.check_memory(&model.network, loader.largest_batch(), is_training, made)?;
        if target.data.val.is_empty() {
            let plateau = (options.schedule == Schedule::Plateau).then_some("--schedule plateau");
            for option in options.patience.map(|_| "--patience").into_iter().chain(plateau) {
                observer.note(&format!("{option} has no effect, because the validation split is empty"));
            }
        } else if options.select_by == SelectBy::Auc
            && target.data.class_counts(SplitName::Val).iter().filter(|&&images| images > 0).count() < 2
        {
            let message = "--select-by auc with a validation split of a single class, which has no AUC";
            return Err(Error::usage(message, "select by accuracy or loss"));
        }
        let loss = CrossEntropy {
            class_weights: if options.balance_classes { balanced_weights(target.data) } else { Vec::new() },
            label_smoothing: options.label_smoothing,
            form: match target.data.task {
                Task::MultiClass => Form::Softmax,
                Task::MultiLabel => Form::Sigmoid,
            },
        };
        let steps = loader.batches_per_epoch() * options.epochs;
        let mut optimizers = subject.optimizers(options, &model.network);
        optimizers.pull_trunk(&model.trunk, options.l2_sp);
        let mut average = (options.ema > 0.0).then(|| Average::new(options.ema));
        let (mut done, mut selection, mut control) = (0, Selection::default(), None);
        if let Some(file) = state
            && let Some(before) = file.load(model, subject, &mut optimizers)?
        {
            let epochs = before.selection.history.len();
            if epochs > options.epochs {
                let message = format!("--epochs {}, and {epochs} are done", options.epochs);
                return Err(Error::usage(message, format!("give {epochs} or more, or begin anew without the state")));
            }
            (done, selection, control) = (before.steps, before.selection, before.control);
            average.iter_mut().for_each(|average| average.restore(before.average.clone()));
            observer.resumed(&selection.history);
        }
        // Its own buffers: a transferred trunk is still the source's.
        *model = target.place.bring(&model.copy());
        let trunks = subject.move_to(target.place.device);
        if done == 0 && subject.follows_outcomes() {
            let start = subject.outcome(model, target, options.batch_size)?.expect("a merge has an outcome");
            model.statistics = start.statistics;
        }
        let [height, width, _] = loader.shape();
        let batch = [loader.largest_batch(), height, width, channels];
        compile_ahead(target.place, model, subject, options, &loss, batch);
        let recorder = Recorder::new(target.place, optimizers, loss, control);
        let (batches, evaluator) = (Batches::new(loader, target.place), Evaluator::new(target.place));
        let training = Training {
            model,
            subject,
            target,
            options,
            observer,
            batches,
            recorder,
            evaluator,
            selection,
            average,
            done,
            steps,
        };
        Ok((training, trunks))
    }

    /// The next epoch, counted from 0, unless it was the last or patience is lost.
    fn next_epoch(&mut self) -> Option<usize> {
        let (epoch, epochs) = (self.selection.history.len(), self.options.epochs);
        if epoch == epochs {
            return None;
        }
        let (by, history) = (self.options.select_by, &self.selection.history);
        let patience = self.options.patience.filter(|&patience| has_lost_patience(by, history, patience));
        let Some(patience) = patience else { return Some(epoch) };
        self.observer.note(&format!(
            "stopped after epoch {epoch} of {epochs}: no better {} on the validation split for {patience} epochs",
            by.name()
        ));
        None
    }

    /// All steps of an epoch, and what they came to.
    fn epoch(&mut self, epoch: usize) -> Result<()> {
        let start = Instant::now();
        let (train_loss, factor) = self.learn(epoch)?;
        self.recorder.describe().into_iter().for_each(|text| self.observer.detail(&text));
        let outcome = self.subject.outcome(self.model, self.target, self.options.batch_size)?;
        if let Some(outcome) = outcome.as_ref().filter(|_| self.subject.follows_outcomes()) {
            self.model.statistics = outcome.statistics.copy();
        }
        let mut outcome = outcome.as_ref().unwrap_or(self.model);
        if let Some(average) = &mut self.average {
            let reestimates = self.subject.mode() == Mode::Training;
            outcome = average.add(outcome, reestimates, self.target, self.options.batch_size)?;
        }
        let end = Divergence { step: self.done, epoch };
        let validation = match validate(&mut self.evaluator, outcome, self.target, self.options.batch_size) {
            Err(Error::NotFinite { .. }) => return Err(end.error(f32::NAN, self.observer)),
            other => other?,
        };
        let record = EpochRecord {
            epoch: epoch + 1,
            train_loss,
            learning_rate: factor * self.options.learning_rate,
            val_accuracy: validation.as_ref().map(|found| found.metrics.accuracy),
            val_macro_f1: validation.as_ref().map(|found| found.metrics.macro_f1),
            val_balanced_accuracy: validation.as_ref().map(|found| found.metrics.balanced_accuracy),
            val_auc: validation.as_ref().map(|found| found.metrics.auc).filter(|auc| !auc.is_nan()),
            val_loss: validation.as_ref().map(|found| found.loss),
            seconds: start.elapsed().as_secs_f64(),
        };
        // A step's loss tells of the parameters before it; what the last step did shows here.
        let is_broken = outcome.first_fault().is_some();
        // What is downloaded from a device that has failed is NaN too.
        self.target.place.device.check()?;
        if is_broken {
            return Err(end.error(f32::NAN, self.observer));
        }
        let improved = self.selection.improves(&record, self.options.select_by);
        let best = improved.then(|| (outcome.copy(), self.subject.merge_weights()));
        let on_cpu = improved.then(|| outcome.to_device(Device::Cpu));
        self.target.place.device.check()?;
        self.observer.epoch(&record, on_cpu.as_ref())?;
        self.selection.add(record, best);
        Ok(())
    }

    /// Runs the steps of an epoch, and returns their mean loss, and the factor of learning rates at the last of them.
    fn learn(&mut self, epoch: usize) -> Result<(f64, f64)> {
        let (plateau, updates) = (self.plateau(), self.updates_per_epoch());
        let TrainOptions { schedule, warmup, epochs, .. } = *self.options;
        let factor = |update| plateau * schedule.factor(update, epochs * updates, warmup * updates);
        let (mut sum, mut batches) = (0.0, 0);
        let end = self.run(epoch, factor, |_, loss| {
            (sum, batches) = (sum + f64::from(loss), batches + 1);
            if loss.is_finite() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let divergence = Divergence { step: self.done, epoch };
        match end {
            End::Epoch => Ok((sum / batches as f64, factor((epoch + 1) * updates - 1))),
            End::Asked(loss) => Err(divergence.error(loss, self.observer)),
            End::Diverged => Err(divergence.error(f32::NAN, self.observer)),
        }
    }

    /// Updates that an epoch has.
    pub(super) fn updates_per_epoch(&self) -> usize {
        self.batches.loader().batches_per_epoch().div_ceil(self.options.accumulate)
    }

    /// Runs the steps of an epoch, the learning rates multiplied by `factor` of each update, counted from the start of the run, and
    /// tells `each` the loss of every batch, which may end the epoch with it.
    pub(super) fn run(
        &mut self,
        epoch: usize,
        factor: impl Fn(usize) -> f64,
        mut each: impl FnMut(Turn, f32) -> ControlFlow<()>,
    ) -> Result<End> {
        let updates = self.updates_per_epoch();
        let Training { model, subject, options, observer, batches, recorder, done, steps, .. } = self;
        let (first, accumulate) = (*done, options.accumulate);
        let loader = batches.loader();
        let in_epoch = loader.batches_per_epoch();
        let turn = |batch: usize| {
            // Behind the last batch nobody asks what it is.
            let batch = batch.min(in_epoch - 1);
            Turn::of(batch, accumulate, loader, factor(epoch * updates + batch / accumulate))
        };
        batches.ahead(epoch, |batches_of_epoch| {
            loop {
                if interrupted() || observer.stops() {
                    return Err(Error::Interrupted { last_checkpoint: observer.last_checkpoint() });
                }
                let next = turn(*done + recorder.pending() - first);
                let is_over = !recorder.step(model, subject, batches, batches_of_epoch, next)?;
                if recorder.pending() < recorder.longest_wait() && !is_over {
                    continue;
                }
                let finished = recorder.losses()?;
                for value in finished.losses {
                    *done += 1;
                    if each(turn(*done - 1 - first), value).is_break() {
                        return Ok(End::Asked(value));
                    }
                    observer.step(*done, *steps, value);
                }
                if finished.diverged {
                    return Ok(End::Diverged);
                }
                if is_over {
                    return Ok(End::Epoch);
                }
            }
        })
    }

    /// What plateaus have made of the learning rates.
    fn plateau(&self) -> f64 {
        let TrainOptions { schedule, select_by, .. } = *self.options;
        match schedule {
            Schedule::Plateau => {
                0.1f64.powi(falls(select_by, &self.selection.history, self.options.plateau_patience()) as i32)
            }
            _ => 1.0,
        }
    }

    fn save(&self, file: &mut ResumeFile) -> Result<()> {
        let Training { model, subject, recorder, selection, average, done, .. } = self;
        let progress = Progress {
            control: recorder.control(),
            selection,
            average: average.as_ref().and_then(Average::model),
            steps: *done,
        };
        file.save(model, subject, recorder.optimizers(), progress)
    }

    /// Leaves the best epoch's numbers, on the CPU, and the sources as they were.
    pub(super) fn finish(self, trunks: Vec<Tensor>) -> Result<Vec<EpochRecord>> {
        let Training { model, subject, target, selection: Selection { history, best }, .. } = self;
        if let Some(best) = best {
            *model = best.model;
            subject.restore(best.merge_weights);
        }
        *model = model.to_device(Device::Cpu);
        subject.move_back(trunks);
        target.place.device.check()?;
        Ok(history)
    }
}

/// N / (classes · images of the class); of labels that an image may have at once, images without the label by those with it.
fn balanced_weights(data: &Dataset) -> Vec<f64> {
    let (counts, images) = (data.class_counts(SplitName::Train), data.train.len() as f64);
    let of_count = |count: usize| match data.task {
        Task::MultiClass => images / (counts.len() * count.max(1)) as f64,
        Task::MultiLabel => (images - count as f64) / count.max(1) as f64,
    };
    counts.iter().map(|&count| of_count(count)).collect()
}
