//! Every pass against the reference in `f64`, on the same inputs, on every device there is.

use medmerge::ops::cases;
use medmerge::ops::softmax_cross_entropy::forward_backward;
use medmerge::selftest::{OPS, Op, OpReport, Outcome};
use medmerge::tensor::{DType, Device, Tensor};

use crate::common::{Numbers, assert_close, normalized_error};

#[track_caller]
fn assert_passed(report: OpReport) {
    for worst in &report.errors {
        let (op, dtype, error, pass) = (report.op, worst.dtype, worst.error, &worst.pass);
        println!("{op} in {dtype}: at worst a normalised error of {error:.1e}, in {pass}");
    }
    assert_eq!(report.outcome, Outcome::Passed, "{}", report.op);
}

fn check(op: &str, device: Device, dtype: DType) {
    assert_passed(Op::named(op).unwrap().check(device, &[dtype]));
}

/// A test per op and dtype, on the CPU and on the emulator.
macro_rules! ops {
    ($($op:ident)*) => {
        /// In the order of the table.
        const TESTED: &[&str] = &[$(stringify!($op)),*];

        mod cpu {
            use super::*;
            $(#[test] fn $op() { check(stringify!($op), Device::Cpu, DType::F32); })*
        }

        #[cfg(feature = "emulator")]
        mod emulator {
            use super::*;

            fn emulator() -> Device {
                Device::Gpu(medmerge::gpu::Gpu::emulator(1).unwrap())
            }

            mod f32 { use super::*; $(#[test] fn $op() { check(stringify!($op), emulator(), DType::F32); })* }
            mod bf16 { use super::*; $(#[test] fn $op() { check(stringify!($op), emulator(), DType::BF16); })* }
            mod f16 { use super::*; $(#[test] fn $op() { check(stringify!($op), emulator(), DType::F16); })* }
        }
    };
}

ops! { convert conv2d batch_norm pool pointwise concat linear merge constraint optimizer }

#[test]
fn every_op_of_the_table_is_tested() {
    assert!(OPS.iter().map(|op| op.name).eq(TESTED.iter().copied()));
}

/// All ops on the first GPU. One that is asked for by MEDMERGE_REQUIRE_DEVICE=cuda has to be there.
#[test]
fn cuda() {
    match medmerge::gpu::Gpu::cuda(0) {
        Ok(gpu) => {
            let device = Device::Gpu(gpu);
            let mut failed = Vec::new();
            let report = |report: OpReport| {
                println!("{report:?}");
                if report.outcome != Outcome::Passed {
                    failed.push(report);
                }
            };
            let ops: Vec<&Op> = OPS.iter().collect();
            medmerge::selftest::run(device, device.dtypes(), &ops, report).unwrap();
            assert!(failed.is_empty(), "{failed:#?}");
        }
        Err(failure) => {
            let required = std::env::var("MEDMERGE_REQUIRE_DEVICE").is_ok_and(|devices| devices.contains("cuda"));
            assert!(!required, "a GPU is required: {failure}");
            println!("not run: {failure}");
        }
    }
}

/// References to several buffers.
fn slices(buffers: &[Vec<f32>]) -> Vec<&[f32]> {
    buffers.iter().map(Vec::as_slice).collect()
}

/// The blend runs in the reference's order without fused operations, so any numbers give its bits.
#[test]
fn a_blend_has_the_bits_of_the_reference() {
    for case in cases::MERGE {
        let (table, mut numbers) = (case.table(), Numbers(1));
        let mut draw = |len: usize| crate::common::f32s(&numbers.reals(len));
        let sources: Vec<Vec<f32>> = (0..case.sources).map(|_| draw(case.arena_len)).collect();
        let alpha = draw(case.sources * case.alphas);
        let [mut fast, mut plain] = [0; 2].map(|_| vec![f32::NAN; case.arena_len]);
        medmerge::ops::merge::cpu::blend(&table, &slices(&sources), &alpha, &mut fast);
        medmerge::ops::merge::reference::blend(&table, &slices(&sources), &alpha, &mut plain);
        assert!(fast.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", case.name);
    }
}

/// Loss and gradient in `f32`, whose sums run in `f64`: only inputs and results are rounded.
#[test]
fn cross_entropy() {
    let tolerance = 1e-7;
    let mut worst = 0f64;
    for (index, case) in cases::CROSS_ENTROPY.iter().enumerate() {
        let mut numbers = Numbers(index as u64);
        let logits: Vec<f32> = numbers.reals(case.n * case.classes).iter().map(|v| (v * case.scale) as f32).collect();
        let logits = Tensor::from_vec(logits, [case.n, case.classes]);
        let labels: Vec<u32> = (0..case.n).map(|_| (numbers.next() % case.classes as u64) as u32).collect();
        let run = |dtype| forward_backward(&case.loss(), &logits.cast(dtype), &labels);
        let ((loss, gradient), (expected, expected_gradient)) = (run(DType::F32), run(DType::F64));
        for (actual, expected) in [(loss, expected), (gradient, expected_gradient)] {
            assert_close(&actual.to_f64(), &expected.to_f64(), tolerance, &format!("{case:?}"));
            worst = worst.max(normalized_error(&actual.to_f64(), &expected.to_f64()));
        }
    }
    println!("cross-entropy: at worst a normalised error of {worst:.1e}");
}

/// By hand: two logits `d` apart cost `log(1 + e^∓d)`, however large they are.
#[test]
fn cross_entropy_of_huge_logits() {
    for (logits, expected) in
        [([1e4f64, 1e4 - 1.0], (1f64 + (-1f64).exp()).ln()), ([-1e4, 1e4], 2e4), ([1e4, -1e4], 0.0)]
    {
        let (loss, gradient) = forward_backward(&Default::default(), &Tensor::from_vec(logits.to_vec(), [1, 2]), &[0]);
        // An ulp of 10⁴ is 2·10⁻¹².
        assert!((loss.to_f64()[0] - expected).abs() <= 1e-11, "{logits:?}: {loss:?}");
        let p = 1.0 / (1.0 + (logits[1] - logits[0]).exp());
        assert_close(&gradient.to_f64(), &[p - 1.0, 1.0 - p], 1e-11, "gradient");
    }
}
