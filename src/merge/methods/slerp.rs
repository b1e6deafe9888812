//! Spherical linear interpolation between two sources, tensor by tensor.
//!
//! ```text
//! cos θ = ⟨a, b⟩ / ‖a‖‖b‖        W = sin((1 − t)·θ)/sin θ · a + sin(t·θ)/sin θ · b
//! ```
//!
//! Where a and b are nearly parallel, |cos θ| > 0.9995, or one is zero, it is (1 − t)·a + t·b.

use super::{Inputs, MergeMethod, Merged, Number, Task};
use crate::error::Result;
use crate::numbers::cosine;

pub struct Slerp;

const HALF_WAY: f64 = 0.5;
/// Beyond that sin θ is too small to divide by.
const NEARLY_PARALLEL: f64 = 0.9995;

impl MergeMethod for Slerp {
    fn name(&self) -> &'static str {
        "slerp"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "Goes the share t of the arc from the first source to the second, tensor by tensor:",
            "other than their average, what lies between two networks is as long as they are.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985"
    }

    fn reads(&self) -> &'static [Number] {
        &[Number::T]
    }

    fn only_sources(&self) -> Option<usize> {
        Some(2)
    }

    fn reads_coefficients(&self) -> bool {
        false
    }

    /// Along the chord: classes of both are told apart by one row each.
    fn of_heads(&self, inputs: &Inputs) -> Vec<f64> {
        let t = inputs.numbers.t.unwrap_or(HALF_WAY);
        vec![1.0 - t, t]
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        let t = inputs.numbers.t.unwrap_or(HALF_WAY);
        Ok(inputs.each_parameter(|_, parameter| {
            let [a, b] = [0, 1].map(|source| inputs.model(source).parameter(parameter).to_vec::<f32>());
            let [x, y] = shares(&a, &b, t);
            a.iter().zip(&b).map(|(&a, &b)| (x * f64::from(a) + y * f64::from(b)) as f32).collect()
        }))
    }
}

/// By what both are multiplied.
fn shares(a: &[f32], b: &[f32], t: f64) -> [f64; 2] {
    let cosine = cosine(a, b);
    // NaN where one is zero: then it is no angle.
    if cosine.is_nan() || cosine.abs() > NEARLY_PARALLEL {
        return [1.0 - t, t];
    }
    let angle = cosine.acos();
    [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
}
