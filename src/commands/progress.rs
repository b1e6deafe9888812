//! Progress on stderr: a bar while it runs, a line per epoch when asked for, checkpoints as they improve.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use medmerge::checkpoint::{self, Metadata, Phase, Provenance};
use medmerge::error::Result;
use medmerge::nn::Model;
use medmerge::output::OutputPath;
use medmerge::train::{EpochRecord, Observer, TrainOptions};

use crate::cli::Global;
use crate::terminal;

/// Shows one training run, and saves its best epoch where it is told to.
pub struct Progress {
    name: String,
    bar: ProgressBar,
    verbose: bool,
    quiet: bool,
    history: Vec<EpochRecord>,
    saving: Option<Saving>,
    kept: Option<PathBuf>,
}

/// Where the best epoch so far is written, and what its header says.
pub struct Saving {
    pub output: OutputPath,
    pub metadata: Metadata,
    pub provenance: Provenance,
    pub options: TrainOptions,
}

impl Saving {
    fn save(&mut self, model: &Model, history: &[EpochRecord]) -> Result<()> {
        let phase = self.provenance.training.last_mut().expect("a run that trains");
        // Whether the run ends here, it does not know yet.
        *phase = Phase { stopped_early: false, ..self.options.phase(&phase.kind, history) };
        self.provenance.write(&mut self.metadata);
        checkpoint::save(&mut self.output, model, &self.metadata)
    }
}

impl Progress {
    pub fn new(name: impl Into<String>, global: &Global) -> Progress {
        let name = name.into();
        let (verbose, quiet) = (global.verbose, global.quiet);
        Progress { bar: bar(&name, global), name, verbose, quiet, history: Vec::new(), saving: None, kept: None }
    }

    /// Writes every best epoch so far.
    pub fn saving_to(mut self, saving: Saving) -> Progress {
        self.saving = Some(saving);
        self
    }

    pub fn finish(self) -> Option<Saving> {
        self.bar.finish_and_clear();
        self.saving
    }
}

impl Observer for Progress {
    fn step(&mut self, step: usize, steps: usize, loss: f32) {
        self.bar.set_length(steps as u64);
        self.bar.set_position(step as u64);
        self.bar.set_message(format!("loss {loss:.3}"));
    }

    fn phase(&mut self, name: &str) {
        self.name = name.to_string();
        self.bar.set_prefix(name.to_string());
        self.history.clear();
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        self.history = history.to_vec();
    }

    fn note(&mut self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| terminal::say(format_args!("note: {}: {text}", self.name)));
        }
    }

    fn detail(&mut self, text: &str) {
        if self.verbose {
            self.bar.suspend(|| terminal::say(format_args!("{}: {text}", self.name)));
        }
    }

    fn epoch(&mut self, record: &EpochRecord, best: Option<&Model>) -> Result<()> {
        if self.verbose {
            let val = match (record.val_accuracy, record.val_macro_f1) {
                (Some(accuracy), Some(f1)) => format!(", validation accuracy {accuracy:.4}, macro F1 {f1:.4}"),
                _ => String::new(),
            };
            self.bar.suspend(|| {
                terminal::say(format_args!(
                    "{}: epoch {}, loss {:.4}{val}, {:.1} s",
                    self.name, record.epoch, record.train_loss, record.seconds
                ))
            });
        }
        self.history.push(record.clone());
        if let (Some(model), Some(saving)) = (best, &mut self.saving) {
            saving.save(model, &self.history)?;
            self.kept = Some(saving.output.path().to_path_buf());
        }
        Ok(())
    }

    fn kept(&self) -> Option<PathBuf> {
        self.kept.clone()
    }
}

/// A bar that appears on a terminal, unless told to be quiet.
pub fn bar(name: &str, global: &Global) -> ProgressBar {
    let target = if global.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style =
        ProgressStyle::with_template("{prefix:28} {bar:30} {pos:>5}/{len} {msg} {eta:>4}").expect("a valid template");
    let bar = ProgressBar::with_draw_target(None, target).with_style(style).with_prefix(name.to_string());
    // The clock is a thread, and the bar would panic where it cannot start one; without it, steps alone move the bar.
    let thread_starts = || std::thread::Builder::new().spawn(|| ()).is_ok_and(|thread| thread.join().is_ok());
    if !bar.is_hidden() && thread_starts() {
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    bar
}

/// A sign of life for work whose length is not known beforehand.
pub fn spinner(name: &str, global: &Global) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:28} {spinner} {elapsed}").expect("a valid template");
    bar(name, global).with_style(style)
}
