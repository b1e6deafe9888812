//! Where to decide: a threshold of a class's probability that is chosen on one split, and what it comes to on another.

use serde::{Deserialize, Serialize};

use super::sigmoid;
use crate::data::Task;

/// What a threshold is best by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThresholdBy {
    F1,
    /// Youden's J: sensitivity + specificity − 1.
    Youden,
}

/// What decisions by a threshold come to. A figure is NaN where it is not defined.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decided {
    pub class: usize,
    /// An image is of the class where its probability is above.
    pub threshold: f64,
    pub sensitivity: f64,
    pub specificity: f64,
    pub precision: f64,
    pub f1: f64,
    pub accuracy: f64,
}

/// A split's N×classes logits and labels.
#[derive(Clone, Copy)]
pub struct Scored<'a> {
    pub scores: &'a [f32],
    pub labels: &'a [u32],
}

/// Thresholds that are best on `chosen_on`, and figures of `measured_on` by them: of each label that an image may have at once, or of
/// the second of two classes. `None` of more classes, which the largest probability decides.
///
/// # Panics
/// If lengths do not agree.
pub fn decided(
    task: Task,
    classes: usize,
    by: ThresholdBy,
    chosen_on: Scored,
    measured_on: Scored,
) -> Option<Vec<Decided>> {
    let of_classes: Vec<usize> = match task {
        Task::MultiLabel => (0..classes).collect(),
        Task::MultiClass if classes == 2 => vec![1],
        Task::MultiClass => return None,
    };
    let of_class = |class: usize| {
        let threshold = best(&odds(task, classes, class, chosen_on), by);
        let counts = Counts::of(&odds(task, classes, class, measured_on), threshold);
        counts.decided(class, threshold)
    };
    Some(of_classes.into_iter().map(of_class).collect())
}

/// Each image's log-odds of a class, and whether it is of that.
fn odds(task: Task, classes: usize, class: usize, Scored { scores, labels }: Scored) -> Vec<(f32, bool)> {
    assert_eq!(scores.len(), labels.len() * classes, "scores of {} images × {classes}", labels.len());
    let of_row = |row: &[f32]| match task {
        Task::MultiLabel => row[class],
        Task::MultiClass => row[class] - row[1 - class],
    };
    scores.chunks_exact(classes).zip(labels).map(|(row, &label)| (of_row(row), task.has(label, class))).collect()
}

/// The log-odds half-way between two images that are best to part; of equal ones the least. 0 where there is nothing to choose by.
fn best(odds: &[(f32, bool)], by: ThresholdBy) -> f32 {
    let mut values: Vec<f32> = odds.iter().map(|(value, _)| *value).collect();
    values.sort_unstable_by(f32::total_cmp);
    values.dedup();
    let between = values.windows(2).map(|pair| 0.5 * (pair[0] + pair[1]));
    let mut found: Option<(f64, f32)> = None;
    for threshold in between {
        let figure = Counts::of(odds, threshold).figure(by);
        if figure.is_finite() && found.is_none_or(|(best, _)| figure > best) {
            found = Some((figure, threshold));
        }
    }
    found.map_or(0.0, |(_, threshold)| threshold)
}

/// Images of the class and others, as they are decided.
struct Counts {
    found: f64,
    missed: f64,
    alarms: f64,
    left: f64,
}

impl Counts {
    fn of(odds: &[(f32, bool)], threshold: f32) -> Counts {
        let count = |of: bool, said: bool| {
            odds.iter().filter(|(value, is)| *is == of && (*value > threshold) == said).count() as f64
        };
        Counts {
            found: count(true, true),
            missed: count(true, false),
            alarms: count(false, true),
            left: count(false, false),
        }
    }

    fn figure(&self, by: ThresholdBy) -> f64 {
        let Counts { found, missed, alarms, left } = self;
        match by {
            ThresholdBy::F1 => 2.0 * found / (2.0 * found + missed + alarms),
            ThresholdBy::Youden => found / (found + missed) + left / (left + alarms) - 1.0,
        }
    }

    fn decided(&self, class: usize, threshold: f32) -> Decided {
        let Counts { found, missed, alarms, left } = self;
        Decided {
            class,
            threshold: sigmoid(threshold),
            sensitivity: found / (found + missed),
            specificity: left / (left + alarms),
            precision: found / (found + alarms),
            f1: self.figure(ThresholdBy::F1),
            accuracy: (found + left) / (found + missed + alarms + left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log-odds from −3 to 4: of the class are those of −1, 2, 3 and 4.
    #[test]
    fn the_best_threshold_is_found() {
        let logits: Vec<f32> = (-3..=4).map(|value| value as f32).collect();
        let labels = [0, 0, 1, 0, 0, 1, 1, 1];
        let split = Scored { scores: &logits, labels: &labels };
        for by in [ThresholdBy::F1, ThresholdBy::Youden] {
            let found = decided(Task::MultiLabel, 1, by, split, split).unwrap();
            // Above 1.5 three of four are found without a false alarm: F1 6/7 and J 3/4; above −1.5, F1 8/10 and J 1/2.
            let expected = Decided {
                class: 0,
                threshold: 1.0 / (1.0 + (-1.5f64).exp()),
                sensitivity: 0.75,
                specificity: 1.0,
                precision: 1.0,
                f1: 6.0 / 7.0,
                accuracy: 7.0 / 8.0,
            };
            assert_eq!(found, [expected]);
        }
        // Where missing one costs more, F1 and J part: four of the class, and one image between them that is not.
        let logits = [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0];
        let labels = [0, 1, 0, 1, 1, 1];
        let split = Scored { scores: &logits, labels: &labels };
        let of = |by| decided(Task::MultiLabel, 1, by, split, split).unwrap()[0].threshold;
        assert_eq!((of(ThresholdBy::F1), of(ThresholdBy::Youden)), (sigmoid(-1.5), sigmoid(0.5)));
    }

    #[test]
    fn two_classes_have_one_threshold_and_more_have_none() {
        let scores = [3.0, 1.0, 1.0, 2.0, 0.0, 4.0, 0.5, 0.0];
        let chosen = Scored { scores: &scores, labels: &[0, 1, 1, 0] };
        let measured = Scored { scores: &[0.0, 2.0, 0.0, -2.0], labels: &[1, 1] };
        let found = decided(Task::MultiClass, 2, ThresholdBy::Youden, chosen, measured).unwrap();
        // Log-odds −2, 1, 4 and −0.5: above 0.25.
        assert_eq!((found.len(), found[0].class, found[0].threshold), (1, 1, sigmoid(0.25)));
        assert_eq!(found[0].sensitivity, 0.5);
        assert!(found[0].specificity.is_nan(), "there is no other class to measure on");
        assert_eq!(decided(Task::MultiClass, 3, ThresholdBy::F1, chosen, chosen), None);
        let none = Scored { scores: &[], labels: &[] };
        assert_eq!(decided(Task::MultiLabel, 1, ThresholdBy::F1, none, none).unwrap()[0].threshold, 0.5);
    }
}
