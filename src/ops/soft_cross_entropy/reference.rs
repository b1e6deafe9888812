//! The definition of cross-entropy with shares as targets.

use crate::ops::softmax_cross_entropy::{CrossEntropy, Form};
use crate::tensor::Element;

/// Returns the loss and writes the gradient of `logits`, N×K, for `targets`, N×K.
pub fn forward_backward<T: Element>(
    loss: &CrossEntropy,
    logits: &[T],
    targets: &[T],
    classes: usize,
    gradient: &mut [T],
) -> f64 {
    let weight = |class: usize| loss.class_weights.get(class).copied().unwrap_or(1.0);
    let (sharp, smooth) = (1.0 - loss.label_smoothing, loss.label_smoothing);
    let images = (logits.len() / classes) as f64;
    let mut total = 0.0;
    for ((z, t), dz) in logits.chunks(classes).zip(targets.chunks(classes)).zip(gradient.chunks_mut(classes)) {
        let z: Vec<f64> = z.iter().map(|z| z.to_f64()).collect();
        match loss.form {
            Form::Softmax => {
                let u = |k: usize| sharp * t[k].to_f64() + smooth / classes as f64;
                let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log_sum = largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
                let all: f64 = (0..classes).map(|k| weight(k) * u(k)).sum();
                for k in 0..classes {
                    let log_p = z[k] - log_sum;
                    total -= weight(k) * u(k) * log_p / images;
                    dz[k] = T::from_f64((log_p.exp() * all - weight(k) * u(k)) / images);
                }
            }
            Form::Sigmoid => {
                let decisions = images * classes as f64;
                for k in 0..classes {
                    let u = sharp * t[k].to_f64() + smooth / 2.0;
                    // −log s and −log(1 − s), neither of which overflows.
                    let rest = (-z[k].abs()).exp().ln_1p();
                    let (yes, no) = ((-z[k]).max(0.0) + rest, z[k].max(0.0) + rest);
                    total += (weight(k) * u * yes + (1.0 - u) * no) / decisions;
                    let s = (-yes).exp();
                    dz[k] = T::from_f64((s * (1.0 - u + weight(k) * u) - weight(k) * u) / decisions);
                }
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 6] = [1.5, -0.25, 0.75, -2.0, 3.0, 0.5];
    const TARGETS: [f64; 6] = [0.7, 0.3, 0.0, 0.0, 1.0, 1.0];

    fn assert_near(actual: &[f64], expected: &[f64]) {
        assert!(actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{actual:?} is not {expected:?}");
    }

    /// By PyTorch 2.13.0 in float64: `CrossEntropyLoss(weight, label_smoothing)` of the same logits and probabilities, and
    /// `BCEWithLogitsLoss(pos_weight)` of targets smoothed by hand, since it has no smoothing of its own.
    #[test]
    fn both_forms_are_those_of_pytorch() {
        let of = |form: Form, class_weights: &[f64], label_smoothing: f64| {
            let loss = CrossEntropy { class_weights: class_weights.to_vec(), label_smoothing, form };
            let mut gradient = [0.0; 6];
            let value = forward_backward(&loss, &LOGITS, &TARGETS, 3, &mut gradient);
            [&[value], &gradient[..]].concat()
        };
        assert_near(
            &of(Form::Softmax, &[], 0.0),
            &[
                1.846813973735885,
                -0.04625921896897073,
                -0.09721776669351988,
                0.14347698566249065,
                0.006188285272800039,
                0.41842296676420343,
                -0.42461125203700334,
            ],
        );
        assert_near(
            &of(Form::Softmax, &[0.5, 2.0, 1.25], 0.1),
            &[
                2.4204640268630495,
                0.13183263207707532,
                -0.25160674469298283,
                0.1197741126159075,
                0.0011038017076867252,
                0.4672616909820768,
                -0.46836549268976346,
            ],
        );
        assert_near(
            &of(Form::Sigmoid, &[], 0.0),
            &[
                0.5148026751288862,
                0.019595746032273948,
                0.022970583185700322,
                0.1131964498625655,
                0.019867153670352924,
                -0.007904312196261106,
                -0.0629234447996909,
            ],
        );
        assert_near(
            &of(Form::Sigmoid, &[0.5, 2.0, 1.25], 0.1),
            &[
                0.6112583509431005,
                0.03326652571463413,
                -0.010345496861542236,
                0.1041947388191809,
                0.015203808161927434,
                -0.007080075449375833,
                -0.06953442960628418,
            ],
        );
    }
}
