//! Units are matched, and networks merged by every method, on a device as on the CPU, for each family.

use std::cell::RefCell;

use medmerge::data::{Normalisation, SplitName};
use medmerge::merge::methods::{self, Inputs, MergeMethod, Numbers, Task};
use medmerge::merge::{Align, Heads, Plan, Sources, fold_by};
use medmerge::nn::families::densenet::DenseNet;
use medmerge::nn::families::resnet::{ResNet, Shortcut};
use medmerge::nn::families::vgg::Vgg;
use medmerge::nn::{Architecture, Model, Permutation, Stem, Units};
use medmerge::tensor::{DType, Device, Tensor};
use medmerge::train::{Place, Silent, Target, TargetImages, align, correlations, reestimate_statistics, scores};

use crate::common::normalized_error;
use crate::devices;
use crate::steps::{dataset, shaken};

/// Both shortcuts, concatenations, and hidden layers behind flattening, with norms and without.
fn families() -> Vec<Architecture> {
    let plain = ResNet::plain(false, vec![1, 1], vec![4, 8], Stem::Small);
    let vgg =
        |batch_norm| Vgg { blocks: vec![1, 2], widths: vec![4, 8], hidden: vec![8, 8], batch_norm, new_hidden: false };
    vec![
        Architecture::from(plain.clone()),
        Architecture::from(ResNet { shortcut: Shortcut::OptionA, ..plain }),
        Architecture::from(DenseNet { blocks: vec![2, 1], growth: 4, bottleneck: 2, features: 8, stem: Stem::Small }),
        Architecture::from(vgg(false)),
        Architecture::from(vgg(true)),
    ]
}

/// One whose activations are those of images of the target: statistics that no image ever had leave units that never say anything.
fn source(architecture: &Architecture, seed: u64) -> Model {
    let data = dataset();
    let target = Target { data: &data, normalisation: &Normalisation::default(), place: Place::default() };
    let mut model = shaken(architecture.build(1, 3), seed);
    reestimate_statistics(&mut model, target, 22).unwrap();
    model
}

fn sources(architecture: &Architecture, models: [Model; 2]) -> Sources {
    let named = |(index, model): (usize, Model)| (index.to_string(), architecture.clone(), model);
    Sources::from_models(models.into_iter().enumerate().map(named).collect())
}

fn merged(method: &dyn MergeMethod, budget: Option<f64>, sources: &Sources, base: &Model, place: Place) -> Model {
    let data = dataset();
    let target = Target { data: &data, normalisation: &Normalisation::default(), place };
    let numbers = Numbers { budget, ..Numbers::default() };
    let coefficients = vec![method.usual_coefficient(2); 2];
    let base = method.needs_base().then_some(base);
    let inputs = Inputs { base, ..Inputs::new(sources, &coefficients, &numbers) };
    let observer: &mut dyn medmerge::train::Observer = &mut Silent;
    let images = TargetImages { target, observer: RefCell::new(observer) };
    let blend = |plan: &Plan, trunks: &[Tensor], merge_weights: &Tensor| place.blend(plan, trunks, merge_weights);
    let task = Task { inputs, images: Some(&images), blend: &blend };
    fold_by(method, &task, Heads::Merge).unwrap().model
}

fn places() -> impl Iterator<Item = Place> {
    devices().into_iter().map(|gpu| Place { device: Device::Gpu(gpu), precision: DType::F32, ..Place::default() })
}

/// Which units are alike is the same everywhere; what is merged by the order of likeness is not compared, since two pairs that are
/// alike to the last bits may change places.
#[test]
fn every_method_merges_every_family_as_on_the_cpu() {
    let data = dataset();
    for architecture in families() {
        let sources = sources(&architecture, [1, 2].map(|seed| source(&architecture, seed)));
        let base = source(&architecture, 3);
        let pair = [0, 1].map(|index| &sources.get(index).checkpoint.model);
        let units = Units::of(&pair[0].network);
        let likeness = |place: Place| -> Vec<f64> {
            let target = Target { data: &data, normalisation: &Normalisation::default(), place };
            let found = correlations(&units, pair, target, &mut Silent).unwrap();
            found.iter().flatten().flatten().map(|&correlation| f64::from(correlation)).collect()
        };
        let of_cpu = likeness(Place::default());
        for place in places() {
            let error = normalized_error(&likeness(place), &of_cpu);
            assert!(error <= 1e-4, "units of {architecture} on {}: {error:.1e}", place.device);
        }
        for method in methods::all() {
            let cpu = merged(*method, None, &sources, &base, Place::default());
            for place in places() {
                let what = format!("{} of {architecture} on {}", method.name(), place.device);
                let ours = merged(*method, None, &sources, &base, place);
                let error = normalized_error(&ours.trunk.to_f64(), &cpu.trunk.to_f64());
                // Least squares divide the rounding of sums by as little as a thousandth of their diagonal.
                let tolerance = if method.needs_images() { 1e-3 } else { 1e-7 };
                assert!(error <= tolerance || method.pairs_units() && error.is_finite(), "{what}: {error:.1e}");
                if method.reads().contains(&methods::Number::Budget) {
                    let wide = merged(*method, Some(1.5), &sources, &base, place);
                    let ratio = wide.network.parameter_count() as f64 / cpu.network.parameter_count() as f64;
                    assert!(ratio > 1.0 && ratio <= 1.5, "{what}: {ratio}");
                    assert!(wide.trunk.to_f64().iter().all(|weight| weight.is_finite()), "{what}");
                }
            }
        }
    }
}

/// A network and its copy with units in a drawn order are one network again, by what they say to images.
#[test]
fn a_permuted_copy_is_found_by_what_it_says() {
    let data = dataset();
    let all = || std::iter::once(Place::default()).chain(places());
    for (architecture, place) in
        families().iter().flat_map(|architecture| all().map(move |place| (architecture, place)))
    {
        let target = Target { data: &data, normalisation: &Normalisation::default(), place };
        let model = source(architecture, 4);
        let units = Units::of(&model.network);
        let permutation = Permutation::drawn(&units, |count| (0..count).rev().collect());
        assert!(permutation.moved() > units.count() / 2);
        let sources = sources(architecture, [model.clone(), units.permuted(&model, &permutation)]);
        let alignment = align(Align::Activations, &sources, 0, target, &mut Silent).unwrap().unwrap();
        let aligned = sources.aligned(&alignment);
        let [a, b] = [0, 1].map(|index| &aligned.get(index).checkpoint.model);
        let of = |model: &Model| scores(model, target, SplitName::Train, 22, |_| {}).unwrap();
        let [of_a, of_b] = [a, b].map(|model| of(model).iter().map(|&score| f64::from(score)).collect::<Vec<_>>());
        let error = normalized_error(&of_b, &of_a);
        assert!(error <= 1e-6, "{architecture} on {}: its copy says something else, {error:.1e}", place.device);
        // Units that say the same to every image are as alike as any.
        let own = correlations(&units, [a, a], target, &mut Silent).unwrap();
        let is_silent = |group: &Vec<f32>, unit: usize| group[unit * (group.len().isqrt() + 1)] == 0.0;
        let silent = own.iter().flatten().any(|group| (0..group.len().isqrt()).any(|unit| is_silent(group, unit)));
        assert!(!silent || architecture.family() == "vgg", "{architecture}: a unit says nothing");
        let same = silent
            || a.trunk.to_vec::<f32>() == b.trunk.to_vec::<f32>() && a.head.to_vec::<f32>() == b.head.to_vec::<f32>();
        assert!(same, "{architecture} on {}: not the same numbers", place.device);
    }
}
