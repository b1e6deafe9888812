//! `export`.

use serde_json::json;

use medmerge::error::{Error, Result};
use medmerge::jobs;
use medmerge::output::shown;

use super::progress::{Above, spinner};
use super::{normalise, report};
use crate::cli::{Export, Global};

pub fn run(options: &Export, global: &Global) -> Result<()> {
    let asked = normalise(&options.numbers);
    if !options.normalise && (asked.mean.is_some() || asked.std.is_some()) {
        let hint = "add --normalise, which puts the normalisation into the graph, or leave them out";
        return Err(Error::usage("--mean and --std have no effect without --normalise", hint));
    }
    let job = jobs::Export {
        model: options.model.clone(),
        reading: options.reading.given(),
        opset: options.opset,
        image_size: options.image_size,
        normalise: options.normalise.then_some(asked),
        out: options.onnx.clone(),
        force: options.force,
    };
    let spinner = spinner("exporting", global);
    let exported = job.run(&mut Above { spinner: &spinner, global })?;
    spinner.finish_and_clear();
    let result = json!({
        "onnx": shown(&job.out), "architecture": exported.architecture, "input_channels": exported.input_channels,
        "classes": exported.classes, "image_size": exported.image_size, "normalises": options.normalise,
        "opset": job.opset, "bytes": exported.bytes,
    });
    report(global, &result, |out| {
        let numbers = if options.normalise { "from 0 to 255" } else { "normalised" };
        let (architecture, classes, opset) = (&exported.architecture, exported.classes, job.opset);
        writeln!(out, "{}: {architecture}, {classes} classes, opset {opset}", job.out.display())?;
        writeln!(out, "images {exported} in f32, {numbers}; logits N×{classes}")
    })
}
