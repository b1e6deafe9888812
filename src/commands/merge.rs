//! `merge`.

use serde_json::json;

use medmerge::error::{Error, Result};
use medmerge::jobs::{self, By, ByMethod};
use medmerge::merge::methods::{self, MergeMethod, Number, Numbers};
use medmerge::output::shown;

use super::progress::{Above, spinner};
use super::{card, collecting, normalise, place, report};
use crate::cli::{Global, Merge};

pub fn run(options: &Merge, global: &Global) -> Result<()> {
    if options.method.as_deref() == Some("list") {
        return list(global);
    }
    let Some(out) = options.out.clone().filter(|_| !options.models.is_empty()) else {
        let hint = "give --models A B --out FILE; --method list needs neither";
        return Err(Error::usage("a merge without --models or without --out", hint));
    };
    let collecting = collecting(&options.collecting, options.data.is_some())?;
    let by = match &options.weights {
        Some(_) if options.normalise.mean.is_some() || options.normalise.std.is_some() => {
            let hint = "leave --mean and --std out: the file of merge weights says with which they were learned";
            return Err(Error::usage("--mean and --std have no effect with --weights", hint));
        }
        Some(path) => By::Weights { path: path.clone() },
        None => By::Coefficients(Box::new(ByMethod {
            values: options.coefficients.clone().unwrap_or_default(),
            anchor: options.anchor.clone(),
            batch_norm: options.batch_norm,
            heads: options.heads,
            align: options.align,
            statistics: options.statistics,
            method: options.method.clone().unwrap_or("linear".into()),
            filtered: options.coefficients_for.clone(),
            numbers: numbers(options, global),
            base: options.base.clone(),
            data: options.data.clone(),
            normalise: normalise(&options.normalise),
            collecting,
        })),
    };
    let job = jobs::Merge {
        models: options.models.clone(),
        reading: options.reading.given(),
        by,
        compute: place::compute(global),
        out,
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

/// The numbers that methods read; the seed is every method's that draws.
fn numbers(options: &Merge, global: &Global) -> Numbers {
    let Merge { scale, density, t, threshold, budget, .. } = *options;
    let method = options.method.as_deref().and_then(|name| methods::named(name).ok());
    let draws = method.is_some_and(|method| method.reads().contains(&Number::Seed));
    Numbers { scale, density, t, threshold, budget, seed: draws.then_some(global.seed) }
}

/// Weights that were learned are folded by a file of their own.
const LEARNED: [&str; 4] = [
    "medmerge",
    "Merge weights α of each filter, kernel or layer, learned on the target with its new head by `medmerge learn`;",
    "folded with --weights FILE.",
    "MedMerge, arXiv 2403.11646",
];

/// No merge at all, but what one has to come near.
const ENSEMBLE: [&str; 4] = [
    "ensemble",
    "No merge: the mean of the probabilities of networks that tell the same classes apart, each run on every image,",
    "by `medmerge eval --model A B`, or predict. Often the upper line, at as many times the cost as there are members.",
    "Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS 2017",
];

fn list(global: &Global) -> Result<()> {
    let reads = |method: &dyn MergeMethod| {
        let mut reads: Vec<String> = Vec::new();
        reads.extend(method.needs_base().then(|| "--base (needed)".into()));
        reads.extend(method.needs_images().then(|| "--data (needed)".into()));
        reads.extend(method.reads().iter().map(|number| format!("--{number}")));
        reads.extend(method.only_sources().map(|count| format!("{count} sources")));
        reads
    };
    let all = methods::all();
    let mut rows: Vec<_> = all
        .iter()
        .map(|method| json!({"name": method.name(), "about": method.about(), "reads": reads(*method), "citation": method.citation()}))
        .collect();
    for ([name, first, second, citation], reads) in [(LEARNED, vec!["--weights (needed)"]), (ENSEMBLE, vec![])] {
        rows.push(json!({"name": name, "about": [first, second], "reads": reads, "citation": citation}));
    }
    report(global, &json!({"methods": rows}), |out| {
        for row in &rows {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
            let reads: Vec<String> = row["reads"].as_array().into_iter().flatten().map(text).collect();
            let reads = if reads.is_empty() { String::new() } else { format!("; {}", reads.join(", ")) };
            writeln!(out, "{}{reads}", text(&row["name"]))?;
            row["about"].as_array().into_iter().flatten().try_for_each(|line| writeln!(out, "  {}", text(line)))?;
            writeln!(out, "  {}\n", text(&row["citation"]))?;
        }
        Ok(())
    })
}
