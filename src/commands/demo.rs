//! `demo`.

use std::path::Path;

use medmerge::error::Result;
use medmerge::jobs::{self, DemoObserver, Demonstration, Record, StageRecord};

use super::progress::Progress;
use super::{place, report};
use crate::cli::{Demo, Global};
use crate::terminal;

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
    let Demonstration { summary, images, seconds, results } = job.run(&mut progress)?;
    progress.finish();
    report(global, &results, |out| {
        let ([learned, tested], seeds) = (images, summary.seeds.len());
        writeln!(
            out,
            "\nMacro F1 on {tested} test images of the target, learned from {learned}; mean over {seeds} seeds ± half of its 95 % \
             interval;\nΔ: difference to the best single source, paired by seed.\n"
        )?;
        writeln!(out, "{}", summary.table().to_text())?;
        let folder = job.out.display();
        writeln!(out, "{folder}/images.svg               what sources and target look like")?;
        writeln!(
            out,
            "{folder}/comparison/results.svg   the table as a chart; curves.svg beside it; a file of each run in runs"
        )?;
        writeln!(out, "{folder}/weights.svg              how much of each source a merge keeps, layer by layer")?;
        writeln!(out, "{folder}/merged.safetensors       that merged network: an ordinary one")?;
        writeln!(out, "{seconds:.0} s in all")?;
        let [merged, data] = ["merged.safetensors", "target.npz"].map(|name| terminal::quoted(&job.out.join(name)));
        writeln!(out, "next: medmerge eval --model {merged} --data {data}")
    })
}

impl DemoObserver for Progress {
    fn source(&mut self, name: &str, path: &Path) {
        self.say(format_args!("source {name}: trained, {}", path.display()));
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
