//! What a step decides on the device, and how losses and updates follow it.

use medmerge::gpu::Handle;
use medmerge::ops::control::{Control, GROWTH, LOSSES, Values};
use medmerge::ops::optimizer::{self, AdamW, Sgd};
use medmerge::ops::soft_cross_entropy;
use medmerge::ops::softmax_cross_entropy::{CrossEntropy, Form, forward_backward};
use medmerge::tensor::{DType, Device, Integers, Tensor};
use medmerge::train::{Optimizer, OptimizerKind};

use crate::common::{Numbers, assert_close};
use crate::devices;

const BETAS: [f64; 2] = [0.8, 0.95];

fn vector(gpu: Handle, values: Vec<f32>) -> Tensor {
    let len = values.len();
    Tensor::from_vec(values, [len]).to_device(Device::Gpu(gpu))
}

fn control(gpu: Handle, is_scaled: bool, values: Values) -> Control {
    let control = Control::new(gpu, 0, BETAS[0], BETAS[1], is_scaled);
    control.set(&values);
    control
}

/// The norm takes in every number of every gradient, wherever it lies.
#[test]
fn the_norm_is_over_all_gradients() {
    // More partial sums than a block has threads, and a rest behind them.
    let len = 260 * 4096 + 3;
    for gpu in devices() {
        let loss = vector(gpu, vec![1.0]);
        let short = vector(gpu, vec![12.0]);
        for places in [[0, 3], [4096, 4099], [1 << 20, len - 4], [len - 2, len - 1]] {
            let mut numbers = vec![0f32; len];
            (numbers[places[0]], numbers[places[1]]) = (3.0 * 8.0, 4.0 * 8.0);
            let gradient = vector(gpu, numbers);
            let control = control(gpu, true, Values { scale: 8.0, ..Values::default() });
            optimizer::gpu::decide(&control, &loss, &[&gradient], BETAS);
            assert_eq!(control.values().norm, 5.0, "{places:?} on {gpu}");
            optimizer::gpu::decide(&control, &loss, &[&short, &gradient], BETAS);
            assert_eq!(control.values().norm, 1.5f32.hypot(5.0), "{places:?} and another on {gpu}");
        }
    }
}

/// One step with this loss and this number in the gradient, begun and ended with these values.
#[track_caller]
fn decides(is_scaled: bool, before: Values, [loss, gradient]: [f32; 2], after: Values) {
    for gpu in devices() {
        let control = control(gpu, is_scaled, before);
        let loss = vector(gpu, vec![loss]);
        optimizer::gpu::decide(&control, &loss, &[&vector(gpu, vec![0.0, gradient, 0.0])], BETAS);
        optimizer::gpu::rescale(&control, &loss);
        let Values { scale, apply, updates, steps, good_steps, diverged, .. } = control.values();
        let outcome = Values { scale, apply, updates, steps, good_steps, diverged, ..Values::default() };
        assert_eq!(outcome, after, "on {gpu}");
    }
}

#[test]
fn the_scale_follows_the_gradient() {
    let before = Values { scale: 1024.0, updates: 5, steps: 9, good_steps: 7, ..Values::default() };
    let good = Values { apply: 1, updates: 6, steps: 10, good_steps: 8, ..before };
    let skipped = Values { steps: 10, good_steps: 0, ..before };
    decides(true, before, [1.0, 3.0], good);
    // The last of many good steps.
    let due = Values { good_steps: GROWTH - 1, ..before };
    decides(true, due, [1.0, 3.0], Values { scale: 2048.0, good_steps: 0, ..good });
    let largest = 16_777_216.0;
    decides(true, Values { scale: largest, ..due }, [1.0, 3.0], Values { scale: largest, good_steps: 0, ..good });
    for overflow in [f32::INFINITY, f32::NAN, 1e30] {
        decides(true, before, [1.0, overflow], Values { scale: 512.0, ..skipped });
        decides(true, Values { scale: 2.0, ..before }, [1.0, overflow], Values { scale: 1.0, ..skipped });
    }
    // Without a scale to lower it is the end, and so is a loss that is not finite.
    let unscaled = Values { scale: 1.0, ..before };
    let end = |before: Values| Values { diverged: 1, steps: before.steps + 1, ..before };
    decides(true, unscaled, [1.0, f32::NAN], end(unscaled));
    decides(false, unscaled, [1.0, f32::INFINITY], end(unscaled));
    decides(false, unscaled, [1.0, 3.0], Values { scale: 1.0, good_steps: 7, ..good });
    for loss in [f32::NAN, f32::INFINITY] {
        decides(true, before, [loss, 3.0], end(before));
        decides(false, unscaled, [loss, 3.0], end(unscaled));
    }
    // For good.
    let diverged = Values { diverged: 1, ..before };
    decides(true, diverged, [1.0, 3.0], Values { steps: 10, ..diverged });
}

