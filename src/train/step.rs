//! One step: forward, backward, update.

use std::sync::Arc;

use super::{Optimizer, TrainOptions};
use crate::merge::{Constraint, Plan};
use crate::nn::{Mode, Model};
use crate::ops::softmax_cross_entropy::CrossEntropy;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// How fast running statistics follow the batches during training, as in PyTorch.
const MOMENTUM: f64 = 0.1;

/// What learns.
pub enum Subject {
    Everything,
    Head,
    Merge(MergeState),
}

/// Merge weights on their way.
pub struct MergeState {
    pub plan: Plan,
    /// The frozen sources.
    pub trunks: Vec<Tensor>,
    /// Learned rows × learned numbers.
    pub numbers: Tensor,
}

/// One update rule per arena that learns.
pub struct Optimizers {
    trunk: Option<Optimizer>,
    head: Optimizer,
    merge: Option<Optimizer>,
}

impl Optimizers {
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &Optimizer)> {
        let trunk = self.trunk.iter().map(|optimizer| ("trunk", optimizer));
        trunk.chain([("head", &self.head)])
    }

    pub(super) fn named_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Optimizer)> {
        let trunk = self.trunk.iter_mut().map(|optimizer| ("trunk", optimizer));
        trunk.chain([("head", &mut self.head)])
    }
}

pub struct Step {
    pub loss: f32,
}

impl Subject {
    pub fn optimizers(&self, options: &TrainOptions) -> Optimizers {
        let TrainOptions { optimizer, learning_rate, merge_learning_rate, weight_decay, .. } = *options;
        let rule = || Optimizer::new(optimizer, learning_rate, weight_decay);
        Optimizers {
            trunk: matches!(self, Subject::Everything).then(rule),
            head: rule(),
            // Decay would pull merge weights towards the anchor.
            merge: matches!(self, Subject::Merge(_)).then(|| Optimizer::new(optimizer, merge_learning_rate, 0.0)),
        }
    }

    /// Writes the blend as it is now into the model's trunk.
    pub fn materialize(&self, model: &mut Model) {
        if let Subject::Merge(state) = self {
            model.trunk = state.plan.blend(&state.trunks, &state.numbers);
        }
    }

    /// A copy of the merge weights.
    pub fn numbers(&self) -> Option<Tensor> {
        match self {
            Subject::Merge(state) => Some(state.numbers.copy()),
            _ => None,
        }
    }

    pub fn restore(&mut self, numbers: Option<Tensor>) {
        if let (Subject::Merge(state), Some(numbers)) = (self, numbers) {
            state.numbers = numbers;
        }
    }
}

/// Runs one batch. The learning rates are multiplied by `factor`.
pub fn step(
    model: &mut Model,
    subject: &mut Subject,
    optimizers: &mut Optimizers,
    loss: &CrossEntropy,
    images: Tensor,
    labels: &[u32],
    factor: f64,
) -> Step {
    let mut tape = Tape::new();
    let head = tape.leaf(model.head.clone());
    let (learned, trunk) = match subject {
        Subject::Everything => {
            let trunk = tape.leaf(model.trunk.clone());
            (trunk.clone(), trunk)
        }
        Subject::Head => (Var::constant(Tensor::scalar(0f32)), Var::constant(model.trunk.clone())),
        Subject::Merge(state) => {
            let numbers = tape.leaf(state.numbers.clone());
            let alpha = tape.constrain(&state.plan.parametrization, &numbers);
            let trunk = tape.merge(&state.plan.table, &state.trunks, &alpha);
            (numbers, trunk)
        }
    };
    let network = Arc::clone(&model.network);
    let output = network.forward(&mut tape, &trunk, &head, &model.statistics, images, Mode::Training);
    drop(trunk);
    let loss = tape.softmax_cross_entropy(loss, &output.logits, labels);
    let value = loss.value().data::<f32>()[0];
    drop(output.logits);
    let mut gradients = tape.backward(loss);
    let (of_head, of_learned) = (gradients.take(&head), gradients.take(&learned));
    // Parameters are written below, so nothing may read them any more.
    drop((head, learned, gradients));

    if !value.is_finite() {
        // The parameters from which this loss came stay as they are.
        return Step { loss: value };
    }
    model.update_statistics(&output.statistics, Some(MOMENTUM), None);
    if let Some(gradient) = of_head {
        optimizers.head.update(&mut model.head, &gradient, factor);
    }
    match (subject, of_learned) {
        (Subject::Everything, Some(gradient)) => {
            let optimizer = optimizers.trunk.as_mut().expect("made for this subject");
            optimizer.update(&mut model.trunk, &gradient, factor);
        }
        (Subject::Merge(state), Some(gradient)) => {
            let optimizer = optimizers.merge.as_mut().expect("made for this subject");
            optimizer.update(&mut state.numbers, &gradient, factor);
            if state.plan.method.constraint == Constraint::Clamp {
                state.numbers.view_mut().data::<f32>().iter_mut().for_each(|w| *w = w.clamp(0.0, 1.0));
            }
        }
        _ => {}
    }
    Step { loss: value }
}
