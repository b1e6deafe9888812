//! `eval` and `predict`.

use serde_json::json;

use medmerge::data::SplitName;
use medmerge::error::{Error, Result};
use medmerge::jobs::{self, PredictionFormat, TestFlips};
use medmerge::metrics::Intervals;
use medmerge::metrics::threshold::ThresholdBy;
use medmerge::output::shown;
use medmerge::report::Table;

use super::progress::Progress;
use super::{images, place, report};
use crate::cli::{Eval, FlipsName, FormatName, Global, Measure, Predict, ThresholdName};
use crate::terminal;

fn job(options: &Eval, global: &Global) -> jobs::Evaluate {
    jobs::Evaluate {
        model: options.model[0].clone(),
        others: options.model[1..].to_vec(),
        reading: options.reading.given(),
        head: options.head.clone(),
        images: images(&options.data),
        split: options.split,
        batch_size: options.batch_size,
        test_flips: match options.test_flips {
            FlipsName::None => TestFlips::None,
            FlipsName::Horizontal => TestFlips::Horizontal,
            FlipsName::Both => TestFlips::Both,
        },
        compute: place::compute(global),
    }
}

/// The ends of one of the intervals.
type Ends = fn(&Intervals) -> [f64; 2];

pub fn eval(options: &Measure, global: &Global) -> Result<()> {
    let Measure { eval: options, bootstrap, threshold_by } = options;
    let job = job(options, global);
    let by = threshold_by.map(|by| match by {
        ThresholdName::F1 => ThresholdBy::F1,
        ThresholdName::Youden => ThresholdBy::Youden,
    });
    if by.is_some() && job.split == SplitName::Val {
        let hint = "give --split test: figures of the split that a threshold was chosen on flatter it";
        return Err(Error::usage("--threshold-by chooses on the validation split, which is measured", hint));
    }
    let mut progress = Progress::counting("image", format!("{} split", job.split), global);
    // First the split that may not be there.
    let chosen_on = match by {
        Some(_) => {
            job.check_thresholds()?;
            Some(jobs::Evaluate { split: SplitName::Val, ..job.clone() }.run(&mut progress)?)
        }
        None => None,
    };
    let found = job.run(&mut progress)?;
    let decided = match (by, chosen_on) {
        (Some(by), Some(chosen_on)) => Some(found.decided(by, &chosen_on)?),
        _ => None,
    };
    progress.finish();
    let metrics = &found.metrics;
    let is_whole = metrics.accuracy.is_finite();
    let intervals = (*bootstrap > 0 && is_whole).then(|| found.intervals(*bootstrap, global.seed));
    let others: Vec<String> = job.others.iter().map(|path| shown(path)).collect();
    let result = json!({
        "model": shown(&job.model), "others": others, "data": shown(&job.images.data), "split": job.split, "head": found.head,
        "images": found.images, "metrics": metrics, "intervals": intervals, "thresholds": decided,
    });
    report(global, &result, |out| {
        let models: Vec<String> =
            std::iter::once(&job.model).chain(&job.others).map(|path| path.display().to_string()).collect();
        let (model, data) = (models.join(" + "), job.images.data.display());
        let head = found.head.as_ref().map_or(String::new(), |head| format!("head {head}, "));
        writeln!(out, "{model} on {data} ({head}{} split, {} images)", job.split, found.images)?;
        let classes = metrics.per_class.len();
        writeln!(
            out,
            "accuracy {}   macro F1 {}   AUC {}\n",
            figure(metrics.accuracy),
            mean(metrics.macro_f1, metrics.macro_f1_classes, classes),
            mean(metrics.auc, metrics.auc_classes, classes)
        )?;
        let between = |of: Ends| match &intervals {
            Some(intervals) if of(intervals)[0].is_finite() => of(intervals).map(figure).join(" to "),
            _ => String::new(),
        };
        let mut table = Table::new(["", "figure", "95 % interval"]);
        let rows: [(&str, f64, Ends); 8] = [
            ("accuracy", metrics.accuracy, |i| i.accuracy),
            ("balanced accuracy", metrics.balanced_accuracy, |i| i.balanced_accuracy),
            ("macro F1", metrics.macro_f1, |i| i.macro_f1),
            ("weighted F1", metrics.weighted_f1, |i| i.weighted_f1),
            ("AUC", metrics.auc, |i| i.auc),
            ("average precision", metrics.average_precision, |i| i.average_precision),
            ("quadratic kappa", metrics.quadratic_kappa, |i| i.quadratic_kappa),
            ("calibration error", metrics.calibration_error, |i| i.calibration_error),
        ];
        for (name, value, of) in rows {
            table.row([name.to_string(), figure(value), between(of)]);
        }
        writeln!(out, "{}", table.to_text())?;
        writeln!(out, "class   images   precision   recall   specif.       F1      AUC       AP")?;
        for (class, m) in metrics.per_class.iter().enumerate() {
            let name = found.class_names.as_ref().map_or(String::new(), |names| format!("   {}", names[class]));
            let [precision, recall, specificity, f1, auc, ap] =
                [m.precision, m.recall, m.specificity, m.f1, m.auc, m.average_precision].map(figure);
            writeln!(
                out,
                "{class:>5} {:>8} {precision:>11} {recall:>8} {specificity:>9} {f1:>8} {auc:>8} {ap:>8}{name}",
                m.support
            )?;
        }
        let Some(decided) = &decided else { return Ok(()) };
        writeln!(out, "\nby thresholds that are best on the val split:")?;
        let mut table = Table::new(["class", "threshold", "sensitivity", "specificity", "precision", "F1", "accuracy"]);
        for d in decided {
            let figures = [d.threshold, d.sensitivity, d.specificity, d.precision, d.f1, d.accuracy].map(figure);
            let name = found.class_names.as_ref().map_or(String::new(), |names| format!(" {}", names[d.class]));
            let mut row = vec![format!("{}{name}", d.class)];
            row.extend(figures);
            table.row(row);
        }
        writeln!(out, "{}", table.to_text())
    })
}

