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
mod norm_of_parts;
mod operand;
mod pass;
mod passes;

use std::collections::BTreeSet;

pub use operand::{Execution, Input, Layout, Output, Role, Values};
pub use pass::{Draw, Pass, Wrong};
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
    /// The largest errors in the dtypes that the op can store activations as.
    pub errors: Vec<Worst>,
    /// Whether integers were compared bit by bit.
    pub compares_bits: bool,
    /// How many passes failed, of each dtype in which some did.
    pub failures: Vec<(DType, usize)>,
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
    /// The dtypes that activations can be stored as.
    pub fn dtypes(self) -> &'static [DType] {
        match self {
            Device::Cpu => &[DType::F32],
            Device::Gpu(_) => &[DType::F32, DType::TF32, DType::BF16, DType::F16],
        }
    }
}

impl Op {
    pub fn named(name: &str) -> Result<&'static Op> {
        let known = || OPS.iter().map(|op| op.name);
        OPS.iter().find(|op| op.name == name).ok_or_else(|| Error::unknown("op", name, known()))
    }

    /// Runs all passes of the op with activations of each of `dtypes`, also after one that fails, unless the device fails with it.
    pub fn check(&self, device: Device, dtypes: &[DType]) -> OpReport {
        let mut passes = (self.passes)();
        passes.retain(|pass| dtypes.iter().any(|&dtype| pass.runs_on(Execution { device, dtype })));
        let cases: BTreeSet<&str> = passes.iter().map(|pass| pass.case.as_str()).collect();
        let mut report = OpReport {
            op: self.name,
            cases: cases.len(),
            errors: Vec::new(),
            compares_bits: passes.iter().any(|pass| pass.is_exact),
            failures: Vec::new(),
            outcome: Outcome::Passed,
        };
        for &dtype in dtypes {
            let (mut worst, mut failed) = (None, 0);
            let execution = Execution { device, dtype };
            for pass in passes.iter().filter(|pass| pass.runs_on(execution)) {
                if interrupted() {
                    return report;
                }
                match pass.check(execution) {
                    Ok(error) => {
                        let worst = worst.get_or_insert(Worst { dtype, error, pass: pass.name() });
                        if error > worst.error {
                            (worst.error, worst.pass) = (error, pass.name());
                        }
                    }
                    Err(wrong) => {
                        failed += 1;
                        if report.outcome == Outcome::Passed {
                            report.outcome = Outcome::Failed(wrong);
                        }
                        if device.check().is_err() {
                            report.failures.push((dtype, failed));
                            return report;
                        }
                    }
                }
            }
            report.errors.extend(worst);
            report.failures.extend((failed > 0).then_some((dtype, failed)));
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
            Err(_) => OpReport {
                op: op.name,
                cases: 0,
                errors: Vec::new(),
                compares_bits: false,
                failures: Vec::new(),
                outcome: Outcome::NotRun,
            },
        };
        if interrupted() {
            return Err(Error::Interrupted { last_checkpoint: None });
        }
        passed &= of_op.outcome == Outcome::Passed;
        report(of_op);
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Tensor, TensorMut};

    /// Copies seven numbers, unless `else_do` runs: outside of the reference.
    fn copying(else_do: impl Fn(&Tensor, TensorMut) + Send + Sync + 'static) -> Vec<Pass> {
        let seven = || Layout::dense([7]);
        let pass = Pass::new("y", [Input::unit(seven())], [seven()], move |[x], [y]| {
            if x.dtype() == DType::F64 { y.copy_from(x) } else { else_do(x, y) }
        });
        vec![pass.of("seven numbers").exact()]
    }

    const RIGHT: Op = Op { name: "right", passes: || copying(|x, y| y.copy_from(x)) };
    const WRONG: Op = Op { name: "wrong", passes: || copying(|_, y| y.fill(0.0)) };
    const PANICS: Op = Op { name: "panics", passes: || copying(|_, _| panic!("on purpose")) };

    /// The names and outcomes of what runs, and whether all passed.
    fn outcomes(device: Device, ops: &[&'static Op]) -> (Vec<(&'static str, Outcome)>, bool) {
        let mut outcomes = Vec::new();
        let passed = run(device, device.dtypes(), ops, |report| outcomes.push((report.op, report.outcome))).unwrap();
        (outcomes, passed)
    }

    fn says(outcome: &Outcome, text: &str) -> bool {
        matches!(outcome, Outcome::Failed(wrong) if wrong.contains(text))
    }

    #[test]
    fn an_op_that_fails_does_not_keep_others_from_running() {
        let (outcomes, passed) = outcomes(Device::Cpu, &[&WRONG, &PANICS, &RIGHT]);
        assert!(!passed);
        assert!(says(&outcomes[0].1, "f32 y of seven numbers: integers give 0"), "{outcomes:?}");
        assert!(says(&outcomes[1].1, "f32 y of seven numbers: panicked: on purpose"), "{outcomes:?}");
        assert_eq!(outcomes[2], ("right", Outcome::Passed));
    }

    #[test]
    fn a_report_counts_cases_and_names_the_worst_pass() {
        let report = RIGHT.check(Device::Cpu, &[DType::F32]);
        assert_eq!((report.cases, report.compares_bits), (1, true));
        let [worst] = report.errors.as_slice() else { panic!("{report:?}") };
        assert_eq!((worst.dtype, worst.error, worst.pass.as_str()), (DType::F32, 0.0, "y of seven numbers"));
        assert_eq!(report.failures, []);
    }

    #[test]
    fn the_first_fault_is_told_and_all_are_counted() {
        const SOME: Op = Op {
            name: "some",
            passes: || {
                let passes = [copying(|_, y| y.fill(0.0)), copying(|x, y| y.copy_from(x)), copying(|_, y| y.fill(1.0))];
                passes.into_iter().flatten().enumerate().map(|(i, pass)| pass.of(i)).collect()
            },
        };
        let report = SOME.check(Device::Cpu, &[DType::F32]);
        assert!(says(&report.outcome, "y of 0: integers give 0"), "{report:?}");
        assert_eq!((report.failures.as_slice(), report.errors[0].pass.as_str()), (&[(DType::F32, 2)][..], "y of 1"));
    }

    #[test]
    fn ops_have_names_and_passes_of_their_own() {
        let mut names = BTreeSet::new();
        for op in OPS {
            assert!(names.insert(op.name));
            assert_eq!(Op::named(op.name).unwrap().name, op.name);
            let passes = (op.passes)();
            let unique: BTreeSet<String> = passes.iter().map(Pass::name).collect();
            assert!(!passes.is_empty() && unique.len() == passes.len(), "two passes of {} have one name", op.name);
        }
        assert_eq!(Op::named("conv2").map(|op| op.name).unwrap_err().hint().unwrap(), "did you mean 'conv2d'?");
    }

    #[cfg(feature = "emulator")]
    mod emulator {
        use super::*;
        use crate::gpu::Gpu;
        use crate::tensor::Implementation;

        fn emulator() -> Device {
            Device::Gpu(Gpu::emulator(1).unwrap())
        }

        fn gpu(x: &Tensor) -> crate::gpu::Handle {
            let Implementation::Gpu(gpu) = x.implementation() else { panic!("not on a GPU") };
            gpu
        }

        #[test]
        fn what_is_right_passes_in_every_dtype() {
            assert_eq!(outcomes(emulator(), &[&RIGHT]), (vec![("right", Outcome::Passed)], true));
        }

        /// What tensor cores cut off is more than rounding would leave, and what the tolerance expects: of the deepest sums, a few
        /// times less than it.
        #[test]
        fn sums_that_are_cut_off_stay_within_what_their_depth_allows() {
            let passes = (Op::named("conv2d").unwrap().passes)();
            let pass = passes.iter().find(|pass| pass.name() == "fprop of many channels").unwrap();
            let error = |device: crate::gpu::Handle| {
                let execution = Execution { device: Device::Gpu(device), dtype: DType::TF32 };
                (pass.check(execution).unwrap(), pass.tolerance_on(execution))
            };
            let (rounding, tolerance) = error(Gpu::emulator(1).unwrap());
            assert!(rounding < tolerance && tolerance == 1e-6, "{rounding}");
            let [(ampere, of_ampere), (hopper, of_hopper)] =
                ["sm_80", "sm_90a"].map(|architecture| error(Gpu::emulator_of(architecture, 1).unwrap()));
            assert!(tolerance < hopper && hopper < ampere, "{rounding:e} {hopper:e} {ampere:e}");
            assert!(ampere > of_ampere / 10.0 && hopper > of_hopper / 10.0, "{of_ampere:e} {of_hopper:e}");
        }

        #[test]
        fn what_only_a_gpu_can_do_wrong() {
            const BEYOND: Op = Op {
                name: "beyond",
                passes: || {
                    copying(|x, y| {
                        let (gpu, end) = (gpu(x), y.address().offset(7 * x.dtype().size()));
                        y.copy_from(x);
                        gpu.fill(end, 0, 2);
                    })
                },
            };
            const BEFORE: Op = Op {
                name: "before",
                passes: || {
                    copying(|x, y| {
                        let (gpu, mut start) = (gpu(x), y.address());
                        y.copy_from(x);
                        start.0 -= 2;
                        gpu.fill(start, 0, 2);
                    })
                },
            };
            const INPUT: Op = Op {
                name: "input",
                passes: || {
                    copying(|x, y| {
                        y.copy_from(x);
                        gpu(x).fill(x.address().offset(x.dtype().size()), 0x11, 2);
                    })
                },
            };
            // Rounds to bf16 on the way.
            const TWICE: Op = Op {
                name: "twice",
                passes: || {
                    copying(|x, y| {
                        let dtype = y.dtype();
                        y.copy_from(&x.cast(DType::F32).cast(DType::BF16).cast(DType::F32).cast(dtype));
                    })
                },
            };
            let (outcomes, passed) = outcomes(emulator(), &[&BEYOND, &BEFORE, &INPUT, &TWICE]);
            assert!(!passed);
            assert!(says(&outcomes[0].1, "at 7 of output 0, over padding or beyond it"), "{outcomes:?}");
            assert!(says(&outcomes[1].1, "at -1 of output 0, over padding or beyond it"), "{outcomes:?}");
            assert!(says(&outcomes[2].1, "wrote input 0, at 1"), "{outcomes:?}");
            // Integers survive that.
            assert!(says(&outcomes[3].1, "normalised error"), "{outcomes:?}");
        }

        #[test]
        fn nothing_runs_on_a_device_that_failed() {
            const FAULT: Op =
                Op { name: "fault", passes: || copying(|x, _| gpu(x).fill(crate::gpu::Address::NULL, 0, 4)) };
            let device = emulator();
            let (outcomes, passed) = outcomes(device, &[&RIGHT, &FAULT, &RIGHT]);
            let failure = device.check().unwrap_err();
            assert!(!passed);
            assert_eq!(outcomes[0].1, Outcome::Passed);
            assert!(says(&outcomes[1].1, &failure.to_string()), "{outcomes:?}");
            assert_eq!(outcomes[2].1, Outcome::NotRun);
        }
    }
}
