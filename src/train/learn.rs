//! Learning merge weights: choose the anchor by linear probes, then learn the weights and the head together.

use serde::{Deserialize, Serialize};

use super::{EpochRecord, MERGE_WEIGHTS, MergeState, Observer, Subject, Target, TrainOptions, best_epoch, train};
use crate::checkpoint::Provenance;
use crate::error::{Error, Result};
use crate::merge::{BatchNormPolicy, Constraint, Granularity, Learned, Method, Plan, Sources, Start};
use crate::nn::{Model, Region, init};

/// Which source stands on the `1 − w` side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorChoice {
    Named(usize),
    /// The source whose linear probe has the better macro F1 on the validation split.
    Auto,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnOptions {
    pub granularity: Granularity,
    pub constraint: Constraint,
    pub start: Start,
    pub anchor: AnchorChoice,
    pub batch_norm: BatchNormPolicy,
    /// Keep the running statistics of the probe instead of re-estimating them.
    pub keep_statistics: bool,
    pub probe: TrainOptions,
}

/// What learning came to.
pub struct Learning {
    pub learned: Learned,
    pub history: Vec<EpochRecord>,
    /// Macro F1 of each source's linear probe on the validation split, where the anchor was chosen by it.
    pub anchor_scores: Option<Vec<f64>>,
}

/// A source's trunk under a new head.
fn with_new_head(sources: &Sources, index: usize, classes: usize, seed: u64) -> Model {
    let mut model = sources.transfer(index, &sources.network(classes));
    init::initialize(&mut model, Region::Head, seed);
    model
}

/// Trains a new head on a source whose trunk stays as it is, running statistics included: a linear probe.
pub fn probe(
    sources: &Sources,
    index: usize,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<(Model, Vec<EpochRecord>)> {
    let mut model = with_new_head(sources, index, target.data.classes, options.seed);
    let history = train(&mut model, &mut Subject::Head, target, options, observer)?;
    Ok((model, history))
}

/// Probes every source and returns the best one's index with all scores: macro F1 on the validation split, of the best
/// epoch. Each probe is a phase of the observer's, by the source's name.
pub fn choose_anchor(
    sources: &Sources,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<(usize, Vec<f64>)> {
    if target.data.val.is_empty() {
        let hint = "name the anchor: --anchor FILE";
        return Err(Error::usage("--anchor auto compares sources on the validation split, which is empty", hint));
    }
    let mut scores = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        observer.phase(&format!("linear probe of {}", source.path.display()));
        let (_, history) = probe(sources, index, target, options, observer)?;
        scores.push(best_epoch(&history).and_then(|record| record.val_macro_f1).unwrap_or(0.0));
    }
    // The first of equals.
    let best = (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).expect("two sources at least");
    Ok((best, scores))
}

/// Chooses the anchor, if that is asked for, and learns. Each probe is a phase of the observer's, and so is the learning.
pub fn learn(
    sources: &Sources,
    target: Target,
    options: &LearnOptions,
    observer: &mut dyn Observer,
) -> Result<Learning> {
    options.probe.check()?;
    let classes = target.data.classes;
    let method = |anchor| Method {
        sources: sources.len(),
        anchor,
        granularity: options.granularity,
        constraint: options.constraint,
        batch_norm: options.batch_norm,
    };
    let network = sources.network(classes);
    // A start that the constraint refuses is refused before the probes.
    Plan::new(&network, method(0))?.start(options.start)?;
    let (anchor, anchor_scores) = match options.anchor {
        AnchorChoice::Named(index) => (index, None),
        AnchorChoice::Auto => {
            let (best, scores) = choose_anchor(sources, target, &options.probe, observer)?;
            (best, Some(scores))
        }
    };
    let plan = Plan::new(&network, method(anchor))?;
    let numbers = plan.start(options.start)?;
    let mut model = with_new_head(sources, anchor, classes, options.probe.seed);
    let keeps_statistics = options.keep_statistics;
    let mut subject = Subject::Merge(MergeState { plan, trunks: sources.trunks(), numbers, keeps_statistics });
    observer.phase("learning merge weights");
    let history = train(&mut model, &mut subject, target, &options.probe, observer)?;
    let Subject::Merge(state) = subject else { unreachable!("made above") };
    let learned = Learned {
        architecture: sources.architecture().clone(),
        method: state.plan.method,
        start: options.start,
        seed: options.probe.seed,
        sources: sources.records(),
        numbers: state.numbers,
        model,
        provenance: Provenance::of(
            target.data,
            target.normalisation,
            &[],
            options.probe.phase(MERGE_WEIGHTS, &history),
        ),
    };
    Ok(Learning { learned, history, anchor_scores })
}
