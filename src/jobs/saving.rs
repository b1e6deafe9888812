//! The files that a job writes while it trains: each best epoch so far, and the log.

use std::path::PathBuf;

use super::EpochLog;
use super::events::Events;
use super::log::EpochLines;
use crate::checkpoint::{self, Form, Metadata, Phase, Provenance};
use crate::error::Result;
use crate::nn::Model;
use crate::output::OutputPath;
use crate::train::{EpochRecord, Observer, TrainOptions};

/// Where the best epoch so far is written, and what its header says.
pub(super) struct Saving {
    pub output: OutputPath,
    pub metadata: Metadata,
    pub form: Form,
    pub provenance: Provenance,
    pub options: TrainOptions,
}

impl Saving {
    fn save(&mut self, model: &Model, history: &[EpochRecord]) -> Result<()> {
        let phase = self.provenance.training.last_mut().expect("a run that trains");
        // Whether the run ends here, it does not know yet.
        *phase = Phase { stopped_early: false, ..self.options.phase(&phase.kind, history) };
        self.provenance.write(&mut self.metadata);
        checkpoint::save_as(&mut self.output, model, true, &self.form, &self.metadata)
    }
}

/// What else is told of each epoch, where it is asked for.
#[derive(Default)]
pub(super) struct Told {
    pub lines: Option<EpochLines>,
    pub events: Option<Events>,
}

/// Saves and logs what it sees, and passes it on.
pub(super) struct Recording<'a> {
    pub observer: &'a mut dyn Observer,
    pub log: EpochLog,
    pub saving: Option<Saving>,
    pub told: Told,
    /// The phase's name, and its epochs.
    name: String,
    history: Vec<EpochRecord>,
    last_checkpoint: Option<PathBuf>,
}

impl<'a> Recording<'a> {
    pub fn new(observer: &'a mut dyn Observer, log: EpochLog, saving: Option<Saving>) -> Recording<'a> {
        Recording {
            observer,
            log,
            saving,
            told: Told::default(),
            name: String::new(),
            history: Vec::new(),
            last_checkpoint: None,
        }
    }
}

impl Observer for Recording<'_> {
    fn phase(&mut self, name: &str) {
        self.name = name.to_string();
        self.history.clear();
        self.observer.phase(name);
    }

    fn resumed(&mut self, history: &[EpochRecord]) {
        history.iter().for_each(|record| self.log.add(&self.name, record));
        self.history = history.to_vec();
        let Told { lines, events } = &mut self.told;
        lines.iter_mut().for_each(|lines| history.iter().for_each(|record| lines.add(&self.name, record)));
        events.iter_mut().for_each(|events| events.resumed(history));
        self.observer.resumed(history);
    }

    fn step(&mut self, step: usize, steps: usize, loss: f32) {
        self.observer.step(step, steps, loss);
    }

    fn stops(&mut self) -> bool {
        self.observer.stops()
    }

    fn note(&mut self, text: &str) {
        self.observer.note(text);
    }

    fn remark(&mut self, text: &str) {
        self.observer.remark(text);
    }

    fn detail(&mut self, text: &str) {
        self.observer.detail(text);
    }

    fn epoch(&mut self, record: &EpochRecord, best: Option<&Model>) -> Result<()> {
        self.observer.epoch(record, best)?;
        self.history.push(record.clone());
        if let (Some(model), Some(saving)) = (best, &mut self.saving) {
            saving.save(model, &self.history)?;
            self.last_checkpoint = Some(saving.output.path().to_path_buf());
        }
        self.log.add(&self.name, record);
        self.log.save()?;
        if let Some(lines) = &mut self.told.lines {
            lines.add(&self.name, record);
            lines.save()?;
        }
        self.told.events.as_mut().map_or(Ok(()), |events| events.add(record))
    }

    fn last_checkpoint(&self) -> Option<PathBuf> {
        self.last_checkpoint.clone()
    }
}
