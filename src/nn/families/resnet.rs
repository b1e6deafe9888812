//! Residual networks (He et al., 2015), with torchvision's names.
//!
//! | name | stages | blocks | widths | shortcut where the shape changes |
//! |---|---|---|---|---|
//! | resnet8, 14, 20, 32, 44, 56 | 3 | basic | 16, 32, 64 | 1×1 convolution and batch norm |
//! | resnet18, 34 | 4 | basic | 64, 128, 256, 512 | the same |
//! | resnet50, 101, 152 | 4 | bottleneck, stride in its 3×3 convolution | 64, 128, 256, 512 (×4) | the same |
//!
//! The stem is a 7×7 convolution of stride 2 with max pooling, as for photographs of 224 pixels, or a 3×3 convolution of
//! stride 1 without, as for small images; some 3×3 ones have a stride of 2, or max pooling. The widths scale with that of
//! the first stage.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Family, NetworkBuilder, Node, Operation, Stem};
use crate::ops::conv2d::Conv2d;
use crate::ops::pool::Pool;

/// Everything that distinguishes one residual network from another, but for its input channels and classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResNet {
    pub bottleneck: bool,
    /// Blocks per stage.
    pub blocks: Vec<usize>,
    /// Filters of each stage, before a bottleneck's expansion.
    pub widths: Vec<usize>,
    pub stem: Stem,
}

/// Name, whether its blocks are bottlenecks, blocks per stage.
const NAMED: [(&str, bool, &[usize]); 11] = [
    ("resnet8", false, &[1, 1, 1]),
    ("resnet14", false, &[2, 2, 2]),
    ("resnet20", false, &[3, 3, 3]),
    ("resnet32", false, &[5, 5, 5]),
    ("resnet44", false, &[7, 7, 7]),
    ("resnet56", false, &[9, 9, 9]),
    ("resnet18", false, &[2, 2, 2, 2]),
    ("resnet34", false, &[3, 4, 6, 3]),
    ("resnet50", true, &[3, 4, 6, 3]),
    ("resnet101", true, &[3, 4, 23, 3]),
    ("resnet152", true, &[3, 8, 36, 3]),
];

const MEMBERS: [&str; NAMED.len()] = {
    let mut names = [""; NAMED.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = NAMED[i].0;
        i += 1;
    }
    names
};

/// The most channels, stages and blocks of a stage that a file may claim: far beyond any network in use, and small enough
/// that no product of them overflows.
const MAX_CHANNELS: usize = 1 << 16;
pub(crate) const MAX_STAGES: usize = 16;
pub(crate) const MAX_BLOCKS: usize = 1024;

/// Channels that leave a bottleneck, per channel inside it.
const EXPANSION: usize = 4;

impl Family for ResNet {
    const NAME: &'static str = "resnet";
    const MEMBERS: &'static [&'static str] = &MEMBERS;

    /// Without a stem, the 3×3 one for networks of three stages and the 7×7 one for those of four.
    fn member(name: &str, stem: Option<Stem>, width: Option<usize>) -> Result<ResNet> {
        let Some(&(_, bottleneck, blocks)) = NAMED.iter().find(|(known, ..)| *known == name) else {
            return Err(Error::unknown("architecture", name, MEMBERS));
        };
        let is_small = blocks.len() == 3;
        let width = width.unwrap_or(if is_small { 16 } else { 64 });
        if width == 0 || width > 4096 {
            return Err(Error::usage(format!("a width of {width}"), "give between 1 and 4096 filters"));
        }
        Ok(ResNet {
            bottleneck,
            blocks: blocks.to_vec(),
            widths: (0..blocks.len()).map(|stage| width << stage).collect(),
            stem: stem.unwrap_or(if is_small { Stem::Small } else { Stem::Large }),
        })
    }

    fn name(&self) -> Option<&'static str> {
        NAMED
            .iter()
            .find(|(_, bottleneck, blocks)| *bottleneck == self.bottleneck && *blocks == self.blocks)
            .map(|(name, ..)| *name)
    }

    fn check(&self, input_channels: usize) -> Result<(), String> {
        let stages = self.blocks.len();
        if !(1..=MAX_STAGES).contains(&stages) || self.widths.len() != stages {
            return Err(format!("{stages} stages with {} widths", self.widths.len()));
        }
        if let Some(blocks) = self.blocks.iter().find(|blocks| !(1..=MAX_BLOCKS).contains(*blocks)) {
            return Err(format!("a stage of {blocks} blocks"));
        }
        if !(1..=MAX_CHANNELS).contains(&input_channels) {
            return Err(format!("conv1.weight has {input_channels} input channels"));
        }
        match (1..).zip(&self.widths).find(|(_, width)| !(1..=MAX_CHANNELS).contains(*width)) {
            Some((stage, width)) => Err(format!("layer{stage}.0.conv1.weight has {width} filters")),
            None => Ok(()),
        }
    }

    fn build(&self, b: &mut NetworkBuilder, classes: usize) {
        let mut x = b.conv2d("conv1", b.input(), self.widths[0], self.stem.window(), self.stem.convolution());
        x = b.batch_norm("bn1", x);
        x = b.plain("relu", Operation::Relu, &[x]);
        if self.stem.is_pooled() {
            x = b.plain("maxpool", Operation::MaxPool(Pool::new(3, 2, 1)), &[x]);
        }
        for (stage, (&blocks, &width)) in self.blocks.iter().zip(&self.widths).enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                x = self.block(b, &format!("layer{}.{block}", stage + 1), x, width, stride);
            }
        }
        x = b.plain("avgpool", Operation::GlobalAveragePool, &[x]);
        b.linear("fc", x, classes);
    }

    fn stem(&self) -> Option<Stem> {
        Some(self.stem)
    }

    fn with_stem(&self, stem: Stem) -> Option<ResNet> {
        Some(ResNet { stem, ..self.clone() })
    }
}

