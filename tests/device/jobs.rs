//! The whole job through the library: learn, fold, fine-tune, evaluate, on a device as on the CPU.

use medmerge::data::{Augmentation, Normalisation, SplitName};
use medmerge::error::Error;
use medmerge::gpu::Handle;
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan, Start};
use medmerge::nn::Model;
use medmerge::tensor::{DType, Device, Tensor};
use medmerge::train::{
    Change, EpochRecord, Place, Silent, Subject, Target, TrainOptions, evaluate, reestimate_statistics, scores, train,
};

use crate::common::normalized_error;
use crate::devices;
use crate::steps::{dataset, shaken, small_network};

fn options() -> TrainOptions {
    TrainOptions {
        epochs: 3,
        batch_size: 6,
        learning_rate: 5e-3,
        balance_classes: true,
        augmentation: Some(Augmentation { flip: true, shift: 1, ..Default::default() }),
        ..TrainOptions::default()
    }
}

struct Trained {
    history: Vec<EpochRecord>,
    scores: Vec<f32>,
    reestimated: Vec<f32>,
}

fn job(place: Place) -> Trained {
    let data = dataset();
    let target = Target { data: &data, normalisation: &Normalisation::default(), place };
    let mut model = Model::initialized(small_network(), 3);
    let history = train(&mut model, &mut Subject::Everything, target, &options(), &mut Silent).unwrap();
    assert_eq!(model.device(), Device::Cpu, "models rest on the CPU");
    let scores = scores(&model, target, SplitName::Test, 4, |_| {}).unwrap();
    assert!(evaluate(&model, target, SplitName::Test, 4).unwrap().accuracy > 0.0);
    reestimate_statistics(&mut model, target, 5).unwrap();
    assert_eq!(model.device(), Device::Cpu);
    Trained { history, scores, reestimated: model.statistics.to_vec() }
}

fn compare(ours: &[f32], expected: &[f32], tolerance: f64, what: &str, gpu: Handle) {
    let doubles = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let error = normalized_error(&doubles(ours), &doubles(expected));
    assert!(error < tolerance, "{what} on {gpu}: {error:.1e}");
}

#[test]
fn training_agrees_with_the_cpu() {
    let expected = job(Place::default());
    for gpu in devices() {
        let ours = job(Place { device: Device::Gpu(gpu), ..Place::default() });
        for (ours, expected) in ours.history.iter().zip(&expected.history) {
            assert!((ours.train_loss - expected.train_loss).abs() < 1e-3 * expected.train_loss);
            // Of nine images, one may change sides where rounding differs.
            let far = ours.val_accuracy.unwrap() - expected.val_accuracy.unwrap();
            assert!(far.abs() < 1.5 / 9.0, "validation accuracy {far:+} off");
        }
        compare(&ours.scores, &expected.scores, 1e-2, "scores", gpu);
        compare(&ours.reestimated, &expected.reestimated, 1e-2, "re-estimated statistics", gpu);
    }
}

/// Merge weights that stay leave fine-tuning as it is, to the bit: T is V, whatever the constraint makes of α⁰ on a device.
#[test]
fn a_merge_that_stays_changes_nothing_in_fine_tuning() {
    let data = dataset();
    let places = devices().into_iter().flat_map(|gpu| {
        [DType::F32, DType::F16].map(|precision| Place { device: Device::Gpu(gpu), precision, ..Place::default() })
    });
    for place in [Place::default()].into_iter().chain(places) {
        let target = Target { data: &data, normalisation: &Normalisation::default(), place };
        for (granularity, constraint, batch_norm) in [
            (Granularity::Filter, Constraint::Affine, BatchNormPolicy::Merge),
            (Granularity::Layer, Constraint::Simplex, BatchNormPolicy::Anchor),
        ] {
            let models = [1, 2, 3].map(|seed| shaken(small_network(), seed));
            let method = Method { sources: 3, anchor: 0, granularity, constraint, batch_norm };
            let plan = Plan::new(&small_network(), method).unwrap();
            let trunks: Vec<Tensor> = models.iter().map(|model| model.trunk.clone()).collect();
            let merge_weights = plan.start(Start::Weight(0.3)).unwrap();
            let folded = Model { trunk: plan.blend(&trunks, &merge_weights), ..models[0].clone() };
            let tuned = |subject: &mut Subject, merge_learning_rate: f64| {
                let mut model = folded.copy();
                let options = TrainOptions { epochs: 2, merge_learning_rate, ..options() };
                train(&mut model, subject, target, &options, &mut Silent).unwrap();
                model
            };
            let changed = |rate: f64| {
                let mut subject =
                    Subject::EverythingAndMerge(Change::new(plan.clone(), trunks.clone(), merge_weights.clone()));
                let model = tuned(&mut subject, rate);
                (model, subject.merge_weights().unwrap().to_vec::<f32>())
            };
            let bits = |model: &Model| {
                let arenas = [&model.trunk, &model.head, &model.statistics];
                arenas.map(|arena| arena.to_vec::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let (plain, (stayed, weights)) = (tuned(&mut Subject::Everything, 0.0), changed(0.0));
            assert!(bits(&plain) == bits(&stayed), "{method:?} at {place:?}");
            assert_eq!(weights, merge_weights.to_vec::<f32>());
            let (moved, weights) = changed(1e-2);
            assert!(
                bits(&plain) != bits(&moved) && weights != merge_weights.to_vec::<f32>(),
                "{method:?} at {place:?}"
            );
        }
    }
}

#[test]
fn a_run_that_diverges_says_so() {
    for gpu in devices() {
        let data = dataset();
        let place = Place { device: Device::Gpu(gpu), ..Place::default() };
        let target = Target { data: &data, normalisation: &Normalisation::default(), place };
        let options = TrainOptions { learning_rate: 1e30, ..options() };
        let mut model = Model::initialized(small_network(), 3);
        let error = train(&mut model, &mut Subject::Everything, target, &options, &mut Silent).unwrap_err();
        assert!(matches!(error, Error::Diverged { .. }), "{error}");
        gpu.check().expect("a loss that is not finite is no fault of the device");
    }
}
