//! Each method on a case by hand, and what has to be so whatever the numbers.

use std::sync::Arc;

use super::*;
use crate::nn::{Architecture, Network, NetworkBuilder, Operation};
use crate::ops::conv2d::Conv2d;

/// One convolution of 2×2 weights, 1×1, and a classifier.
fn two_by_two() -> Arc<Network> {
    let mut b = NetworkBuilder::new(2);
    let x = b.conv2d("conv", b.input(), 2, 1, Conv2d::new(1, 0));
    let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
    b.linear("head", x, 2);
    b.finish()
}

fn with_filters(filters: [f32; 4]) -> Model {
    let mut model = Model::blank(two_by_two());
    let parameter = model.network.parameter("conv.weight").unwrap().clone();
    model.set_parameter(&parameter, &filters);
    model
}

/// Sources of any network; the architecture that they name is not looked at.
fn sources(models: Vec<Model>) -> Sources {
    let architecture = Architecture::named("resnet8", None, Some(4)).unwrap();
    let named = |(index, model)| (format!("{index}.safetensors"), architecture.clone(), model);
    Sources::from_models(models.into_iter().enumerate().map(named).collect())
}

struct Case<'a> {
    models: Vec<Model>,
    base: Option<Model>,
    coefficients: &'a [f64],
    filtered: &'a [Filtered],
    numbers: Numbers,
    images: Option<&'a dyn Images>,
}

impl Case<'_> {
    fn of(models: Vec<Model>, coefficients: &[f64]) -> Case<'_> {
        Case { models, base: None, coefficients, filtered: &[], numbers: Numbers::default(), images: None }
    }

    fn merge(&self, method: &str) -> Model {
        let sources = sources(self.models.clone());
        let inputs = Inputs {
            sources: &sources,
            anchor: 0,
            batch_norm: BatchNormPolicy::Merge,
            coefficients: self.coefficients,
            filtered: self.filtered,
            numbers: &self.numbers,
            base: self.base.as_ref(),
        };
        let blend = |plan: &Plan, trunks: &[Tensor], weights: &Tensor| Ok(plan.blend(trunks, weights));
        let merged = named(method).unwrap().merge(&Task { inputs, images: self.images, blend: &blend }).unwrap();
        Model { trunk: merged.trunk, ..self.models[0].clone() }
    }

    fn filters(&self, method: &str) -> Vec<f32> {
        let merged = self.merge(method);
        merged.parameter(merged.network.parameter("conv.weight").unwrap()).to_vec()
    }
}

#[track_caller]
fn close(actual: &[f32], expected: &[f32]) {
    let near = actual.iter().zip(expected).all(|(a, e)| (a - e).abs() <= 1e-6 * e.abs().max(1.0));
    assert!(actual.len() == expected.len() && near, "{actual:?}, not {expected:?}");
}

/// a = [1 2; 3 4], b = [5 −2; 1 0].
fn pair() -> Vec<Model> {
    vec![with_filters([1.0, 2.0, 3.0, 4.0]), with_filters([5.0, -2.0, 1.0, 0.0])]
}

#[test]
fn linear_by_hand() {
    // 1/4·a + 3/4·b.
    close(&Case::of(pair(), &[0.25, 0.75]).filters("linear"), &[4.0, -1.0, 1.5, 1.0]);
    // Nothing is normalised: a + b.
    close(&Case::of(pair(), &[1.0, 1.0]).filters("linear"), &[6.0, 0.0, 4.0, 4.0]);
}

#[test]
fn task_arithmetic_by_hand() {
    // base = [1 1; 1 1], so the changes are [0 1; 2 3] and [4 −3; 0 −1]; λ = 1/2.
    let mut case = Case::of(pair(), &[1.0, 2.0]);
    case.base = Some(with_filters([1.0; 4]));
    case.numbers.scale = Some(0.5);
    // base + 1/2·([0 1; 2 3] + 2·[4 −3; 0 −1])
    close(&case.filters("task-arithmetic"), &[5.0, -1.5, 2.0, 1.5]);
}

