//! `demo`.

use std::path::Path;

use medmerge::error::Result;
use medmerge::jobs::{self, DemoObserver, Demonstration, Record, StageRecord};

use super::progress::{Progress, time_left};
use super::{place, report};
use crate::cli::{Demo, Global};

pub fn run(options: &Demo, global: &Global) -> Result<()> {
    let job = jobs::Demo {
        full: options.full,
        architecture: options.architecture.clone(),
        width: options.width,
        seed: global.seed,
        compute: place::compute(global),
        out: options.out.clone(),
        force: options.force,
    };
    let mut progress = Progress::new("drawing images", global);
    let Demonstration { summary, test_images, seconds, results } = job.run(&mut progress)?;
    progress.finish();
    report(global, &results, |out| {
        let seeds = summary.seeds.len();
        let over = if seeds == 1 { "one seed" } else { "mean over the seeds ± half of its 95 % interval" };
        writeln!(out, "\nMacro F1 on {test_images} test images of the target, {over}:\n")?;
        writeln!(out, "{}", summary.table().to_text())?;
        writeln!(out, "{seconds:.0} s in all; everything is in {}", job.out.display())?;
        if !job.full {
            writeln!(out, "These runs are too short to compare methods by; `medmerge demo --full` is longer.")?;
        }
        Ok(())
    })
}

impl DemoObserver for Progress {
    fn seed(&mut self, seed: u64, folder: &Path) {
        self.say(format_args!("seed {seed}: files in {}", folder.display()));
    }

    fn source(&mut self, name: &str, seconds_left: f64) {
        self.say(format_args!("  {:33}  trained{:35}({})", format!("source: {name}"), "", time_left(seconds_left)));
    }

    fn recipe(&mut self, label: &str, record: &Record, seconds_left: f64) {
        let left = time_left(seconds_left);
        self.say(format_args!("  {label:40}  {}  ({left})", figures(record)));
    }
}

/// Macro F1 on the test split, stage by stage.
pub(super) fn figures(record: &Record) -> String {
    let of = |stage: &StageRecord| {
        let value = stage.test.macro_f1.map_or("nan".into(), |value| format!("{value:.3}"));
        match stage.learning_rate {
            None => format!("frozen {value}"),
            Some(_) => value,
        }
    };
    record.stages.iter().map(of).collect::<Vec<_>>().join("  ")
}
