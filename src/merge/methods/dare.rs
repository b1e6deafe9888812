//! DARE: changes are dropped by chance, and those that stay are rescaled so that their mean is what it was.
//!
//! ```text
//! δ_m = (W_m − base) · b / density,   b = 1 with probability `density`, else 0, number by number
//! linear  W = base + λ·Σ c_m·δ_m        ties  W = base + λ · the mean of the δ_m whose sign is the elected one
//! ```

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::changes::{Changes, added, shares};
use super::{Inputs, MergeMethod, Merged, Number, Task};
use crate::error::Result;

pub struct Dare {
    elects_signs: bool,
}

pub const DARE_LINEAR: Dare = Dare { elects_signs: false };
pub const DARE_TIES: Dare = Dare { elects_signs: true };

const DENSITY: f64 = 0.5;

impl MergeMethod for Dare {
    fn name(&self) -> &'static str {
        if self.elects_signs { "dare-ties" } else { "dare-linear" }
    }

    fn about(&self) -> [&'static str; 2] {
        let second = match self.elects_signs {
            false => "then adds λ·Σ c_m of them to the base. --seed decides which.",
            true => "then elects signs and adds λ times the mean of those that agree. --seed decides which.",
        };
        [
            "Drops each source's changes since the base by chance, all but the share `density`, and rescales the rest;",
            second,
        ]
    }

    fn citation(&self) -> &'static str {
        "Yu et al., Language models are super Mario, ICML 2024"
    }

    fn reads(&self) -> &'static [Number] {
        &[Number::Scale, Number::Density, Number::Seed]
    }

    fn needs_base(&self) -> bool {
        true
    }

    fn usual_coefficient(&self, _: usize) -> f64 {
        1.0
    }

    fn of_heads(&self, inputs: &Inputs) -> Vec<f64> {
        shares(inputs.coefficients)
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        let (density, seed) = (inputs.numbers.density.unwrap_or(DENSITY), inputs.numbers.seed.unwrap_or(0));
        let count = inputs.sources.len();
        Ok(inputs.each_parameter(|index, parameter| {
            let changes = Changes::of(&inputs, parameter, |source, change| {
                // A stream for each parameter of each source: whoever draws, and when, they are the same.
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream((index * count + source) as u64);
                let mut drop = |value: f32| match rng.random::<f64>() < density {
                    true => (f64::from(value) / density) as f32,
                    false => 0.0,
                };
                change.into_iter().map(&mut drop).collect()
            });
            let change = if self.elects_signs { changes.agreeing() } else { changes.sum() };
            added(&inputs, parameter, &change)
        }))
    }
}
