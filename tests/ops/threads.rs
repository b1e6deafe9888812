//! The bits of a result do not depend on how many threads computed it.

use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan, Start};
use medmerge::nn::{Architecture, Mode, Model, Stem};
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::selftest::{Draw, Execution, OPS};
use medmerge::tape::Tape;
use medmerge::tensor::{Integers, Tensor};
use medmerge::train::{Batch, MergeState, OptimizerKind, Subject, TrainOptions, step};

use crate::common::{Numbers, f32s};

/// Runs `job` with one, two and three threads and requires equal results.
fn same_with_any_number_of_threads<R: PartialEq + Send>(what: &str, job: impl Fn() -> R + Sync) {
    let run = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&job);
    let alone = run(1);
    for threads in 2..=3 {
        assert!(run(threads) == alone, "{what}: {threads} threads give other bits than one");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_pass() {
    for pass in OPS.iter().flat_map(|op| (op.passes)()) {
        let inputs = pass.draw(Draw::Reals, Execution::CPU);
        same_with_any_number_of_threads(&pass.name(), || {
            let outputs = pass.execute(Draw::Reals, Execution::CPU, &inputs).unwrap();
            outputs.iter().flatten().map(|value| value.to_bits()).collect::<Vec<_>>()
        });
    }
}

/// Nor on the order in which the blocks and threads of a GPU run: the seed of the emulator. Splits of one sum meet here.
#[cfg(feature = "emulator")]
#[test]
fn products_of_samples_on_the_emulator() {
    use medmerge::gpu::Gpu;
    use medmerge::selftest::Op;
    use medmerge::tensor::{DType, Device};
    for pass in (Op::named("gram").unwrap().passes)() {
        let bits = |seed| {
            let execution = Execution { device: Device::Gpu(Gpu::emulator(seed).unwrap()), dtype: DType::F32 };
            let inputs = pass.draw(Draw::Reals, execution);
            let outputs = pass.execute(Draw::Reals, execution, &inputs).unwrap();
            outputs.iter().flatten().map(|value| value.to_bits()).collect::<Vec<_>>()
        };
        if !pass.is_of_cpu {
            assert!(bits(1) == bits(2), "{}", pass.name());
        }
    }
}

fn batch() -> (Tensor, Vec<u32>) {
    let x = Tensor::from_vec(f32s(&Numbers(5).reals(6 * 33 * 33 * 3)), [6, 33, 33, 3]);
    (x, vec![0, 3, 1, 4, 2, 0])
}

fn models() -> Vec<Model> {
    let small = Architecture::named("resnet8", None, Some(12)).unwrap();
    let large = Architecture::named("resnet18", Some(Stem::Large), Some(8)).unwrap();
    let bottleneck = Architecture::named("resnet50", Some(Stem::Small), Some(2)).unwrap();
    [small, large, bottleneck].into_iter().map(|a| Model::initialized(a.build(3, 5), 1)).collect()
}

#[test]
fn every_gradient_of_a_network() {
    for model in models() {
        let (x, labels) = batch();
        same_with_any_number_of_threads("gradients", || {
            let mut tape = Tape::new();
            let leaves = [tape.leaf(model.trunk.clone()), tape.leaf(model.head.clone())];
            let [trunk, head] = &leaves;
            let output = model.network.forward(&mut tape, trunk, head, &model.statistics, x.clone(), Mode::Training);
            let loss = tape.softmax_cross_entropy(
                &CrossEntropy::default(),
                &output.logits,
                &Integers::from_vec(labels.clone()),
                None,
            );
            let value = loss.value().clone();
            let mut gradients = tape.backward(loss);
            let [of_trunk, of_head] = leaves.map(|leaf| gradients.take(&leaf).expect("a gradient"));
            [value, output.logits.into_value(), of_trunk, of_head].map(|tensor| bits(&tensor.to_vec()))
        });
    }
}

fn merge_of(model: &Model, granularity: Granularity) -> Subject {
    let batch_norm = BatchNormPolicy::Merge;
    let method = Method { sources: 3, anchor: 1, granularity, constraint: Constraint::Affine, batch_norm };
    let plan = Plan::new(&model.network, method).unwrap();
    let trunks = (1..4).map(|seed| Model::initialized(model.network.clone(), seed).trunk).collect();
    let merge_weights = plan.start(Start::Uniform).unwrap();
    Subject::Merge(MergeState::new(plan, trunks, merge_weights))
}

/// Clipped: the norm of all gradients is a sum over them.
fn options(optimizer: OptimizerKind) -> TrainOptions {
    TrainOptions { optimizer, clip_norm: Some(0.1), ..TrainOptions::default() }
}

/// Two steps, so that what the first one wrote is read by the second.
#[test]
fn training_steps() {
    // What learns: everything, or a merge at some granularity.
    let subjects = [
        (None, OptimizerKind::Sgd),
        (None, OptimizerKind::AdamW),
        (Some(Granularity::Layer), OptimizerKind::AdamW),
        (Some(Granularity::Kernel), OptimizerKind::Sgd),
    ];
    for start in models() {
        for (granularity, optimizer) in subjects {
            let name = format!("{granularity:?} with {optimizer:?}");
            same_with_any_number_of_threads(&name, || {
                let mut model = start.copy();
                let mut subject = granularity.map_or(Subject::Everything, |granularity| merge_of(&start, granularity));
                let mut optimizers = subject.optimizers(&options(optimizer), &model.network);
                let losses = [1.0, 0.5].map(|factor| {
                    let ((x, labels), loss) = (batch(), CrossEntropy::default());
                    let batch = Batch::of_activations(x, Integers::from_vec(labels));
                    step(&mut model, &mut subject, &mut optimizers, &loss, &batch, factor, None).data::<f32>()[0]
                });
                assert!(losses[1].is_finite() && losses[0] != losses[1], "{name}: nothing was learned");
                let merge_weights = subject.merge_weights().map(|weights| weights.to_vec()).unwrap_or_default();
                let arenas = [&model.trunk, &model.head, &model.statistics].map(|arena| arena.to_vec::<f32>());
                [bits(&losses), bits(&merge_weights), bits(&arenas.concat())]
            });
        }
    }
}
