//! `train`.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use medmerge::checkpoint::{self, Checkpoint, Phase, Provenance, TensorFile};
use medmerge::data::Dataset;
use medmerge::error::{Error, Result};
use medmerge::hex::hex;
use medmerge::merge::training_metadata;
use medmerge::nn::{Architecture, Model, Network, Region, init};
use medmerge::output::{Named, OutputPath, check_apart, shown};
use medmerge::tensor::{DType, Device};
use medmerge::train::{
    FINE_TUNE, LINEAR_PROBE, Place, ResumeFile, Settings, Subject, TRAIN, Target, TrainOptions, train_resumable,
};

use super::progress::{EpochLog, Progress, Saving};
use super::{best, check_fit, networks, note, report, train_options};
use crate::cli::{Global, Train};

pub fn run(options: &Train, global: &Global) -> Result<()> {
    let train_options = train_options(&options.schedule, 0.0, global)?;
    // Found wrong before a large file is read.
    let named = Architecture::named(&options.architecture, options.stem, options.width)?;
    if let Some(channels) = options.input_channels.filter(|channels| !(1..=4096).contains(channels)) {
        return Err(Error::usage(format!("--input-channels {channels}"), "give between 1 and 4096; 3 is usual"));
    }
    let state_path = options.out.with_extension("resume.safetensors");
    // What an interrupted run wrote, its continuation may overwrite.
    let force = options.force || (options.resume && state_path.exists() && !is_finished(&options.out));
    let state: Option<Named> = options.resume.then_some(("the state of --resume", &state_path));
    let log_path = EpochLog::beside(&options.out);
    let outputs: [Named; 2] = [("--out", &options.out), ("the log beside --out", &log_path)];
    let outputs: Vec<Named> = outputs.into_iter().chain(state).collect();
    check_apart(&inputs(options), &outputs)?;
    let _claim = OutputPath::check(&options.out, force, 0)?;
    let log = EpochLog::shared(EpochLog::output(&options.out, force)?);
    let place = super::place::open(global)?;
    let from = match &options.from {
        Some(path) => Some(networks::load(path, options.stem, global)?),
        None => None,
    };
    let data = Dataset::load(&options.data.data)?;

    let (architecture, channels) = match &from {
        Some(from) => (from.architecture.clone(), from.model.network.input_channels),
        None => (named, options.input_channels.unwrap_or(data.channels)),
    };
    let files: Vec<_> = options.from.iter().zip(&from).map(|(path, from)| (path.as_path(), &from.provenance)).collect();
    let network = architecture.build(channels, data.classes);
    check_fit(&data, &network, None)?;
    let normalisation = networks::normalisation(&options.data.normalise, &files, channels, global)?;
    networks::tell_image_size(&files, &data, global);
    let output = OutputPath::check(&options.out, force, checkpoint::file_size(&network))?;
    let mut model = match &from {
        None => Model::initialized(network, global.seed),
        Some(from) => transferred(from, network, &data, options, global)?,
    };

    let metadata = training_metadata(&architecture, global.seed, from.as_ref());
    let kind = match (&from, options.head_only) {
        (None, _) => TRAIN,
        (Some(_), true) => LINEAR_PROBE,
        (Some(_), false) => FINE_TUNE,
    };
    let before = from.as_ref().map_or(&[][..], |from| &from.provenance.training);
    let mut provenance = Provenance::of(&data, &normalisation, before, train_options.phase(kind, &[]));
    let saving = Saving { output, metadata, provenance: provenance.clone(), options: train_options.clone() };
    let mut progress = Progress::new("training", global).saving_to(saving).logging_to(&log);
    let mut subject = if options.head_only { Subject::Head } else { Subject::Everything };
    let target = Target { data: &data, normalisation: &normalisation, place };
    let mut state = match options.resume {
        true => {
            let network = network_hash(&architecture, &model);
            let settings = settings(options, global, place, &train_options, network, from.as_ref(), &provenance);
            Some(ResumeFile::new(&state_path, settings)?)
        }
        false => None,
    };
    let history = train_resumable(&mut model, &mut subject, target, &train_options, &mut progress, state.as_mut())?;
    let Saving { mut output, mut metadata, .. } = progress.finish().expect("given above");
    *provenance.training.last_mut().expect("made above") = train_options.phase(kind, &history);
    provenance.write(&mut metadata);
    checkpoint::save(&mut output, &model, &metadata)?;
    state.map_or(Ok(()), ResumeFile::remove)?;

    let result = json!({
        "out": shown(&options.out), "log": shown(&log_path), "architecture": architecture, "parameters": model.network.parameter_count(),
        "options": train_options, "epochs": history,
    });
    report(global, &result, |out| {
        writeln!(out, "{}: {architecture}, {} epochs, {}", options.out.display(), history.len(), best(&history))
    })
}

