//! `merge`.

use serde_json::json;

use medmerge::checkpoint::{self, Metadata, Provenance};
use medmerge::data::Dataset;
use medmerge::error::{Error, Result};
use medmerge::merge::{Fixed, Head, Learned, Sources, fold_fixed};
use medmerge::nn::Model;
use medmerge::output::{Named, OutputPath, check_apart, shown};
use medmerge::train::{Place, Target, reestimate_statistics};

use super::progress::spinner;
use super::{check_fit, networks, note, report};
use crate::cli::{Global, Merge};

pub fn run(options: &Merge, global: &Global) -> Result<()> {
    if options.weights.is_some() && (options.normalise.mean.is_some() || options.normalise.std.is_some()) {
        let hint = "leave --mean and --std out: the file of merge weights says with which they were learned";
        return Err(Error::usage("--mean and --std have no effect with --weights", hint));
    }
    check_apart(&inputs(options), &[("--out", &options.out)])?;
    let _claim = OutputPath::check(&options.out, options.force, 0)?;
    let spinner = spinner("merging", global);
    let place = super::place::open(global)?;
    let learned = options.weights.as_deref().map(Learned::load).transpose()?;
    // The weights were learned for one stem.
    let stem = options.stem.stem.or(learned.as_ref().and_then(|learned| learned.architecture.stem()));
    let sources = networks::load_sources(&options.models, stem, global)?;
    let (model, has_head, metadata) = match (&learned, &options.weights) {
        (Some(learned), Some(path)) => {
            learned.check_sources(path, &sources)?;
            (learned.fold_on(place.device, &sources.trunks())?, true, learned.metadata())
        }
        _ => by_coefficients(options, &sources, place, global)?,
    };
    let mut output = OutputPath::check(&options.out, options.force, checkpoint::file_size(&model.network))?;
    checkpoint::save_with(&mut output, &model, has_head, &metadata)?;
    spinner.finish_and_clear();
    let classes = has_head.then_some(model.network.classes);
    let result = json!({"out": shown(&options.out), "architecture": sources.architecture(), "classes": classes});
    report(global, &result, |out| {
        let head = classes.map_or("no classifier".to_string(), |classes| format!("{classes} classes"));
        writeln!(out, "{}: {}, {head}", options.out.display(), sources.architecture())
    })
}

/// What it reads.
fn inputs(options: &Merge) -> Vec<Named<'_>> {
    let models = options.models.iter().map(|path| ("--models", path.as_path()));
    let others = [("--weights", &options.weights), ("--data", &options.data)];
    models.chain(others.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?)))).collect()
}

/// The merged network, whether it has a classifier, and its header.
fn by_coefficients(
    options: &Merge,
    sources: &Sources,
    place: Place,
    global: &Global,
) -> Result<(Model, bool, Metadata)> {
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
    let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
    let is_asked = options.normalise.mean.is_some() || options.normalise.std.is_some();
    let normalisation = || networks::normalisation(&options.normalise, &files, sources.input_channels(), global);
    let for_statistics = match &options.data {
        Some(path) => {
            let (data, normalisation) = (Dataset::load(path)?, normalisation()?);
            check_fit(&data, &sources.get(anchor).checkpoint.model.network, None)?;
            networks::tell_image_size(&files, &data, global);
            Some((data, normalisation))
        }
        None => None,
    };
    let Fixed { mut model, head, mut metadata, mut provenance } =
        fold_fixed(sources, coefficients, anchor, options.batch_norm, place.device)?;
    match &head {
        Head::Merged => {}
        Head::Anchors(why) => note(global, format_args!("note: the anchor's classifier is kept: {why}")),
        Head::Missing => {
            let anchor = sources.get(anchor).path.display();
            note(global, format_args!("note: the merged network has no classifier, because {anchor} has none"));
        }
    }
    match &for_statistics {
        Some((data, normalisation)) => {
            reestimate_statistics(&mut model, Target { data, normalisation, place }, 128)?;
            let Provenance { normalisation, image_size, data, .. } = Provenance::of_data(data, normalisation);
            provenance = Provenance { normalisation, image_size, data, ..provenance };
        }
        None => {
            // Nothing here depends on it, but whoever uses the network will.
            provenance.normalisation = match (is_asked, sources.normalisation()) {
                (true, _) => Some(normalisation()?),
                (false, Ok(normalisation)) => normalisation,
                (false, Err(error)) => {
                    note(global, format_args!("note: the header says no --mean and --std, for {error}"));
                    None
                }
            };
            let text = "running statistics are the anchor's; --data re-estimates them, which a blend needs";
            note(global, format_args!("note: {text}"));
        }
    }
    provenance.write(&mut metadata);
    Ok((model, head != Head::Missing, metadata))
}
