//! Several heads on one trunk: a classifier whose rows are those of several classifiers, one below the other, so that
//! one forward gives N×(C_0 + C_1 + …) logits. The header lists them in the order of their columns; each set of classes
//! has its own argmax and softmax.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Checkpoint;

/// One of several sets of classes that a network tells apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// The stem of the file that it comes from, and behind a dot the head's name there if it had several.
    pub name: String,
    /// How many columns of the logits are its own.
    pub classes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
}

impl fmt::Display for HeadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.of_classes())
    }
}

impl HeadRecord {
    /// Its classes in words.
    pub fn of_classes(&self) -> String {
        let names = self.class_names.as_ref().map_or(String::new(), |names| format!(": {}", names.join(", ")));
        format!("{} classes{names}", self.classes)
    }

    /// All heads in words, column by column.
    pub fn list(heads: &[HeadRecord]) -> String {
        heads.iter().map(HeadRecord::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The names of all columns; `None` unless each head names its classes.
    pub fn all_class_names(heads: &[HeadRecord]) -> Option<Vec<String>> {
        heads.iter().map(|head| head.class_names.clone()).collect::<Option<Vec<_>>>().map(|names| names.concat())
    }
}

impl Checkpoint {
    /// The heads of a network that has several; none where it has one, or no classifier.
    pub fn heads(&self) -> &[HeadRecord] {
        self.provenance.heads.as_deref().filter(|_| self.has_head).unwrap_or_default()
    }
}

/// The reason for which a list makes no sense for a network of so many classes, if any; `None` classes are not known.
pub(super) fn check(
    heads: &[HeadRecord],
    class_names: Option<&Vec<String>>,
    classes: Option<usize>,
) -> Result<(), String> {
    if heads.len() < 2 {
        return Err(format!("{} heads, where there are several or no such entry", heads.len()));
    }
    let mut seen = BTreeSet::new();
    for head in heads {
        let HeadRecord { name, classes, class_names } = head;
        match class_names.as_ref().map(Vec::len) {
            _ if name.is_empty() => return Err("a head without a name".into()),
            _ if !seen.insert(name) => return Err(format!("two heads are called {name}")),
            _ if *classes == 0 => return Err(format!("head {name} has no classes")),
            Some(names) if names != *classes => {
                return Err(format!("head {name} has {names} names for {classes} classes"));
            }
            _ => {}
        }
    }
    let sum = heads.iter().try_fold(0usize, |sum, head| sum.checked_add(head.classes));
    if let Some(classes) = classes.filter(|classes| sum != Some(*classes)) {
        let sum = sum.map_or("too many".to_string(), |sum| sum.to_string());
        return Err(format!("heads of {sum} classes for a network of {classes}"));
    }
    match class_names {
        Some(_) if HeadRecord::all_class_names(heads).as_ref() != class_names => {
            Err("its heads name other classes than the network".into())
        }
        _ => Ok(()),
    }
}
