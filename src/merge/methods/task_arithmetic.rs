//! `base + λ·Σ c_m·(W_m − base)`.

use super::{MergeMethod, Merged, Number, Task, change, changed};
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

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        let (base, scale) = (inputs.base(), inputs.numbers.scale.unwrap_or(1.0));
        Ok(inputs.each_parameter(|_, parameter| {
            let mut sum = vec![0f32; parameter.shape.len()];
            for source in 0..inputs.sources.len() {
                let coefficient = inputs.coefficient(source, parameter) as f32;
                let change = change(inputs.model(source), base, parameter);
                sum.iter_mut().zip(change).for_each(|(sum, change)| *sum += coefficient * change);
            }
            changed(base, parameter, scale, &sum)
        }))
    }
}
