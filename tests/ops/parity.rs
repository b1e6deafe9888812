//! Every pass against the reference in `f64`, on the same inputs, on every device there is.

use medmerge::ops::cases;
use medmerge::ops::softmax_cross_entropy::forward_backward;
use medmerge::selftest::{OPS, Op, OpReport, Outcome};
use medmerge::tensor::{DType, Device, Integers, Tensor};

use crate::common::{Numbers, assert_close};

#[track_caller]
fn assert_passed(report: OpReport) {
    for worst in &report.errors {
        let (op, dtype, error, pass) = (report.op, worst.dtype, worst.error, &worst.pass);
        println!("{op} in {dtype}: at worst a normalised error of {error:.1e}, in {pass}");
    }
    assert_eq!(report.outcome, Outcome::Passed, "{}", report.op);
    assert!(!report.errors.is_empty(), "{}: nothing was checked", report.op);
}

fn check(op: &str, device: Device, dtype: DType) {
    assert_passed(Op::named(op).unwrap().check(device, &[dtype]));
}

/// A test per op and dtype, on the CPU and on the emulator. Ops behind `single` have no activations, or some that are
/// always `f32`; those behind `tensor_cores` are `stored` ones for which tf32 is not `f32`.
macro_rules! ops {
    (stored { $($stored:ident)* } single { $($single:ident)* } tensor_cores { $($matrix:ident)* }) => {
        const STORED: &[&str] = &[$(stringify!($stored)),*];
        const SINGLE: &[&str] = &[$(stringify!($single)),*];
        const TENSOR_CORES: &[&str] = &[$(stringify!($matrix)),*];

        mod cpu {
            use super::*;
            $(#[test] fn $stored() { check(stringify!($stored), Device::Cpu, DType::F32); })*
            $(#[test] fn $single() { check(stringify!($single), Device::Cpu, DType::F32); })*
        }

        #[cfg(feature = "emulator")]
        mod emulator {
            use super::*;

            fn emulator() -> Device {
                Device::Gpu(medmerge::gpu::Gpu::emulator(1).unwrap())
            }

            mod f32 {
                use super::*;
                $(#[test] fn $stored() { check(stringify!($stored), emulator(), DType::F32); })*
                $(#[test] fn $single() { check(stringify!($single), emulator(), DType::F32); })*
            }

            mod tf32 { use super::*; $(#[test] fn $matrix() { check(stringify!($matrix), emulator(), DType::TF32); })* }
            mod bf16 { use super::*; $(#[test] fn $stored() { check(stringify!($stored), emulator(), DType::BF16); })* }
            mod f16 { use super::*; $(#[test] fn $stored() { check(stringify!($stored), emulator(), DType::F16); })* }
        }
    };
}

ops! {
    stored { convert conv2d batch_norm pool pointwise dropout concat gram merge }
    single { linear constraint softmax_cross_entropy soft_cross_entropy optimizer }
    tensor_cores { conv2d }
}

#[test]
fn every_op_of_the_table_is_tested() {
    for op in OPS {
        let differs_in = |dtype| (op.passes)().iter().any(|pass| pass.differs_in(dtype));
        assert!(if differs_in(DType::BF16) { STORED } else { SINGLE }.contains(&op.name), "{}", op.name);
        assert_eq!(differs_in(DType::TF32), TENSOR_CORES.contains(&op.name), "{}", op.name);
    }
    assert_eq!(OPS.len(), STORED.len() + SINGLE.len());
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

/// By hand: two logits `d` apart cost `log(1 + e^∓d)`, however large they are.
#[test]
fn cross_entropy_of_huge_logits() {
    for (logits, expected) in
        [([1e4f64, 1e4 - 1.0], (1f64 + (-1f64).exp()).ln()), ([-1e4, 1e4], 2e4), ([1e4, -1e4], 0.0)]
    {
        let z = Tensor::from_vec(logits.to_vec(), [1, 2]);
        let [mut value, mut gradient] = [1, 2].map(|len| Tensor::uninit([1, len], DType::F64, Device::Cpu));
        let labels = Integers::from_vec(vec![0]);
        forward_backward(&Default::default(), &z, &labels, value.view_mut(), gradient.view_mut(), None);
        // An ulp of 10⁴ is 2·10⁻¹².
        assert!((value.to_f64()[0] - expected).abs() <= 1e-11, "{logits:?}: {value:?}");
        let p = 1.0 / (1.0 + (logits[1] - logits[0]).exp());
        assert_close(&gradient.to_f64(), &[p - 1.0, 1.0 - p], 1e-11, "gradient");
    }
}
