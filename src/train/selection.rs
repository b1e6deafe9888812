//! Which epoch's model is kept, when a run ends before its last epoch, and when rates fall on a plateau: all by one figure of the
//! validation split, which is macro F1 unless another is asked for.

use serde::{Deserialize, Serialize};

use super::EpochRecord;
use crate::nn::Model;
use crate::tensor::Tensor;

/// The figure of the validation split by which epochs are better or worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SelectBy {
    Accuracy,
    BalancedAccuracy,
    #[default]
    MacroF1,
    Auc,
    /// The mean of −log p of the label: less is better.
    Loss,
}

impl SelectBy {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            SelectBy::Accuracy => "accuracy",
            SelectBy::BalancedAccuracy => "balanced accuracy",
            SelectBy::MacroF1 => "macro F1",
            SelectBy::Auc => "AUC",
            SelectBy::Loss => "loss",
        }
    }

    /// The figure of an epoch; `None` where the validation split is empty.
    pub fn figure(self, record: &EpochRecord) -> Option<f64> {
        match self {
            SelectBy::Accuracy => record.val_accuracy,
            SelectBy::BalancedAccuracy => record.val_balanced_accuracy,
            SelectBy::MacroF1 => record.val_macro_f1,
            SelectBy::Auc => record.val_auc,
            SelectBy::Loss => record.val_loss,
        }
    }

    /// Whether an epoch is better than an earlier one. Without a validation split each one is.
    fn is_better(self, record: &EpochRecord, than: &EpochRecord) -> bool {
        match (self.figure(record), self.figure(than)) {
            (Some(figure), Some(than)) if self == SelectBy::Loss => figure < than,
            (Some(figure), Some(than)) => figure > than,
            _ => true,
        }
    }

    pub(super) fn is_usual(&self) -> bool {
        *self == SelectBy::default()
    }
}

/// The part of the best epoch that is kept.
pub(super) struct Best {
    /// Counted from 0.
    pub epoch: usize,
    pub model: Model,
    /// Merge weights, where some are learned.
    pub merge_weights: Option<Tensor>,
}

/// The epochs so far, and the best of them.
#[derive(Default)]
pub(super) struct Selection {
    pub history: Vec<EpochRecord>,
    pub best: Option<Best>,
}

impl Selection {
    /// Whether an epoch is better than all before.
    pub fn improves(&self, record: &EpochRecord, by: SelectBy) -> bool {
        self.best.as_ref().is_none_or(|best| by.is_better(record, &self.history[best.epoch]))
    }

    /// Adds an epoch, with its model if it [improves](Selection::improves).
    pub fn add(&mut self, record: EpochRecord, best: Option<(Model, Option<Tensor>)>) {
        if let Some((model, merge_weights)) = best {
            self.best = Some(Best { epoch: record.epoch - 1, model, merge_weights });
        }
        self.history.push(record);
    }
}

/// The epoch whose model is kept: the first of those with the best macro F1 on the validation split, or the last one where
/// that split is empty.
pub fn best_epoch(history: &[EpochRecord]) -> Option<&EpochRecord> {
    best_epoch_by(SelectBy::MacroF1, history)
}

/// [`best_epoch`] by another figure.
pub fn best_epoch_by(by: SelectBy, history: &[EpochRecord]) -> Option<&EpochRecord> {
    history.iter().reduce(|best, record| if by.is_better(record, best) { record } else { best })
}

/// Whether the last `patience` epochs brought nothing better.
pub(super) fn has_lost_patience(by: SelectBy, history: &[EpochRecord], patience: usize) -> bool {
    best_epoch_by(by, history).is_some_and(|best| history.len() - best.epoch >= patience)
}

/// How often rates have fallen behind these epochs: each time after more than `patience` epochs without a better one, from the last
/// fall on. PyTorch's ReduceLROnPlateau with a threshold of 0: what is better is so by anything, as for what is kept.
pub(super) fn falls(by: SelectBy, history: &[EpochRecord], patience: usize) -> usize {
    let (mut best, mut waited, mut falls): (Option<&EpochRecord>, _, _) = (None, 0, 0);
    for record in history {
        if best.is_none_or(|best| by.is_better(record, best)) {
            (best, waited) = (Some(record), 0);
        } else {
            waited += 1;
        }
        if waited > patience {
            (waited, falls) = (0, falls + 1);
        }
    }
    falls
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURES: [f64; 11] = [0.5, 0.5, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.7, 0.1];

    /// Every figure at its own epoch: accuracy as given, the others at other epochs.
    fn history() -> Vec<EpochRecord> {
        let record = |(epoch, figure): (usize, f64)| EpochRecord {
            epoch,
            val_accuracy: Some(figure),
            val_loss: Some(figure),
            val_auc: Some(if epoch == 2 { 0.9 } else { 0.3 }),
            val_balanced_accuracy: Some(if epoch == 4 { 0.9 } else { 0.3 }),
            val_macro_f1: Some(if epoch == 6 { 0.9 } else { 0.3 }),
            ..EpochRecord::default()
        };
        (1..).zip(FIGURES).map(record).collect()
    }

    /// Numbers of torch.optim.lr_scheduler.ReduceLROnPlateau in PyTorch 2.13, factor=0.1 and threshold=0: the exponent before each
    /// epoch, and behind the last.
    #[test]
    fn rates_fall_when_pytorchs_do() {
        for (by, patience, expected) in [
            (SelectBy::Accuracy, 1, [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]),
            (SelectBy::Accuracy, 0, [0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 8]),
            (SelectBy::Loss, 2, [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ] {
            let history = history();
            let found: Vec<usize> = (0..=history.len()).map(|epochs| falls(by, &history[..epochs], patience)).collect();
            assert_eq!(found, expected, "{by:?}, {patience}");
        }
    }

    #[test]
    fn the_best_epoch_is_that_of_the_figure() {
        let history = history();
        let best = |by| best_epoch_by(by, &history).unwrap().epoch;
        let all = [SelectBy::Accuracy, SelectBy::Loss, SelectBy::Auc, SelectBy::BalancedAccuracy, SelectBy::MacroF1];
        assert_eq!(all.map(best), [10, 11, 2, 4, 6]);
        assert_eq!(best_epoch(&history).unwrap().epoch, 6);
        assert_eq!(all.map(|by| has_lost_patience(by, &history, 6)), [false, false, true, true, false]);
        // Without a validation split it is the last.
        let blind: Vec<_> = (1..=3).map(|epoch| EpochRecord { epoch, ..EpochRecord::default() }).collect();
        assert_eq!(best_epoch_by(SelectBy::Loss, &blind).unwrap().epoch, 3);
        assert_eq!(falls(SelectBy::Loss, &blind, 0), 0);
    }
}
