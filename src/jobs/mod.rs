//! Whole pieces of work as data: from files to files.
//!
//! | job | reads | leaves |
//! |---|---|---|
//! | [`Train`] | a data set, perhaps a network to start from | a network, a log of its epochs |
//! | [`Learn`] | sources, a data set | merge weights, the folded network, a log, perhaps a picture |
//! | [`Merge`] | sources, merge weights or coefficients | a network |
//! | [`Align`] | two networks, perhaps a data set | one of them, its units in the order of the other's |
//! | [`Evaluate`] | a network, a split | metrics |
//! | [`Predict`] | a network, a split, which needs no labels | the class of each image and its scores |
//! | [`Export`] | a network | the same as an ONNX model |
//! | [`Compare`] | sources, a data set | figures of every recipe with every seed, a table |
//! | `Demo` | nothing: it draws its data (feature `cli`, for its charts) | sources, a comparison, a merged network, pictures |
//!
//! A job (de)serialises, so that it can be kept, compared and run elsewhere. `check` refuses what is wrong in itself, before
//! anything is read; `run` does the work and tells an [`Observer`](crate::train::Observer), who can also stop it between two
//! steps. Paths are as the process finds them.

mod align;
mod card;
mod compare;
mod compute;
#[cfg(feature = "cli")]
mod demo;
mod evaluate;
mod export;
mod heads;
mod learn;
mod log;
mod merge;
mod networks;
mod predict;
mod saving;
mod settings;
mod side_by_side;
mod train;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use align::{Align, Aligned, AlignedGroup};
pub use compare::{
    Cell, Compare, CompareObserver, Cost, Estimate, Figures, LearnedRecord, Plan, Record, Row, StageRecord, Summary,
};
pub use compute::Compute;
#[cfg(feature = "cli")]
pub use demo::{Demo, DemoObserver, Demonstration};
pub use evaluate::{Evaluate, Evaluation};
pub use export::{Export, Exported, ImageSize};
pub use learn::{Learn, LearnedFiles};
pub use log::EpochLog;
pub use merge::{By, ByMethod, Merge, Merged};
pub use predict::{HeadPredictions, Predict, PredictionFormat, Predictions};
pub use train::{Start, Train, Trained};

/// A data set in a file, and how its bytes become numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    pub data: PathBuf,
    #[serde(default)]
    pub normalise: Normalise,
}

/// (v / 255 − mean) / std, per channel or one for all. What is left out is as the networks were trained, else as MedMNIST has
/// it: 0.5.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    #[serde(default)]
    pub mean: Option<Vec<f32>>,
    #[serde(default)]
    pub std: Option<Vec<f32>>,
}
