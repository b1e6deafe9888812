//! Every op on a device against its definition in `f64`: one table of passes, for `medmerge selftest` and for the tests.
//!
//! A pass is one direction of an op on one of [`cases`](crate::ops::cases). It calls the op's public function, which
//! runs whatever implementation belongs to where its tensors live; so the same pass gives the reference (`f64` on the
//! CPU) and the result to check. Three checks, each against the reference on the same inputs:
//!
//! * integers give the same bits, where the arithmetic is exact;
//! * random numbers are within a normalised error. What the device stores in 16 bits is rounded before, so that the
//!   reference sees the same inputs, and the rounding of a stored result does not count;
//! * a NaN or an infinity in an input reaches the result.
//!
//! Outputs start as NaN. Around every operand, and in the padding within, lie numbers that may not be read (NaN in
//! inputs) or written (a sentinel in outputs).

mod check;
pub mod numbers;
mod operand;
mod pass;
mod passes;

use std::collections::BTreeSet;

pub use operand::{Input, Layout, Output, Role, Target, Values};
pub use pass::{Kind, Pass, Wrong};
pub use passes::{OPS, Op};

use crate::error::{Error, Result};
use crate::interrupt::{Listener, interrupted};
use crate::tensor::{DType, Device};

/// How an op fared on a device.
#[derive(Clone, Debug)]
pub struct OpReport {
    pub op: &'static str,
    /// Cases, each in one or several passes and dtypes.
    pub cases: usize,
    /// Of the dtypes that the op can store activations as.
    pub errors: Vec<Worst>,
    /// Whether integers were compared bit by bit.
    pub compares_bits: bool,
    pub outcome: Outcome,
}

/// The largest normalised error, and where.
#[derive(Clone, Debug)]
pub struct Worst {
    pub dtype: DType,
    pub error: f64,
    pub pass: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Passed,
    /// The first check that failed.
    Failed(Wrong),
    /// The device had failed before.
    NotRun,
}

impl Device {
    /// What activations can be stored as.
    pub fn dtypes(self) -> &'static [DType] {
        match self {
            Device::Cpu => &[DType::F32],
            Device::Gpu(_) => &[DType::F32, DType::BF16, DType::F16],
        }
    }
}

impl Op {
    pub fn named(name: &str) -> Result<&'static Op> {
        let known = || OPS.iter().map(|op| op.name);
        OPS.iter().find(|op| op.name == name).ok_or_else(|| Error::unknown("op", name, known()))
    }

    /// Runs all passes of the op with activations of each of `dtypes`, until one fails.
    pub fn check(&self, device: Device, dtypes: &[DType]) -> OpReport {
        let passes = (self.passes)();
        let cases: BTreeSet<&str> = passes.iter().map(|pass| pass.case.as_str()).collect();
        let mut report = OpReport {
            op: self.name,
            cases: cases.len(),
            errors: Vec::new(),
            compares_bits: passes.iter().any(|pass| pass.is_exact),
            outcome: Outcome::Passed,
        };
        for &dtype in dtypes {
            let mut worst = None;
            for pass in passes.iter().filter(|pass| pass.differs_in(dtype)) {
                if interrupted() {
                    return report;
                }
                match pass.check(Target { device, dtype }) {
                    Ok(error) => {
                        let worst = worst.get_or_insert(Worst { dtype, error, pass: pass.name() });
                        if error > worst.error {
                            (worst.error, worst.pass) = (error, pass.name());
                        }
                    }
                    Err(wrong) => {
                        report.outcome = Outcome::Failed(wrong);
                        return report;
                    }
                }
            }
            report.errors.extend(worst);
        }
        report
    }
}

/// Checks `ops` one by one and reports each when it is done. Whether all passed; an op that fails, or panics, does not
/// keep the others from running, but a failure of the device does.
pub fn run(device: Device, dtypes: &[DType], ops: &[&'static Op], mut report: impl FnMut(OpReport)) -> Result<bool> {
    let _listener = Listener::new();
    let mut passed = true;
    for op in ops {
        let of_op = match device.check() {
            Ok(()) => op.check(device, dtypes),
            Err(_) => {
                OpReport { op: op.name, cases: 0, errors: Vec::new(), compares_bits: false, outcome: Outcome::NotRun }
            }
        };
        if interrupted() {
            return Err(Error::Interrupted { kept: None });
        }
        passed &= of_op.outcome == Outcome::Passed;
        report(of_op);
    }
    Ok(passed)
}
