//! Gradients of the tape in `f64` against central differences, and the tape's `f32` against its `f64`.

use medmerge::merge::{BatchNormPolicy, Constraint, Granularity};
use medmerge::nn::Mode;
use medmerge::tape::{Tape, Var};
use medmerge::tensor::{DType, Tensor};

use crate::common::{assert_close, normalized_error};
use crate::graphs::{self, Graph, random};

/// Step of the differences. They err by 10⁻¹² of truncation and 10⁻¹⁰ of rounding, beside outputs of order 1.
const STEP: f64 = 1e-6;
/// Relative to the norm of a leaf's gradient, which may be a hundredth of the outputs.
const DIFFERENCES: f64 = 1e-7;
/// A few ops in `f32`; cancellation in gradients costs a digit.
const SINGLE: f64 = 5e-6;

/// The product of `y` with fixed random numbers, or `y` itself where it is a loss already.
pub fn dot(tape: &mut Tape, y: &Var) -> Var {
    if y.shape().len() == 1 {
        return y.clone();
    }
    let cotangent = random(y.shape(), 99).cast(y.value().dtype());
    let id = y.id();
    let value = dot_value(y.value());
    let value = Tensor::scalar(value).cast(y.value().dtype());
    tape.record(value, &[id], || {
        Box::new(move |_seed, gradients| gradients.contribute(id.unwrap(), |dy| dy.copy_from(&cotangent)))
    })
}

fn dot_value(y: &Tensor) -> f64 {
    y.to_f64().iter().zip(random(y.shape(), 99).to_f64()).map(|(y, c)| y * c).sum()
}

/// The gradients of all leaves.
pub fn gradients(graph: &Graph, leaves: &[Tensor]) -> Vec<Vec<f64>> {
    let mut tape = Tape::new();
    let leaves: Vec<Var> = leaves.iter().map(|leaf| tape.leaf(leaf.clone())).collect();
    let y = (graph.build)(&mut tape, &leaves);
    let loss = dot(&mut tape, &y);
    let mut gradients = tape.backward(loss);
    leaves.iter().map(|leaf| gradients.take(leaf).expect("a gradient").to_f64()).collect()
}

fn output(graph: &Graph, leaves: &[Tensor]) -> Vec<f64> {
    let leaves: Vec<Var> = leaves.iter().map(|leaf| Var::constant(leaf.clone())).collect();
    (graph.build)(&mut Tape::new(), &leaves).value().to_f64()
}

/// d(loss)/d(element) of a leaf, by the two outputs' difference, in which unmoved outputs cancel exactly.
fn difference(graph: &Graph, leaf: usize, element: usize) -> f64 {
    let moved = |by: f64| {
        let mut leaves = graph.leaves.clone();
        leaves[leaf] = leaves[leaf].copy();
        leaves[leaf].view_mut().data::<f64>()[element] += by;
        output(graph, &leaves)
    };
    let (up, down) = (moved(STEP), moved(-STEP));
    let cotangent = if up.len() == 1 { vec![1.0] } else { random([up.len()], 99).to_f64() };
    up.iter().zip(down).zip(cotangent).map(|((u, d), c)| (u - d) * c).sum::<f64>() / (2.0 * STEP)
}

/// Checks every element of every leaf, or every `stride`-th. Returns the worst error.
fn check(graph: &Graph, stride: usize) -> f64 {
    let mut worst = 0f64;
    for (leaf, gradient) in gradients(graph, &graph.leaves).into_iter().enumerate() {
        let picked = (0..gradient.len()).step_by(stride);
        let expected: Vec<f64> = picked.clone().map(|element| difference(graph, leaf, element)).collect();
        let actual: Vec<f64> = picked.map(|element| gradient[element]).collect();
        assert_close(&actual, &expected, DIFFERENCES, &format!("{}: gradient of leaf {leaf}", graph.name));
        worst = worst.max(normalized_error(&actual, &expected));
    }
    worst
}

fn report(what: &str, worst: f64) {
    println!("{what}: at worst a normalised error of {worst:.1e}");
}

#[test]
fn of_every_op() {
    let worst = graphs::ops().map(|graph| check(&graph, 1)).fold(0.0, f64::max);
    report("ops against differences", worst);
}

#[test]
fn of_a_network() {
    for mode in [Mode::Training, Mode::Inference] {
        report("resnet8 against differences", check(&graphs::network(mode), 3));
    }
}

#[test]
fn of_a_merged_network() {
    let mut worst = 0f64;
    for (granularity, constraint, sources) in [
        (Granularity::Model, Constraint::Affine, 2),
        (Granularity::Model, Constraint::Free, 3),
        (Granularity::Layer, Constraint::Simplex, 3),
        (Granularity::Layer, Constraint::Clamp, 2),
        (Granularity::Filter, Constraint::Affine, 3),
        (Granularity::Filter, Constraint::Free, 2),
        (Granularity::Kernel, Constraint::Affine, 2),
        (Granularity::Kernel, Constraint::Simplex, 2),
    ] {
        worst = worst.max(check(&graphs::merged_network(granularity, constraint, sources), 1));
    }
    report("merged resnet8 against differences", worst);
}

#[test]
fn of_a_network_whose_merge_is_learned_on() {
    let mut worst = 0f64;
    for (granularity, constraint, batch_norm) in [
        (Granularity::Filter, Constraint::Affine, BatchNormPolicy::Merge),
        (Granularity::Layer, Constraint::Simplex, BatchNormPolicy::Anchor),
        (Granularity::Kernel, Constraint::Free, BatchNormPolicy::Merge),
    ] {
        worst = worst.max(check(&graphs::changed_network(granularity, constraint, batch_norm), 5));
    }
    report("resnet8 with its merge learned on, against differences", worst);
}

/// The dispatch on the dtype, with everything around the passes that `parity` compares one by one.
#[test]
fn in_f32_as_in_f64() {
    let mut worst = 0f64;
    let networks = [Mode::Training, Mode::Inference].map(graphs::network);
    for graph in graphs::ops().chain(networks) {
        let rounded: Vec<Tensor> = graph.leaves.iter().map(|leaf| leaf.cast(DType::F32)).collect();
        let exact: Vec<Tensor> = rounded.iter().map(|leaf| leaf.cast(DType::F64)).collect();
        let results = |leaves: &[Tensor]| [vec![output(&graph, leaves)], gradients(&graph, leaves)].concat();
        for (actual, expected) in results(&rounded).iter().zip(results(&exact)) {
            assert_close(actual, &expected, SINGLE, &graph.name);
            worst = worst.max(normalized_error(actual, &expected));
        }
    }
    report("f32 against f64", worst);
}
