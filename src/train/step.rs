//! One step: the gradients of a batch, then the updates. An update may wait for several batches, whose gradients are gathered.

use super::change::Change;
use super::distill::Teachers;
use super::optimizer::BETAS;
use super::parts::parts;
use super::{Batch, Optimizer, Target, TrainOptions, reestimate_statistics};
use crate::data::Loader;
use crate::error::Result;
use crate::merge::{Constraint, Plan, ProbeStatistics};
use crate::nn::{Extras, Mode, Model, Network, Region};
use crate::ops::control::Control;
use crate::ops::optimizer;
use crate::ops::softmax_cross_entropy::CrossEntropy;
use crate::tape::{Tape, Var};
use crate::tensor::{Device, Tensor};
use crate::threads;

/// How fast running statistics follow the batches during training, as in PyTorch.
const MOMENTUM: f64 = 0.1;

/// The parameters that learn.
pub enum Subject {
    Everything,
    Head,
    Merge(MergeState),
    /// Everything, and merge weights learned on.
    EverythingAndMerge(Change),
    /// Everything, whose features are kept near those of others.
    Distilled(Teachers),
}

/// Merge weights on their way.
pub struct MergeState {
    pub plan: Plan,
    /// The frozen sources.
    pub trunks: Vec<Tensor>,
    /// Learned rows × merge weights in each.
    pub merge_weights: Tensor,
    /// Whether the merged network keeps the running statistics of learning, instead of ones re-estimated on the target.
    pub keeps_statistics: bool,
    pub probe_statistics: ProbeStatistics,
}

impl MergeState {
    /// One that normalises by the batch, and whose statistics are re-estimated.
    pub fn new(plan: Plan, trunks: Vec<Tensor>, merge_weights: Tensor) -> MergeState {
        let probe_statistics = ProbeStatistics::Batch;
        MergeState { plan, trunks, merge_weights, keeps_statistics: false, probe_statistics }
    }
}

/// What a batch is to an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Of the learning rates.
    pub factor: f64,
    /// Of the batch's gradient in the mean by which is updated.
    pub share: f64,
    /// Whether the batch is the first, and the last, of those of its update.
    pub is_first: bool,
    pub is_last: bool,
    /// Whether gradients are gathered at all: in a run that does so they always are, also where an update has one batch.
    pub is_gathered: bool,
}

impl Turn {
    /// Of a batch of an epoch, counted from 0, where each update has `accumulate` batches, and the last of an epoch what is left.
    pub fn of(batch: usize, accumulate: usize, loader: &Loader, factor: f64) -> Turn {
        let first = batch / accumulate * accumulate;
        let end = (first + accumulate).min(loader.batches_per_epoch());
        let images: usize = (first..end).map(|batch| loader.images_of_batch(batch)).sum();
        Turn {
            factor,
            share: loader.images_of_batch(batch) as f64 / images as f64,
            is_first: batch == first,
            is_last: batch + 1 == end,
            is_gathered: accumulate > 1,
        }
    }
}

/// A batch that has an update for itself.
impl From<f64> for Turn {
    fn from(factor: f64) -> Turn {
        Turn { factor, share: 1.0, is_first: true, is_last: true, is_gathered: false }
    }
}

/// One update rule per arena that learns.
pub struct Optimizers {
    trunk: Option<Optimizer>,
    head: Optimizer,
    merge: Option<Optimizer>,
    /// What the norm of all gradients together is clipped to.
    clip: Option<f64>,
}

