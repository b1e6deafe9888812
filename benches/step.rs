//! One training step: forward, cross-entropy, backward, update. `elem/s` are images per second.

mod common;

use common::numbers;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medmerge::bench::shapes::{self, Scale};
use medmerge::nn::Model;
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tensor::Integers;
use medmerge::train::{Batch, OptimizerKind, Subject, TrainOptions, step};

const NETWORK: &str = "resnet18";

fn steps(c: &mut Criterion) {
    let mut group = common::group(c, "step");
    for pixels in [shapes::SMALL, shapes::LARGE] {
        let (images, classes) = (Scale::Cpu.batch_size(pixels), shapes::classes(pixels));
        let network = shapes::network(NETWORK, shapes::stem(pixels), classes).expect("a known name");
        let mut model = Model::initialized(network, 0);
        let mut subject = Subject::Everything;
        let options = TrainOptions { optimizer: OptimizerKind::Sgd, ..TrainOptions::default() };
        let mut optimizers = subject.optimizers(&options, &model.network);
        let labels = Integers::from_vec((0..images).map(|i| (i % classes) as u32).collect());
        let batch = Batch::of_activations(numbers([images, pixels, pixels, 3]), labels);
        let loss = CrossEntropy::default();
        group.throughput(Throughput::Elements(images as u64));
        group.bench_function(format!("{NETWORK}/{pixels}px/{images}"), |b| {
            b.iter(|| step(&mut model, &mut subject, &mut optimizers, &loss, &batch, 1.0, None))
        });
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = steps }
criterion_main!(benches);
