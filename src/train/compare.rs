//! The same target by every method with the same epochs, batches and seeds: what a merge has to beat.
//!
//! Every method trains for `probe.epochs + fine_tuning.epochs` epochs on the same training images in the same order, and
//! keeps its best epoch by macro F1 on the validation split. A method with two phases spends `probe.epochs` on the first.

use std::time::Instant;

use serde::Serialize;

use super::{
    AnchorChoice, EpochRecord, LearnOptions, Observer, Subject, Target, TrainOptions, choose_anchor, evaluate, learn,
    probe, reestimate_statistics, train,
};
use crate::data::SplitName;
use crate::error::Result;
use crate::merge::{BatchNormPolicy, Learned, Sources, fold_fixed};
use crate::metrics::Metrics;
use crate::nn::{Model, Region, init};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    Scratch,
    /// A new head on a frozen source.
    LinearProbe(usize),
    /// All of a source, with a new head from the start.
    FineTune(usize),
    /// First the one, then the other.
    ProbeThenFineTune(usize),
    /// The same from the uniform average of all sources.
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
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The merge's options, whose `probe` is the first phase of every method that has one.
    pub learn: LearnOptions,
    pub fine_tuning: TrainOptions,
}

/// What a method came to.
pub struct Outcome {
    pub baseline: Baseline,
    pub model: Model,
    /// On the test split.
    pub metrics: Metrics,
    pub history: Vec<EpochRecord>,
    pub seconds: f64,
    /// Merge weights, where some were learned.
    pub learned: Option<Learned>,
}

impl Protocol {
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
        let start = Instant::now();
        let mut learned = None;
        let (model, history) = match baseline {
            Baseline::Scratch => {
                let mut model = Model::initialized(sources.network(target.data.classes), self.fine_tuning.seed);
                let history = train(&mut model, &mut Subject::Everything, target, &self.everything(), observer)?;
                (model, history)
            }
            Baseline::LinearProbe(source) => probe(sources, source, target, &self.probe_alone(), observer)?,
            Baseline::FineTune(source) => {
                let mut model = sources.transfer(source, &sources.network(target.data.classes));
                init::initialize(&mut model, Region::Head, self.fine_tuning.seed);
                let history = train(&mut model, &mut Subject::Everything, target, &self.everything(), observer)?;
                (model, history)
            }
            Baseline::ProbeThenFineTune(source) => {
                let (model, history) = probe(sources, source, target, &self.learn.probe, observer)?;
                self.fine_tune(model, history, target, observer)?
            }
            Baseline::Average => {
                let share = 1.0 / sources.len() as f64;
                let coefficients = vec![share; sources.len()];
                let average = fold_fixed(sources, &coefficients, 0, BatchNormPolicy::Merge, target.place.device)?.model;
                let mut model = sources.transfer(0, &sources.network(target.data.classes));
                model.trunk = average.trunk;
                reestimate_statistics(&mut model, target, self.learn.probe.batch_size)?;
                init::initialize(&mut model, Region::Head, self.learn.probe.seed);
                let history = train(&mut model, &mut Subject::Head, target, &self.learn.probe, observer)?;
                self.fine_tune(model, history, target, observer)?
            }
            Baseline::MedmergeProbe | Baseline::Medmerge => {
                let is_probe_only = baseline == Baseline::MedmergeProbe;
                let mut options = self.learn.clone();
                if options.anchor == AnchorChoice::Auto {
                    // By a first phase of the usual length, whichever probe follows.
                    let (anchor, _) = choose_anchor(sources, target, &self.learn.probe, &mut super::Silent)?;
                    options.anchor = AnchorChoice::Named(anchor);
                }
                if is_probe_only {
                    options.probe = self.probe_alone();
                }
                let learning = learn(sources, target, &options, &mut super::Silent, observer)?;
                let model = learning.learned.fold(&sources.trunks());
                learned = Some(learning.learned);
                if is_probe_only {
                    (model, learning.history)
                } else {
                    self.fine_tune(model, learning.history, target, observer)?
                }
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        let metrics = evaluate(&model, target, SplitName::Test, self.fine_tuning.batch_size)?;
        Ok(Outcome { baseline, model, metrics, history, seconds, learned })
    }

    /// The second phase, its epochs counted on from the first's.
    fn fine_tune(
        &self,
        mut model: Model,
        mut history: Vec<EpochRecord>,
        target: Target,
        observer: &mut dyn Observer,
    ) -> Result<(Model, Vec<EpochRecord>)> {
        let before = history.len();
        let second = train(&mut model, &mut Subject::Everything, target, &self.fine_tuning, observer)?;
        history.extend(second.into_iter().map(|record| EpochRecord { epoch: record.epoch + before, ..record }));
        Ok((model, history))
    }
}
