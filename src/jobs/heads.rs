//! Which columns of a network's logits a job uses: those of the head that is asked for, of the one whose classes are the
//! data set's, or of each head by itself.

use std::path::Path;

use crate::checkpoint::{Checkpoint, HeadRecord};
use crate::data::{Classes, Dataset, Task};
use crate::error::{Error, Result};

/// How many heads a job can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// One: that of the data set's classes, where none is asked for.
    OneOfData,
    /// One, which has to be asked for, where this is why.
    One(&'static str),
    All,
}

/// The columns of one head.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Columns {
    /// `None` where it is the only head.
    pub name: Option<String>,
    first: usize,
    pub classes: usize,
    pub class_names: Option<Vec<String>>,
}

/// The heads that a job is to use, before anything is read of its images: one, unless it needs all, or goes by the data.
pub(super) fn choose(path: &Path, checkpoint: &Checkpoint, asked: Option<&str>, needs: Needs) -> Result<Vec<Columns>> {
    let heads = checkpoint.heads();
    match (asked, needs) {
        (None, _) if heads.is_empty() => {
            let (classes, class_names) = (checkpoint.model.network.classes, checkpoint.provenance.class_names.clone());
            Ok(vec![Columns { name: None, first: 0, classes, class_names }])
        }
        (Some(asked), _) if heads.is_empty() => {
            let message = format!("--head {asked}, and {} has one head", path.display());
            Err(Error::usage(message, "leave --head out; it chooses one of several"))
        }
        (Some(asked), _) => Ok(vec![all(heads).swap_remove(find(heads, asked)?)]),
        (None, Needs::One(why)) => Err(ambiguous(path, heads, why)),
        (None, Needs::All | Needs::OneOfData) => Ok(all(heads)),
    }
}

/// The one of several heads whose classes have the data set's names.
pub(super) fn of_data(path: &Path, checkpoint: &Checkpoint, data: &Dataset) -> Result<Columns> {
    let heads = checkpoint.heads();
    let named = |columns: &Columns| columns.class_names.is_some() && columns.class_names == data.class_names;
    let mut found: Vec<Columns> = all(heads).into_iter().filter(named).collect();
    match (found.len(), &data.class_names) {
        (1, _) => Ok(found.remove(0)),
        (_, None) => Err(ambiguous(path, heads, "the data set does not name its classes")),
        (0, _) => Err(ambiguous(path, heads, "none of them names the data set's classes")),
        _ => Err(ambiguous(path, heads, "several of them name the data set's classes")),
    }
}

fn all(heads: &[HeadRecord]) -> Vec<Columns> {
    let mut first = 0;
    let columns = |HeadRecord { name, classes, class_names }: &HeadRecord| {
        first += classes;
        let class_names = class_names.clone();
        Columns { name: Some(name.clone()), first: first - classes, classes: *classes, class_names }
    };
    heads.iter().map(columns).collect()
}

/// The number of the head that is called so, or has that number from 0.
fn find(heads: &[HeadRecord], asked: &str) -> Result<usize> {
    let named = heads.iter().position(|head| head.name == asked);
    match (named, asked.parse::<usize>()) {
        (Some(index), _) => Ok(index),
        (None, Ok(index)) if index < heads.len() => Ok(index),
        (None, Ok(index)) => Err(Error::usage(
            format!("unknown head '{index}' of {}", heads.len()),
            format!("heads are numbered from 0 to {}: {}", heads.len() - 1, HeadRecord::list(heads)),
        )),
        (None, Err(_)) => Err(Error::unknown("head", asked, heads.iter().map(|head| head.name.clone()))),
    }
}

fn ambiguous(path: &Path, heads: &[HeadRecord], why: &str) -> Error {
    let message = format!("{} has the heads {}; {why}", path.display(), HeadRecord::list(heads));
    Error::usage(message, "say which is meant, by its name or its number from 0: --head 0")
}

impl Columns {
    /// The classes that labels may count, of a network of which that much is known.
    pub fn classes(&self, task: Option<Task>) -> Classes {
        let by = self.name.as_ref().map_or("the network".to_string(), |name| format!("head {name}"));
        Classes::Known { count: self.classes, by, names: self.class_names.clone(), task }
    }

    /// The head's own scores, of rows of `width` columns.
    pub fn of(&self, scores: &[f32], width: usize) -> Vec<f32> {
        scores.chunks(width).flat_map(|row| &row[self.first..][..self.classes]).copied().collect()
    }
}