#[test]
fn ties_by_hand() {
    let mut case = Case::of(pair(), &[1.0, 1.0]);
    case.base = Some(with_filters([1.0; 4]));
    case.numbers.density = Some(0.5);
    // Changes [0 1; 2 3] and [4 −3; 0 −1] are trimmed to their two largest: [0 0; 2 3] and [4 −3; 0 0]. Where one of both is
    // left, it is the sign and the mean.
    close(&case.filters("ties"), &[5.0, -2.0, 3.0, 4.0]);
    // With all of them, signs are elected: 0 + 4 is positive, 1 − 3 negative, 2 + 0 and 3 − 1 positive. The mean is taken of
    // those that agree: 4, −3, 2, 3.
    case.numbers.density = Some(1.0);
    close(&case.filters("ties"), &[5.0, -2.0, 3.0, 4.0]);
    // Three times the first's: 0 + 4, 3 − 3 is no sign, 6, 9 − 1; means by coefficients of those that agree.
    case.coefficients = &[3.0, 1.0];
    close(&case.filters("ties"), &[5.0, 1.0, 3.0, 4.0]);
    // Both agree on the first: (3·2 + 1·6)/4 = 3.
    case.models = vec![with_filters([3.0, 1.0, 1.0, 1.0]), with_filters([7.0, 1.0, 1.0, 1.0])];
    close(&case.filters("ties"), &[4.0, 1.0, 1.0, 1.0]);
}

#[test]
fn slerp_by_hand() {
    // a = [2 0; 0 0] and b = [0 0; 0 4] are at right angles: at half way, sin 45° of each.
    let models = vec![with_filters([2.0, 0.0, 0.0, 0.0]), with_filters([0.0, 0.0, 0.0, 4.0])];
    let mut case = Case::of(models, &[0.5, 0.5]);
    let half = std::f32::consts::FRAC_1_SQRT_2;
    close(&case.filters("slerp"), &[2.0 * half, 0.0, 0.0, 4.0 * half]);
    // A third of the way is 30°: sin 60° of the one, sin 30° of the other.
    case.numbers.t = Some(1.0 / 3.0);
    close(&case.filters("slerp"), &[2.0 * 0.75f32.sqrt(), 0.0, 0.0, 2.0]);
    // Parallel ones, and zero, are interpolated along the chord.
    case.models = vec![with_filters([1.0, 1.0, 0.0, 0.0]), with_filters([4.0, 4.0, 0.0, 0.0])];
    close(&case.filters("slerp"), &[2.0, 2.0, 0.0, 0.0]);
    case.models[0] = with_filters([0.0; 4]);
    close(&case.filters("slerp"), &[4.0 / 3.0, 4.0 / 3.0, 0.0, 0.0]);
}

/// What images would say of one convolution of 2×2 weights.
struct Told {
    fisher: [[f32; 4]; 2],
    score: fn([f32; 4]) -> f64,
}

impl Images for Told {
    fn fisher(&self, _: &Sources, source: usize, _: u64) -> Result<Tensor> {
        let mut model = with_filters(self.fisher[source]);
        // Nothing is read of what only pads an arena.
        let len = model.trunk.shape().len();
        let padding = model.trunk.to_vec::<f32>().iter().map(|x| if *x == 0.0 { 1e9 } else { *x }).collect();
        model.trunk = Tensor::from_vec(padding, [len]);
        Ok(model.trunk)
    }

    fn score(&self, model: &Model) -> Result<f64> {
        let filters: Vec<f32> = model.parameter(model.network.parameter("conv.weight").unwrap()).to_vec();
        Ok((self.score)(filters.try_into().unwrap()))
    }

    fn correlations(&self, _: &Sources, _: [usize; 2]) -> Result<Vec<Similarities>> {
        unreachable!("no units are compared")
    }

    fn fit(&self, _: &mut Model, _: &Sources, _: &Units, _: &Zip) -> Result<Vec<String>> {
        unreachable!("nothing is fitted")
    }

    fn grams(&self, _: &Sources, _: usize) -> Result<Vec<(usize, Vec<f64>)>> {
        unreachable!("no least squares are solved")
    }
}

