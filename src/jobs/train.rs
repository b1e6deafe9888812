//! Training a network, or fine-tuning one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::card::{self, CardFiles, Told};
use super::events::Events;
use super::log::EpochLines;
use super::saving::{self, Recording, Saving};
use super::settings::settings;
use super::{Compute, EpochLog, Images, networks};
use crate::checkpoint::{self, Checkpoint, Described, Form, Metadata, Phase, Provenance, Reading, TensorFile, Writing};

use crate::data::{Dataset, Normalisation};
use crate::error::{Error, Result};
use crate::file_kind::Wanted;
use crate::merge::{Learned, SourceRecord, training_metadata};
use crate::nn::{Architecture, Model, Network, Region, init};
use crate::output::{Named, OutputPath};
use crate::train::{
    Change, EpochRecord, FINE_TUNE, FINE_TUNE_MERGE, LINEAR_PROBE, Observer, Place, RateCurve, RateSearch, ResumeFile,
    Settings, Subject, TRAIN, Target, Teachers, TrainOptions, find_rate, train_resumable,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    pub images: Images,
    pub start: Start,
    pub options: TrainOptions,
    pub compute: Compute,
    /// The trained network: the best epoch on the validation split.
    pub out: PathBuf,
    /// Names and types of the numbers in `out`.
    #[serde(default)]
    pub writing: Writing,
    /// Writes a card and a configuration beside `out`; the card tells this command.
    #[serde(default)]
    pub card: Option<String>,
    /// Keeps the state of the run beside `out` after each epoch, and continues from it where there is one.
    #[serde(default)]
    pub resume: bool,
    /// Keeps that state when the run has ended, so that one of more epochs may go on from it.
    #[serde(default)]
    pub keep_state: bool,
    /// A file that gets a line of JSON per epoch.
    #[serde(default)]
    pub metrics: Option<PathBuf>,
    /// A folder that gets a file of events per epoch, which TensorBoard shows.
    #[serde(default)]
    pub tensorboard: Option<PathBuf>,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

/// The network that is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Start {
    /// A new network.
    New {
        architecture: Architecture,
        /// Grey images are repeated to fill them; the images' own if left out.
        input_channels: Option<usize>,
    },
    From {
        path: PathBuf,
        #[serde(default)]
        reading: Reading,
        /// Whether the head is new even if the file's fits the classes.
        new_head: bool,
        /// Whether the head alone is trained, on a trunk that stays as it is: a linear probe.
        head_only: bool,
        /// Networks of the same architecture near whose features those of this one are kept, by `distill` of the options.
        #[serde(default)]
        teachers: Vec<PathBuf>,
    },
    /// The network folded from learned merge weights, which are learned on while all of it is fine-tuned.
    Merged {
        /// A file of merge weights that [`Learn`](super::Learn) wrote.
        weights: PathBuf,
        /// The sources, in the order in which the weights were learned.
        models: Vec<PathBuf>,
        #[serde(default)]
        reading: Reading,
        /// Whether the head is new even if the learned one fits the classes.
        new_head: bool,
    },
}

/// What a run begins with.
struct Beginning {
    /// The network it starts from, if there is one, and the content of its teachers.
    from: Option<Checkpoint>,
    teachers: Vec<String>,
    subject: Subject,
    architecture: Architecture,
    model: Model,
    /// Of the file that is written.
    form: Form,
    data: Dataset,
    normalisation: Normalisation,
    place: Place,
}

/// The result of a run of [`Train`].
#[derive(Clone, Debug)]
pub struct Trained {
    pub architecture: Architecture,
    pub model: Model,
    pub history: Vec<EpochRecord>,
    pub log: PathBuf,
}

