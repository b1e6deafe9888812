//! How good a network is on a data set, and what it says of each image.

use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Compute, Images, networks};
use crate::checkpoint::Checkpoint;
use crate::data::{Dataset, Normalisation, SplitName};
use crate::error::{Error, Result};
use crate::metrics::{Metrics, softmax};
use crate::nn::Stem;
use crate::output::{OutputPath, check_apart};
use crate::train::{Observer, Target, scores};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    pub model: PathBuf,
    /// The stem of a file that leaves it open.
    #[serde(default)]
    pub stem: Option<Stem>,
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

/// Scores per image, as CSV.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    pub evaluate: Evaluate,
    /// Whether scores are logits, or probabilities.
    #[serde(default)]
    pub logits: bool,
    /// A row per image in file order: index,score0,score1,…
    pub out: PathBuf,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

impl Evaluate {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        match self.batch_size {
            0 => Err(Error::usage("a batch size of 0", "give at least 1; 128 is usual")),
            _ => Ok(()),
        }
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<Evaluation> {
        let Scored { logits, checkpoint, data } = self.scores(observer)?;
        let labels = &data.split(self.split).labels;
        Ok(Evaluation {
            metrics: Metrics::compute(&logits, labels, checkpoint.model.network.classes),
            images: labels.len(),
            class_names: data.class_names.or(checkpoint.provenance.class_names),
        })
    }

    fn scores(&self, observer: &mut dyn Observer) -> Result<Scored> {
        self.check()?;
        let place = self.compute.open(observer)?;
        let (checkpoint, data, normalisation) = self.load(observer)?;
        let target = Target { data: &data, normalisation: &normalisation, place };
        observer.phase(&format!("{} split", self.split));
        let images = data.split(self.split).len();
        let watch = |done| observer.images(done, images);
        let logits = scores(&checkpoint.model, target, self.split, self.batch_size, watch)?;
        Ok(Scored { logits, checkpoint, data })
    }

    /// A network and a data set that fit each other.
    fn load(&self, observer: &mut dyn Observer) -> Result<(Checkpoint, Dataset, Normalisation)> {
        let checkpoint = networks::load(&self.model, self.stem, observer)?;
        if !checkpoint.has_head {
            let hint = "train one: medmerge train --from";
            let head = checkpoint.model.network.classifier().map_or("", |[weight, _]| &weight.name);
            return Err(Error::checkpoint(&self.model, format!("it has no classifier ({head})"), hint));
        }
        let network = &checkpoint.model.network;
        let files = [(self.model.as_path(), &checkpoint.provenance)];
        let channels = network.input_channels;
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let data = Dataset::load(&self.images.data)?;
        networks::check_fit(&data, network, Some(&self.model))?;
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
struct Scored {
    logits: Vec<f32>,
    checkpoint: Checkpoint,
    data: Dataset,
}

impl Predict {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.evaluate.check()?;
        let inputs = [("--model", self.evaluate.model.as_path()), ("--data", self.evaluate.images.data.as_path())];
        check_apart(&inputs, &[("--out", &self.out)])
    }

    /// How many images have a row.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<usize> {
        self.check()?;
        let mut output = OutputPath::check(&self.out, self.force, 0)?;
        let Scored { logits: mut scores, checkpoint, .. } = self.evaluate.scores(observer)?;
        let classes = checkpoint.model.network.classes;
        if !self.logits {
            scores.chunks_mut(classes).for_each(softmax);
        }
        output.write(|file| write_scores(file, &scores, classes))?;
        Ok(scores.len() / classes)
    }
}

/// Rust prints the shortest digits that give the same `f32` back.
fn write_scores(file: &mut dyn Write, scores: &[f32], classes: usize) -> std::io::Result<()> {
    let names: Vec<String> = (0..classes).map(|class| format!("score{class}")).collect();
    writeln!(file, "index,{}", names.join(","))?;
    for (index, row) in scores.chunks(classes).enumerate() {
        let row: Vec<String> = row.iter().map(f32::to_string).collect();
        writeln!(file, "{index},{}", row.join(","))?;
    }
    Ok(())
}
