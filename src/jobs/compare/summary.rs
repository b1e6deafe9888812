//! What the runs of a comparison come to: means over seeds with their intervals, and differences to the best single source, seed
//! by seed.
//!
//! For each recipe the learning rate is the one with the best mean macro F1 on the validation split over all its seeds. The best
//! single source is the recipe that starts from one source and is best by the same figure, once among networks with frozen
//! features and once among fine-tuned ones. All other figures are of the test split. Intervals are 95 % confidence intervals of
//! the mean by Student's t with one degree of freedom less than there are seeds; those of differences are of paired ones.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::record::{Record, StageRecord};
use crate::report::Table;
use crate::train::{Protocol, Recipe};

/// What a comparison comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub seeds: Vec<u64>,
    /// The best single source: with frozen features, and fine-tuned.
    pub best: [Option<String>; 2],
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub recipe: Recipe,
    pub label: String,
    /// With frozen features.
    pub frozen: Option<Cell>,
    /// Fine-tuned.
    pub tuned: Option<Cell>,
    /// Mean distance of merge weights from their start, where some were learned.
    pub moved: Option<f64>,
    pub parameters: usize,
}

/// Figures of one recipe on the test split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Chosen on the validation split.
    pub learning_rate: Option<f64>,
    pub val_macro_f1: f64,
    pub macro_f1: Estimate,
    pub accuracy: Estimate,
    pub auc: Estimate,
    /// Macro F1 less that of the best single source, of seeds that both have.
    pub difference: Option<Estimate>,
    /// Seconds of a run.
    pub seconds: f64,
    /// Macro F1, seed by seed.
    pub values: Vec<(u64, f64)>,
}

/// A mean, and half of its 95 % confidence interval; NaN, and null in JSON, of a single value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub mean: f64,
    pub interval: f64,
    pub count: usize,
}

impl Estimate {
    pub fn of(values: &[f64]) -> Estimate {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        if count < 2 {
            return Estimate { mean, interval: f64::NAN, count };
        }
        let free = (count - 1) as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / free;
        let t = StudentsT::new(0.0, 1.0, free).expect("it has freedom").inverse_cdf(0.975);
        Estimate { mean, interval: t * (variance / count as f64).sqrt(), count }
    }

    fn shown(&self, signed: bool) -> String {
        let mean = if signed { format!("{:+.3}", self.mean) } else { format!("{:.3}", self.mean) };
        if self.interval.is_nan() { mean } else { format!("{mean} ± {:.3}", self.interval) }
    }
}

/// Of each seed of a recipe, one stage.
type Stages<'a> = Vec<(u64, &'a StageRecord)>;

