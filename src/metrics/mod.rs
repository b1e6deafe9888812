//! How well a classifier's scores fit the labels: of all images, per class, and how much of it may be chance.
//!
//! | figure | definition |
//! |---|---|
//! | accuracy, F1, recall, specificity, balanced accuracy | of the class of the largest score; as scikit-learn has them |
//! | AUC | the probability that a random image of the class scores higher than a random other one, ties counting half; means as MedMNIST's evaluator takes them |
//! | average precision | Σ (R_n − R_{n−1})·P_n over the thresholds of a class against the rest, as scikit-learn has it |
//! | quadratic kappa | Cohen's, disagreement weighed by the squared distance of the classes' numbers: for grades |
//! | calibration error | Σ of 15 equal bins of confidence: share of images · \|accuracy − mean confidence\| (Guo et al. 2017) |
//! | of several labels at once | means over the labels, each decided where its sigmoid is above one half: accuracy and AUC as MedMNIST's evaluator takes them; no kappa |
//! | intervals | from the 2.5th to the 97.5th percentile over images drawn again, with replacement |

pub mod threshold;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::data::Task;

/// A figure is NaN where it is not defined (JSON: null), and all of them are if any score is not finite: a broken
/// network has no accuracy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    /// The share of images whose largest score is the label's; the first of equal scores counts.
    pub accuracy: f64,
    /// The mean F1 of the classes that occur among labels or predictions.
    pub macro_f1: f64,
    /// How many classes these are.
    pub macro_f1_classes: usize,
    /// The mean AUC of the classes that have one, each against the rest; with two classes, that of the second.
    pub auc: f64,
    /// How many classes have one.
    pub auc_classes: usize,
    /// The mean recall of the classes that have images.
    pub balanced_accuracy: f64,
    /// F1 of each class by its share of the images.
    pub weighted_f1: f64,
    /// The mean over the classes that have images; with two classes, that of the second.
    pub average_precision: f64,
    /// Cohen's kappa with quadratic weights, by the numbers of the classes; not defined where all is one class.
    pub quadratic_kappa: f64,
    /// The expected calibration error of the largest probability.
    pub calibration_error: f64,
    /// Confidence and accuracy, bin by bin; bins without images are left out.
    pub reliability: Vec<Bin>,
    pub per_class: Vec<ClassMetrics>,
    /// Images by label (row) and prediction (column). Of several labels at once, for each label (row) those that have it not and are
    /// not said to, that are said to, that have it and are not said to, that are.
    pub confusion: Vec<Vec<u64>>,
}

/// Images whose largest probability lies in one of fifteen equal stretches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    /// The mean of those.
    pub confidence: f64,
    pub accuracy: f64,
    pub images: u64,
}

/// What may be chance: each from the 2.5th to the 97.5th percentile of images drawn again. NaN where none is defined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Intervals {
    /// How often images were drawn.
    pub resamples: usize,
    pub accuracy: [f64; 2],
    pub macro_f1: [f64; 2],
    pub auc: [f64; 2],
    pub balanced_accuracy: [f64; 2],
    pub weighted_f1: [f64; 2],
    pub average_precision: [f64; 2],
    pub quadratic_kappa: [f64; 2],
    pub calibration_error: [f64; 2],
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassMetrics {
    /// 0 where the class has images and is never predicted; not defined where it has none either.
    pub precision: f64,
    /// Not defined where the class has no image.
    pub recall: f64,
    /// Not defined where the class occurs neither among labels nor among predictions.
    pub f1: f64,
    /// Images of the class.
    pub support: u64,
    /// Not defined for a class that has no image, or all of them.
    pub auc: f64,
    /// Of the images of other classes, the share that is not predicted as this one. Not defined where there are none.
    pub specificity: f64,
    /// Not defined where the class has no image.
    pub average_precision: f64,
}

impl Metrics {
    /// From N×classes `scores`, row after row: logits, or probabilities if every row is a distribution.
    ///
    /// # Panics
    /// If the lengths do not agree, or a label is none of `classes`.
    pub fn of(task: Task, scores: &[f32], labels: &[u32], classes: usize) -> Metrics {
        match task {
            Task::MultiClass => Metrics::compute(scores, labels, classes),
            Task::MultiLabel => Metrics::multi_label(scores, labels, classes),
        }
    }

