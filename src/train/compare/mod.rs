//! The same target by every recipe, with the same epochs, batches and seeds: what a merge has to beat.
//!
//! Every recipe trains for `probe.epochs + fine_tuning.epochs` epochs on the same training images in the same order, of which one
//! with two phases spends `probe.epochs` on the first, and keeps its best epoch by macro F1 on the validation split. Two networks
//! of a run are measured: with frozen features, after the first phase, and fine-tuned, once for each learning rate of a grid.

mod recipe;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use recipe::{Kind, LearnOn, LearnRecipe, Recipe, Tuning};

use super::selection::best_epoch;
use super::{
    Anchor, AnchorChoice, Change, EpochRecord, FINE_TUNE, FINE_TUNE_MERGE, LINEAR_PROBE, Learning, Observer, Subject,
    TRAIN, Target, TargetImages, Teachers, TrainOptions, align, learn_best, learn_for, probe, reestimate_statistics,
    scores, train,
};
use crate::checkpoint::Phase;
use crate::data::SplitName;
use crate::error::{Error, Result};
use crate::merge::methods::{Inputs, MergeMethod, Numbers, Task, named};
use crate::merge::{Constraint, Fixed, Granularity, Heads, Learned, Plan, Sources, Start, fold_by};
use crate::metrics::{Metrics, mean_of_members};
use crate::nn::{Model, Region, init};
use crate::tensor::Tensor;

/// The phases that all recipes share, and the learning rates that each may choose from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// The first phase: the head alone, with merge weights where some are learned.
    pub probe: TrainOptions,
    /// The second, in which everything learns. Its learning rate is not read.
    pub fine_tuning: TrainOptions,
    /// Of the second phase.
    pub learning_rates: Vec<f64>,
}

/// The result of a recipe with one seed.
pub struct Outcome {
    pub recipe: Recipe,
    pub seed: u64,
    /// With frozen features first, if there is one; then for each learning rate.
    pub stages: Vec<Stage>,
    /// Merge weights of the first phase, where some were learned.
    pub learned: Option<Learned>,
}

/// A network, or several whose probabilities are averaged, and how good it is.
#[derive(Clone)]
pub struct Stage {
    /// That of fine-tuning; `None` where features are frozen.
    pub learning_rate: Option<f64>,
    pub models: Vec<Model>,
    pub val: Metrics,
    pub test: Metrics,
    /// Of all phases up to here; of an ensemble those of its first member.
    pub history: Vec<EpochRecord>,
    /// The same, as a header tells them.
    pub phases: Vec<Phase>,
    /// All that it took to come here.
    pub seconds: f64,
}

impl Protocol {
    /// Refuses what cannot work before anything is read or computed.
    pub fn check(&self) -> Result<()> {
        if self.learning_rates.is_empty() {
            return Err(Error::usage("no learning rate to fine-tune with", "give one at least: 1e-3"));
        }
        if self.probe.steps.or(self.fine_tuning.steps).is_some() {
            return Err(Error::usage("a comparison by steps", "its budget is in epochs: give those"));
        }
        self.probe.check()?;
        self.learning_rates.iter().try_for_each(|&rate| self.rated(rate, self.fine_tuning.seed).check())
    }

    /// The same for what a recipe has besides.
    pub fn check_recipe(&self, recipe: &Recipe) -> Result<()> {
        self.learning(recipe, 0).check()?;
        self.learning_rates.iter().try_for_each(|&rate| self.tuning(recipe, rate, 0).check())
    }

    /// The same for what a recipe learns of these sources: a start that its constraint or granularity does not allow.
    pub fn check_learning(&self, recipe: &Recipe, sources: &Sources, classes: usize) -> Result<()> {
        let Kind::Medmerge(options) = &recipe.kind else { return Ok(()) };
        let check = |&start| options.options(0, start, self.learning(recipe, 0)).check(sources, classes);
        options.start.iter().try_for_each(check)
    }

