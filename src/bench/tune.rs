//! Which tile suits each convolution on tensor cores: all of them timed, on this GPU, with what a training step lets their kernels do
//! besides.

use super::conv::ConvCase;
use super::measure::Clock;
use super::report;
use crate::error::Result;
use crate::ops::conv2d::hopper;
use crate::ops::conv2d::tiles::{self, Choice, Key, MeasuredTiling};
use crate::report::Table;
use crate::tensor::Device;

/// The time that a pass of a convolution takes with one choice.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub choice: Choice,
    /// The median.
    pub seconds: f64,
}

/// The result of tuning a pass of a convolution.
#[derive(Clone, Debug)]
pub struct Tuned {
    pub name: String,
    /// The choice that it would get otherwise.
    pub ruled: Timed,
    /// The fastest, and for which sizes.
    pub best: Timed,
    pub entry: MeasuredTiling,
}

/// Times every choice for a convolution; `None` if it has none: it does not run on tensor cores.
pub(super) fn tune(case: &ConvCase, clock: &Clock) -> Result<Option<Tuned>> {
    let (convolution, pass, dtype) = case.what();
    let Some(g) = tiles::on_tensor_cores(convolution, pass, dtype) else { return Ok(None) };
    let of_warps = Choice::OfWarps(tiles::choose(&g, pass, dtype));
    let has_warpgroups = matches!(clock.device, Device::Gpu(gpu) if gpu.description().warpgroups);
    // Where there are kernels of warpgroups, the others take part with their own rule's choice.
    let (ruled, others) = match hopper::choice(convolution, pass, dtype).filter(|_| has_warpgroups) {
        Some(tiling) => {
            let wide = hopper::candidates(&g, pass, dtype).into_iter().map(Choice::OfWarpgroups);
            (Choice::OfWarpgroups(tiling), wide.chain([of_warps]).collect())
        }
        None => {
            let all: Vec<Choice> = tiles::candidates(&g, pass, dtype).into_iter().map(Choice::OfWarps).collect();
            (of_warps, all)
        }
    };
    let timed = |choice: Choice| -> Result<Timed> {
        Ok(Timed { choice, seconds: choice.force(|| case.time_in_step(clock))?.median })
    };
    let ruled = timed(ruled)?;
    let mut best = ruled;
    for choice in others.into_iter().filter(|&choice| choice != ruled.choice) {
        let candidate = timed(choice)?;
        if candidate.seconds < best.seconds {
            best = candidate;
        }
    }
    let entry = MeasuredTiling { key: Key::new(&g, pass, dtype), choice: best.choice };
    Ok(Some(Tuned { name: case.name(), ruled, best, entry }))
}

/// A line for each convolution: the choice of the rule, the fastest, and how much faster it is.
pub fn table(all: &[Tuned]) -> Table {
    let mut table = Table::new(["convolution", "rule", "time", "fastest", "time", "gain"]);
    for Tuned { name, ruled, best, .. } in all {
        table.row([
            name.clone(),
            ruled.choice.to_string(),
            report::seconds(ruled.seconds),
            best.choice.to_string(),
            report::seconds(best.seconds),
            format!("{:.2}×", ruled.seconds / best.seconds),
        ]);
    }
    table
}
