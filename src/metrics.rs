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
    /// The mean AUC of the classes against the rest; with two classes, that of the second.
    pub auc: f64,
    pub per_class: Vec<ClassMetrics>,
    /// Images by label (row) and prediction (column).
    pub confusion: Vec<Vec<u64>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassMetrics {
    /// 0 where the class is never predicted.
    pub precision: f64,
    /// 0 where the class has no image.
    pub recall: f64,
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
        let predicted = |class: usize| confusion.iter().any(|row| row[class] > 0);
        let correct: u64 = (0..classes).map(|class| confusion[class][class]).sum();
        Metrics {
            accuracy: correct as f64 / labels.len() as f64,
            macro_f1: mean(
                (0..classes).filter(|&class| support[class] > 0 || predicted(class)).map(|class| per_class[class].f1),
            ),
            auc: match &per_class[..] {
                [_, second] => second.auc,
                all => mean(all.iter().map(|class| class.auc).filter(|auc| !auc.is_nan())),
            },
            per_class,
            confusion,
        }
    }

    fn undefined(support: Vec<u64>, confusion: Vec<Vec<u64>>) -> Metrics {
        let nan = f64::NAN;
        let class = |support| ClassMetrics { precision: nan, recall: nan, f1: nan, support, auc: nan };
        let per_class = support.into_iter().map(class).collect();
        Metrics { accuracy: nan, macro_f1: nan, auc: nan, per_class, confusion }
    }
}

fn class_metrics(confusion: &[Vec<u64>], class: usize, auc: f64) -> ClassMetrics {
    let support: u64 = confusion[class].iter().sum();
    let predicted: u64 = confusion.iter().map(|row| row[class]).sum();
    let correct = confusion[class][class] as f64;
    let ratio = |of: f64, to: u64| if to == 0 { 0.0 } else { of / to as f64 };
    ClassMetrics {
        precision: ratio(correct, predicted),
        recall: ratio(correct, support),
        f1: ratio(2.0 * correct, support + predicted),
        support,
        auc,
    }
}

fn argmax(row: &[f32]) -> usize {
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

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// One row of logits becomes probabilities.
pub fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|score| *score /= sum);
}