    /// Roughly how long a run takes, in passes forward and backward over the training images. A linear probe goes backward through
    /// the head alone; learning merge weights passes once more over the images of each epoch to re-estimate statistics.
    pub fn passes(&self, recipe: &Recipe, sources: usize) -> f64 {
        const FORWARD: f64 = 1.0 / 3.0;
        let first = recipe.probe_epochs.unwrap_or(self.probe.epochs) as f64;
        let (second, rates) = (self.fine_tuning.epochs as f64, self.learning_rates.len() as f64);
        match &recipe.kind {
            Kind::Scratch | Kind::FineTune { .. } => (self.probe.epochs as f64 + second) * rates,
            Kind::ProbeThenFineTune { .. } => first * FORWARD + second * rates,
            Kind::Merge { .. } => first * FORWARD + second * rates + 2.0,
            Kind::Medmerge(options) => {
                let learned = (options.start.len() * options.anchor.len()) as f64;
                learned * first * (1.0 + FORWARD) + second * rates
            }
            Kind::Rescale { .. } => first * (1.0 + FORWARD) + second * rates,
            // What members take is theirs, where they run too.
            Kind::Ensemble => 0.0,
            Kind::GreedySoup => rates * sources as f64 * FORWARD,
        }
    }

    /// The first phase.
    fn probe(&self, recipe: &Recipe, seed: u64) -> TrainOptions {
        TrainOptions { epochs: recipe.probe_epochs.unwrap_or(self.probe.epochs), seed, ..self.probe.clone() }
    }

    /// The first where merge weights are learned.
    fn learning(&self, recipe: &Recipe, seed: u64) -> TrainOptions {
        let probe = self.probe(recipe, seed);
        let (rate, regularise) = match &recipe.kind {
            Kind::Medmerge(options) => (options.merge_rate, options.regularise),
            Kind::Rescale { merge_rate, .. } => (*merge_rate, 0.0),
            _ => (None, 0.0),
        };
        TrainOptions { regularise, merge_learning_rate: rate.unwrap_or(probe.merge_learning_rate), ..probe }
    }

    /// The second.
    fn tuning(&self, recipe: &Recipe, learning_rate: f64, seed: u64) -> TrainOptions {
        let Tuning { l2_sp, distill, ema } = recipe.tuning;
        let options = TrainOptions { l2_sp, distill, ema, ..self.rated(learning_rate, seed) };
        match &recipe.kind {
            Kind::Medmerge(LearnRecipe { learn_on: LearnOn::At(rate), .. }) => {
                TrainOptions { merge_learning_rate: *rate, ..options }
            }
            Kind::Scratch | Kind::FineTune { .. } => {
                // All the epochs there are.
                TrainOptions { epochs: self.probe.epochs + self.fine_tuning.epochs, ..options }
            }
            _ => options,
        }
    }

    fn rated(&self, learning_rate: f64, seed: u64) -> TrainOptions {
        TrainOptions { learning_rate, seed, ..self.fine_tuning.clone() }
    }
}

/// The runs of one seed, which share what they have in common: linear probes, by which anchors are chosen too, and their networks
/// fine-tuned, of which ensembles and soups are made.
pub struct Seeded<'a> {
    pub sources: &'a Sources,
    pub target: Target<'a>,
    pub protocol: &'a Protocol,
    pub seed: u64,
    /// Of each source, the linear probe.
    probes: BTreeMap<usize, Stage>,
    /// Of each source, `lp-ft`.
    members: BTreeMap<usize, Vec<Stage>>,
    /// The first phase that was made last, and what made it.
    last: Option<(Recipe, Stage, Option<Learned>)>,
}

/// One phase or two.
struct Trained {
    model: Model,
    history: Vec<EpochRecord>,
    phases: Vec<Phase>,
    seconds: f64,
}

