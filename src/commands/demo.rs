//! `demo`.

use std::path::Path;

use medmerge::error::Result;
use medmerge::jobs::{self, DemoObserver, Demonstration};
use medmerge::train::Outcome;

use super::progress::Progress;
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
    let Demonstration { table, seeds, test_images, seconds, results } = job.run(&mut progress)?;
    progress.finish();
    report(global, &results, |out| {
        let over = if seeds == 1 { "one seed" } else { "mean ± standard deviation over the seeds" };
        writeln!(out, "\nTest split, {test_images} images of the target, {over}:\n")?;
        writeln!(out, "{}", table.to_text())?;
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
        self.say(format_args!("  {:33}  trained{:35}({})", format!("source: {name}"), "", time(seconds_left)));
    }

    fn method(&mut self, label: &str, outcome: &Outcome, seconds_left: f64) {
        let (metrics, left) = (&outcome.metrics, time(seconds_left));
        self.say(format_args!(
            "  {label:33}  accuracy {:.3}  macro F1 {:.3}  AUC {:.3}  ({left})",
            metrics.accuracy, metrics.macro_f1, metrics.auc
        ));
    }
}

fn time(seconds_left: f64) -> String {
    if seconds_left < 1.0 { "nearly done".into() } else { format!("about {seconds_left:.0} s left") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_second_is_nearly_done() {
        assert_eq!((time(30.2), time(0.9)), ("about 30 s left".to_string(), "nearly done".to_string()));
    }
}
