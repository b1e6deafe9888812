//! The same target by every method with the same epochs, batches and seeds: what a merge has to beat.
//!
//! Every method trains for `probe.epochs + fine_tuning.epochs` epochs on the same training images in the same order, and
//! keeps its best epoch by macro F1 on the validation split. A method with two phases spends `probe.epochs` on the first.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{
    AnchorChoice, EpochRecord, FINE_TUNE, LINEAR_PROBE, LearnOptions, Learning, Observer, Subject, TRAIN, Target,
    TrainOptions, align, choose_anchor, evaluate, learn, probe, reestimate_statistics, train,
};
use crate::checkpoint::Phase;
use crate::data::SplitName;
use crate::error::Result;
use crate::merge::{BatchNormPolicy, Heads, Learned, Sources, fold_fixed};
use crate::metrics::Metrics;
use crate::nn::{Model, Region, init};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Baseline {
    Scratch,
    /// A new head on a frozen source.
    LinearProbe(usize),
    /// All of a source, with a new head from the start.
    FineTune(usize),
    /// First the one, then the other.
    ProbeThenFineTune(usize),
    /// The same from the uniform average of all sources, aligned if merges are.
    Average,
    /// Head and merge weights.
    MedmergeProbe,
    /// The same, folded and fine-tuned.
    Medmerge,
}

impl Baseline {
    /// All of them for so many sources, in the order of a table.
    pub fn all(sources: usize) -> Vec<Baseline> {
        let of_each = |make: fn(usize) -> Baseline| (0..sources).map(make);
        let mut all = vec![Baseline::Scratch];
        all.extend(of_each(Baseline::LinearProbe));
        all.extend(of_each(Baseline::FineTune));
        all.extend(of_each(Baseline::ProbeThenFineTune));
        all.extend([Baseline::Average, Baseline::MedmergeProbe, Baseline::Medmerge]);
        all
    }

    /// The one source that it starts from, where it starts from one.
    pub fn source(self) -> Option<usize> {
        match self {
            Baseline::LinearProbe(source) | Baseline::FineTune(source) | Baseline::ProbeThenFineTune(source) => {
                Some(source)
            }
            _ => None,
        }
    }

    /// How it is called in a table; `names` are the sources'.
    pub fn label(self, names: &[&str]) -> String {
        match self {
            Baseline::Scratch => "from scratch".into(),
            Baseline::LinearProbe(source) => format!("{}: linear probe", names[source]),
            Baseline::FineTune(source) => format!("{}: fine-tuning", names[source]),
            Baseline::ProbeThenFineTune(source) => format!("{}: LP-FT", names[source]),
            Baseline::Average => "uniform average: LP-FT".into(),
            Baseline::MedmergeProbe => "MedMerge: probe only".into(),
            Baseline::Medmerge => "MedMerge: probe, then fine-tuning".into(),
        }
    }
}

/// The phases that all methods share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Protocol {
    /// The merge's options, whose `probe` is the first phase of every method that has one.
    learn: LearnOptions,
    fine_tuning: TrainOptions,
    /// The anchor that probes chose, and the seconds that it took: the same for every merge.
    #[serde(skip)]
    chosen: OnceCell<(usize, f64)>,
}

impl PartialEq for Protocol {
    fn eq(&self, other: &Protocol) -> bool {
        (&self.learn, &self.fine_tuning) == (&other.learn, &other.fine_tuning)
    }
}

/// The result of a method.
pub struct Outcome {
    pub baseline: Baseline,
    pub model: Model,
    /// On the test split.
    pub metrics: Metrics,
    pub history: Vec<EpochRecord>,
    /// The phases of the training, one after the other, as a header tells them.
    pub phases: Vec<Phase>,
    pub seed: u64,
    pub seconds: f64,
    /// Merge weights, where some were learned.
    pub learned: Option<Learned>,
}

