//! Labels of a split: a class for each image, or what it has of several at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::data::npz::{self, Sampled};
use crate::data::soft::{largest_of, soft_label};
use crate::data::{MOST_LABELS, Task};
use crate::error::{Error, Result};
use crate::file_kind::listing;

/// The largest number of a class.
pub(super) const MAX_LABEL: u32 = 65_535;

/// Refuses an array that is none of labels, or of other images.
pub(super) fn check(path: &Path, images: &npz::Entry<Sampled>, labels: &npz::Entry<Sampled>) -> Result<()> {
    match labels.shape[..] {
        [_] | [_, 1] => {
            if let Sampled::Float { bytes, big_endian } = labels.element {
                let order = if big_endian { '>' } else { '<' };
                let message = format!("{} has elements of type '{order}f{bytes}', not integers", labels.name);
                return Err(Error::data(path, message, "store classes as integers, or N×K shares of the classes"));
            }
        }
        [_, several] if (2..=MAX_LABEL as usize).contains(&several) => {}
        _ => {
            let message = format!("{} has the shape {:?}", labels.name, labels.shape);
            return Err(Error::data(path, message, "labels are N or N×1 integers, or N×K of 0 and 1 or of shares"));
        }
    }
    if images.shape[0] != labels.shape[0] {
        let message = format!(
            "{} has {} images and {} has {} labels",
            images.name, images.shape[0], labels.name, labels.shape[0]
        );
        return Err(Error::data(path, message, "every image needs one label"));
    }
    Ok(())
}

/// As many classes as labels or names tell apart; none where there are neither.
pub(super) fn classes<'a>(
    labels: impl IntoIterator<Item = &'a Stored>,
    names: Option<&npz::Entry<npz::Text>>,
) -> usize {
    let labelled = labels.into_iter().map(Stored::classes).max().unwrap_or(0);
    // A file may claim any number of names; those beyond what labels can say are refused when they are read.
    let named = names.and_then(|names| names.shape.first()).copied().unwrap_or(0);
    labelled.max(named.min(MAX_LABEL as usize + 1))
}

/// The labels of a split as they are stored: a column of classes, or a column of 0 and 1 for each class.
pub(super) struct Stored {
    /// What the array is called.
    name: String,
    columns: usize,
    values: Vec<u32>,
    /// Soft labels, whose largest share is the 1 in a row of `values`.
    shares: Option<Vec<f32>>,
}

impl Stored {
    /// Whether each image is of exactly one class.
    fn is_one_hot(&self) -> bool {
        self.values.chunks(self.columns).all(|row| row.iter().sum::<u32>() == 1)
    }

    /// How many classes there are at least.
    pub fn classes(&self) -> usize {
        let largest = || self.values.iter().max().map_or(0, |&largest| largest as usize + 1);
        if self.columns > 1 { self.columns } else { largest() }
    }

    /// A row for each image, where labels are soft.
    pub fn shares(&mut self) -> Option<Arc<[f32]>> {
        self.shares.take().map(Arc::from)
    }

    /// One number for each image.
    pub fn labels(self, task: Task) -> Vec<u32> {
        let rows = self.values.chunks(self.columns);
        match task {
            Task::MultiClass if self.columns == 1 => self.values,
            Task::MultiClass => rows.map(|row| row.iter().position(|&is| is == 1).unwrap_or(0) as u32).collect(),
            Task::MultiLabel => rows.map(|row| row.iter().rev().fold(0, |set, &is| set << 1 | is)).collect(),
        }
    }
}

/// What labels look like.
pub(super) fn task<'a>(stored: impl IntoIterator<Item = &'a Stored>) -> Task {
    let mut stored = stored.into_iter();
    if stored.all(|stored| stored.columns == 1 || stored.is_one_hot()) { Task::MultiClass } else { Task::MultiLabel }
}

/// Reads what [`check`] let pass.
pub(super) fn read(path: &Path, archive: &mut npz::Archive, entry: &npz::Entry<Sampled>) -> Result<Stored> {
    let columns = entry.shape.get(1).copied().unwrap_or(1);
    let bytes = archive.read(entry)?;
    let numbers: Vec<i128> = match entry.element {
        Sampled::Integer(integer) => integer.values(&bytes).collect(),
        float => {
            let numbers: Vec<f64> = float.floats(&bytes).collect();
            // Of several columns: one is not of floats.
            if numbers.iter().any(|&number| number != 0.0 && number != 1.0) {
                return soft(path, entry, columns, &numbers);
            }
            numbers.into_iter().map(|number| number as i128).collect()
        }
    };
    let largest = if columns == 1 { MAX_LABEL } else { 1 };
    let label = |(index, value): (usize, i128)| match u32::try_from(value) {
        Ok(label) if label <= largest => Ok(label),
        _ if columns > 1 => {
            let message = format!("{} has {value} in row {}, and {columns} columns", entry.name, index / columns);
            Err(Error::data(path, message, "several columns say 1 of what an image is, and 0 of what it is not"))
        }
        _ => {
            let message = format!("{} has the label {value} at index {index}", entry.name);
            Err(Error::data(path, message, format!("labels are classes from 0 to {MAX_LABEL}")))
        }
    };
    let values = numbers.into_iter().enumerate().map(label).collect::<Result<_>>()?;
    let stored = Stored { name: entry.name.clone(), columns, values, shares: None };
    if columns > MOST_LABELS && !stored.is_one_hot() {
        let message = format!("{} has {columns} labels that an image may have at once", entry.name);
        return Err(Error::data(path, message, format!("there may be up to {MOST_LABELS}: leave the rarest out")));
    }
    Ok(stored)
}

