//! Which epoch's model is kept, and when a run ends before its last epoch.

use super::EpochRecord;
use crate::nn::Model;
use crate::tensor::Tensor;

/// The part of the best epoch that is kept.
pub(super) struct Best {
    pub macro_f1: f64,
    pub epoch: usize,
    pub model: Model,
    /// Merge weights, where some are learned.
    pub merge_weights: Option<Tensor>,
}

/// The epochs so far, and the best of them by macro F1 on the validation split.
#[derive(Default)]
pub(super) struct Selection {
    pub history: Vec<EpochRecord>,
    pub best: Option<Best>,
}

impl Selection {
    /// Whether an epoch is better than all before. Without a validation split each one is.
    pub fn improves(&self, record: &EpochRecord) -> bool {
        self.best.as_ref().is_none_or(|best| record.val_macro_f1.is_none_or(|macro_f1| macro_f1 > best.macro_f1))
    }

    /// Adds an epoch, with its model if it [improves](Selection::improves).
    pub fn add(&mut self, record: EpochRecord, best: Option<(Model, Option<Tensor>)>) {
        if let Some((model, merge_weights)) = best {
            let macro_f1 = record.val_macro_f1.unwrap_or(f64::INFINITY);
            self.best = Some(Best { macro_f1, epoch: record.epoch - 1, model, merge_weights });
        }
        self.history.push(record);
    }
}

/// The epoch whose model is kept: the first of those with the best macro F1 on the validation split, or the last one where
/// that split is empty.
pub fn best_epoch(history: &[EpochRecord]) -> Option<&EpochRecord> {
    let is_better = |a: &EpochRecord, b: &EpochRecord| match (a.val_macro_f1, b.val_macro_f1) {
        (Some(a), Some(b)) => a > b,
        _ => true,
    };
    history.iter().reduce(|best, record| if is_better(record, best) { record } else { best })
}

/// Whether the last `patience` epochs brought no better macro F1.
pub(super) fn has_lost_patience(history: &[EpochRecord], patience: usize) -> bool {
    best_epoch(history).is_some_and(|best| history.len() - best.epoch >= patience)
}
