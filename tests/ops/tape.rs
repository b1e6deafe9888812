//! What the tape promises: nothing is computed or kept for a gradient that nobody asked for, and contributions add up.

use medmerge::nn::{Architecture, Mode, Model};
use medmerge::ops::conv2d::{self, Conv2d};
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tape::{Tape, Var};
use medmerge::tensor::{DType, Device, Integers, Tensor};
use medmerge::train::{Batch, Subject, Teachers, gradients};

use crate::gradients::dot;
use crate::graphs::{model, normalized, random};

const CONV: Conv2d = Conv2d::new(1, 1);

fn image() -> Tensor {
    random([2, 4, 4, 3], 1)
}

fn filters() -> Tensor {
    random([5, 3, 3, 3], 2)
}

/// The gradients of x and w, of which only the ones asked for are leaves.
fn conv_gradients(asked: [bool; 2]) -> [Option<Tensor>; 2] {
    let mut tape = Tape::new();
    let mut operand = |value: Tensor, asked: bool| if asked { tape.leaf(value) } else { Var::constant(value) };
    let (x, w) = (operand(image(), asked[0]), operand(filters(), asked[1]));
    let y = tape.conv2d(CONV, &x, &w);
    let loss = dot(&mut tape, &y);
    let mut gradients = tape.backward(loss);
    [&x, &w].map(|var| gradients.take(var))
}

#[test]
fn a_frozen_operand_gets_no_gradient_and_changes_no_other() {
    let [Some(dx), Some(dw)] = conv_gradients([true, true]) else { panic!("both were asked for") };
    let [Some(dx_alone), None] = conv_gradients([true, false]) else { panic!("only x was asked for") };
    let [None, Some(dw_alone)] = conv_gradients([false, true]) else { panic!("only w was asked for") };
    assert_eq!(dx.to_f64(), dx_alone.to_f64());
    assert_eq!(dw.to_f64(), dw_alone.to_f64());
    assert!(matches!(conv_gradients([false, false]), [None, None]));
}

/// Each operand is kept for the gradient of the other alone.
#[test]
fn a_convolution_keeps_only_what_it_will_need() {
    for (x_asked, w_asked) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut x, mut w) = (image(), filters());
        let mut tape = Tape::new();
        let y = {
            let mut operand = |value: &Tensor, asked: bool| match asked {
                true => tape.leaf(value.clone()),
                false => Var::constant(value.clone()),
            };
            let (x, w) = (operand(&x, x_asked), operand(&w, w_asked));
            tape.conv2d(CONV, &x, &w)
        };
        assert_eq!(y.id().is_some(), x_asked || w_asked);
        assert_eq!(x.is_unique(), !w_asked, "x is kept for dw");
        assert_eq!(w.is_unique(), !x_asked, "w is kept for dx");
    }
}

#[test]
fn with_the_head_alone_nothing_upstream_is_kept() {
    let model = model(4, 1);
    for trunk_learns in [false, true] {
        let (mut trunk, mut x) = (model.trunk.copy(), random([2, 6, 6, 1], 3).cast(DType::F32));
        let mut tape = Tape::new();
        let head = tape.leaf(model.head.clone());
        let of_trunk = if trunk_learns { tape.leaf(trunk.clone()) } else { Var::constant(trunk.clone()) };
        let output = model.network.forward(&mut tape, &of_trunk, &head, &model.statistics, x.clone(), Mode::Training);
        let loss =
            tape.softmax_cross_entropy(&CrossEntropy::default(), &output.logits, &Integers::from_vec(vec![0, 1]), None);
        let id = of_trunk.id();
        drop(of_trunk);
        assert_eq!(trunk.is_unique(), !trunk_learns, "windows of the trunk");
        assert_eq!(x.is_unique(), !trunk_learns, "the images");
        assert_eq!(id.is_some(), trunk_learns);
        assert!(tape.backward(loss).take(&head).is_some());
    }
}