    /// Of labels that an image may have at once, from N×classes logits.
    fn multi_label(scores: &[f32], labels: &[u32], classes: usize) -> Metrics {
        assert_eq!(scores.len(), labels.len() * classes, "scores of {} images × {classes} labels", labels.len());
        let has = |image: usize, class: usize| Task::MultiLabel.has(labels[image], class);
        let counts = |class: usize| {
            let mut counts = vec![0u64; 4];
            for image in 0..labels.len() {
                let said = usize::from(scores[image * classes + class] > 0.0);
                counts[2 * usize::from(has(image, class)) + said] += 1;
            }
            counts
        };
        let confusion: Vec<Vec<u64>> = (0..classes).map(counts).collect();
        if scores.iter().any(|score| !score.is_finite()) || labels.is_empty() {
            let support = confusion.iter().map(|counts| counts[2] + counts[3]).collect();
            return Metrics::undefined(support, vec![vec![0; 4]; classes]);
        }
        let of_label = |class: usize| {
            let of_image = |image: usize| (f64::from(scores[image * classes + class]), has(image, class));
            let mut scored: Vec<(f64, bool)> = (0..labels.len()).map(of_image).collect();
            scored.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
            let two = [confusion[class][..2].to_vec(), confusion[class][2..].to_vec()];
            class_metrics(&two, 1, &scored)
        };
        let per_class: Vec<ClassMetrics> = (0..classes).into_par_iter().map(of_label).collect();
        let images = labels.len() as f64;
        let right = |counts: &Vec<u64>| (counts[0] + counts[3]) as f64 / images;
        let balanced = |class: &ClassMetrics| 0.5 * (class.recall + class.specificity);
        let support: f64 = per_class.iter().map(|class| class.support as f64).sum();
        let weighted = per_class.iter().filter(|c| c.support > 0).map(|c| c.f1 * c.support as f64).sum::<f64>();
        let (macro_f1, macro_f1_classes) = mean_of_defined(per_class.iter().map(|class| class.f1));
        let (auc, auc_classes) = mean_of_defined(per_class.iter().map(|class| class.auc));
        let decisions = (0..labels.len()).flat_map(|image| (0..classes).map(move |class| (image, class)));
        let (calibration_error, reliability) =
            binned(decisions.map(|(image, class)| (sigmoid(scores[image * classes + class]), has(image, class))));
        Metrics {
            accuracy: mean_of_defined(confusion.iter().map(right)).0,
            macro_f1,
            macro_f1_classes,
            auc,
            auc_classes,
            balanced_accuracy: mean_of_defined(per_class.iter().map(balanced)).0,
            weighted_f1: weighted / support,
            average_precision: mean_of_defined(per_class.iter().map(|class| class.average_precision)).0,
            quadratic_kappa: f64::NAN,
            calibration_error,
            reliability,
            per_class,
            confusion,
        }
    }

    /// [`Metrics::of`] one class for each image.
    ///
    /// # Panics
    /// As that does.
    pub fn compute(scores: &[f32], labels: &[u32], classes: usize) -> Metrics {
        assert_eq!(scores.len(), labels.len() * classes, "scores of {} images × {classes} classes", labels.len());
        let finite = scores.iter().all(|score| score.is_finite());
        let mut confusion = vec![vec![0; classes]; classes];
        let mut support = vec![0; classes];
        for (row, &label) in scores.chunks_exact(classes.max(1)).zip(labels) {
            support[label as usize] += 1;
            if finite {
                confusion[label as usize][argmax(row)] += 1;
            }
        }
        if !finite || labels.is_empty() {
            return Metrics::undefined(support, confusion);
        }

        let (evidence, probabilities) = (evidence(scores, classes), probabilities(scores, classes));
        let per_class: Vec<ClassMetrics> = (0..classes)
            .into_par_iter()
            .map(|class| {
                let column = evidence.iter().skip(class).step_by(classes).copied();
                let mut scored: Vec<(f64, bool)> =
                    column.zip(labels).map(|(score, &label)| (score, label as usize == class)).collect();
                scored.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
                class_metrics(&confusion, class, &scored)
            })
            .collect();
        let correct: u64 = (0..classes).map(|class| confusion[class][class]).sum();
        let images = labels.len() as f64;
        let (macro_f1, macro_f1_classes) = mean_of_defined(per_class.iter().map(|class| class.f1));
        let (mean_auc, auc_classes) = mean_of_defined(per_class.iter().map(|class| class.auc));
        let (mean_precision, _) = mean_of_defined(per_class.iter().map(|class| class.average_precision));
        let of_second =
            |second: fn(&ClassMetrics) -> f64, mean| if let [_, b] = &per_class[..] { second(b) } else { mean };
        let (calibration_error, reliability) = calibration(&probabilities, labels, classes);
        Metrics {
            accuracy: correct as f64 / images,
            macro_f1,
            macro_f1_classes,
            auc: of_second(|class| class.auc, mean_auc),
            auc_classes,
            balanced_accuracy: mean_of_defined(per_class.iter().map(|class| class.recall)).0,
            weighted_f1: per_class.iter().filter(|c| c.support > 0).map(|c| c.f1 * c.support as f64).sum::<f64>()
                / images,
            average_precision: of_second(|class| class.average_precision, mean_precision),
            quadratic_kappa: quadratic_kappa(&confusion),
            calibration_error,
            reliability,
            per_class,
            confusion,
        }
    }

