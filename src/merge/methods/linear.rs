//! `Σ c_m·W_m`.

use super::{MergeMethod, Merged, Task};
use crate::error::Result;
use crate::merge::plan::{Granularity, Method, Plan, WeightGroup};
use crate::nn::{Parameter, Region, Role};
use crate::ops::merge::constraint::Constraint;
use crate::tensor::Tensor;

pub struct Linear;

impl MergeMethod for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "Σ c_m·W_m: with coefficients 1/M the uniform average, or soup; after --align the aligned average.",
            "Coefficients are taken as they are: they need not sum to 1, and nothing normalises them.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Wortsman et al., Model soups, ICML 2022; aligned: Ainsworth et al., Git Re-Basin, ICLR 2023"
    }

    /// Norms and biases go with the filters that feed them.
    fn reads_coefficient_of(&self, parameter: &Parameter) -> bool {
        parameter.region == Region::Trunk && parameter.role == Role::Filters
    }

    /// In one pass on the device of the job. Where names decide, each layer has its own α, and batch norms and biases have that of
    /// the filters that feed them.
    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        let count = inputs.sources.len();
        let granularity = if inputs.filtered.is_empty() { Granularity::Model } else { Granularity::Layer };
        let method = Method {
            sources: count,
            anchor: inputs.anchor,
            granularity,
            constraint: Constraint::Free,
            batch_norm: inputs.batch_norm,
        };
        let plan = Plan::new(inputs.network(), method)?;
        let of_layer = |source: usize, entry: &WeightGroup| {
            let is_its = |p: &&Parameter| p.name.trim_end_matches(".weight") == entry.name;
            let parameter = inputs.network().region(Region::Trunk).find(is_its);
            parameter.map_or(inputs.coefficients[source], |parameter| inputs.coefficient(source, parameter)) as f32
        };
        let alphas: Vec<f32> = (0..count)
            .flat_map(|source| plan.entries.iter().map(move |entry| (source, entry)))
            .map(|(source, entry)| of_layer(source, entry))
            .collect();
        let merge_weights = Tensor::from_vec(alphas, [count, plan.entries.len()]);
        Ok((task.blend)(&plan, &inputs.sources.trunks(), &merge_weights)?.into())
    }
}
