//! `train`.

use serde_json::json;

use medmerge::checkpoint::Reading;
use medmerge::error::{Error, Result};
use medmerge::jobs::{self, Start};
use medmerge::nn::Architecture;
use medmerge::output::shown;
use medmerge::train::{SelectBy, TrainOptions};

use super::progress::Progress;
use super::{best, card, find_rate, images, place, report, train_options};
use crate::cli::{Global, SelectByName, Train};

pub fn run(options: &Train, global: &Global) -> Result<()> {
    if options.picture.is_some() && options.find_learning_rate.is_none() {
        return Err(Error::usage(
            "--picture without --find-learning-rate, whose curve it shows",
            "give both, or neither",
        ));
    }
    let Train { stem, input_channels, hidden, new_head, .. } = *options;
    let reading = Reading { stem, input_channels, hidden };
    let start = match (&options.from, &options.weights) {
        (Some(path), _) => Start::From {
            path: path.clone(),
            reading,
            new_head,
            head_only: options.head_only,
            teachers: options.teachers.clone(),
        },
        (None, Some(weights)) => {
            Start::Merged { weights: weights.clone(), models: options.models.clone(), reading, new_head }
        }
        (None, None) => Start::New {
            architecture: Architecture::named(&options.architecture, options.stem, options.width)?,
            input_channels: options.input_channels,
        },
    };
    let merge_learning_rate = if options.weights.is_some() { options.merge_learning_rate } else { 0.0 };
    let job = jobs::Train {
        images: images(&options.data),
        start,
        options: TrainOptions {
            l2_sp: options.l2_sp,
            distill: options.distill,
            ema: options.ema,
            head_learning_rate: options.head_learning_rate,
            layer_decay: options.layer_decay,
            select_by: match options.select_by {
                SelectByName::Accuracy => SelectBy::Accuracy,
                SelectByName::BalancedAccuracy => SelectBy::BalancedAccuracy,
                SelectByName::MacroF1 => SelectBy::MacroF1,
                SelectByName::Auc => SelectBy::Auc,
                SelectByName::Loss => SelectBy::Loss,
            },
            ..train_options(&options.schedule, merge_learning_rate, global)
        },
        compute: place::compute(global),
        out: options.out.clone().unwrap_or_default(),
        writing: options.writing.given(),
        card: card(&options.writing),
        resume: options.resume,
        keep_state: options.keep_state,
        metrics: options.metrics.clone(),
        tensorboard: options.tensorboard.clone(),
        force: options.force,
    };
    if let Some(rates) = options.find_learning_rate {
        return find_rate::run(&job, options, rates, global);
    }
    let mut progress = Progress::new("training", global);
    let trained = job.run(&mut progress)?;
    progress.finish();
    let (architecture, history) = (&trained.architecture, &trained.history);
    let result = json!({
        "out": shown(&job.out), "log": shown(&trained.log), "architecture": architecture,
        "parameters": trained.model.network.parameter_count(), "options": job.options, "epochs": history,
    });
    report(global, &result, |out| {
        writeln!(
            out,
            "{}: {architecture}, {} epochs, {}",
            job.out.display(),
            history.len(),
            best(history, job.options.select_by)
        )
    })
}
