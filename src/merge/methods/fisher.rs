//! Fisher-weighted averaging: each number by how much its source's answer depends on it.
//!
//! ```text
//! W[i] = Σ_m c_m·F_m[i]·W_m[i] / Σ_m c_m·F_m[i]
//! ```
//!
//! with F the diagonal of the Fisher information on the target's images. Sources have classifiers of their own, so the scales of
//! their F say nothing: each is divided by its mean over the trunk. A floor of 1e-6 means average where no source cares.

use super::{Inputs, MergeMethod, Merged, Number, Task, check_heads};
use crate::error::Result;
use crate::nn::{Parameter, Region};
use crate::tensor::Tensor;

pub struct Fisher;

const FLOOR: f64 = 1e-6;

impl MergeMethod for Fisher {
    fn name(&self) -> &'static str {
        "fisher"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "The average in which each number counts by how much its source's answer on --data depends on it (diagonal",
            "Fisher information, a class drawn from its own head for each image, by --seed); c_m from --coefficients.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Matena and Raffel, Merging models with Fisher-weighted averaging, NeurIPS 2022"
    }

    fn reads(&self) -> &'static [Number] {
        &[Number::Seed]
    }

    fn needs_images(&self) -> bool {
        true
    }

    fn needs_heads(&self) -> bool {
        true
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        check_heads(self, inputs.sources)?;
        let (count, seed) = (inputs.sources.len(), inputs.numbers.seed.unwrap_or(0));
        let importances: Vec<Importance> = (0..count)
            .map(|source| Ok(Importance::new(&inputs, task.images().fisher(inputs.sources, source, seed)?)))
            .collect::<Result<_>>()?;
        Ok(inputs.each_parameter(|_, parameter| {
            let of_sources: Vec<(Vec<f64>, Vec<f32>)> = (0..count)
                .map(|source| {
                    let coefficient = inputs.coefficient(source, parameter);
                    let shares = importances[source].of(parameter).map(|importance| coefficient * importance);
                    (shares.collect(), inputs.model(source).parameter(parameter).to_vec())
                })
                .collect();
            weighted_mean(&of_sources)
        }))
    }
}

/// The Fisher information of a trunk, laid out as its arena, and what makes its mean 1.
struct Importance {
    fisher: Tensor,
    scale: f64,
}

impl Importance {
    fn new(inputs: &Inputs, fisher: Tensor) -> Importance {
        let mut importance = Importance { fisher, scale: 1.0 };
        let (mut sum, mut count) = (0.0, 0usize);
        for parameter in inputs.network().region(Region::Trunk) {
            // Without the floor.
            sum += importance.of(parameter).map(|value| value - FLOOR).sum::<f64>();
            count += parameter.shape.len();
        }
        importance.scale = if sum > 0.0 { count as f64 / sum } else { 0.0 };
        importance
    }

    fn of(&self, parameter: &Parameter) -> impl Iterator<Item = f64> {
        let window = self.fisher.window(parameter.offset, parameter.shape, parameter.pitch);
        window.to_vec::<f32>().into_iter().map(|value| f64::from(value) * self.scale + FLOOR)
    }
}

/// `Σ share·weight / Σ share`, number by number; their mean where shares sum to zero.
fn weighted_mean(of_sources: &[(Vec<f64>, Vec<f32>)]) -> Vec<f32> {
    let at = |at: usize| {
        let (mut sum, mut shares, mut plain) = (0.0, 0.0, 0.0);
        for (share, weights) in of_sources {
            let weight = f64::from(weights[at]);
            sum += share[at] * weight;
            shares += share[at];
            plain += weight;
        }
        (if shares == 0.0 { plain / of_sources.len() as f64 } else { sum / shares }) as f32
    };
    (0..of_sources[0].1.len()).map(at).collect()
}