impl Optimizers {
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &Optimizer)> {
        let trunk = self.trunk.iter().map(|optimizer| ("trunk", optimizer));
        let merge = self.merge.iter().map(|optimizer| ("merge", optimizer));
        trunk.chain([("head", &self.head)]).chain(merge)
    }

    pub(super) fn named_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Optimizer)> {
        let trunk = self.trunk.iter_mut().map(|optimizer| ("trunk", optimizer));
        let merge = self.merge.iter_mut().map(|optimizer| ("merge", optimizer));
        trunk.chain([("head", &mut self.head)]).chain(merge)
    }

    /// Pulls a trunk that learns towards `start`, by λ = `strength`; by 0, not at all.
    pub(super) fn pull_trunk(&mut self, start: &Tensor, strength: f64) {
        self.trunk = self.trunk.take().map(|optimizer| optimizer.towards(start, strength));
    }

    /// Gathers the gradients of a batch; those of the last one of its update become the mean of all.
    fn gather(&mut self, gradients: &mut StepGradients, turn: Turn, control: Option<&Control>) {
        let StepGradients { head, trunk, merge_weights, .. } = gradients;
        let of_head = (Some(&mut self.head), head);
        for (optimizer, gradient) in [of_head, (self.trunk.as_mut(), trunk), (self.merge.as_mut(), merge_weights)] {
            if let (Some(optimizer), Some(of_batch)) = (optimizer, gradient.as_ref()) {
                *gradient = Some(optimizer.gather(of_batch, turn, control).clone());
            }
        }
    }

    /// Clips the gradients by which is updated; on a GPU `control` is told by how much, and whether there is an update at all.
    fn decide(&self, gradients: &mut StepGradients, control: Option<&Control>) {
        let StepGradients { loss, head, trunk, merge_weights, .. } = gradients;
        match (control, self.clip) {
            (Some(control), limit) => {
                let gradients: Vec<&Tensor> = head.iter().chain(&*trunk).chain(&*merge_weights).collect();
                optimizer::gpu::decide_within(control, loss, &gradients, BETAS, limit);
            }
            (None, Some(limit)) => {
                let mut gradients: Vec<&mut Tensor> = head.iter_mut().chain(trunk).chain(merge_weights).collect();
                optimizer::clip(&mut gradients, limit);
            }
            (None, None) => {}
        }
    }

    /// Updates so far: the same for all.
    pub(super) fn steps(&self) -> u64 {
        self.head.steps()
    }

    pub(super) fn set_steps(&mut self, steps: u64) {
        self.all_mut().for_each(|optimizer| optimizer.set_steps(steps));
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Optimizer> {
        self.trunk.iter_mut().chain([&mut self.head]).chain(self.merge.iter_mut())
    }

    fn all(&self) -> impl Iterator<Item = &Optimizer> {
        self.trunk.iter().chain([&self.head]).chain(&self.merge)
    }

    /// Every tensor that updates read and write beside the parameters.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.all().flat_map(|optimizer| optimizer.tensors())
    }
}

impl Subject {
    /// For what learns of this network. Merge weights are pulled, if at all, towards what they are now.
    pub fn optimizers(&self, options: &TrainOptions, network: &Network) -> Optimizers {
        let TrainOptions { optimizer, learning_rate, merge_learning_rate, regularise, weight_decay, .. } = *options;
        let rule = |rate: f64, decay: f64| Optimizer::new(optimizer, rate, decay).with_nesterov(options.nesterov);
        let of_arena = |region, rate| rule(rate, weight_decay).in_parts(parts(network, region, options));
        Optimizers {
            trunk: (!matches!(self, Subject::Head | Subject::Merge(_))).then(|| of_arena(Region::Trunk, learning_rate)),
            head: of_arena(Region::Head, options.head_learning_rate.unwrap_or(learning_rate)),
            // Decay would pull merge weights towards the anchor.
            merge: self.merge().map(|state| rule(merge_learning_rate, 0.0).towards(&state.merge_weights, regularise)),
            clip: options.clip_norm,
        }
    }

    pub(super) fn merge(&self) -> Option<&MergeState> {
        match self {
            Subject::Everything | Subject::Head | Subject::Distilled(_) => None,
            Subject::Merge(state) | Subject::EverythingAndMerge(Change { merge: state, .. }) => Some(state),
        }
    }

    fn merge_mut(&mut self) -> Option<&mut MergeState> {
        match self {
            Subject::Everything | Subject::Head | Subject::Distilled(_) => None,
            Subject::Merge(state) | Subject::EverythingAndMerge(Change { merge: state, .. }) => Some(state),
        }
    }

