//! `merge`.

use serde_json::json;

use medmerge::error::{Error, Result};
use medmerge::jobs::{self, By};
use medmerge::output::shown;

use super::progress::{Above, spinner};
use super::{card, normalise, place, report};
use crate::cli::{Global, Merge};

pub fn run(options: &Merge, global: &Global) -> Result<()> {
    let by = match &options.weights {
        Some(_) if options.normalise.mean.is_some() || options.normalise.std.is_some() => {
            let hint = "leave --mean and --std out: the file of merge weights says with which they were learned";
            return Err(Error::usage("--mean and --std have no effect with --weights", hint));
        }
        Some(path) => By::Weights { path: path.clone() },
        None => By::Coefficients {
            values: options.coefficients.clone().unwrap_or_default(),
            anchor: options.anchor.clone(),
            batch_norm: options.batch_norm,
            heads: options.heads,
            align: options.align,
            data: options.data.clone(),
            normalise: normalise(&options.normalise),
        },
    };
    let job = jobs::Merge {
        models: options.models.clone(),
        reading: options.reading.given(),
        by,
        compute: place::compute(global),
        out: options.out.clone(),
        writing: options.writing.given(),
        card: card(&options.writing),
        force: options.force,
    };
    let spinner = spinner("merging", global);
    let merged = job.run(&mut Above { spinner: &spinner, global })?;
    spinner.finish_and_clear();
    let classes = merged.classes;
    let result = json!({"out": shown(&job.out), "architecture": merged.architecture, "classes": classes});
    report(global, &result, |out| {
        let head = classes.map_or("no classifier".to_string(), |classes| format!("{classes} classes"));
        writeln!(out, "{}: {}, {head}", job.out.display(), merged.architecture)
    })
}
