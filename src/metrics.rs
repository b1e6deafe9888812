//! How well a classifier's scores fit the labels: accuracy, macro F1, area under the ROC curve, and the same per class.
//!
//! Accuracy and F1 look at the class of the largest score; the AUC looks at the order of the scores and is
//! the probability that a random image of the class scores higher than a random other one, ties counting half.
//! Definitions: scikit-learn for F1, MedMNIST's evaluator for the AUC.

use rayon::prelude::*;
use serde::Serialize;

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
    pub per_class: Vec<ClassMetrics>,
    /// Images by label (row) and prediction (column).
    pub confusion: Vec<Vec<u64>>,
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
}

impl Metrics {
    /// From N×classes `scores`, row after row: logits, or probabilities if every row is a distribution.
    ///
    /// # Panics
    /// If the lengths do not agree, or a label is not below `classes`.
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

        let evidence = evidence(scores, classes);
        let per_class: Vec<ClassMetrics> = (0..classes)
            .into_par_iter()
            .map(|class| {
                let column = evidence.iter().skip(class).step_by(classes).copied();
                let auc = auc(column.zip(labels).map(|(score, &label)| (score, label as usize == class)).collect());
                class_metrics(&confusion, class, auc)
            })
            .collect();
        let correct: u64 = (0..classes).map(|class| confusion[class][class]).sum();
        let (macro_f1, macro_f1_classes) = mean_of_defined(per_class.iter().map(|class| class.f1));
        let (mean_auc, auc_classes) = mean_of_defined(per_class.iter().map(|class| class.auc));
        Metrics {
            accuracy: correct as f64 / labels.len() as f64,
            macro_f1,
            macro_f1_classes,
            auc: match &per_class[..] {
                [_, second] => second.auc,
                _ => mean_auc,
            },
            auc_classes,
            per_class,
            confusion,
        }
    }

    fn undefined(support: Vec<u64>, confusion: Vec<Vec<u64>>) -> Metrics {
        let nan = f64::NAN;
        let class = |support| ClassMetrics { precision: nan, recall: nan, f1: nan, support, auc: nan };
        let per_class = support.into_iter().map(class).collect();
        let (macro_f1_classes, auc_classes) = (0, 0);
        Metrics { accuracy: nan, macro_f1: nan, macro_f1_classes, auc: nan, auc_classes, per_class, confusion }
    }
}

fn class_metrics(confusion: &[Vec<u64>], class: usize, auc: f64) -> ClassMetrics {
    let support: u64 = confusion[class].iter().sum();
    let predicted: u64 = confusion.iter().map(|row| row[class]).sum();
    let correct = confusion[class][class] as f64;
    ClassMetrics {
        // scikit-learn's 0 for a class that was to be found and was not; 0 / 0, and so NaN, for one that was not.
        precision: if predicted == 0 && support > 0 { 0.0 } else { correct / predicted as f64 },
        recall: correct / support as f64,
        f1: 2.0 * correct / (support + predicted) as f64,
        support,
        auc,
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
    let rows = || scores.par_chunks_exact(classes);
    let probabilities = rows().all(|row| {
        let total: f64 = row.iter().map(|&score| f64::from(score)).sum();
        row.iter().all(|&score| score >= 0.0) && (total - 1.0).abs() < 1e-4
    });
    if probabilities {
        return scores.iter().map(|&score| f64::from(score)).collect();
    }
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

/// From the ranks: (sum of the positives' ranks − P (P + 1) / 2) / (P N), tied scores sharing their mean rank.
fn auc(mut scored: Vec<(f64, bool)>) -> f64 {
    let positives = scored.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = scored.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return f64::NAN;
    }
    scored.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut before = 0;
    let mut rank_sum = 0.0;
    for tied in scored.chunk_by(|(a, _), (b, _)| a == b) {
        let rank = before as f64 + (tied.len() as f64 + 1.0) / 2.0;
        rank_sum += rank * tied.iter().filter(|(_, positive)| *positive).count() as f64;
        before += tied.len();
    }
    (rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
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
pub fn mean_of_softmax<M: AsRef<[f32]>>(members: &[M], classes: usize) -> Vec<f32> {
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
