//! Merging by coefficients that nobody learned: one per source, the baseline called uniform averaging.

use super::plan::{BatchNormPolicy, Granularity, Method, Plan};
use super::{Constraint, Source, Sources};
use crate::checkpoint::{Metadata, Provenance};
use crate::error::Result;
use crate::nn::{Model, Region};
use crate::tensor::Tensor;

pub struct Fixed {
    pub model: Model,
    pub head: Head,
    pub metadata: Metadata,
    /// The provenance of the anchor's file, its images and classes, as far as it holds for the merged network.
    pub provenance: Provenance,
}

/// The fate of the sources' heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// They were merged like everything else.
    Merged,
    /// The anchor's is kept, for this reason.
    Anchors(String),
    /// There is none, because the anchor has none.
    Missing,
}

impl Head {
    fn of(sources: &Sources, anchor: usize) -> Head {
        let classes = |source: &Source| source.checkpoint.has_head.then_some(source.checkpoint.model.network.classes);
        let Some(of_anchor) = classes(sources.get(anchor)) else { return Head::Missing };
        let tells = |source: &Source| match classes(source) {
            Some(classes) => format!("{} tells {classes} classes apart", source.path.display()),
            None => format!("{} has no classifier", source.path.display()),
        };
        match sources.iter().find(|source| classes(source) != Some(of_anchor)) {
            Some(odd) => Head::Anchors(format!("{}, {}", tells(sources.get(anchor)), tells(odd))),
            None => Head::Merged,
        }
    }
}

/// `Σ coefficient·source` by `blend`, which is [`Plan::blend`] wherever it is computed, with the running statistics of the anchor. Heads are merged where all
/// sources tell equally many classes apart.
pub fn fold_fixed(
    sources: &Sources,
    coefficients: &[f64],
    anchor: usize,
    batch_norm: BatchNormPolicy,
    blend: impl FnOnce(&Plan, &[Tensor], &Tensor) -> Result<Tensor>,
) -> Result<Fixed> {
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

    let head = Head::of(sources, anchor);
    if head == Head::Merged {
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
            ("architecture", sources.architecture().to_json()),
        ]
        .map(|(key, value)| (format!("medmerge.{key}"), value)),
    );
    let Provenance { image_size, class_names, .. } = sources.get(anchor).checkpoint.provenance.clone();
    let is_common = |names: &Vec<String>| {
        let of = |source: &Source| source.checkpoint.provenance.class_names.clone();
        head != Head::Merged || sources.iter().all(|source| of(source).as_ref() == Some(names))
    };
    let provenance = Provenance {
        image_size,
        class_names: class_names.filter(|names| head != Head::Missing && is_common(names)),
        ..Provenance::default()
    };
    Ok(Fixed { model, head, metadata, provenance })
}