    /// What may be chance in figures of these scores: images are drawn again so often, with replacement, by a seed.
    ///
    /// # Panics
    /// As [`Metrics::compute`] does.
    pub fn intervals(
        task: Task,
        scores: &[f32],
        labels: &[u32],
        classes: usize,
        resamples: usize,
        seed: u64,
    ) -> Intervals {
        let drawn = |resample: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(resample);
            let images: Vec<usize> = labels.iter().map(|_| rng.random_range(0..labels.len())).collect();
            let again: Vec<f32> =
                images.iter().flat_map(|&image| &scores[image * classes..][..classes]).copied().collect();
            let labels: Vec<u32> = images.iter().map(|&image| labels[image]).collect();
            Metrics::of(task, &again, &labels, classes)
        };
        let all: Vec<Metrics> = (0..resamples as u64).into_par_iter().map(drawn).collect();
        let of = |figure: fn(&Metrics) -> f64| {
            let mut values: Vec<f64> = all.iter().map(figure).filter(|value| !value.is_nan()).collect();
            values.sort_unstable_by(f64::total_cmp);
            [0.025, 0.975].map(|share| percentile(&values, share))
        };
        Intervals {
            resamples,
            accuracy: of(|metrics| metrics.accuracy),
            macro_f1: of(|metrics| metrics.macro_f1),
            auc: of(|metrics| metrics.auc),
            balanced_accuracy: of(|metrics| metrics.balanced_accuracy),
            weighted_f1: of(|metrics| metrics.weighted_f1),
            average_precision: of(|metrics| metrics.average_precision),
            quadratic_kappa: of(|metrics| metrics.quadratic_kappa),
            calibration_error: of(|metrics| metrics.calibration_error),
        }
    }

    fn undefined(support: Vec<u64>, confusion: Vec<Vec<u64>>) -> Metrics {
        let nan = f64::NAN;
        let class = |support| ClassMetrics {
            precision: nan,
            recall: nan,
            f1: nan,
            support,
            auc: nan,
            specificity: nan,
            average_precision: nan,
        };
        Metrics {
            accuracy: nan,
            macro_f1: nan,
            macro_f1_classes: 0,
            auc: nan,
            auc_classes: 0,
            balanced_accuracy: nan,
            weighted_f1: nan,
            average_precision: nan,
            quadratic_kappa: nan,
            calibration_error: nan,
            reliability: Vec::new(),
            per_class: support.into_iter().map(class).collect(),
            confusion,
        }
    }
}

/// Between the two nearest of values in order, as numpy has it.
fn percentile(values: &[f64], share: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (below, rest) = (at.floor() as usize, at.fract());
    values[below] + rest * (values[(below + 1).min(last)] - values[below])
}

/// `scored` are each image's score for the class, in order, and whether it is of the class.
fn class_metrics(confusion: &[Vec<u64>], class: usize, scored: &[(f64, bool)]) -> ClassMetrics {
    let support: u64 = confusion[class].iter().sum();
    let predicted: u64 = confusion.iter().map(|row| row[class]).sum();
    let all: u64 = confusion.iter().flatten().sum();
    let correct = confusion[class][class] as f64;
    let others = (all - support) as f64;
    ClassMetrics {
        // scikit-learn's 0 for a class that was to be found and was not; 0 / 0, and so NaN, for one that was not.
        precision: if predicted == 0 && support > 0 { 0.0 } else { correct / predicted as f64 },
        recall: correct / support as f64,
        f1: 2.0 * correct / (support + predicted) as f64,
        support,
        auc: auc(scored),
        specificity: (others - (predicted as f64 - correct)) / others,
        average_precision: average_precision(scored),
    }
}

