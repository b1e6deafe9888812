//! `train`.

use serde_json::json;
use sha2::{Digest, Sha256};

use medmerge::checkpoint::{self, Checkpoint};
use medmerge::data::Dataset;
use medmerge::error::{Error, Result};
use medmerge::merge::training_metadata;
use medmerge::nn::{Architecture, Model, Region, init};
use medmerge::output::{Named, OutputPath, check_apart, shown};
use medmerge::tensor::{DType, Device};
use medmerge::train::{Place, ResumeFile, Subject, Target, TrainOptions, train_resumable};

use super::progress::{EpochLog, Progress};
use super::{check_fit, load_data, note, report, train_options};
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
    let force = options.force || (options.resume && state_path.exists());
    let state: Option<Named> = options.resume.then_some(("the state of --resume", &state_path));
    let log_path = EpochLog::beside(&options.out);
    let outputs: [Named; 2] = [("--out", &options.out), ("the log beside --out", &log_path)];
    let outputs: Vec<Named> = outputs.into_iter().chain(state).collect();
    check_apart(&inputs(options), &outputs)?;
    let _claim = OutputPath::check(&options.out, force, 0)?;
    let log = EpochLog::shared(OutputPath::check(&log_path, force, 0)?);
    let place = super::place::open(global)?;
    let from = options.from.as_deref().map(Checkpoint::load).transpose()?;
    let (data, normalisation) = load_data(&options.data)?;

    let (architecture, channels) = match &from {
        Some(from) => (from.architecture.clone(), from.model.network.input_channels),
        None => (named, options.input_channels.unwrap_or(data.channels)),
    };
    let network = architecture.build(channels, data.classes);
    check_fit(&data, &normalisation, &network, None)?;
    let output = OutputPath::check(&options.out, force, checkpoint::file_size(&network))?;
    let mut model = match &from {
        None => Model::initialized(network, global.seed),
        Some(from) => {
            let keeps_head = from.has_head && from.model.network.classes == data.classes && !options.new_head;
            if keeps_head {
                from.model.clone()
            } else {
                note(global, format_args!("the head is new: {} classes", data.classes));
                let mut model = Model::zeros(network, DType::F32, Device::Cpu);
                model.trunk = from.model.trunk.clone();
                model.statistics = from.model.statistics.clone();
                model.batches_tracked = from.model.batches_tracked.clone();
                init::initialize(&mut model, Region::Head, global.seed);
                model
            }
        }
    };

    let metadata = training_metadata(&architecture, global.seed, from.as_ref());
    let mut progress = Progress::new("training", global).saving_to(output, metadata.clone()).logging_to(&log);
    let mut subject = if options.head_only { Subject::Head } else { Subject::Everything };
    let target = Target { data: &data, normalisation: &normalisation, place };
    let mut state = match options.resume {
        true => Some(ResumeFile::new(
            &state_path,
            fingerprint(options, global, place, &train_options, &model, from.as_ref(), &data),
        )?),
        false => None,
    };
    if state.as_ref().is_some_and(ResumeFile::exists) {
        note(global, format_args!("continuing from {}", state_path.display()));
    }
    let history = train_resumable(&mut model, &mut subject, target, &train_options, &mut progress, state.as_mut())?;
    let mut output = progress.finish().expect("given above");
    checkpoint::save(&mut output, &model, &metadata)?;
    state.map_or(Ok(()), ResumeFile::remove)?;

    let best = history.iter().filter_map(|record| record.val_macro_f1).fold(f64::NAN, f64::max);
    let result = json!({
        "out": shown(&options.out), "log": shown(&log_path), "architecture": architecture, "parameters": model.network.parameter_count(),
        "options": train_options, "epochs": history,
    });
    report(global, &result, |out| {
        writeln!(
            out,
            "{}: {architecture}, {} epochs, best validation macro F1 {best:.4}",
            options.out.display(),
            history.len()
        )
    })
}

/// What it reads.
fn inputs(options: &Train) -> Vec<Named<'_>> {
    let from = options.from.iter().map(|path| ("--from", path.as_path()));
    from.chain([("--data", options.data.data.as_path())]).collect()
}

/// Whatever changes the result of a run.
fn fingerprint(
    options: &Train,
    global: &Global,
    place: Place,
    train_options: &TrainOptions,
    model: &Model,
    from: Option<&Checkpoint>,
    data: &Dataset,
) -> String {
    let mut images = Sha256::new();
    for split in [&data.train, &data.val] {
        images.update(&split.images);
        images.update(bytemuck::cast_slice(&split.labels));
    }
    let run = json!({
        "parameters": model.network.parameters.iter().map(|p| (&p.name, p.shape.dims(), p.offset)).collect::<Vec<_>>(),
        "options": train_options, "flip": options.schedule.flip, "shift": options.schedule.shift,
        "precision": global.precision, "is_fused": place.is_fused, "device": place.device.to_string().split(':').next(),
        "mean": options.data.mean, "std": options.data.std,
        "from": from.map(|from| &from.sha256), "new_head": options.new_head, "head_only": options.head_only,
        "data": images.finalize().to_vec(),
    });
    Sha256::digest(run.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
}
