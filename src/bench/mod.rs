//! Benchmarks of this engine on one machine: whole-network merges, convolutions, and training and learning steps.
//!
//! Each row tells the median time and its spread, the bytes and operations that the op's own contract counts
//! ([`Cost`]), and the share that is reached of what this machine can do: its bandwidth for the same mix of
//! reads and writes, or its rate of multiplications in the row's precision, whichever takes longer. These limits are measured first, in the same run
//! and by the same clock.

mod conv;
pub mod data;
pub mod division;
pub mod limits;
pub mod measure;
mod merge;
mod numbers;
pub mod report;
pub mod scaling;
pub mod shapes;
mod step;
pub mod tune;

use std::fmt;

pub use limits::{Bound, Limits};
pub use measure::{Timing, is_emulated};
pub use merge::plan;
pub use numbers::{random, random_tensor};
pub use report::{Comparison, KernelFigures, Machine, Report, Row};

use crate::error::{Error, Result};
use crate::interrupt::{Listener, interrupted};
use crate::ops::Cost;
use crate::ops::conv2d::Pass;
use crate::tensor::{DType, Device};
use measure::Clock;
use shapes::Scale;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    Merge,
    Conv,
    Step,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Suite::Merge => "merge",
            Suite::Conv => "conv",
            Suite::Step => "step",
        })
    }
}

/// The choice of what to measure. An empty list, or `None`, leaves it to [`shapes`].
#[derive(Clone, Debug)]
pub struct Settings {
    pub device: Device,
    /// Precision of activations; merging is f32.
    pub precision: DType,
    /// Whether the layers of a step run joined into stages.
    pub is_fused: bool,
    pub networks: Vec<String>,
    pub image_sizes: Vec<usize>,
    pub batch_size: Option<usize>,
    pub sources: Vec<usize>,
    pub passes: Vec<Pass>,
    /// Only rows whose name contains this.
    pub filter: Option<String>,
    pub rounds: Option<usize>,
    /// Bytes of the last-level cache; `None` as the system says.
    pub cache: Option<u64>,
}

/// The most images, pixels a side, sources and rounds.
const MOST_IMAGES: usize = 1 << 16;
const MOST_PIXELS: usize = crate::data::MAX_SIZE;
const MOST_SOURCES: usize = 64;
const MOST_ROUNDS: usize = 1000;

impl Settings {
    fn image_sizes(&self, scale: Scale) -> &[usize] {
        if self.image_sizes.is_empty() { scale.image_sizes() } else { &self.image_sizes }
    }

    fn check(&self, suite: Suite) -> Result<()> {
        let of = |range: std::ops::RangeInclusive<usize>, option: &str, values: &[usize]| match values
            .iter()
            .find(|value| !range.contains(value))
        {
            None => Ok(()),
            Some(value) => Err(Error::usage(
                format!("--{option} {value}"),
                format!("give a number from {} to {}", range.start(), range.end()),
            )),
        };
        of(1..=MOST_PIXELS, "image-size", &self.image_sizes)?;
        of(1..=MOST_IMAGES, "batch-size", self.batch_size.as_slice())?;
        of(2..=MOST_SOURCES, "sources", &self.sources)?;
        of(1..=MOST_ROUNDS, "rounds", self.rounds.as_slice())?;
        if self.cache.is_some() && self.device != Device::Cpu {
            return Err(Error::usage("--cache-mib is of the CPU's cache", "leave it out"));
        }
        if suite == Suite::Merge && self.precision != DType::F32 {
            return Err(Error::usage(
                format!("merging is f32, not {}", self.precision),
                "leave --precision out; it is the precision of activations",
            ));
        }
        Ok(())
    }

    /// Bytes of the last-level cache, or more.
    pub fn cache(&self) -> u64 {
        self.cache.unwrap_or_else(|| measure::cache(self.device))
    }

