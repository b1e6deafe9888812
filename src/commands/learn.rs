//! `learn`.

use std::path::PathBuf;

use serde_json::json;

use medmerge::checkpoint;
use medmerge::data::Dataset;
use medmerge::error::Result;
use medmerge::merge::Sources;
use medmerge::output::{Named, OutputPath, check_apart, shown};
use medmerge::report::{LayerWeights, SourceWeights, merge_weights, save};
use medmerge::train::{AnchorChoice, LearnOptions, Target, learn};

use super::progress::{EpochLog, Progress};
use super::{best, check_fit, networks, report, train_options};
use crate::cli::{Global, Learn};
use crate::terminal;

pub fn run(options: &Learn, global: &Global) -> Result<()> {
    let probe = train_options(&options.schedule, options.merge_learning_rate, global)?;
    let weights_path = options.weights.clone().unwrap_or_else(|| beside(&options.out));
    let inputs = options.models.iter().map(|path| ("--models", path.as_path()));
    let inputs: Vec<Named> = inputs.chain([("--data", options.data.data.as_path())]).collect();
    let log_path = EpochLog::beside(&options.out);
    let outputs: [Named; 2] = [("--out", &options.out), ("--weights", &weights_path)];
    let outputs = outputs.into_iter().chain(options.picture.iter().map(|path| ("--picture", path.as_path())));
    let outputs: Vec<Named> = outputs.collect();
    check_apart(&inputs, &[&outputs[..], &[("the log beside --out", &log_path)]].concat())?;
    let check = |(_, path): &Named| OutputPath::check(path, options.force, 0);
    let _claims = outputs.iter().map(check).collect::<Result<Vec<_>>>()?;
    let log = EpochLog::shared(EpochLog::output(&options.out, options.force)?);
    let place = super::place::open(global)?;
    let sources = networks::load_sources(&options.models, options.stem.stem, global)?;
    let anchor = match options.anchor.as_str() {
        "auto" => AnchorChoice::Auto,
        name => AnchorChoice::Named(sources.find(name)?),
    };
    let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
    let normalisation = networks::normalisation(&options.data.normalise, &files, sources.input_channels(), global)?;
    let data = Dataset::load(&options.data.data)?;
    let network = sources.network(data.classes);
    check_fit(&data, &network, None)?;
    networks::tell_image_size(&files, &data, global);
    let size = checkpoint::file_size(&network);
    let mut output = OutputPath::check(&options.out, options.force, size)?;
    let mut weights_output = OutputPath::check(&weights_path, options.force, size)?;

    let learn_options = LearnOptions {
        granularity: options.granularity,
        constraint: options.constraint,
        start: options.start,
        anchor,
        batch_norm: options.batch_norm,
        keep_statistics: options.keep_statistics,
        probe,
    };
    let target = Target { data: &data, normalisation: &normalisation, place };
    let mut anchor_progress = Progress::new("choosing the anchor", global).logging_to(&log);
    let mut progress = Progress::new("learning merge weights", global).logging_to(&log);
    let learning = learn(&sources, target, &learn_options, &mut anchor_progress, &mut progress)?;
    anchor_progress.finish();
    progress.finish();

    let learned = &learning.learned;
    learned.save(&mut weights_output)?;
    let folded = learned.fold(&sources.trunks())?;
    checkpoint::save(&mut output, &folded, &learned.metadata())?;
    if let Some(path) = &options.picture {
        let svg = picture(learned, &sources)?;
        save(&svg, &mut OutputPath::check(path, options.force, 0)?)?;
    }

    let anchor = sources.get(learned.method.anchor).path.clone();
    let result = json!({
        "out": shown(&options.out), "log": shown(&log_path), "weights": shown(&weights_path), "anchor": shown(&anchor), "anchor_scores": learning.anchor_scores,
        "granularity": options.granularity, "learned": learned.numbers.shape().len(), "epochs": learning.history,
    });
    report(global, &result, |out| {
        writeln!(out, "anchor: {}", anchor.display())?;
        if let Some(scores) = &learning.anchor_scores {
            for (source, score) in sources.iter().zip(scores) {
                writeln!(out, "  linear probe of {}: validation macro F1 {score:.4}", source.path.display())?;
            }
        }
        writeln!(out, "{} merge weights, by {}", learned.numbers.shape().len(), options.granularity)?;
        writeln!(out, "{}: merge weights", weights_path.display())?;
        writeln!(out, "{}: merged network, {}", options.out.display(), best(&learning.history))?;
        writeln!(
            out,
            "next: medmerge train --from {} --data {} --out FILE",
            terminal::quoted(&options.out),
            terminal::quoted(&options.data.data)
        )
    })
}

/// `folder/name.safetensors` to `folder/name.weights.safetensors`.
fn beside(out: &std::path::Path) -> PathBuf {
    out.with_extension("weights.safetensors")
}

/// The α of every source, layer by layer.
pub fn picture(learned: &medmerge::merge::Learned, sources: &Sources) -> Result<String> {
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
