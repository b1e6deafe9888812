//! TIES: trim, elect signs, and take the mean of those that agree.
//!
//! ```text
//! τ_m = W_m − base, all but the share `density` of largest |τ_m| set to zero, tensor by tensor
//! s   = sign(Σ c_m·τ_m),   A = the sources with sign(c_m·τ_m) = s
//! W   = base + λ · Σ_{m in A} c_m·τ_m / Σ_{m in A} c_m
//! ```

use super::changes::{Changes, added, shares};
use super::{Inputs, MergeMethod, Merged, Number, Task};
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

    fn of_heads(&self, inputs: &Inputs) -> Vec<f64> {
        shares(inputs.coefficients)
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        let density = inputs.numbers.density.unwrap_or(DENSITY);
        Ok(inputs.each_parameter(|_, parameter| {
            let changes = Changes::of(&inputs, parameter, |_, change| trimmed(change, density));
            added(&inputs, parameter, &changes.agreeing())
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
