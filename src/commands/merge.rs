//! `merge`.

use serde_json::json;

use medmerge::checkpoint::{self, Metadata};
use medmerge::data::{Dataset, Normalisation};
use medmerge::error::{Error, Result};
use medmerge::merge::{Learned, Sources, fold_fixed};
use medmerge::nn::Model;
use medmerge::output::{Named, OutputPath, check_apart, shown};
use medmerge::train::{Place, Target, reestimate_statistics};

use super::progress::spinner;
use super::{check_fit, note, report};
use crate::cli::{Global, Merge};

pub fn run(options: &Merge, global: &Global) -> Result<()> {
    check_apart(&inputs(options), &[("--out", &options.out)])?;
    let _claim = OutputPath::check(&options.out, options.force, 0)?;
    let spinner = spinner("merging", global);
    let place = super::place::open(global)?;
    let learned = options.weights.as_deref().map(Learned::load).transpose()?;
    let sources = Sources::load(&options.models)?;
    let (model, metadata) = match (&learned, &options.weights) {
        (Some(learned), Some(path)) => {
            learned.check_sources(path, &sources)?;
            (learned.fold_on(place.device, &sources.trunks())?, learned.metadata())
        }
        _ => by_coefficients(options, &sources, place, global)?,
    };
    let mut output = OutputPath::check(&options.out, options.force, checkpoint::file_size(&model.network))?;
    checkpoint::save(&mut output, &model, &metadata)?;
    spinner.finish_and_clear();
    let result =
        json!({"out": shown(&options.out), "architecture": sources.architecture(), "classes": model.network.classes});
    report(global, &result, |out| {
        writeln!(out, "{}: {}, {} classes", options.out.display(), sources.architecture(), model.network.classes)
    })
}

/// What it reads.
fn inputs(options: &Merge) -> Vec<Named<'_>> {
    let models = options.models.iter().map(|path| ("--models", path.as_path()));
    let others = [("--weights", &options.weights), ("--data", &options.data)];
    models.chain(others.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?)))).collect()
}

fn by_coefficients(options: &Merge, sources: &Sources, place: Place, global: &Global) -> Result<(Model, Metadata)> {
    let coefficients = options.coefficients.as_deref().unwrap_or_default();
    if let Some(odd) = coefficients.iter().find(|&&coefficient| !(coefficient as f32).is_finite()) {
        let hint = "give numbers that f32 can hold, up to 3.4e38: --coefficients 0.5,0.5";
        return Err(Error::usage(format!("a coefficient of {odd:e}"), hint));
    }
    if coefficients.len() != sources.len() {
        let message = format!("{} coefficients for {} sources", coefficients.len(), sources.len());
        return Err(Error::usage(message, "give one number per source: --coefficients 0.5,0.5"));
    }
    let anchor = sources.find(&options.anchor)?;
    let data = options.data.as_deref().map(Dataset::load).transpose()?;
    let mut merged = fold_fixed(sources, coefficients, anchor, options.batch_norm, place.device)?;
    if !merged.head_merged {
        note(global, format_args!("note: the sources' heads differ in shape; the anchor's is kept"));
    }
    match &data {
        Some(data) => {
            let normalisation = Normalisation::default();
            check_fit(data, &normalisation, &merged.model.network, None)?;
            let target = Target { data, normalisation: &normalisation, place };
            reestimate_statistics(&mut merged.model, target, 128)?;
        }
        None => note(
            global,
            format_args!("note: running statistics are the anchor's; --data re-estimates them, which a blend needs"),
        ),
    }
    Ok((merged.model, merged.metadata))
}
