//! The tensors of an object by their names: the keys of dicts and the places in lists that lead to them, with dots between.
//!
//! Parts of the object that hold no tensor are not looked into, whatever they are. Where a tensor would be left out, or could
//! be found by code alone, the object is refused as a whole.

use std::collections::{BTreeMap, HashSet};

use super::machine::Pickled;
use super::values::{Id, Value, Values};
use super::views::View;
use super::{Fault, RESAVE, Result};
use crate::checkpoint::Metadata;

/// Entries of dicts and lists that are looked at on the way to tensors. The largest networks have a tenth of them.
const MAX_ENTRIES: usize = 1 << 18;
/// How deep tensors may lie, and how long their names may be.
const MAX_DEPTH: usize = 32;
const MAX_NAME: usize = 500;
/// How many numbers and short texts are kept beside the tensors, and how long they may be.
const MAX_NOTES: usize = 256;
const MAX_NOTE: usize = 200;

const WHOLE_MODEL: &str = "save its parameters alone: torch.save(model.state_dict(), \"model.pth\")";

pub struct Outline<'a> {
    pub tensors: BTreeMap<String, &'a View>,
    /// Numbers and short texts, such as an accuracy.
    pub notes: Metadata,
}

/// The tensors of a pickle; at least one.
pub fn outline(pickled: &Pickled) -> Result<Outline<'_>> {
    let Pickled { values, root } = pickled;
    let holds = holds_tensors(values);
    if !holds[root.place()] {
        let hint = "a checkpoint is what torch.save(model.state_dict(), …) writes";
        return Err(Fault::refused("it holds no tensors", hint));
    }
    let attributed = values.attributes.iter().filter(|(_, state)| holds[state.place()]).map(|(object, _)| *object);
    let attributed = attributed.collect();
    let mut walk =
        Walk { values, holds, attributed, path: Vec::new(), name: String::new(), entries: 0, tensors: BTreeMap::new() };
    walk.visit(*root)?;
    Ok(Outline { tensors: walk.tensors, notes: notes(values, *root) })
}

/// Which values are tensors or storages, or lead to one.
fn holds_tensors(values: &Values) -> Vec<bool> {
    let mut held: Vec<(Id, Id)> = values.attributes.iter().map(|(object, state)| (*state, *object)).collect();
    let (mut holds, mut found) = (vec![false; values.len()], Vec::new());
    for (id, value) in values.iter() {
        match value {
            Value::List(items) | Value::Tuple(items) => held.extend(items.iter().map(|item| (*item, id))),
            Value::Object { parts, class } => held.extend(parts.iter().chain([class]).map(|part| (*part, id))),
            Value::Dict(entries) => {
                held.extend(entries.iter().flat_map(|(key, value)| [(*key, id), (*value, id)]));
            }
            Value::Tensor(_) | Value::Storage(_) => {
                holds[id.place()] = true;
                found.push(id);
            }
            _ => {}
        }
    }
    held.sort_unstable();
    while let Some(id) = found.pop() {
        let first = held.partition_point(|(part, _)| *part < id);
        for (_, holder) in held[first..].iter().take_while(|(part, _)| *part == id) {
            if !std::mem::replace(&mut holds[holder.place()], true) {
                found.push(*holder);
            }
        }
    }
    holds
}

/// A walk over all that holds tensors.
struct Walk<'a> {
    values: &'a Values,
    holds: Vec<bool>,
    /// Values with tensors among their attributes.
    attributed: HashSet<Id>,
    /// Where the walk is, and that place's name.
    path: Vec<Id>,
    name: String,
    entries: usize,
    tensors: BTreeMap<String, &'a View>,
}