/// Whether there is a network of which no interrupted run will say that it is its own.
fn is_finished(out: &Path) -> bool {
    out.exists()
        && TensorFile::read(out)
            .and_then(|file| Provenance::read(out, &file.metadata))
            .map_or(true, |provenance| !provenance.last_phase().is_some_and(Phase::is_unfinished))
}

/// What it reads.
fn inputs(options: &Train) -> Vec<Named<'_>> {
    let from = options.from.iter().map(|path| ("--from", path.as_path()));
    from.chain([("--data", options.data.data.as_path())]).collect()
}

/// A network to start from, with its own head where that fits the classes and no other is asked for.
fn transferred(
    from: &Checkpoint,
    network: Arc<Network>,
    data: &Dataset,
    options: &Train,
    global: &Global,
) -> Result<Model> {
    if from.has_head && from.model.network.classes == data.classes && !options.new_head {
        let path = options.from.as_deref().expect("there is one");
        networks::check_class_names(path, &from.provenance, data)?;
        return Ok(from.model.clone());
    }
    note(global, format_args!("the head is new: {} classes", data.classes));
    let mut model = Model::zeros(network, DType::F32, Device::Cpu);
    model.trunk = from.model.trunk.clone();
    model.statistics = from.model.statistics.clone();
    model.batches_tracked = from.model.batches_tracked.clone();
    init::initialize(&mut model, Region::Head, global.seed);
    Ok(model)
}

/// SHA-256 of an architecture and of how its parameters lie in memory.
fn network_hash(architecture: &Architecture, model: &Model) -> String {
    let layout: Vec<_> = model.network.parameters.iter().map(|p| (&p.name, p.shape.dims(), p.offset)).collect();
    let text = json!([architecture, layout]).to_string();
    hex(Sha256::digest(text))
}

/// Whatever changes the result of a run, by the option that sets it.
fn settings(
    options: &Train,
    global: &Global,
    place: Place,
    train_options: &TrainOptions,
    network: String,
    from: Option<&Checkpoint>,
    provenance: &Provenance,
) -> Settings {
    let settings = json!({
        "the network": network,
        "the content of --data": provenance.data.as_ref().map(|data| &data.sha256),
        "the content of --from": from.map(|from| &from.sha256),
        "--new-head": options.new_head,
        "--head-only": options.head_only,
        "--mean": provenance.normalisation.as_ref().map(|normalisation| &normalisation.mean),
        "--std": provenance.normalisation.as_ref().map(|normalisation| &normalisation.std),
        "--epochs": train_options.epochs,
        "--batch-size": train_options.batch_size,
        "--learning-rate": train_options.learning_rate,
        "--schedule": train_options.schedule,
        "--optimizer": train_options.optimizer,
        "--weight-decay": train_options.weight_decay,
        "--label-smoothing": train_options.label_smoothing,
        "--class-weights balanced": train_options.balance_classes,
        "--flip": options.schedule.flip,
        "--shift": options.schedule.shift,
        "--patience": train_options.patience,
        "--seed": train_options.seed,
        "--precision": global.precision,
        "--no-fusion": !place.is_fused,
        "--device": place.device.to_string().split(':').next(),
    });
    let serde_json::Value::Object(settings) = settings else { unreachable!("written as one") };
    settings.into_iter().collect()
}