/// The class of the largest score, the first of equal ones.
pub fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best })
}

/// A number per image and class that orders the images as their softmax probabilities do.
///
/// From logits it is the log-odds, log p / (1 − p) = z_c − log Σ_{k≠c} exp z_k: a confident network's probabilities
/// round to exactly 1 and tie, their log-odds do not.
fn evidence(scores: &[f32], classes: usize) -> Vec<f64> {
    if are_probabilities(scores, classes) {
        return scores.iter().map(|&score| f64::from(score)).collect();
    }
    let rows = || scores.par_chunks_exact(classes);
    rows()
        .flat_map_iter(|row| {
            (0..classes).map(move |class| {
                let others = || (0..classes).filter(move |&other| other != class).map(|other| f64::from(row[other]));
                let largest = others().fold(f64::NEG_INFINITY, f64::max);
                let rest: f64 = others().map(|score| (score - largest).exp()).sum();
                f64::from(row[class]) - largest - rest.ln()
            })
        })
        .collect()
}

/// Whether every row is a distribution.
fn are_probabilities(scores: &[f32], classes: usize) -> bool {
    scores.par_chunks_exact(classes).all(|row| {
        let total: f64 = row.iter().map(|&score| f64::from(score)).sum();
        row.iter().all(|&score| score >= 0.0) && (total - 1.0).abs() < 1e-4
    })
}

/// The scores, or their softmax.
fn probabilities(scores: &[f32], classes: usize) -> Vec<f64> {
    if are_probabilities(scores, classes) {
        return scores.iter().map(|&score| f64::from(score)).collect();
    }
    let of_row = |row: &[f32]| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|&score| (f64::from(score) - f64::from(largest)).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(move |power| power / sum)
    };
    scores.par_chunks_exact(classes).flat_map_iter(of_row).collect()
}

/// From the ranks: (sum of the positives' ranks − P (P + 1) / 2) / (P N), tied scores sharing their mean rank.
fn auc(scored: &[(f64, bool)]) -> f64 {
    let positives = scored.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = scored.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return f64::NAN;
    }
    let mut before = 0;
    let mut rank_sum = 0.0;
    for tied in scored.chunk_by(|(a, _), (b, _)| a == b) {
        let rank = before as f64 + (tied.len() as f64 + 1.0) / 2.0;
        rank_sum += rank * tied.iter().filter(|(_, positive)| *positive).count() as f64;
        before += tied.len();
    }
    (rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
}

/// From the largest score down: each threshold's precision by the recall that it adds.
fn average_precision(scored: &[(f64, bool)]) -> f64 {
    let positives = scored.iter().filter(|(_, positive)| *positive).count() as f64;
    let (mut found, mut seen, mut sum) = (0.0, 0.0, 0.0);
    let tied: Vec<&[(f64, bool)]> = scored.chunk_by(|(a, _), (b, _)| a == b).collect();
    for tied in tied.into_iter().rev() {
        let new = tied.iter().filter(|(_, positive)| *positive).count() as f64;
        (found, seen) = (found + new, seen + tied.len() as f64);
        sum += new / positives * (found / seen);
    }
    // 0 / 0 where there is none.
    if positives == 0.0 { f64::NAN } else { sum }
}

/// 1 − Σ w·O / Σ w·E, with w the squared distance between two classes, O the confusion, and E that of independent answers.
fn quadratic_kappa(confusion: &[Vec<u64>]) -> f64 {
    let all: u64 = confusion.iter().flatten().sum();
    let predicted: Vec<u64> = (0..confusion.len()).map(|class| confusion.iter().map(|row| row[class]).sum()).collect();
    let (mut seen, mut expected) = (0.0, 0.0);
    for (label, row) in confusion.iter().enumerate() {
        let support: u64 = row.iter().sum();
        for (class, &count) in row.iter().enumerate() {
            let weight = label.abs_diff(class).pow(2) as f64;
            seen += weight * count as f64;
            expected += weight * support as f64 * predicted[class] as f64 / all as f64;
        }
    }
    1.0 - seen / expected
}

