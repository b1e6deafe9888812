//! What sources changed of the network that they were trained from, and what methods make of it.

use super::Inputs;
use crate::nn::{Model, Parameter};

/// The changes of a parameter by each source, with its coefficient.
pub struct Changes(pub Vec<(f32, Vec<f32>)>);

impl Changes {
    /// `W_m − base` of each source m, as `thin` leaves it.
    pub fn of(inputs: &Inputs, parameter: &Parameter, thin: impl Fn(usize, Vec<f32>) -> Vec<f32>) -> Changes {
        let numbers = |model: &Model| model.parameter(parameter).to_vec::<f32>();
        let before = numbers(inputs.base());
        let of_source = |source: usize| {
            let after = numbers(inputs.model(source));
            let change = after.iter().zip(&before).map(|(after, before)| after - before).collect();
            (inputs.coefficient(source, parameter) as f32, thin(source, change))
        };
        Changes((0..inputs.sources.len()).map(of_source).collect())
    }

    /// `Σ c_m·change_m`.
    pub fn sum(&self) -> Vec<f32> {
        let at = |at: usize| self.0.iter().map(|(coefficient, change)| coefficient * change[at]).sum();
        (0..self.0[0].1.len()).map(at).collect()
    }

    /// The weighted mean of the changes whose sign is that of the weighted sum.
    pub fn agreeing(&self) -> Vec<f32> {
        let elected = self.sum();
        let of = |at: usize| {
            let agree = |change: f32| (change > 0.0 && elected[at] > 0.0) || (change < 0.0 && elected[at] < 0.0);
            let weighted = self.0.iter().map(|(coefficient, change)| (coefficient, coefficient * change[at]));
            let (mut sum, mut share) = (0f32, 0f32);
            for (coefficient, change) in weighted.filter(|(_, change)| agree(*change)) {
                sum += change;
                share += coefficient;
            }
            if share == 0.0 { 0.0 } else { sum / share }
        };
        (0..elected.len()).map(of).collect()
    }
}

/// `base + λ·change`.
pub fn added(inputs: &Inputs, parameter: &Parameter, change: &[f32]) -> Vec<f32> {
    let scale = inputs.numbers.scale.unwrap_or(1.0) as f32;
    let before = inputs.base().parameter(parameter).to_vec::<f32>();
    before.iter().zip(change).map(|(before, change)| before + scale * change).collect()
}

/// Coefficients that sum to 1: heads, which have no base, are averaged by them.
pub fn shares(coefficients: &[f64]) -> Vec<f64> {
    let sum: f64 = coefficients.iter().sum();
    match sum != 0.0 {
        true => coefficients.iter().map(|c| c / sum).collect(),
        false => vec![1.0 / coefficients.len() as f64; coefficients.len()],
    }
}
