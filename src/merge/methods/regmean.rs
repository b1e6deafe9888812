//! RegMean, for convolutions: the weights that say best, by least squares, what each source says of what it reads itself.
//!
//! ```text
//! min_W Σ_m c_m·Σ_x ‖W·x − W_m·x‖²   →   W = (Σ c_m·W_m·G_m)·(Σ c_m·G_m)⁻¹,   G_m = Σ x·xᵀ over the patches x that source m reads
//! ```
//!
//! Off the diagonal G is multiplied by 0.9, as the paper does, so that it can be inverted. Batch norms, biases, convolutions in
//! groups, and layers whose patches are too long, are averaged.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{MergeMethod, Merged, Task};
use crate::error::{Error, Result};
use crate::merge::solve::solve;

pub struct RegMean;

/// α of the paper.
const OFF_DIAGONAL: f64 = 0.9;
/// Added to the diagonal, as a share of its mean: what no source reads has no other.
const FLOOR: f64 = 1e-6;

impl MergeMethod for RegMean {
    fn name(&self) -> &'static str {
        "regmean"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "The weights that come closest, by least squares, to what each source makes of what it reads itself,",
            "layer by layer, on the training images of --data; batch norms and biases are averaged.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Jin et al., Dataless knowledge fusion by merging weights of language models, ICLR 2023"
    }

    fn needs_images(&self) -> bool {
        true
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        let count = inputs.sources.len();
        let grams: Vec<BTreeMap<usize, Vec<f64>>> = (0..count)
            .map(|source| Ok(task.images().grams(inputs.sources, source)?.into_iter().collect()))
            .collect::<Result<_>>()?;
        let mut singular = std::sync::Mutex::new(None);
        let merged = inputs.each_parameter(|index, parameter| {
            let coefficients: Vec<f64> = (0..count).map(|source| inputs.coefficient(source, parameter)).collect();
            let weights: Vec<Vec<f32>> =
                (0..count).map(|source| inputs.model(source).parameter(parameter).to_vec()).collect();
            if !grams[0].contains_key(&index) {
                return average(&weights, &coefficients);
            }
            let of_sources: Vec<&[f64]> = grams.iter().map(|grams| grams[&index].as_slice()).collect();
            closest(&weights, &of_sources, &coefficients, parameter.shape.row_len()).unwrap_or_else(|| {
                *singular.lock().expect("nobody panics with it") = Some(parameter.name.clone());
                weights[0].clone()
            })
        });
        match singular.get_mut().expect("nobody panics with it").take() {
            None => Ok(merged),
            Some(name) => Err(Error::NotFinite {
                message: format!("what the sources read before {name} has no inverse"),
                hint: "check the sources, --mean and --std; coefficients of this method are above 0".into(),
            }),
        }
    }
}

fn average(weights: &[Vec<f32>], coefficients: &[f64]) -> Vec<f32> {
    let total: f64 = coefficients.iter().sum();
    let at = |at: usize| {
        let sum: f64 = weights.iter().zip(coefficients).map(|(weights, c)| c * f64::from(weights[at])).sum();
        (sum / total) as f32
    };
    (0..weights[0].len()).map(at).collect()
}

/// The solution for filters of d weights; `None` if there is none.
fn closest(weights: &[Vec<f32>], grams: &[&[f64]], coefficients: &[f64], d: usize) -> Option<Vec<f32>> {
    let shrunk =
        |gram: &[f64], i: usize, j: usize| if i == j { gram[i * d + j] } else { OFF_DIAGONAL * gram[i * d + j] };
    let mut sum = vec![0f64; d * d];
    let mut rhs = vec![0f64; weights[0].len()];
    for ((weights, gram), c) in weights.iter().zip(grams).zip(coefficients) {
        sum.par_chunks_mut(d).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, sum)| *sum += c * shrunk(gram, i, j));
        });
        rhs.par_chunks_mut(d).zip(weights.par_chunks(d)).for_each(|(rhs, filter)| {
            for (i, rhs) in rhs.iter_mut().enumerate() {
                *rhs += c * filter.iter().enumerate().map(|(j, &w)| f64::from(w) * shrunk(gram, i, j)).sum::<f64>();
            }
        });
    }
    let floor = FLOOR * (0..d).map(|i| sum[i * d + i]).sum::<f64>() / d as f64;
    // What no filter of any source ever saw.
    if floor == 0.0 {
        return Some(average(weights, coefficients));
    }
    // The floor pulls to the average.
    let mean = average(weights, coefficients);
    rhs.iter_mut().zip(&mean).for_each(|(rhs, &mean)| *rhs += floor * f64::from(mean));
    solve(&sum, d, floor, &mut rhs).ok()?;
    let solved: Vec<f32> = rhs.into_iter().map(|weight| weight as f32).collect();
    solved.iter().all(|weight| weight.is_finite()).then_some(solved)
}