/// The expected calibration error of the largest probabilities, and its bins.
fn calibration(probabilities: &[f64], labels: &[u32], classes: usize) -> (f64, Vec<Bin>) {
    binned(probabilities.chunks_exact(classes).zip(labels).map(|(row, &label)| {
        let best = (1..classes).fold(0, |best, class| if row[class] > row[best] { class } else { best });
        (row[best], best == label as usize)
    }))
}

/// The expected calibration error, and its bins, of probabilities and what came true.
fn binned(decisions: impl Iterator<Item = (f64, bool)>) -> (f64, Vec<Bin>) {
    const BINS: usize = 15;
    let mut sums = [(0.0, 0u64, 0u64); BINS];
    for (probability, is_true) in decisions {
        // The upper end belongs to a bin.
        let bin = ((probability * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        let (confidence, correct, count) = &mut sums[bin];
        *confidence += probability;
        *correct += u64::from(is_true);
        *count += 1;
    }
    let bins: Vec<Bin> = sums
        .into_iter()
        .filter(|(_, _, images)| *images > 0)
        .map(|(confidence, correct, images)| Bin {
            confidence: confidence / images as f64,
            accuracy: correct as f64 / images as f64,
            images,
        })
        .collect();
    let all = bins.iter().map(|bin| bin.images).sum::<u64>() as f64;
    (bins.iter().map(|bin| bin.images as f64 / all * (bin.accuracy - bin.confidence).abs()).sum(), bins)
}

/// 1 / (1 + exp(−z)).
pub fn sigmoid(logit: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit)).exp())
}

/// Logits whose sigmoid is the mean of the members' probabilities.
///
/// # Panics
/// If the members are of different lengths.
fn mean_of_sigmoid<M: AsRef<[f32]>>(members: &[M]) -> Vec<f32> {
    assert!(members.iter().all(|member| member.as_ref().len() == members[0].as_ref().len()), "members of an ensemble");
    // Of a probability and of its rest by themselves: neither rounds to 1.
    let mean = |at: usize, sign: f32| -> f64 {
        members.iter().map(|member| sigmoid(sign * member.as_ref()[at])).sum::<f64>().max(f64::MIN_POSITIVE)
    };
    (0..members[0].as_ref().len()).map(|at| (mean(at, 1.0) / mean(at, -1.0)).ln() as f32).collect()
}

/// Logits of an ensemble: of the mean of its members' probabilities.
///
/// # Panics
/// If the members, N × classes each, are of different lengths.
pub fn mean_of_members<M: AsRef<[f32]>>(task: Task, members: &[M], classes: usize) -> Vec<f32> {
    match task {
        Task::MultiClass => mean_of_softmax(members, classes),
        Task::MultiLabel => mean_of_sigmoid(members),
    }
}

/// The mean of the values that are numbers, and how many these are.
fn mean_of_defined(values: impl Iterator<Item = f64>) -> (f64, usize) {
    let (sum, count) =
        values.filter(|value| !value.is_nan()).fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (sum / count as f64, count)
}

/// One row of logits becomes probabilities.
pub fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|score| *score /= sum);
}