#[test]
fn losses_are_kept_by_step() {
    for gpu in devices() {
        let control = control(gpu, true, Values { scale: 1024.0, steps: LOSSES as u32 - 2, ..Values::default() });
        // The first one's step is skipped.
        for (loss, gradient) in [(1.0, f32::INFINITY), (2.0, 0.0), (3.0, 0.0), (4.0, 0.0)] {
            optimizer::gpu::decide(&control, &vector(gpu, vec![loss]), &[&vector(gpu, vec![gradient])], BETAS);
        }
        let losses = control.losses();
        assert_eq!([losses[LOSSES - 2], losses[LOSSES - 1], losses[0], losses[1]], [1.0, 2.0, 3.0, 4.0], "on {gpu}");
        assert_eq!(control.values().updates, 3);
    }
}

const SGD: Sgd = Sgd { learning_rate: 0.3, momentum: 0.9, weight_decay: 0.2, nesterov: true };
const ADAMW: AdamW =
    AdamW { learning_rate: 0.3, beta1: BETAS[0], beta2: BETAS[1], epsilon: 0.1, weight_decay: 0.2, step: 1 };

/// Both rules' arenas: parameters of SGD, its velocity, parameters of AdamW, its moments.
fn update(arenas: &mut [Tensor; 5], gradient: &Tensor, sgd: Sgd, adamw: AdamW, control: Option<&Control>) {
    let [w, v, w2, m, u] = arenas;
    optimizer::sgd(&sgd, w.view_mut(), gradient, v.view_mut(), control);
    optimizer::adamw(&adamw, w2.view_mut(), gradient, [m.view_mut(), u.view_mut()], control);
}

/// Whatever the scale is, and whatever it was at the step before.
#[test]
fn a_scaled_update_is_the_cpus() {
    for gpu in devices() {
        let len = 37;
        let mut numbers = Numbers(3);
        let mut ours: Vec<f32> = numbers.reals(5 * len).iter().map(|&v| v as f32).collect();
        ours[len..2 * len].fill(0.0);
        ours[3 * len..].fill(0.0);
        let arena = |i: usize| Tensor::from_vec(ours[i * len..][..len].to_vec(), [len]);
        let mut expected = [0, 1, 2, 3, 4].map(arena);
        let mut ours = expected.each_ref().map(|arena| arena.to_device(Device::Gpu(gpu)));
        let fresh = Control::new(gpu, 0, BETAS[0], BETAS[1], true);
        for (step, (scale, factor)) in (1..).zip([(256.0, 1.0), (512.0, 0.5), (4.0, 0.25), (1024.0, 0.125)]) {
            fresh.set(&Values { scale, ..fresh.values() });
            fresh.set_factor(factor);
            let gradient: Vec<f32> = numbers.reals(len).iter().map(|&v| v as f32).collect();
            let scaled = vector(gpu, gradient.iter().map(|g| g * scale).collect());
            optimizer::gpu::decide(&fresh, &vector(gpu, vec![1.0]), &[&scaled], BETAS);
            update(&mut ours, &scaled, SGD, ADAMW, Some(&fresh));
            let sgd = Sgd { learning_rate: SGD.learning_rate * factor, ..SGD };
            let adamw = AdamW { learning_rate: ADAMW.learning_rate * factor, step, ..ADAMW };
            update(&mut expected, &Tensor::from_vec(gradient, [len]), sgd, adamw, None);
        }
        for (ours, expected) in ours.iter().zip(&expected) {
            assert_close(&ours.to_f64(), &expected.to_f64(), 1e-6, &format!("on {gpu}"));
        }
    }
}

#[test]
fn an_update_that_is_withheld_changes_nothing() {
    for gpu in devices() {
        let withheld = control(gpu, true, Values { scale: 2.0, factor: 1.0, apply: 0, ..Values::default() });
        let before = vec![1.5f32, -0.5, 0.25, 2.0, -3.0];
        let mut arenas = [0; 5].map(|_| vector(gpu, before.clone()));
        update(&mut arenas, &vector(gpu, vec![1.0; 5]), SGD, ADAMW, Some(&withheld));
        optimizer::clamp(&mut arenas[0], Some(&withheld));
        for arena in &arenas {
            assert_eq!(arena.to_vec::<f32>(), before, "on {gpu}");
        }
        withheld.set(&Values { apply: 1, ..withheld.values() });
        optimizer::clamp(&mut arenas[0], Some(&withheld));
        assert_eq!(arenas[0].to_vec::<f32>(), [1.0, 0.0, 0.25, 1.0, 0.0], "on {gpu}");
    }
}

