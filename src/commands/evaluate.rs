//! `eval` and `predict`.

use std::io::Write;

use serde_json::json;

use medmerge::checkpoint::Checkpoint;
use medmerge::data::{Dataset, Normalisation};
use medmerge::error::{Error, Result};
use medmerge::metrics::{Metrics, softmax};
use medmerge::output::{OutputPath, check_apart, shown};
use medmerge::train::{Target, scores};

use super::progress::bar;
use super::{check_fit, networks, report};
use crate::cli::{Eval, Global, Predict};

/// A network and a data set that fit each other.
fn load(options: &Eval, global: &Global) -> Result<(Checkpoint, Dataset, Normalisation)> {
    if options.batch_size == 0 {
        return Err(Error::usage("a batch size of 0", "give at least 1; 128 is usual"));
    }
    let checkpoint = networks::load(&options.model, options.stem.stem, global)?;
    if !checkpoint.has_head {
        let hint = "train one: medmerge train --from";
        return Err(Error::checkpoint(&options.model, "it has no classifier (fc.weight)", hint));
    }
    let network = &checkpoint.model.network;
    let files = [(options.model.as_path(), &checkpoint.provenance)];
    let normalisation = networks::normalisation(&options.data.normalise, &files, network.input_channels, global)?;
    let data = Dataset::load(&options.data.data)?;
    check_fit(&data, network, Some(&options.model))?;
    networks::check_class_names(&options.model, &checkpoint.provenance, &data)?;
    networks::tell_image_size(&files, &data, global);
    if data.split(options.split).is_empty() {
        return Err(Error::data(&data.path, format!("its {} split is empty", options.split), "choose another --split"));
    }
    Ok((checkpoint, data, normalisation))
}

fn split_scores(options: &Eval, global: &Global) -> Result<(Vec<f32>, Checkpoint, Dataset)> {
    let place = super::place::open(global)?;
    let (checkpoint, data, normalisation) = load(options, global)?;
    let target = Target { data: &data, normalisation: &normalisation, place };
    let (name, images) = (format!("{} split", options.split), data.split(options.split).len() as u64);
    let bar = bar(&name, "image", global);
    let watch = |done| bar.show(&name, done as u64, images, "");
    let scores = scores(&checkpoint.model, target, options.split, options.batch_size, watch)?;
    bar.finish();
    Ok((scores, checkpoint, data))
}

pub fn eval(options: &Eval, global: &Global) -> Result<()> {
    let (scores, checkpoint, data) = split_scores(options, global)?;
    let labels = &data.split(options.split).labels;
    let metrics = Metrics::compute(&scores, labels, checkpoint.model.network.classes);
    let result = json!({
        "model": shown(&options.model), "data": shown(&options.data.data), "split": options.split.to_string(),
        "images": labels.len(), "metrics": metrics,
    });
    report(global, &result, |out| {
        writeln!(
            out,
            "{} on {} ({} split, {} images)",
            options.model.display(),
            data.path.display(),
            options.split,
            labels.len()
        )?;
        writeln!(
            out,
            "accuracy {:.4}   macro F1 {:.4}   AUC {:.4}\n",
            metrics.accuracy, metrics.macro_f1, metrics.auc
        )?;
        writeln!(out, "class   images   precision   recall       F1      AUC")?;
        let names = data.class_names.as_ref().or(checkpoint.provenance.class_names.as_ref());
        for (class, m) in metrics.per_class.iter().enumerate() {
            let name = names.map_or(String::new(), |names| format!("   {}", names[class]));
            writeln!(
                out,
                "{class:>5} {:>8} {:>11.4} {:>8.4} {:>8.4} {:>8.4}{name}",
                m.support, m.precision, m.recall, m.f1, m.auc
            )?;
        }
        Ok(())
    })
}

pub fn predict(options: &Predict, global: &Global) -> Result<()> {
    let (model, data) = (&options.eval.model, &options.eval.data.data);
    check_apart(&[("--model", model), ("--data", data)], &[("--out", &options.out)])?;
    let mut output = OutputPath::check(&options.out, options.force, 0)?;
    let (mut scores, checkpoint, _) = split_scores(&options.eval, global)?;
    let classes = checkpoint.model.network.classes;
    if !options.logits {
        scores.chunks_mut(classes).for_each(softmax);
    }
    output.write(|file| write_scores(file, &scores, classes))?;
    let images = scores.len() / classes;
    report(global, &json!({"out": shown(&options.out), "images": images, "logits": options.logits}), |out| {
        let kind = if options.logits { "logits" } else { "probabilities" };
        writeln!(out, "{}: {kind} of {images} images", options.out.display())
    })
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
