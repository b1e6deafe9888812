//! DenseNets (Huang et al., 2017), with torchvision's names: blocks of layers, each of which sees the outputs of all before it.
//!
//! | name | layers of each block | growth | stem |
//! |---|---|---|---|
//! | densenet121 | 6, 12, 24, 16 | 32 | 64 |
//! | densenet161 | 6, 12, 36, 24 | 48 | 96 |
//! | densenet169 | 6, 12, 32, 32 | 32 | 64 |
//! | densenet201 | 6, 12, 48, 32 | 32 | 64 |
//!
//! A layer is norm, ReLU, 1×1 convolution to four times the growth, norm, ReLU, 3×3 convolution to the growth. Between blocks
//! a 1×1 convolution halves the channels, and 2×2 average pooling the pixels. Growth scales with the stem's filters.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::resnet::MAX_BLOCKS;
use crate::error::{Error, Result};
use crate::nn::{Family, Initial, NetworkBuilder, Node, Operation, Stem};
use crate::ops::conv2d::Conv2d;
use crate::ops::pool::Pool;

/// Everything that distinguishes one DenseNet from another, but for its input channels and classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenseNet {
    /// Layers per block.
    pub blocks: Vec<usize>,
    /// Channels that a layer adds.
    pub growth: usize,
    /// Filters of a layer's 1×1 convolution, in multiples of the growth.
    pub bottleneck: usize,
    /// Filters of the stem.
    pub features: usize,
    pub stem: Stem,
}

/// Name, layers per block, filters of the stem: twice the growth.
const NAMED: [(&str, [usize; 4], usize); 4] = [
    ("densenet121", [6, 12, 24, 16], 64),
    ("densenet161", [6, 12, 36, 24], 96),
    ("densenet169", [6, 12, 32, 32], 64),
    ("densenet201", [6, 12, 48, 32], 64),
];
const MEMBERS: [&str; NAMED.len()] = [NAMED[0].0, NAMED[1].0, NAMED[2].0, NAMED[3].0];

const BOTTLENECK: usize = 4;
/// The most filters and blocks that a file may claim: far beyond any network in use.
const MAX_FILTERS: usize = 1 << 12;
const MAX_STAGES: usize = 16;

impl Family for DenseNet {
    const NAME: &'static str = "densenet";
    const MEMBERS: &'static [&'static str] = &MEMBERS;

    /// `width` is the number of the stem's filters. Without a stem, the 7×7 one.
    fn member(name: &str, stem: Option<Stem>, width: Option<usize>) -> Result<DenseNet> {
        let Some(&(_, blocks, features)) = NAMED.iter().find(|(known, ..)| *known == name) else {
            return Err(Error::unknown("architecture", name, MEMBERS));
        };
        let features = width.unwrap_or(features);
        if features < 2 || !features.is_multiple_of(2) || features > MAX_FILTERS {
            let message = format!("a width of {features} for {name}");
            return Err(Error::usage(message, "give an even number of filters up to 4096: layers add half as many"));
        }
        let stem = stem.unwrap_or(Stem::Large);
        Ok(DenseNet { blocks: blocks.to_vec(), growth: features / 2, bottleneck: BOTTLENECK, features, stem })
    }

    fn name(&self) -> Option<&'static str> {
        let own = |known: &&(&str, [usize; 4], usize)| known.1[..] == self.blocks[..] && self.bottleneck == BOTTLENECK;
        // 121 and 161 differ in their blocks too; a narrow one is the same network with another width.
        NAMED.iter().find(own).filter(|_| self.features == 2 * self.growth).map(|known| known.0)
    }

    fn check(&self, input_channels: usize) -> Result<(), String> {
        let within = |what: &str, value: usize, most: usize| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("{value} {what}")),
        };
        within("blocks", self.blocks.len(), MAX_STAGES)?;
        self.blocks.iter().try_for_each(|&layers| within("layers in a block", layers, MAX_BLOCKS))?;
        within("channels that a layer adds", self.growth, MAX_FILTERS)?;
        within("times the growth in a layer", self.bottleneck, 64)?;
        within("filters in the stem", self.features, MAX_FILTERS)?;
        within("input channels", input_channels, 1 << 16)
    }

    fn build(&self, b: &mut NetworkBuilder, classes: usize) {
        b.begin_filters_by(Initial::he_fan_in);
        let mut x = b.conv2d("features.conv0", b.input(), self.features, self.stem.window(), self.stem.convolution());
        x = normalised(b, "features.norm0", x);
        if self.stem.is_pooled() {
            x = b.plain("features.pool0", Operation::MaxPool(Pool::new(3, 2, 1)), &[x]);
        }
        for (block, &layers) in (1..).zip(&self.blocks) {
            b.begin_stage();
            for layer in 1..=layers {
                x = self.layer(b, &format!("features.denseblock{block}.denselayer{layer}"), x);
            }
            if block < self.blocks.len() {
                x = transition(b, &format!("features.transition{block}"), x);
            }
        }
        x = normalised(b, "features.norm5", x);
        x = b.plain("avgpool", Operation::GlobalAveragePool, &[x]);
        b.linear("classifier", x, classes);
    }

    fn stem(&self) -> Option<Stem> {
        Some(self.stem)
    }

    fn with_stem(&self, stem: Stem) -> Option<DenseNet> {
        Some(DenseNet { stem, ..self.clone() })
    }
}