impl<'a> Seeded<'a> {
    pub fn new(sources: &'a Sources, target: Target<'a>, protocol: &'a Protocol, seed: u64) -> Seeded<'a> {
        Seeded { sources, target, protocol, seed, probes: BTreeMap::new(), members: BTreeMap::new(), last: None }
    }

    /// # Errors
    /// Also if a recipe names a source that is not there, or its method cannot merge these sources.
    pub fn run(&mut self, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Outcome> {
        check_sources(recipe, self.sources.len())?;
        self.protocol.check_recipe(recipe)?;
        self.protocol.check_learning(recipe, self.sources, self.target.data.classes)?;
        let mut learned = None;
        let stages = match &recipe.kind {
            Kind::Scratch => self.each_rate(|own, rate| {
                let model = Model::initialized(own.sources.network(own.target.data.classes), own.seed);
                own.everything(
                    model,
                    TRAIN,
                    &mut Subject::Everything,
                    &own.protocol.tuning(recipe, rate, own.seed),
                    observer,
                )
            })?,
            Kind::FineTune { source } => self.each_rate(|own, rate| {
                let mut model = own.sources.transfer(*source, &own.sources.network(own.target.data.classes));
                init::initialize(&mut model, Region::Head, own.seed);
                let mut subject = own.subject(recipe, own.sources);
                own.everything(model, FINE_TUNE, &mut subject, &own.protocol.tuning(recipe, rate, own.seed), observer)
            })?,
            Kind::ProbeThenFineTune { source } if *recipe == Recipe::new(recipe.kind.clone()) => {
                self.member(*source, observer)?
            }
            Kind::ProbeThenFineTune { .. } | Kind::Rescale { .. } | Kind::Merge { .. } => {
                let (frozen, _) = self.frozen(recipe, observer)?;
                self.with_tuned(frozen, recipe, self.sources, observer)?
            }
            Kind::Medmerge(options) => {
                let (frozen, of_merge) = self.frozen(recipe, observer)?;
                let stages = match (options.learn_on, &of_merge) {
                    (LearnOn::Yes | LearnOn::At(_), Some(of_merge)) => {
                        self.with_learned_on(frozen, of_merge, recipe, observer)?
                    }
                    (_, Some(of_merge)) => {
                        self.with_tuned(frozen, recipe, &of_merge.aligned(self.sources), observer)?
                    }
                    (_, None) => unreachable!("learned with it"),
                };
                learned = of_merge;
                stages
            }
            Kind::Ensemble => self.ensemble(observer)?,
            Kind::GreedySoup => self.soup(observer)?,
        };
        Ok(Outcome { recipe: recipe.clone(), seed: self.seed, stages, learned })
    }

    /// The first phase of a recipe that has one; that of the last recipe is at hand.
    fn frozen(&mut self, recipe: &Recipe, observer: &mut dyn Observer) -> Result<(Stage, Option<Learned>)> {
        let part = recipe.frozen_part();
        if let Some((last, stage, learned)) = &self.last
            && *last == part
        {
            return Ok((stage.clone(), learned.clone()));
        }
        let (stage, learned) = match &part.kind {
            Kind::ProbeThenFineTune { source } if part.probe_epochs.is_none() => {
                (self.probe_of(*source, observer)?.clone(), None)
            }
            Kind::ProbeThenFineTune { source } => {
                let frozen = self.probed(*source, &self.protocol.probe(&part, self.seed), observer)?;
                (self.stage(None, frozen)?, None)
            }
            Kind::Rescale { source, granularity, .. } => {
                let frozen = self.rescaled(&part, *source, *granularity, observer)?;
                (self.stage(None, frozen)?, None)
            }
            Kind::Medmerge(options) => {
                let (frozen, of_merge) = self.learned(&part, options, observer)?;
                (self.stage(None, frozen)?, Some(of_merge))
            }
            _ => {
                let frozen = self.merged(&part, observer)?;
                (self.stage(None, frozen)?, None)
            }
        };
        self.last = Some((part, stage.clone(), learned.clone()));
        Ok((stage, learned))
    }

    fn each_rate(&self, mut trained: impl FnMut(&Self, f64) -> Result<Trained>) -> Result<Vec<Stage>> {
        self.protocol.learning_rates.iter().map(|&rate| self.stage(Some(rate), trained(self, rate)?)).collect()
    }

    fn stage(&self, learning_rate: Option<f64>, trained: Trained) -> Result<Stage> {
        let Trained { model, history, phases, seconds } = trained;
        let [val, test] = self.measure(std::slice::from_ref(&model))?;
        Ok(Stage { learning_rate, models: vec![model], val, test, history, phases, seconds })
    }

    /// On the validation and on the test split.
    fn measure(&self, models: &[Model]) -> Result<[Metrics; 2]> {
        let on = |split: SplitName| -> Result<Metrics> {
            let labels = &self.target.data.split(split).labels;
            let (classes, task) = (models[0].network.classes, self.target.data.task);
            let of_model =
                |model: &Model| scores(model, self.target, split, self.protocol.fine_tuning.batch_size, |_| {});
            let members: Vec<Vec<f32>> = models.iter().map(of_model).collect::<Result<_>>()?;
            let logits = if let [one] = &members[..] {
                Cow::Borrowed(one)
            } else {
                Cow::Owned(mean_of_members(task, &members, classes))
            };
            Ok(Metrics::of(task, &logits, labels, classes))
        };
        Ok([on(SplitName::Val)?, on(SplitName::Test)?])
    }

    fn everything(
        &self,
        mut model: Model,
        kind: &str,
        subject: &mut Subject,
        options: &TrainOptions,
        observer: &mut dyn Observer,
    ) -> Result<Trained> {
        let start = Instant::now();
        let history = train(&mut model, subject, self.target, options, observer)?;
        let phases = vec![options.phase(kind, &history)];
        Ok(Trained { model, history, phases, seconds: start.elapsed().as_secs_f64() })
    }

    /// Everything, or with teachers where a recipe distils: the source that it starts from, or all of them, as they were merged.
    fn subject(&self, recipe: &Recipe, sources: &Sources) -> Subject {
        if recipe.tuning.distill == 0.0 {
            return Subject::Everything;
        }
        let of_source = |index: usize| sources.get(index).checkpoint.model.clone();
        let teachers = recipe.source().map_or_else(|| 0..sources.len(), |source| source..source + 1);
        Subject::Distilled(Teachers::new(teachers.map(of_source).collect(), recipe.tuning.distill))
    }

    /// The frozen stage, and those that are fine-tuned from it.
    fn with_tuned(
        &self,
        frozen: Stage,
        recipe: &Recipe,
        sources: &Sources,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Stage>> {
        let mut subject = self.subject(recipe, sources);
        let tuned = self.each_rate(|own, rate| {
            let start = Instant::now();
            let mut model = frozen.models[0].copy();
            let options = own.protocol.tuning(recipe, rate, own.seed);
            let history = train(&mut model, &mut subject, own.target, &options, observer)?;
            Ok(continued(&frozen, model, history, (FINE_TUNE, &options), start))
        })?;
        Ok([vec![frozen], tuned].concat())
    }

    /// The same, with merge weights that are learned on.
    fn with_learned_on(
        &self,
        frozen: Stage,
        learned: &Learned,
        recipe: &Recipe,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Stage>> {
        let trunks = learned.aligned(self.sources).trunks();
        let tuned = self.each_rate(|own, rate| {
            let start = Instant::now();
            let mut model = frozen.models[0].copy();
            let change = Change::new(learned.plan()?, trunks.clone(), learned.merge_weights.copy());
            let options = own.protocol.tuning(recipe, rate, own.seed);
            let mut subject = Subject::EverythingAndMerge(change);
            let history = train(&mut model, &mut subject, own.target, &options, observer)?;
            Ok(continued(&frozen, model, history, (FINE_TUNE_MERGE, &options), start))
        })?;
        Ok([vec![frozen], tuned].concat())
    }

    fn probed(&self, source: usize, options: &TrainOptions, observer: &mut dyn Observer) -> Result<Trained> {
        let start = Instant::now();
        let (model, history) = probe(self.sources, source, self.target, options, observer)?;
        let phases = vec![options.phase(LINEAR_PROBE, &history)];
        Ok(Trained { model, history, phases, seconds: start.elapsed().as_secs_f64() })
    }

    /// The linear probe of a source.
    fn probe_of(&mut self, source: usize, observer: &mut dyn Observer) -> Result<&Stage> {
        if !self.probes.contains_key(&source) {
            let options = TrainOptions { seed: self.seed, ..self.protocol.probe.clone() };
            let stage = self.stage(None, self.probed(source, &options, observer)?)?;
            self.probes.insert(source, stage);
        }
        Ok(&self.probes[&source])
    }

    /// The stages of `lp-ft` of a source.
    fn member(&mut self, source: usize, observer: &mut dyn Observer) -> Result<Vec<Stage>> {
        if !self.members.contains_key(&source) {
            let frozen = self.probe_of(source, observer)?.clone();
            let recipe = Recipe::new(Kind::ProbeThenFineTune { source });
            self.members.insert(source, self.with_tuned(frozen, &recipe, self.sources, observer)?);
        }
        Ok(self.members[&source].clone())
    }

    fn members(&mut self, observer: &mut dyn Observer) -> Result<Vec<Vec<Stage>>> {
        (0..self.sources.len()).map(|source| self.member(source, observer)).collect()
    }

    /// The source with the best linear probe, as [`choose_anchor`](super::choose_anchor) chooses it.
    fn anchor(&mut self, observer: &mut dyn Observer) -> Result<usize> {
        let score = |stage: &Stage| best_epoch(&stage.history).and_then(|record| record.val_macro_f1).unwrap_or(0.0);
        let found: Vec<f64> =
            (0..self.sources.len()).map(|source| Ok(score(self.probe_of(source, observer)?))).collect::<Result<_>>()?;
        Ok((0..found.len()).rev().max_by(|&a, &b| found[a].total_cmp(&found[b])).expect("two sources at least"))
    }

    /// A new head on what a method made of the sources, whose features stay.
    fn merged(&self, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Trained> {
        let Kind::Merge { align: by, numbers, .. } = &recipe.kind else { unreachable!("asked before") };
        let start = Instant::now();
        let alignment = align(*by, self.sources, 0, self.target, observer)?;
        let sources = &alignment.as_ref().map_or(Cow::Borrowed(self.sources), |a| Cow::Owned(self.sources.aligned(a)));
        let method = recipe.method().expect("a recipe's method has been found by name");
        let coefficients = vec![method.usual_coefficient(sources.len()); sources.len()];
        let inputs = Inputs::new(sources, &coefficients, numbers);
        let Fixed { model: merged, architecture, .. } = self.fold(method, inputs, observer)?;
        observer.phase(&recipe.to_string());
        let network = architecture.build(self.sources.input_channels(), self.target.data.classes);
        let Model { trunk, statistics, batches_tracked, .. } = merged;
        let mut model = Model { trunk, statistics, batches_tracked, ..Model::blank(network) };
        let options = self.protocol.probe(recipe, self.seed);
        reestimate_statistics(&mut model, self.target, options.batch_size)?;
        init::initialize(&mut model, Region::Head, self.seed);
        let history = train(&mut model, &mut Subject::Head, self.target, &options, observer)?;
        let phases = vec![options.phase(LINEAR_PROBE, &history)];
        Ok(Trained { model, history, phases, seconds: start.elapsed().as_secs_f64() })
    }

    fn fold(&self, method: &dyn MergeMethod, inputs: Inputs, observer: &mut dyn Observer) -> Result<Fixed> {
        let place = self.target.place;
        let blend = |plan: &Plan, trunks: &[Tensor], merge_weights: &Tensor| place.blend(plan, trunks, merge_weights);
        let images = TargetImages { target: self.target, observer: RefCell::new(observer) };
        let has_heads = inputs.sources.iter().all(|source| source.checkpoint.has_head);
        let heads = if has_heads { Heads::Merge } else { Heads::New };
        fold_by(method, &Task { inputs, images: Some(&images), blend: &blend }, heads)
    }

    fn learned(
        &mut self,
        recipe: &Recipe,
        options: &LearnRecipe,
        observer: &mut dyn Observer,
    ) -> Result<(Trained, Learned)> {
        let mut before = 0.0;
        let mut anchors = Vec::new();
        for choice in &options.anchor {
            let index = match *choice {
                AnchorChoice::Named(index) => index,
                AnchorChoice::Auto => {
                    let index = self.anchor(observer)?;
                    // Whoever chooses by probes has to make them.
                    before = self.probes.values().map(|probe| probe.seconds).sum();
                    index
                }
            };
            if !anchors.contains(&index) {
                anchors.push(index);
            }
        }
        let start = Instant::now();
        let learn = options.options(anchors[0], options.start[0], self.protocol.learning(recipe, self.seed));
        let anchors: Vec<Anchor> = anchors.into_iter().map(|index| Anchor { index, probes: Vec::new() }).collect();
        let from = (&anchors[..], &options.start[..]);
        let (Learning { learned, history, .. }, _) =
            learn_best(self.sources, self.target, &learn, from, observer, |_, _, _| Ok(None))?;
        let model = learned.fold(&learned.aligned(self.sources).trunks())?;
        let phases = learned.provenance.training.clone();
        Ok((Trained { model, history, phases, seconds: before + start.elapsed().as_secs_f64() }, learned))
    }

    /// A merge of a single source: W = α·W, α free.
    fn rescaled(
        &self,
        recipe: &Recipe,
        source: usize,
        granularity: Granularity,
        observer: &mut dyn Observer,
    ) -> Result<Trained> {
        let start = Instant::now();
        let source = self.sources.get(source);
        let checkpoint = &source.checkpoint;
        let name = source.path.display().to_string();
        let alone = Sources::from_models(vec![(name, checkpoint.architecture.clone(), checkpoint.model.clone())]);
        let alone_recipe = LearnRecipe { granularity, constraint: Constraint::Free, ..LearnRecipe::default() };
        let options = alone_recipe.options(0, Start::Uniform, self.protocol.learning(recipe, self.seed));
        let anchor = Anchor { index: 0, probes: Vec::new() };
        let Learning { learned, history, .. } = learn_for(&alone, self.target, &options, anchor, observer, None)?;
        let model = learned.fold(&alone.trunks())?;
        let phases = learned.provenance.training.clone();
        Ok(Trained { model, history, phases, seconds: start.elapsed().as_secs_f64() })
    }

    fn ensemble(&mut self, observer: &mut dyn Observer) -> Result<Vec<Stage>> {
        let members = self.members(observer)?;
        let of_stage = |index: usize| {
            let stages: Vec<&Stage> = members.iter().map(|member| &member[index]).collect();
            let models: Vec<Model> = stages.iter().flat_map(|stage| stage.models.clone()).collect();
            let [val, test] = self.measure(&models)?;
            let seconds = stages.iter().map(|stage| stage.seconds).sum();
            Ok(Stage { models, val, test, seconds, ..stages[0].clone() })
        };
        (0..members[0].len()).map(of_stage).collect()
    }

    /// The greedy soup of fine-tuned networks.
    fn soup(&mut self, observer: &mut dyn Observer) -> Result<Vec<Stage>> {
        let members = self.members(observer)?;
        let mut soups = Vec::new();
        for index in 1..members[0].len() {
            let start = Instant::now();
            let stages: Vec<&Stage> = members.iter().map(|member| &member[index]).collect();
            let named = |(at, stage): (usize, &&Stage)| {
                let name = self.sources.get(at).path.display().to_string();
                (name, self.sources.architecture().clone(), stage.models[0].clone())
            };
            let of_members = Sources::from_models(stages.iter().enumerate().map(named).collect());
            let numbers = Numbers::default();
            let inputs = Inputs::new(&of_members, &[], &numbers);
            let mut model = self.fold(method_of_soups(), inputs, observer)?.model;
            reestimate_statistics(&mut model, self.target, self.protocol.fine_tuning.batch_size)?;
            let before: f64 = stages.iter().map(|stage| stage.seconds).sum();
            let seconds = before + start.elapsed().as_secs_f64();
            let Stage { history, phases, learning_rate, .. } = stages[0].clone();
            soups.push(self.stage(learning_rate, Trained { model, history, phases, seconds })?);
        }
        Ok(soups)
    }
}

fn method_of_soups() -> &'static dyn MergeMethod {
    named("greedy-soup").expect("it is there")
}

/// The second phase of what was frozen, its epochs counted on from the first's.
fn continued(
    frozen: &Stage,
    model: Model,
    second: Vec<EpochRecord>,
    (kind, options): (&str, &TrainOptions),
    start: Instant,
) -> Trained {
    let (mut history, mut phases) = (frozen.history.clone(), frozen.phases.clone());
    phases.push(options.phase(kind, &second));
    let before = history.len();
    history.extend(second.into_iter().map(|record| EpochRecord { epoch: record.epoch + before, ..record }));
    Trained { model, history, phases, seconds: frozen.seconds + start.elapsed().as_secs_f64() }
}

/// Refuses a recipe for other sources than there are, before anything is computed.
pub fn check_sources(recipe: &Recipe, sources: usize) -> Result<()> {
    let of_anchor = |choice: &AnchorChoice| if let AnchorChoice::Named(index) = choice { Some(*index) } else { None };
    let mut named: Vec<usize> = match &recipe.kind {
        Kind::Medmerge(options) => options.anchor.iter().filter_map(of_anchor).collect(),
        _ => recipe.source().into_iter().collect(),
    };
    named.retain(|&index| index >= sources);
    if let Some(index) = named.first() {
        let message = format!("recipe {recipe}: there is no source {index} of {sources}");
        return Err(Error::usage(message, "sources are numbered from 0, in the order of the models"));
    }
    let Some(method) = recipe.method() else { return Ok(()) };
    if let Some(count) = method.only_sources().filter(|&count| count != sources) {
        return Err(Error::usage(format!("recipe {recipe} takes {count} sources, not {sources}"), "leave it out"));
    }
    if method.needs_base() {
        let message = format!("recipe {recipe} needs the network that the sources were trained from");
        return Err(Error::usage(message, "merge them with --base, and compare the result as a source"));
    }
    Ok(())
}
