//! A family of networks from outside the library is described, written, read, trained and merged as the built-in ones are.

mod stack;

#[path = "../common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::{Numbers, assert_close, devices, f32s};
use medmerge::checkpoint::{self, Checkpoint};
use medmerge::data::synthetic::{SyntheticOptions, Task, generate};
use medmerge::data::{Dataset, Normalisation};
use medmerge::merge::{
    BatchNormPolicy, Constraint, Granularity, Learned, Method, Plan, Sources, Start, training_metadata,
};
use medmerge::nn::{Architecture, Mode, Model, Region};
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::output::OutputPath;
use medmerge::tape::Tape;
use medmerge::tensor::{DType, Device, Integers, Tensor};
use medmerge::train::{AnchorChoice, LearnOptions, Place, Silent, Subject, Target, TrainOptions, learn, train};
use stack::Stack;

const GRANULARITIES: [Granularity; 4] =
    [Granularity::Model, Granularity::Layer, Granularity::Filter, Granularity::Kernel];

fn architecture() -> Architecture {
    Architecture::register::<Stack>();
    Architecture::from(Stack { widths: vec![4, 7], hidden: 5 })
}

fn data() -> Dataset {
    generate(Task::Both, &SyntheticOptions { size: 16, train: 32, val: 16, test: 16, ..Default::default() })
}

/// A network whose biases are not zero.
fn model(seed: u64) -> Model {
    let mut model = Model::initialized(architecture().build(1, 16), seed);
    for parameter in model.network.clone().parameters.iter().filter(|p| p.shape.rank() == 1) {
        let values = f32s(&Numbers(seed + parameter.offset as u64).reals(parameter.shape.len()));
        model.set_parameter(parameter, &values);
    }
    model
}

fn save(model: &Model, path: &Path) {
    let metadata = training_metadata(&architecture(), 1, None);
    checkpoint::save(&mut OutputPath::check(path, true, 0).unwrap(), model, &metadata).unwrap();
}

fn numbers(model: &Model) -> Vec<f32> {
    model.network.parameters.iter().flat_map(|p| model.parameter(p).to_vec::<f32>()).collect()
}

#[test]
fn files_hold_it_and_its_description() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stack.safetensors");
    let written = model(3);
    save(&written, &path);
    let read = Checkpoint::load(&path).unwrap();
    assert_eq!(read.architecture, architecture());
    assert_eq!((read.model.network.input_channels, read.model.network.classes, read.has_head), (1, 16, true));
    assert_eq!(numbers(&read.model), numbers(&written));
    let json = &read.metadata["medmerge.architecture"];
    assert_eq!(json, r#"{"family":"stack","version":1,"hidden":5,"widths":[4,7]}"#);
}

/// The gradient of every parameter against central differences, in f64.
#[test]
fn its_gradients_are_right() {
    let model = model(2).cast(DType::F64);
    let images = [3, 8, 8, 1];
    let x = Tensor::from_vec(f32s(&Numbers(5).reals(images.iter().product())), images).cast(DType::F64);
    let labels = Integers::from_vec(vec![0, 15, 7]);
    let loss = |trunk: &Tensor, head: &Tensor, tape: &mut Tape| {
        let [trunk, head] = [trunk, head].map(|arena| tape.leaf(arena.clone()));
        let output = model.network.forward(tape, &trunk, &head, &model.statistics, x.clone(), Mode::Training);
        let loss = tape.softmax_cross_entropy(&CrossEntropy::default(), &output.logits, &labels, None);
        (loss, trunk, head)
    };
    let mut tape = Tape::new();
    let (value, trunk, head) = loss(&model.trunk, &model.head, &mut tape);
    let mut gradients = tape.backward(value);
    for (region, leaf) in [(Region::Trunk, trunk), (Region::Head, head)] {
        let gradient = gradients.take(&leaf).unwrap();
        for p in model.network.region(region) {
            let of_parameter = gradient.window(p.offset, p.shape, p.pitch).to_f64();
            let step = 1e-5;
            let differences: Vec<f64> = (0..p.shape.len())
                .map(|index| {
                    let moved = |by: f64| {
                        let mut moved = model.copy();
                        let mut values = moved.parameter(p).to_f64();
                        values[index] += by;
                        moved.set_parameter(p, &values);
                        loss(&moved.trunk, &moved.head, &mut Tape::new()).0.value().to_f64()[0]
                    };
                    (moved(step) - moved(-step)) / (2.0 * step)
                })
                .collect();
            assert!(differences.iter().any(|d| d.abs() > 1e-6), "{} is of no consequence", p.name);
            assert_close(&of_parameter, &differences, 1e-6, &p.name);
        }
    }
}

/// Two trained networks in files.
fn sources(folder: &Path, data: &Dataset) -> Vec<PathBuf> {
    let target = Target { data, normalisation: &Normalisation::default(), place: Place::default() };
    let options = TrainOptions { epochs: 2, batch_size: 8, ..Default::default() };
    let trained = |seed: u64| {
        let mut model = model(seed);
        let before = numbers(&model);
        train(&mut model, &mut Subject::Everything, target, &options, &mut Silent).unwrap();
        assert!(numbers(&model).iter().zip(before).filter(|(a, b)| **a != *b).count() > 100);
        let path = folder.join(format!("{seed}.safetensors"));
        save(&model, &path);
        path
    };
    [1, 2].map(trained).to_vec()
}