/// Whether the gradients of a batch norm's four operands depend on which of them are asked for.
#[test]
fn a_batch_norm_computes_the_gradients_asked_for() {
    let values = [image(), random([3], 2), random([3], 3), random([2, 4, 4, 3], 4)];
    let run = |asked: [bool; 4], mode: Mode, relu: bool, residual: bool| -> Vec<Option<Vec<f64>>> {
        let mut tape = Tape::new();
        let operands = values.iter().zip(asked).take(if residual { 4 } else { 3 });
        let vars: Vec<Var> =
            operands.map(|(v, asked)| if asked { tape.leaf(v.clone()) } else { Var::constant(v.clone()) }).collect();
        let y = normalized(&mut tape, &vars, mode, relu);
        let loss = dot(&mut tape, &y);
        let mut gradients = tape.backward(loss);
        vars.iter().map(|var| gradients.take(var).map(|gradient| gradient.to_f64())).collect()
    };
    for bits in 0..16 {
        let (mode, asked) = ([Mode::Training, Mode::Inference], [0, 1, 2, 3].map(|i| bits >> i & 1 == 1));
        for (form, mode) in (0..4).flat_map(|form| mode.map(|mode| (form, mode))) {
            let (relu, residual) = (form & 1 == 1, form & 2 == 2);
            let all = run([true; 4], mode, relu, residual);
            for ((alone, together), asked) in run(asked, mode, relu, residual).into_iter().zip(&all).zip(asked) {
                assert_eq!(
                    alone.as_ref(),
                    together.as_ref().filter(|_| asked),
                    "{bits:b}, {mode:?}, {relu}, {residual}"
                );
            }
        }
    }
}

/// A batch norm with what follows it has the bits of the layers one by one, in its value and in every gradient, also where
/// somebody else reads its input or its residual.
#[test]
fn a_fused_batch_norm_is_its_layers() {
    let leaves = |dtype: DType| {
        let x = [random([5, 6, 7, 12], 1), random([12], 2), random([12], 3), random([5, 6, 7, 12], 4)];
        x.map(|leaf| leaf.cast(dtype))
    };
    let run = |dtype: DType, mode: Mode, [residual, relu, shared]: [bool; 3], fused: bool| -> Vec<Vec<f64>> {
        let mut tape = Tape::new();
        let vars = leaves(dtype).map(|leaf| tape.leaf(leaf));
        let operands = if residual { &vars[..] } else { &vars[..3] };
        let mut y = if fused {
            normalized(&mut tape, operands, mode, relu)
        } else {
            let mut y = normalized(&mut tape, &operands[..3], mode, false);
            if residual {
                y = tape.add(y, operands[3].clone());
            }
            if relu { tape.relu(y) } else { y }
        };
        let value = y.value().to_f64();
        if shared {
            y = tape.add(y, vars[0].clone());
            y = tape.add(y, vars[3].clone());
        }
        let loss = dot(&mut tape, &y);
        let mut gradients = tape.backward(loss);
        let of = |var| gradients.take(var).map(|gradient: Tensor| gradient.to_f64());
        [value].into_iter().chain(vars.iter().filter_map(of)).collect()
    };
    for dtype in [DType::F32, DType::F64] {
        for mode in [Mode::Training, Mode::Inference] {
            for bits in 0..8 {
                let form = [0, 1, 2].map(|i| bits >> i & 1 == 1);
                let [fused, apart] = [true, false].map(|fused| run(dtype, mode, form, fused));
                assert!(fused.len() >= 4 && fused.iter().flatten().all(|v| v.is_finite()));
                assert_eq!(fused, apart, "{dtype}, {mode:?}, {form:?}");
            }
        }
    }
}