impl Protocol {
    pub fn new(learn: LearnOptions, fine_tuning: TrainOptions) -> Protocol {
        Protocol { learn, fine_tuning, chosen: OnceCell::new() }
    }

    /// Refuses what cannot work before anything is read or computed.
    pub fn check(&self) -> Result<()> {
        self.learn.probe.check()?;
        self.fine_tuning.check()
    }

    /// The same with another seed for everything.
    pub fn with_seed(&self, seed: u64) -> Protocol {
        let seeded = |options: &TrainOptions| TrainOptions { seed, ..options.clone() };
        let learn = LearnOptions { probe: seeded(&self.learn.probe), ..self.learn.clone() };
        Protocol::new(learn, seeded(&self.fine_tuning))
    }

    /// Roughly how long a method takes, in passes forward and backward over the training images. A linear probe goes
    /// backward through the head alone; learning merge weights passes once more over the images to re-estimate statistics.
    pub fn passes(&self, baseline: Baseline, sources: usize) -> f64 {
        const FORWARD: f64 = 1.0 / 3.0;
        let [first, second, all] = [self.learn.probe.epochs, self.fine_tuning.epochs, self.epochs()].map(|n| n as f64);
        let is_auto = self.learn.anchor == AnchorChoice::Auto;
        let choosing = if is_auto { sources as f64 * first * FORWARD } else { 0.0 };
        match baseline {
            Baseline::Scratch | Baseline::FineTune(_) => all,
            Baseline::LinearProbe(_) => all * FORWARD,
            Baseline::ProbeThenFineTune(_) | Baseline::Average => first * FORWARD + second,
            Baseline::MedmergeProbe => choosing + all * (1.0 + FORWARD),
            // Which has chosen the anchor, where all methods run.
            Baseline::Medmerge => first * (1.0 + FORWARD) + second,
        }
    }

    /// The anchor, and the seconds that it took to choose it.
    fn anchor(&self, sources: &Sources, target: Target) -> Result<(AnchorChoice, f64)> {
        if self.learn.anchor != AnchorChoice::Auto {
            return Ok((self.learn.anchor.clone(), 0.0));
        }
        if self.chosen.get().is_none() {
            let start = Instant::now();
            // By a first phase of the usual length, whichever probe follows.
            let anchor = choose_anchor(sources, target, &self.learn.probe, &mut super::Silent)?.index;
            let _ = self.chosen.set((anchor, start.elapsed().as_secs_f64()));
        }
        let &(anchor, seconds) = self.chosen.get().expect("chosen above");
        Ok((AnchorChoice::Named(anchor), seconds))
    }

    fn epochs(&self) -> usize {
        self.learn.probe.epochs + self.fine_tuning.epochs
    }

    /// The first phase, for all the epochs there are.
    fn probe_alone(&self) -> TrainOptions {
        TrainOptions { epochs: self.epochs(), ..self.learn.probe.clone() }
    }

    /// Everything trained for all the epochs there are.
    fn everything(&self) -> TrainOptions {
        TrainOptions { epochs: self.epochs(), ..self.fine_tuning.clone() }
    }

