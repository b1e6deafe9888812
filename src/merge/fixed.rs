//! Merging by a method that learns no merge weights, such as the baseline called uniform averaging.

use super::heads::Headed;
use super::methods::{MergeMethod, Merged, Task};
use super::{Head, Heads};
use crate::checkpoint::{Metadata, Provenance};
use crate::error::Result;
use crate::nn::{Architecture, Model};

pub struct Fixed {
    pub model: Model,
    pub head: Head,
    pub metadata: Metadata,
    /// The provenance of the anchor's file, its images and classes, as far as it holds for the merged network.
    pub provenance: Provenance,
    pub architecture: Architecture,
    /// What a user ought to know.
    pub remarks: Vec<String>,
}

/// A network by any method, with the running statistics of the anchor.
///
/// # Errors
/// If `heads` asks for heads that cannot be put together, or the method cannot merge these sources.
pub fn fold_by(method: &dyn MergeMethod, task: &Task, heads: Heads) -> Result<Fixed> {
    let inputs = task.inputs;
    heads.check(inputs.sources)?;
    let Merged { trunk, lifted, shares, remarks } = method.merge(task)?;
    let (sources, anchor) = (lifted.as_ref().unwrap_or(inputs.sources), inputs.anchor);
    let mut model = sources.get(anchor).checkpoint.model.copy();
    model.trunk = trunk;

    let of_heads = shares.clone().unwrap_or_else(|| method.of_heads(&inputs));
    let Headed { model, head, class_names, task: says, heads } = heads.put(sources, &of_heads, anchor, model);
    let json = |value: serde_json::Result<String>| value.expect("plain data is JSON");
    let name = match method.name() {
        // As files had it before there were others.
        "linear" => "coefficients",
        other => other,
    };
    let mut metadata = Metadata::from(
        [
            ("method", name.to_string()),
            ("batch_norm", inputs.batch_norm.to_string()),
            ("anchor", anchor.to_string()),
            ("sources", json(serde_json::to_string(&sources.records()))),
            ("architecture", sources.architecture().to_json()),
        ]
        .map(|(key, value)| (format!("medmerge.{key}"), value)),
    );
    let coefficients = shares.as_deref().or(method.reads_coefficients().then_some(inputs.coefficients));
    if let Some(coefficients) = coefficients {
        metadata.insert("medmerge.coefficients".into(), json(serde_json::to_string(coefficients)));
    }
    if !inputs.filtered.is_empty() {
        metadata.insert("medmerge.coefficients_for".into(), json(serde_json::to_string(inputs.filtered)));
    }
    let numbers = inputs.numbers.texts().into_iter();
    metadata.extend(numbers.map(|(number, value)| (format!("medmerge.{number}"), value)));
    let image_size = sources.get(anchor).checkpoint.provenance.image_size;
    let provenance = Provenance { image_size, class_names, task: says, heads, ..Provenance::default() };
    Ok(Fixed { model, head, metadata, provenance, architecture: sources.architecture().clone(), remarks })
}
