//! What a user knows of files beyond what they say, and networks that are read differently for it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Checkpoint;
use crate::error::{Error, Result};
use crate::nn::{Architecture, Layer, Model, Network, Node, Operation, Region, Stem};

/// How files of networks are to be read. By default, as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reading {
    /// The stem of files that leave it open.
    pub stem: Option<Stem>,
    /// Channels of the images that the network is to see: the filters that read them are adapted where they see others.
    pub input_channels: Option<usize>,
    pub hidden: Hidden,
}

/// The hidden fully connected layers of networks that have some (VGG).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Hidden {
    /// They are part of the trunk, and merged row by row as filters are.
    #[default]
    Merge,
    /// They are part of the head, and as new as it is.
    New,
}

impl Hidden {
    pub const NAMES: [&str; 2] = ["merge", "new"];
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Hidden::NAMES[*self as usize])
    }
}

impl FromStr for Hidden {
    type Err = Error;
    fn from_str(name: &str) -> Result<Hidden> {
        let known = [Hidden::Merge, Hidden::New].into_iter().find(|hidden| hidden.to_string() == name);
        known.ok_or_else(|| Error::unknown("treatment of hidden layers", name, Hidden::NAMES))
    }
}

impl Reading {
    /// One where only the stem is known.
    pub fn of_stem(stem: Option<Stem>) -> Reading {
        Reading { stem, ..Reading::default() }
    }

    /// Refuses numbers that no network has.
    pub fn check(&self) -> Result<()> {
        match self.input_channels {
            Some(channels) if !(1..=4096).contains(&channels) => {
                Err(Error::usage(format!("--input-channels {channels}"), "give between 1 and 4096; 3 is usual"))
            }
            _ => Ok(()),
        }
    }

    /// Brings a network to the channels and the head that are asked for.
    pub(super) fn apply(&self, mut checkpoint: Checkpoint, path: &std::path::Path) -> Result<Checkpoint> {
        let before = &checkpoint.model.network;
        let (channels, classes) = (self.input_channels.unwrap_or(before.input_channels), before.classes);
        let architecture = self.architecture(&checkpoint.architecture, path)?;
        if channels == before.input_channels && architecture == checkpoint.architecture {
            return Ok(checkpoint);
        }
        if channels != before.input_channels {
            let how = if channels == 1 { "added up" } else { "repeated" };
            checkpoint.notes.push(format!(
                "its filters see {} channels, here {channels}: those of the first layer are {how}",
                before.input_channels
            ));
        }
        checkpoint.model = relaid(&checkpoint.model, &architecture.build(channels, classes));
        // Its hidden layers are those of another head.
        checkpoint.has_head &= architecture == checkpoint.architecture;
        checkpoint.architecture = architecture;
        Ok(checkpoint)
    }

    fn architecture(&self, of_file: &Architecture, path: &std::path::Path) -> Result<Architecture> {
        if self.hidden == Hidden::Merge {
            return Ok(of_file.clone());
        }
        of_file.with_new_hidden().ok_or_else(|| {
            let message = format!("new hidden layers are asked for, and {of_file} has none");
            Error::checkpoint(path, message, "leave --hidden out; VGGs have hidden layers")
        })
    }
}

/// The same parameters and statistics in a network of the same layers that sees other channels, or has another head. What is
/// new in the head is zero.
fn relaid(model: &Model, network: &Arc<Network>) -> Model {
    let mut new = Model::blank(Arc::clone(network));
    for parameter in &network.parameters {
        let old = model.network.parameter(&parameter.name).expect("the same layers");
        if parameter.region == Region::Head && old.region == Region::Trunk {
            continue;
        }
        let values = model.parameter(old).to_vec::<f32>();
        match (old.shape.channels(), parameter.shape.channels()) {
            (from, to) if from != to && reads_images(network, &parameter.name) => {
                new.set_parameter(parameter, &adapted(&values, from, to));
            }
            _ => new.set_parameter(parameter, &values),
        }
    }
    new.statistics = model.statistics.clone();
    new.batches_tracked = model.batches_tracked.clone();
    new
}

fn reads_images(network: &Network, name: &str) -> bool {
    let reads = |layer: &Layer| match layer.operation {
        Operation::Conv2d { weight, .. } => network.parameters[weight].name == name,
        _ => false,
    };
    network.layers.iter().any(|layer| layer.inputs.contains(&Node::INPUT) && reads(layer))
}

/// Weights of `from` channels, channels innermost, for `to` of them, as timm adapts them: a single channel gets their sum, so
/// that it sees grey as the others did; more of them are repeated in their order, and scaled so that sums stay what they were.
fn adapted(weights: &[f32], from: usize, to: usize) -> Vec<f32> {
    let scale = from as f32 / to as f32;
    weights
        .chunks(from)
        .flat_map(|pixel| {
            let one = move |channel: usize| match to {
                1 => pixel.iter().sum(),
                _ => pixel[channel % from] * scale,
            };
            (0..to).map(one)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_added_up_or_repeated() {
        let weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(adapted(&weights, 3, 1), [6.0, 15.0]);
        assert_eq!(adapted(&weights, 3, 4), [0.75, 1.5, 2.25, 0.75, 3.0, 3.75, 4.5, 3.0]);
        assert_eq!(adapted(&weights[..2], 1, 3), [1.0f32, 1.0, 1.0, 2.0, 2.0, 2.0].map(|w| w / 3.0));
    }
}
