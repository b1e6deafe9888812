//! The exporters whose names a network can be written with.

use super::exporters::{EXPORTERS, Exporter};
use crate::checkpoint::Names;
use crate::error::{Error, Result};
use crate::nn::families::densenet::DenseNet;
use crate::nn::families::resnet::{ResNet, Shortcut, USUAL_GROUP_WIDTH};
use crate::nn::families::vgg::Vgg;
use crate::nn::{Architecture, Family, Stem};

/// The exporter of a network's names; `None` where they are the network's own, or those of a file.
///
/// # Errors
/// If it names no such network.
pub fn writer(names: Names, architecture: &Architecture) -> Result<Option<&'static Exporter>> {
    let missing = match names {
        Names::Torchvision | Names::Source => return Ok(None),
        Names::Timm => missing_in_timm(architecture),
        Names::Transformers => missing_in_transformers(architecture),
    };
    match missing {
        Some(reason) => {
            let message = format!("{names} has no names for {architecture}: {reason}");
            Err(Error::usage(message, "leave --names out: the network's own names are torchvision's"))
        }
        None => {
            let own = |exporter: &&Exporter| exporter.family == architecture.family();
            Ok(EXPORTERS.iter().filter(own).find(|exporter| exporter.name == names.to_string()))
        }
    }
}

/// The reason why timm has no such network.
fn missing_in_timm(architecture: &Architecture) -> Option<&'static str> {
    if let Some(network) = architecture.as_family::<ResNet>() {
        return (network.shortcut == Shortcut::OptionA).then_some("its shortcuts have parameters");
    }
    if let Some(network) = architecture.as_family::<Vgg>() {
        return (network.hidden.len() != 2).then_some("its VGGs have two hidden layers");
    }
    (architecture.family() != DenseNet::NAME).then_some("it has ResNets, DenseNets and VGGs")
}

/// The reason why transformers has no such network.
fn missing_in_transformers(architecture: &Architecture) -> Option<&'static str> {
    let Some(network) = architecture.as_family::<ResNet>() else { return Some("it has ResNets alone") };
    match network {
        _ if network.groups != 1 || network.group_width != USUAL_GROUP_WIDTH => {
            Some("its ResNets are not wide, and have no groups")
        }
        _ if network.shortcut == Shortcut::OptionA => Some("its shortcuts have parameters"),
        _ if network.stem != Stem::Large => Some("its stem is 7x7"),
        _ => None,
    }
}
