//! Learning merge weights, and folding them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::saving::Recording;
use super::{Compute, EpochLog, Images, networks};
use crate::checkpoint;
use crate::data::Dataset;
use crate::error::Result;
use crate::merge::{BatchNormPolicy, Constraint, Granularity, Learned, Sources, Start};
use crate::nn::Stem;
use crate::output::{Named, OutputPath, check_apart};
use crate::report::{LayerWeights, SourceWeights, merge_weights, save};
use crate::train::{AnchorChoice, EpochRecord, LearnOptions, Observer, Target, TrainOptions, learn};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learn {
    /// The sources, two or more.
    pub models: Vec<PathBuf>,
    /// Of files that leave it open.
    #[serde(default)]
    pub stem: Option<Stem>,
    pub images: Images,
    /// The source on the `1 − w` side: its path, its name, its number from 0, or `auto` (the better linear probe).
    pub anchor: String,
    pub granularity: Granularity,
    pub constraint: Constraint,
    pub start: Start,
    pub batch_norm: BatchNormPolicy,
    /// Keep the running statistics of the probe instead of re-estimating them on the training split.
    #[serde(default)]
    pub keep_statistics: bool,
    pub options: TrainOptions,
    pub compute: Compute,
    /// The folded network.
    pub out: PathBuf,
    /// The learned merge weights; beside `out` if left out.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// A picture of the learned weights per layer.
    #[serde(default)]
    pub picture: Option<PathBuf>,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

/// What a run of [`Learn`] came to.
pub struct LearnedFiles {
    pub learned: Learned,
    pub history: Vec<EpochRecord>,
    /// Macro F1 of each source's linear probe on the validation split, where the anchor was chosen by it.
    pub anchor_scores: Option<Vec<f64>>,
    pub weights: PathBuf,
    pub log: PathBuf,
}

impl Learn {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.options.check()?;
        self.compute.check()?;
        let inputs = self.models.iter().map(|path| ("--models", path.as_path()));
        let inputs: Vec<Named> = inputs.chain([("--data", self.images.data.as_path())]).collect();
        let (weights, log) = (self.weights_path(), EpochLog::beside(&self.out));
        let mut outputs: Vec<Named> = vec![("--out", &self.out), ("--weights", &weights)];
        outputs.extend(self.picture.iter().map(|path| ("--picture", path.as_path())));
        outputs.push(("the log beside --out", &log));
        check_apart(&inputs, &outputs)
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<LearnedFiles> {
        self.check()?;
        let weights_path = self.weights_path();
        let outputs = [&self.out, &weights_path].into_iter().chain(&self.picture);
        let check = |path: &PathBuf| OutputPath::check(path, self.force, 0);
        let _claims = outputs.map(check).collect::<Result<Vec<_>>>()?;
        let log = EpochLog::new(&self.out, self.force)?;
        let place = self.compute.open(observer)?;
        let sources = networks::load_sources(&self.models, self.stem, observer)?;
        let anchor = match self.anchor.as_str() {
            "auto" => AnchorChoice::Auto,
            name => AnchorChoice::Named(sources.find(name)?),
        };
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        let channels = sources.input_channels();
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let data = Dataset::load(&self.images.data)?;
        let network = sources.network(data.classes);
        networks::check_fit(&data, &network, None)?;
        networks::tell_image_size(&files, &data, observer);
        let size = checkpoint::file_size(&network);
        let mut output = OutputPath::check(&self.out, self.force, size)?;
        let mut weights_output = OutputPath::check(&weights_path, self.force, size)?;

        let target = Target { data: &data, normalisation: &normalisation, place };
        let mut recording = Recording::new(observer, log, None);
        let learning = learn(&sources, target, &self.learn_options(anchor), &mut recording)?;
        let learned = learning.learned;
        learned.save(&mut weights_output)?;
        let folded = learned.fold(&sources.trunks())?;
        checkpoint::save(&mut output, &folded, &learned.metadata())?;
        if let Some(path) = &self.picture {
            let svg = picture(&learned, &sources)?;
            save(&svg, &mut OutputPath::check(path, self.force, 0)?)?;
        }
        Ok(LearnedFiles {
            learned,
            history: learning.history,
            anchor_scores: learning.anchor_scores,
            weights: weights_path,
            log: EpochLog::beside(&self.out),
        })
    }

    fn learn_options(&self, anchor: AnchorChoice) -> LearnOptions {
        LearnOptions {
            granularity: self.granularity,
            constraint: self.constraint,
            start: self.start,
            anchor,
            batch_norm: self.batch_norm,
            keep_statistics: self.keep_statistics,
            probe: self.options.clone(),
        }
    }

    /// `folder/name.safetensors` to `folder/name.weights.safetensors`, if none is given.
    fn weights_path(&self) -> PathBuf {
        self.weights.clone().unwrap_or_else(|| Path::new(&self.out).with_extension("weights.safetensors"))
    }
}

/// The α of every source, layer by layer.
pub fn picture(learned: &Learned, sources: &Sources) -> Result<String> {
    let plan = learned.plan()?;
    let of_entries: Vec<_> = plan.entries.iter().map(|entry| plan.alphas_of(entry, &learned.numbers)).collect();
    let of_source = |source: usize| SourceWeights {
        name: format!(
            "{}{}",
            learned.sources[source].name,
            if source == learned.method.anchor { " (anchor)" } else { "" }
        ),
        layers: plan
            .entries
            .iter()
            .zip(&of_entries)
            .map(|(entry, alphas)| LayerWeights { name: entry.name.clone(), weights: alphas[source].clone() })
            .collect(),
    };
    let all: Vec<SourceWeights> = (0..sources.len()).map(of_source).collect();
    Ok(merge_weights("Learned merge weights", "merge weight", &all))
}
