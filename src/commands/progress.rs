//! Progress on stderr: a bar on a terminal, elsewhere a line now and then; a line per epoch when asked for.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use medmerge::error::Result;
use medmerge::nn::Model;
use medmerge::train::{EpochRecord, Observer};

use crate::cli::Global;
use crate::terminal;

/// Shows a job.
pub struct Progress {
    /// The name of what is being done now.
    name: String,
    bar: Bar,
    verbose: bool,
    quiet: bool,
}

impl Progress {
    /// The progress of a job that goes step by step.
    pub fn new(name: impl Into<String>, global: &Global) -> Progress {
        Progress::counting("step", name, global)
    }

    /// The progress of a job that goes by another unit.
    pub fn counting(unit: &'static str, name: impl Into<String>, global: &Global) -> Progress {
        let name = name.into();
        let bar = bar(&name, unit, global);
        Progress { bar, name, verbose: global.verbose, quiet: global.quiet }
    }

    /// A line for everybody who did not ask for quiet.
    pub fn say(&self, text: std::fmt::Arguments) {
        if !self.quiet {
            self.bar.say(text);
        }
    }

    pub fn finish(self) {
        self.bar.finish();
    }
}

/// How long the rest takes.
pub fn time_left(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "nearly done".into(),
        s if s < 90.0 => format!("about {s:.0} s left"),
        s => format!("about {:.0} min left", s / 60.0),
    }
}

impl Observer for Progress {
    fn phase(&mut self, name: &str) {
        self.name = name.to_string();
        self.bar.rename(name);
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        self.note(&format!("continuing from the state after epoch {}", history.len()));
    }

    fn step(&mut self, step: usize, steps: usize, loss: f32) {
        self.bar.update(&self.name, step as u64, steps as u64, &format!("loss {loss:.3}"));
    }

    fn images(&mut self, done: usize, images: usize) {
        self.bar.update(&self.name, done as u64, images as u64, "");
    }

    fn remark(&mut self, text: &str) {
        self.say(format_args!("note: {text}"));
    }

    fn note(&mut self, text: &str) {
        self.say(format_args!("note: {}: {text}", self.name));
    }

    fn detail(&mut self, text: &str) {
        if self.verbose {
            self.bar.say(format_args!("{}: {text}", self.name));
        }
    }

    fn epoch(&mut self, record: &EpochRecord, _best: Option<&Model>) -> Result<()> {
        if self.verbose {
            let val = match (record.val_accuracy, record.val_macro_f1) {
                (Some(accuracy), Some(f1)) => format!(", validation accuracy {accuracy:.4}, macro F1 {f1:.4}"),
                _ => String::new(),
            };
            self.bar.say(format_args!(
                "{}: epoch {}, loss {:.4}{val}, {:.1} s",
                self.name, record.epoch, record.train_loss, record.seconds
            ));
        }
        Ok(())
    }
}

/// How far a job of known length is.
pub struct Bar {
    bar: ProgressBar,
    /// The unit that is counted.
    unit: &'static str,
    /// Where stderr is no terminal, and is not to be quiet.
    ticker: Option<RefCell<Ticker>>,
}

impl Bar {
    pub fn update(&self, name: &str, position: u64, length: u64, message: &str) {
        self.bar.set_length(length);
        self.bar.set_position(position);
        self.bar.set_message(message.to_string());
        let left = self.ticker.as_ref().and_then(|ticker| ticker.borrow_mut().tick(Instant::now(), position, length));
        if let Some(left) = left {
            let message = if message.is_empty() { String::new() } else { format!(", {message}") };
            let left = left.map_or(String::new(), |left| format!(", {} left", HumanDuration(left)));
            terminal::say(format_args!("{name}: {} {position} of {length}{message}{left}", self.unit));
        }
    }

    pub fn rename(&self, name: &str) {
        self.bar.set_prefix(name.to_string());
    }

