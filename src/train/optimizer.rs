//! Update rules with their state, one per arena, and the pull of parameters towards their start.
//!
//! With `--regularise λ` what is minimised over merge weights w that started as w₀ is L + λ/2·‖w − w₀‖², and with `--l2-sp λ` the same
//! over the trunk that is fine-tuned (L2-SP: Li, Grandvalet & Davoine 2018). The pull is decoupled from the gradient, as AdamW's weight decay is: no moment sees it, and loss scaling does not touch it. Of the same w as the
//! update behind it,
//!
//! ```text
//! SGD      w −= learning_rate·λ/(1 − momentum)·(w − w₀)
//! AdamW    w −= learning_rate·λ·(w − w₀)
//! ```
//!
//! Under a gradient that stays, SGD moves by 1/(1 − momentum) times its learning rate: so it rests where ∇L + λ(w − w₀) = 0.

use serde::{Deserialize, Serialize};

use super::Turn;
use super::parts::Part;
use crate::ops::control::Control;
use crate::ops::optimizer::{AdamW, Sgd, adamw, gather, sgd};
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

/// What weights decay of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DecayOf {
    /// All parameters: weights, and what norms multiply by and add, and biases.
    #[default]
    All,
    /// Weights of convolutions and linear layers.
    Weights,
}

impl DecayOf {
    pub(super) fn is_all(&self) -> bool {
        *self == DecayOf::All
    }
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
    /// A tenth each time that the validation split has not improved for some epochs.
    Plateau,
    /// A tenth from half of the steps on, a hundredth from three quarters on: MedMNIST's own.
    Step,
}

impl OptimizerKind {
    /// How many learning rates a weight is pulled by, per λ and per distance from its start.
    pub(super) fn pulls(self) -> f64 {
        match self {
            OptimizerKind::Sgd => 1.0 / (1.0 - BETAS[0]),
            OptimizerKind::AdamW => 1.0,
        }
    }
}

impl Schedule {
    /// Whether what an epoch does depends on how many there are to be. Where it does not, more may follow the last one.
    pub fn knows_the_end(self) -> bool {
        !matches!(self, Schedule::Constant | Schedule::Plateau)
    }

    /// The factor of the learning rate at `step` (from 0) of `steps`, of which the first `warmup` rise in a line from one `warmup`th;
    /// the schedule is of those behind them. What a plateau makes of it is not known by the step.
    pub fn factor(self, step: usize, steps: usize, warmup: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let (step, steps) = (step - warmup, steps - warmup);
        match self {
            Schedule::Constant | Schedule::Plateau => 1.0,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos()),
            Schedule::Step if 4 * step >= 3 * steps => 0.01,
            Schedule::Step if 2 * step >= steps => 0.1,
            Schedule::Step => 1.0,
        }
    }
}

/// An update rule and its state for one arena.
#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    learning_rate: f64,
    weight_decay: f64,
    nesterov: bool,
    /// Stretches that differ in rate or decay; none where the arena is updated as one.
    parts: Vec<Part>,
    step: u64,
    moments: Vec<Tensor>,
    /// The mean gradient of batches that wait for their update.
    gathered: Option<Tensor>,
    pull: Option<Pull>,
}

/// A pull towards where parameters started.
#[derive(Clone, Debug)]
struct Pull {
    /// λ.
    strength: f64,
    /// −w₀.
    minus_start: Tensor,
}

impl Pull {
    /// w −= rate·(w − w₀) in each part, which multiplies the rate: what SGD does with the velocity −w₀ and no gradient, where
    /// momentum and weight decay are 1. So `control` multiplies the rate and withholds the pull as it does an update.
    fn apply(&mut self, parameters: &mut Tensor, parts: &[Part], rate: f64, control: Option<&Control>) {
        let (dtype, device) = (parameters.dtype(), parameters.device());
        if self.minus_start.device() != device {
            self.minus_start = self.minus_start.to_device(device);
        }
        let mut velocity = self.minus_start.copy();
        let none = Tensor::zeros(parameters.shape(), dtype, device);
        for part in parts {
            let rule = Sgd { learning_rate: rate * part.rate, momentum: 1.0, weight_decay: 1.0, nesterov: false };
            let [w, velocity] = [&mut *parameters, &mut velocity].map(|arena| part.of_mut(arena));
            sgd(&rule, w, &part.of(&none), velocity, control);
        }
    }
}

