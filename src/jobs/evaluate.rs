//! How good a network is on a split of a data set; of its file, nothing else is read.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Compute, Images, networks};
use crate::checkpoint::{Checkpoint, Reading};
use crate::data::{Dataset, Labels, Normalisation, Split, SplitName};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::train::{Observer, Target, scores};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    pub model: PathBuf,
    #[serde(default)]
    pub reading: Reading,
    pub images: Images,
    pub split: SplitName,
    /// Images per pass; it changes results by rounding alone.
    pub batch_size: usize,
    pub compute: Compute,
}

/// The result of a run of [`Evaluate`].
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub metrics: Metrics,
    pub images: usize,
    /// As the data set names the classes, or the network.
    pub class_names: Option<Vec<String>>,
}

impl Evaluate {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        self.reading.check()?;
        match self.batch_size {
            0 => Err(Error::usage("a batch size of 0", "give at least 1; 128 is usual")),
            _ => Ok(()),
        }
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<Evaluation> {
        let Scored { logits, classes, split, class_names } = self.scores(Labels::Required, observer)?;
        let metrics = Metrics::compute(&logits, &split.labels, classes);
        Ok(Evaluation { metrics, images: split.len(), class_names })
    }

    pub(super) fn scores(&self, labels: Labels, observer: &mut dyn Observer) -> Result<Scored> {
        self.check()?;
        let place = self.compute.open(observer)?;
        let (checkpoint, data, normalisation) = self.load(labels, observer)?;
        let target = Target { data: &data, normalisation: &normalisation, place };
        observer.phase(&format!("{} split", self.split));
        let images = data.split(self.split).len();
        let watch = |done| observer.images(done, images);
        let logits = scores(&checkpoint.model, target, self.split, self.batch_size, watch)?;
        let split = data.split(self.split).clone();
        let class_names = data.class_names.or(checkpoint.provenance.class_names);
        Ok(Scored { logits, classes: data.classes, split, class_names })
    }

    /// A network and a split that fit each other. What the classes are, the network says.
    fn load(&self, labels: Labels, observer: &mut dyn Observer) -> Result<(Checkpoint, Dataset, Normalisation)> {
        let checkpoint = networks::load(&self.model, &self.reading, observer)?;
        networks::check_classifier(&self.model, &checkpoint)?;
        let network = &checkpoint.model.network;
        let files = [(self.model.as_path(), &checkpoint.provenance)];
        let channels = network.input_channels;
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let data = Dataset::load_split(&self.images.data, self.split, labels, network.classes)?;
        networks::check_fit(&data, network)?;
        networks::check_class_names(&self.model, &checkpoint.provenance, &data)?;
        networks::tell_image_size(&files, &data, observer);
        if data.split(self.split).is_empty() {
            let message = format!("its {} split is empty", self.split);
            return Err(Error::data(&data.path, message, "choose another --split"));
        }
        Ok((checkpoint, data, normalisation))
    }
}

/// A network's logits on a split, images × classes.
pub(super) struct Scored {
    pub logits: Vec<f32>,
    pub classes: usize,
    pub split: Split,
    /// As the data set names the classes, or the network.
    pub class_names: Option<Vec<String>>,
}