#[test]
fn fisher_by_hand() {
    // Divided by their means, 2 and 20: [1/2 3/2; 1 1] and [1/2 1/2; 1/2 5/2].
    let told = Told { fisher: [[1.0, 3.0, 2.0, 2.0], [10.0, 10.0, 10.0, 50.0]], score: |_| 0.0 };
    let mut case = Case { images: Some(&told), ..Case::of(pair(), &[0.5, 0.5]) };
    // a = [1 2; 3 4], b = [5 −2; 1 0]: (1 + 5)/2, (3·2 − 2)/4, (2·3 + 1)/3, 2·4/7, but for the floor.
    let near = |actual: Vec<f32>, expected: [f32; 4]| {
        let close = actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-5);
        assert!(close, "{actual:?}, not {expected:?}");
    };
    near(case.filters("fisher"), [3.0, 1.0, 7.0 / 3.0, 8.0 / 7.0]);
    // Three times the first: 3·1/2 to 1/2, 9/2 to 1/2, 3 to 1/2, 3 to 5/2.
    case.coefficients = &[3.0, 1.0];
    near(case.filters("fisher"), [2.0, 1.6, 19.0 / 7.0, 24.0 / 11.0]);
    // What nobody cares for is averaged.
    let told = Told { fisher: [[1e-30; 4]; 2], score: |_| 0.0 };
    case = Case { images: Some(&told), ..Case::of(pair(), &[0.5, 0.5]) };
    near(case.filters("fisher"), [3.0, 0.0, 2.0, 2.0]);
}

#[test]
fn greedy_soup_by_hand() {
    // How near the first weight is to 2, by which 0, 1, 2.5 and 4 are sorted: 2.5, 1, 0, 4.
    let told = Told { fisher: [[0.0; 4]; 2], score: |filters| -f64::from((filters[0] - 2.0).abs()) };
    let models: Vec<Model> = [0.0, 1.0, 4.0, 2.5].map(|first| with_filters([first, 1.0, 0.0, 0.0])).to_vec();
    let case = Case { images: Some(&told), ..Case::of(models.clone(), &[]) };
    // 2.5 with 1 is 1.75, better; with 0 too it is 7/6, worse; with 4 instead 2.5, worse than 1.75.
    close(&case.filters("greedy-soup"), &[1.75, 1.0, 0.0, 0.0]);
    // Equal scores: all are kept, in the order that they were given in.
    let told = Told { score: |_| 0.5, ..told };
    let case = Case { images: Some(&told), ..Case::of(models, &[]) };
    close(&case.filters("greedy-soup"), &[1.875, 1.0, 0.0, 0.0]);
}

#[test]
fn dare_keeps_or_rescales() {
    let mut case = Case::of(pair(), &[1.0, 1.0]);
    case.base = Some(with_filters([1.0; 4]));
    case.numbers.density = Some(0.25);
    let changes = [[0.0f32, 1.0, 2.0, 3.0], [4.0, -3.0, 0.0, -1.0]];
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        case.numbers.seed = Some(seed);
        let merged = case.filters("dare-linear");
        assert_eq!(merged, case.filters("dare-linear"), "the same seed");
        for (at, value) in merged.iter().enumerate() {
            // Of each change nothing, or four times it.
            let sums = [0.0, changes[0][at] * 4.0, changes[1][at] * 4.0, (changes[0][at] + changes[1][at]) * 4.0];
            assert!(sums.contains(&(value - 1.0)), "{value} at {at}");
        }
        seen.insert(merged.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    }
    assert!(seen.len() > 10, "{}", seen.len());
}

/// Networks of all roles, of one origin and of several.
fn drawn() -> [Model; 3] {
    let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(3, 5);
    [1, 2, 3].map(|seed| {
        let mut model = Model::initialized(network.clone(), seed);
        for parameter in network.parameters.iter().filter(|parameter| parameter.role != Role::Filters) {
            let values: Vec<f32> = (0..parameter.shape.len()).map(|i| (i as f32 + seed as f32).sin()).collect();
            model.set_parameter(parameter, &values);
        }
        model
    })
}

fn trunk(model: &Model) -> Vec<f32> {
    model.trunk.to_vec()
}

#[test]
fn equal_sources_give_themselves() {
    let [a, base, _] = drawn();
    for (method, coefficients) in [("linear", [0.5, 0.5]), ("slerp", [0.5, 0.5])] {
        let merged = Case::of(vec![a.clone(), a.clone()], &coefficients).merge(method);
        assert_eq!(trunk(&merged), trunk(&a), "{method}");
    }
    for (method, coefficients) in [("task-arithmetic", [0.5, 0.5]), ("ties", [1.0, 1.0]), ("dare-ties", [1.0, 1.0])] {
        let mut case = Case::of(vec![a.clone(), a.clone()], &coefficients);
        case.base = Some(base.clone());
        case.numbers.density = (method != "task-arithmetic").then_some(1.0);
        close(&trunk(&case.merge(method)), &trunk(&a));
    }
}

