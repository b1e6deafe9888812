//! From the names in a file to those of a network.
//!
//! Files of training keep the network in a dictionary beside other things, wrappers of modules put prefixes before its names,
//! and each exporter names layers in its own way. All of that is undone here, and told; then the network is read off the names
//! and shapes, unless the header says which it is.

mod exporters;
mod patterns;
mod read_off;
mod written;

use std::collections::BTreeMap;

pub use read_off::{Found, Shapes, read_off};
pub(super) use read_off::{can_be_read_off, complete};

pub(super) use exporters::Exporter;
pub(super) use written::writer;

use super::{Numbers, StoredTensor};
use exporters::{EXPORTERS, HEADS, PREFIXES, WRAPPERS};

/// The running statistics of a batch norm in a file: suffix of the name.
pub(super) const MEAN: &str = "running_mean";
pub(super) const VARIANCE: &str = "running_var";
pub(super) const COUNTER: &str = "num_batches_tracked";

pub type Tensors = BTreeMap<String, StoredTensor>;

/// A file's tensors under the network's own names, and what was done for that, in words.
pub struct Translated {
    pub tensors: Tensors,
    pub notes: Vec<String>,
    pub origin: Origin,
}

/// The names and types of a file's tensors.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// By the network's own names.
    pub(super) tensors: BTreeMap<String, Original>,
    /// The type of most of its parameters.
    pub(super) usual_dtype: String,
    /// Who names layers like this; `None` where nobody is known to, or names are the network's own.
    pub(super) exporter: Option<&'static Exporter>,
}

/// A tensor as its file has it.
#[derive(Clone, Debug)]
pub(super) struct Original {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: String,
}

impl Origin {
    /// The origin of tensors that are called in their file as they are here.
    pub fn of(tensors: &Tensors) -> Origin {
        let original = |(name, tensor): (&String, &StoredTensor)| {
            let StoredTensor { shape, dtype, .. } = tensor.clone();
            (name.clone(), Original { name: name.clone(), shape, dtype })
        };
        let mut counts = BTreeMap::<&str, usize>::new();
        for tensor in tensors.values().filter(|tensor| matches!(tensor.numbers, Numbers::Floats(_))) {
            *counts.entry(&tensor.dtype).or_default() += 1;
        }
        let usual = counts.into_iter().max_by_key(|(_, count)| *count).map_or("F32", |(dtype, _)| dtype);
        Origin { tensors: tensors.iter().map(original).collect(), usual_dtype: usual.into(), exporter: None }
    }

    fn renamed(self, rename: impl Fn(&str) -> String) -> Origin {
        let tensors = self.tensors.into_iter().map(|(name, original)| (rename(&name), original)).collect();
        Origin { tensors, ..self }
    }
}

/// Brings the tensors of a file to the names of a network.
pub fn translate(tensors: Tensors) -> Translated {
    let mut notes = Vec::new();
    let tensors = unwrap(tensors, &mut notes);
    let origin = Origin::of(&tensors);
    let mut translated = Translated { tensors, notes, origin };
    let marked = EXPORTERS.iter().find_map(|exporter| {
        let prefix = translated.tensors.keys().find_map(|name| patterns::prefix(name, exporter.marker))?.to_string();
        Some((exporter, prefix))
    });
    let Some((exporter, prefix)) = marked else { return translated };
    translated.origin.exporter = Some(exporter);
    if !prefix.is_empty() {
        translated.notes.push(format!("the prefix '{prefix}' is left out"));
        translated = translated.renamed(|name| name.strip_prefix(&prefix).unwrap_or(name).to_string());
    }
    translated = translated.renamed(|name| exporter.ours(name));
    flatten_matrices(&mut translated.tensors);
    with_head(translated)
}

impl Translated {
    fn renamed(self, rename: impl Fn(&str) -> String) -> Translated {
        let Translated { tensors, notes, origin } = self;
        Translated { tensors: renamed(tensors, &rename), notes, origin: origin.renamed(&rename) }
    }
}

/// Two tensors that would get one name both stay: the second belongs to no layer by its own, and the file is refused.
fn renamed(tensors: Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    let mut all = Tensors::new();
    for (theirs, tensor) in tensors {
        let mut name = rename(&theirs);
        while all.contains_key(&name) {
            name.push_str(" (twice)");
        }
        all.insert(name.clone(), StoredTensor { name, ..tensor });
    }
    all
}

