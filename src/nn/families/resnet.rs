//! Residual networks (He et al., 2015), with torchvision's names.
//!
//! | name | stages | blocks | widths | shortcut where the shape changes |
//! |---|---|---|---|---|
//! | resnet8, 14, 20, 32, 44, 56 | 3 | basic | 16, 32, 64 | 1×1 convolution and batch norm |
//! | resnet18, 34 | 4 | basic | 64, 128, 256, 512 | the same |
//! | resnet50, 101, 152 | 4 | bottleneck, stride in its 3×3 convolution | 64, 128, 256, 512 (×4) | the same |
//! | wide_resnet50_2, 101_2 | 4 | the same, with twice as many filters inside | the same | the same |
//! | resnext50_32x4d, 101_32x8d, 101_64x4d | 4 | the same, its 3×3 convolution in 32 or 64 groups | the same | the same |
//! | resnet20-option-a, 32, 44, 56, 110 | 3 | basic | 16, 32, 64 | every second pixel, and channels of zeros |
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
    /// Groups of a bottleneck's 3×3 convolution.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub groups: usize,
    /// Filters of each group for every 64 of the stage's width.
    #[serde(default = "usual_group_width", skip_serializing_if = "is_usual_group_width")]
    pub group_width: usize,
    #[serde(default, skip_serializing_if = "Shortcut::is_projection")]
    pub shortcut: Shortcut,
}

/// The way past a block that changes the shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Shortcut {
    /// A 1×1 convolution and a batch norm.
    #[default]
    Projection,
    /// Every second pixel, and half of the new channels, of zeros, on either side of the old ones: option A of He et al. It has
    /// no parameters.
    OptionA,
}

impl Shortcut {
    fn is_projection(&self) -> bool {
        *self == Shortcut::Projection
    }
}

pub(crate) const USUAL_GROUP_WIDTH: usize = 64;

fn one() -> usize {
    1
}

fn is_one(&groups: &usize) -> bool {
    groups == 1
}

fn usual_group_width() -> usize {
    USUAL_GROUP_WIDTH
}

fn is_usual_group_width(&width: &usize) -> bool {
    width == USUAL_GROUP_WIDTH
}

/// A network that is known by name.
struct Named {
    name: &'static str,
    bottleneck: bool,
    blocks: &'static [usize],
    groups: usize,
    group_width: usize,
    shortcut: Shortcut,
}

const fn named(name: &'static str, bottleneck: bool, blocks: &'static [usize]) -> Named {
    Named { name, bottleneck, blocks, groups: 1, group_width: USUAL_GROUP_WIDTH, shortcut: Shortcut::Projection }
}

const fn grouped(name: &'static str, blocks: &'static [usize], groups: usize, group_width: usize) -> Named {
    Named { groups, group_width, ..named(name, true, blocks) }
}

const fn option_a(name: &'static str, blocks: &'static [usize]) -> Named {
    Named { shortcut: Shortcut::OptionA, ..named(name, false, blocks) }
}

const NAMED: [Named; 21] = [
    named("resnet8", false, &[1, 1, 1]),
    named("resnet14", false, &[2, 2, 2]),
    named("resnet20", false, &[3, 3, 3]),
    named("resnet32", false, &[5, 5, 5]),
    named("resnet44", false, &[7, 7, 7]),
    named("resnet56", false, &[9, 9, 9]),
    named("resnet18", false, &[2, 2, 2, 2]),
    named("resnet34", false, &[3, 4, 6, 3]),
    named("resnet50", true, &[3, 4, 6, 3]),
    named("resnet101", true, &[3, 4, 23, 3]),
    named("resnet152", true, &[3, 8, 36, 3]),
    grouped("wide_resnet50_2", &[3, 4, 6, 3], 1, 128),
    grouped("wide_resnet101_2", &[3, 4, 23, 3], 1, 128),
    grouped("resnext50_32x4d", &[3, 4, 6, 3], 32, 4),
    grouped("resnext101_32x8d", &[3, 4, 23, 3], 32, 8),
    grouped("resnext101_64x4d", &[3, 4, 23, 3], 64, 4),
    option_a("resnet20-option-a", &[3, 3, 3]),
    option_a("resnet32-option-a", &[5, 5, 5]),
    option_a("resnet44-option-a", &[7, 7, 7]),
    option_a("resnet56-option-a", &[9, 9, 9]),
    option_a("resnet110-option-a", &[18, 18, 18]),
];

