//! Merging by coefficients that nobody learned: one per source, the baseline called uniform averaging.

use super::plan::{BatchNormPolicy, Granularity, Method, Plan};
use super::{Constraint, Sources};
use crate::checkpoint::Metadata;
use crate::error::Result;
use crate::nn::{Model, Region};
use crate::tensor::{Device, Tensor};

pub struct Fixed {
    pub model: Model,
    /// Whether the heads were merged too; otherwise the anchor's is kept, because they differ in shape.
    pub head_merged: bool,
    pub metadata: Metadata,
}

/// `Σ coefficient·source`, computed on `device`, with the running statistics of the anchor.
pub fn fold_fixed(
    sources: &Sources,
    coefficients: &[f64],
    anchor: usize,
    batch_norm: BatchNormPolicy,
    device: Device,
) -> Result<Fixed> {
    let of_anchor = &sources.get(anchor).checkpoint.model;
    let method = Method {
        sources: sources.len(),
        anchor,
        granularity: Granularity::Model,
        constraint: Constraint::Free,
        batch_norm,
    };
    let plan = Plan::new(&of_anchor.network, method);
    let numbers = Tensor::from_vec(coefficients.iter().map(|&c| c as f32).collect(), [sources.len(), 1]);
    let mut model = of_anchor.copy();
    model.trunk = plan.blend_on(device, &sources.trunks(), &numbers)?;

    let classes = of_anchor.network.classes;
    let head_merged = sources.iter().all(|s| s.checkpoint.has_head && s.checkpoint.model.network.classes == classes);
    if head_merged {
        for parameter in of_anchor.network.region(Region::Head) {
            let mut sum = vec![0f32; parameter.shape.len()];
            for (source, &coefficient) in sources.iter().zip(coefficients) {
                let values = source.checkpoint.model.parameter(parameter).to_vec::<f32>();
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += coefficient as f32 * value);
            }
            model.set_parameter(parameter, &sum);
        }
    }
    let json = |value: serde_json::Result<String>| value.expect("plain data is JSON");
    let metadata = Metadata::from(
        [
            ("method", "coefficients".to_string()),
            ("coefficients", json(serde_json::to_string(coefficients))),
            ("batch_norm", batch_norm.to_string()),
            ("anchor", anchor.to_string()),
            ("sources", json(serde_json::to_string(&sources.records()))),
            ("architecture", json(serde_json::to_string(sources.architecture()))),
        ]
        .map(|(key, value)| (format!("medmerge.{key}"), value)),
    );
    Ok(Fixed { model, head_merged, metadata })
}
