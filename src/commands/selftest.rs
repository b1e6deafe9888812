//! `selftest`: every op on a device, against its definition.

use serde_json::{Map, Value, json};

use medmerge::error::{Error, Result};
use medmerge::selftest::{self, OPS, Op, OpReport, Outcome};

use super::place;
use crate::cli::{Global, Selftest};

pub fn run(options: &Selftest, global: &Global) -> Result<()> {
    let ops: Vec<&Op> = match options.ops.as_slice() {
        [] => OPS.iter().collect(),
        names => names.iter().map(|name| Op::named(name)).collect::<Result<_>>()?,
    };
    let device = place::open(global)?.device;
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    let passed = selftest::run(device, device.dtypes(), &ops, |report| {
        if report.outcome != Outcome::Passed {
            failed.push(report.op.to_string());
        }
        if !global.json {
            println!("{}", line(&report));
        }
        lines.push(object(&report));
    })?;
    if global.json {
        println!("{:#}", json!({"device": device.to_string(), "passed": passed, "ops": lines}));
    }
    // What stopped the device says more than the ops that it did not run.
    device.check()?;
    if passed { Ok(()) } else { Err(Error::Selftest { device: device.to_string(), ops: failed }) }
}

/// `conv2d         51 cases   f32 3.1e-7   bf16 2.2e-3   f16 3.0e-4   bitwise on integers   ok`
fn line(report: &OpReport) -> String {
    let name = report.op;
    match &report.outcome {
        Outcome::Failed(wrong) => format!("{name:<12} FAILED: {wrong}"),
        Outcome::NotRun => format!("{name:<12} not run: the device has failed"),
        Outcome::Passed => {
            let errors = report.errors.iter().map(|worst| format!("{} {:.1e}   ", worst.dtype, worst.error));
            let bits = if report.compares_bits { "bitwise on integers   " } else { "" };
            format!("{name:<12} {:>3} cases   {}{bits}ok", report.cases, errors.collect::<String>())
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
        "bitwise_on_integers": report.compares_bits,
    })
}
