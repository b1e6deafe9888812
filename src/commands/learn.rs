//! `learn`.

use serde_json::json;

use medmerge::error::Result;
use medmerge::jobs;
use medmerge::output::shown;
use medmerge::train::{Probe, SelectBy, TrainOptions};

use super::progress::Progress;
use super::{best, card, images, place, report, train_options};
use crate::cli::{Global, Learn};
use crate::terminal;

/// Merge weights that moved by less have learned next to nothing: sources differ by 1.
const STILL: f64 = 0.01;

pub fn run(options: &Learn, global: &Global) -> Result<()> {
    let job = jobs::Learn {
        models: options.models.clone(),
        reading: options.reading.given(),
        images: images(&options.data),
        anchor: options.anchor.clone(),
        granularity: options.granularity,
        constraint: options.constraint,
        starts: options.start.clone(),
        batch_norm: options.batch_norm,
        keep_statistics: options.keep_statistics,
        align: options.align,
        probe_statistics: options.probe_statistics,
        options: TrainOptions {
            regularise: options.regularise,
            ..train_options(&options.schedule, options.merge_learning_rate, global)
        },
        compute: place::compute(global),
        out: options.out.clone(),
        writing: options.writing.given(),
        card: card(&options.writing),
        weights: options.weights.clone(),
        picture: options.picture.clone(),
        resume: options.resume,
        force: options.force,
    };
    let mut progress = Progress::new("learning merge weights", global);
    let files = job.run(&mut progress)?;
    progress.finish();
    let learned = &files.learned;
    let (anchor, count) = (&job.models[learned.method.anchor], learned.merge_weights.shape().len());
    let probes = &files.anchor.probes;
    let scores: Option<Vec<f64>> = (!probes.is_empty()).then(|| probes.iter().map(Probe::score).collect());
    // Of what was measured anyway, the better start.
    let start = files.better_source().map_or(&job.out, |source| &job.models[source]);
    let moved = learned.moved()?;
    let result = json!({
        "moved": moved, "start": shown(start), "out": shown(&job.out), "log": shown(&files.log), "weights": shown(&files.weights),
        "anchor": shown(anchor),
        "anchor_scores": scores, "tried": files.tried, "granularity": job.granularity, "learned": count,
        "epochs": files.history,
    });
    report(global, &result, |out| {
        writeln!(out, "anchor: {}", anchor.display())?;
        for (source, score) in job.models.iter().zip(scores.iter().flatten()) {
            writeln!(out, "  linear probe of {}: validation macro F1 {score:.4}", source.display())?;
        }
        for tried in &files.tried {
            let (anchor, score) = (job.models[tried.anchor].display(), tried.score);
            writeln!(out, "  from {}, anchor {anchor}: validation macro F1 {score:.4}", tried.start)?;
        }
        writeln!(out, "{count} merge weights, by {}; they moved by {moved:.3} on average", job.granularity)?;
        if moved < STILL {
            writeln!(out, "hint: they hardly moved; more --epochs or a larger --merge-learning-rate lets them")?;
        }
        writeln!(out, "{}: merge weights", files.weights.display())?;
        writeln!(out, "{}: merged network, {}", job.out.display(), best(&files.history, SelectBy::MacroF1))?;
        if let Some(source) = files.better_source() {
            let source = job.models[source].display();
            writeln!(
                out,
                "the linear probe of {source} alone is better: merging has not helped, and fine-tuning would start there"
            )?;
        } else if scores.is_some() {
            writeln!(out, "no linear probe of a source is better: fine-tuning would start from the merged network")?;
        }
        let [start, data] = [start, &job.images.data].map(|path| terminal::quoted(path));
        // A source's own head tells other classes apart.
        let new_head = if files.better_source().is_some() { " --new-head" } else { "" };
        writeln!(out, "next: medmerge train --from {start}{new_head} --data {data} --out FILE")
    })
}
