//! `inspect`.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use medmerge::bench::shapes;
use medmerge::checkpoint::{Checkpoint, Phase, Reading, TensorFile};
use medmerge::data::{
    Collecting, Dataset, Pair, SplitName, SplitSummary, Summary, Task, duplicates, is_collection, split_table,
};
use medmerge::error::{Error, Result};
use medmerge::file_kind::{self, Wanted};
use medmerge::merge::{Difference, Learned, Source, check_alike};
use medmerge::nn::{Architecture, Launches, Network, Stem, Units};
use medmerge::output::{OutputPath, shown};

use super::report;
use crate::cli::{Global, Inspect};

pub fn run(options: &Inspect, global: &Global) -> Result<()> {
    if options.plan {
        return plan(options, global);
    }
    if options.units {
        return units(options, global);
    }
    if let Some(other) = &options.other {
        return difference(&options.file, other, &options.reading.given(), global);
    }
    let kind = || file_kind::open(&options.file, "read", Wanted::Anything).map(|opened| opened.kind);
    if is_collection(&options.file) || kind()? == Some(file_kind::NPZ) {
        return data_set(options, global);
    }
    if options.table.given(None) != Collecting::default() || options.write_splits.is_some() || options.duplicates {
        let hint = "leave out --labels, --write-splits, --duplicates and what goes with them";
        return Err(Error::usage(format!("{} is no data set", options.file.display()), hint));
    }
    let file = TensorFile::read_as(&options.file, Wanted::Anything)?;
    if file.is_merge_weights() {
        return merge_weights(&file, global);
    }
    network(file, options, global)
}

/// The network of a file, or the one that is known by that name.
fn known_or_in_file(options: &Inspect) -> Result<(String, Arc<Network>)> {
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
    Ok((name, network))
}