impl Train {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.check_learning()?;
        if self.keep_state && !self.resume {
            return Err(Error::usage("--keep-state without --resume", "give both, or neither"));
        }
        if self.keep_state && self.options.schedule.knows_the_end() {
            let message = "--keep-state with a schedule that ends with the last epoch";
            return Err(Error::usage(message, "give --schedule constant or plateau"));
        }
        let (state, log) = (self.state_path(), EpochLog::beside(&self.out));
        let mut outputs: Vec<Named> = vec![("--out", &self.out), ("the log beside --out", &log)];
        outputs.extend(self.resume.then_some(("the state of --resume", state.as_path())));
        outputs.extend(self.metrics.iter().map(|path| ("--metrics", path.as_path())));
        let events = self.tensorboard.as_ref().map(|folder| Events::path(folder, &self.out));
        outputs.extend(events.iter().map(|path| ("the events of --tensorboard", path.as_path())));
        card::check_apart(&self.inputs(), outputs, &self.card, &self.out)
    }

    /// Refuses what is wrong whatever is written.
    fn check_learning(&self) -> Result<()> {
        self.options.check()?;
        self.compute.check()?;
        let teachers = self.teachers();
        if teachers.is_empty() != (self.options.distill == 0.0) {
            let (message, hint) = match teachers.is_empty() {
                true => ("--distill without --teachers", "name the networks whose features are kept"),
                false => ("--teachers without --distill", "say how strongly their features are kept: --distill 1"),
            };
            return Err(Error::usage(message, hint));
        }
        match &self.start {
            Start::New { input_channels, architecture } => {
                self.writing.check(architecture, false)?;
                Reading { input_channels: *input_channels, ..Reading::default() }.check()
            }
            Start::From { reading, .. } | Start::Merged { reading, .. } => reading.check(),
        }
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<Trained> {
        self.check()?;
        let state_path = self.state_path();
        // What an interrupted run wrote, its continuation may overwrite.
        let continues = self.resume && state_path.exists() && !self.is_anothers(&state_path);
        let force = self.force || continues;
        let _claim = OutputPath::check(&self.out, force, 0)?;
        let log = EpochLog::new(&self.out, force)?;
        let told = saving::Told {
            lines: self.metrics.as_ref().map(|path| EpochLines::new(path, self.force, continues)).transpose()?,
            events: self
                .tensorboard
                .as_ref()
                .map(|path| Events::new(path, &self.out, self.force, continues))
                .transpose()?,
        };
        let card = CardFiles::check(&self.card, &self.out, force)?;
        let Beginning { from, teachers, mut subject, architecture, mut model, form, data, normalisation, place } =
            self.begin(observer)?;
        let output = OutputPath::check(&self.out, force, checkpoint::file_size(&model.network))?;
        let options = self.options.for_images(data.train.len());

        let before = from.as_ref().map_or(&[][..], |from| &from.provenance.training);
        let mut provenance = Provenance::of(&data, &normalisation, before, options.phase(self.kind(), &[]))?;
        let mut state = match self.resume {
            true => {
                let network = (architecture.clone(), &*model.network);
                let mut settings = self.settings(&options, place, &network, from.as_ref(), &provenance)?;
                if !teachers.is_empty() {
                    settings.insert("the content of --teachers".into(), json!(teachers.join(",")));
                }
                Some(ResumeFile::new(&state_path, settings)?)
            }
            false => None,
        };
        let metadata = self.metadata(&architecture, from.as_ref());
        let saving = Saving { output, metadata, form, provenance: provenance.clone(), options: options.clone() };
        let mut recording = Recording::new(observer, log, Some(saving));
        recording.told = told;
        recording.phase("training");
        let target = Target { data: &data, normalisation: &normalisation, place };
        let history = train_resumable(&mut model, &mut subject, target, &options, &mut recording, state.as_mut())?;
        let Recording { saving, observer, .. } = recording;
        let Saving { mut output, mut metadata, form, .. } = saving.expect("given above");
        *provenance.training.last_mut().expect("made above") = options.phase(self.kind(), &history);
        provenance.write(&mut metadata);
        let described = Described::of(&architecture, &model, &form, &provenance);
        let told = Told {
            described,
            metadata: &metadata,
            history: &history,
            select_by: options.select_by,
            sources: self.sources(from.as_ref()),
        };
        card::save(&mut output, &told, card, observer)?;
        match state {
            Some(state) if self.keep_state => state.keep(&TensorFile::read(&self.out)?.sha256)?,
            state => state.map_or(Ok(()), ResumeFile::remove)?,
        }
        Ok(Trained { architecture, model, history, log: EpochLog::beside(&self.out) })
    }

    /// What the loss does while the learning rate rises, from the network and with the options of this run. Nothing is written:
    /// `out` and what is told beside it have no part in it, nor have the schedule, epochs and `ema`.
    pub fn find_rate(&self, search: &RateSearch, observer: &mut dyn Observer) -> Result<RateCurve> {
        search.check()?;
        self.check_learning()?;
        let Beginning { mut subject, model, data, normalisation, place, .. } = self.begin(observer)?;
        let target = Target { data: &data, normalisation: &normalisation, place };
        observer.phase("learning rates");
        find_rate(&model, &mut subject, target, &self.options, search, observer)
    }

    /// Reads all that a run begins with.
    fn begin(&self, observer: &mut dyn Observer) -> Result<Beginning> {
        let place = self.compute.open(observer)?;
        let (from, subject, teachers) = self.subject(observer)?;
        let form = self.form(from.as_ref())?;
        let files: Vec<_> = self.from().into_iter().zip(&from).map(|(path, from)| (path, &from.provenance)).collect();
        let data = self.images.load(&files, observer)?;
        let (architecture, network) = self.network(&data, from.as_ref());
        networks::check_fit(&data, &network)?;
        let channels = network.input_channels;
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        networks::tell_image_size(&files, &data, observer);
        let model = match &from {
            None => Model::initialized(network, self.options.seed),
            Some(from) => self.transferred(from, network, &data, observer)?,
        };
        Ok(Beginning { from, teachers, subject, architecture, model, form, data, normalisation, place })
    }

    /// The network to start from, if there is one, what of it learns, and the content of its teachers.
    fn subject(&self, observer: &mut dyn Observer) -> Result<(Option<Checkpoint>, Subject, Vec<String>)> {
        let (path, reading, head_only) = match &self.start {
            Start::New { .. } => return Ok((None, Subject::Everything, Vec::new())),
            Start::From { path, reading, head_only, .. } => (path, reading, *head_only),
            Start::Merged { weights, models, reading, .. } => {
                let (folded, change) = folded(weights, models, reading, observer)?;
                return Ok((Some(folded), Subject::EverythingAndMerge(change), Vec::new()));
            }
        };
        let from = networks::load(path, reading, observer)?;
        if self.teachers().is_empty() {
            return Ok((Some(from), if head_only { Subject::Head } else { Subject::Everything }, Vec::new()));
        }
        let channels = Some(from.model.network.input_channels);
        let reading = Reading { input_channels: channels, ..*reading };
        let teachers = networks::load_any_sources(self.teachers(), &reading, observer)?;
        if *teachers.architecture() != from.architecture {
            let [ours, theirs] = [&from.architecture, teachers.architecture()];
            let message = format!("{} is a {ours}, and a teacher a {theirs}", path.display());
            return Err(Error::usage(message, "features are compared one by one: give teachers of its architecture"));
        }
        let content = teachers.iter().map(|teacher| teacher.checkpoint.sha256.clone()).collect();
        let models = teachers.iter().map(|teacher| teacher.checkpoint.model.clone()).collect();
        Ok((Some(from), Subject::Distilled(Teachers::new(models, self.options.distill)), content))
    }

    fn teachers(&self) -> &[PathBuf] {
        match &self.start {
            Start::From { teachers, .. } => teachers,
            Start::New { .. } | Start::Merged { .. } => &[],
        }
    }

    /// The header of `out`.
    fn metadata(&self, architecture: &Architecture, from: Option<&Checkpoint>) -> Metadata {
        let mut metadata = training_metadata(architecture, self.options.seed, from);
        if let Start::Merged { .. } = self.start {
            metadata.insert("medmerge.method".into(), FINE_TUNE_MERGE.into());
        }
        metadata
    }

    fn from(&self) -> Option<&Path> {
        match &self.start {
            Start::From { path, .. } | Start::Merged { weights: path, .. } => Some(path),
            Start::New { .. } => None,
        }
    }

    fn form(&self, from: Option<&Checkpoint>) -> Result<Form> {
        match (&self.start, from) {
            (Start::New { architecture, .. }, _) => self.writing.form(architecture, None),
            (_, from) => {
                let from = from.expect("it was read");
                self.writing.form(&from.architecture, Some(&from.origin))
            }
        }
    }

    /// The file that the network comes from, for its card.
    fn sources(&self, from: Option<&Checkpoint>) -> Vec<SourceRecord> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let record =
            |(path, from): (&Path, &Checkpoint)| SourceRecord { name: name(path), sha256: from.sha256.clone() };
        self.from().zip(from).map(record).into_iter().collect()
    }

    fn inputs(&self) -> Vec<Named<'_>> {
        let (name, models) = match &self.start {
            Start::Merged { models, .. } => ("--weights", models.as_slice()),
            _ => ("--from", &[][..]),
        };
        let from = self.from().into_iter().map(|path| (name, path));
        let models = models.iter().map(|path| ("--models", path.as_path()));
        let teachers = self.teachers().iter().map(|path| ("--teachers", path.as_path()));
        from.chain(models).chain(teachers).chain([("--data", self.images.data.as_path())]).collect()
    }

    /// Whether there is a network of which the run of the state beside it will not say that it is its own: a finished one, unless
    /// it is what that run ended with.
    fn is_anothers(&self, state: &Path) -> bool {
        let is_result = || {
            let result = ResumeFile::result(state);
            result.is_some() && TensorFile::read(&self.out).ok().map(|file| file.sha256) == result
        };
        is_finished(&self.out) && !is_result()
    }

    fn state_path(&self) -> PathBuf {
        self.out.with_extension("resume.safetensors")
    }

    /// The kind of training, as a header calls it.
    fn kind(&self) -> &'static str {
        match self.start {
            Start::New { .. } => TRAIN,
            Start::From { head_only: true, .. } => LINEAR_PROBE,
            Start::From { head_only: false, .. } => FINE_TUNE,
            Start::Merged { .. } => FINE_TUNE_MERGE,
        }
    }

    fn network(&self, data: &Dataset, from: Option<&Checkpoint>) -> (Architecture, Arc<Network>) {
        let (architecture, channels) = match (&self.start, from) {
            (Start::New { architecture, input_channels }, _) => (architecture, input_channels.unwrap_or(data.channels)),
            (_, from) => {
                let from = from.expect("it was read");
                (&from.architecture, from.model.network.input_channels)
            }
        };
        (architecture.clone(), architecture.build(channels, data.classes))
    }

    /// A network to start from, with its own head where that fits the classes and no other is asked for.
    fn transferred(
        &self,
        from: &Checkpoint,
        network: Arc<Network>,
        data: &Dataset,
        observer: &mut dyn Observer,
    ) -> Result<Model> {
        let keeps_head =
            !matches!(self.start, Start::From { new_head: true, .. } | Start::Merged { new_head: true, .. });
        let path = self.from().expect("there is one");
        let has_several = !from.heads().is_empty();
        // Of a network that says nothing the data's is taken.
        let fits = from.provenance.task().is_none_or(|task| task == data.task);
        if fits && from.has_head && from.model.network.classes == data.classes && keeps_head && !has_several {
            networks::check_class_names(path, from.provenance.class_names.as_ref(), data)?;
            return Ok(from.model.clone());
        }
        let why = match has_several && keeps_head {
            true => format!(", because {} tells several sets of classes apart", path.display()),
            false => String::new(),
        };
        observer.remark(&format!("the head is new: {} classes{why}", data.classes));
        let mut model = Model::blank(network);
        model.trunk = from.model.trunk.clone();
        model.statistics = from.model.statistics.clone();
        model.batches_tracked = from.model.batches_tracked.clone();
        init::initialize(&mut model, Region::Head, self.options.seed);
        Ok(model)
    }

    /// The identity of a run.
    fn settings(
        &self,
        options: &TrainOptions,
        place: Place,
        network: &(Architecture, &Network),
        from: Option<&Checkpoint>,
        provenance: &Provenance,
    ) -> Result<Settings> {
        let (new_head, head_only) = match self.start {
            Start::From { new_head, head_only, .. } => (new_head, head_only),
            Start::Merged { new_head, .. } => (new_head, false),
            Start::New { .. } => (false, false),
        };
        let is_merged = matches!(self.start, Start::Merged { .. });
        let content = from.map(|from| &from.sha256);
        let more = json!({
            "the content of --from": content.filter(|_| !is_merged),
            // Which names the content of --models.
            "the content of --weights": content.filter(|_| is_merged),
            "--merge-learning-rate": is_merged.then_some(self.options.merge_learning_rate),
            "--new-head": new_head,
            "--head-only": head_only,
            "--l2-sp": (self.options.l2_sp != 0.0).then_some(self.options.l2_sp),
            "--distill": (self.options.distill != 0.0).then_some(self.options.distill),
            "--ema": (self.options.ema != 0.0).then_some(self.options.ema),
        });
        let mut settings = settings(network, options, (&self.compute, place), provenance, more)?;
        if !options.schedule.knows_the_end() {
            // More of them go on with the same run.
            settings.remove("--epochs");
        }
        Ok(settings)
    }
}