    fn scale(&self) -> Scale {
        match self.device {
            Device::Cpu => Scale::Cpu,
            Device::Gpu(_) if is_emulated(self.device) => Scale::Tiny,
            Device::Gpu(_) => Scale::Gpu,
        }
    }

    /// Enough for quartiles, and for people who wait.
    fn rounds(&self, suite: Suite) -> usize {
        self.rounds.unwrap_or(match (self.scale(), suite) {
            (Scale::Gpu, _) => 31,
            (Scale::Cpu, Suite::Step) => 5,
            (Scale::Cpu, _) => 11,
            (Scale::Tiny, _) => 3,
        })
    }
}

/// One row to be.
enum Case {
    Merge(merge::MergeCase),
    Conv(conv::ConvCase),
    Step(step::StepCase),
}

/// The result of a case, before it is compared with anything.
struct Measured {
    row: Row,
    timing: Timing,
    /// Costs of what must be done one after the other.
    costs: Vec<Cost>,
    /// Precision of the operands.
    precision: DType,
}

impl Case {
    fn name(&self) -> String {
        match self {
            Case::Merge(case) => case.name(),
            Case::Conv(case) => case.name(),
            Case::Step(case) => case.name(),
        }
    }

    fn measure(&self, clock: &Clock) -> Result<Measured> {
        match self {
            Case::Merge(case) => case.measure(clock),
            Case::Conv(case) => case.measure(clock),
            Case::Step(case) => case.measure(clock),
        }
    }
}

/// Rows that can be measured: the names are right, and there is at least one.
pub struct Bench {
    clock: Clock,
    cases: Vec<Case>,
}

impl Bench {
    pub fn new(suite: Suite, settings: &Settings) -> Result<Bench> {
        settings.check(suite)?;
        let scale = settings.scale();
        let or = |given: &[String], known: &[&str]| match given {
            [] if scale == Scale::Tiny => vec!["resnet8".to_string()],
            [] => known.iter().map(|name| name.to_string()).collect(),
            given => given.to_vec(),
        };
        let sources =
            |known: &[usize]| if settings.sources.is_empty() { known.to_vec() } else { settings.sources.clone() };
        let all: Vec<Case> = match suite {
            Suite::Merge => merge::cases(&or(&settings.networks, &shapes::NETWORKS), &sources(&shapes::SOURCES))?
                .into_iter()
                .map(Case::Merge)
                .collect(),
            Suite::Conv => conv::cases(settings, &or(&settings.networks, &shapes::CONV_NETWORKS), scale)?
                .into_iter()
                .map(Case::Conv)
                .collect(),
            Suite::Step => {
                let sources = sources(&[shapes::STEP_SOURCES]);
                step::cases(settings, &or(&settings.networks, &shapes::NETWORKS), &sources, scale)?
                    .into_iter()
                    .map(Case::Step)
                    .collect()
            }
        };
        let example = all.first().map(Case::name).unwrap_or_default();
        let filter = settings.filter.as_deref().unwrap_or("");
        let cases: Vec<Case> = all.into_iter().filter(|case| case.name().contains(filter)).collect();
        if cases.is_empty() {
            let hint = match example.as_str() {
                "" => "images need no gradient: the first convolution has no dgrad".to_string(),
                name => format!("names look like '{name}'"),
            };
            return Err(Error::usage(format!("no row's name contains '{filter}'"), hint));
        }
        let clock = Clock { device: settings.device, rounds: settings.rounds(suite), cache: settings.cache() };
        Ok(Bench { clock, cases })
    }

    /// How many rows there will be.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Measures the machine's limits.
    pub fn limits(&self) -> Result<Limits> {
        let _listener = Listener::new();
        let limits = Limits::measure(&self.clock)?;
        self.release()?;
        Ok(limits)
    }

