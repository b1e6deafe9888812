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
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::network::{Network, NetworkBuilder, Node, Operation};
use crate::error::{Error, Result};
use crate::ops::conv2d::Conv2d;
use crate::ops::pool::Pool;

/// What stands before the first stage. Tensors in a file tell the window alone: of the stems with one window, the first
/// is the usual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stem {
    /// 3×3, stride 1.
    #[serde(rename = "3x3")]
    Small,
    /// 3×3, stride 1, then 3×3 max pooling of stride 2.
    #[serde(rename = "3x3-pool")]
    SmallPooled,
    /// 3×3, stride 2.
    #[serde(rename = "3x3-stride2")]
    SmallStrided,
    /// 3×3, stride 2, then 3×3 max pooling of stride 2.
    #[serde(rename = "3x3-stride2-pool")]
    SmallStridedPooled,
    /// 7×7, stride 2, then 3×3 max pooling of stride 2.
    #[serde(rename = "7x7")]
    Large,
}

impl Stem {
    /// With their names in the header of a file and on the command line.
    pub const ALL: [(Stem, &'static str); 5] = [
        (Stem::Small, "3x3"),
        (Stem::SmallPooled, "3x3-pool"),
        (Stem::SmallStrided, "3x3-stride2"),
        (Stem::SmallStridedPooled, "3x3-stride2-pool"),
        (Stem::Large, "7x7"),
    ];

    /// The usual stem of a window.
    fn usual(window: [usize; 2]) -> Option<Stem> {
        Stem::ALL.into_iter().map(|(stem, _)| stem).find(|stem| [stem.window(); 2] == window)
    }

    /// Height and width of the convolution's filters.
    pub fn window(self) -> usize {
        if self == Stem::Large { 7 } else { 3 }
    }

    /// Whether a file's tensors leave it open which of several stems in use is meant. Stems of 7×7 are all of one kind.
    pub fn is_ambiguous(self) -> bool {
        self.window() == 3
    }

    pub(crate) fn convolution(self) -> Conv2d {
        let stride = if matches!(self, Stem::Small | Stem::SmallPooled) { 1 } else { 2 };
        Conv2d::new(stride, self.window() / 2)
    }

    pub(crate) fn is_pooled(self) -> bool {
        !matches!(self, Stem::Small | Stem::SmallStrided)
    }
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Stem::ALL.iter().find(|(stem, _)| stem == self).expect("all are listed").1)
    }
}

impl FromStr for Stem {
    type Err = Error;
    fn from_str(name: &str) -> Result<Stem> {
        let found = Stem::ALL.into_iter().find(|(stem, known)| *known == name || stem.window().to_string() == name);
        found.map(|(stem, _)| stem).ok_or_else(|| Error::unknown("stem", name, Stem::ALL.map(|(_, name)| name)))
    }
}

/// Everything that distinguishes one residual network from another, but for its input channels and classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Architecture {
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

/// The most channels, stages and blocks of a stage that a file may claim: far beyond any network in use, and small enough
/// that no product of them overflows.
const MAX_CHANNELS: usize = 1 << 16;
const MAX_STAGES: usize = 16;
const MAX_BLOCKS: usize = 1024;

/// Channels that leave a bottleneck, per channel inside it.
const EXPANSION: usize = 4;