    pub fn run(
        &self,
        baseline: Baseline,
        sources: &Sources,
        target: Target,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        let is_merge = matches!(baseline, Baseline::MedmergeProbe | Baseline::Medmerge);
        let (anchor, seconds_before) = if is_merge { self.anchor(sources, target)? } else { (AnchorChoice::Auto, 0.0) };
        let start = Instant::now();
        let mut learned = None;
        let trained = match baseline {
            Baseline::Scratch => {
                let model = Model::initialized(sources.network(target.data.classes), self.fine_tuning.seed);
                everything(model, TRAIN, &self.everything(), target, observer)?
            }
            Baseline::LinearProbe(source) => of_probe(sources, source, target, &self.probe_alone(), observer)?,
            Baseline::FineTune(source) => {
                let mut model = sources.transfer(source, &sources.network(target.data.classes));
                init::initialize(&mut model, Region::Head, self.fine_tuning.seed);
                everything(model, FINE_TUNE, &self.everything(), target, observer)?
            }
            Baseline::ProbeThenFineTune(source) => {
                let first = of_probe(sources, source, target, &self.learn.probe, observer)?;
                self.fine_tune(first, target, observer)?
            }
            Baseline::Average => {
                let alignment = align(self.learn.align, sources, 0, target, observer)?;
                let sources = &alignment.as_ref().map_or(Cow::Borrowed(sources), |a| Cow::Owned(sources.aligned(a)));
                let share = 1.0 / sources.len() as f64;
                let coefficients = vec![share; sources.len()];
                let average = fold_fixed(
                    sources,
                    &coefficients,
                    0,
                    BatchNormPolicy::Merge,
                    Heads::Merge,
                    |plan, trunks, merge_weights| target.place.blend(plan, trunks, merge_weights),
                )?
                .model;
                let mut model = sources.transfer(0, &sources.network(target.data.classes));
                model.trunk = average.trunk;
                reestimate_statistics(&mut model, target, self.learn.probe.batch_size)?;
                init::initialize(&mut model, Region::Head, self.learn.probe.seed);
                let history = train(&mut model, &mut Subject::Head, target, &self.learn.probe, observer)?;
                let phases = vec![self.learn.probe.phase(LINEAR_PROBE, &history)];
                self.fine_tune(Trained { model, history, phases }, target, observer)?
            }
            Baseline::MedmergeProbe | Baseline::Medmerge => {
                let is_probe_only = baseline == Baseline::MedmergeProbe;
                let mut options = LearnOptions { anchor, ..self.learn.clone() };
                if is_probe_only {
                    options.probe = self.probe_alone();
                }
                let Learning { learned: of_merge, history, .. } = learn(sources, target, &options, observer)?;
                let (model, phases) =
                    (of_merge.fold(&of_merge.aligned(sources).trunks())?, of_merge.provenance.training.clone());
                learned = Some(of_merge);
                let first = Trained { model, history, phases };
                if is_probe_only { first } else { self.fine_tune(first, target, observer)? }
            }
        };
        let Trained { model, history, phases } = trained;
        let seconds = seconds_before + start.elapsed().as_secs_f64();
        let metrics = evaluate(&model, target, SplitName::Test, self.fine_tuning.batch_size)?;
        Ok(Outcome { baseline, model, metrics, history, phases, seed: self.fine_tuning.seed, seconds, learned })
    }

    /// The second phase, its epochs counted on from the first's.
    fn fine_tune(&self, first: Trained, target: Target, observer: &mut dyn Observer) -> Result<Trained> {
        let Trained { model, mut history, mut phases } = first;
        let before = history.len();
        let second = everything(model, FINE_TUNE, &self.fine_tuning, target, observer)?;
        history.extend(second.history.into_iter().map(|record| EpochRecord { epoch: record.epoch + before, ..record }));
        phases.extend(second.phases);
        Ok(Trained { model: second.model, history, phases })
    }
}

/// The result of one phase or two.
struct Trained {
    model: Model,
    history: Vec<EpochRecord>,
    phases: Vec<Phase>,
}

fn everything(
    mut model: Model,
    kind: &str,
    options: &TrainOptions,
    target: Target,
    observer: &mut dyn Observer,
) -> Result<Trained> {
    let history = train(&mut model, &mut Subject::Everything, target, options, observer)?;
    let phases = vec![options.phase(kind, &history)];
    Ok(Trained { model, history, phases })
}

fn of_probe(
    sources: &Sources,
    index: usize,
    target: Target,
    options: &TrainOptions,
    observer: &mut dyn Observer,
) -> Result<Trained> {
    let (model, history) = probe(sources, index, target, options, observer)?;
    let phases = vec![options.phase(LINEAR_PROBE, &history)];
    Ok(Trained { model, history, phases })
}