    /// A line, above the bar where there is one.
    pub fn say(&self, text: std::fmt::Arguments) {
        self.bar.suspend(|| terminal::say(text));
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// When a line about a job is due: at its first step, then about every ten seconds.
#[derive(Default)]
struct Ticker {
    /// When the job was first seen, and where.
    start: Option<(Instant, u64)>,
    last: u64,
    next: Option<Instant>,
}

impl Ticker {
    const PERIOD: Duration = Duration::from_secs(10);

    /// Whether a line is due now, and the time that is left if that can be told. A position that is not
    /// beyond the last one is another job's.
    fn tick(&mut self, now: Instant, position: u64, length: u64) -> Option<Option<Duration>> {
        if position <= self.last {
            *self = Ticker::default();
        }
        self.last = position;
        if self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.next = Some(now + Ticker::PERIOD);
        let (start, first) = *self.start.get_or_insert((now, position));
        let done = position - first;
        let left = length.saturating_sub(position);
        Some((done > 0).then(|| (now - start).mul_f64(left as f64 / done as f64)))
    }
}

/// A bar that appears on a terminal, or lines elsewhere, unless told to be quiet.
pub fn bar(name: &str, unit: &'static str, global: &Global) -> Bar {
    let style =
        ProgressStyle::with_template("{prefix:28} {bar:30} {pos:>5}/{len} {msg} {eta:>4}").expect("a valid template");
    let has_lines = !global.quiet && !std::io::stderr().is_terminal();
    Bar { bar: drawn(name, global).with_style(style), unit, ticker: has_lines.then(RefCell::default) }
}

/// A sign of life for work whose length is not known beforehand.
pub fn spinner(name: &str, global: &Global) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:28} {spinner} {elapsed}").expect("a valid template");
    drawn(name, global).with_style(style)
}

/// Lines above a sign of life.
pub struct Above<'a> {
    pub spinner: &'a ProgressBar,
    pub global: &'a Global,
}

impl Observer for Above<'_> {
    fn remark(&mut self, text: &str) {
        self.spinner.suspend(|| super::note(self.global, format_args!("note: {text}")));
    }
}

fn drawn(name: &str, global: &Global) -> ProgressBar {
    let target = if global.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target).with_prefix(name.to_string());
    // The clock is a thread, and the bar would panic where it cannot start one; without it, steps alone move the bar.
    let thread_starts = || std::thread::Builder::new().spawn(|| ()).is_ok_and(|thread| thread.join().is_ok());
    if !bar.is_hidden() && thread_starts() {
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_second_is_nearly_done() {
        assert_eq!([30.2, 0.9, 150.0].map(time_left), ["about 30 s left", "nearly done", "about 2 min left"]);
    }

    #[test]
    fn a_line_is_due_at_the_first_step_and_then_every_ten_seconds() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut ticker = Ticker::default();
        assert_eq!(ticker.tick(start, 1, 101), Some(None));
        let due: Vec<u64> = (1..=40).filter(|&second| ticker.tick(after(second), 1 + second, 101).is_some()).collect();
        assert_eq!(due, [10, 20, 30, 40]);
        // A step that takes long delays the line, and no lines are caught up with.
        assert_eq!(ticker.tick(after(95), 51, 101), Some(Some(Duration::from_secs(95))));
        assert_eq!(ticker.tick(after(96), 52, 101), None);
    }

    #[test]
    fn the_time_left_is_by_the_steps_since_the_first() {
        let start = Instant::now();
        let mut ticker = Ticker::default();
        // A resumed run begins where another one stopped.
        assert_eq!(ticker.tick(start, 500, 1000), Some(None));
        let left = ticker.tick(start + Duration::from_secs(20), 600, 1000).unwrap();
        assert_eq!(left, Some(Duration::from_secs(80)));
        let left = ticker.tick(start + Duration::from_secs(100), 1000, 1000).unwrap();
        assert_eq!(left, Some(Duration::ZERO));
    }

    #[test]
    fn the_next_job_has_a_first_line_of_its_own() {
        let start = Instant::now();
        let mut ticker = Ticker::default();
        assert!(ticker.tick(start, 1, 2).is_some());
        assert_eq!(ticker.tick(start, 2, 2), None);
        assert_eq!(ticker.tick(start, 1, 1), Some(None));
        assert_eq!(ticker.tick(start, 1, 1), Some(None), "jobs of a single step");
    }
}
