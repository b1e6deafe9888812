//! `base + λ·Σ c_m·(W_m − base)`.

use super::changes::{Changes, added, shares};
use super::{Inputs, MergeMethod, Merged, Number, Task};
use crate::error::Result;

pub struct TaskArithmetic;

impl MergeMethod for TaskArithmetic {
    fn name(&self) -> &'static str {
        "task-arithmetic"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "base + λ·Σ c_m·(W_m − base): what each source learned since the base, added up.",
            "For sources that were fine-tuned from one network, which --base names.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Ilharco et al., Editing models with task arithmetic, ICLR 2023"
    }

    fn reads(&self) -> &'static [Number] {
        &[Number::Scale]
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
        Ok(inputs.each_parameter(|_, parameter| {
            added(&inputs, parameter, &Changes::of(&inputs, parameter, |_, change| change).sum())
        }))
    }
}
