//! The shapes that are measured where nobody says otherwise: networks, image sizes, batches, numbers of sources. Layers
//! are read off the networks' own graphs; `benches/` takes its shapes from here too.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::nn::{Architecture, Network, Stem};
use crate::ops::conv2d::Geometry;

/// Networks whose convolutions are measured.
pub const CONV_NETWORKS: [&str; 3] = ["resnet18", "resnet50", "densenet121"];
/// Networks that are merged, and trained.
pub const NETWORKS: [&str; 2] = ["resnet18", "resnet50"];
/// How many sources are merged.
pub const SOURCES: [usize; 3] = [2, 4, 8];
/// Sources of a learning step.
pub const STEP_SOURCES: usize = 2;

/// MedMNIST's images, and photographs.
pub const SMALL: usize = 28;
pub const LARGE: usize = 224;
/// Images up to here get the 3×3 stem.
const LARGEST_SMALL: usize = 64;

/// The scale of a device, which decides the batch: a CPU takes a second for eight photographs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Cpu,
    Gpu,
    /// The emulator: thousands of times slower than either.
    Tiny,
}

impl Scale {
    pub fn image_sizes(self) -> &'static [usize] {
        match self {
            Scale::Cpu => &[SMALL],
            Scale::Gpu => &[SMALL, LARGE],
            Scale::Tiny => &[8],
        }
    }

    pub fn batch_size(self, image_size: usize) -> usize {
        match self {
            Scale::Cpu if image_size > LARGEST_SMALL => 8,
            Scale::Cpu | Scale::Gpu => 128,
            Scale::Tiny => 2,
        }
    }
}

pub fn stem(image_size: usize) -> Stem {
    if image_size > LARGEST_SMALL { Stem::Large } else { Stem::Small }
}

/// As many as ImageNet has for photographs, as PathMNIST has for small images.
pub fn classes(image_size: usize) -> usize {
    if image_size > LARGEST_SMALL { 1000 } else { 9 }
}

/// A network by its name, on RGB images.
pub fn network(name: &str, stem: Stem, classes: usize) -> Result<Arc<Network>> {
    let known = Architecture::names();
    if !known.contains(&name) {
        return Err(Error::unknown("network", name, known));
    }
    // Some have no choice of stems.
    let usual = Architecture::named(name, None, None)?;
    let stem = usual.stem().map(|_| stem);
    Ok(Architecture::named(name, stem, None)?.build(3, classes))
}

/// A convolution that a network has once or several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// The first layer of those alike.
    pub name: String,
    pub geometry: Geometry,
    /// How often the network has it.
    pub count: usize,
    /// Whether its input is the images, of which nobody needs a gradient.
    pub is_first: bool,
}

/// The distinct convolutions of a network on `batch` images; `None` if it does not take images of this size.
pub fn convolutions(network: &Network, image_size: usize, batch: usize) -> Option<Vec<Convolution>> {
    let images = [batch, image_size, image_size, network.input_channels];
    let mut distinct: Vec<Convolution> = Vec::new();
    for (index, (name, geometry)) in network.convolutions(images.into())?.into_iter().enumerate() {
        let is_first = index == 0;
        match distinct.iter_mut().find(|known| known.geometry == geometry && known.is_first == is_first) {
            Some(known) => known.count += 1,
            None => distinct.push(Convolution { name: name.into(), geometry, count: 1, is_first }),
        }
    }
    Some(distinct)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Convolutions, filters and parameters with 1,000 classes, as torchvision has them.
    #[test]
    fn networks_are_torchvisions() {
        for (name, count, filters, parameters) in [
            ("resnet18", 20, 4_800, 11_689_512),
            ("resnet50", 53, 26_560, 25_557_032),
            ("densenet121", 120, 10_240, 7_978_856),
        ] {
            let network = network(name, Stem::Large, 1000).unwrap();
            let convolutions = convolutions(&network, LARGE, 1).unwrap();
            assert_eq!(convolutions.iter().map(|c| c.count).sum::<usize>(), count, "{name}");
            assert_eq!(convolutions.iter().map(|c| c.count * c.geometry.k).sum::<usize>(), filters, "{name}");
            assert_eq!(network.parameter_count(), parameters, "{name}");
        }
    }

    /// The layers that are measured beside the peers; operations of a forward pass on one image as published.
    #[test]
    fn distinct_convolutions_of_resnet18() {
        let names = |image_size| {
            let network = network("resnet18", stem(image_size), 9).unwrap();
            let convolutions = convolutions(&network, image_size, 2).unwrap();
            convolutions.iter().map(|c| (c.name.clone(), c.count)).collect::<Vec<_>>()
        };
        let expected = [
            ("conv1", 1),
            ("layer1.0.conv1", 4),
            ("layer2.0.conv1", 1),
            ("layer2.0.conv2", 3),
            ("layer2.0.downsample.0", 1),
            ("layer3.0.conv1", 1),
            ("layer3.0.conv2", 3),
            ("layer3.0.downsample.0", 1),
            ("layer4.0.conv1", 1),
            ("layer4.0.conv2", 3),
            ("layer4.0.downsample.0", 1),
        ];
        let expected = expected.map(|(name, count)| (name.to_string(), count));
        assert_eq!(names(SMALL), expected);
        assert_eq!(names(LARGE), expected);
        let network = network("resnet18", Stem::Large, 1000).unwrap();
        let of_one = convolutions(&network, LARGE, 1).unwrap();
        let flops: u64 = of_one.iter().map(|c| c.count as u64 * c.geometry.flops()).sum();
        assert_eq!(flops, 2 * 1_813_561_344);
    }

    #[test]
    fn images_that_are_too_small() {
        let network = network("densenet121", Stem::Small, 9).unwrap();
        assert!(convolutions(&network, 28, 1).is_some());
        assert!(convolutions(&network, 4, 1).is_none());
    }

    #[test]
    fn a_misspelt_network() {
        let error = network("densenet12", Stem::Small, 9).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean 'densenet121'?");
    }
}