/// Takes the network out of its wrappers. What lies beside it is dropped.
fn unwrap(mut tensors: Tensors, notes: &mut Vec<String>) -> Tensors {
    loop {
        let starts = |prefix: &str| tensors.keys().any(|name| name.starts_with(prefix));
        if let Some(prefix) = PREFIXES.into_iter().find(|prefix| tensors.keys().all(|name| name.starts_with(prefix))) {
            if tensors.is_empty() {
                return tensors;
            }
            notes.push(format!("the prefix '{prefix}' is left out"));
            tensors = renamed(tensors, |name| name[prefix.len()..].to_string());
            continue;
        }
        let Some(wrapper) = WRAPPERS.into_iter().find(|wrapper| starts(&format!("{wrapper}."))) else { return tensors };
        let prefix = format!("{wrapper}.");
        let before = tensors.len();
        tensors.retain(|name, _| name.starts_with(&prefix));
        let beside = before - tensors.len();
        let and_beside = if beside == 0 { String::new() } else { format!("; {beside} tensors beside it are left out") };
        notes.push(format!("the network is taken from '{wrapper}'{and_beside}"));
        tensors = renamed(tensors, |name| name[prefix.len()..].to_string());
    }
}

/// Fully connected layers that a file has as convolutions become matrices again.
fn flatten_matrices(tensors: &mut Tensors) {
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.starts_with("classifier.")) {
        if let [outputs, rest @ ..] = &tensor.shape[..]
            && rest.len() == 3
        {
            tensor.shape = vec![*outputs, rest.iter().product()];
        }
    }
}

