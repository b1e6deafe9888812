//! The diagonal of the Fisher information: how much a network's answer depends on each of its numbers.
//!
//! ```text
//! F[i] = 1/N · Σ_x (∂ log p(y|x) / ∂θ[i])²,   y drawn from the network's own p(·|x)
//! ```
//!
//! over the training images of a target, one draw for each, by the network's own classifier and running statistics; labels are not
//! used. (Matena and Raffel, "Merging models with Fisher-weighted averaging", NeurIPS 2022, equation 3.)

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::batches::{Batch, Batches};
use super::{Observer, Place, Target, scores};
use crate::data::{SplitName, Task};
use crate::error::{Error, Result};
use crate::metrics::{sigmoid, softmax};
use crate::nn::{Mode, Model};
use crate::ops::gram::{self, Samples};
use crate::ops::softmax_cross_entropy::{CrossEntropy, Form};
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Device, Integers, Tensor};

/// Images whose classes are drawn at a time.
const BATCH: usize = 32;

/// F of the trunk, laid out as its arena. In f32, whatever the precision of the target's place: squares of gradients that half
/// precision does not scale would be lost.
///
/// # Errors
/// If the images need more memory than there is, or a score or a gradient is not finite.
pub(super) fn fisher(
    (model, task): (&Model, Task),
    seed: u64,
    target: Target,
    observer: &mut dyn Observer,
) -> Result<Tensor> {
    let target = Target { place: Place { precision: DType::F32, ..target.place }, ..target };
    let logits = scores(model, target, SplitName::Train, BATCH, |_| {})?;
    let labels: Vec<u32> =
        logits.chunks(model.network.classes).enumerate().map(|(i, row)| drawn(task, row, seed, i)).collect();
    let device = target.place.device;
    let mut sums = Tensor::zeros([2, model.trunk.shape().len()], DType::F32, device);
    each_gradient((model, task), &labels, target, observer, |gradient| {
        gram::moments(Samples::of(gradient), sums.view_mut())
    })?;
    let sums = sums.to_device(Device::Cpu).to_vec::<f32>();
    let of_squares = &sums[sums.len() / 2..];
    if of_squares.iter().any(|sum| !sum.is_finite()) {
        return Err(Error::NotFinite {
            message: "a gradient for the Fisher information is NaN or infinite".into(),
            hint: "check the sources, and that --mean and --std are those of their training".into(),
        });
    }
    let images = labels.len() as f32;
    // Of several labels log p is their sum, and the loss that was differentiated their mean.
    let times = if task == Task::MultiLabel { (model.network.classes as f32).powi(2) } else { 1.0 };
    Ok(Tensor::from_vec(of_squares.iter().map(|sum| times * sum / images).collect(), [of_squares.len()]))
}

/// A class, or a set of labels, by the probabilities that these logits give: of each image the same one, whoever draws.
fn drawn(task: Task, logits: &[f32], seed: u64, image: usize) -> u32 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(image as u64);
    if task == Task::MultiLabel {
        // Each by itself.
        let draws = logits.iter().map(|&logit| u32::from(rng.random::<f64>() < sigmoid(logit)));
        return draws.enumerate().fold(0, |set, (class, is)| set | is << class);
    }
    let mut probabilities = logits.to_vec();
    softmax(&mut probabilities);
    let mut left = rng.random::<f64>();
    let is_it = |probability: &f32| {
        left -= f64::from(*probability);
        left < 0.0
    };
    probabilities.iter().position(is_it).unwrap_or(logits.len() - 1) as u32
}

