//! One training step: forward, cross-entropy, backward, update. `elem/s` are images per second.

mod common;

use common::numbers;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medmerge::nn::{Architecture, Model, Stem};
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tensor::Integers;
use medmerge::train::{OptimizerKind, Subject, TrainOptions, step};

const CLASSES: usize = 9;

/// Architecture, stem, pixels, batch.
const STEPS: [(&str, Stem, usize, usize); 3] =
    [("resnet18", Stem::Small, 28, 128), ("resnet18", Stem::Large, 224, 8), ("resnet8", Stem::Small, 28, 64)];

fn steps(c: &mut Criterion) {
    let mut group = common::group(c, "step");
    for (name, stem, pixels, batch) in STEPS {
        let architecture = Architecture::named(name, Some(stem), None).expect("a known name");
        let mut model = Model::initialized(architecture.build(3, CLASSES), 0);
        let mut subject = Subject::Everything;
        let options = TrainOptions { optimizer: OptimizerKind::Sgd, ..TrainOptions::default() };
        let mut optimizers = subject.optimizers(&options);
        let images = numbers([batch, pixels, pixels, 3]);
        let labels = Integers::from_vec((0..batch).map(|i| (i % CLASSES) as u32).collect());
        let loss = CrossEntropy::default();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("{name}/{pixels}px/{batch}"), |b| {
            b.iter(|| step(&mut model, &mut subject, &mut optimizers, &loss, images.clone(), &labels, 1.0, None))
        });
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = steps }
criterion_main!(benches);