/// The network folded from merge weights, as if it had been read from a file, and those to be learned on.
fn folded(
    path: &Path,
    models: &[PathBuf],
    reading: &Reading,
    observer: &mut dyn Observer,
) -> Result<(Checkpoint, Change)> {
    let file = TensorFile::read_as(path, Wanted::MergeWeights)?;
    let learned = Learned::from_file(&file)?;
    let sources = networks::load_any_sources(models, &learned.reading(reading), observer)?;
    learned.check_sources(path, &sources)?;
    let trunks = learned.aligned(&sources).trunks();
    let folded = Checkpoint {
        model: learned.fold(&trunks)?,
        metadata: learned.metadata(),
        provenance: learned.provenance.clone(),
        sha256: file.sha256,
        has_head: true,
        ..sources.get(learned.method.anchor).checkpoint.clone()
    };
    checkpoint::check_numbers(path, &folded.model)?;
    Ok((folded, Change::new(learned.plan()?, trunks, learned.merge_weights)))
}

/// Whether there is a network of which no interrupted run will say that it is its own.
fn is_finished(out: &Path) -> bool {
    out.exists()
        && TensorFile::read(out)
            .and_then(|file| Provenance::read(out, &file.metadata))
            .map_or(true, |provenance| !provenance.last_phase().is_some_and(Phase::is_unfinished))
}
