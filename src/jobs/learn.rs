//! Learning merge weights, and folding them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::card::{self, CardFiles, Told};
use super::saving::Recording;
use super::settings::settings;
use super::{Compute, EpochLog, Images, networks};
use crate::checkpoint::{self, Described, Provenance, Reading, Writing};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::merge::{Align, BatchNormPolicy, Constraint, Granularity, Learned, ProbeStatistics, Sources, Start};
use crate::nn::Network;
use crate::output::{Named, OutputPath};
#[cfg(feature = "cli")]
use crate::report::{LayerWeights, SourceWeights, merge_weights, save};
use crate::train::{
    Anchor, AnchorChoice, EpochRecord, LearnOptions, Observer, Place, ResumeFile, Settings, Target, TrainOptions,
    best_epoch, choose_anchor, learn_for,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learn {
    /// The sources, two or more; or a single one, whose kernels get numbers of their own by [`Constraint::Free`].
    pub models: Vec<PathBuf>,
    #[serde(default)]
    pub reading: Reading,
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
    /// What the sources' units are brought into the order of the anchor's by, first.
    #[serde(default)]
    pub align: Align,
    #[serde(default)]
    pub probe_statistics: ProbeStatistics,
    pub options: TrainOptions,
    pub compute: Compute,
    /// The folded network.
    pub out: PathBuf,
    /// Names and types of the numbers in `out`; the source that may give them is the anchor.
    #[serde(default)]
    pub writing: Writing,
    /// Writes a card and a configuration beside `out`; the card tells this command.
    #[serde(default)]
    pub card: Option<String>,
    /// The learned merge weights; beside `out` if left out.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// A picture of the learned weights per layer.
    #[serde(default)]
    pub picture: Option<PathBuf>,
    /// Keeps the state of the run beside `out` after each epoch, and continues from it where there is one.
    #[serde(default)]
    pub resume: bool,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

/// The result of a run of [`Learn`].
pub struct LearnedFiles {
    pub learned: Learned,
    pub history: Vec<EpochRecord>,
    pub anchor: Anchor,
    pub weights: PathBuf,
    pub log: PathBuf,
}

impl LearnedFiles {
    /// The source whose linear probe has a better macro F1 on the validation split than the merged network: the better start for
    /// fine-tuning. `None` where the merged network is as good, or no source was probed.
    pub fn better_source(&self) -> Option<usize> {
        let merged = best_epoch(&self.history)?.val_macro_f1?;
        let probe = self.anchor.probes.get(self.anchor.index)?;
        (probe.score() > merged).then_some(self.anchor.index)
    }
}

impl Learn {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.options.check()?;
        self.compute.check()?;
        self.reading.check()?;
        if self.picture.is_some() && cfg!(not(feature = "cli")) {
            return Err(Error::usage("pictures are not part of this build", "build with the feature `cli`"));
        }
        let inputs = self.models.iter().map(|path| ("--models", path.as_path()));
        let inputs: Vec<Named> = inputs.chain([("--data", self.images.data.as_path())]).collect();
        let (weights, log, state) = (self.weights_path(), EpochLog::beside(&self.out), self.state_path());
        let mut outputs: Vec<Named> = vec![("--out", &self.out), ("--weights", &weights)];
        outputs.extend(self.picture.iter().map(|path| ("--picture", path.as_path())));
        outputs.push(("the log beside --out", &log));
        outputs.extend(self.resume.then_some(("the state of --resume", state.as_path())));
        card::check_apart(&inputs, outputs, &self.card, &self.out)
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<LearnedFiles> {
        self.check()?;
        let weights_path = self.weights_path();
        let outputs = [&self.out, &weights_path].into_iter().chain(&self.picture);
        let check = |path: &PathBuf| OutputPath::check(path, self.force, 0);
        let _claims = outputs.map(check).collect::<Result<Vec<_>>>()?;
        let log = EpochLog::new(&self.out, self.force)?;
        let card = CardFiles::check(&self.card, &self.out, self.force)?;
        let place = self.compute.open(observer)?;
        let sources = networks::load_any_sources(&self.models, &self.reading, observer)?;
        self.writing.check(sources.architecture(), true)?;
        let choice = match self.anchor.as_str() {
            "auto" => AnchorChoice::Auto,
            name => AnchorChoice::Named(sources.find(name)?),
        };
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        let channels = sources.input_channels();
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let data = Dataset::load(&self.images.data)?;
        let network = sources.network(data.classes);
        networks::check_fit(&data, &network)?;
        networks::tell_image_size(&files, &data, observer);
        let size = checkpoint::file_size(&network);
        let mut output = OutputPath::check(&self.out, self.force, size)?;
        let mut weights_output = OutputPath::check(&weights_path, self.force, size)?;

        let target = Target { data: &data, normalisation: &normalisation, place };
        let options = self.learn_options(choice);
        options.check(&sources, data.classes)?;
        let mut state = match self.resume {
            true => {
                let provenance = Provenance::of_data(&data, &normalisation)?;
                Some(ResumeFile::new(&self.state_path(), self.settings(place, &network, &sources, &provenance)?)?)
            }
            false => None,
        };
        let mut recording = Recording::new(observer, log, None);
        let anchor = self.anchor(&options, &sources, target, &mut recording, state.as_mut())?;
        let learning = learn_for(&sources, target, &options, anchor, &mut recording, state.as_mut())?;
        let learned = learning.learned;
        learned.save(&mut weights_output)?;
        self.write_folded(&mut output, &learned, &sources, &learning.history, card, recording.observer)?;
        #[cfg(feature = "cli")]
        if let Some(path) = &self.picture {
            let svg = picture(&learned, &sources)?;
            save(&svg, &mut OutputPath::check(path, self.force, 0)?)?;
        }
        state.map_or(Ok(()), ResumeFile::remove)?;
        Ok(LearnedFiles {
            learned,
            history: learning.history,
            anchor: learning.anchor,
            weights: weights_path,
            log: EpochLog::beside(&self.out),
        })
    }

    /// Folds and writes the network, and its card if there is one, which tells the history of learning.
    fn write_folded(
        &self,
        output: &mut OutputPath,
        learned: &Learned,
        sources: &Sources,
        history: &[EpochRecord],
        card: Option<CardFiles>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let origin = &sources.get(learned.method.anchor).checkpoint.origin;
        let Learned { architecture, provenance, .. } = learned;
        let (form, metadata) = (self.writing.form(architecture, Some(origin))?, learned.metadata());
        let folded = learned.fold(&learned.aligned(sources).trunks())?;
        let described = Described::of(architecture, &folded, &form, provenance);
        let told = Told { described, metadata: &metadata, history, sources: Vec::new() };
        card::save(output, &told, card, observer)
    }

    /// The anchor: as an earlier process chose it, as it is named, or by probes.
    fn anchor(
        &self,
        options: &LearnOptions,
        sources: &Sources,
        target: Target,
        recording: &mut Recording,
        mut state: Option<&mut ResumeFile>,
    ) -> Result<Anchor> {
        if let Some(file) = &mut state
            && let Some(memo) = file.memo()?
            && let Ok(anchor) = serde_json::from_str::<Anchor>(memo)
        {
            for probe in &anchor.probes {
                probe.history.iter().for_each(|record| recording.log.add(&probe.name, record));
            }
            return Ok(anchor);
        }
        let anchor = match options.anchor {
            AnchorChoice::Named(index) => Anchor { index, probes: Vec::new() },
            AnchorChoice::Auto => choose_anchor(sources, target, &options.probe, recording)?,
        };
        if let Some(file) = state {
            file.remember(serde_json::to_string(&anchor).expect("plain data is JSON"));
        }
        Ok(anchor)
    }

    /// The identity of a run.
    fn settings(
        &self,
        place: Place,
        network: &Network,
        sources: &Sources,
        provenance: &Provenance,
    ) -> Result<Settings> {
        let hashes: Vec<&str> = sources.iter().map(|source| source.checkpoint.sha256.as_str()).collect();
        let more = json!({
            "the content of --models": hashes.join(","),
            "--anchor": self.anchor,
            "--granularity": self.granularity,
            "--constraint": self.constraint,
            "--start": self.start,
            "--batch-norm": self.batch_norm,
            "--keep-statistics": self.keep_statistics,
            "--align": self.align,
            "--probe-statistics": (self.probe_statistics != ProbeStatistics::Batch).then_some(self.probe_statistics),
            "--merge-learning-rate": self.options.merge_learning_rate,
            "--regularise": (self.options.regularise != 0.0).then_some(self.options.regularise),
        });
        let network = (sources.architecture().clone(), network);
        settings(&network, &self.options, (&self.compute, place), provenance, more)
    }

    fn state_path(&self) -> PathBuf {
        self.out.with_extension("resume.safetensors")
    }

    fn learn_options(&self, anchor: AnchorChoice) -> LearnOptions {
        LearnOptions {
            granularity: self.granularity,
            constraint: self.constraint,
            start: self.start,
            anchor,
            batch_norm: self.batch_norm,
            keep_statistics: self.keep_statistics,
            align: self.align,
            probe_statistics: self.probe_statistics,
            probe: self.options.clone(),
        }
    }

    /// `folder/name.safetensors` to `folder/name.weights.safetensors`, if none is given.
    fn weights_path(&self) -> PathBuf {
        self.weights.clone().unwrap_or_else(|| Path::new(&self.out).with_extension("weights.safetensors"))
    }
}

/// The α of every source, layer by layer.
#[cfg(feature = "cli")]
fn picture(learned: &Learned, sources: &Sources) -> Result<String> {
    let plan = learned.plan()?;
    let of_entries: Vec<_> = plan.entries.iter().map(|entry| plan.alphas_of(entry, &learned.merge_weights)).collect();
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
