//! What labels say: which class an image is of, or which findings it has.

use serde::{Deserialize, Serialize};

/// The most labels that an image may have at once.
pub const MOST_LABELS: usize = 32;

/// How a label, one number for each image, is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One class, by its number.
    #[default]
    MultiClass,
    /// Any of up to [`MOST_LABELS`], or none: bit k stands for label k.
    MultiLabel,
}

impl Task {
    pub fn name(self) -> &'static str {
        match self {
            Task::MultiClass => "multi-class",
            Task::MultiLabel => "multi-label",
        }
    }

    /// For what is said alone where it is not usual.
    pub fn is_multi_class(&self) -> bool {
        *self == Task::MultiClass
    }

    /// Whether a label says so of `class`.
    pub fn has(self, label: u32, class: usize) -> bool {
        match self {
            Task::MultiClass => label as usize == class,
            Task::MultiLabel => label >> class & 1 == 1,
        }
    }

    /// The classes that a label says.
    pub fn classes_of(self, label: u32) -> impl Iterator<Item = usize> {
        let (first, end) = match self {
            Task::MultiClass => (label as usize, label as usize + 1),
            Task::MultiLabel => (0, MOST_LABELS),
        };
        (first..end).filter(move |&class| self.has(label, class))
    }

    /// How many labels say each of `classes`.
    pub fn count(self, labels: &[u32], classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        labels.iter().flat_map(|&label| self.classes_of(label)).for_each(|class| counts[class] += 1);
        counts
    }

    /// What of images is kept in the same shares where some are drawn: their class; of several labels the rarest, and `classes` where
    /// there is none.
    pub fn strata(self, labels: &[u32], classes: usize) -> Vec<u32> {
        let counts = self.count(labels, classes);
        let rarest = |label: u32| self.classes_of(label).min_by_key(|&class| counts[class]).unwrap_or(classes);
        labels.iter().map(|&label| rarest(label) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_numbers_or_sets() {
        assert_eq!(Task::MultiClass.count(&[0, 2, 2], 3), [1, 0, 2]);
        assert_eq!(Task::MultiLabel.count(&[0b101, 0b100, 0, 0b111], 3), [2, 1, 3]);
        assert_eq!(Task::MultiLabel.classes_of(1 << 31 | 1).collect::<Vec<_>>(), [0, 31]);
        assert_eq!(Task::MultiClass.strata(&[0, 2, 2], 3), [0, 2, 2]);
        // Label 1 is the rarest of the last.
        assert_eq!(Task::MultiLabel.strata(&[0b101, 0b100, 0, 0b111], 3), [0, 2, 3, 1]);
    }
}
