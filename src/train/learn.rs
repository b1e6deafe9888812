//! Learning merge weights: choose the anchor by linear probes, then learn the weights and the head together.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{
    EpochRecord, MERGE_WEIGHTS, MergeState, Observer, ResumeFile, Subject, Target, TrainOptions, align, best_epoch,
    train, train_resumable,
};
use crate::checkpoint::Provenance;
use crate::error::{Error, Result};
use crate::merge::{
    Align, BatchNormPolicy, Constraint, Granularity, Learned, Method, Plan, ProbeStatistics, Sources, Start, Statistics,
};
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
    /// Brings the sources' units into the order of the anchor's first.
    #[serde(default)]
    pub align: Align,
    #[serde(default)]
    pub probe_statistics: ProbeStatistics,
    pub probe: TrainOptions,
}

/// The result of learning.
pub struct Learning {
    pub learned: Learned,
    pub history: Vec<EpochRecord>,
    pub anchor: Anchor,
}

/// The anchor, and what it was chosen by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    pub index: usize,
    /// The probe of each source; none where the anchor was named.
    pub probes: Vec<Probe>,
}

/// The result of a source's linear probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The phase's.
    pub name: String,
    pub history: Vec<EpochRecord>,
}

impl Probe {
    /// Macro F1 of its best epoch on the validation split.
    pub fn score(&self) -> f64 {
        best_epoch(&self.history).and_then(|record| record.val_macro_f1).unwrap_or(0.0)
    }
}

impl LearnOptions {
    fn method(&self, sources: &Sources, anchor: usize) -> Method {
        let LearnOptions { granularity, constraint, batch_norm, .. } = *self;
        Method { sources: sources.len(), anchor, granularity, constraint, batch_norm }
    }

    /// Refuses what cannot work with these sources, before anything is computed: a start that the constraint does not allow,
    /// a parameter that nothing says how to merge.
    pub fn check(&self, sources: &Sources, classes: usize) -> Result<()> {
        self.probe.check()?;
        if sources.len() == 1 && self.constraint != Constraint::Free {
            let message = format!("a single source with --constraint {} has nobody to be merged with", self.constraint);
            let hint = "name two or more after --models; or learn numbers of the one alone: --constraint free";
            return Err(Error::usage(message, hint));
        }
        if self.start.coarser().is_some() && self.probe.epochs < 2 {
            let message = format!("--start {} with a single epoch", self.start);
            return Err(Error::usage(message, "half of the epochs are for each: give 2 at least"));
        }
        Plan::new(&sources.network(classes), self.method(sources, 0))?.start(self.start).map(drop)
    }
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

/// Probes every source; the anchor is the one with the best macro F1 on the validation split, of the best epoch. Each probe
/// is a phase of the observer's, by the source's name.
pub fn choose_anchor(
    sources: &Sources,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<Anchor> {
    if target.data.val.is_empty() {
        let hint = "name the anchor: --anchor FILE";
        return Err(Error::usage("--anchor auto compares sources on the validation split, which is empty", hint));
    }
    let mut probes = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let name = format!("linear probe of {}", source.path.display());
        observer.phase(&name);
        let (_, history) = probe(sources, index, target, options, observer)?;
        probes.push(Probe { name, history });
    }
    let scores: Vec<f64> = probes.iter().map(Probe::score).collect();
    // The first of equals.
    let best = (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).expect("a source at least");
    Ok(Anchor { index: best, probes })
}

/// Chooses the anchor, if that is asked for, and learns. Each probe is a phase of the observer's, and so is the learning.
pub fn learn(
    sources: &Sources,
    target: Target,
    options: &LearnOptions,
    observer: &mut dyn Observer,
) -> Result<Learning> {
    options.check(sources, target.data.classes)?;
    let anchor = match options.anchor {
        AnchorChoice::Named(index) => Anchor { index, probes: Vec::new() },
        AnchorChoice::Auto => choose_anchor(sources, target, &options.probe, observer)?,
    };
    learn_for(sources, target, options, anchor, observer, None)
}

/// [`learn`] for an anchor that was chosen before, keeping its state in a file after each epoch, and continuing from it where
/// there is one.
pub fn learn_for(
    sources: &Sources,
    target: Target,
    options: &LearnOptions,
    anchor: Anchor,
    observer: &mut dyn Observer,
    state: Option<&mut ResumeFile>,
) -> Result<Learning> {
    learn_as("learning merge weights", sources, target, options, anchor, observer, state)
}

/// One of several ways to learn, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    pub anchor: usize,
    pub start: Start,
    /// Macro F1 of the best epoch on the validation split.
    pub score: f64,
}

