//! `compare`.

use std::path::Path;

use serde_json::json;

use medmerge::error::{Error, Result};
use medmerge::jobs::{self, CompareObserver, Cost, Record};
use medmerge::output::shown;
use medmerge::report::Table;
use medmerge::train::{Protocol, Recipe, TrainOptions};

use super::demo::figures;
use super::progress::{Progress, time_left};
use super::{images, place, report, train_options};
use crate::cli::{Compare, Global};

pub fn run(options: &Compare, global: &Global) -> Result<()> {
    let fine_tuning = train_options(&options.schedule, options.merge_learning_rate, global);
    let probe = TrainOptions { epochs: options.probe_epochs, ..fine_tuning.clone() };
    let job = jobs::Compare {
        models: options.models.clone(),
        reading: options.reading.given(),
        images: images(&options.data),
        protocol: Protocol { probe, fine_tuning, learning_rates: options.learning_rates.clone() },
        recipes: recipes(&options.recipes, options.models.len())?,
        seeds: (0..options.seeds).map(|index| global.seed.wrapping_add(index)).collect(),
        train_images: options.train_images,
        jobs: options.jobs,
        compute: place::compute(global),
        out: options.out.clone(),
    };
    let mut progress = Progress::new("comparing", global);
    if options.dry_run {
        let cost = job.cost(&mut progress)?;
        progress.finish();
        return tell(&cost, global);
    }
    let summary = job.run(&mut progress)?;
    progress.finish();
    let result = json!({"out": shown(&job.out), "summary": summary});
    report(global, &result, |out| {
        writeln!(out, "{}", summary.markdown())?;
        writeln!(out, "{}: table.md, table.csv, summary.json; a file of each run in runs", job.out.display())
    })
}

/// What is asked for, lists spelt out, each once.
fn recipes(asked: &[String], sources: usize) -> Result<Vec<Recipe>> {
    let mut recipes: Vec<Recipe> = Vec::new();
    let mut texts = Vec::new();
    for text in asked {
        match text.strip_prefix('@') {
            Some(path) => texts.extend(lines(Path::new(path))?),
            None => texts.push(text.clone()),
        }
    }
    for text in &texts {
        let more = match text.as_str() {
            "usual" => Recipe::usual(sources),
            "all" => Recipe::all(sources),
            one => vec![one.parse()?],
        };
        more.into_iter().for_each(|recipe| {
            if !recipes.contains(&recipe) {
                recipes.push(recipe);
            }
        });
    }
    Ok(recipes)
}

/// The recipes of a file.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let of_line = |line: &str| line.split('#').next().unwrap_or_default().trim().to_string();
    let lines: Vec<String> = text.lines().map(of_line).filter(|line| !line.is_empty()).collect();
    match lines.is_empty() {
        true => {
            Err(Error::usage(format!("no recipe in {}", path.display()), "write one a line, such as lp-ft:source=0"))
        }
        false => Ok(lines),
    }
}

fn tell(cost: &Cost, global: &Global) -> Result<()> {
    report(global, &json!(cost), |out| {
        let mut table = Table::new(["recipe", "passes"]);
        for (recipe, passes) in &cost.passes {
            table.row([recipe.to_string(), format!("{passes:.1}")]);
        }
        writeln!(out, "{}\n", table.to_text())?;
        let (recipes, runs) = (cost.passes.len(), cost.passes.len() * cost.seeds);
        writeln!(
            out,
            "Passes are over {} training images, forward and backward. {recipes} recipes × {} seeds: {runs} runs, {} of them done.\n\
             What is left takes about {:.0} minutes here, at {:.2} ms an image, one seed after the other.",
            cost.train_images,
            cost.seeds,
            cost.done,
            cost.seconds / 60.0,
            1e3 * cost.seconds_per_image
        )
    })
}

impl CompareObserver for Progress {
    fn run(&mut self, record: &Record, label: &str, seconds_left: f64) {
        let (seed, left) = (record.seed, time_left(seconds_left));
        self.say(format_args!("seed {seed}  {label:60}  {}  ({left})", figures(record)));
    }
}
