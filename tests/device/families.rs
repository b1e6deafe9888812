//! Networks of every family on a device as on the CPU: training, learning merge weights, and dropout in recorded steps.

use medmerge::data::{Normalisation, SplitName};
use medmerge::gpu::Handle;
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Sources, Start};
use medmerge::nn::families::densenet::DenseNet;
use medmerge::nn::families::resnet::{ResNet, Shortcut};
use medmerge::nn::families::vgg::Vgg;
use medmerge::nn::{Architecture, Model, Stem};
use medmerge::tensor::{DType, Device};
use medmerge::train::{
    AnchorChoice, LearnOptions, OptimizerKind, Place, Silent, Subject, Target, TrainOptions, learn, scores, train,
};

use crate::common::normalized_error;
use crate::devices;
use crate::steps::{dataset, shaken};

fn families() -> Vec<Architecture> {
    let vgg = |batch_norm, new_hidden| {
        let (blocks, widths, hidden) = (vec![1, 2], vec![8, 8], vec![16, 8]);
        Architecture::from(Vgg { blocks, widths, hidden, batch_norm, new_hidden })
    };
    let plain = |bottleneck, widths: &[usize]| ResNet::plain(bottleneck, vec![1, 1], widths.to_vec(), Stem::Small);
    vec![
        Architecture::from(DenseNet { blocks: vec![2, 1], growth: 4, bottleneck: 2, features: 8, stem: Stem::Small }),
        vgg(false, false),
        vgg(true, false),
        vgg(false, true),
        Architecture::from(ResNet { shortcut: Shortcut::OptionA, ..plain(false, &[8, 16]) }),
        Architecture::from(ResNet { groups: 2, group_width: 32, ..plain(true, &[8, 16]) }),
    ]
}

/// SGD: AdamW makes a whole step of the rounding of a gradient that is nearly zero.
fn options() -> TrainOptions {
    let optimizer = OptimizerKind::Sgd;
    TrainOptions { epochs: 3, batch_size: 6, learning_rate: 5e-3, optimizer, ..TrainOptions::default() }
}

fn start(architecture: &Architecture, seed: u64) -> Model {
    shaken(architecture.build(1, 3), seed)
}

/// Losses, and everything that was trained.
fn trained(architecture: &Architecture, place: Place) -> [Vec<f64>; 4] {
    let data = dataset();
    let target = Target { data: &data, normalisation: &Normalisation::default(), place };
    let mut model = start(architecture, 3);
    let history = train(&mut model, &mut Subject::Everything, target, &options(), &mut Silent).unwrap();
    let losses = history.iter().map(|record| record.train_loss).collect();
    [losses, model.trunk.to_f64(), model.head.to_f64(), model.statistics.to_f64()]
}

/// Losses and merge weights of two sources.
fn learned(architecture: &Architecture, granularity: Granularity, place: Place) -> [Vec<f64>; 2] {
    let data = dataset();
    let target = Target { data: &data, normalisation: &Normalisation::default(), place };
    let source = |seed: u64| (seed.to_string(), architecture.clone(), start(architecture, seed));
    let sources = Sources::from_models([5, 6].map(source).to_vec());
    let options = LearnOptions {
        granularity,
        constraint: Constraint::Affine,
        start: Start::Weight(0.3),
        anchor: AnchorChoice::Named(0),
        batch_norm: BatchNormPolicy::Merge,
        keep_statistics: false,
        align: Default::default(),
        probe_statistics: Default::default(),
        probe: options(),
    };
    let learning = learn(&sources, target, &options, &mut Silent).unwrap();
    let losses = learning.history.iter().map(|record| record.train_loss).collect();
    [losses, learning.learned.merge_weights.to_f64()]
}

#[track_caller]
fn compare<const N: usize>(ours: [Vec<f64>; N], cpu: [Vec<f64>; N], of_losses: f64, what: &str) {
    for (part, (ours, cpu)) in ours.iter().zip(&cpu).enumerate() {
        let error = normalized_error(ours, cpu);
        // As for the steps of other networks.
        let tolerance = if part == 0 { of_losses } else { 2e-3 };
        assert!(error < tolerance, "{what}, part {part}: {error:.1e}");
    }
}

fn on(gpu: Handle, precision: DType) -> Place {
    Place { device: Device::Gpu(gpu), precision, ..Place::default() }
}

/// The batches of an epoch are launched, recorded and replayed; a network without batch norm has dropout in them.
#[test]
fn training_agrees_with_the_cpu() {
    for architecture in families() {
        let cpu = trained(&architecture, Place::default());
        for gpu in devices() {
            let what = format!("{architecture} on {gpu}");
            compare(trained(&architecture, on(gpu, DType::F32)), cpu.clone(), 1e-4, &what);
            assert_eq!(gpu.misfits(), 0, "{what}");
        }
    }
}

fn scored(architecture: &Architecture, place: Place) -> Vec<f64> {
    let data = dataset();
    let target = Target { data: &data, normalisation: &Normalisation::default(), place };
    let scores = scores(&start(architecture, 3), target, SplitName::Test, 4, |_| {}).unwrap();
    scores.into_iter().map(f64::from).collect()
}

/// In f16 the first steps may be withheld, until the scale of the loss fits: then training goes another way, and its losses are
/// compared with nothing but that they are numbers.
#[test]
fn half_precision_stays_near() {
    for architecture in families() {
        let ([losses, ..], expected) =
            (trained(&architecture, Place::default()), scored(&architecture, Place::default()));
        for gpu in devices() {
            for (precision, tolerance) in [(DType::BF16, 0.05), (DType::F16, 0.01)] {
                let what = format!("{architecture} in {precision} on {gpu}");
                compare([scored(&architecture, on(gpu, precision))], [expected.clone()], tolerance, &what);
                let [ours, ..] = trained(&architecture, on(gpu, precision));
                match precision {
                    DType::BF16 => compare([ours], [losses.clone()], tolerance, &what),
                    _ => assert!(ours.iter().all(|loss| loss.is_finite()), "{what}: {ours:?}"),
                }
            }
        }
    }
}

#[test]
fn merge_weights_agree_with_the_cpu() {
    for architecture in families() {
        for granularity in [Granularity::Filter, Granularity::Kernel] {
            let cpu = learned(&architecture, granularity, Place::default());
            for gpu in devices() {
                let what = format!("{architecture}, {granularity} on {gpu}");
                compare(learned(&architecture, granularity, on(gpu, DType::F32)), cpu.clone(), 1e-4, &what);
            }
        }
    }
}

/// Layer by layer, everything has the same bits.
#[test]
fn fusion_changes_no_bit_on_the_cpu() {
    for architecture in families() {
        let apart = trained(&architecture, Place { is_fused: false, ..Place::default() });
        assert!(trained(&architecture, Place::default()) == apart, "{architecture}");
    }
}
