//! Networks as jobs load them: what their files say goes unless something else is asked for, and what a file leaves open
//! is said.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, Provenance, Reading, agreed_normalisation};
use crate::data::{Dataset, Normalisation, check_channels};
use crate::error::{Error, Result};
use crate::merge::Sources;
use crate::nn::Network;
use crate::train::Observer;

use super::Normalise;

pub fn load(path: &Path, reading: &Reading, observer: &mut dyn Observer) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::load_with(path, reading)?;
    tell(path, &checkpoint, observer);
    Ok(checkpoint)
}

pub fn load_sources(paths: &[PathBuf], reading: &Reading, observer: &mut dyn Observer) -> Result<Sources> {
    told(Sources::load_with(paths, reading)?, observer)
}

/// [`load_sources`], also of a single one.
pub fn load_any_sources(paths: &[PathBuf], reading: &Reading, observer: &mut dyn Observer) -> Result<Sources> {
    told(Sources::load_any(paths, reading)?, observer)
}

fn told(sources: Sources, observer: &mut dyn Observer) -> Result<Sources> {
    for source in sources.iter() {
        tell(&source.path, &source.checkpoint, observer);
    }
    Ok(sources)
}

/// Tells what a user of a file ought to know.
fn tell(path: &Path, checkpoint: &Checkpoint, observer: &mut dyn Observer) {
    let path = path.display();
    for note in &checkpoint.notes {
        observer.remark(&format!("{path}: {note}"));
    }
    if let Some(stem) = checkpoint.architecture.stem() {
        if checkpoint.stem_is_assumed {
            observer.remark(&format!("{path} does not say its stem; {stem} is taken (--stem names another)"));
        }
        if let Some(in_header) = checkpoint.stem_in_header.filter(|in_header| *in_header != stem) {
            observer.remark(&format!("{path} says its stem is {in_header}; here it is {stem}"));
        }
    }
    if let Some(phase) = checkpoint.provenance.last_phase().filter(|phase| phase.is_unfinished()) {
        let (done, epochs) = (phase.epochs_done, phase.epochs);
        observer.remark(&format!("{path} is of an unfinished run: {done} of {epochs} epochs"));
    }
}

/// How images become numbers: as asked for, else as the networks' files say, else as MedMNIST does.
pub fn normalisation(
    asked: &Normalise,
    files: &[(&Path, &Provenance)],
    channels: usize,
    observer: &mut dyn Observer,
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
        observer.remark(&format!("{path} does not say how its images were normalised; {normalisation} is taken"));
    }
    for (path, provenance) in files {
        if let Some(trained) = provenance.normalisation.as_ref().filter(|n| !n.is_same(&normalisation, channels)) {
            observer.remark(&format!("{} was trained with {trained}; here {normalisation}", path.display()));
        }
    }
    Ok(normalisation)
}

/// Says where images are of another size than a network was trained on.
pub fn tell_image_size(files: &[(&Path, &Provenance)], data: &Dataset, observer: &mut dyn Observer) {
    let here = [data.height, data.width];
    for (path, provenance) in files {
        if let Some([height, width]) = provenance.image_size.filter(|size| *size != here) {
            observer.remark(&format!(
                "{} was trained on images of {height}×{width} pixels; these are {}×{}",
                path.display(),
                here[0],
                here[1]
            ));
        }
    }
}

/// Refuses labels that mean other classes than those of the network, or of its head.
pub fn check_class_names(path: &Path, class_names: Option<&Vec<String>>, data: &Dataset) -> Result<()> {
    let (Some(network), Some(labels)) = (class_names, &data.class_names) else { return Ok(()) };
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

/// Refuses a network that cannot tell classes apart.
pub fn check_classifier(path: &Path, checkpoint: &Checkpoint) -> Result<()> {
    if checkpoint.has_head {
        return Ok(());
    }
    let head = checkpoint.model.network.classifier().map_or("", |[weight, _]| &weight.name);
    Err(Error::checkpoint(path, format!("it has no classifier ({head})"), "train one: medmerge train --from"))
}

/// Refuses images that do not fit a network, before either is used.
pub fn check_fit(data: &Dataset, network: &Network) -> Result<()> {
    check_channels(data.channels, network.input_channels)?;
    if !network.accepts(data.height, data.width) {
        let message = format!("images of {}×{} are too small for the network", data.height, data.width);
        return Err(Error::data(&data.path, message, "use larger images, or a network with the 3x3 stem"));
    }
    Ok(())
}
