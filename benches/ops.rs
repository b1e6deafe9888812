//! The ops of ResNet-18 on 28-pixel images, batch 128: convolutions in operations per second (`Gelem/s` are GFLOP/s,
//! padding counted), what memory bounds in bytes per second.

mod common;

use std::hint::black_box;

use common::{bytes, empty, numbers};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use medmerge::bench::shapes;
use medmerge::ops::batch_norm::{Source, Then};
use medmerge::ops::conv2d::{dgrad, fprop, wgrad};
use medmerge::ops::pointwise::{add_assign, relu_assign, relu_backward_assign};
use medmerge::tape::{Tape, Var};
use medmerge::tensor::Tensor;

const BATCH: usize = 128;
const CLASSES: usize = 9;
const EPSILON: f64 = 1e-5;

/// The activations of the first stage, which are the largest, and of the last.
const ACTIVATIONS: [(&str, [usize; 4]); 2] = [("layer1", [BATCH, 28, 28, 64]), ("layer4", [BATCH, 4, 4, 512])];

fn convolutions(c: &mut Criterion) {
    let network = shapes::network("resnet18", shapes::stem(shapes::SMALL), CLASSES).expect("a known name");
    for layer in shapes::convolutions(&network, shapes::SMALL, BATCH).expect("images that are large enough") {
        let (geometry, name) = (layer.geometry, &layer.name);
        let (conv, filters) = (geometry.conv, [geometry.k, geometry.r, geometry.s, geometry.group_channels()]);
        let (x, w) = (numbers(geometry.x()), numbers(filters));
        let (dy, mut y, mut dx, mut dw) =
            (numbers(geometry.y()), empty(geometry.y()), empty(x.shape()), empty(w.shape()));
        let mut group = common::group(c, &format!("conv2d/{name}"));
        group.throughput(Throughput::Elements(geometry.flops()));
        group.bench_function("fprop", |b| b.iter(|| fprop(conv, &x, &w, y.view_mut())));
        // Nobody needs the gradient of the images.
        if !layer.is_first {
            group.bench_function("dgrad", |b| b.iter(|| dgrad(conv, &dy, &w, dx.view_mut())));
        }
        group.bench_function("wgrad", |b| b.iter(|| wgrad(conv, &x, &dy, dw.view_mut())));
    }
}

/// Forward reads x for the statistics and again to normalise. Backward reads x and dy for the sums, and again for dx.
fn batch_norm(c: &mut Criterion) {
    for (name, shape) in ACTIVATIONS {
        let (x, channels) = (numbers(shape), shape[3]);
        let (gamma, beta) = (Tensor::from_vec(vec![1f32; channels], [channels]), empty([channels]));
        let forward = || {
            let mut tape = Tape::new();
            let (x, gamma, beta) = (tape.leaf(x.clone()), tape.leaf(gamma.clone()), tape.leaf(beta.clone()));
            let source = Source::Batch { epsilon: EPSILON, running: None };
            let y = tape.batch_norm(&x, &gamma, &beta, source, Then::default());
            (tape, y)
        };
        let mut group = common::group(c, &format!("batch_norm/{name}"));
        group.throughput(bytes(3, x.shape().len()));
        group.bench_function("forward", |b| b.iter(forward));
        group.throughput(bytes(5, x.shape().len()));
        let with_gradient = || {
            let (mut tape, y) = forward();
            let loss = with_gradient_of(&mut tape, y, numbers(shape));
            (tape, loss)
        };
        let backward = |(tape, loss): (Tape, Var)| tape.backward(loss);
        group.bench_function("backward", |b| b.iter_batched(with_gradient, backward, BatchSize::PerIteration));
    }
}

/// A loss whose gradient with respect to `y` is `dy`.
fn with_gradient_of(tape: &mut Tape, y: Var, dy: Tensor) -> Var {
    let id = y.id();
    tape.record(Tensor::scalar(0f32), &[id], || {
        Box::new(move |_, gradients| gradients.give(id.expect("y depends on leaves"), dy))
    })
}

fn pointwise(c: &mut Criterion) {
    for (name, shape) in ACTIVATIONS {
        let (mut x, other) = (numbers(shape), numbers(shape));
        let len = x.shape().len();
        let mut group = common::group(c, &format!("pointwise/{name}"));
        group.throughput(bytes(3, len));
        group.bench_function("add", |b| b.iter(|| add_assign(black_box(x.view_mut()), &other)));
        group.throughput(bytes(2, len));
        group.bench_function("relu", |b| b.iter(|| relu_assign(black_box(x.view_mut()))));
        group.throughput(bytes(3, len));
        group.bench_function("relu_backward", |b| b.iter(|| relu_backward_assign(black_box(x.view_mut()), &other)));
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = convolutions, batch_norm, pointwise }
criterion_main!(benches);