impl Optimizer {
    pub fn new(kind: OptimizerKind, learning_rate: f64, weight_decay: f64) -> Optimizer {
        Optimizer {
            kind,
            learning_rate,
            weight_decay,
            nesterov: false,
            parts: Vec::new(),
            step: 0,
            moments: Vec::new(),
            gathered: None,
            pull: None,
        }
    }

    /// The same with Nesterov's momentum, where the rule is SGD.
    pub fn with_nesterov(self, nesterov: bool) -> Optimizer {
        Optimizer { nesterov, ..self }
    }

    /// The same for an arena whose parts differ.
    pub(super) fn in_parts(self, parts: Vec<Part>) -> Optimizer {
        Optimizer { parts, ..self }
    }

    /// The same with parameters pulled towards `start`, by λ = `strength`; by 0, not at all.
    pub fn towards(self, start: &Tensor, strength: f64) -> Optimizer {
        let minus = || start.to_vec::<f32>().into_iter().map(|w| -w).collect::<Vec<f32>>();
        let pull = (strength != 0.0).then(|| Pull { strength, minus_start: Tensor::from_vec(minus(), start.shape()) });
        Optimizer { pull, ..self }
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

    /// Every tensor that updates read and write beside the parameters.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.moments.iter().chain(&self.gathered).chain(self.pull.as_ref().map(|pull| &pull.minus_start))
    }

    /// Continues from what [`Optimizer::steps`] and [`Optimizer::moments`] said.
    pub fn restore(&mut self, steps: u64, moments: Vec<Tensor>) {
        (self.step, self.moments) = (steps, moments);
    }