/// What may change places in a network, and what moves with it.
fn units(options: &Inspect, global: &Global) -> Result<()> {
    let (name, network) = known_or_in_file(options)?;
    let units = Units::of(&network);
    let result = json!({
        "kind": "units", "network": name,
        "groups": units.groups.iter().map(|group| json!({
            "name": group.name, "units": group.units,
            "strands": group.strands.iter().map(|strand| json!({
                "pieces": strand.pieces, "rows": network.held(strand, true), "columns": network.held(strand, false),
                "seen": strand.seen.as_ref().and_then(|(node, _)| node.layer()).map(|layer| &network.layers[layer].name),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    report(global, &result, |out| {
        writeln!(out, "{name}: {} units in {} groups", units.count(), units.groups.len())?;
        for group in &units.groups {
            writeln!(out, "{}: {} units", group.name, group.units)?;
            for strand in &group.strands {
                if group.strands.len() > 1 {
                    writeln!(out, "  {} channels of each, which may change places within it", strand.pieces)?;
                }
                writeln!(out, "  rows of {}", network.held(strand, true).join(", "))?;
                let columns = network.held(strand, false);
                if !columns.is_empty() {
                    writeln!(out, "  columns of {}", columns.join(", "))?;
                }
            }
        }
        Ok(())
    })
}

/// Parameters of either network that are listed.
const LISTED: usize = 8;

/// Two networks beside each other.
fn difference(first: &Path, second: &Path, reading: &Reading, global: &Global) -> Result<()> {
    let sources = [Source::load(first, reading)?, Source::load(second, reading)?];
    let [a, b] = &sources;
    let difference = Difference::between(&a.checkpoint, &b.checkpoint);
    let refusal = check_alike(a, b).err().map(|error| reason(&error));
    let cosine = difference.mean_cosine();
    let changed: Vec<_> = difference
        .changed
        .iter()
        .map(|changed| json!({"name": changed.name, "cosine": changed.cosine, "distance": changed.distance}))
        .collect();
    let result = json!({
        "kind": "difference", "files": [shown(first), shown(second)],
        "architectures": [a.checkpoint.architecture, b.checkpoint.architecture], "can_be_merged": refusal.is_none(),
        "reason": refusal, "same": difference.same, "changed": changed, "unlike": difference.unlike, "mean_cosine": cosine,
    });
    report(global, &result, |out| {
        for source in &sources {
            summary(out, &source.path, &source.checkpoint)?;
        }
        let Difference { same, changed, unlike } = &difference;
        writeln!(
            out,
            "\nin the trunk: {same} parameters alike, {} with other numbers, {} without a counterpart",
            changed.len(),
            unlike.len()
        )?;
        if let Some(cosine) = cosine {
            writeln!(out, "mean cosine between their filters: {cosine:.3}")?;
        }
        for name in unlike.iter().take(LISTED) {
            writeln!(out, "  {name}")?;
        }
        let mut furthest: Vec<_> = changed.iter().collect();
        furthest.sort_by(|x, y| y.distance.total_cmp(&x.distance));
        for changed in furthest.iter().take(LISTED) {
            writeln!(out, "  {:40} cosine {:6.3}, distance {:.3}", changed.name, changed.cosine, changed.distance)?;
        }
        match &refusal {
            None => writeln!(out, "they can be merged"),
            Some(reason) => writeln!(out, "they cannot be merged: {reason}"),
        }
    })
}

/// The network of a file or, where there is no such file, of that name.
fn plan(options: &Inspect, global: &Global) -> Result<()> {
    let (name, network) = known_or_in_file(options)?;
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
    if let Some(out) = &options.write_splits {
        let mut output = OutputPath::check(out, options.force, 0)?;
        let table = split_table(&options.file, &options.table.given(options.image_size))?;
        output.write(|file| file.write_all(table.as_bytes()))?;
    }
    let (data, remarks) = Summary::open(&options.file, &options.table.given(options.image_size))?;
    let pairs = match options.duplicates {
        true => {
            let collected = Dataset::open(&options.file, &options.table.given(options.image_size))?;
            Some(duplicates(&collected.data)?)
        }
        false => None,
    };
    report(global, &json!({"kind": "data set", "summary": data, "remarks": remarks, "duplicates": pairs}), |out| {
        let Summary { height, width, channels, .. } = data;
        write!(out, "{}: data set, {height}×{width} pixels, {channels} channels", options.file.display())?;
        match data.classes {
            Some(labels) if data.task == Task::MultiLabel => writeln!(out, ", {labels} labels, several at once")?,
            Some(classes) => writeln!(out, ", {classes} classes")?,
            None => writeln!(out)?,
        }
        if let Some(names) = &data.class_names {
            writeln!(out, "  classes {}", names.join(", "))?;
        }
        for name in SplitName::ALL {
            let Some(SplitSummary { images, class_counts }) = data.split(name) else { continue };
            write!(out, "  {:5} {images:>7} images, ", name.name())?;
            match class_counts {
                Some(counts) => writeln!(out, "per class {counts:?}")?,
                None => writeln!(out, "no labels")?,
            }
        }
        for remark in &remarks {
            writeln!(out, "  {remark}")?;
        }
        if let Some(pairs) = &pairs {
            let exact = pairs.iter().filter(|pair| pair.is_exact).count();
            writeln!(
                out,
                "  {exact} pairs of images in two splits are the same, {} more nearly so",
                pairs.len() - exact
            )?;
            for Pair { first, second, is_exact } in pairs.iter().take(LISTED) {
                let how = if *is_exact { "same" } else { "near" };
                writeln!(out, "    {how}: {} {} and {} {}", first.0, first.1, second.0, second.1)?;
            }
        }
        match &data.problem {
            Some(problem) => writeln!(out, "  not to be trained on: {problem}"),
            None => Ok(()),
        }
    })
}

fn network(file: TensorFile, options: &Inspect, global: &Global) -> Result<()> {
    let tensors: Vec<(String, String, Vec<usize>)> =
        file.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype.clone(), tensor.shape.clone())).collect();
    let (path, metadata, sha256) = (file.path.clone(), file.metadata.clone(), file.sha256.clone());
    // A file of something else is listed all the same.
    let checkpoint = Checkpoint::from_file(file, &options.reading.given());
    let problem = checkpoint.as_ref().err().map(reason);
    let architecture = checkpoint.as_ref().ok().map(|c| c.architecture.clone());
    let parameters: usize = tensors.iter().map(|(.., shape)| shape.iter().product::<usize>()).sum();
    let cost = checkpoint.as_ref().ok().map(|c| Work::of(c, options.image_size));
    let result = json!({
        "kind": "checkpoint", "architecture": architecture, "classes": checkpoint.as_ref().ok().map(|c| c.model.network.classes),
        "heads": checkpoint.as_ref().ok().map(|c| c.heads()), "problem": problem,
        "stem_is_assumed": checkpoint.as_ref().ok().map(|c| c.stem_is_assumed),
        "names": checkpoint.as_ref().ok().and_then(|c| c.exporter), "notes": checkpoint.as_ref().ok().map(|c| &c.notes),
        "parameters": cost.as_ref().map(|cost| cost.parameters), "flops": cost.as_ref().and_then(|cost| cost.flops),
        "image_size": cost.as_ref().map(|cost| cost.image_size), "sha256": sha256, "metadata": metadata, "tensors": tensors
            .iter()
            .map(|(name, dtype, shape)| json!({"name": name, "dtype": dtype, "shape": shape}))
            .collect::<Vec<_>>(),
    });
    report(global, &result, |out| {
        match &checkpoint {
            Ok(c) => {
                summary(out, &path, c)?;
                writeln!(out, "  {}", cost.as_ref().expect("of this network"))?;
            }
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

/// How large a network is, and how much work an image.
struct Work {
    parameters: usize,
    /// Height and width of the image.
    image_size: [usize; 2],
    /// `None` if the image is too small.
    flops: Option<u64>,
}

impl Work {
    fn of(c: &Checkpoint, asked: Option<usize>) -> Work {
        let usual = [if c.architecture.stem() == Some(Stem::Small) { shapes::SMALL } else { shapes::LARGE }; 2];
        let image_size = asked.map(|size| [size; 2]).or(c.provenance.image_size).unwrap_or(usual);
        let network = &c.model.network;
        Work { parameters: network.parameter_count(), image_size, flops: network.flops(image_size[0], image_size[1]) }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [height, width] = self.image_size;
        write!(f, "{} parameters; an image of {height}×{width} ", self.parameters)?;
        match self.flops {
            Some(flops) => write!(f, "takes {:.3} GFLOP", flops as f64 / 1e9),
            None => f.write_str("is too small for it"),
        }
    }
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
    for note in &c.notes {
        writeln!(out, "  {note}")?;
    }
    for head in c.heads() {
        writeln!(out, "  head {head}")?;
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
