//! Runs the steps of a training run where it takes place.
//!
//! On the CPU a step is run and its loss is known. On a GPU steps are [replayed](super::replays), and the host looks at the
//! losses only every so often, and never waits in between.

use super::batches::{Batches, Loaded};
use super::optimizer::BETAS;
use super::place::Place;
use super::replays::{Done, Replays};
use super::step::step;
use super::{Optimizers, Subject, Turn};
use crate::error::Result;
use crate::gpu::{Address, Cost, Handle};
use crate::nn::{Mode, Model};
use crate::ops::control::{Control, LOSSES, Values};
use crate::ops::softmax_cross_entropy::CrossEntropy;
use crate::tensor::{DType, Device, Tensor};

/// Steps after which the host looks at the losses of a GPU.
const LONGEST_WAIT: usize = 32;
const _: () = assert!(LONGEST_WAIT <= LOSSES);

pub struct Recorder {
    optimizers: Optimizers,
    loss: CrossEntropy,
    /// Losses of the CPU's steps that nobody has asked for.
    losses: Vec<f32>,
    on_gpu: Option<OnGpu>,
    described: bool,
}

struct OnGpu {
    gpu: Handle,
    control: Control,
    /// Of batches that end in an update.
    replays: Replays,
    /// Of batches whose gradients are gathered alone.
    gathering: Replays,
    /// Steps run, and steps whose losses have been asked for.
    run: usize,
    seen: usize,
}

/// The result of steps.
pub struct Finished {
    pub losses: Vec<f32>,
    /// Whether a gradient was not finite, and nothing is updated any more.
    pub diverged: bool,
}

impl Recorder {
    /// `control` continues an earlier run.
    pub fn new(place: Place, optimizers: Optimizers, loss: CrossEntropy, control: Option<Values>) -> Recorder {
        let on_gpu = match place.device {
            Device::Cpu => None,
            Device::Gpu(gpu) => {
                let is_scaled = place.precision == DType::F16;
                let fresh = Control::new(gpu, optimizers.steps(), BETAS[0], BETAS[1], is_scaled);
                let run = control.map_or(0, |values| values.steps as usize);
                if let Some(values) = control {
                    fresh.set(&values);
                }
                let [replays, gathering] = [Replays::new(gpu), Replays::new(gpu)];
                Some(OnGpu { gpu, control: fresh, replays, gathering, run, seen: run })
            }
        };
        Recorder { optimizers, loss, losses: Vec::new(), on_gpu, described: false }
    }

    /// Launches every step's kernels one by one instead of replaying a graph: the same bits, for comparison.
    pub fn without_graphs(self) -> Recorder {
        let on_gpu = self.on_gpu.map(|on_gpu| OnGpu {
            replays: on_gpu.replays.without_graphs(),
            gathering: on_gpu.gathering.without_graphs(),
            ..on_gpu
        });
        Recorder { on_gpu, ..self }
    }

    pub fn optimizers(&self) -> &Optimizers {
        &self.optimizers
    }

    pub fn control(&self) -> Option<Values> {
        self.on_gpu.as_ref().map(|on_gpu| on_gpu.control.values())
    }

    /// Steps whose losses have not been asked for.
    pub fn pending(&self) -> usize {
        self.on_gpu.as_ref().map_or(self.losses.len(), |on_gpu| on_gpu.run - on_gpu.seen)
    }

    /// How many steps may be pending before their losses are asked for.
    pub fn longest_wait(&self) -> usize {
        if self.on_gpu.is_some() { LONGEST_WAIT } else { 1 }
    }