/// γ's and β's gradients are written where they belong in the arena's, whatever order the two have there, and add up
/// where a batch norm runs twice.
#[test]
fn the_gradients_of_a_batch_norm_in_an_arena() {
    let arena_gradient = |offsets: [usize; 2], uses: usize| {
        let mut tape = Tape::new();
        let arena = tape.leaf(random([16], 5));
        let x = Var::constant(image());
        let [gamma, beta] = offsets.map(|offset| tape.window(&arena, offset, [3], 1));
        let mut y = normalized(&mut tape, &[x.clone(), gamma.clone(), beta.clone()], Mode::Training, true);
        for _ in 1..uses {
            let again = normalized(&mut tape, &[x.clone(), gamma.clone(), beta.clone()], Mode::Training, true);
            y = tape.add(y, again);
        }
        let loss = dot(&mut tape, &y);
        tape.backward(loss).take(&arena).unwrap().to_f64()
    };
    let of_leaves = |offsets: [usize; 2]| {
        let mut tape = Tape::new();
        let of = |offset: usize| random([16], 5).window(offset, [3], 1).copy();
        let [gamma, beta] = offsets.map(|offset| tape.leaf(of(offset)));
        let y = normalized(&mut tape, &[Var::constant(image()), gamma.clone(), beta.clone()], Mode::Training, true);
        let loss = dot(&mut tape, &y);
        let mut gradients = tape.backward(loss);
        [gamma, beta].map(|var| gradients.take(&var).unwrap().to_f64())
    };
    for offsets in [[4, 8], [9, 2]] {
        for uses in 1..=2 {
            let mut expected = vec![0.0; 16];
            for (offset, gradient) in offsets.into_iter().zip(of_leaves(offsets)) {
                for (to, from) in expected[offset..].iter_mut().zip(gradient) {
                    *to = uses as f64 * from;
                }
            }
            assert_eq!(arena_gradient(offsets, uses), expected, "{offsets:?}, {uses} uses");
        }
    }
}

#[test]
fn what_does_not_reach_the_loss_has_no_gradient() {
    let mut tape = Tape::new();
    let (used, unused) = (tape.leaf(image()), tape.leaf(image()));
    let y = tape.relu(used.clone());
    let beside = tape.add(used.clone(), unused.clone());
    let loss = dot(&mut tape, &y);
    drop(beside);
    let mut gradients = tape.backward(loss);
    assert!(gradients.take(&used).is_some() && gradients.take(&unused).is_none());
}

/// The same image and filters under two convolutions.
#[test]
fn a_variable_used_twice_gathers_both_gradients() {
    let mut tape = Tape::new();
    let (x, w) = (tape.leaf(image()), tape.leaf(filters()));
    let dilated = Conv2d { dilation: [2, 2], padding: [2, 2], ..CONV };
    let first = tape.conv2d(CONV, &x, &w);
    let second = tape.conv2d(dilated, &x, &w);
    let y = tape.add(first, second);
    let loss = dot(&mut tape, &y);
    let mut both = tape.backward(loss);
    let cotangent = random(y.shape(), 99);
    let zeros = |like: Tensor| Tensor::zeros(like.shape(), DType::F64, Device::Cpu);
    let mut sums = [image(), filters()].map(zeros);
    for conv in [dilated, CONV] {
        let [mut dx, mut dw] = sums.clone().map(|sum| sum.copy());
        conv2d::dgrad(conv, &cotangent, &filters(), dx.view_mut());
        conv2d::wgrad(conv, &image(), &cotangent, dw.view_mut());
        for (sum, term) in sums.iter_mut().zip([dx, dw]) {
            medmerge::ops::pointwise::add_assign(sum.view_mut(), &term);
        }
    }
    for (var, expected) in [x, w].iter().zip(sums) {
        assert_eq!(both.take(var).unwrap().to_f64(), expected.to_f64());
    }
}

