//! Networks of another family with other numbers of filters in some layers: what partial merging makes, which keeps units of both
//! sources where they have no partner.
//!
//! Layers are named as the network itself names them; those that are not named have their family's widths. Tensors alone do not
//! tell such a network: its file's header does.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::nn::{Architecture, Family, Network, NetworkBuilder, Operation, Stem};

/// A network with other widths than its family gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Widened {
    pub of: Architecture,
    /// Filters of convolutions and outputs of hidden layers, by their names.
    pub filters: BTreeMap<String, usize>,
}

impl Widened {
    /// A network as it is, whose widths are to change.
    pub fn around(architecture: &Architecture) -> Widened {
        let plain = || Widened { of: architecture.clone(), filters: BTreeMap::new() };
        architecture.as_family::<Widened>().unwrap_or_else(plain)
    }
}

/// The most filters that a file may claim.
const MAX_FILTERS: usize = 1 << 16;

impl Family for Widened {
    const NAME: &'static str = "widened";

    fn check(&self, input_channels: usize) -> Result<(), String> {
        if self.of.family() == Self::NAME {
            return Err("a widened network of a widened network".into());
        }
        self.of.check(input_channels)?;
        let plain = self.of.build(input_channels, 1);
        for (name, &filters) in &self.filters {
            if !plain.layers.iter().any(|layer| &layer.name == name) {
                return Err(format!("{} has no layer '{name}'", self.of));
            }
            if !(1..=MAX_FILTERS).contains(&filters) {
                return Err(format!("{name} has {filters} filters"));
            }
        }
        let mut b = NetworkBuilder::new(input_channels);
        self.build(&mut b, 1);
        check_fit(&b.finish(), &plain)
    }

    fn build(&self, b: &mut NetworkBuilder, classes: usize) {
        b.widen(self.filters.clone());
        self.of.add_to(b, classes);
    }

    fn stem(&self) -> Option<Stem> {
        self.of.stem()
    }

    fn with_stem(&self, stem: Stem) -> Option<Widened> {
        Some(Widened { of: self.of.with_stem(stem)?, ..self.clone() })
    }

    fn with_new_hidden(&self) -> Option<Widened> {
        Some(Widened { of: self.of.with_new_hidden()?, ..self.clone() })
    }
}

/// Refuses other layers than those of the network as its family has it, sums of different widths, and convolutions whose groups
/// do not divide what they read.
fn check_fit(network: &Network, plain: &Network) -> Result<(), String> {
    let names = |network: &Network| network.layers.iter().map(|layer| layer.name.clone()).collect::<Vec<_>>();
    if let Some((other, _)) = names(network).iter().zip(names(plain)).find(|(a, b)| *a != b) {
        return Err(format!("{other} would be another layer"));
    }
    let channels = network.channels();
    for layer in &network.layers {
        let inputs: Vec<usize> =
            layer.inputs.iter().map(|node| channels[node.layer().map_or(0, |index| index + 1)]).collect();
        match layer.operation {
            Operation::Add if inputs.iter().any(|&count| count != inputs[0]) => {
                return Err(format!("{} adds {inputs:?} channels", layer.name));
            }
            Operation::Conv2d { conv, weight } => {
                let shape = network.parameters[weight].shape;
                if shape.channels() * conv.groups != inputs[0] || !shape.rows().is_multiple_of(conv.groups) {
                    return Err(format!("{} reads {} channels in {} groups", layer.name, inputs[0], conv.groups));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for Widened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} widened layers", self.of, self.filters.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widened(filters: &[(&str, usize)]) -> Widened {
        let of = Architecture::named("resnet8", None, Some(4)).unwrap();
        Widened { of, filters: filters.iter().map(|(name, count)| (name.to_string(), *count)).collect() }
    }

    #[test]
    fn layers_have_the_widths_that_are_named() {
        let wide = widened(&[("layer1.0.conv1", 7), ("layer3.0.conv1", 20)]);
        assert_eq!(wide.check(3), Ok(()));
        let network = Architecture::from(wide.clone()).build(3, 5);
        let shape = |name: &str| network.parameter(name).unwrap().shape.dims().to_vec();
        assert_eq!(shape("layer1.0.conv1.weight"), [7, 3, 3, 4]);
        assert_eq!(shape("layer1.0.conv2.weight"), [4, 3, 3, 7]);
        assert_eq!(shape("layer1.0.bn1.bias"), [7]);
        let json = Architecture::from(wide).to_json();
        let read: Architecture = serde_json::from_str(&json).unwrap();
        assert_eq!((read.to_json(), read.family()), (json, "widened"));
    }

    #[test]
    fn widths_that_do_not_fit_are_refused() {
        for (filters, says) in [
            (&[("layer1.0.conv2", 5)][..], "layer1.0.downsample.0 would be another layer"),
            (&[("layer1.0.conv1", 0)], "has 0 filters"),
            (&[("layer9.0.conv1", 5)], "no layer 'layer9.0.conv1'"),
        ] {
            let refused = widened(filters).check(3).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
        let twice = Widened { of: widened(&[]).into(), filters: BTreeMap::new() };
        assert!(twice.check(3).is_err());
        let of = Architecture::named("resnet20-option-a", None, Some(4)).unwrap();
        let of_stem = |count: usize| {
            let all =
                ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"].map(|name| (name.to_string(), count));
            Widened { of: of.clone(), filters: all.into_iter().collect() }
        };
        assert!(of_stem(12).check(3).is_err());
    }
}