impl Summary {
    /// `records` of each recipe, in the order of the table; recipes without any are left out.
    pub fn of(protocol: &Protocol, names: &[&str], records: &[(Recipe, Vec<Record>)]) -> Summary {
        let mut seeds: Vec<u64> = records.iter().flat_map(|(_, records)| records.iter().map(|r| r.seed)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        let mut rows: Vec<Row> = records
            .iter()
            .filter(|(_, records)| !records.is_empty())
            .map(|(recipe, records)| Row::of(protocol, recipe.clone(), recipe.label(names), records))
            .collect();
        let frozen = compared(&mut rows, |row| row.frozen.as_mut());
        let tuned = compared(&mut rows, |row| row.tuned.as_mut());
        Summary { seeds, best: [frozen, tuned], rows }
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new(["recipe", "frozen", "Δ", "fine-tuned", "Δ", "rate", "seconds", "parameters"]);
        for row in &self.rows {
            let figure = |cell: &Option<Cell>| cell.as_ref().map_or("–".into(), |cell| cell.macro_f1.shown(false));
            let difference = |cell: &Option<Cell>| {
                cell.as_ref().and_then(|cell| cell.difference).map_or("–".into(), |difference| difference.shown(true))
            };
            let last = row.tuned.as_ref().or(row.frozen.as_ref());
            table.row([
                row.label.clone(),
                figure(&row.frozen),
                difference(&row.frozen),
                figure(&row.tuned),
                difference(&row.tuned),
                last.and_then(|cell| cell.learning_rate).map_or("–".into(), |rate| rate.to_string()),
                last.map_or("–".into(), |cell| format!("{:.1}", cell.seconds)),
                row.parameters.to_string(),
            ]);
        }
        table
    }

    /// Markdown: the table, and what it says.
    pub fn markdown(&self) -> String {
        let [frozen, tuned] = self.best.each_ref().map(|best| best.as_deref().unwrap_or("none"));
        let count = self.seeds.len();
        format!(
            "{}\nMacro F1 on the test split, mean over {count} seeds ± half of its 95 % confidence interval (Student's t). Δ is\n\
             the difference to the best single source, paired by seed: with frozen features {frozen}, fine-tuned {tuned}, the\n\
             best by mean macro F1 on the validation split. Learning rates of fine-tuning are chosen there too.\n",
            self.table().to_markdown()
        )
    }

    /// CSV: a row for each recipe, stage and seed.
    pub fn csv(&self) -> String {
        let mut text = String::from("recipe,stage,learning_rate,seed,test_macro_f1\n");
        for row in &self.rows {
            for (stage, cell) in [("frozen", &row.frozen), ("fine-tuned", &row.tuned)] {
                let Some(cell) = cell else { continue };
                let rate = cell.learning_rate.map_or(String::new(), |rate| rate.to_string());
                for (seed, value) in &cell.values {
                    text += &format!("\"{}\",{stage},{rate},{seed},{value}\n", row.recipe);
                }
            }
        }
        text
    }
}

impl Row {
    fn of(protocol: &Protocol, recipe: Recipe, label: String, records: &[Record]) -> Row {
        let of_rate = |rate: f64| -> Stages {
            records.iter().filter_map(|record| Some((record.seed, record.tuned(rate)?))).collect()
        };
        let frozen: Stages = records.iter().filter_map(|record| Some((record.seed, record.frozen()?))).collect();
        // The first of equals.
        let tuned = protocol
            .learning_rates
            .iter()
            .map(|&rate| of_rate(rate))
            .filter_map(Cell::of)
            .reduce(|best, cell| if cell.val_macro_f1 > best.val_macro_f1 { cell } else { best });
        let moved: Vec<f64> = records.iter().filter_map(|record| Some(record.learned?.moved)).collect();
        let moved = (!moved.is_empty()).then(|| moved.iter().sum::<f64>() / moved.len() as f64);
        let parameters = records[0].stages.last().map_or(0, |stage| stage.parameters);
        Row { recipe, label, frozen: Cell::of(frozen), tuned, moved, parameters }
    }
}

impl Cell {
    fn of(stages: Stages) -> Option<Cell> {
        let first = stages.first()?.1;
        let all = |of: fn(&StageRecord) -> Option<f64>| -> Vec<f64> {
            stages.iter().map(|(_, stage)| of(stage).unwrap_or(f64::NAN)).collect()
        };
        let mean = |of: fn(&StageRecord) -> Option<f64>| all(of).iter().sum::<f64>() / stages.len() as f64;
        let macro_f1 = all(|stage| stage.test.macro_f1);
        Some(Cell {
            learning_rate: first.learning_rate,
            val_macro_f1: mean(|stage| stage.val.macro_f1),
            macro_f1: Estimate::of(&macro_f1),
            accuracy: Estimate::of(&all(|stage| stage.test.accuracy)),
            auc: Estimate::of(&all(|stage| stage.test.auc)),
            difference: None,
            seconds: mean(|stage| Some(stage.seconds)),
            values: stages.iter().map(|(seed, _)| *seed).zip(macro_f1).collect(),
        })
    }
}

/// Fills in the differences to the best single source of a column, and says which that is.
fn compared(rows: &mut [Row], mut cell: impl FnMut(&mut Row) -> Option<&mut Cell>) -> Option<String> {
    let mut best: Option<(usize, Cell)> = None;
    for (index, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.recipe.source().is_some()) {
        if let Some(cell) = cell(row)
            && best.as_ref().is_none_or(|(_, best)| cell.val_macro_f1 > best.val_macro_f1)
        {
            best = Some((index, cell.clone()));
        }
    }
    let (of_best, best) = best?;
    let label = rows[of_best].label.clone();
    for (index, row) in rows.iter_mut().enumerate() {
        let is_best = index == of_best;
        let Some(cell) = cell(row).filter(|_| !is_best) else { continue };
        let of_best = |seed: u64| best.values.iter().find(|(other, _)| *other == seed).map(|(_, value)| *value);
        let paired: Vec<f64> = cell.values.iter().filter_map(|(seed, value)| Some(value - of_best(*seed)?)).collect();
        cell.difference = (!paired.is_empty()).then(|| Estimate::of(&paired));
    }
    Some(label)
}

#[cfg(test)]
mod tests {
    use super::super::record::Figures;
    use super::*;