/// [`learn_for`] each of the anchors from each of the starts, and what has the best macro F1 on the validation split, the first of
/// equals. Several are phases by their start and the anchor's name. `state` makes the file of each, counted from 0.
pub fn learn_best<'a>(
    sources: &Sources,
    target: Target,
    options: &LearnOptions,
    (anchors, starts): (&[Anchor], &[Start]),
    observer: &mut dyn Observer,
    mut state: impl FnMut(usize, &Anchor, Start) -> Result<Option<&'a mut ResumeFile>>,
) -> Result<(Learning, Vec<Tried>)> {
    let all: Vec<(&Anchor, Start)> = anchors.iter().flat_map(|a| starts.iter().map(move |&s| (a, s))).collect();
    let has_choice = all.len() > 1;
    if has_choice && target.data.val.is_empty() {
        let hint = "name one start and one anchor";
        return Err(Error::usage("several starts are compared on the validation split, which is empty", hint));
    }
    let (mut best, mut tried) = (None::<Learning>, Vec::<Tried>::new());
    for (index, (anchor, start)) in all.into_iter().enumerate() {
        let mut phase = "learning merge weights".to_string();
        if has_choice {
            let name = sources.get(anchor.index).path.display();
            phase = format!("{phase} from {start}, anchor {name}");
        }
        let file = state(index, anchor, start)?;
        let options = LearnOptions { start, ..options.clone() };
        let learning = learn_as(&phase, sources, target, &options, anchor.clone(), observer, file)?;
        let score = best_epoch(&learning.history).and_then(|record| record.val_macro_f1).unwrap_or(0.0);
        if tried.iter().all(|before| score > before.score) {
            best = Some(learning);
        }
        tried.push(Tried { anchor: anchor.index, start, score });
    }
    Ok((best.expect("an anchor and a start at least"), tried))
}

/// [`learn_for`] as a phase of that name.
fn learn_as(
    phase: &str,
    sources: &Sources,
    target: Target,
    options: &LearnOptions,
    anchor: Anchor,
    observer: &mut dyn Observer,
    state: Option<&mut ResumeFile>,
) -> Result<Learning> {
    let classes = target.data.classes;
    let options = &LearnOptions { probe: options.probe.for_images(target.data.train.len()), ..options.clone() };
    let alignment = align(options.align, sources, anchor.index, target, observer)?;
    let sources = &alignment.as_ref().map_or(Cow::Borrowed(sources), |a| Cow::Owned(sources.aligned(a)));
    let plan = Plan::new(&sources.network(classes), options.method(sources, anchor.index))?;
    let mut merge_weights = plan.start(options.start)?;
    let mut model = with_new_head(sources, anchor.index, classes, options.probe.seed);
    let (mut probe, mut before) = (options.probe.clone(), Vec::new());
    if let Some(granularity) = options.start.coarser() {
        let Learning { learned, .. } = coarser_first(granularity, sources, target, options, &anchor, observer)?;
        merge_weights = plan.spread(&learned.plan()?, &learned.merge_weights);
        model.head = learned.model.head;
        before = learned.provenance.training;
        probe.epochs -= probe.epochs / 2;
    }
    let (keeps_statistics, probe_statistics) = (options.keep_statistics, options.probe_statistics);
    let trunks = sources.trunks();
    let mut subject = Subject::Merge(MergeState { plan, trunks, merge_weights, keeps_statistics, probe_statistics });
    observer.phase(phase);
    let history = train_resumable(&mut model, &mut subject, target, &probe, observer, state)?;
    let Subject::Merge(merge) = subject else { unreachable!("made above") };
    let learned = Learned {
        architecture: sources.architecture().clone(),
        method: merge.plan.method,
        start: options.start,
        regularise: probe.regularise,
        statistics: Some(if keeps_statistics { Statistics::Anchor } else { Statistics::Reestimate }),
        probe_statistics,
        seed: probe.seed,
        sources: sources.records(),
        alignment,
        merge_weights: merge.merge_weights,
        model,
        provenance: Provenance::of(target.data, target.normalisation, &before, probe.phase(MERGE_WEIGHTS, &history))?,
    };
    Ok(Learning { learned, history, anchor })
}

/// Fewer merge weights, from 1/M, for half of the epochs; sources are in their order. Nothing pulls them: what follows is pulled
/// towards them. It has no state of its own: a run that continues learns it again, to the same bits.
fn coarser_first(
    granularity: Granularity,
    sources: &Sources,
    target: Target,
    options: &LearnOptions,
    anchor: &Anchor,
    observer: &mut dyn Observer,
) -> Result<Learning> {
    let probe = TrainOptions { epochs: options.probe.epochs / 2, regularise: 0.0, ..options.probe.clone() };
    let (start, align) = (Start::Uniform, Align::None);
    let options = LearnOptions { granularity, start, align, probe, ..options.clone() };
    let phase = format!("learning merge weights by {granularity}");
    learn_as(&phase, sources, target, &options, anchor.clone(), observer, None)
}