/// Logits whose softmax is the mean of the members' probabilities: its logarithm.
///
/// # Panics
/// If the members, N × classes each, are of different lengths.
fn mean_of_softmax<M: AsRef<[f32]>>(members: &[M], classes: usize) -> Vec<f32> {
    let mut sums = vec![0f64; members[0].as_ref().len()];
    let mut row = Vec::with_capacity(classes);
    for member in members {
        assert_eq!(member.as_ref().len(), sums.len(), "members of an ensemble");
        for (sums, logits) in sums.chunks_mut(classes).zip(member.as_ref().chunks(classes)) {
            row.clear();
            row.extend_from_slice(logits);
            softmax(&mut row);
            sums.iter_mut().zip(&row).for_each(|(sum, &probability)| *sum += f64::from(probability));
        }
    }
    // What no member thinks possible has a logarithm too.
    sums.iter().map(|sum| (sum / members.len() as f64).max(f64::from(f32::MIN_POSITIVE)).ln() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-12, "{actual} is not {expected}");
    }

    /// 24 images, 4 classes, the last of which is predicted and never right.
    fn example() -> (Vec<f32>, Vec<u32>) {
        let score = |at: usize| ((at / 4 * 7 + at % 4 * 13 + at / 4 * (at % 4) * 5) % 17) as f32 / 4.0;
        let labels = (0..24).map(|image| (image * image + image / 3) % 3);
        ((0..96).map(score).collect(), labels.collect())
    }

    #[test]
    fn figures_are_those_of_scikit_learn() {
        // scikit-learn 1.9 on `example`: accuracy_score, f1_score(average="macro", zero_division=0),
        // precision_recall_fscore_support, confusion_matrix, and the mean over the classes with images of
        // roc_auc_score(labels == c, softmax in float64 [:, c]).
        let (scores, labels) = example();
        let metrics = Metrics::compute(&scores, &labels, 4);
        assert_near(metrics.accuracy, 0.2916666666666667);
        assert_near(metrics.macro_f1, 0.27142857142857146);
        assert_near(metrics.auc, 0.5505528484541965);
        assert_eq!(metrics.confusion, [[2, 2, 0, 3], [3, 3, 0, 3], [2, 1, 2, 3], [0, 0, 0, 0]]);
        let expected = [
            [2.0 / 7.0, 2.0 / 7.0, 2.0 / 7.0, 7.0, 0.46638655462184875],
            [0.5, 1.0 / 3.0, 0.4, 9.0, 0.5407407407407407],
            [1.0, 0.25, 0.4, 8.0, 0.64453125],
        ];
        for (class, [precision, recall, f1, support, auc]) in metrics.per_class.iter().zip(expected) {
            assert_near(class.precision, precision);
            assert_near(class.recall, recall);
            assert_near(class.f1, f1);
            assert_near(class.support as f64, support);
            assert_near(class.auc, auc);
        }
        // balanced_accuracy_score, f1_score(average="weighted"), cohen_kappa_score(weights="quadratic", labels=range(4)),
        // average_precision_score and recall_score of each class against the rest; the calibration error by its formula in numpy.
        assert_near(metrics.balanced_accuracy, 0.2896825396825397);
        assert_near(metrics.weighted_f1, 0.3666666666666667);
        assert_near(metrics.quadratic_kappa, 0.04950495049504955);
        assert_near(metrics.calibration_error, 0.31386538962177374);
        let of_classes = [0.445578231292517, 0.5066448580941334, 0.5686286027568922];
        for (class, (precision, specificity)) in
            metrics.per_class.iter().zip(of_classes.into_iter().zip([0.7058823529411765, 0.8, 1.0]))
        {
            assert_near(class.average_precision, precision);
            assert_near(class.specificity, specificity);
        }
        assert_near(metrics.average_precision, of_classes.iter().sum::<f64>() / 3.0);
        assert_near(metrics.per_class[3].specificity, 0.625);
        assert!(metrics.per_class[3].average_precision.is_nan());
        assert_eq!(metrics.reliability.iter().map(|bin| bin.images).sum::<u64>(), 24);
        assert_eq!((metrics.per_class[3].f1, metrics.per_class[3].support), (0.0, 0));
        assert!(metrics.per_class[3].auc.is_nan());
        assert_eq!((metrics.macro_f1_classes, metrics.auc_classes), (4, 3));
    }

    /// By hand. Class 0: 0.7 and 0.3 against 0.4 and 0.5 win two of four pairs; class 1: 0.5 and 0.3 against 0.2 and 0.1
    /// win all four. Predictions are 0, 2, 1, 0.
    #[test]
    fn an_absent_class_has_no_auc_and_means_say_of_how_many_they_are() {
        let rows = [[0.7, 0.2, 0.1], [0.3, 0.1, 0.6], [0.4, 0.5, 0.1], [0.5, 0.3, 0.2]];
        let metrics = Metrics::compute(rows.as_flattened(), &[0, 0, 1, 1], 3);
        assert_eq!(metrics.confusion, [[1, 0, 1], [1, 1, 0], [0, 0, 0]]);
        assert_near(metrics.accuracy, 0.5);
        assert_near(metrics.per_class[0].auc, 0.5);
        assert_near(metrics.per_class[1].auc, 1.0);
        assert!(metrics.per_class[2].auc.is_nan());
        assert_near(metrics.auc, 0.75);
        assert_eq!(metrics.auc_classes, 2);
        // 2 · 1 / (2 + 2), 2 · 1 / (2 + 1), and 0 of the one that was predicted where it was not.
        assert_near(metrics.macro_f1, (0.5 + 2.0 / 3.0) / 3.0);
        assert_eq!(metrics.macro_f1_classes, 3);
        let absent = &metrics.per_class[2];
        assert_eq!((absent.precision, absent.f1, absent.support), (0.0, 0.0, 0));
        assert!(absent.recall.is_nan());

        // A fourth class that nobody has and nobody predicts changes no mean, and has no figure.
        let wide: Vec<f32> = rows.iter().flat_map(|row| [row[0], row[1], row[2], 0.0]).collect();
        let with_more = Metrics::compute(&wide, &[0, 0, 1, 1], 4);
        assert_eq!((with_more.auc, with_more.macro_f1), (metrics.auc, metrics.macro_f1));
        assert_eq!((with_more.auc_classes, with_more.macro_f1_classes), (2, 3));
        let class = &with_more.per_class[3];
        assert!([class.precision, class.recall, class.f1, class.auc].iter().all(|figure| figure.is_nan()));
    }

    #[test]
    fn a_class_that_was_to_be_found_and_was_not_has_a_precision_of_0() {
        let metrics = Metrics::compute(&[1.0, 0.0, 1.0, 0.0], &[0, 1], 2);
        let class = &metrics.per_class[1];
        assert_eq!((class.precision, class.recall, class.f1), (0.0, 0.0, 0.0));
        assert_eq!((metrics.macro_f1_classes, metrics.auc, metrics.auc_classes), (2, 0.5, 2));
    }

    #[test]
    fn two_classes_take_the_last_column_and_ties_count_half() {
        // roc_auc_score(labels, second) of scikit-learn 1.9 is 0.78.
        let second = [0.1, 0.4, 0.4, 0.4, 0.8, 0.8, 0.6, 0.2, 0.9, 0.4];
        let labels = [0, 0, 1, 1, 1, 0, 1, 0, 1, 0];
        let scores: Vec<f32> = second.iter().flat_map(|&p| [1.0 - p, p]).collect();
        let metrics = Metrics::compute(&scores, &labels, 2);
        assert_near(metrics.auc, 0.78);
        assert_near(metrics.per_class[0].auc, 0.78);
        // average_precision_score.
        assert_near(metrics.average_precision, 0.7333333333333334);
    }

    /// Of 400 images 300 are right: the standard error of the accuracy is √(0.75·0.25/400) = .0217.
    #[test]
    fn intervals_are_those_of_the_binomial() {
        let scores: Vec<f32> = (0..400).flat_map(|i| if i % 4 == 0 { [0.0, 1.0] } else { [1.0, 0.0] }).collect();
        let labels = vec![0; 400];
        let of = |seed| Metrics::intervals(Task::MultiClass, &scores, &labels, 2, 2000, seed);
        let intervals = of(1);
        let [low, high] = intervals.accuracy;
        assert!(
            (low - (0.75 - 1.96 * 0.0217)).abs() < 0.006 && (high - (0.75 + 1.96 * 0.0217)).abs() < 0.006,
            "{low}, {high}"
        );
        assert!(intervals.auc.iter().all(|end| end.is_nan()), "a single class has no AUC");
        assert_eq!((of(1).accuracy, of(1).macro_f1), (intervals.accuracy, intervals.macro_f1));
        assert_ne!(of(2).macro_f1, intervals.macro_f1);
        let (scores, labels) = example();
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let alone = one_thread.install(|| Metrics::intervals(Task::MultiClass, &scores, &labels, 4, 50, 3));
        assert_eq!(alone, Metrics::intervals(Task::MultiClass, &scores, &labels, 4, 50, 3));
        assert_eq!(percentile(&[1.0, 2.0, 4.0], 0.75), 3.0);
    }

    /// scikit-learn 1.9.1: means over the labels of accuracy_score, roc_auc_score, average_precision_score and
    /// balanced_accuracy_score, f1_score(average="macro" and "weighted"), multilabel_confusion_matrix; the calibration error by
    /// numpy, of all decisions in 15 bins.
    #[test]
    fn figures_of_several_labels_are_those_of_scikit_learn() {
        let logit = |i: i32, c: i32| ((7 * i * i + 3 * i * c + 5 * c + 11) % 23 - 11) as f32 / 4.0;
        let has = |i: i32, c: i32| u32::from((i * 5 + c * 3) % 7 < 3 - c);
        let scores: Vec<f32> = (0..12).flat_map(|i| (0..3).map(move |c| logit(i, c))).collect();
        let labels: Vec<u32> = (0..12).map(|i| (0..3).map(|c| has(i, c) << c).sum()).collect();
        let metrics = Metrics::of(Task::MultiLabel, &scores, &labels, 3);
        assert_near(metrics.accuracy, 0.3888888888888889);
        assert_near(metrics.macro_f1, 0.2148148148148148);
        assert_near(metrics.weighted_f1, 0.21777777777777776);
        assert_near(metrics.auc, 0.5074514991181658);
        assert_near(metrics.per_class[1].auc, 0.42592592592592593);
        assert_near(metrics.average_precision, 0.46975629308962646);
        assert_near(metrics.balanced_accuracy, 0.39153439153439146);
        assert_near(metrics.calibration_error, 0.4390557779216441);
        assert_eq!(metrics.confusion, [[4, 3, 4, 1], [4, 5, 2, 1], [3, 7, 1, 1]]);
        assert_near(metrics.per_class[2].precision, 0.125);
        assert_near(metrics.per_class[0].recall, 0.2);
        assert!(metrics.quadratic_kappa.is_nan());
        let broken = Metrics::of(Task::MultiLabel, &[&scores[1..], &[f32::NAN]].concat(), &labels, 3);
        assert!(broken.accuracy.is_nan() && broken.per_class[0].support == metrics.per_class[0].support);
        let intervals = Metrics::intervals(Task::MultiLabel, &scores, &labels, 3, 20, 1);
        assert!(intervals.accuracy[0] < metrics.accuracy && metrics.accuracy < intervals.accuracy[1]);
    }

    #[test]
    fn members_of_several_labels_are_averaged_label_by_label() {
        let members = [vec![0.0, 30.0, -2.0], vec![2.0, 40.0, -1.0]];
        let means = mean_of_members(Task::MultiLabel, &members, 3);
        let near = |index: usize| {
            let mean = 0.5 * (sigmoid(members[0][index]) + sigmoid(members[1][index]));
            assert!((sigmoid(means[index]) - mean).abs() < 1e-7, "{means:?}");
        };
        (0..3).for_each(near);
        // Not infinite, though both probabilities are 1 in float32.
        assert!(means[1] > 30.0 && means[1] < 31.0, "{means:?}");
        assert_eq!(mean_of_members(Task::MultiLabel, &members[..1], 3)[0], 0.0);
    }

    #[test]
    fn confident_logits_do_not_tie() {
        // Every softmax is 1 in float64, and the order is still perfect.
        let metrics = Metrics::compute(&[0.0, 50.0, 0.0, 60.0, 0.0, 70.0], &[0, 0, 1], 2);
        assert_eq!(metrics.auc, 1.0);
    }

    #[test]
    fn the_first_of_equal_scores_is_predicted() {
        let metrics = Metrics::compute(&[1.0, 1.0, 0.0, 2.0, 3.0, 3.0], &[0, 1], 3);
        assert_eq!(metrics.accuracy, 1.0);
        // The third class neither occurs nor is predicted, and does not count.
        assert_eq!(metrics.macro_f1, 1.0);
    }

    #[test]
    fn broken_scores_have_no_figures() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut scores, labels) = example();
            scores[41] = broken;
            let metrics = Metrics::compute(&scores, &labels, 4);
            assert!([metrics.accuracy, metrics.macro_f1, metrics.auc].iter().all(|figure| figure.is_nan()));
            assert!(metrics.per_class.iter().all(|class| class.f1.is_nan() && class.auc.is_nan()));
            assert_eq!(metrics.per_class[1].support, 9);
            assert!(metrics.confusion.iter().flatten().all(|&count| count == 0));
            assert_eq!((metrics.macro_f1_classes, metrics.auc_classes), (0, 0));
        }
        assert!(Metrics::compute(&[], &[], 3).accuracy.is_nan());
    }

    #[test]
    fn a_single_class_of_labels_has_no_auc() {
        let metrics = Metrics::compute(&[0.0, 1.0, 1.0, 0.0], &[1, 1], 2);
        assert_eq!(metrics.accuracy, 0.5);
        assert!(metrics.auc.is_nan());
        assert_eq!((metrics.auc_classes, metrics.macro_f1_classes), (0, 2));
        assert!(serde_json::to_string(&metrics).unwrap().contains("\"auc\":null"));
    }
}
