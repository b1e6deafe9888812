//! Merging by coefficients that nobody learned: one per source, the baseline called uniform averaging.

use super::heads::Headed;
use super::plan::{BatchNormPolicy, Granularity, Method, Plan};
use super::{Constraint, Head, Heads, Sources};
use crate::checkpoint::{Metadata, Provenance};
use crate::error::Result;
use crate::nn::Model;
use crate::tensor::Tensor;

pub struct Fixed {
    pub model: Model,
    pub head: Head,
    pub metadata: Metadata,
    /// The provenance of the anchor's file, its images and classes, as far as it holds for the merged network.
    pub provenance: Provenance,
}

/// `Σ coefficient·source` by `blend`, which is [`Plan::blend`] wherever it is computed, with the running statistics of the
/// anchor. Heads become what `heads` says.
///
/// # Errors
/// If `heads` asks for heads that cannot be put together.
pub fn fold_fixed(
    sources: &Sources,
    coefficients: &[f64],
    anchor: usize,
    batch_norm: BatchNormPolicy,
    heads: Heads,
    blend: impl FnOnce(&Plan, &[Tensor], &Tensor) -> Result<Tensor>,
) -> Result<Fixed> {
    heads.check(sources)?;
    let of_anchor = &sources.get(anchor).checkpoint.model;
    let method = Method {
        sources: sources.len(),
        anchor,
        granularity: Granularity::Model,
        constraint: Constraint::Free,
        batch_norm,
    };
    let plan = Plan::new(&of_anchor.network, method)?;
    let merge_weights = Tensor::from_vec(coefficients.iter().map(|&c| c as f32).collect(), [sources.len(), 1]);
    let mut model = of_anchor.copy();
    model.trunk = blend(&plan, &sources.trunks(), &merge_weights)?;

    let Headed { model, head, class_names, heads } = heads.put(sources, coefficients, anchor, model);
    let json = |value: serde_json::Result<String>| value.expect("plain data is JSON");
    let metadata = Metadata::from(
        [
            ("method", "coefficients".to_string()),
            ("coefficients", json(serde_json::to_string(coefficients))),
            ("batch_norm", batch_norm.to_string()),
            ("anchor", anchor.to_string()),
            ("sources", json(serde_json::to_string(&sources.records()))),
            ("architecture", sources.architecture().to_json()),
        ]
        .map(|(key, value)| (format!("medmerge.{key}"), value)),
    );
    let image_size = sources.get(anchor).checkpoint.provenance.image_size;
    let provenance = Provenance { image_size, class_names, heads, ..Provenance::default() };
    Ok(Fixed { model, head, metadata, provenance })
}
