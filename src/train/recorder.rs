//! Runs the steps of a training run where it takes place.
//!
//! On the CPU a step is run and its loss is known. On a GPU the first step of each batch size is launched kernel by kernel and
//! traced, which gives the plan of its memory; the second is recorded as a graph, and every further one is a replay: small
//! uploads (images, how each is flipped and shifted, labels, the learning rate's factor) and one launch. The host looks at
//! the losses only every so often, and never waits in between.

use std::collections::HashMap;

use super::optimizer::BETAS;
use super::place::Place;
use super::step::step;
use super::{Optimizers, Subject};
use crate::data::{Batch, Loader, RawBatch};
use crate::error::Result;
use crate::gpu::{Address, Cost, Graph, Handle, Plan};
use crate::nn::{Mode, Model};
use crate::ops::control::{Control, LOSSES, Values};
use crate::ops::images::Images;
use crate::ops::softmax_cross_entropy::CrossEntropy;
use crate::tensor::{DType, Device, Integers, Tensor};

/// Steps after which the host looks at the losses of a GPU.
const PATIENCE: usize = 32;
const _: () = assert!(PATIENCE <= LOSSES);

pub struct Recorder {
    place: Place,
    optimizers: Optimizers,
    loss: CrossEntropy,
    /// Losses of the CPU's steps that nobody has asked for.
    losses: Vec<f32>,
    on_gpu: Option<OnGpu>,
    /// Whether steps are recorded at all.
    uses_graphs: bool,
    described: bool,
}

struct OnGpu {
    gpu: Handle,
    control: Control,
    /// By the number of images.
    batches: HashMap<usize, Recorded>,
    /// Steps run, and steps whose losses have been asked for.
    run: usize,
    seen: usize,
}

/// A batch's place on the device, and the step that runs on it.
struct Recorded {
    images: Images,
    labels: Integers<u32>,
    /// Where the step's own memory lies in a graph.
    plan: Plan,
    graph: Option<Graph>,
    /// Where everything lies that the graph reads and writes beside its own memory.
    addresses: Vec<Address>,
}