/// Shares of each class, of which a row is an image.
fn soft(path: &Path, entry: &npz::Entry<Sampled>, columns: usize, numbers: &[f64]) -> Result<Stored> {
    let (mut shares, mut values) = (Vec::with_capacity(numbers.len()), vec![0; numbers.len()]);
    for (row, numbers) in numbers.chunks(columns).enumerate() {
        let of_row = soft_label(numbers).map_err(|problem| {
            let message = format!("{} has {problem} in row {row}", entry.name);
            Error::data(path, message, "several columns are 0 and 1, or shares of 1 that an image has of each class")
        })?;
        values[row * columns + largest_of(&of_row)] = 1;
        shares.extend(of_row);
    }
    Ok(Stored { name: entry.name.clone(), columns, values, shares: Some(shares) })
}

/// Numbers labels of one column anew where they do not count from 0 without gaps; the numbers that they had.
pub(super) fn renumbered<'a>(stored: impl IntoIterator<Item = &'a mut Stored>) -> Option<Vec<String>> {
    let mut stored: Vec<&mut Stored> = stored.into_iter().collect();
    let known: BTreeSet<u32> = stored.iter().flat_map(|stored| &stored.values).copied().collect();
    let is_fine = known.len() < 2 || known.iter().copied().eq(0..known.len() as u32);
    if is_fine || stored.iter().any(|stored| stored.columns > 1) {
        return None;
    }
    let known: Vec<u32> = known.into_iter().collect();
    let place = |label: &u32| known.binary_search(label).expect("it is one of them") as u32;
    for stored in &mut stored {
        stored.values.iter_mut().for_each(|label| *label = place(label));
    }
    Some(known.iter().map(u32::to_string).collect())
}

/// The labels that names of classes stand for, where these are [`renumbered`] ones.
pub(super) fn numbers(names: &[String]) -> Option<Vec<u32>> {
    let numbers: Vec<u32> = names.iter().map(|name| name.parse().ok()).collect::<Option<_>>()?;
    (numbers.is_sorted() && !numbers.iter().copied().eq(0..numbers.len() as u32)).then_some(numbers)
}

/// Numbers labels as a network's classes, which stand for these.
pub(super) fn number_as(path: &Path, stored: &mut Stored, numbers: &[u32]) -> Result<()> {
    if stored.columns > 1 {
        return Ok(());
    }
    for (index, label) in stored.values.iter_mut().enumerate() {
        let Ok(place) = numbers.binary_search(label) else {
            let message = format!("{} has the label {label} at index {index}", stored.name);
            let known = listing(numbers.iter().map(u32::to_string).collect());
            return Err(Error::data(path, message, format!("the network's classes are the labels {known}")));
        };
        *label = place as u32;
    }
    Ok(())
}

/// Refuses splits of which one has a column for each class, and another has not.
pub(super) fn check_columns(path: &Path, stored: &[Stored]) -> Result<()> {
    let is_soft = |stored: &Stored| stored.shares.is_some();
    if let (Some(soft), Some(sets)) = (stored.iter().find(|s| is_soft(s)), stored.iter().find(|s| !s.is_one_hot())) {
        let message =
            format!("{} has shares of classes, and {} images of several classes or of none", soft.name, sets.name);
        return Err(Error::data(path, message, "all splits need labels of one form"));
    }
    let Some(index) = stored.iter().position(|other| other.columns != stored[0].columns) else { return Ok(()) };
    let [first, other] = [&stored[0], &stored[index]];
    let message =
        format!("{} has {} labels per image, and {} has {}", other.name, other.columns, first.name, first.columns);
    Err(Error::data(path, message, "all splits need labels of one form"))
}

/// Refuses labels of other classes than the first `classes`, of which `told` says whose they are.
pub(super) fn check_known(path: &Path, stored: &Stored, classes: usize, told: &str) -> Result<()> {
    let name = &stored.name;
    let hint = "labels count the network's classes from 0; for others train a new head (medmerge train --from), to predict \
                leave labels out";
    if stored.columns > 1 {
        let message = format!("{name} has {} labels per image, and {told}", stored.columns);
        return if stored.columns == classes { Ok(()) } else { Err(Error::data(path, message, hint)) };
    }
    let Some(index) = stored.values.iter().position(|&label| label as usize >= classes) else { return Ok(()) };
    let message = format!("{name} has the label {} at index {index}, and {told}", stored.values[index]);
    Err(Error::data(path, message, hint))
}

/// Refuses labels of which a network would make something else.
pub(super) fn check_task(path: &Path, stored: &Stored, task: Option<Task>) -> Result<()> {
    let name = &stored.name;
    match task {
        Some(Task::MultiLabel) if stored.columns == 1 && stored.classes() > 0 => {
            let message = format!("{name} has one label per image, and the network was trained with several at once");
            Err(Error::data(path, message, "give N×K labels of 0 and 1"))
        }
        Some(Task::MultiClass) if stored.columns > 1 && !stored.is_one_hot() => {
            let message = format!("{name} has images of several classes or of none, and the network knows of one");
            Err(Error::data(path, message, "train a network with such labels: medmerge train"))
        }
        _ => Ok(()),
    }
}