    /// Which statistics batch norms normalise by while it learns. A linear probe leaves the trunk as it is, and what a
    /// trunk makes of an image depends on its running statistics too.
    pub fn mode(&self) -> Mode {
        match self {
            Subject::Head => Mode::Inference,
            Subject::Merge(MergeState { probe_statistics: ProbeStatistics::Running, .. }) => Mode::Inference,
            Subject::Everything | Subject::Merge(_) | Subject::EverythingAndMerge(_) | Subject::Distilled(_) => {
                Mode::Training
            }
        }
    }

    /// Moves what learns, and what it learns from, to a device; returns the frozen sources as they were.
    pub fn move_to(&mut self, device: Device) -> Vec<Tensor> {
        match self {
            Subject::EverythingAndMerge(change) => change.move_to(device),
            Subject::Distilled(teachers) => teachers.move_to(device),
            _ => {}
        }
        let Some(state) = self.merge_mut() else { return Vec::new() };
        state.merge_weights = state.merge_weights.to_device(device);
        let moved = state.trunks.iter().map(|trunk| trunk.to_device(device)).collect();
        std::mem::replace(&mut state.trunks, moved)
    }

    /// The way back from [`Subject::move_to`].
    pub(super) fn move_back(&mut self, trunks: Vec<Tensor>) {
        if let Some(state) = self.merge_mut() {
            state.merge_weights = state.merge_weights.to_device(Device::Cpu);
            state.trunks = trunks;
        }
    }

    /// Whether the running statistics that batch norms normalise by are those of the last outcome.
    pub(super) fn follows_outcomes(&self) -> bool {
        matches!(self, Subject::Merge(MergeState { probe_statistics: ProbeStatistics::Running, .. }))
    }

    /// The network as it would be written now: of a merge, the blend with its own running statistics; of one that is learned
    /// on, with those that followed the batches. `None` where `model` is that already.
    pub(super) fn outcome(&self, model: &Model, target: Target, batch_size: usize) -> Result<Option<Model>> {
        let trunk = match self {
            Subject::Everything | Subject::Head | Subject::Distilled(_) => return Ok(None),
            Subject::Merge(state) => state.plan.blend(&state.trunks, &state.merge_weights),
            Subject::EverythingAndMerge(change) => change.fold(&model.trunk),
        };
        // Buffers of its own: a recorded step goes on with the others.
        let mut outcome = Model { trunk, statistics: model.statistics.copy(), ..model.clone() };
        if self.merge().is_some_and(|state| !state.keeps_statistics) {
            reestimate_statistics(&mut outcome, target, batch_size)?;
        }
        Ok(Some(outcome))
    }

    /// A copy of the merge weights.
    pub fn merge_weights(&self) -> Option<Tensor> {
        self.merge().map(|state| state.merge_weights.copy())
    }

    pub fn restore(&mut self, merge_weights: Option<Tensor>) {
        if let (Some(state), Some(merge_weights)) = (self.merge_mut(), merge_weights) {
            state.merge_weights = merge_weights;
        }
    }
}

/// The result of a batch, before anything is updated.
pub struct StepGradients {
    /// A single number.
    pub loss: Tensor,
    pub head: Option<Tensor>,
    pub trunk: Option<Tensor>,
    pub merge_weights: Option<Tensor>,
    /// Means and unbiased variances of the batch, laid out as the running ones; in training mode.
    pub statistics: Option<Tensor>,
}

/// Forward and backward of a batch: changes nothing. On a GPU `control` scales the loss.
pub fn gradients(
    model: &Model,
    subject: &Subject,
    loss: &CrossEntropy,
    batch: &Batch,
    control: Option<&Control>,
) -> StepGradients {
    threads::within(model.device(), || gradients_here(model, subject, loss, batch, control))
}