/// The pull of merge weights to their start knows no scale, and is withheld with the update.
#[test]
fn a_pull_is_the_cpus() {
    for (gpu, kind) in devices().into_iter().flat_map(|gpu| [(gpu, OptimizerKind::Sgd), (gpu, OptimizerKind::AdamW)]) {
        let (len, mut numbers) = (37, Numbers(5));
        let mut vector_of = || -> Vec<f32> { numbers.reals(len).iter().map(|&v| v as f32).collect() };
        let start = Tensor::from_vec(vector_of(), [len]);
        let optimizer = Optimizer::new(kind, 0.05, 0.0).towards(&start, 1.5);
        let (mut on_gpu, mut on_cpu) = (optimizer.clone(), optimizer);
        let (mut ours, mut expected) = (start.to_device(Device::Gpu(gpu)), start.copy());
        let control = Control::new(gpu, 0, 0.9, 0.999, true);
        for (scale, factor) in [(256.0, 1.0), (512.0, 0.5), (4.0, 0.25), (1024.0, 1.0)] {
            control.set(&Values { scale, ..control.values() });
            control.set_factor(factor);
            let gradient = vector_of();
            let scaled = vector(gpu, gradient.iter().map(|g| g * scale).collect());
            optimizer::gpu::decide(&control, &vector(gpu, vec![1.0]), &[&scaled], [0.9, 0.999]);
            on_gpu.update(&mut ours, &scaled, factor, Some(&control));
            on_cpu.update(&mut expected, &Tensor::from_vec(gradient, [len]), factor, None);
            assert_close(&ours.to_f64(), &expected.to_f64(), 1e-6, &format!("{kind:?} on {gpu}"));
        }
        let before = ours.to_vec::<f32>();
        assert_ne!(before, start.to_vec::<f32>());
        let overflow = vector(gpu, vec![f32::INFINITY; len]);
        optimizer::gpu::decide(&control, &vector(gpu, vec![1.0]), &[&overflow], [0.9, 0.999]);
        on_gpu.update(&mut ours, &overflow, 1.0, Some(&control));
        assert_eq!(ours.to_vec::<f32>(), before, "{kind:?} on {gpu}");
    }
}

#[test]
fn the_scale_multiplies_the_gradient_alone() {
    for gpu in devices() {
        let device = Device::Gpu(gpu);
        let logits = vector(gpu, (0..12).map(|i| (i * 5 % 7) as f32).collect()).reshape([4, 3]);
        let labels = Integers::from_vec(vec![0, 2, 1, 2]).to_device(device);
        let loss = CrossEntropy { class_weights: vec![1.0, 0.5, 2.0], label_smoothing: 0.1, ..Default::default() };
        let run = |control: Option<&Control>| {
            let mut value = Tensor::uninit([1], DType::F32, device);
            let mut gradient = Tensor::uninit([4, 3], DType::F32, device);
            forward_backward(&loss, &logits, &labels, value.view_mut(), gradient.view_mut(), control);
            (value.to_vec::<f32>(), gradient.to_vec::<f32>())
        };
        let (value, gradient) = run(None);
        let scaled = control(gpu, true, Values { scale: 4096.0, ..Values::default() });
        // A power of two changes no bit of the rest.
        assert_eq!(run(Some(&scaled)), (value, gradient.iter().map(|g| g * 4096.0).collect()), "on {gpu}");
        let targets = vector(gpu, (0..12).map(|i| (i * 7 % 5) as f32 / 4.0).collect()).reshape([4, 3]);
        for form in [Form::Softmax, Form::Sigmoid] {
            let loss = CrossEntropy { form, ..loss.clone() };
            let run = |control: Option<&Control>| {
                let mut value = Tensor::uninit([1], DType::F32, device);
                let mut gradient = Tensor::uninit([4, 3], DType::F32, device);
                let (of_value, of_gradient) = (value.view_mut(), gradient.view_mut());
                soft_cross_entropy::forward_backward(&loss, &logits, &targets, of_value, of_gradient, control);
                (value.to_vec::<f32>(), gradient.to_vec::<f32>())
            };
            let (value, gradient) = run(None);
            let expected = (value, gradient.iter().map(|g| g * 4096.0).collect());
            assert_eq!(run(Some(&scaled)), expected, "{form:?} on {gpu}");
        }
    }
}
