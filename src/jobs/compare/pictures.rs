//! What the runs of a comparison come to, for the eye.

use super::record::{Record, StageRecord};
use super::summary::{Cell, Summary};
use crate::report::{self, Bar, Curve};
use crate::train::Recipe;

/// Macro F1 of each recipe on the test split, with frozen features and fine-tuned.
pub fn results(summary: &Summary) -> String {
    let value = |cell: &Option<Cell>| cell.as_ref().map(|cell| (cell.macro_f1.mean, cell.macro_f1.interval));
    let bar = |row: &super::Row| Bar { name: row.label.clone(), values: vec![value(&row.frozen), value(&row.tuned)] };
    let seeds = summary.seeds.len();
    let over = if seeds == 1 { "one seed".into() } else { format!("mean of {seeds} seeds, 95 % intervals") };
    let rows: Vec<Bar> = summary.rows.iter().map(bar).collect();
    let label = format!("macro F1 on the test split, {over}");
    report::bars(
        "How well each way classifies the target",
        &label,
        &["features frozen", "everything fine-tuned"],
        &rows,
    )
}

/// Macro F1 on the validation split after each epoch, by the learning rate that a recipe took, mean over its seeds.
pub fn curves(summary: &Summary, records: &[(Recipe, Vec<Record>)]) -> String {
    let mut curves = Vec::new();
    // What is put together of networks that were trained for others has no curve of its own.
    for row in summary.rows.iter().filter(|row| row.recipe.is_tuned()) {
        let Some(cell) = row.tuned.as_ref().or(row.frozen.as_ref()) else { continue };
        let of_recipe = records.iter().filter(|(recipe, _)| *recipe == row.recipe).flat_map(|(_, records)| records);
        let stages: Vec<&StageRecord> = of_recipe
            .filter_map(|record| record.stages.iter().find(|stage| stage.learning_rate == cell.learning_rate))
            .collect();
        let epochs = stages.iter().map(|stage| stage.val_macro_f1.len()).min().unwrap_or(0);
        let mean = |epoch: usize| {
            let values = stages.iter().map(|stage| stage.val_macro_f1[epoch].unwrap_or(f64::NAN));
            values.sum::<f64>() / stages.len() as f64
        };
        let points = (0..epochs).map(|epoch| ((epoch + 1) as f64, mean(epoch))).collect();
        curves.push(Curve { name: row.label.clone(), points });
    }
    report::curves("On the way: the validation split", "epoch", "macro F1, mean over seeds", &curves)
}
