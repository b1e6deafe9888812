//! `align`.

use serde_json::json;

use medmerge::error::{Error, Result};
use medmerge::jobs::{self, Images};
use medmerge::output::shown;

use super::progress::Progress;
use super::{card, collecting, normalise, place, report};
use crate::cli::{Align, Global};

pub fn run(options: &Align, global: &Global) -> Result<()> {
    let normalise = normalise(&options.normalise);
    if options.data.is_none() && (normalise.mean.is_some() || normalise.std.is_some()) {
        return Err(Error::usage("--mean and --std are of images, and there are none", "give --data"));
    }
    let collecting = collecting(&options.collecting, options.data.is_some())?;
    let job = jobs::Align {
        model: options.model.clone(),
        to: options.to.clone(),
        by: options.by,
        reading: options.reading.given(),
        images: options.data.clone().map(|data| Images { data, normalise, collecting }),
        compute: place::compute(global),
        out: options.out.clone(),
        writing: options.writing.given(),
        card: card(&options.writing),
        force: options.force,
    };
    let mut progress = Progress::new("aligning", global);
    let aligned = job.run(&mut progress)?;
    progress.finish();
    let [before, after] = aligned.cosine;
    let result = json!({
        "out": shown(&job.out), "architecture": aligned.architecture, "by": job.by, "cosine_before": before,
        "cosine": after, "groups": aligned.groups,
    });
    report(global, &result, |out| {
        for group in aligned.groups.iter().filter(|_| global.verbose) {
            writeln!(out, "  {}: {} of {} channels moved", group.name, group.moved, group.channels)?;
        }
        let sum = |of: fn(&jobs::AlignedGroup) -> usize| aligned.groups.iter().map(of).sum::<usize>();
        let (moved, channels) = (sum(|group| group.moved), sum(|group| group.channels));
        writeln!(
            out,
            "{}: {}, {moved} of {channels} channels moved; cosine to {} {before:.4}, now {after:.4}",
            job.out.display(),
            aligned.architecture,
            job.to.display()
        )
    })
}