fn options(granularity: Granularity) -> LearnOptions {
    LearnOptions {
        granularity,
        constraint: Constraint::Affine,
        start: Start::Weight(0.3),
        anchor: AnchorChoice::Named(0),
        batch_norm: BatchNormPolicy::Merge,
        keep_statistics: false,
        align: Default::default(),
        probe_statistics: Default::default(),
        probe: TrainOptions { epochs: 1, batch_size: 8, ..Default::default() },
    }
}

#[test]
fn it_is_merged_like_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let data = data();
    let sources = Sources::load(&sources(folder.path(), &data)).unwrap();
    let target = Target { data: &data, normalisation: &Normalisation::default(), place: Place::default() };
    // Convolutions of 4 and 7 filters on 1 and 4 channels, 5 hidden units on 7.
    let counts = [1, 3, 4 + 7 + 5, 4 + 7 * 4 + 5 * 7];
    for (granularity, count) in GRANULARITIES.into_iter().zip(counts) {
        let learning = learn(&sources, target, &options(granularity), &mut Silent).unwrap();
        let learned = learning.learned;
        assert_eq!(learned.merge_weights.shape().len(), count, "{granularity}");
        let started = learned.plan().unwrap().start(Start::Weight(0.3)).unwrap().to_vec::<f32>();
        let weights_now = learned.merge_weights.to_vec::<f32>();
        // What a ReLU lets nothing through of learns nothing.
        let moved = weights_now.iter().zip(&started).filter(|(a, b)| a != b).count();
        assert!(2 * moved > count, "{granularity}: {moved} of {count} have learned");
        let path = folder.path().join(format!("{granularity}.weights.safetensors"));
        learned.save(&mut OutputPath::check(&path, true, 0).unwrap()).unwrap();
        let again = Learned::load(&path).unwrap();
        again.check_sources(&path, &sources).unwrap();
        let [folded, folded_again] = [&learned, &again].map(|learned| learned.fold(&sources.trunks()).unwrap());
        assert_eq!(numbers(&folded), numbers(&folded_again), "{granularity}");
    }
}

/// A bias takes the weight of its filter, of a convolution as of the hidden layer.
#[test]
fn a_bias_goes_with_its_filters() {
    let network = architecture().build(1, 2);
    let method = Method {
        sources: 2,
        anchor: 0,
        granularity: Granularity::Filter,
        constraint: Constraint::Affine,
        batch_norm: BatchNormPolicy::Anchor,
    };
    let plan = Plan::new(&network, method).unwrap();
    // w = 1, 2, … of the second source, whose trunk is ones; the first one's is zeros.
    let learned = plan.parametrization.learned;
    let w = Tensor::from_vec((1..=learned).map(|w| w as f32).collect(), [1, learned]);
    let trunk = |value: f32| Tensor::from_vec(vec![value; network.trunk_len], [network.trunk_len]);
    let blend = plan.blend(&[trunk(0.0), trunk(1.0)], &w);
    for (layer, first) in [("features.0", 1), ("features.1", 5), ("hidden", 12)] {
        let of = |suffix: &str| {
            let p = network.parameter(&format!("{layer}.{suffix}")).unwrap();
            (blend.window(p.offset, p.shape, p.pitch).to_vec::<f32>(), p.shape)
        };
        let ((weight, shape), (bias, _)) = (of("weight"), of("bias"));
        let expected: Vec<f32> = (0..shape.rows()).map(|row| (first + row) as f32).collect();
        assert_eq!(bias, expected, "{layer}");
        let rows: Vec<f32> = weight.chunks(shape.row_len()).map(|row| row[0]).collect();
        assert_eq!(rows, expected, "{layer}");
    }
}

/// The same numbers by the GPU's kernels; in half precision the same to within its rounding.
#[test]
fn it_runs_on_every_device() {
    let folder = tempfile::tempdir().unwrap();
    let data = data();
    let sources = Sources::load(&sources(folder.path(), &data)).unwrap();
    let learned_on = |place: Place, granularity| {
        let target = Target { data: &data, normalisation: &Normalisation::default(), place };
        let learned = learn(&sources, target, &options(granularity), &mut Silent).unwrap().learned;
        let folded = learned.fold(&sources.trunks()).unwrap();
        let tuned = {
            let mut model = folded.copy();
            let options = TrainOptions { epochs: 1, batch_size: 8, ..Default::default() };
            train(&mut model, &mut Subject::Everything, target, &options, &mut Silent).unwrap();
            model
        };
        [learned.merge_weights.to_f64(), folded.trunk.to_f64(), tuned.trunk.to_f64()]
    };
    for gpu in devices() {
        for granularity in [Granularity::Filter, Granularity::Kernel] {
            let expected = learned_on(Place::default(), granularity);
            for (precision, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 3e-2)] {
                let found = learned_on(Place { device: Device::Gpu(gpu), precision, is_fused: true }, granularity);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_close(found, expected, tolerance, &format!("{granularity} in {precision} on {gpu}"));
                }
            }
        }
    }
}
