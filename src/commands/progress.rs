//! Progress on stderr: a bar while it runs, a line per epoch when asked for, checkpoints as they improve.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use medmerge::checkpoint::{self, Metadata};
use medmerge::error::Result;
use medmerge::nn::Model;
use medmerge::output::OutputPath;
use medmerge::train::{EpochRecord, Observer};

use crate::cli::Global;

/// Shows one training run, and saves its best epoch where it is told to.
pub struct Progress {
    name: String,
    bar: ProgressBar,
    verbose: bool,
    checkpoint: Option<(OutputPath, Metadata)>,
    kept: Option<PathBuf>,
}

impl Progress {
    pub fn new(name: impl Into<String>, global: &Global) -> Progress {
        let name = name.into();
        Progress { bar: bar(&name, global), name, verbose: global.verbose, checkpoint: None, kept: None }
    }

    /// Writes every best epoch so far to `output`.
    pub fn saving_to(mut self, output: OutputPath, metadata: Metadata) -> Progress {
        self.checkpoint = Some((output, metadata));
        self
    }

    pub fn finish(self) -> Option<OutputPath> {
        self.bar.finish_and_clear();
        self.checkpoint.map(|(output, _)| output)
    }
}

impl Observer for Progress {
    fn step(&mut self, step: usize, steps: usize, loss: f32) {
        self.bar.set_length(steps as u64);
        self.bar.set_position(step as u64);
        self.bar.set_message(format!("loss {loss:.3}"));
    }

    fn detail(&mut self, text: &str) {
        if self.verbose {
            self.bar.suspend(|| eprintln!("{}: {text}", self.name));
        }
    }

    fn epoch(&mut self, record: &EpochRecord, best: Option<&Model>) -> Result<()> {
        if self.verbose {
            let val = match (record.val_accuracy, record.val_macro_f1) {
                (Some(accuracy), Some(f1)) => format!(", validation accuracy {accuracy:.4}, macro F1 {f1:.4}"),
                _ => String::new(),
            };
            self.bar.suspend(|| {
                eprintln!(
                    "{}: epoch {}, loss {:.4}{val}, {:.1} s",
                    self.name, record.epoch, record.train_loss, record.seconds
                )
            });
        }
        if let (Some(model), Some((output, metadata))) = (best, &mut self.checkpoint) {
            checkpoint::save(output, model, metadata)?;
            self.kept = Some(output.path().to_path_buf());
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