    /// Adds the share of a batch's gradient to those that wait for the update, or begins anew with the first; returns their sum.
    pub(super) fn gather(&mut self, gradient: &Tensor, turn: Turn, control: Option<&Control>) -> &Tensor {
        let zeros = || Tensor::zeros(gradient.shape(), gradient.dtype(), gradient.device());
        let sum = self.gathered.get_or_insert_with(zeros);
        gather(sum, gradient, turn.share, turn.is_first, control);
        sum
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
        let whole = [Part { range: 0..parameters.shape().len(), rate: 1.0, decays: true }];
        let parts = if self.parts.is_empty() { &whole[..] } else { &self.parts };
        if let Some(pull) = &mut self.pull {
            pull.apply(parameters, parts, learning_rate * pull.strength * self.kind.pulls(), control);
        }
        for part in parts {
            let learning_rate = learning_rate * part.rate;
            let weight_decay = if part.decays { self.weight_decay } else { 0.0 };
            let (w, gradient) = (part.of_mut(parameters), part.of(gradient));
            match (self.kind, self.moments.as_mut_slice()) {
                (OptimizerKind::Sgd, [velocity]) => {
                    let rule = Sgd { learning_rate, momentum: BETAS[0], weight_decay, nesterov: self.nesterov };
                    sgd(&rule, w, &gradient, part.of_mut(velocity), control);
                }
                (OptimizerKind::AdamW, [first, second]) => {
                    let [beta1, beta2] = BETAS;
                    let rule = AdamW { learning_rate, beta1, beta2, epsilon: 1e-8, weight_decay, step: self.step };
                    adamw(&rule, w, &gradient, [first, second].map(|moment| part.of_mut(moment)), control);
                }
                _ => unreachable!("each rule has its own number of moments"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::optimizer::clip;
    use crate::tensor::DType;

    const TARGET: [f32; 3] = [2.0, -1.0, 0.25];
    const START: [f32; 3] = [0.5, 0.5, 0.5];
    const CURVATURE: f32 = 3.0;

    fn vector(values: [f32; 3]) -> Tensor {
        Tensor::from_vec(values.to_vec(), [3])
    }

    /// w after so many steps on L = a/2·‖w − c‖², and how far it has ever been from its start.
    fn descend(kind: OptimizerKind, learning_rate: f64, strength: f64, steps: usize) -> ([f32; 3], f32) {
        let start = vector(START);
        let mut optimizer = Optimizer::new(kind, learning_rate, 0.0).towards(&start, strength);
        let (mut w, mut farthest) = (start.copy(), 0f32);
        for _ in 0..steps {
            let now = w.to_vec::<f32>();
            let gradient = [0, 1, 2].map(|i| CURVATURE * (now[i] - TARGET[i]));
            optimizer.update(&mut w, &vector(gradient), 1.0, None);
            farthest = w.data::<f32>().iter().zip(START).fold(farthest, |most, (w, start)| most.max((w - start).abs()));
        }
        (w.to_vec().try_into().unwrap(), farthest)
    }

    #[test]
    fn rates_rise_and_fall() {
        let of = |schedule: Schedule, warmup| [0, 1, 2, 5, 6, 7, 9].map(|step| schedule.factor(step, 10, warmup));
        assert_eq!(of(Schedule::Constant, 0), [1.0; 7]);
        assert_eq!(of(Schedule::Constant, 2), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        // Of eight steps behind two: half of them at 6, three quarters at 8.
        assert_eq!(of(Schedule::Step, 2), [0.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01]);
        assert_eq!(of(Schedule::Step, 0), [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01]);
        let cosine = of(Schedule::Cosine, 2);
        assert_eq!((cosine[0], cosine[2]), (0.5, 1.0));
        assert!((cosine[4] - 0.5).abs() < 1e-12, "half-way of those behind: {cosine:?}");
        assert_eq!(Schedule::Cosine.factor(5, 10, 0), 0.5 * (1.0 + (std::f64::consts::PI / 2.0).cos()));
    }

    /// a(w − c) + λ(w − w₀) = 0.
    #[test]
    fn sgd_rests_where_the_regularised_loss_is_least() {
        for strength in [0.0, 0.5, 3.0, 40.0] {
            let (w, _) = descend(OptimizerKind::Sgd, 2e-3, strength, 4000);
            let pull = strength as f32;
            for (i, w) in w.into_iter().enumerate() {
                let expected = (CURVATURE * TARGET[i] + pull * START[i]) / (CURVATURE + pull);
                assert!((w - expected).abs() < 1e-5, "λ = {strength}: {w} is not {expected}");
            }
        }
    }

    /// With the strongest pull that is allowed each step begins at the start.
    #[test]
    fn pulled_all_the_way_weights_stay_within_a_step_of_their_start() {
        let learning_rate = 1e-2;
        for kind in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
            let (_, free) = descend(kind, learning_rate, 0.0, 100);
            let (_, pulled) = descend(kind, learning_rate, 1.0 / (learning_rate * kind.pulls()), 100);
            // The gradient there is at most 4.5, and so is a velocity of ten of them 45.
            let one_step = if kind == OptimizerKind::Sgd { 0.46 } else { 0.0101 };
            assert!(pulled <= one_step && 2.0 * pulled < free, "{kind:?}: {pulled} of {free}");
        }
    }

    /// Numbers of PyTorch 2.13 in double precision: five weights and three biases, which do not decay, four gradients, before each
    /// update clip_grad_norm_([w, b], 0.8), with a rate of 0.1 and a decay of 0.05 (torch.optim.SGD with a momentum of 0.9, with
    /// and without Nesterov's, and AdamW).
    #[test]
    fn updates_are_pytorchs() {
        const NORMS: [f64; 4] = [2.7, 0.149331845231, 2.75, 3.482097069296];
        const NESTEROV: [f64; 8] = [
            1.308438963163,
            -0.225623247288,
            0.294021615268,
            1.819113922667,
            -1.016231319402,
            0.836314576158,
            -0.510138282171,
            0.22109132692,
        ];
        const SGD: [f64; 8] = [
            1.36277672983,
            -0.225476138869,
            0.320426096041,
            1.86450685493,
            -0.976052409812,
            0.814481508158,
            -0.522553474801,
            0.22213704339,
        ];
        const ADAMW: [f64; 8] = [
            1.266934867365,
            -0.134476884617,
            0.281434214868,
            1.612415961479,
            -0.797223635784,
            0.651303027302,
            -0.670813202146,
            0.308033161759,
        ];
        let gradients = [
            [0.3, -0.7, 2.0, 0.1, -0.4, 0.2, 0.5, -1.5],
            [-0.1, 0.05, 0.02, 0.03, -0.08, 0.01, -0.02, 0.04],
            [1.0, 1.0, -1.0, 0.5, 0.25, -2.0, 0.0, 0.5],
            [0.5, -0.5, 0.25, 0.0, 3.0, 1.0, -1.0, 0.75],
        ];
        let start = [1.5, -0.25, 0.5, 2.0, -1.0, 0.75, -0.5, 0.125];
        for (kind, nesterov, expected) in [
            (OptimizerKind::Sgd, true, NESTEROV),
            (OptimizerKind::Sgd, false, SGD),
            (OptimizerKind::AdamW, false, ADAMW),
        ] {
            for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 1e-6)] {
                let arena = |numbers: &[f64]| Tensor::from_vec(numbers.to_vec(), [numbers.len()]).cast(dtype);
                let part = |range, decays| Part { range, rate: 1.0, decays };
                let mut optimizer = Optimizer::new(kind, 0.1, 0.05)
                    .with_nesterov(nesterov)
                    .in_parts(vec![part(0..5, true), part(5..8, false)]);
                let mut parameters = arena(&start);
                for (gradient, norm) in gradients.iter().zip(NORMS) {
                    let [mut a, mut b] = [arena(&gradient[..3]), arena(&gradient[3..])];
                    let found = clip(&mut [&mut a, &mut b], 0.8);
                    assert!((found - norm).abs() < tolerance, "{found} is not {norm}");
                    let clipped = arena(&[a.to_f64(), b.to_f64()].concat());
                    optimizer.update(&mut parameters, &clipped, 1.0, None);
                }
                for (found, expected) in parameters.to_f64().iter().zip(expected) {
                    assert!((found - expected).abs() < tolerance, "{kind:?}, {nesterov}: {found} is not {expected}");
                }
            }
        }
    }

    /// A part's rate multiplies the update, the decay and the pull.
    #[test]
    fn a_part_learns_at_its_rate() {
        let (start, gradient) = (vector(START), vector([0.3, -0.7, 2.0]));
        for kind in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
            let moved = |rate: f64, parts: Vec<Part>| {
                let mut w = vector([1.5, -0.25, 0.5]);
                let mut optimizer = Optimizer::new(kind, rate, 0.1).towards(&start, 2.0).in_parts(parts);
                (0..3).for_each(|_| optimizer.update(&mut w, &gradient, 0.5, None));
                w.to_vec::<f32>()
            };
            let (whole, quarter) = (moved(0.02, Vec::new()), moved(0.005, Vec::new()));
            let part = |range, rate| Part { range, rate, decays: true };
            let divided = moved(0.02, vec![part(0..1, 1.0), part(1..3, 0.25)]);
            assert_eq!(divided, [whole[0], quarter[1], quarter[2]], "{kind:?}");
            assert!(whole[1] != quarter[1]);
        }
    }

    /// The definition of both rules, written out.
    #[test]
    fn a_pull_is_that_of_the_formula() {
        for (kind, rate) in [(OptimizerKind::Sgd, 10.0 * 0.01 * 4.0), (OptimizerKind::AdamW, 0.01 * 4.0)] {
            let (start, w, gradient) = (vector(START), [1.5, -0.25, 0.5], vector([0.3, -0.7, 2.0]));
            let by = |strength: f64, mut w: Tensor| {
                Optimizer::new(kind, 0.02, 0.0).towards(&start, strength).update(&mut w, &gradient, 0.5, None);
                w.to_vec::<f32>()
            };
            let pulled = [0, 1, 2].map(|i| w[i] - rate as f32 * (w[i] - START[i]));
            let (found, expected) = (by(4.0, vector(w)), by(0.0, vector(pulled)));
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} is not {expected:?}");
        }
    }
}
