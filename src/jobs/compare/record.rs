//! What a comparison leaves of each run: one small file, from which it continues anywhere.
//!
//! ```text
//! OUT/plan.json                         what all runs have in common
//! OUT/runs/RECIPE/SEED.json             figures and curves of a run
//! OUT/table.md, table.csv, summary.json what they come to
//! OUT/results.svg, curves.svg           the same for the eye (feature `cli`)
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::merge::SourceRecord;
use crate::metrics::Metrics;
use crate::nn::{Architecture, Model};
use crate::output::OutputPath;
use crate::train::{EpochRecord, Outcome, Protocol, Recipe, Stage};

/// What all runs of a folder have in common. Seeds and recipes may be added to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    pub sources: Vec<SourceRecord>,
    /// As the sources were read: a stem, hidden layers and channels that the files leave open.
    pub architecture: Architecture,
    pub input_channels: usize,
    /// SHA-256 of the images and labels.
    pub data: String,
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    /// Training images of each seed, if they are drawn.
    pub train_images: Option<usize>,
    pub protocol: Protocol,
    pub device: String,
    pub precision: String,
}

/// The files of this form.
pub const VERSION: u32 = 1;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub recipe: Recipe,
    pub seed: u64,
    pub stages: Vec<StageRecord>,
    /// The source on the 1 − w side, and how far merge weights went from their start on average, where some were learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<LearnedRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// Of fine-tuning; `None` where features are frozen.
    pub learning_rate: Option<f64>,
    pub val: Figures,
    pub test: Figures,
    /// Of all networks that it takes.
    pub parameters: usize,
    pub seconds: f64,
    /// By epoch.
    pub train_loss: Vec<f64>,
    pub val_macro_f1: Vec<Option<f64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub accuracy: Option<f64>,
    pub macro_f1: Option<f64>,
    pub auc: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedRecord {
    pub anchor: usize,
    /// Mean |w − w₀|.
    pub moved: f64,
}

impl From<&Metrics> for Figures {
    fn from(metrics: &Metrics) -> Figures {
        let known = |value: f64| value.is_finite().then_some(value);
        Figures { accuracy: known(metrics.accuracy), macro_f1: known(metrics.macro_f1), auc: known(metrics.auc) }
    }
}

impl StageRecord {
    fn of(stage: &Stage) -> StageRecord {
        // Curves are for the eye.
        let short = |value: f64| (value * 1e5).round() / 1e5;
        let curve = |of: fn(&EpochRecord) -> Option<f64>| stage.history.iter().map(move |record| of(record).map(short));
        StageRecord {
            learning_rate: stage.learning_rate,
            val: Figures::from(&stage.val),
            test: Figures::from(&stage.test),
            parameters: stage.models.iter().map(|model: &Model| model.network.parameter_count()).sum(),
            seconds: (stage.seconds * 1e3).round() / 1e3,
            train_loss: curve(|record| Some(record.train_loss)).flatten().collect(),
            val_macro_f1: curve(|record| record.val_macro_f1).collect(),
        }
    }
}

impl Record {
    pub fn of(outcome: &Outcome) -> Result<Record> {
        let learned = match &outcome.learned {
            None => None,
            Some(learned) => {
                let moved = (learned.moved()? * 1e6).round() / 1e6;
                Some(LearnedRecord { anchor: learned.method.anchor, moved })
            }
        };
        let stages = outcome.stages.iter().map(StageRecord::of).collect();
        Ok(Record { recipe: outcome.recipe.clone(), seed: outcome.seed, stages, learned })
    }

    /// The stage with frozen features.
    pub fn frozen(&self) -> Option<&StageRecord> {
        self.stages.iter().find(|stage| stage.learning_rate.is_none())
    }

    pub fn tuned(&self, learning_rate: f64) -> Option<&StageRecord> {
        self.stages.iter().find(|stage| stage.learning_rate == Some(learning_rate))
    }
}

/// The files of a comparison.
pub struct Folder<'a>(pub &'a Path);

impl Folder<'_> {
    fn run(&self, recipe: &Recipe, seed: u64) -> PathBuf {
        // A name on every file system.
        let name = recipe.to_string().replace([':', ',', '/'], "_").replace('=', "-");
        self.0.join("runs").join(name).join(format!("{seed}.json"))
    }

    /// Begins, or continues what was begun.
    ///
    /// # Errors
    /// If the folder holds something else: another comparison, or no comparison at all.
    pub fn begin(&self, plan: &Plan) -> Result<()> {
        let path = self.0.join("plan.json");
        if !path.exists() {
            crate::output::make_folder(self.0, false)?;
            return write(&path, plan);
        }
        let found: Plan = read(&path)?;
        if let Some(what) = difference(&found, plan) {
            let message = format!("{} is the folder of a comparison with another {what}", self.0.display());
            return Err(Error::usage(
                message,
                "give the same sources, data and options to continue it, or another --out",
            ));
        }
        Ok(())
    }

    /// A run that has been done.
    pub fn read(&self, recipe: &Recipe, seed: u64) -> Result<Option<Record>> {
        let path = self.run(recipe, seed);
        if !path.exists() {
            return Ok(None);
        }
        let record: Record = read(&path)?;
        match record.recipe == *recipe && record.seed == seed {
            true => Ok(Some(record)),
            false => {
                let message = format!("it is of recipe {} and seed {}", record.recipe, record.seed);
                Err(Error::data(&path, message, "remove it: the run will be done again"))
            }
        }
    }

    /// Writes a run, whole or not at all.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.run(&record.recipe, record.seed);
        let folder = path.parent().expect("it lies in one");
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        write(&path, record)
    }
}

fn difference(a: &Plan, b: &Plan) -> Option<&'static str> {
    let pairs = [
        ("form of its files", a.version == b.version),
        ("list of sources", a.sources == b.sources),
        ("--stem or --hidden", a.architecture == b.architecture),
        ("number of --input-channels", a.input_channels == b.input_channels),
        ("data set", a.data == b.data),
        ("--mean or --std", a.mean == b.mean && a.std == b.std),
        ("number of --train-images", a.train_images == b.train_images),
        ("first phase", a.protocol.probe == b.protocol.probe),
        ("second phase", a.protocol.fine_tuning == b.protocol.fine_tuning),
        ("list of --learning-rates", a.protocol.learning_rates == b.protocol.learning_rates),
        ("device", a.device == b.device),
        ("precision", a.precision == b.precision),
    ];
    pairs.into_iter().find(|(_, is_same)| !is_same).map(|(what, _)| what)
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| {
        Error::data(path, format!("it is no file of a comparison: {error}"), "remove it, or give another --out")
    })
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string(value).expect("plain data is JSON") + "\n";
    crate::report::save(&text, &mut OutputPath::check(path, true, 0)?)
}