    /// Runs the next batch of an epoch of `batches`, which is to its update what `turn` says (a number is a factor of the
    /// learning rates); false if there is none.
    pub fn step(
        &mut self,
        model: &mut Model,
        subject: &mut Subject,
        batches: &Batches,
        epoch: &mut dyn Iterator<Item = Result<Loaded>>,
        turn: impl Into<Turn>,
    ) -> Result<bool> {
        let turn = turn.into();
        let Some(loaded) = epoch.next().transpose()? else { return Ok(false) };
        let Recorder { optimizers, loss, losses, on_gpu, .. } = self;
        let Some(OnGpu { control, replays, gathering, run, .. }) = on_gpu else {
            let value = step(model, subject, optimizers, loss, &batches.place(loaded), turn, None);
            losses.push(value.data::<f32>()[0]);
            return Ok(true);
        };
        *run += 1;
        control.set_turn(turn.factor, turn.share);
        // What is the first of an update, the device knows by itself.
        let replays = if turn.is_last { replays } else { gathering };
        let mut state = Learning { model, subject, optimizers };
        let done = replays.run(batches, loaded, &mut state, Learning::addresses, |state, batch| {
            let Learning { model, subject, optimizers } = state;
            step(model, subject, optimizers, loss, batch, turn, Some(control));
        })?;
        // A step counts this on the host.
        if done == Done::Replayed && state.subject.mode() == Mode::Training {
            state.model.batches_tracked.iter_mut().for_each(|count| *count += 1);
        }
        Ok(true)
    }

    /// Waits for the steps that were run since the last call.
    pub fn losses(&mut self) -> Result<Finished> {
        let Some(OnGpu { gpu, control, run, seen, .. }) = &mut self.on_gpu else {
            return Ok(Finished { losses: std::mem::take(&mut self.losses), diverged: false });
        };
        let values = control.values();
        let ring = control.losses();
        gpu.check()?;
        assert!(*run - *seen <= LOSSES, "losses are asked for before they are overwritten");
        let losses = (*seen..*run).map(|step| ring[step % LOSSES]).collect();
        *seen = *run;
        self.optimizers.set_steps(values.updates.into());
        Ok(Finished { losses, diverged: values.diverged != 0 })
    }

    /// Describes what a step is made of, once.
    pub fn describe(&mut self) -> Option<String> {
        let OnGpu { gpu, replays, .. } = self.on_gpu.as_ref()?;
        // The largest batch says most.
        let (images, recorded) = replays.largest()?;
        let graph = recorded.graph.as_ref()?;
        if std::mem::replace(&mut self.described, true) {
            return None;
        }
        let bytes = graph.work().iter().map(|work| work.cost).sum::<Cost>().bytes();
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        Some(format!(
            "a step of {images} images is one graph of {} launches, which move {:.0} MB; it needs {:.1} MB of memory at a \
             time, planned in {:.1} MB ({} buffers did not fit the plan); {:.0} MB of device memory, {:.0} MB at most",
            graph.launches(),
            bytes as f64 / 1e6,
            megabytes(recorded.plan.peak_live()),
            megabytes(recorded.plan.arena()),
            gpu.misfits(),
            megabytes(gpu.held_memory()),
            megabytes(gpu.peak_memory()),
        ))
    }
}

/// Everything that steps change.
struct Learning<'a> {
    model: &'a mut Model,
    subject: &'a mut Subject,
    optimizers: &'a mut Optimizers,
}

impl Learning<'_> {
    /// Where everything lies that steps read and write beside their own memory: a recorded step is good for as long as this
    /// does not change.
    fn addresses(&self) -> Vec<Address> {
        let mut tensors = vec![&self.model.head, &self.model.statistics];
        match &*self.subject {
            Subject::Everything | Subject::Head => tensors.push(&self.model.trunk),
            Subject::Merge(_) => {}
            Subject::EverythingAndMerge(change) => tensors.extend([&self.model.trunk, &change.minus_alpha]),
            Subject::Distilled(teachers) => {
                tensors.push(&self.model.trunk);
                tensors.extend(teachers.tensors());
            }
        }
        tensors.extend(self.subject.merge().iter().flat_map(|state| state.trunks.iter().chain([&state.merge_weights])));
        tensors.into_iter().chain(self.optimizers.tensors()).map(Tensor::address).collect()
    }
}