impl ResNet {
    fn block(&self, b: &mut NetworkBuilder, name: &str, x: Node, width: usize, stride: usize) -> Node {
        // Window, stride and filters of each convolution.
        let convolutions: &[(usize, usize, usize)] = if self.bottleneck {
            &[(1, 1, width), (3, stride, width), (1, 1, EXPANSION * width)]
        } else {
            &[(3, stride, width), (3, 1, width)]
        };
        let mut y = x;
        for (index, &(window, stride, filters)) in convolutions.iter().enumerate() {
            let number = index + 1;
            y = b.conv2d(&format!("{name}.conv{number}"), y, filters, window, Conv2d::new(stride, window / 2));
            y = b.batch_norm(&format!("{name}.bn{number}"), y);
            if number < convolutions.len() {
                y = b.plain(&format!("{name}.relu{number}"), Operation::Relu, &[y]);
            }
        }
        let mut shortcut = x;
        if stride != 1 || b.channels(x) != b.channels(y) {
            shortcut = b.conv2d(&format!("{name}.downsample.0"), x, b.channels(y), 1, Conv2d::new(stride, 0));
            shortcut = b.batch_norm(&format!("{name}.downsample.1"), shortcut);
        }
        let sum = b.plain(&format!("{name}.add"), Operation::Add, &[y, shortcut]);
        b.plain(&format!("{name}.relu"), Operation::Relu, &[sum])
    }
}

impl fmt::Display for ResNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "resnet with blocks {:?}", self.blocks)?,
        }
        write!(f, " (stem {}, width {})", self.stem, self.widths[0])
    }
}

#[cfg(test)]
mod tests {
    use crate::nn::Architecture;

    /// Convolutions, filters and parameters with 1,000 classes, as torchvision has them.
    #[test]
    fn sizes_are_those_of_torchvision() {
        for (name, convolutions, filters, parameters) in [
            ("resnet18", 20, 4_800, 11_689_512),
            ("resnet34", 36, 8_512, 21_797_672),
            ("resnet50", 53, 26_560, 25_557_032),
        ] {
            let network = Architecture::named(name, None, None).unwrap().build(3, 1000);
            let banks: Vec<_> = network.parameters.iter().filter(|p| p.shape.rank() == 4).collect();
            assert_eq!(banks.len(), convolutions, "{name}");
            assert_eq!(banks.iter().map(|p| p.shape.rows()).sum::<usize>(), filters, "{name}");
            assert_eq!(network.parameter_count(), parameters, "{name}");
        }
    }

    #[test]
    fn a_misspelt_name_is_an_error_with_the_nearest() {
        let error = Architecture::named("resnet19", None, None).unwrap_err();
        assert!(error.hint().unwrap().starts_with("did you mean 'resnet1"), "{:?}", error.hint());
    }
}