#[test]
fn methods_meet_where_their_formulas_do() {
    let [a, b, base] = drawn();
    let mut case = Case::of(vec![a, b], &[0.75, 0.5]);
    let linear = trunk(&case.merge("linear"));
    case.base = Some(Model::blank(base.network.clone()));
    close(&trunk(&case.merge("task-arithmetic")), &linear);
    case.numbers.density = Some(1.0);
    close(&trunk(&case.merge("dare-linear")), &linear);
    assert_eq!(trunk(&case.merge("dare-ties")), trunk(&case.merge("ties")));
    case.numbers = Numbers { scale: Some(0.0), density: Some(0.5), ..Numbers::default() };
    case.base = Some(base.clone());
    for method in ["task-arithmetic", "ties", "dare-linear", "dare-ties"] {
        assert_eq!(trunk(&case.merge(method)), trunk(&base), "{method}");
    }
}

#[test]
fn names_and_depth_decide_coefficients() {
    let [a, b, _] = drawn();
    let filtered = |filter: &str, values: [&[f64]; 2]| Filtered {
        filter: filter.into(),
        values: values.map(<[f64]>::to_vec).to_vec(),
    };
    let all = [filtered("layer3", [&[0.0], &[1.0]]), filtered("conv1", [&[1.0], &[0.0]])];
    let mut case = Case::of(vec![a.clone(), b.clone()], &[0.5, 0.5]);
    case.filtered = &all;
    let merged = case.merge("linear");
    let of = |model: &Model, name: &str| model.parameter(model.network.parameter(name).unwrap()).to_vec::<f32>();
    // The first filter that matches counts, also for what the layer feeds.
    for name in ["layer3.0.conv1.weight", "layer3.0.bn1.bias", "layer3.0.bn2.weight"] {
        assert_eq!(of(&merged, name), of(&b, name), "{name}");
    }
    for name in ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer2.0.bn1.bias"] {
        assert_eq!(of(&merged, name), of(&a, name), "{name}");
    }
    let half: Vec<f32> = of(&a, "layer1.0.conv2.weight")
        .iter()
        .zip(of(&b, "layer1.0.conv2.weight"))
        .map(|(a, b)| 0.5 * a + 0.5 * b)
        .collect();
    assert_eq!(of(&merged, "layer1.0.conv2.weight"), half);
    // From the first source to the second, along the depth.
    let gradient = [filtered("", [&[1.0, 0.0], &[0.0, 1.0]])];
    case.filtered = &gradient;
    let merged = case.merge("linear");
    assert_eq!(of(&merged, "conv1.weight"), of(&a, "conv1.weight"));
    case.base = Some(Model::blank(a.network.clone()));
    let merged = case.merge("task-arithmetic");
    let last = a.network.region(Region::Trunk).last().unwrap().name.clone();
    assert_eq!(of(&merged, &last), of(&b, &last));
    assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|place| along(&[0.0, 2.0, 1.0], place)), [0.0, 1.0, 2.0, 1.5, 1.0]);
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let check =
        |method: &str, numbers: Numbers| numbers.check(named(method).unwrap()).map_err(|error| error.to_string());
    let none = Numbers::default;
    assert!(check("ties", Numbers { density: Some(1.0), scale: Some(-2.0), ..none() }).is_ok());
    for (method, numbers, says) in [
        ("linear", Numbers { t: Some(0.5), ..none() }, "--method linear does not read --t"),
        ("ties", Numbers { density: Some(0.0), ..none() }, "--density 0"),
        ("ties", Numbers { density: Some(f64::NAN), ..none() }, "--density NaN"),
        ("ties", Numbers { scale: Some(f64::INFINITY), ..none() }, "--scale inf"),
        ("slerp", Numbers { t: Some(1.5), ..none() }, "--t 1.5"),
        ("pleas", Numbers { budget: Some(0.5), ..none() }, "--budget 0.5"),
    ] {
        assert_eq!(check(method, numbers), Err(says.to_string()));
    }
    assert!(named("tise").err().unwrap().hint().unwrap().contains("'ties'"));
}