    #[test]
    fn an_interval_is_students() {
        // Of 1, 2, 3: standard deviation 1, t of two degrees of freedom 4.302653.
        let estimate = Estimate::of(&[1.0, 2.0, 3.0]);
        assert_eq!((estimate.mean, estimate.count), (2.0, 3));
        assert!((estimate.interval - 4.302_653 / 3f64.sqrt()).abs() < 1e-5, "{}", estimate.interval);
        // Of ten with the same deviation, t of nine degrees is 2.262157.
        let ten: Vec<f64> = (0..10).map(|i| f64::from(i % 2)).collect();
        let deviation = (10.0 * 0.25 / 9.0f64).sqrt();
        assert!((Estimate::of(&ten).interval - 2.262_157 * deviation / 10f64.sqrt()).abs() < 1e-6);
        assert!(Estimate::of(&[0.5]).interval.is_nan());
    }

    fn record(recipe: &str, seed: u64, stages: &[(Option<f64>, f64, f64)]) -> Record {
        let figures = |macro_f1: f64| Figures { accuracy: Some(0.5), macro_f1: Some(macro_f1), auc: None };
        let stage = |&(learning_rate, val, test): &(Option<f64>, f64, f64)| StageRecord {
            learning_rate,
            val: figures(val),
            test: figures(test),
            parameters: 10,
            seconds: 1.0,
            train_loss: vec![],
            val_macro_f1: vec![],
        };
        Record { recipe: recipe.parse().unwrap(), seed, stages: stages.iter().map(stage).collect(), learned: None }
    }

    #[test]
    fn rates_and_the_best_source_are_chosen_on_validation_and_differences_are_paired() {
        let protocol =
            Protocol { probe: Default::default(), fine_tuning: Default::default(), learning_rates: vec![1e-3, 1e-4] };
        // Fine-tuning of source 0 is better on validation, of 1 on test; the rate 1e-4 is better on validation for 0.
        let of = |recipe: &str, rows: [[(Option<f64>, f64, f64); 3]; 2]| {
            let records = (0..2).map(|seed| record(recipe, seed, &rows[seed as usize])).collect::<Vec<_>>();
            (recipe.parse().unwrap(), records)
        };
        let (high, low) = (Some(1e-3), Some(1e-4));
        let records = [
            of(
                "lp-ft:source=0",
                [
                    [(None, 0.3, 0.3), (high, 0.5, 0.9), (low, 0.7, 0.6)],
                    [(None, 0.3, 0.4), (high, 0.6, 0.9), (low, 0.6, 0.7)],
                ],
            ),
            of(
                "lp-ft:source=1",
                [
                    [(None, 0.4, 0.5), (high, 0.5, 0.8), (low, 0.1, 0.1)],
                    [(None, 0.4, 0.6), (high, 0.6, 0.8), (low, 0.1, 0.1)],
                ],
            ),
            of(
                "medmerge",
                [
                    [(None, 0.9, 0.6), (high, 0.5, 0.75), (low, 0.1, 0.1)],
                    [(None, 0.9, 0.8), (high, 0.6, 0.75), (low, 0.1, 0.1)],
                ],
            ),
        ];
        let summary = Summary::of(&protocol, &["skin", "eye"], &records);
        assert_eq!(summary.best, [Some("lp-ft:eye".to_string()), Some("lp-ft:skin".to_string())]);
        let [first, _, third] = &summary.rows[..] else { panic!("three rows") };
        let tuned = first.tuned.as_ref().unwrap();
        assert_eq!((tuned.learning_rate, tuned.difference), (low, None));
        assert!((tuned.macro_f1.mean - 0.65).abs() < 1e-12);
        // Seed by seed: 0.75 − 0.6, 0.75 − 0.7.
        let difference = third.tuned.as_ref().unwrap().difference.unwrap();
        assert!((difference.mean - 0.1).abs() < 1e-12 && difference.count == 2);
        // t of one degree of freedom is 12.7062, the deviation of 0.15 and 0.05 is 0.0707.
        assert!((difference.interval - 12.706_2 * 0.05).abs() < 1e-4, "{}", difference.interval);
        let frozen = third.frozen.as_ref().unwrap().difference.unwrap();
        assert!((frozen.mean - 0.15).abs() < 1e-12);
        assert!(
            summary.markdown().contains("| medmerge   | 0.700 ± 1.271 | +0.150 ± 0.635 |"),
            "{}",
            summary.markdown()
        );
        assert!(summary.csv().contains("\"lp-ft:source=0\",fine-tuned,0.0001,1,0.7\n"), "{}", summary.csv());
    }
}
