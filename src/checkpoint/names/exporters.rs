//! The names that exporters give to the tensors of a network, beside the network's own, which are torchvision's.
//! Rules are read in both directions.

use super::patterns;
use crate::nn::Family;
use crate::nn::families::densenet::DenseNet;
use crate::nn::families::resnet::ResNet;
use crate::nn::families::vgg::Vgg;

/// Names of one exporter for one family.
#[derive(Debug)]
pub struct Exporter {
    pub name: &'static str,
    pub family: &'static str,
    /// A tensor that only its files have; whatever stands before this is a prefix of all.
    pub marker: &'static str,
    /// Pairs of patterns: theirs, ours. What none of them matches has one name in both.
    pub rules: &'static [(&'static str, &'static str)],
    /// The prefix of all names but the classifier's in the networks that it writes, and the classifier as it is called here.
    pub prefix: (&'static str, &'static str),
}

const NO_PREFIX: (&str, &str) = ("", "");

impl Exporter {
    /// Our name for one of theirs, without its prefix.
    pub(super) fn ours(&self, theirs: &str) -> String {
        let ours = self.rules.iter().find_map(|(from, to)| patterns::translate(theirs, from, to));
        ours.unwrap_or_else(|| theirs.into())
    }

    /// Their name for one of ours, without its prefix.
    pub fn theirs(&self, ours: &str) -> String {
        let theirs = self.rules.iter().find_map(|(to, from)| patterns::translate(ours, from, to));
        theirs.unwrap_or_else(|| ours.into())
    }

    /// Their name for one of ours, as the files have it that they write.
    pub fn in_files(&self, ours: &str) -> String {
        let (prefix, head) = self.prefix;
        let is_head = ours.strip_prefix(head).is_some_and(|rest| rest.starts_with('.'));
        format!("{}{}", if is_head { "" } else { prefix }, self.theirs(ours))
    }
}

/// The more particular ones first: a file goes by the first whose marker it has.
pub(super) const EXPORTERS: &[Exporter] = &[
    Exporter {
        name: "transformers",
        family: ResNet::NAME,
        prefix: ("resnet.", "fc"),
        marker: "embedder.embedder.convolution.weight",
        rules: &[
            ("embedder.embedder.convolution.*", "conv1.*"),
            ("embedder.embedder.normalization.*", "bn1.*"),
            ("encoder.stages.{s}.layers.{i}.layer.{j}.convolution.*", "layer{s+1}.{i}.conv{j+1}.*"),
            ("encoder.stages.{s}.layers.{i}.layer.{j}.normalization.*", "layer{s+1}.{i}.bn{j+1}.*"),
            ("encoder.stages.{s}.layers.{i}.shortcut.convolution.*", "layer{s+1}.{i}.downsample.0.*"),
            ("encoder.stages.{s}.layers.{i}.shortcut.normalization.*", "layer{s+1}.{i}.downsample.1.*"),
            ("classifier.1.*", "fc.*"),
        ],
    },
    Exporter {
        name: "RadImageNet",
        family: ResNet::NAME,
        prefix: NO_PREFIX,
        marker: "backbone.4.0.conv1.weight",
        rules: &[
            ("backbone.0.*", "conv1.*"),
            ("backbone.1.*", "bn1.*"),
            ("backbone.4.*", "layer1.*"),
            ("backbone.5.*", "layer2.*"),
            ("backbone.6.*", "layer3.*"),
            ("backbone.7.*", "layer4.*"),
        ],
    },
    Exporter {
        name: "timm",
        family: Vgg::NAME,
        prefix: NO_PREFIX,
        marker: "pre_logits.fc1.weight",
        rules: &[
            ("pre_logits.fc1.*", "classifier.0.*"),
            ("pre_logits.fc2.*", "classifier.3.*"),
            ("head.fc.*", "classifier.6.*"),
        ],
    },
    Exporter {
        name: "MONAI",
        family: DenseNet::NAME,
        prefix: NO_PREFIX,
        marker: "features.denseblock1.denselayer1.layers.norm1.weight",
        rules: &[
            ("features.denseblock{b}.denselayer{l}.layers.norm{i}.*", "features.denseblock{b}.denselayer{l}.norm{i}.*"),
            ("features.denseblock{b}.denselayer{l}.layers.conv{i}.*", "features.denseblock{b}.denselayer{l}.conv{i}.*"),
            ("class_layers.out.*", "classifier.*"),
        ],
    },
    Exporter {
        name: "torchvision before 0.3",
        family: DenseNet::NAME,
        prefix: NO_PREFIX,
        marker: "features.denseblock1.denselayer1.norm.1.weight",
        rules: &[
            ("features.denseblock{b}.denselayer{l}.norm.{i}.*", "features.denseblock{b}.denselayer{l}.norm{i}.*"),
            ("features.denseblock{b}.denselayer{l}.conv.{i}.*", "features.denseblock{b}.denselayer{l}.conv{i}.*"),
        ],
    },
    Exporter {
        name: "torchvision",
        family: DenseNet::NAME,
        prefix: NO_PREFIX,
        marker: "features.denseblock1.denselayer1.norm1.weight",
        rules: &[],
    },
    Exporter {
        name: "torchvision",
        family: ResNet::NAME,
        prefix: NO_PREFIX,
        marker: "layer1.0.conv1.weight",
        rules: &[
            ("layer{s}.{i}.shortcut.0.*", "layer{s}.{i}.downsample.0.*"),
            ("layer{s}.{i}.shortcut.1.*", "layer{s}.{i}.downsample.1.*"),
        ],
    },
    Exporter { name: "torchvision", family: Vgg::NAME, prefix: NO_PREFIX, marker: "features.0.weight", rules: &[] },
];

/// Where files of training keep the network beside other things. The first that is there is taken: an average of the weights
/// before the weights themselves.
pub(super) const WRAPPERS: [&str; 10] = [
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
];

/// What wrappers of modules put before each name: data parallel training, and `torch.compile`.
pub(super) const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];

/// Names of classifiers in use. What comes first goes first, where a file has several.
pub(super) const HEADS: [&str; 12] = [
    "fc",
    "linear",
    "classifier",
    "classifier.6",
    "classifier.1",
    "classifier.0",
    "fc.0",
    "fc.1",
    "head.fc",
    "head",
    "last_linear",
    "class_layers.out",
];
