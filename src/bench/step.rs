//! Training and learning steps, as [`train`](crate::train) runs them, on a batch that is already on the device: on a GPU from
//! its bytes on, and replayed as a graph.

use std::sync::Arc;

use super::conv::too_small;
use super::measure::Clock;
use super::numbers::{random, random_bytes, random_tensor};
use super::report::{KernelFigures, Row, StepFigures};
use super::shapes::{self, Scale};
use super::{Measured, Settings, merge};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, MemoryPlan, Trace, Work, WorkOf};
use crate::merge::{Plan, Start};
use crate::nn::{Model, Network};
use crate::ops::Cost;
use crate::ops::control::Control;
use crate::ops::conv2d::{Geometry, Pass};
use crate::ops::images::Images;
use crate::ops::merge::{alpha_gradient, blend};
use crate::ops::softmax_cross_entropy::CrossEntropy;
use crate::tensor::{DType, Device, Integers, Tensor};
use crate::train::{BETAS, Batch, MergeState, Subject, TrainOptions, step};

/// Small enough that no run of steps on random labels diverges.
const LEARNING_RATE: f64 = 1e-7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Everything learns.
    Training,
    /// Merge weights and the head.
    Learning,
}

pub(super) struct StepCase {
    network: String,
    graph: Arc<Network>,
    image_size: usize,
    batch_size: usize,
    precision: DType,
    what: What,
    /// Sources of a learning step.
    sources: usize,
}

pub(super) fn cases(
    settings: &Settings,
    networks: &[String],
    sources: &[usize],
    scale: Scale,
) -> Result<Vec<StepCase>> {
    let mut cases = Vec::new();
    for network in networks {
        for &image_size in settings.image_sizes(scale) {
            let graph = shapes::network(network, shapes::stem(image_size), shapes::classes(image_size))?;
            if !graph.accepts(image_size, image_size) {
                return Err(too_small(network, image_size));
            }
            let graph = if settings.is_fused { graph } else { Arc::new(graph.planned(false)) };
            let case = |what, sources| StepCase {
                network: network.clone(),
                graph: graph.clone(),
                image_size,
                batch_size: settings.batch_size.unwrap_or(scale.batch_size(image_size)),
                precision: settings.precision,
                what,
                sources,
            };
            cases.push(case(What::Training, 0));
            cases.extend(sources.iter().map(|&sources| case(What::Learning, sources)));
        }
    }
    Ok(cases)
}

impl StepCase {
    fn what(&self) -> String {
        match self.what {
            What::Training => "training".into(),
            What::Learning => format!("learning, {} sources", self.sources),
        }
    }

    pub fn name(&self) -> String {
        let StepCase { network, image_size, batch_size, precision, .. } = self;
        format!("step/{network}/{image_size}px/{batch_size}/{}/{precision}", self.what())
    }

    /// The passes of all convolutions: images have no gradient.
    pub(super) fn passes(&self) -> impl Iterator<Item = (Geometry, Pass)> {
        let images = [self.batch_size, self.image_size, self.image_size, self.graph.input_channels];
        let convolutions = self.graph.convolutions(images.into()).expect("checked when the cases were made");
        convolutions.into_iter().enumerate().flat_map(|(index, (_, geometry))| {
            let passes = Pass::ALL.into_iter().filter(move |&pass| pass != Pass::Dgrad || index > 0);
            passes.map(move |pass| (geometry, pass))
        })
    }

    /// The costs of the convolutions and of merging; the rest of a step is not counted.
    fn costs(&self, plan: Option<&Plan>) -> Vec<Cost> {
        let mut costs: Vec<Cost> = self.passes().map(|(geometry, pass)| geometry.cost(pass, self.precision)).collect();
        costs.extend(plan.iter().flat_map(|plan| {
            let (table, sources) = (&plan.table, plan.method.sources);
            [table.blend_cost(sources), table.gradient_cost(sources)]
        }));
        costs
    }

    /// Counts what a step launches, moves and allocates on a GPU, without one.
    pub fn account(&self) -> Result<Row> {
        let gpu = Gpu::dry();
        let plan = (self.what == What::Learning).then(|| merge::plan(&self.graph, self.sources));
        let mut running = Running::new(self, Device::Gpu(gpu), plan.clone())?;
        // The first step makes what all others find.
        running.step();
        let Trace { plan: memory, work, .. } = gpu.trace(|| running.step());
        let cost: Cost = work.iter().map(|work| work.cost).sum();
        let row = self.row(plan.as_ref(), of_trace(&memory, &work));
        Ok(Row { name: self.name(), bytes: cost.bytes(), flops: cost.flops, ..row })
    }

