//! `selftest`: every op on a device, against its definition.

use serde_json::{Map, Value, json};

use medmerge::error::{Error, Result};
use medmerge::selftest::{self, OPS, Op, OpReport, Outcome};

use super::place;
use crate::cli::{Global, Selftest};
use crate::terminal;

pub fn run(options: &Selftest, global: &Global) -> Result<()> {
    let ops: Vec<&Op> = match options.ops.as_slice() {
        [] => OPS.iter().collect(),
        names => names.iter().map(|name| Op::named(name)).collect::<Result<_>>()?,
    };
    let device = place::open(global)?.device;
    let (mut objects, mut failed, mut printed) = (Vec::new(), Vec::new(), Ok(()));
    let passed = selftest::run(device, device.dtypes(), &ops, |report| {
        if report.outcome != Outcome::Passed {
            failed.push(report.op.to_string());
        }
        if !global.json && printed.is_ok() {
            printed = terminal::print(|out| writeln!(out, "{}", line(&report)));
        }
        objects.push(object(&report));
    })?;
    // What stopped the device says more than the ops that it did not run.
    let outcome = match device.check() {
        Err(failure) => Err(Error::Gpu(failure)),
        Ok(()) if !passed => Err(Error::Selftest { device: device.to_string(), ops: failed }),
        Ok(()) => printed,
    };
    if global.json {
        let mut result = json!({"device": device.to_string(), "passed": passed, "ops": objects});
        if let Err(error) = &outcome {
            result["error"] = terminal::of_error(error);
        }
        terminal::print_object(&result)?;
    }
    outcome
}

/// `conv2d                  49 cases   f32 4.2e-7   bf16 2.0e-3   f16 2.7e-4   bitwise on integers   ok`
fn line(report: &OpReport) -> String {
    let name = report.op;
    match &report.outcome {
        Outcome::Failed(wrong) => {
            let others = report.failures.iter().map(|(dtype, passes)| format!("{dtype} {passes}"));
            format!("{name:<22} FAILED: {wrong} (passes that fail: {})", others.collect::<Vec<_>>().join(", "))
        }
        Outcome::NotRun => format!("{name:<22} not run: the device has failed"),
        Outcome::Passed => {
            let errors = report.errors.iter().map(|worst| format!("{} {:.1e}   ", worst.dtype, worst.error));
            let bits = if report.compares_bits { "bitwise on integers   " } else { "" };
            format!("{name:<22} {:>3} cases   {}{bits}ok", report.cases, errors.collect::<String>())
        }
    }
}

fn object(report: &OpReport) -> Value {
    let errors: Map<String, Value> = report
        .errors
        .iter()
        .map(|worst| (worst.dtype.to_string(), json!({"error": worst.error, "pass": worst.pass})))
        .collect();
    let (outcome, wrong) = match &report.outcome {
        Outcome::Passed => ("passed", None),
        Outcome::Failed(wrong) => ("failed", Some(wrong)),
        Outcome::NotRun => ("not run", None),
    };
    json!({
        "op": report.op,
        "outcome": outcome,
        "wrong": wrong,
        "cases": report.cases,
        "errors": errors,
        "failures": report.failures.iter().map(|(dtype, passes)| (dtype.to_string(), json!(passes))).collect::<Map<_, _>>(),
        "bitwise_on_integers": report.compares_bits,
    })
}
