//! Which tile suits each convolution on tensor cores: all of them timed, on this GPU, with what a training step lets their kernels do
//! besides.

use super::conv::ConvCase;
use super::measure::Clock;
use super::report;
use crate::error::Result;
use crate::ops::conv2d::hopper;
use crate::ops::conv2d::tiles::{self, Key, MeasuredTiling, Tiling, with_choice};
use crate::report::Table;
use crate::tensor::Device;

/// The time that a pass of a convolution takes with one choice.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub choice: Tiling,
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

/// Times every choice for a convolution; `None` if it has none: it does not run on tensor cores, or this GPU has
/// kernels of its own for it.
pub(super) fn tune(case: &ConvCase, clock: &Clock) -> Result<Option<Tuned>> {
    let (convolution, pass, dtype) = case.what();
    let Some(g) = tiles::on_tensor_cores(convolution, pass, dtype) else { return Ok(None) };
    if let Device::Gpu(gpu) = clock.device
        && gpu.description().warpgroups
        && hopper::choice(convolution, pass, dtype).is_some()
    {
        return Ok(None);
    }
    let timed = |choice| -> Result<Timed> {
        Ok(Timed { choice, seconds: with_choice(choice, || case.time_in_step(clock))?.median })
    };
    let ruled = timed(tiles::choose(&g, pass, dtype))?;
    let mut best = ruled;
    for choice in tiles::candidates(&g, pass, dtype).into_iter().filter(|&choice| choice != ruled.choice) {
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
