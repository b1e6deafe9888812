//! VGG (Simonyan and Zisserman, 2015), with torchvision's names: 3×3 convolutions with bias in five blocks, each followed by 2×2
//! max pooling; average pooling to 7×7 pixels; three fully connected layers, half of the numbers dropped behind each but the last.
//!
//! | name | convolutions of each block | with batch norm |
//! |---|---|---|
//! | vgg11 | 1, 1, 2, 2, 2 | vgg11_bn |
//! | vgg13 | 2, 2, 2, 2, 2 | vgg13_bn |
//! | vgg16 | 2, 2, 3, 3, 3 | vgg16_bn |
//! | vgg19 | 2, 2, 4, 4, 4 | vgg19_bn |
//!
//! Blocks have 64, 128, 256, 512 and 512 filters, hidden layers 4,096; all scale with the first. The hidden layers run as
//! convolutions, the first of 7×7, and are merged like them, unless they are part of the new head.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Family, NetworkBuilder, Node, Operation, Region, Stem};
use crate::ops::conv2d::Conv2d;
use crate::ops::pool::Pool;

/// Everything that distinguishes one VGG from another, but for its input channels and classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vgg {
    /// Convolutions per block.
    pub blocks: Vec<usize>,
    /// Filters of each block.
    pub widths: Vec<usize>,
    /// Outputs of the hidden layers.
    pub hidden: Vec<usize>,
    pub batch_norm: bool,
    /// Whether the hidden layers are part of the head, and so new wherever a head is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_hidden: bool,
}

/// Name, its name with batch norms, convolutions per block.
const NAMED: [(&str, &str, [usize; 5]); 4] = [
    ("vgg11", "vgg11_bn", [1, 1, 2, 2, 2]),
    ("vgg13", "vgg13_bn", [2, 2, 2, 2, 2]),
    ("vgg16", "vgg16_bn", [2, 2, 3, 3, 3]),
    ("vgg19", "vgg19_bn", [2, 2, 4, 4, 4]),
];
const MEMBERS: [&str; 2 * NAMED.len()] = {
    let mut names = [""; 2 * NAMED.len()];
    let mut i = 0;
    while i < NAMED.len() {
        (names[2 * i], names[2 * i + 1]) = (NAMED[i].0, NAMED[i].1);
        i += 1;
    }
    names
};

/// Pixels, down and across, that the first hidden layer sees.
const POOLED: usize = 7;
const HIDDEN: usize = 4096;
const USUAL_WIDTH: usize = 64;
/// The most that a file may claim: far beyond any network in use.
const MAX_WIDTH: usize = 1 << 14;
const MAX_LAYERS: usize = 64;

impl Family for Vgg {
    const NAME: &'static str = "vgg";
    const MEMBERS: &'static [&'static str] = &MEMBERS;

    /// `width` is the number of the first block's filters.
    fn member(name: &str, stem: Option<Stem>, width: Option<usize>) -> Result<Vgg> {
        let Some((_, with_norm, blocks)) = NAMED.iter().find(|known| known.0 == name || known.1 == name) else {
            return Err(Error::unknown("architecture", name, MEMBERS));
        };
        if let Some(stem) = stem {
            let message = format!("a stem of {stem} for {name}, which has no choice of stems");
            return Err(Error::usage(message, "leave --stem out"));
        }
        let width = width.unwrap_or(USUAL_WIDTH);
        if !(1..=1024).contains(&width) {
            return Err(Error::usage(format!("a width of {width} for {name}"), "give between 1 and 1024 filters"));
        }
        Ok(Vgg {
            blocks: blocks.to_vec(),
            widths: [1, 2, 4, 8, 8].map(|factor| factor * width).to_vec(),
            hidden: vec![HIDDEN / USUAL_WIDTH * width; 2],
            batch_norm: *with_norm == name,
            new_hidden: false,
        })
    }

    fn name(&self) -> Option<&'static str> {
        let own = |known: &&(&str, &str, [usize; 5])| known.2[..] == self.blocks[..];
        NAMED.iter().find(own).map(|known| if self.batch_norm { known.1 } else { known.0 })
    }

    fn check(&self, input_channels: usize) -> Result<(), String> {
        let within = |what: &str, value: usize, most: usize| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("{value} {what}")),
        };
        within("blocks", self.blocks.len(), MAX_LAYERS)?;
        if self.widths.len() != self.blocks.len() {
            return Err(format!("{} blocks with {} widths", self.blocks.len(), self.widths.len()));
        }
        self.blocks.iter().try_for_each(|&layers| within("convolutions in a block", layers, MAX_LAYERS))?;
        self.widths.iter().try_for_each(|&width| within("filters in a convolution", width, MAX_WIDTH))?;
        within("hidden layers", self.hidden.len(), MAX_LAYERS)?;
        self.hidden.iter().try_for_each(|&outputs| within("outputs of a hidden layer", outputs, MAX_WIDTH))?;
        within("input channels", input_channels, 1 << 16)
    }

    fn build(&self, b: &mut NetworkBuilder, classes: usize) {
        let mut x = b.input();
        // torchvision numbers all layers of the trunk, with or without parameters.
        let mut number = 0;
        for (block, (&layers, &width)) in self.blocks.iter().zip(&self.widths).enumerate() {
            if block > 0 {
                b.begin_stage();
            }
            for _ in 0..layers {
                x = self.convolution(b, &mut number, x, width);
            }
            x = b.plain(&format!("features.{number}"), Operation::MaxPool(Pool::new(2, 2, 0)), &[x]);
            number += 1;
        }
        x = b.plain("avgpool", Operation::AdaptiveAveragePool([POOLED; 2]), &[x]);
        b.begin_stage();
        let region = if self.new_hidden { Region::Head } else { Region::Trunk };
        for (layer, &outputs) in self.hidden.iter().enumerate() {
            let name = |offset: usize| format!("classifier.{}", 3 * layer + offset);
            x = b.fully_connected(&name(0), x, outputs, if layer == 0 { POOLED } else { 1 }, region);
            x = b.plain(&name(1), Operation::Relu, &[x]);
            x = b.plain(&name(2), Operation::Dropout { percent: 50 }, &[x]);
        }
        // The mean of a single pixel: it is this one.
        x = b.plain("flatten", Operation::GlobalAveragePool, &[x]);
        b.linear(&format!("classifier.{}", 3 * self.hidden.len()), x, classes);
    }

    fn with_new_hidden(&self) -> Option<Vgg> {
        Some(Vgg { new_hidden: true, ..self.clone() })
    }
}

