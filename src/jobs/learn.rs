//! Learning merge weights, and folding them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::card::{self, CardFiles, Told};
use super::saving::Recording;
use super::settings::settings;
use super::{Compute, EpochLog, Images, networks};
use crate::checkpoint::{self, Described, Provenance, Reading, Writing};
use crate::error::{Error, Result};
use crate::merge::{Align, BatchNormPolicy, Constraint, Granularity, Learned, ProbeStatistics, Sources, Start};
use crate::nn::Network;
use crate::output::{Named, OutputPath};
#[cfg(feature = "cli")]
use crate::report::{LayerWeights, SourceWeights, merge_weights, save};
use crate::train::{
    Anchor, AnchorChoice, EpochRecord, LearnOptions, Observer, Place, ResumeFile, SelectBy, Settings, Target,
    TrainOptions, Tried, best_epoch, choose_anchor, learn_best,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learn {
    /// The sources, two or more; or a single one, whose kernels get numbers of their own by [`Constraint::Free`].
    pub models: Vec<PathBuf>,
    #[serde(default)]
    pub reading: Reading,
    pub images: Images,
    /// The source on the `1 − w` side: its path, its name, its number from 0, `auto` (the better linear probe), or `each`, as `starts`.
    pub anchor: String,
    pub granularity: Granularity,
    pub constraint: Constraint,
    /// Each is learned from, and what is best on the validation split is kept.
    pub starts: Vec<Start>,
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
    /// Everything that was learned, in order, where there were several starts or anchors.
    pub tried: Vec<Tried>,
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
        if self.starts.is_empty() {
            return Err(Error::usage("no start to learn from", "give one at least: uniform"));
        }
        if self.picture.is_some() && cfg!(not(feature = "cli")) {
            return Err(Error::usage("pictures are not part of this build", "build with the feature `cli`"));
        }
        let inputs = self.models.iter().map(|path| ("--models", path.as_path()));
        let inputs: Vec<Named> = inputs.chain([("--data", self.images.data.as_path())]).collect();
        let (weights, log) = (self.weights_path(), EpochLog::beside(&self.out));
        let states: Vec<PathBuf> = (0..self.choices()).map(|index| self.state_path(index)).collect();
        let mut outputs: Vec<Named> = vec![("--out", &self.out), ("--weights", &weights)];
        outputs.extend(self.picture.iter().map(|path| ("--picture", path.as_path())));
        outputs.push(("the log beside --out", &log));
        let state_of = |path| ("the state of --resume", PathBuf::as_path(path));
        outputs.extend(states.iter().filter(|_| self.resume).map(state_of));
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
        let named = match self.anchor.as_str() {
            "auto" | "each" => None,
            name => Some(sources.find(name)?),
        };
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        let channels = sources.input_channels();
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let data = self.images.load(&files, observer)?;
        let network = sources.network(data.classes);
        networks::check_fit(&data, &network)?;
        networks::tell_image_size(&files, &data, observer);
        let size = checkpoint::file_size(&network);
        let mut output = OutputPath::check(&self.out, self.force, size)?;
        let mut weights_output = OutputPath::check(&weights_path, self.force, size)?;

        let target = Target { data: &data, normalisation: &normalisation, place };
        let options = self.learn_options(named, data.train.len());
        let each = self.starts.iter().map(|&start| LearnOptions { start, ..options.clone() });
        each.into_iter().try_for_each(|options| options.check(&sources, data.classes))?;
        let mut states = Vec::new();
        if self.resume {
            let provenance = Provenance::of_data(&data, &normalisation)?;
            let settings = self.settings(&options.probe, place, &network, &sources, &provenance)?;
            for index in 0..self.choices() {
                // Each belongs to one start and one anchor.
                let mut settings = settings.clone();
                settings.insert("--start".into(), json!(self.starts[index % self.starts.len()]));
                if self.anchor == "each" {
                    settings.insert("--anchor".into(), json!(index / self.starts.len()));
                }
                states.push(ResumeFile::new(&self.state_path(index), settings)?);
            }
        }
        let mut recording = Recording::new(observer, log, None);
        let anchors = self.anchors(&options, &sources, target, &mut recording, states.first_mut())?;
        let (learning, tried) = {
            let mut files = states.iter_mut();
            let state = |_, _: &Anchor, _| Ok(files.next());
            learn_best(&sources, target, &options, (&anchors, &self.starts), &mut recording, state)?
        };
        let learned = learning.learned;
        learned.save(&mut weights_output)?;
        self.write_folded(&mut output, &learned, &sources, &learning.history, card, recording.observer)?;
        #[cfg(feature = "cli")]
        if let Some(path) = &self.picture {
            let svg = picture(&learned, &sources)?;
            save(&svg, &mut OutputPath::check(path, self.force, 0)?)?;
        }
        states.into_iter().try_for_each(ResumeFile::remove)?;
        Ok(LearnedFiles {
            learned,
            history: learning.history,
            anchor: learning.anchor,
            tried: if tried.len() > 1 { tried } else { Vec::new() },
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
        let told =
            Told { described, metadata: &metadata, history, select_by: SelectBy::default(), sources: Vec::new() };
        card::save(output, &told, card, observer)
    }

    /// The anchor, or all of them.
    fn anchors(
        &self,
        options: &LearnOptions,
        sources: &Sources,
        target: Target,
        recording: &mut Recording,
        state: Option<&mut ResumeFile>,
    ) -> Result<Vec<Anchor>> {
        if self.anchor == "each" {
            return Ok((0..sources.len()).map(|index| Anchor { index, probes: Vec::new() }).collect());
        }
        Ok(vec![self.one_anchor(options, sources, target, recording, state)?])
    }

    /// The anchor: as an earlier process chose it, as it is named, or by probes.
    fn one_anchor(
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
        probe: &TrainOptions,
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
            "--batch-norm": self.batch_norm,
            "--keep-statistics": self.keep_statistics,
            "--align": self.align,
            "--probe-statistics": (self.probe_statistics != ProbeStatistics::Batch).then_some(self.probe_statistics),
            "--merge-learning-rate": self.options.merge_learning_rate,
            "--regularise": (self.options.regularise != 0.0).then_some(self.options.regularise),
        });
        let network = (sources.architecture().clone(), network);
        settings(&network, probe, (&self.compute, place), provenance, more)
    }

    /// In how many ways merge weights are learned.
    fn choices(&self) -> usize {
        self.starts.len() * if self.anchor == "each" { self.models.len() } else { 1 }
    }

    /// The state of one of them, counted from 0.
    fn state_path(&self, index: usize) -> PathBuf {
        let number = if self.choices() > 1 { format!("{index}.") } else { String::new() };
        self.out.with_extension(format!("{number}resume.safetensors"))
    }

    /// From the first start, and the anchor that was named.
    fn learn_options(&self, named: Option<usize>, images: usize) -> LearnOptions {
        LearnOptions {
            granularity: self.granularity,
            constraint: self.constraint,
            start: self.starts[0],
            anchor: named.map_or(AnchorChoice::Auto, AnchorChoice::Named),
            batch_norm: self.batch_norm,
            keep_statistics: self.keep_statistics,
            align: self.align,
            probe_statistics: self.probe_statistics,
            probe: self.options.for_images(images),
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