/// Two uses of one window with padded rows: the padding's gradient is zero after one contribution and after two.
#[test]
fn the_padding_of_a_window_has_no_gradient() {
    for dtype in [DType::F32, DType::F64] {
        for uses in 1..=2 {
            let mut tape = Tape::new();
            let arena = tape.leaf(random([64], 1).cast(dtype));
            let x = Var::constant(image().cast(dtype));
            let mut outputs = (0..uses).map(|_| {
                let w = tape.window(&arena, 3, [2, 3, 3, 3], 28);
                tape.conv2d(CONV, &x, &w)
            });
            let (first, second) = (outputs.next().unwrap(), outputs.next());
            drop(outputs);
            let y = if let Some(second) = second { tape.add(first, second) } else { first };
            let loss = dot(&mut tape, &y);
            let gradient = tape.backward(loss).take(&arena).unwrap().to_f64();
            for (i, g) in gradient.into_iter().enumerate() {
                let covered = (3..30).contains(&i) || (31..58).contains(&i);
                assert!(if covered { g != 0.0 && g.is_finite() } else { g == 0.0 }, "{dtype}, {uses} uses: {g} at {i}");
            }
        }
    }
}

/// The gradient of a step that distils is that of L + λ/2N·Σ‖f − t‖², by differences along a direction.
#[test]
fn features_are_pulled_to_the_mean_of_the_teachers() {
    const STRENGTH: f64 = 3.0;
    let [student, first, second] = [1, 2, 3].map(|seed| model(4, seed).cast(DType::F64));
    let (x, labels) = (random([3, 6, 6, 1], 77), || Integers::from_vec(vec![0, 2, 1]));
    let batch = Batch::of_activations(x.clone(), labels());
    let said = |model: &Model| {
        let [trunk, head] = [&model.trunk, &model.head].map(|arena| Var::constant(arena.clone()));
        let features = model.network.features(&mut Tape::new(), [&trunk, &head], &model.statistics, x.clone());
        features.unwrap().to_f64()
    };
    let wanted: Vec<f64> = said(&first).iter().zip(said(&second)).map(|(a, b)| 0.5 * (a + b)).collect();
    let distilled = Subject::Distilled(Teachers::new(vec![first, second], STRENGTH));
    let of = |subject: &Subject, model: &Model| gradients(model, subject, &CrossEntropy::default(), &batch, None);
    // The same trunk below a head that passes features on.
    let width = wanted.len() / 3;
    let through = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, width);
    let value = |trunk: &Tensor| {
        let model = Model { trunk: trunk.clone(), ..student.clone() };
        let mut below = Model::blank(through.clone());
        let [weight, bias] = through.classifier().unwrap();
        let identity: Vec<f32> = (0..width * width).map(|i| f32::from(i % (width + 1) == 0)).collect();
        below.set_parameter(weight, &identity);
        below.set_parameter(bias, &vec![0f32; width]);
        let head = Var::constant(below.head.cast(DType::F64));
        let output = through.forward(
            &mut Tape::new(),
            &Var::constant(trunk.clone()),
            &head,
            &student.statistics,
            x.clone(),
            Mode::Training,
        );
        let features = output.logits.into_value().to_f64();
        let squares: f64 = features.iter().zip(&wanted).map(|(f, t)| (f - t) * (f - t)).sum();
        of(&Subject::Everything, &model).loss.to_f64()[0] + STRENGTH / 2.0 * squares / 3.0
    };
    let step = of(&distilled, &student);
    let plain = of(&Subject::Everything, &student);
    assert_eq!((step.loss.to_f64(), step.head.unwrap().to_f64()), (plain.loss.to_f64(), plain.head.unwrap().to_f64()));
    let gradient = step.trunk.unwrap().to_f64();
    let direction = random([gradient.len()], 5).to_f64();
    let at = |distance: f64| {
        let moved = student.trunk.to_f64().iter().zip(&direction).map(|(w, d)| w + distance * d).collect::<Vec<f64>>();
        value(&Tensor::from_vec(moved, [gradient.len()]))
    };
    let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
    let along = |gradient: &[f64]| gradient.iter().zip(&direction).map(|(g, d)| g * d).sum::<f64>();
    let (found, without) = (along(&gradient), along(&plain.trunk.unwrap().to_f64()));
    assert!((found - slope).abs() < 1e-6 * slope.abs().max(1.0), "{found} is not {slope}");
    assert!((found - without).abs() > 0.01 * slope.abs(), "the pull is seen: {found} and {without}");
}
