//! Update rules with their state, one per arena.

use serde::{Deserialize, Serialize};

use crate::ops::control::Control;
use crate::ops::optimizer::{AdamW, Sgd, adamw, sgd};
use crate::tensor::Tensor;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OptimizerKind {
    /// With a momentum of 0.9.
    Sgd,
    /// With β = (0.9, 0.999) and ε = 1e-8.
    AdamW,
}

/// β₁, which is also SGD's momentum, and β₂.
pub(crate) const BETAS: [f64; 2] = [0.9, 0.999];

/// How the learning rate falls from its first value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Schedule {
    Constant,
    /// Half a cosine, to 0 after the last step.
    Cosine,
}

impl Schedule {
    /// The factor of the learning rate at `step` (from 0) of `steps`.
    pub fn factor(self, step: usize, steps: usize) -> f64 {
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos()),
        }
    }
}

/// An update rule and its state for one arena.
#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    learning_rate: f64,
    weight_decay: f64,
    step: u64,
    moments: Vec<Tensor>,
}

impl Optimizer {
    pub fn new(kind: OptimizerKind, learning_rate: f64, weight_decay: f64) -> Optimizer {
        Optimizer { kind, learning_rate, weight_decay, step: 0, moments: Vec::new() }
    }

    /// Updates so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Says how many updates there have been, where a GPU counted.
    pub(super) fn set_steps(&mut self, steps: u64) {
        self.step = steps;
    }

    /// Velocity, or first and second moment; empty before the first update.
    pub fn moments(&self) -> &[Tensor] {
        &self.moments
    }

    /// Continues from what [`Optimizer::steps`] and [`Optimizer::moments`] said.
    pub fn restore(&mut self, steps: u64, moments: Vec<Tensor>) {
        (self.step, self.moments) = (steps, moments);
    }

    /// Moves `parameters` against `gradient`; the learning rate is multiplied by `factor`, or on a GPU by that of
    /// `control`, which also decides whether anything happens.
    pub fn update(&mut self, parameters: &mut Tensor, gradient: &Tensor, factor: f64, control: Option<&Control>) {
        if self.moments.is_empty() {
            let count = if self.kind == OptimizerKind::Sgd { 1 } else { 2 };
            let zeros = || Tensor::zeros(parameters.shape(), parameters.dtype(), parameters.device());
            self.moments = (0..count).map(|_| zeros()).collect();
        }
        for moment in &mut self.moments {
            // Restored ones come from a file.
            if moment.device() != parameters.device() {
                *moment = moment.to_device(parameters.device());
            }
        }
        self.step += 1;
        let learning_rate = if control.is_some() { self.learning_rate } else { self.learning_rate * factor };
        match (self.kind, self.moments.as_mut_slice()) {
            (OptimizerKind::Sgd, [velocity]) => {
                let rule = Sgd { learning_rate, momentum: BETAS[0], weight_decay: self.weight_decay };
                sgd(&rule, parameters, gradient, velocity, control);
            }
            (OptimizerKind::AdamW, [first, second]) => {
                let rule = AdamW {
                    learning_rate,
                    beta1: BETAS[0],
                    beta2: BETAS[1],
                    epsilon: 1e-8,
                    weight_decay: self.weight_decay,
                    step: self.step,
                };
                adamw(&rule, parameters, gradient, first, second, control);
            }
            _ => unreachable!("each rule has its own number of moments"),
        }
    }
}