    /// Measures row after row and shows each to `each`. After Ctrl-C, or a failure of the device, those that `each` has
    /// seen are good.
    pub fn run(&self, limits: &Limits, each: &mut dyn FnMut(Row)) -> Result<()> {
        let _listener = Listener::new();
        for case in &self.cases {
            if interrupted() {
                return Err(Error::Interrupted { last_checkpoint: None });
            }
            let measured = case.measure(&self.clock)?;
            self.clock.device.check()?;
            each(finish(case.name(), measured, limits));
            self.release()?;
        }
        Ok(())
    }

    /// Images that the first of these steps takes in a second.
    ///
    /// # Panics
    /// If it is no step.
    pub fn images_per_second(&self) -> Result<f64> {
        let _listener = Listener::new();
        let measured = self.cases[0].measure(&self.clock)?;
        self.clock.device.check()?;
        Ok(measured.row.step.expect("a step").images_per_second)
    }

    /// Counts what each step launches, moves and allocates on a GPU, without running anything.
    pub fn account(&self) -> Result<Vec<Row>> {
        let of_case = |case: &Case| match case {
            Case::Step(case) => Some(case.account()),
            _ => None,
        };
        self.cases.iter().filter_map(of_case).collect()
    }

    /// How each step's convolutions fill so many threads of a CPU; nothing is run.
    pub fn scaling(&self, threads: &[usize]) -> Vec<scaling::Scaling> {
        let of_case = |case: &Case| match case {
            Case::Step(case) => threads.iter().map(|&threads| scaling::of(case, threads)).collect(),
            _ => Vec::new(),
        };
        self.cases.iter().flat_map(of_case).collect()
    }

    /// How each convolution is divided between blocks; nothing is run.
    pub fn divisions(&self) -> Vec<division::Division> {
        let of_case = |case: &Case| match case {
            Case::Conv(case) => Some(division::of(case)),
            _ => None,
        };
        self.cases.iter().filter_map(of_case).collect()
    }

    /// Times every choice of tiles for each convolution that has one, and shows what was found to `each`.
    pub fn tune(&self, each: &mut dyn FnMut(tune::Tuned)) -> Result<()> {
        let _listener = Listener::new();
        for case in &self.cases {
            if interrupted() {
                return Err(Error::Interrupted { last_checkpoint: None });
            }
            let Case::Conv(case) = case else { continue };
            if let Some(tuned) = tune::tune(case, &self.clock)? {
                self.clock.device.check()?;
                each(tuned);
            }
            self.release()?;
        }
        Ok(())
    }

    /// Buffers of one row are of no use to the next.
    fn release(&self) -> Result<()> {
        if let Device::Gpu(gpu) = self.clock.device {
            gpu.release_unused()?;
        }
        Ok(())
    }
}

fn finish(name: String, measured: Measured, limits: &Limits) -> Row {
    let Measured { mut row, timing, costs, precision } = measured;
    if let Some(step) = &mut row.step {
        step.kernels.iter_mut().for_each(|kernel| kernel.limit_seconds = limits.memory_seconds(kernel.cost()));
        step.bytes_seconds = step.bytes.map(|_| step.kernels.iter().map(|kernel| kernel.limit_seconds).sum());
    }
    let cost: Cost = costs.iter().copied().sum();
    let of = |bound: Bound| -> f64 {
        costs
            .iter()
            .map(|&cost| limits.seconds(cost, precision))
            .filter(|(_, by)| *by == bound)
            .map(|(seconds, _)| seconds)
            .sum()
    };
    let (memory, arithmetic) = (of(Bound::Memory), of(Bound::Arithmetic));
    Row {
        name,
        seconds: timing,
        bytes: cost.bytes(),
        flops: cost.flops,
        bytes_per_second: cost.bytes() as f64 / timing.median,
        flops_per_second: cost.flops as f64 / timing.median,
        limit_seconds: memory + arithmetic,
        bound: Some(if memory >= arithmetic { Bound::Memory } else { Bound::Arithmetic }),
        share: (memory + arithmetic) / timing.median,
        ..row
    }
}
