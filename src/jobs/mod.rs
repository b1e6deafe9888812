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
//! anything is read; `run` does the work and tells an [`Observer`], who can also stop it between two
//! steps. Paths are as the process finds them.

mod align;
mod card;
mod compare;
mod compute;
#[cfg(feature = "cli")]
mod demo;
mod evaluate;
mod events;
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

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Provenance;
use crate::data::{Classes, Collected, Collecting, Dataset, Drawn, Labels, SplitName, is_collection};
use crate::error::{Error, Result};
use crate::train::Observer;

pub use align::{Align, Aligned, AlignedGroup};
pub use compare::{
    Cell, Compare, CompareObserver, Cost, Estimate, Figures, LearnedRecord, Plan, Record, Row, StageRecord, Summary,
};
pub use compute::Compute;
#[cfg(feature = "cli")]
pub use demo::{Demo, DemoObserver, Demonstration};
pub use evaluate::{Evaluate, Evaluation, TestFlips};
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
    /// How images in a folder or an archive become a data set.
    #[serde(default)]
    pub collecting: Collecting,
}

impl Images {
    /// What training needs, for networks of these files; what was taken for it that nobody said is told.
    fn load(&self, files: &[(&Path, &Provenance)], observer: &mut dyn Observer) -> Result<Dataset> {
        let collected = Dataset::open(&self.data, &self.collecting_for(files))?;
        Ok(self.tell(collected, observer))
    }

    /// One split of it.
    fn load_split(
        &self,
        split: SplitName,
        labels: Labels,
        classes: &Classes,
        files: &[(&Path, &Provenance)],
        observer: &mut dyn Observer,
    ) -> Result<Dataset> {
        let collected = Dataset::open_split(&self.data, &self.collecting_for(files), split, labels, classes)?;
        self.check_drawn(&collected.data, files)?;
        Ok(self.tell(collected, observer))
    }

    fn tell(&self, Collected { data, remarks }: Collected, observer: &mut dyn Observer) -> Dataset {
        remarks.iter().for_each(|remark| observer.remark(&format!("{}: {remark}", self.data.display())));
        data
    }

    /// How the splits of this collection were drawn where a network was trained on a part of it.
    fn drawn<'a>(&self, files: &[(&Path, &'a Provenance)]) -> Option<&'a Drawn> {
        let name = self.data.file_name().unwrap_or_default().to_string_lossy();
        let records = files.iter().filter_map(|(_, provenance)| provenance.data.as_ref());
        records.filter(|record| record.name == name).find_map(|record| record.drawn.as_ref())
    }

    /// Refuses splits that were drawn again and came to others: what is measured now may have been learned from.
    fn check_drawn(&self, data: &Dataset, files: &[(&Path, &Provenance)]) -> Result<()> {
        let (Some(before), Some(now)) = (self.drawn(files), &data.drawn) else { return Ok(()) };
        let Collecting { split_seed, shares, group_column, .. } = &self.collecting;
        let others_are_asked_for = split_seed.is_some() || shares.is_some() || group_column.is_some();
        if others_are_asked_for || before.sha256.is_none() || before.sha256 == now.sha256 {
            return Ok(());
        }
        let message = "the splits that are drawn are not those of training: images or labels have changed";
        let hint = match &before.labels {
            Some(labels) => format!("it was trained with --labels …/{labels}; to draw others: --split-seed 0"),
            None => "give the table of training's splits (inspect --write-splits): --labels FILE; to draw others: \
                     --split-seed 0"
                .to_string(),
        };
        Err(Error::data(&self.data, message, hint))
    }

    /// Images of any size are brought to that of the images that the networks were trained on, unless another is asked for.
    fn collecting_for(&self, files: &[(&Path, &Provenance)]) -> Collecting {
        let mut collecting = self.collecting.clone();
        if !is_collection(&self.data) {
            return collecting;
        }
        // Whoever was trained on a part of these images is measured on the others.
        if let Some(drawn) = self.drawn(files) {
            collecting.split_seed = collecting.split_seed.or(Some(drawn.seed));
            collecting.shares = collecting.shares.or(Some(drawn.shares));
            collecting.group_column = collecting.group_column.or(drawn.group_column.clone());
            collecting.label_column = collecting.label_column.or(drawn.label_column.clone());
        }
        if collecting.image_size.is_none() {
            let mut sizes = files.iter().filter_map(|(_, provenance)| provenance.image_size);
            let first = sizes.next().filter(|[height, width]| height == width);
            collecting.image_size = first.filter(|size| sizes.all(|other| other == *size)).map(|[side, _]| side);
        }
        collecting
    }
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
