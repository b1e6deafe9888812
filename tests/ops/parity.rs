//! Every pass on the CPU in `f32` against the reference in `f64`, on the same inputs.

use medmerge::ops::cases;
use medmerge::ops::softmax_cross_entropy::forward_backward;
use medmerge::tensor::{DType, Tensor};

use crate::common::{Numbers, assert_close, normalized_error};
use crate::pass::Pass;
use crate::passes;

fn check(op: &str, passes: impl Iterator<Item = Pass>) {
    let mut worst = (0.0, String::new());
    for pass in passes {
        pass.check_integers();
        pass.check_not_finite();
        let error = pass.check_reals();
        if error > worst.0 {
            worst = (error, pass.name);
        }
    }
    println!("{op}: at worst a normalised error of {:.1e}, in {}", worst.0, worst.1);
}

#[test]
fn conv2d() {
    check("conv2d", passes::conv2d());
}

#[test]
fn merge() {
    check("merge", passes::merge());
}

#[test]
fn batch_norm() {
    check("batch norm", passes::batch_norm());
}

#[test]
fn pool() {
    check("pool", passes::pools());
}

#[test]
fn pointwise() {
    check("pointwise", passes::pointwise());
}

#[test]
fn concat() {
    check("concat", passes::concat());
}

#[test]
fn linear() {
    check("linear", passes::linear());
}

#[test]
fn optimizer() {
    check("optimizer", passes::optimizer());
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
        medmerge::ops::merge::cpu::blend(&table, &crate::pass::slices(&sources), &alpha, &mut fast);
        medmerge::ops::merge::reference::blend(&table, &crate::pass::slices(&sources), &alpha, &mut plain);
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