impl DenseNet {
    /// Appends what a layer makes of `x` to it.
    fn layer(&self, b: &mut NetworkBuilder, name: &str, x: Node) -> Node {
        let mut y = normalised(b, &format!("{name}.norm1"), x);
        y = b.conv2d(&format!("{name}.conv1"), y, self.bottleneck * self.growth, 1, Conv2d::new(1, 0));
        y = normalised(b, &format!("{name}.norm2"), y);
        y = b.conv2d(&format!("{name}.conv2"), y, self.growth, 3, Conv2d::new(1, 1));
        b.plain(&format!("{name}.concat"), Operation::Concat, &[x, y])
    }
}

/// Half the channels, and half the rows and columns.
fn transition(b: &mut NetworkBuilder, name: &str, x: Node) -> Node {
    let y = normalised(b, &format!("{name}.norm"), x);
    let half = (b.channels(y) / 2).max(1);
    let y = b.conv2d(&format!("{name}.conv"), y, half, 1, Conv2d::new(1, 0));
    b.plain(&format!("{name}.pool"), Operation::AveragePool(Pool::new(2, 2, 0)), &[y])
}

fn normalised(b: &mut NetworkBuilder, name: &str, x: Node) -> Node {
    let y = b.batch_norm(name, x);
    b.plain(&name.replace("norm", "relu"), Operation::Relu, &[y])
}

impl fmt::Display for DenseNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "densenet with blocks {:?}, growth {}", self.blocks, self.growth)?,
        }
        write!(f, " (stem {}, width {})", self.stem, self.features)
    }
}

#[cfg(test)]
mod tests {
    use crate::nn::Architecture;

    /// Convolutions, filters and parameters with 1,000 classes, as torchvision has them.
    #[test]
    fn sizes_are_those_of_torchvision() {
        for (name, convolutions, filters, parameters) in [
            ("densenet121", 120, 10_240, 7_978_856),
            ("densenet161", 160, 20_448, 28_681_000),
            ("densenet169", 168, 14_208, 14_149_480),
            ("densenet201", 200, 17_024, 20_013_928),
        ] {
            let network = Architecture::named(name, None, None).unwrap().build(3, 1000);
            let banks: Vec<_> = network.parameters.iter().filter(|p| p.shape.rank() == 4).collect();
            assert_eq!(banks.len(), convolutions, "{name}");
            assert_eq!(banks.iter().map(|p| p.shape.rows()).sum::<usize>(), filters, "{name}");
            assert_eq!(network.parameter_count(), parameters, "{name}");
        }
    }
}
