//! DARE: changes are dropped by chance, and those that stay are rescaled so that their mean is what it was.
//!
//! ```text
//! δ_m = (W_m − base) · b / density,   b = 1 with probability `density`, else 0, number by number
//! linear  W = base + λ·Σ c_m·δ_m        ties  W = base + λ · the mean of the δ_m whose sign is the elected one
//! ```

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ties::agreeing;
use super::{MergeMethod, Merged, Number, Task, change, changed};
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

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        let (base, density) = (inputs.base(), inputs.numbers.density.unwrap_or(DENSITY));
        let (scale, seed) = (inputs.numbers.scale.unwrap_or(1.0), inputs.numbers.seed.unwrap_or(0));
        let count = inputs.sources.len();
        Ok(inputs.each_parameter(|index, parameter| {
            let changes: Vec<(f32, Vec<f32>)> = (0..count)
                .map(|source| {
                    // A stream for each parameter of each source: whoever draws, and when, they are the same.
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    rng.set_stream((index * count + source) as u64);
                    let mut change = change(inputs.model(source), base, parameter);
                    for value in &mut change {
                        let stays = rng.random::<f64>() < density;
                        *value = if stays { (f64::from(*value) / density) as f32 } else { 0.0 };
                    }
                    (inputs.coefficient(source, parameter) as f32, change)
                })
                .collect();
            let sum = match self.elects_signs {
                true => agreeing(&changes, parameter.shape.len()),
                false => {
                    let at = |at: usize| changes.iter().map(|(coefficient, change)| coefficient * change[at]).sum();
                    (0..parameter.shape.len()).map(at).collect()
                }
            };
            changed(base, parameter, scale, &sum)
        }))
    }
}
