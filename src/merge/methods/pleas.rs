//! PLeaS-style partial merging of two sources: units are aligned, partners that are little alike stay two units as far as the budget
//! allows, and the weights are fitted by least squares.

use super::{MergeMethod, Merged, Number, Numbers, Task};
use crate::error::Result;
use crate::merge::Zip;
use crate::nn::{UnitGroup, Units};

pub struct Pleas;

impl MergeMethod for Pleas {
    fn name(&self) -> &'static str {
        "pleas"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "Units whose partners correlate less than --threshold stay two, the least alike first, up to --budget times the",
            "parameters; then every layer is fitted, by least squares, to what both sources say. Align by activations first.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Nasery et al., PLeaS: merging models with permutations and least squares, CVPR 2025"
    }

    fn reads(&self) -> &'static [Number] {
        &[Number::Threshold, Number::Budget]
    }

    fn needs_images(&self) -> bool {
        true
    }

    fn only_sources(&self) -> Option<usize> {
        Some(2)
    }

    fn reads_coefficients(&self) -> bool {
        false
    }

    fn widens(&self, numbers: &Numbers) -> bool {
        numbers.budget.is_some_and(|budget| budget > 1.0)
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let units = Units::of(task.inputs.network());
        let correlations = task.images().correlations(task.inputs.sources, [0, 1])?;
        let of_group = |(group, strands): (&UnitGroup, &Vec<Vec<f32>>)| -> Vec<f64> {
            let matrix = &strands[0];
            let count = group.strands[0].channels();
            (0..group.units).map(|unit| f64::from(matrix[unit * group.strands[0].pieces * (count + 1)])).collect()
        };
        let likeness: Vec<Vec<f64>> = units.groups.iter().zip(&correlations).map(of_group).collect();
        let threshold = task.inputs.numbers.threshold.unwrap_or(1.0);
        let zip = Zip::partial(
            task.inputs.network(),
            &units,
            &likeness,
            threshold,
            task.inputs.numbers.budget.unwrap_or(1.0),
        );
        let mut merged = task.mean_of(zip.lift(task.inputs.sources, &units)?)?;
        let lifted = merged.lifted.as_ref().expect("lifted above");
        let mut model = lifted.get(task.inputs.anchor).checkpoint.model.copy();
        let (before, after) = (task.inputs.network().parameter_count(), model.network.parameter_count());
        model.trunk = merged.trunk;
        let left = task.images().fit(&mut model, task.inputs.sources, &units, &zip)?;
        merged.trunk = model.trunk;
        let ratio = after as f64 / before as f64;
        let doubled: usize =
            zip.groups.iter().zip(&units.groups).map(|(zipped, group)| zipped.len() - group.units).sum();
        merged.remarks.push(format!("{doubled} of {} units stay two: {ratio:.3} times the parameters", units.count()));
        if !left.is_empty() {
            merged.remarks.push(format!("not fitted, but averaged: {}", left.join(", ")));
        }
        Ok(merged)
    }
}