    fn row(&self, plan: Option<&Plan>, figures: StepFigures) -> Row {
        Row {
            network: self.network.clone(),
            what: self.what(),
            sources: plan.map(|plan| plan.method.sources),
            batch_size: Some(self.batch_size),
            image_size: Some(self.image_size),
            precision: self.precision.to_string(),
            step: Some(figures),
            ..Row::default()
        }
    }

    pub fn measure(&self, clock: &Clock) -> Result<Measured> {
        let device = clock.device;
        if let Device::Gpu(gpu) = device {
            // What earlier rows needed is not part of this one's peak.
            gpu.release_unused()?;
        }
        let plan = (self.what == What::Learning).then(|| merge::plan(&self.graph, self.sources));
        let costs = self.costs(plan.as_ref());
        let mut running = Running::new(self, device, plan.clone())?;
        let mut figures = StepFigures::default();
        if let Device::Gpu(gpu) = device {
            // The first step makes what all others find.
            running.step();
            let Trace { plan, work, .. } = gpu.trace(|| running.step());
            gpu.synchronize()?;
            figures = of_trace(&plan, &work);
            figures.first_peak_bytes = Some(gpu.peak_memory() as u64);
        }
        let timing = clock.time(1, &mut |_| running.step())?;
        running.check(clock.rounds)?;
        if let Device::Gpu(gpu) = device {
            figures.peak_bytes = Some(gpu.peak_memory() as u64);
        }
        let merging = match (&plan, &running.subject) {
            (Some(plan), Subject::Merge(state)) => Some(merging(clock, plan, state)?),
            _ => None,
        };
        let figures = StepFigures {
            images_per_second: self.batch_size as f64 / timing.median,
            merging_share: merging.map(|seconds| seconds / timing.median),
            ..figures
        };
        let row = self.row(plan.as_ref(), figures);
        Ok(Measured { row, timing, costs, precision: self.precision })
    }
}

/// Figures of what a step launches, and of the memory it has for itself.
fn of_trace(plan: &MemoryPlan, work: &[Work]) -> StepFigures {
    let of_kernel = |(of, launches, cost): (WorkOf, usize, Cost)| KernelFigures {
        name: of.name(),
        launches,
        read: cost.read,
        written: cost.written,
        flops: cost.flops,
        limit_seconds: 0.0,
    };
    let launches = work.iter().filter(|work| matches!(work.of, WorkOf::Launch(_))).count();
    StepFigures {
        launches: Some(launches as u64),
        bytes: Some(work.iter().map(|work| work.cost).sum::<Cost>().bytes()),
        arena_bytes: Some(plan.arena() as u64),
        live_bytes: Some(plan.peak_live() as u64),
        kernels: Work::grouped(work).into_iter().map(of_kernel).collect(),
        ..StepFigures::default()
    }
}

/// Seconds of what a learning step does to merge: α, the blend, dα and the gradient of what is learned.
fn merging(clock: &Clock, plan: &Plan, state: &MergeState) -> Result<f64> {
    let Plan { table, parametrization, .. } = plan;
    let dw = random_tensor([table.arena_len()], 1, clock.device, DType::F32);
    let trunks: Vec<&Tensor> = state.trunks.iter().collect();
    let uninit = |shape: &[usize]| match *shape {
        [rows, columns] => Tensor::uninit([rows, columns], DType::F32, clock.device),
        _ => Tensor::uninit([table.arena_len()], DType::F32, clock.device),
    };
    let timing = clock.time(1, &mut |_| {
        let alpha = parametrization.alpha(&state.merge_weights);
        let mut arena = uninit(&[]);
        blend(table, &trunks, &alpha, arena.view_mut());
        let mut dalpha = uninit(alpha.dims());
        alpha_gradient(table, &trunks, &dw, dalpha.view_mut());
        let mut dweights = uninit(state.merge_weights.dims());
        parametrization.backward_into(&alpha, &dalpha, dweights.view_mut());
    })?;
    Ok(timing.median)
}

/// A step that can be run again and again.
struct Running {
    model: Model,
    subject: Subject,
    optimizers: crate::train::Optimizers,
    loss: CrossEntropy,
    batch: Batch,
    control: Option<Control>,
    /// Loss of the last step, on the CPU.
    last_loss: f32,
}

