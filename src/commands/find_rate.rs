//! `train --find-learning-rate`.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use medmerge::error::Result;
use medmerge::jobs;
use medmerge::output::{OutputPath, shown};
use medmerge::report::{Curve, curves, save};
use medmerge::train::{RateCurve, RateSearch};

use super::progress::Progress;
use super::report;
use crate::cli::{Global, Train};

/// Finds a rate for the run that the options describe.
pub fn run(job: &jobs::Train, options: &Train, [low, high]: [f64; 2], global: &Global) -> Result<()> {
    let updates = options.schedule.steps.unwrap_or(RateSearch::default().updates);
    let search = RateSearch { low, high, updates };
    search.check()?;
    let picture = options.picture.as_deref();
    let mut output = picture.map(|path| OutputPath::check(path, options.force, 0)).transpose()?;
    let mut progress = Progress::new("learning rates", global);
    let found = job.find_rate(&search, &mut progress)?;
    progress.finish();
    if let Some(output) = &mut output {
        save(&chart(&found), output)?;
    }
    let (steepest, least) = (found.steepest(), found.least());
    let result = json!({
        "points": found.points, "smoothed": found.smoothed(), "ended_early": found.ended_early, "steepest": steepest, "least": least,
        "a_tenth_of_least": least.map(|rate| rate / 10.0), "search": search, "options": job.options,
        "picture": picture.map(shown),
    });
    report(global, &result, |out| print(out, &found, picture))
}

fn print(out: &mut dyn Write, found: &RateCurve, picture: Option<&Path>) -> std::io::Result<()> {
    let search = found.search;
    let highest = found.points.last().map_or(search.low, |point| point.learning_rate);
    let end = if found.ended_early { ", where the loss burst" } else { "" };
    writeln!(out, "{} updates, the learning rate from {:.1e} to {highest:.1e}{end}", found.points.len(), search.low)?;
    match found.steepest() {
        Some(rate) => writeln!(out, "the loss falls fastest at {rate:.1e}")?,
        None => {
            writeln!(out, "the loss falls nowhere: try other rates (--find-learning-rate=LOW,HIGH) or more --steps")?
        }
    }
    if let Some(rate) = found.least() {
        writeln!(out, "it is least at {rate:.1e}, of which a tenth is {:.1e}", rate / 10.0)?;
    }
    picture.map_or(Ok(()), |path| writeln!(out, "{}: the loss", path.display()))
}

fn chart(found: &RateCurve) -> String {
    let of = |name: &str, losses: Vec<f64>| Curve {
        name: name.into(),
        points: found.points.iter().map(|point| point.learning_rate.log10()).zip(losses).collect(),
    };
    let losses = found.points.iter().map(|point| point.loss).collect();
    let series = [of("smoothed", found.smoothed()), of("of each update", losses)];
    curves("What the loss does while the learning rate rises", "learning rate, as a power of ten", "loss", &series)
}