/// A dash stands for a figure that is not defined.
fn figure(value: f64) -> String {
    if value.is_nan() { "-".into() } else { format!("{value:.4}") }
}

/// A mean, and over how many of the classes it is taken where these are not all.
fn mean(value: f64, over: usize, classes: usize) -> String {
    match value.is_nan() || over == classes {
        true => figure(value),
        false => format!("{} (of {over} of {classes} classes)", figure(value)),
    }
}

pub fn predict(options: &Predict, global: &Global) -> Result<()> {
    let evaluate = job(&options.eval, global);
    let to_stdout = options.out.as_os_str() == "-";
    if to_stdout && global.json {
        let hint = "leave one of them out, or give --out a file";
        return Err(Error::usage("--out - writes CSV to stdout, and --json an object", hint));
    }
    let format = match options.format {
        FormatName::Table => PredictionFormat::Table,
        FormatName::Medmnist => PredictionFormat::Medmnist,
    };
    let mut progress = Progress::counting("image", format!("{} split", evaluate.split), global);
    if to_stdout {
        let predictions = evaluate.predictions(options.logits, format, &mut progress)?;
        progress.finish();
        return terminal::print(|out| predictions.write(format, out));
    }
    let (logits, out, force) = (options.logits, options.out.clone(), options.force);
    let job = jobs::Predict { evaluate, logits, format, out, force };
    let images = job.run(&mut progress)?;
    progress.finish();
    let result = json!({"out": shown(&job.out), "images": images, "logits": job.logits, "format": job.format});
    report(global, &result, |out| {
        let kind = if job.logits { "logits" } else { "probabilities" };
        writeln!(out, "{}: {kind} of {images} images", job.out.display())
    })
}
