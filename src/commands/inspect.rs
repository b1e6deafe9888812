//! `inspect`.

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use medmerge::bench::shapes;
use medmerge::checkpoint::{Checkpoint, Phase, Reading, TensorFile};
use medmerge::data::Dataset;
use medmerge::error::{Error, Result};
use medmerge::file_kind::{self, Wanted};
use medmerge::merge::Learned;
use medmerge::nn::{Architecture, Launches, Stem};

use super::report;
use crate::cli::{Global, Inspect};

pub fn run(options: &Inspect, global: &Global) -> Result<()> {
    if options.plan {
        return plan(options, global);
    }
    if file_kind::open(&options.file, "read", Wanted::Anything)?.kind == Some(file_kind::NPZ) {
        return data_set(options, global);
    }
    let file = TensorFile::read_as(&options.file, Wanted::Anything)?;
    if file.is_merge_weights() {
        return merge_weights(&file, global);
    }
    network(file, &options.reading.given(), global)
}

/// The network of a file or, where there is no such file, of that name.
fn plan(options: &Inspect, global: &Global) -> Result<()> {
    let name = options.file.display().to_string();
    let is_file = options.file.exists() || options.file.extension().is_some();
    let network = match is_file {
        true => Checkpoint::load_with(&options.file, &options.reading.given())?.model.network,
        false => match Architecture::named(&name, None, None) {
            Ok(architecture) => architecture.build(3, shapes::classes(shapes::LARGE)),
            // Those that are measured only, and the error that names all.
            Err(_) => shapes::network(&name, Stem::Large, shapes::classes(shapes::LARGE))?,
        },
    };
    let network = network.planned(!global.no_fusion);
    let precision = super::place::precision(global, false)?;
    let launches: Vec<Launches> = (0..network.stages.len()).map(|index| network.launches(index, precision)).collect();
    let total: Launches = launches.iter().copied().sum();
    let rows: Vec<_> = network
        .stages
        .iter()
        .zip(&launches)
        .map(|(stage, launches)| (network.names(stage), network.describe(stage), launches))
        .collect();
    let stages: Vec<_> = rows
        .iter()
        .map(|(layers, does, launches)| {
            json!({"layers": layers, "does": does, "forward": launches.forward, "backward_at_most": launches.backward})
        })
        .collect();
    let result = json!({
        "kind": "plan", "network": name, "fused": !global.no_fusion, "precision": precision.to_string(), "layers": network.layers.len(),
        "forward": total.forward, "backward_at_most": total.backward, "stages": stages,
    });
    report(global, &result, |out| {
        writeln!(out, "{name}: {} stages of {} layers", network.stages.len(), network.layers.len())?;
        writeln!(
            out,
            "launches of a training step on a GPU in {precision}: {} forward, at most {} backward\n",
            total.forward, total.backward
        )?;
        let joined: Vec<String> = rows.iter().map(|(layers, ..)| layers.join(" + ")).collect();
        let width = joined.iter().map(String::len).max().unwrap_or(0);
        writeln!(out, "stage  {:width$}  {:22} forward  backward", "layers", "does")?;
        for (index, (layers, (_, does, launches))) in joined.iter().zip(&rows).enumerate() {
            writeln!(
                out,
                "{:>5}  {layers:width$}  {does:22} {:>7}  {:>8}",
                index + 1,
                launches.forward,
                launches.backward
            )?;
        }
        Ok(())
    })
}

fn data_set(options: &Inspect, global: &Global) -> Result<()> {
    let data = Dataset::load(&options.file)?;
    let summary = data.describe();
    report(global, &json!({"kind": "data set", "summary": summary}), |out| {
        writeln!(
            out,
            "{}: data set, {}×{} pixels, {} channels, {} classes",
            options.file.display(),
            data.height,
            data.width,
            data.channels,
            data.classes
        )?;
        if let Some(names) = &data.class_names {
            writeln!(out, "  classes {}", names.join(", "))?;
        }
        for split in medmerge::data::SplitName::ALL {
            writeln!(
                out,
                "  {split:5} {:>7} images, per class {:?}",
                data.split(split).len(),
                data.class_counts(split)
            )?;
        }
        Ok(())
    })
}

