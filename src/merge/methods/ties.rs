//! TIES: trim, elect signs, and take the mean of those that agree.
//!
//! ```text
//! τ_m = W_m − base, all but the share `density` of largest |τ_m| set to zero, tensor by tensor
//! s   = sign(Σ c_m·τ_m),   A = the sources with sign(c_m·τ_m) = s
//! W   = base + λ · Σ_{m in A} c_m·τ_m / Σ_{m in A} c_m
//! ```

use super::{MergeMethod, Merged, Number, Task, change, changed};
use crate::error::Result;

pub struct Ties;

/// The share of changes that is kept where none is asked for, as in the paper.
const DENSITY: f64 = 0.2;

impl MergeMethod for Ties {
    fn name(&self) -> &'static str {
        "ties"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "Keeps each source's largest changes since the base, elects a sign for each weight by their sum,",
            "and adds λ times the weighted mean of the changes that agree with it.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Yadav et al., TIES-Merging: resolving interference when merging models, NeurIPS 2023"
    }

    fn reads(&self) -> &'static [Number] {
        &[Number::Scale, Number::Density]
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
        let scale = inputs.numbers.scale.unwrap_or(1.0);
        Ok(inputs.each_parameter(|_, parameter| {
            let changes: Vec<(f32, Vec<f32>)> = (0..inputs.sources.len())
                .map(|source| {
                    let change = change(inputs.model(source), base, parameter);
                    (inputs.coefficient(source, parameter) as f32, trimmed(change, density))
                })
                .collect();
            changed(base, parameter, scale, &agreeing(&changes, parameter.shape.len()))
        }))
    }
}

/// All but the largest set to zero: `density` of them, rounded down, but one at least.
fn trimmed(mut change: Vec<f32>, density: f64) -> Vec<f32> {
    let kept = ((change.len() as f64 * density) as usize).clamp(1, change.len());
    let mut order: Vec<usize> = (0..change.len()).collect();
    // The first of equals stays.
    order.sort_by(|&a, &b| change[b].abs().total_cmp(&change[a].abs()).then(a.cmp(&b)));
    order[kept..].iter().for_each(|&at| change[at] = 0.0);
    change
}

/// The weighted mean of the changes whose sign is that of the weighted sum.
pub(super) fn agreeing(changes: &[(f32, Vec<f32>)], len: usize) -> Vec<f32> {
    let of = |at: usize| {
        let weighted = || changes.iter().map(|(coefficient, change)| (*coefficient, coefficient * change[at]));
        let elected: f32 = weighted().map(|(_, change)| change).sum();
        let agree =
            |change: f32| change * elected > 0.0 || (change > 0.0) == (elected > 0.0) && change * elected != 0.0;
        let (mut sum, mut share) = (0f32, 0f32);
        for (coefficient, change) in weighted().filter(|(_, change)| agree(*change)) {
            sum += change;
            share += coefficient;
        }
        if share == 0.0 { 0.0 } else { sum / share }
    };
    (0..len).map(of).collect()
}
