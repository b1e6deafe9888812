//! Networks as commands load them: what their files say goes unless something else is asked for, and what a file leaves open
//! is said.

use std::path::{Path, PathBuf};

use medmerge::checkpoint::{Checkpoint, Provenance, agreed_normalisation};
use medmerge::data::{Dataset, Normalisation};
use medmerge::error::{Error, Result};
use medmerge::merge::Sources;
use medmerge::nn::Stem;

use super::note;
use crate::cli::{Global, Normalise};

pub fn load(path: &Path, stem: Option<Stem>, global: &Global) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::load_with(path, stem)?;
    tell(path, &checkpoint, global);
    Ok(checkpoint)
}

pub fn load_sources(paths: &[PathBuf], stem: Option<Stem>, global: &Global) -> Result<Sources> {
    let sources = Sources::load_with(paths, stem)?;
    sources.iter().for_each(|source| tell(&source.path, &source.checkpoint, global));
    Ok(sources)
}

/// What a user of a file ought to know.
fn tell(path: &Path, checkpoint: &Checkpoint, global: &Global) {
    let path = path.display();
    if let Some(stem) = checkpoint.architecture.stem() {
        if checkpoint.stem_is_assumed {
            note(global, format_args!("note: {path} does not say its stem; {stem} is taken (--stem names another)"));
        }
        if let Some(in_header) = checkpoint.stem_in_header.filter(|in_header| *in_header != stem) {
            note(global, format_args!("note: {path} says its stem is {in_header}; here it is {stem}"));
        }
    }
    if let Some(phase) = checkpoint.provenance.last_phase().filter(|phase| phase.is_unfinished()) {
        let (done, epochs) = (phase.epochs_done, phase.epochs);
        note(global, format_args!("note: {path} is of an unfinished run: {done} of {epochs} epochs"));
    }
}

/// How images become numbers: as asked for, else as the networks' files say, else as MedMNIST does.
pub fn normalisation(
    asked: &Normalise,
    files: &[(&Path, &Provenance)],
    channels: usize,
    global: &Global,
) -> Result<Normalisation> {
    let of_files = match (&asked.mean, &asked.std) {
        // What is asked for whole needs no agreement.
        (Some(_), Some(_)) => agreed_normalisation(files.iter().copied(), channels).unwrap_or_default(),
        _ => agreed_normalisation(files.iter().copied(), channels)?,
    };
    let default = of_files.unwrap_or_default();
    let normalisation = Normalisation {
        mean: asked.mean.clone().unwrap_or(default.mean),
        std: asked.std.clone().unwrap_or(default.std),
    };
    normalisation.check(channels)?;
    let is_asked = asked.mean.is_some() && asked.std.is_some();
    for (path, _) in files.iter().filter(|(_, provenance)| !is_asked && provenance.normalisation.is_none()) {
        let path = path.display();
        note(
            global,
            format_args!("note: {path} does not say how its images were normalised; {normalisation} is taken"),
        );
    }
    for (path, provenance) in files {
        if let Some(trained) = provenance.normalisation.as_ref().filter(|n| !n.is_same(&normalisation, channels)) {
            note(global, format_args!("note: {} was trained with {trained}; here {normalisation}", path.display()));
        }
    }
    Ok(normalisation)
}

/// Says where images are of another size than a network was trained on.
pub fn tell_image_size(files: &[(&Path, &Provenance)], data: &Dataset, global: &Global) {
    let here = [data.height, data.width];
    for (path, provenance) in files {
        if let Some([height, width]) = provenance.image_size.filter(|size| *size != here) {
            note(
                global,
                format_args!(
                    "note: {} was trained on images of {height}×{width} pixels; these are {}×{}",
                    path.display(),
                    here[0],
                    here[1]
                ),
            );
        }
    }
}

/// Refuses labels that mean other classes than the network's.
pub fn check_class_names(path: &Path, provenance: &Provenance, data: &Dataset) -> Result<()> {
    let (Some(network), Some(labels)) = (&provenance.class_names, &data.class_names) else { return Ok(()) };
    match network.iter().zip(labels).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(class) => {
            let message = format!(
                "its class {class} is '{}', and that of {} is '{}'",
                network[class],
                data.path.display(),
                labels[class]
            );
            let hint = "labels must count the network's classes in its order; or train a new head: medmerge train --from --new-head";
            Err(Error::checkpoint(path, message, hint))
        }
    }
}