const MEMBERS: [&str; NAMED.len()] = {
    let mut names = [""; NAMED.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = NAMED[i].name;
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
pub(crate) const EXPANSION: usize = 4;

impl Family for ResNet {
    const NAME: &'static str = "resnet";
    const MEMBERS: &'static [&'static str] = &MEMBERS;

    /// Without a stem, the 3×3 one for networks of three stages and the 7×7 one for those of four.
    fn member(name: &str, stem: Option<Stem>, width: Option<usize>) -> Result<ResNet> {
        let Some(known) = NAMED.iter().find(|known| known.name == name) else {
            return Err(Error::unknown("architecture", name, MEMBERS));
        };
        let Named { bottleneck, blocks, groups, group_width, shortcut, .. } = *known;
        let is_small = blocks.len() == 3;
        let width = width.unwrap_or(if is_small { 16 } else { 64 });
        if width == 0 || width > 4096 {
            return Err(Error::usage(format!("a width of {width}"), "give between 1 and 4096 filters"));
        }
        let network = ResNet {
            bottleneck,
            blocks: blocks.to_vec(),
            widths: (0..blocks.len()).map(|stage| width << stage).collect(),
            stem: stem.unwrap_or(if is_small { Stem::Small } else { Stem::Large }),
            groups,
            group_width,
            shortcut,
        };
        network.check(1).map_err(|reason| {
            Error::usage(format!("{name} of width {width}: {reason}"), "leave --width out, or give 64, 32 or 16")
        })?;
        Ok(network)
    }

    fn name(&self) -> Option<&'static str> {
        let own = |known: &&Named| {
            let of_known = (known.bottleneck, known.blocks, known.groups, known.group_width, known.shortcut);
            of_known == (self.bottleneck, &self.blocks[..], self.groups, self.group_width, self.shortcut)
        };
        NAMED.iter().find(own).map(|known| known.name)
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
        if let Some((stage, width)) = (1..).zip(&self.widths).find(|(_, width)| !(1..=MAX_CHANNELS).contains(*width)) {
            return Err(format!("layer{stage}.0.conv1.weight has {width} filters"));
        }
        let is_plain = self.groups == 1 && self.group_width == USUAL_GROUP_WIDTH;
        let sizes = 1..=MAX_CHANNELS;
        if !(is_plain || self.bottleneck && sizes.contains(&self.groups) && sizes.contains(&self.group_width)) {
            return Err(format!("{} groups of {} filters in blocks that have none", self.groups, self.group_width));
        }
        let odd = |width: &&usize| !(*width * self.group_width).is_multiple_of(USUAL_GROUP_WIDTH);
        if let Some(width) = self.widths.iter().find(odd).filter(|_| !is_plain) {
            return Err(format!("{width} filters in groups of {} per 64", self.group_width));
        }
        if let Some(inner) = self.widths.iter().map(|&width| self.inner(width)).find(|&inner| inner > MAX_CHANNELS) {
            return Err(format!("blocks of {inner} filters"));
        }
        let doubles = |pair: &[usize]| pair[1] > pair[0] && (pair[1] - pair[0]).is_multiple_of(2);
        match self.shortcut == Shortcut::OptionA && (self.bottleneck || !self.widths.windows(2).all(doubles)) {
            true => Err("shortcuts without parameters where widths do not grow by an even number".into()),
            false => Ok(()),
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
            b.begin_stage();
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
    /// One without groups, whose shortcuts are projections.
    pub fn plain(bottleneck: bool, blocks: Vec<usize>, widths: Vec<usize>, stem: Stem) -> ResNet {
        let (groups, group_width, shortcut) = (1, USUAL_GROUP_WIDTH, Shortcut::Projection);
        ResNet { bottleneck, blocks, widths, stem, groups, group_width, shortcut }
    }

    /// Filters inside a bottleneck.
    fn inner(&self, width: usize) -> usize {
        width * self.group_width / USUAL_GROUP_WIDTH * self.groups
    }

    fn block(&self, b: &mut NetworkBuilder, name: &str, x: Node, width: usize, stride: usize) -> Node {
        let inner = self.inner(width);
        let conv = |window: usize, stride: usize| Conv2d::new(stride, window / 2);
        let convolutions: &[(usize, Conv2d, usize)] = if self.bottleneck {
            let grouped = Conv2d { groups: self.groups, ..conv(3, stride) };
            &[(1, conv(1, 1), inner), (3, grouped, inner), (1, conv(1, 1), EXPANSION * width)]
        } else {
            &[(3, conv(3, stride), width), (3, conv(3, 1), width)]
        };
        let mut y = x;
        for (index, &(window, conv, filters)) in convolutions.iter().enumerate() {
            let number = index + 1;
            y = b.conv2d(&format!("{name}.conv{number}"), y, filters, window, conv);
            y = b.batch_norm(&format!("{name}.bn{number}"), y);
            if number < convolutions.len() {
                y = b.plain(&format!("{name}.relu{number}"), Operation::Relu, &[y]);
            }
        }
        let [before, behind] = [b.channels(x), b.channels(y)];
        let shortcut = match self.shortcut {
            _ if stride == 1 && before == behind => x,
            Shortcut::Projection => {
                let shortcut = b.conv2d(&format!("{name}.downsample.0"), x, behind, 1, Conv2d::new(stride, 0));
                b.batch_norm(&format!("{name}.downsample.1"), shortcut)
            }
            Shortcut::OptionA => {
                let every = Operation::AveragePool(Pool::new(1, stride, 0));
                let shortcut = b.plain(&format!("{name}.subsample"), every, &[x]);
                let zeros = behind.saturating_sub(before) / 2;
                b.plain(&format!("{name}.pad"), Operation::PadChannels([zeros; 2]), &[shortcut])
            }
        };
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
            ("wide_resnet50_2", 53, 34_112, 68_883_240),
            ("resnext50_32x4d", 53, 34_112, 25_028_904),
            ("resnext101_32x8d", 104, 101_440, 88_791_336),
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