impl Vgg {
    fn convolution(&self, b: &mut NetworkBuilder, number: &mut usize, x: Node, width: usize) -> Node {
        let mut name = || {
            *number += 1;
            format!("features.{}", *number - 1)
        };
        let mut y = b.conv2d_with_bias(&name(), x, width, 3, Conv2d::new(1, 1));
        if self.batch_norm {
            y = b.batch_norm(&name(), y);
        }
        b.plain(&name(), Operation::Relu, &[y])
    }
}

impl fmt::Display for Vgg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "vgg with blocks {:?}", self.blocks)?,
        }
        write!(f, " (width {})", self.widths[0])
    }
}

#[cfg(test)]
mod tests {
    use crate::nn::{Architecture, Parameter};

    /// Convolutions, their filters and all parameters with 1,000 classes, as torchvision has them.
    #[test]
    fn sizes_are_those_of_torchvision() {
        for (name, convolutions, filters, parameters) in [
            ("vgg11", 8, 2_752, 132_863_336),
            ("vgg13", 10, 2_944, 133_047_848),
            ("vgg16", 13, 4_224, 138_357_544),
            ("vgg19", 16, 5_504, 143_667_240),
            ("vgg16_bn", 13, 4_224, 138_365_992),
        ] {
            let network = Architecture::named(name, None, None).unwrap().build(3, 1000);
            let of_trunk = |p: &&Parameter| p.shape.rank() == 4 && p.name.starts_with("features.");
            let banks: Vec<_> = network.parameters.iter().filter(of_trunk).collect();
            assert_eq!(banks.len(), convolutions, "{name}");
            assert_eq!(banks.iter().map(|p| p.shape.rows()).sum::<usize>(), filters, "{name}");
            assert_eq!(network.parameter_count(), parameters, "{name}");
        }
    }

    #[test]
    fn names_are_torchvisions() {
        let names = |name: &str| {
            let network = Architecture::named(name, None, Some(2)).unwrap().build(3, 4);
            network.parameters.iter().map(|p| p.name.clone()).filter(|n| n.ends_with("weight")).collect::<Vec<_>>()
        };
        let classifier = ["classifier.0.weight", "classifier.3.weight", "classifier.6.weight"];
        let features = |numbers: &[usize]| numbers.iter().map(|i| format!("features.{i}.weight")).collect::<Vec<_>>();
        let with_classifier = |numbers: &[usize]| [features(numbers), classifier.map(String::from).to_vec()].concat();
        assert_eq!(names("vgg16"), with_classifier(&[0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]));
        assert_eq!(names("vgg11_bn"), with_classifier(&[0, 1, 4, 5, 8, 9, 11, 12, 15, 16, 18, 19, 22, 23, 25, 26]));
    }
}