impl Architecture {
    /// Every name that [`Architecture::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, ..)| *name)
    }

    /// `width` is that of the first stage; without it, the usual one. Without a stem, the 3×3 one for networks of three
    /// stages and the 7×7 one for those of four.
    pub fn named(name: &str, stem: Option<Stem>, width: Option<usize>) -> Result<Architecture> {
        let Some(&(_, bottleneck, blocks)) = NAMED.iter().find(|(known, ..)| *known == name) else {
            return Err(Error::unknown("architecture", name, NAMED.map(|(known, ..)| known)));
        };
        let is_small = blocks.len() == 3;
        let width = width.unwrap_or(if is_small { 16 } else { 64 });
        if width == 0 || width > 4096 {
            return Err(Error::usage(format!("a width of {width}"), "give between 1 and 4096 filters"));
        }
        Ok(Architecture {
            bottleneck,
            blocks: blocks.to_vec(),
            widths: (0..blocks.len()).map(|stage| width << stage).collect(),
            stem: stem.unwrap_or(if is_small { Stem::Small } else { Stem::Large }),
        })
    }

    /// The name under which it is known, if any.
    pub fn name(&self) -> Option<&'static str> {
        NAMED
            .iter()
            .find(|(_, bottleneck, blocks)| *bottleneck == self.bottleneck && *blocks == self.blocks)
            .map(|(name, ..)| *name)
    }

    /// Reads the architecture off the shapes of a checkpoint's tensors in PyTorch's order: itself, the input channels,
    /// and the classes (`None` where there is no `fc`). Of its stem the shapes tell the window alone; the usual one is
    /// taken. An error says which tensor is missing or odd.
    pub fn infer(shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<(Architecture, usize, Option<usize>), String> {
        let four = |name: &str| match shape(name).as_deref() {
            Some(&[k, c, r, s]) => Ok([k, c, r, s]),
            Some(other) => Err(format!("{name} has shape {other:?}, not that of a convolution")),
            None => Err(format!("it has no tensor '{name}'")),
        };
        let [_, input_channels, r, s] = four("conv1.weight")?;
        let Some(stem) = Stem::usual([r, s]) else {
            return Err(format!("conv1.weight is {r}×{s}; stems are 3×3 or 7×7"));
        };
        let bottleneck = shape("layer1.0.conv3.weight").is_some();
        let (mut blocks, mut widths) = (Vec::new(), Vec::new());
        for stage in 1.. {
            let is_block = |i: &usize| shape(&format!("layer{stage}.{i}.conv1.weight")).is_some();
            let count = (0..=MAX_BLOCKS).take_while(is_block).count();
            if count == 0 {
                break;
            }
            if count > MAX_BLOCKS || stage > MAX_STAGES {
                return Err(format!("it has more than {MAX_STAGES} stages, or {MAX_BLOCKS} blocks in one"));
            }
            blocks.push(count);
            widths.push(four(&format!("layer{stage}.0.conv1.weight"))?[0]);
        }
        if blocks.is_empty() {
            return Err("it has no tensor 'layer1.0.conv1.weight'".into());
        }
        let classes = match shape("fc.weight").as_deref() {
            Some(&[0, _]) => return Err("fc.weight tells 0 classes apart".into()),
            Some(&[classes, _]) => Some(classes),
            Some(other) => return Err(format!("fc.weight has shape {other:?}, not that of a matrix")),
            None => None,
        };
        let architecture = Architecture { bottleneck, blocks, widths, stem };
        architecture.check(input_channels)?;
        Ok((architecture, input_channels, classes))
    }

    /// Refuses sizes that no network has, before anything is laid out by them.
    pub fn check(&self, input_channels: usize) -> Result<(), String> {
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

    pub fn build(&self, input_channels: usize, classes: usize) -> Arc<Network> {
        let mut b = NetworkBuilder::new(input_channels);
        let mut x = b.conv2d("conv1", b.input(), self.widths[0], self.stem.window(), self.stem.convolution());
        x = b.batch_norm("bn1", x);
        x = b.plain("relu", Operation::Relu, &[x]);
        if self.stem.is_pooled() {
            x = b.plain("maxpool", Operation::MaxPool(Pool::new(3, 2, 1)), &[x]);
        }
        for (stage, (&blocks, &width)) in self.blocks.iter().zip(&self.widths).enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                x = self.block(&mut b, &format!("layer{}.{block}", stage + 1), x, width, stride);
            }
        }
        x = b.plain("avgpool", Operation::GlobalAveragePool, &[x]);
        b.linear("fc", x, classes);
        b.finish()
    }

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

impl fmt::Display for Architecture {
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
    use super::*;

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
    fn an_architecture_is_read_off_its_own_shapes() {
        for (name, stem) in [("resnet20", Stem::Small), ("resnet50", Stem::Large), ("resnet18", Stem::Small)] {
            let architecture = Architecture::named(name, Some(stem), Some(8)).unwrap();
            let network = architecture.build(1, 7);
            let shape = |name: &str| {
                network.parameter(name).map(|p| match *p.shape.dims() {
                    [k, r, s, c] => vec![k, c, r, s],
                    ref other => other.to_vec(),
                })
            };
            assert_eq!(Architecture::infer(&shape).unwrap(), (architecture, 1, Some(7)));
        }
    }

    #[test]
    fn a_misspelt_name_is_an_error_with_the_nearest() {
        let error = Architecture::named("resnet19", None, None).unwrap_err();
        assert!(error.hint().unwrap().starts_with("did you mean 'resnet1"), "{:?}", error.hint());
    }
}
