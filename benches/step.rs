//! One training step: forward, cross-entropy, backward, update. `elem/s` are images per second.

mod common;

use common::numbers;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medmerge::bench::shapes::{self, Scale};
use medmerge::nn::Model;
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tensor::Integers;
use medmerge::train::{OptimizerKind, Subject, TrainOptions, step};

const NETWORK: &str = "resnet18";

fn steps(c: &mut Criterion) {
    let mut group = common::group(c, "step");
    for pixels in [shapes::SMALL, shapes::LARGE] {
        let (batch, classes) = (Scale::Cpu.batch_size(pixels), shapes::classes(pixels));
        let network = shapes::network(NETWORK, shapes::stem(pixels), classes).expect("a known name");
        let mut model = Model::initialized(network, 0);
        let mut subject = Subject::Everything;
        let options = TrainOptions { optimizer: OptimizerKind::Sgd, ..TrainOptions::default() };
        let mut optimizers = subject.optimizers(&options);
        let images = numbers([batch, pixels, pixels, 3]);
        let labels = Integers::from_vec((0..batch).map(|i| (i % classes) as u32).collect());
        let loss = CrossEntropy::default();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("{NETWORK}/{pixels}px/{batch}"), |b| {
            b.iter(|| step(&mut model, &mut subject, &mut optimizers, &loss, images.clone(), &labels, 1.0, None))
        });
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = steps }
criterion_main!(benches);