/// The gradient of −log p(label) by the trunk, 1 × its length, image by image.
fn each_gradient(
    (model, task): (&Model, Task),
    labels: &[u32],
    target: Target,
    observer: &mut dyn Observer,
    mut look: impl FnMut(&Tensor),
) -> Result<()> {
    let place = target.place;
    let model = place.bring(model);
    target.check_memory(&model.network, 1, true, 3 * model.trunk.shape().len())?;
    let batches = Batches::new(target.in_order(SplitName::Train, model.network.input_channels, 1), place);
    let classes = model.network.classes;
    let form = if task == Task::MultiLabel { Form::Sigmoid } else { Form::Softmax };
    let loss = CrossEntropy { form, ..CrossEntropy::default() };
    batches.ahead(0, |epoch| {
        for (image, (loaded, &label)) in epoch.zip(labels).enumerate() {
            if observer.stops() {
                return Err(Error::Interrupted { last_checkpoint: None });
            }
            let shares: Vec<f32> = (0..classes).map(|class| f32::from(u8::from(task.has(label, class)))).collect();
            let label = Integers::from_vec(vec![label]).to_device(place.device);
            let mut batch = Batch::of_activations(batches.place(loaded?).activations(), label);
            if task == Task::MultiLabel {
                batch = batch.with_shares(Tensor::from_vec(shares, [1, classes]).to_device(place.device));
            }
            let mut tape = Tape::new();
            let (trunk, head) = (tape.leaf(model.trunk.clone()), Var::constant(model.head.clone()));
            let x = batch.activations();
            let output = model.network.forward(&mut tape, &trunk, &head, &model.statistics, x, Mode::Inference);
            let loss = batch.loss(&mut tape, &loss, &output.logits, None);
            drop(output);
            let gradient = tape.backward(loss).take(&trunk).expect("the trunk decides");
            look(&gradient.reshape([1, gradient.shape().len()]));
            place.device.check()?;
            observer.images(image + 1, labels.len());
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Normalisation;
    use crate::data::synthetic::{SyntheticOptions, Task as Drawing, generate};
    use crate::nn::Architecture;
    use crate::train::Silent;

    #[test]
    fn classes_are_drawn_by_their_probabilities() {
        let logits = [0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()];
        let mut counts = [0usize; 3];
        (0..4000).for_each(|image| counts[drawn(Task::MultiClass, &logits, 7, image) as usize] += 1);
        // Four standard deviations of a binomial are 0.032 at most.
        for (count, probability) in counts.iter().zip([0.2, 0.5, 0.3]) {
            assert!((*count as f64 / 4000.0 - probability).abs() < 0.032, "{counts:?}");
        }
        let all = |seed: u64| (0..64).map(|image| drawn(Task::MultiClass, &logits, seed, image)).collect::<Vec<_>>();
        assert!(all(7) == all(7) && all(7) != all(8));
    }

    /// Against differences of log p, in f64, of the numbers that matter most in each layer.
    #[test]
    fn it_is_the_mean_square_of_the_score() {
        check(Task::MultiClass);
    }

    #[test]
    fn it_is_so_of_several_labels() {
        check(Task::MultiLabel);
    }

    fn check(task: Task) {
        let data =
            generate(Drawing::Shape, &SyntheticOptions { size: 16, train: 5, val: 4, test: 4, ..Default::default() });
        let network = Architecture::named("resnet8", None, Some(2)).unwrap().build(data.channels, data.classes);
        let mut model = Model::initialized(network.clone(), 3);
        for norm in 0..model.batches_tracked.len() {
            let channels = model.running(norm).0.shape().len();
            model.set_running(norm, &vec![0.1f32; channels], &vec![0.7f32; channels]);
        }
        let target = Target { data: &data, normalisation: &Normalisation::default(), place: Place::default() };
        let found = fisher((&model, task), 4, target, &mut Silent).unwrap().to_vec::<f32>();
        let logits = scores(&model, target, SplitName::Train, BATCH, |_| {}).unwrap();
        let labels: Vec<u32> = logits.chunks(data.classes).enumerate().map(|(i, row)| drawn(task, row, 4, i)).collect();
        let log_probabilities = |model: &Model| -> Vec<f64> {
            let logits = scores(model, target, SplitName::Train, BATCH, |_| {}).unwrap();
            let of = |(row, &label): (&[f32], &u32)| {
                let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                let log_sigmoid = |x: f64| -(-x).exp().ln_1p();
                let of_label = |(class, &x): (usize, &f64)| log_sigmoid(if task.has(label, class) { x } else { -x });
                match task {
                    Task::MultiClass => row[label as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln(),
                    Task::MultiLabel => row.iter().enumerate().map(of_label).sum(),
                }
            };
            logits.chunks(data.classes).zip(&labels).map(of).collect()
        };
        for parameter in network.region(crate::nn::Region::Trunk) {
            let window = parameter.offset..parameter.offset + parameter.pitch * parameter.shape.rows();
            let at = window.max_by(|&a, &b| found[a].total_cmp(&found[b])).unwrap();
            let moved = |by: f32| {
                let mut trunk = model.trunk.to_vec::<f32>();
                trunk[at] += by;
                Model { trunk: Tensor::from_vec(trunk, [model.trunk.shape().len()]), ..model.clone() }
            };
            const STEP: f32 = 1.0 / 512.0;
            let [up, down] = [STEP, -STEP].map(|step| log_probabilities(&moved(step)));
            let squares = up.iter().zip(&down).map(|(up, down)| ((up - down) / (2.0 * f64::from(STEP))).powi(2));
            let expected = squares.sum::<f64>() / labels.len() as f64;
            let error = (f64::from(found[at]) - expected).abs();
            // f32 leaves 1e-7 / STEP of a difference; kinks of ReLU are as rare as they are.
            assert!(error < 2e-2 * expected + 1e-6, "{}: {} is {expected}", parameter.name, found[at]);
        }
    }
}