/// The batches of an epoch, as the device wants them.
pub enum Feed<'a> {
    Cpu(Box<dyn Iterator<Item = Batch> + 'a>),
    Gpu(Box<dyn Iterator<Item = RawBatch> + 'a>),
}

/// What steps came to.
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
                gpu.compile_ahead(place.precision);
                let is_scaled = place.precision == DType::F16;
                let fresh = Control::new(gpu, optimizers.steps(), BETAS[0], BETAS[1], is_scaled);
                let run = control.map_or(0, |values| values.steps as usize);
                if let Some(values) = control {
                    fresh.set(&values);
                }
                Some(OnGpu { gpu, control: fresh, batches: HashMap::new(), run, seen: run })
            }
        };
        Recorder { place, optimizers, loss, losses: Vec::new(), on_gpu, uses_graphs: true, described: false }
    }

    /// Launches every step's kernels one by one instead of replaying a graph: the same bits, for comparison.
    pub fn without_graphs(self) -> Recorder {
        Recorder { uses_graphs: false, ..self }
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

    /// How many pending steps to wait for before asking.
    pub fn patience(&self) -> usize {
        if self.on_gpu.is_some() { PATIENCE } else { 1 }
    }

    pub fn feed<'a>(&self, loader: &'a Loader, epoch: usize) -> Feed<'a> {
        match self.place.device {
            Device::Cpu => Feed::Cpu(Box::new(loader.epoch(epoch))),
            Device::Gpu(_) => Feed::Gpu(Box::new(loader.raw_epoch(epoch))),
        }
    }

    /// Runs the next batch of `feed`; false if there is none.
    pub fn step(
        &mut self,
        model: &mut Model,
        subject: &mut Subject,
        loader: &Loader,
        feed: &mut Feed,
        factor: f64,
    ) -> Result<bool> {
        match feed {
            Feed::Cpu(batches) => {
                let Some(batch) = batches.next() else { return Ok(false) };
                let (images, labels) = (Tensor::from_vec(batch.images, batch.shape), Integers::from_vec(batch.labels));
                let loss = step(model, subject, &mut self.optimizers, &self.loss, images, &labels, factor, None);
                self.losses.push(loss.data::<f32>()[0]);
            }
            Feed::Gpu(batches) => {
                let Some(batch) = batches.next() else { return Ok(false) };
                self.step_on_gpu(model, subject, loader, &batch, factor)?;
            }
        }
        Ok(true)
    }

    fn step_on_gpu(
        &mut self,
        model: &mut Model,
        subject: &mut Subject,
        loader: &Loader,
        batch: &RawBatch,
        factor: f64,
    ) -> Result<()> {
        let Recorder { place, optimizers, loss, on_gpu, uses_graphs, .. } = self;
        let OnGpu { gpu, control, batches, run, .. } = on_gpu.as_mut().expect("made for a GPU");
        *run += 1;
        control.set_factor(factor);
        let known = batches.get_mut(&batch.labels.len());
        let launch = |recorded: &Recorded, model: &mut Model, subject: &mut Subject, optimizers: &mut Optimizers| {
            let x = place.show(&recorded.images, loader);
            step(model, subject, optimizers, loss, x, &recorded.labels, factor, Some(control));
        };
        let Some(recorded) = known else {
            let labels = Integers::from_vec(batch.labels.clone()).to_device(place.device);
            let images = place.upload(batch);
            let mut recorded = Recorded { images, labels, plan: Plan::default(), graph: None, addresses: Vec::new() };
            recorded.plan = gpu.trace(|| launch(&recorded, model, subject, optimizers)).plan;
            recorded.addresses = addresses(model, subject, optimizers);
            batches.insert(batch.labels.len(), recorded);
            return Ok(gpu.check()?);
        };
        recorded.images.bytes.write(&batch.bytes);
        recorded.labels.write(&batch.labels);
        if let (Some(on_device), Some(placements)) = (&mut recorded.images.placements, &batch.placements) {
            on_device.write(placements);
        }
        if !*uses_graphs {
            launch(recorded, model, subject, optimizers);
            return Ok(gpu.check()?);
        }
        let now = addresses(model, subject, optimizers);
        if recorded.addresses != now {
            // Not recorded at once: tables that hold addresses are uploaded when they are first needed.
            recorded.graph = None;
            recorded.plan = gpu.trace(|| launch(recorded, model, subject, optimizers)).plan;
            recorded.addresses = addresses(model, subject, optimizers);
            return Ok(gpu.check()?);
        }
        // Where a larger batch has come since, this one moves to its arena.
        recorded.graph.take_if(|graph| graph.is_outgrown());
        if let Some(graph) = &recorded.graph {
            graph.replay();
            // What the recorded step counted on the host.
            if subject.mode() == Mode::Training {
                model.batches_tracked.iter_mut().for_each(|count| *count += 1);
            }
        } else {
            let graph = gpu.capture_planned(&recorded.plan, || launch(recorded, model, subject, optimizers))?;
            graph.replay();
            recorded.graph = Some(graph);
        }
        Ok(gpu.check()?)
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

    /// What a step is made of, once.
    pub fn describe(&mut self) -> Option<String> {
        let OnGpu { gpu, batches, .. } = self.on_gpu.as_ref()?;
        // The largest batch says most.
        let recorded =
            batches.iter().filter_map(|(images, recorded)| Some((images, recorded, recorded.graph.as_ref()?)));
        let (images, recorded, graph) = recorded.max_by_key(|(images, ..)| **images)?;
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

/// Where everything lies that steps read and write beside their own memory: a recorded step is good for as long as this
/// does not change.
fn addresses(model: &Model, subject: &Subject, optimizers: &Optimizers) -> Vec<Address> {
    let mut tensors = vec![&model.head, &model.statistics];
    match subject {
        Subject::Everything | Subject::Head => tensors.push(&model.trunk),
        Subject::Merge(state) => tensors.extend(state.trunks.iter().chain([&state.numbers])),
    }
    tensors.into_iter().chain(optimizers.moments()).map(Tensor::address).collect()
}
