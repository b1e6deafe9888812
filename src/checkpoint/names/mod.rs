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

fn renamed(tensors: Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors
        .into_iter()
        .map(|(name, tensor)| {
            let name = rename(&name);
            (name.clone(), StoredTensor { name, ..tensor })
        })
        .collect()
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