fn network(file: TensorFile, reading: &Reading, global: &Global) -> Result<()> {
    let tensors: Vec<(String, String, Vec<usize>)> =
        file.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype.clone(), tensor.shape.clone())).collect();
    let (path, metadata, sha256) = (file.path.clone(), file.metadata.clone(), file.sha256.clone());
    // A file of something else is listed all the same.
    let checkpoint = Checkpoint::from_file(file, reading);
    let problem = checkpoint.as_ref().err().map(reason);
    let architecture = checkpoint.as_ref().ok().map(|c| c.architecture.clone());
    let parameters: usize = tensors.iter().map(|(.., shape)| shape.iter().product::<usize>()).sum();
    let result = json!({
        "kind": "checkpoint", "architecture": architecture, "classes": checkpoint.as_ref().ok().map(|c| c.model.network.classes),
        "stem_is_assumed": checkpoint.as_ref().ok().map(|c| c.stem_is_assumed), "problem": problem, "sha256": sha256, "metadata": metadata, "tensors": tensors
            .iter()
            .map(|(name, dtype, shape)| json!({"name": name, "dtype": dtype, "shape": shape}))
            .collect::<Vec<_>>(),
    });
    report(global, &result, |out| {
        match &checkpoint {
            Ok(c) => summary(out, &path, c)?,
            Err(error) => {
                writeln!(out, "{}: not a network that medmerge can use ({})", path.display(), reason(error))?;
            }
        }
        writeln!(out, "{} tensors, {parameters} numbers, SHA-256 {sha256}", tensors.len())?;
        for (key, value) in &metadata {
            writeln!(out, "  {key}: {value}")?;
        }
        for (name, dtype, shape) in &tensors {
            writeln!(out, "  {name} {} {shape:?}", dtype.escape_debug())?;
        }
        Ok(())
    })
}

/// A network in a few lines: what it is, how it was trained, and what its file leaves open.
fn summary(out: &mut dyn Write, path: &Path, c: &Checkpoint) -> io::Result<()> {
    let head = if c.has_head { format!("{} classes", c.model.network.classes) } else { "no head".into() };
    let channels = c.model.network.input_channels;
    writeln!(out, "{}: {}, {channels} input channels, {head}", path.display(), c.architecture)?;
    if let Some(stem) = c.architecture.stem().filter(|_| c.stem_is_assumed) {
        writeln!(
            out,
            "  the file does not say its stem: {stem} is taken, and --stem names another of the same window"
        )?;
    }
    for phase in &c.provenance.training {
        let Phase { kind, epoch, epochs_done, epochs, learning_rate, .. } = phase;
        let state = match (phase.stopped_early, phase.is_unfinished()) {
            (true, _) => ", stopped early",
            (false, true) => ", unfinished",
            (false, false) => "",
        };
        writeln!(
            out,
            "  {kind}: {epochs_done} of {epochs} epochs{state}, kept epoch {epoch}, learning rate {learning_rate}"
        )?;
    }
    Ok(())
}

/// The reason that an error about a file gives, without the file's path.
fn reason(error: &Error) -> String {
    match error {
        Error::Checkpoint { message, .. } => message.clone(),
        error => error.to_string(),
    }
}

fn merge_weights(file: &TensorFile, global: &Global) -> Result<()> {
    let learned = Learned::from_file(file)?;
    let summary = learned.summary()?;
    let layers: Vec<_> = summary
        .iter()
        .map(|layer| json!({"layer": layer.name, "shape": layer.shape, "min_mean_max": layer.of_sources}))
        .collect();
    let result = json!({"kind": "merge weights", "metadata": file.metadata, "sha256": file.sha256, "layers": layers});
    report(global, &result, |out| {
        writeln!(out, "{}: merge weights for {}", file.path.display(), learned.architecture)?;
        for (key, value) in &file.metadata {
            writeln!(out, "  {key}: {value}")?;
        }
        writeln!(out, "\nlayer                         weights   of each source: smallest / mean / largest")?;
        for layer in &summary {
            let column = |[low, mean, high]: &[f32; 3]| format!("{low:6.3} /{mean:6.3} /{high:6.3}");
            let columns: Vec<String> = layer.of_sources.iter().map(column).collect();
            writeln!(out, "{:28} {:>8}   {}", layer.name, layer.shape.iter().product::<usize>(), columns.join("    "))?;
        }
        Ok(())
    })
}