/// Gives the classifier the name that it has in its family, where it has another one of those in use.
fn with_head(mut translated: Translated) -> Translated {
    let tensors = &translated.tensors;
    let Some(own) = read_off::head(&|name| tensors.get(name).map(|tensor| tensor.shape.clone())) else {
        return translated;
    };
    let is_matrix = |head: &&str| tensors.get(&format!("{head}.weight")).is_some_and(|tensor| tensor.shape.len() == 2);
    if is_matrix(&own.as_str()) {
        return translated;
    }
    // What is a hidden layer of the family is no head.
    let hidden = |head: &&str| own.starts_with("classifier.") && head.starts_with("classifier");
    let Some(other) = HEADS.into_iter().filter(|head| !hidden(head)).find(is_matrix) else { return translated };
    translated.notes.push(format!("the classifier is called '{other}' there, '{own}' here"));
    translated.renamed(|name| match name.strip_prefix(other).filter(|rest| rest.starts_with('.')) {
        Some(rest) => format!("{own}{rest}"),
        None => name.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[(&str, &[usize])]) -> Tensors {
        let of = |(name, shape): &(&str, &[usize])| {
            let values = vec![0.0; shape.iter().product()];
            (name.to_string(), StoredTensor::floats_named(name.to_string(), shape.to_vec(), values))
        };
        names.iter().map(of).collect()
    }

    fn translated(names: &[(&str, &[usize])]) -> (Vec<String>, Vec<String>) {
        let Translated { tensors, notes, .. } = translate(tensors(names));
        (tensors.into_keys().collect(), notes)
    }

    #[test]
    fn wrappers_and_prefixes_are_undone_and_told() {
        let (names, notes) = translated(&[
            ("epoch_weights", &[1]),
            ("state_dict.module.conv1.weight", &[4, 3, 3, 3]),
            ("state_dict.module.layer1.0.conv1.weight", &[4, 4, 3, 3]),
            ("state_dict.module.linear.weight", &[10, 4]),
            ("state_dict.module.linear.bias", &[10]),
            ("optimizer.state.0.momentum_buffer", &[4]),
        ]);
        assert_eq!(names, ["conv1.weight", "fc.bias", "fc.weight", "layer1.0.conv1.weight"]);
        assert_eq!(
            notes,
            [
                "the network is taken from 'state_dict'; 2 tensors beside it are left out",
                "the prefix 'module.' is left out",
                "the classifier is called 'linear' there, 'fc' here"
            ]
        );
    }

    /// For each exporter, names as its files have them, beside the network's own.
    #[test]
    fn names_of_every_exporter() {
        let (four, two, one): (&[usize], &[usize], &[usize]) = (&[8, 4, 3, 3], &[5, 8], &[8]);
        let families: [&[(&str, &[usize], &str)]; 11] = [
            &[
                ("layer1.0.conv1.weight", four, "layer1.0.conv1.weight"),
                ("layer2.0.shortcut.0.weight", four, "layer2.0.downsample.0.weight"),
                ("layer2.0.shortcut.1.running_mean", one, "layer2.0.downsample.1.running_mean"),
                ("linear.weight", two, "fc.weight"),
            ],
            &[
                ("resnet.embedder.embedder.convolution.weight", four, "conv1.weight"),
                ("resnet.embedder.embedder.normalization.running_var", one, "bn1.running_var"),
                ("resnet.encoder.stages.0.layers.0.layer.0.convolution.weight", four, "layer1.0.conv1.weight"),
                ("resnet.encoder.stages.3.layers.2.layer.1.normalization.bias", one, "layer4.2.bn2.bias"),
                ("resnet.encoder.stages.1.layers.0.shortcut.convolution.weight", four, "layer2.0.downsample.0.weight"),
                ("resnet.encoder.stages.1.layers.0.shortcut.normalization.weight", one, "layer2.0.downsample.1.weight"),
                ("classifier.1.weight", two, "fc.weight"),
                ("classifier.1.bias", one, "fc.bias"),
            ],
            &[
                ("backbone.0.weight", four, "conv1.weight"),
                ("backbone.1.bias", one, "bn1.bias"),
                ("backbone.4.0.conv1.weight", four, "layer1.0.conv1.weight"),
                ("backbone.7.2.bn3.weight", one, "layer4.2.bn3.weight"),
            ],
            &[
                ("features.conv0.weight", four, "features.conv0.weight"),
                ("features.denseblock1.denselayer1.norm1.weight", one, "features.denseblock1.denselayer1.norm1.weight"),
                (
                    "features.denseblock1.denselayer1.conv1.weight",
                    four,
                    "features.denseblock1.denselayer1.conv1.weight",
                ),
                ("classifier.weight", two, "classifier.weight"),
            ],
            &[
                (
                    "features.denseblock1.denselayer1.norm.1.weight",
                    one,
                    "features.denseblock1.denselayer1.norm1.weight",
                ),
                (
                    "features.denseblock4.denselayer16.conv.2.weight",
                    four,
                    "features.denseblock4.denselayer16.conv2.weight",
                ),
                (
                    "features.denseblock1.denselayer1.conv.1.weight",
                    four,
                    "features.denseblock1.denselayer1.conv1.weight",
                ),
            ],
            &[
                (
                    "features.denseblock1.denselayer1.layers.norm1.weight",
                    one,
                    "features.denseblock1.denselayer1.norm1.weight",
                ),
                (
                    "features.denseblock1.denselayer1.layers.conv1.weight",
                    four,
                    "features.denseblock1.denselayer1.conv1.weight",
                ),
                ("class_layers.out.weight", two, "classifier.weight"),
            ],
            // CheXNet.
            &[
                (
                    "state_dict.module.densenet121.features.denseblock1.denselayer1.norm.1.weight",
                    one,
                    "features.denseblock1.denselayer1.norm1.weight",
                ),
                (
                    "state_dict.module.densenet121.features.denseblock1.denselayer1.conv.1.weight",
                    four,
                    "features.denseblock1.denselayer1.conv1.weight",
                ),
                ("state_dict.module.densenet121.classifier.0.weight", two, "classifier.weight"),
            ],
            &[
                ("features.0.weight", four, "features.0.weight"),
                ("classifier.0.weight", two, "classifier.0.weight"),
                ("classifier.6.weight", two, "classifier.6.weight"),
            ],
            &[
                ("features.0.weight", four, "features.0.weight"),
                ("pre_logits.fc1.weight", four, "classifier.0.weight"),
                ("pre_logits.fc2.bias", one, "classifier.3.bias"),
                ("head.fc.weight", two, "classifier.6.weight"),
            ],
            // The paper's authors.
            &[
                ("layer1.0.conv1.weight", four, "layer1.0.conv1.weight"),
                ("fc.0.weight", two, "fc.weight"),
                ("fc.0.bias", one, "fc.bias"),
            ],
            // Lightning, compiled, in parallel.
            &[
                ("state_dict.model._orig_mod.module.layer1.0.conv1.weight", four, "layer1.0.conv1.weight"),
                ("state_dict.model._orig_mod.module.fc.weight", two, "fc.weight"),
            ],
        ];
        for family in families {
            let theirs: Vec<(&str, &[usize])> = family.iter().map(|&(name, shape, _)| (name, shape)).collect();
            let mut ours: Vec<&str> = family.iter().map(|&(.., name)| name).collect();
            ours.sort();
            assert_eq!(translated(&theirs).0, ours);
        }
    }

    #[test]
    fn no_tensor_takes_the_place_of_another() {
        let (names, _) = translated(&[
            ("a.layer1.0.conv1.weight", &[1, 1, 1, 1]),
            ("layer1.0.conv1.weight", &[1, 1, 1, 1]),
            ("layer2.0.downsample.0.weight", &[1]),
            ("layer2.0.shortcut.0.weight", &[1]),
        ]);
        let expected = [
            "layer1.0.conv1.weight",
            "layer1.0.conv1.weight (twice)",
            "layer2.0.downsample.0.weight",
            "layer2.0.downsample.0.weight (twice)",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn an_average_of_weights_goes_first() {
        let (names, notes) = translated(&[
            ("state_dict.layer1.0.conv1.weight", &[1, 1, 1, 1]),
            ("state_dict_ema.x.layer1.0.conv1.weight", &[2]),
        ]);
        assert_eq!(names, ["layer1.0.conv1.weight"]);
        assert_eq!(notes.len(), 2, "{notes:?}");
    }
}