fn gradients_here(
    model: &Model,
    subject: &Subject,
    loss: &CrossEntropy,
    batch: &Batch,
    control: Option<&Control>,
) -> StepGradients {
    let images = batch.activations();
    let mut tape = Tape::new();
    let head = tape.leaf(model.head.clone());
    let merge_weights = subject.merge().map(|state| tape.leaf(state.merge_weights.clone()));
    let of_model = match subject {
        Subject::Everything | Subject::EverythingAndMerge(_) | Subject::Distilled(_) => tape.leaf(model.trunk.clone()),
        Subject::Head | Subject::Merge(_) => Var::constant(model.trunk.clone()),
    };
    let trunk = match (subject, &merge_weights) {
        (Subject::Merge(state), Some(merge_weights)) => {
            let alpha = tape.constrain(&state.plan.parametrization, merge_weights);
            tape.merge_for_step(&state.plan.table, &state.trunks, &alpha, images.dtype())
        }
        (Subject::EverythingAndMerge(change), Some(merge_weights)) => change.trunk(&mut tape, &of_model, merge_weights),
        _ => of_model.clone(),
    };
    let features = match subject {
        Subject::Distilled(teachers) => teachers.features(&images),
        _ => None,
    };
    let extras = Extras { key: batch.key(), pull: features.as_ref().map(|features| features.pull(control)) };
    let (arenas, statistics) = ([&trunk, &head], &model.statistics);
    let output = model.network.forward_with(&mut tape, arenas, statistics, images, subject.mode(), extras);
    drop(trunk);
    let loss = batch.loss(&mut tape, loss, &output.logits, control);
    let value = loss.value().clone();
    drop(output.logits);
    let mut gradients = tape.backward(loss);
    StepGradients {
        loss: value,
        head: gradients.take(&head),
        trunk: gradients.take(&of_model),
        merge_weights: merge_weights.and_then(|leaf| gradients.take(&leaf)),
        statistics: output.statistics,
    }
}

/// Updates what learns, and the running statistics, by the gradients of a batch; returns its loss, a single number. The
/// learning rates are multiplied by the factor of `turn` (a number is one), or on a GPU by that of `control`. A batch that is
/// not the last of its update changes the running statistics alone. Where the loss is not finite, nothing changes.
pub fn apply(
    model: &mut Model,
    subject: &mut Subject,
    optimizers: &mut Optimizers,
    mut gradients: StepGradients,
    turn: impl Into<Turn>,
    control: Option<&Control>,
) -> Tensor {
    let turn = turn.into();
    let loss = gradients.loss.clone();
    // The parameters from which this loss came stay as they are.
    if control.is_none() && !loss.data::<f32>()[0].is_finite() {
        return loss;
    }
    if turn.is_gathered {
        optimizers.gather(&mut gradients, turn, control);
    }
    if turn.is_last {
        optimizers.decide(&mut gradients, control);
    } else if let Some(control) = control {
        optimizer::gpu::note(control, &loss);
    }
    if let Some(of_batch) = gradients.statistics.take() {
        model.update_statistics(&of_batch, Some(MOMENTUM), control.map(Control::gate));
    }
    if turn.is_last {
        update(model, subject, optimizers, gradients, turn.factor, control);
    }
    loss
}

/// Updates what learns by gradients that were decided on, and are clipped.
fn update(
    model: &mut Model,
    subject: &mut Subject,
    optimizers: &mut Optimizers,
    gradients: StepGradients,
    factor: f64,
    control: Option<&Control>,
) {
    let StepGradients { loss, head, trunk, merge_weights, .. } = gradients;
    if let Some(gradient) = head {
        optimizers.head.update(&mut model.head, &gradient, factor, control);
    }
    if let Some(gradient) = trunk {
        let optimizer = optimizers.trunk.as_mut().expect("made for this subject");
        optimizer.update(&mut model.trunk, &gradient, factor, control);
    }
    if let (Some(state), Some(gradient)) = (subject.merge_mut(), merge_weights) {
        let optimizer = optimizers.merge.as_mut().expect("made for this subject");
        optimizer.update(&mut state.merge_weights, &gradient, factor, control);
        if state.plan.method.constraint == Constraint::Clamp {
            optimizer::clamp(&mut state.merge_weights, control);
        }
    }
    if let Some(control) = control {
        optimizer::gpu::rescale(control, &loss);
    }
}

/// [`gradients`], then [`apply`].
pub fn step(
    model: &mut Model,
    subject: &mut Subject,
    optimizers: &mut Optimizers,
    loss: &CrossEntropy,
    batch: &Batch,
    turn: impl Into<Turn>,
    control: Option<&Control>,
) -> Tensor {
    let gradients = gradients(model, subject, loss, batch, control);
    apply(model, subject, optimizers, gradients, turn, control)
}