impl Running {
    fn new(case: &StepCase, device: Device, plan: Option<Plan>) -> Result<Running> {
        let (n, size, channels) = (case.batch_size, case.image_size, case.graph.input_channels);
        let source = |seed: usize| Model::initialized(case.graph.clone(), seed as u64);
        let model = source(0).to_device(device);
        let subject = match plan {
            None => Subject::Everything,
            Some(plan) => {
                let merge_weights = plan.start(Start::Uniform)?.to_device(device);
                let trunks = (0..plan.method.sources).map(|seed| source(seed).trunk.to_device(device)).collect();
                Subject::Merge(MergeState::new(plan, trunks, merge_weights))
            }
        };
        let options = TrainOptions {
            learning_rate: LEARNING_RATE,
            merge_learning_rate: LEARNING_RATE,
            ..TrainOptions::default()
        };
        let optimizers = subject.optimizers(&options, &case.graph);
        let shape = [n, size, size, channels];
        let labels = (0..n).map(|i| (i % case.graph.classes) as u32).collect();
        let labels = Integers::from_vec(labels).to_device(device);
        let (batch, control) = match device {
            Device::Cpu => {
                let images = Tensor::from_vec(random(shape.iter().product(), 1), shape);
                (Batch::of_activations(images, labels), None)
            }
            Device::Gpu(gpu) => {
                let bytes = Integers::from_vec(random_bytes(shape.iter().product())).to_device(device);
                let table = std::array::from_fn(|byte| byte as f32 / 127.5 - 1.0);
                let images = Images { bytes, shape, placements: None };
                let is_scaled = case.precision == DType::F16;
                let control = Control::new(gpu, 0, BETAS[0], BETAS[1], is_scaled);
                let tables = vec![table; channels].into();
                (Batch::of_bytes(images, tables, case.precision, labels), Some(control))
            }
        };
        let loss = CrossEntropy::default();
        Ok(Running { model, subject, optimizers, loss, batch, control, last_loss: 0.0 })
    }

    fn step(&mut self) {
        let Running { model, subject, optimizers, loss, batch, control, .. } = self;
        let value = step(model, subject, optimizers, loss, batch, 1.0, control.as_ref());
        if let Device::Cpu = value.device() {
            self.last_loss = value.data::<f32>()[0];
        }
    }

    /// A step that diverged updates nothing, and takes less time than one that learns.
    fn check(&self, steps: usize) -> Result<()> {
        self.batch.labels().device().check()?;
        let diverged = self.control.as_ref().is_some_and(|control| control.values().diverged != 0);
        if diverged || !self.last_loss.is_finite() {
            return Err(Error::Diverged { loss: f32::NAN, step: steps, epoch: 1, last_checkpoint: None });
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::gpu::Gpu;
    use crate::gpu::plan::tests::check;

    /// Memory plans of steps as they are: buffers that live at the same time never overlap, and little is wasted.
    #[test]
    fn the_memory_of_steps_is_planned() {
        let gpu = Gpu::emulator(1).unwrap();
        let settings = |precision| Settings {
            device: Device::Gpu(gpu),
            precision,
            networks: Vec::new(),
            image_sizes: vec![8],
            batch_size: Some(3),
            sources: Vec::new(),
            passes: Vec::new(),
            filter: None,
            rounds: None,
            cache: None,
            is_fused: true,
        };
        for precision in [DType::TF32, DType::BF16] {
            let cases = cases(&settings(precision), &["resnet8".to_string()], &[2, 3], Scale::Tiny).unwrap();
            assert_eq!(cases.len(), 3);
            for case in cases {
                let plan = (case.what == What::Learning).then(|| merge::plan(&case.graph, case.sources));
                let mut running = Running::new(&case, Device::Gpu(gpu), plan).unwrap();
                let first = gpu.trace(|| running.step());
                let later = gpu.trace(|| running.step());
                assert!(later.lives.len() > 50, "{}", case.name());
                assert_eq!(first.plan, later.plan, "{}: tables and moments are no part of it", case.name());
                check(&later.lives, &later.plan);
                let (arena, live) = (later.plan.arena() as f64, later.plan.peak_live() as f64);
                assert!(live / arena > 0.9, "{}: {live} bytes in {arena}", case.name());
                let graph = gpu.capture_planned(&later.plan, || running.step()).unwrap();
                assert_eq!((gpu.misfits(), graph.work()), (0, &later.work[..]), "{}", case.name());
            }
        }
        gpu.check().unwrap();
    }
}