impl<'a> Walk<'a> {
    /// Visits a value that holds tensors. As deep as the walk may go, it may recurse.
    fn visit(&mut self, id: Id) -> Result<()> {
        let values = self.values;
        if self.path.contains(&id) {
            return Err(Fault::refused(format!("{} holds itself", self.place()), RESAVE));
        }
        if self.path.len() > MAX_DEPTH {
            return Err(Fault::refused(format!("{} is nested deeper than {MAX_DEPTH} levels", self.place()), RESAVE));
        }
        // An object is refused by its class's name, below.
        if self.attributed.contains(&id) && !matches!(values.get(id), Value::Object { .. }) {
            let message = format!("{} has tensors among the attributes of an object", self.place());
            return Err(Fault::refused(message, WHOLE_MODEL));
        }
        self.path.push(id);
        match values.get(id) {
            Value::Tensor(view) => self.tensor(view)?,
            Value::Dict(entries) => {
                for (key, value) in entries {
                    self.entry(*value, |walk| walk.key(*key))?;
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.entry(*item, |_| Ok(at.to_string()))?;
                }
            }
            Value::Object { class, .. } => {
                let class = values.class_name(*class);
                let message = match self.name.as_str() {
                    "" => format!("it is a whole model object of class {class}, not a state dict"),
                    _ => format!("{} is a whole object of class {class} that holds tensors", self.place()),
                };
                return Err(Fault::refused(message, WHOLE_MODEL));
            }
            _ => return Err(Fault::refused(format!("{} is a storage, and no tensor", self.place()), RESAVE)),
        }
        self.path.pop();
        Ok(())
    }

    /// Visits an entry if it holds tensors.
    fn entry(&mut self, id: Id, key: impl FnOnce(&Walk) -> Result<String>) -> Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            let message = format!("the way to its tensors leads past more than {MAX_ENTRIES} entries");
            return Err(Fault::refused(message, RESAVE));
        }
        if !self.holds[id.place()] {
            return Ok(());
        }
        let (key, before) = (key(self)?, self.name.len());
        if before + key.len() >= MAX_NAME {
            let message = format!("a tensor's name is longer than {MAX_NAME} bytes");
            return Err(Fault::refused(message, RESAVE));
        }
        if self.path.len() > 1 {
            self.name.push('.');
        }
        self.name.push_str(&key);
        self.visit(id)?;
        self.name.truncate(before);
        Ok(())
    }

    fn tensor(&mut self, view: &'a View) -> Result<()> {
        let name = if self.path.len() == 1 { "tensor".into() } else { self.name.clone() };
        match self.tensors.insert(name, view) {
            None => Ok(()),
            Some(_) => Err(Fault::refused(format!("it has two tensors of the name {}", self.place()), RESAVE)),
        }
    }

    /// The part of a name that a dict's key is.
    fn key(&self, key: Id) -> Result<String> {
        match self.values.get(key) {
            Value::Class { .. } => Ok(self.values.class_name(key)),
            _ => word(self.values, key).ok_or_else(|| {
                let message = format!("{} has a tensor under a key that is neither text nor a number", self.place());
                Fault::refused(message, RESAVE)
            }),
        }
    }

    /// The place where the walk is, for messages.
    fn place(&self) -> String {
        match self.name.as_str() {
            "" => "it".into(),
            name => format!("its '{}'", name.escape_debug()),
        }
    }
}

/// Text, a number or a truth value, as Python prints it.
fn word(values: &Values, id: Id) -> Option<String> {
    match values.get(id) {
        Value::Text(text) if text.len() <= MAX_NAME => Some(text.clone()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) => Some(format!("{value:?}")),
        Value::Bool(true) => Some("True".into()),
        Value::Bool(false) => Some("False".into()),
        _ => None,
    }
}

/// Numbers and short texts in the outermost dict and in dicts within it.
fn notes(values: &Values, root: Id) -> Metadata {
    let mut notes = Metadata::new();
    let Value::Dict(entries) = values.get(root) else { return notes };
    let mut note = |key: String, value: Id| {
        let text = word(values, value).filter(|text| text.len().max(key.len()) <= MAX_NOTE);
        if let Some(text) =
            text.filter(|text| notes.len() < MAX_NOTES && !(key.clone() + text).contains(char::is_control))
        {
            notes.insert(format!("pickle.{key}"), text);
        }
    };
    for (key, value) in entries.iter().take(16 * MAX_NOTES) {
        let Some(key) = word(values, *key) else { continue };
        match values.get(*value) {
            Value::Dict(inner) => {
                for (within, value) in inner.iter().take(MAX_NOTES) {
                    if let Some(within) = word(values, *within) {
                        note(format!("{key}.{within}"), *value);
                    }
                }
            }
            _ => note(key, *value),
        }
    }
    notes
}
