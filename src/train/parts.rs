//! Stretches of an arena that are updated alike: whether weights decay there, and at which multiple of the learning rate.
//!
//! With `--decay-of weights` decay is of filters and linear layers alone, not of the scales and shifts of norms nor of biases. With
//! `--layer-decay D` the stage that is the i-th from the head learns at Dⁱ times the rate of the head, which is the 0th (as
//! BEiT: Bao et al. 2022). What a stage is, the family says: [`Parameter::depth`](crate::nn::Parameter::depth).

use std::ops::Range;

use super::{DecayOf, TrainOptions};
use crate::nn::{Network, Parameter, Region, Role};
use crate::tensor::{Tensor, TensorMut};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    /// In the arena.
    pub range: Range<usize>,
    /// A multiple of the arena's learning rate.
    pub rate: f64,
    pub decays: bool,
}

impl Part {
    pub fn of(&self, arena: &Tensor) -> Tensor {
        arena.window(self.range.start, [self.range.len()], 1)
    }

    pub fn of_mut<'a>(&self, arena: &'a mut Tensor) -> TensorMut<'a> {
        arena.view_mut().window(self.range.start, [self.range.len()], 1)
    }
}

/// The parts of an arena, from its beginning to its end. What pads a parameter goes with it: it is zero, and stays so.
pub(super) fn parts(network: &Network, region: Region, options: &TrainOptions) -> Vec<Part> {
    let (len, decay) = match region {
        Region::Trunk => (network.trunk_len, options.layer_decay),
        Region::Head => (network.head_len, 1.0),
    };
    let stages = network.region(Region::Trunk).map(|parameter| parameter.depth + 1).max().unwrap_or(0);
    let mut parameters: Vec<&Parameter> = network.region(region).collect();
    parameters.sort_by_key(|parameter| parameter.offset);
    let mut parts: Vec<Part> = Vec::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let end = parameters.get(index + 1).map_or(len, |next| next.offset);
        let part = Part {
            range: parameter.offset..end,
            rate: decay.powi(stages.saturating_sub(parameter.depth) as i32),
            decays: options.decay_of == DecayOf::All || parameter.role == Role::Filters,
        };
        match parts.last_mut() {
            Some(last) if (last.rate, last.decays) == (part.rate, part.decays) => last.range.end = end,
            _ => parts.push(part),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Architecture;

    fn of(name: &str, region: Region, options: &TrainOptions) -> (Vec<Part>, std::sync::Arc<Network>) {
        let network = Architecture::named(name, None, Some(4)).unwrap().build(3, 5);
        (parts(&network, region, options), network)
    }

    /// Every number of the arena lies in one part, and what is usual is one part.
    #[test]
    fn parts_follow_each_other_over_the_whole_arena() {
        let usual = TrainOptions::default();
        let all = TrainOptions { layer_decay: 0.5, decay_of: DecayOf::Weights, ..usual.clone() };
        for name in ["resnet8", "resnet18", "densenet121", "vgg11", "vgg11_bn"] {
            for region in [Region::Trunk, Region::Head] {
                let (whole, network) = of(name, region, &usual);
                let len = if region == Region::Trunk { network.trunk_len } else { network.head_len };
                assert_eq!(whole, [Part { range: 0..len, rate: 1.0, decays: true }], "{name}");
                let (divided, _) = of(name, region, &all);
                let ends: Vec<usize> = divided.iter().map(|part| part.range.end).collect();
                let starts: Vec<usize> = divided.iter().map(|part| part.range.start).collect();
                assert_eq!(
                    (starts[0], &starts[1..], ends[ends.len() - 1]),
                    (0, &ends[..ends.len() - 1], len),
                    "{name}"
                );
            }
        }
    }

    /// By names, which say what a parameter is: of torchvision, where a norm's weight is a vector too.
    #[test]
    fn decay_is_of_what_is_no_vector() {
        let options = TrainOptions { decay_of: DecayOf::Weights, ..TrainOptions::default() };
        for name in ["resnet18", "densenet121", "vgg11_bn"] {
            for region in [Region::Trunk, Region::Head] {
                let (parts, network) = of(name, region, &options);
                for parameter in network.region(region) {
                    let part = parts.iter().find(|part| part.range.contains(&parameter.offset)).unwrap();
                    assert_eq!(part.decays, parameter.shape.rank() > 1, "{name}: {}", parameter.name);
                    assert_eq!(part.rate, 1.0);
                }
            }
        }
    }

    #[test]
    fn rates_fall_stage_by_stage_from_the_head() {
        let options = TrainOptions { layer_decay: 0.5, ..TrainOptions::default() };
        let rate = |name: &str, of_parameter: &str| {
            let (parts, network) = of(name, Region::Trunk, &options);
            let offset = network.parameter(of_parameter).unwrap().offset;
            parts.iter().find(|part| part.range.contains(&offset)).unwrap().rate
        };
        for (name, expected) in [
            (
                "resnet18",
                &[
                    ("layer4.1.conv2.weight", 0.5),
                    ("layer4.0.bn1.bias", 0.5),
                    ("layer3.0.downsample.0.weight", 0.25),
                    ("layer1.0.conv1.weight", 0.0625),
                    ("bn1.weight", 0.03125),
                    ("conv1.weight", 0.03125),
                ][..],
            ),
            ("resnet8", &[("layer3.0.conv1.weight", 0.5), ("conv1.weight", 0.0625)]),
            (
                "densenet121",
                &[
                    ("features.norm5.weight", 0.5),
                    ("features.transition3.conv.weight", 0.25),
                    ("features.denseblock1.denselayer1.norm1.weight", 0.0625),
                    ("features.conv0.weight", 0.03125),
                ],
            ),
            // Its hidden layers are one stage, its blocks five.
            (
                "vgg11",
                &[
                    ("classifier.0.weight", 0.5),
                    ("classifier.3.bias", 0.5),
                    ("features.18.weight", 0.25),
                    ("features.3.weight", 0.03125),
                    ("features.0.bias", 0.015625),
                ],
            ),
        ] {
            for &(parameter, expected) in expected {
                assert_eq!(rate(name, parameter), expected, "{name}: {parameter}");
            }
        }
        // The head is the 0th.
        assert!(of("resnet18", Region::Head, &options).0.iter().all(|part| part.rate == 1.0));
    }
}
