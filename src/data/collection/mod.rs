//! Data sets as they are published: images in a folder or in a tar or zip archive, with their classes as folders or in a table.
//!
//! | what is there | where labels come from |
//! |---|---|
//! | a folder for each class, below `train`, `val`, `test` or not | the folders' names |
//! | images and a table (CSV, TSV) | its column `label`, `class`, `dx`, `diagnosis` …, or one that is asked for; or a column of 0 and 1 for each class, or finding |
//! | a list of paths, or of paths and labels | the list |
//!
//! Columns of shares that sum to 1 in every row are soft labels, with a class for each column.
//! An image has several labels at once where columns of 0 and 1 say so, or a column whose texts are joined by `|` (NIH ChestX-ray14);
//! there, what is blank or uncertain (-1, CheXpert) is taken for absent.
//!
//! A table names images by a path, a name or a name without extension, in whichever column does so most. Splits are those of folders,
//! or of a column `split`; what is missing is drawn, of each class its share, so that no group (a column `lesion_id`, `patient_id` …;
//! the two eyes of EyePACS; of DICOM files the patient) is in two. Images are sorted by name, so that nothing depends on the order of a folder.

mod decode;
#[cfg(feature = "dicom")]
mod dicom;
#[cfg(not(feature = "dicom"))]
#[path = "dicom/left_out.rs"]
mod dicom;
mod encoded;
mod files;
mod known;
mod reading;
mod splits;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Classes, Dataset, Depth, Drawn, Image, Labels, Split, SplitName, SplitSummary, Summary, Task};
use crate::error::{Error, Result};
use crate::file_kind::{self, Wanted, listing};
use crate::hex::hex;
use crate::memory;
use encoded::Encoded;
use files::Files;
use reading::{Items, Reading};
use table::{NONE, Names, Table};

/// The side that images are brought to unless another is asked for.
const SIDE: usize = 224;

/// How images in a folder or an archive become a data set. One in MedMNIST's format has all of it already.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Collecting {
    /// Images are brought to so many pixels a side; 224 if left out.
    pub image_size: Option<usize>,
    /// The table with the labels; found if left out.
    pub labels: Option<PathBuf>,
    /// The column with the labels, or several of 0 and 1, separated by commas; found if left out.
    pub label_column: Option<String>,
    /// The column of what may not be in two splits; `none` for no such. Found if left out.
    pub group_column: Option<String>,
    /// Shares of the images that are drawn for validation and test, where there are no such splits; 0.1 and 0.2 if left out.
    pub shares: Option<[f64; 2]>,
    /// Draws the splits; 0 if left out.
    pub split_seed: Option<u64>,
    /// Leaves out images that cannot be read, and rows of a table whose images are not there.
    pub skip_broken: bool,
}

impl Collecting {
    /// Refuses what cannot work before anything is read.
    pub fn check(&self) -> Result<()> {
        if let Some(side) = self.image_size.filter(|side| !(1..=super::MAX_SIZE).contains(side)) {
            let hint = format!("give 1 to {} pixels a side", super::MAX_SIZE);
            return Err(Error::usage(format!("--image-size {side}"), hint));
        }
        if let Some([val, test]) = self.shares
            && !([val, test].iter().all(|share| (0.0..1.0).contains(share)) && val + test < 1.0)
        {
            return Err(Error::usage(
                format!("--shares {val},{test}"),
                "give shares of all images that leave some for training",
            ));
        }
        Ok(())
    }

    fn is_default(&self) -> bool {
        *self == Collecting::default()
    }
}

/// A data set, and what was taken for it that nobody said.
pub struct Collected {
    pub data: Dataset,
    pub remarks: Vec<String>,
}

impl Dataset {
    /// Opens what training needs, in whichever form it is: [`Dataset::load`] of a file in MedMNIST's format, else a folder, an archive, a
    /// table or a list.
    pub fn open(path: &Path, collecting: &Collecting) -> Result<Collected> {
        let Some(collection) = Collection::open(path, collecting)? else {
            let data = Dataset::load(path)?;
            let is_number = |name: &String| name.parse::<u32>().is_ok();
            let numbers = data.class_names.clone().filter(|names| names.iter().all(is_number));
            let told =
                |names: Vec<String>| format!("labels {} are classes 0 to {}", listing(names.clone()), names.len() - 1);
            return Ok(Collected { data, remarks: numbers.map(told).into_iter().collect() });
        };
        let data = collection.dataset(collection.labelled()?, None);
        data.check_classes()?;
        Ok(Collected { data, remarks: collection.remarks })
    }

    /// Opens one split, as [`Dataset::load_split`]. Images without any labels are the split that is asked for.
    pub fn open_split(
        path: &Path,
        collecting: &Collecting,
        split: SplitName,
        labels: Labels,
        classes: &Classes,
    ) -> Result<Collected> {
        let Some(mut collection) = Collection::open(path, collecting)? else {
            return Ok(Collected { data: Dataset::load_split(path, split, labels, classes)?, remarks: Vec::new() });
        };
        if labels == Labels::Required {
            collection.labelled()?;
        }
        if let Classes::Known { names: Some(names), .. } = classes {
            collection.number_by(names);
        }
        let there = collection.classes;
        if let Classes::Known { task: Some(task), by, .. } = classes
            && *task != collection.task
            && there > 0
        {
            let [ours, theirs] = [collection.task, *task].map(Task::name);
            let message = format!("{ours} labels, and {by} has {theirs} ones");
            return Err(Error::data(
                path,
                message,
                "give the labels that it was trained with: --labels, --label-column",
            ));
        }
        let classes = match classes {
            Classes::Any => there,
            Classes::Known { count, by, .. }
                if there > *count || (there < *count && collection.class_names.is_some()) =>
            {
                let message = format!("{there} classes, and {by} tells {count} apart");
                let names = collection.class_names.clone().unwrap_or_default();
                let hint = match names.is_empty() {
                    true => "give images of the network's classes".to_string(),
                    false => format!("its classes are {}", listing(names)),
                };
                return Err(Error::data(path, message, hint));
            }
            Classes::Known { count, .. } => *count,
        };
        let data = collection.dataset(classes, Some(split));
        Ok(Collected { data, remarks: collection.remarks })
    }
}

impl Summary {
    /// Tells of a data set in whichever form it is.
    pub fn open(path: &Path, collecting: &Collecting) -> Result<(Summary, Vec<String>)> {
        let Some(collection) = Collection::open(path, collecting)? else {
            return Ok((Summary::read(path)?, Vec::new()));
        };
        let remarks = collection.remarks.clone();
        Ok((collection.summary(), remarks))
    }
}

/// The images of a collection with their labels, splits and groups, as a table (CSV) that [`Collecting::labels`] takes.
///
/// # Errors
/// If it is no collection: a file in MedMNIST's format has its splits.
pub fn split_table(path: &Path, collecting: &Collecting) -> Result<String> {
    match Collection::open(path, collecting)? {
        Some(collection) => Ok(collection.table()),
        None => Err(Error::data(path, "it has its splits already", "give a folder or an archive of images")),
    }
}

/// Whether a path is such a collection rather than a single file with everything.
pub fn is_collection(path: &Path) -> bool {
    source(path).is_ok_and(|source| source.is_some())
}

/// An image of any of the formats that collections have, in so many channels, 1 or 3.
///
/// # Errors
/// If it is damaged, none, or larger than is sensible.
pub fn decode(bytes: &[u8], channels: usize, depth: Depth) -> Result<Image<'static>> {
    decode::decode(bytes, channels, depth).map_err(|reason| Error::usage(reason, "give an image that can be opened"))
}

enum Source {
    Files(Files),
    /// A table or a list that names images below its folder.
    Table(Table, Files),
}

fn source(path: &Path) -> Result<Option<Source>> {
    if path.is_dir() {
        return Files::of_folder(path).map(Source::Files).map(Some);
    }
    let kind = file_kind::open(path, "read", Wanted::DataSet)?.kind;
    let with_images = |files: Files| {
        let has_some = (0..files.names().len()).any(|index| decode::is_image(&files, index));
        has_some.then_some(files)
    };
    let is_list = kind == Some(file_kind::TEXT) && path.extension().is_some_and(|extension| extension == "txt");
    if is_list || kind == Some(file_kind::CSV) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let files = Files::of_folder(folder)?;
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let table = if is_list { Table::of_list(path, &bytes) } else { Table::parse(path, &bytes)? };
        // A text that names no image is none of them.
        let names_images = table.images(&Names::new(&files, &images_of(&files))).is_some();
        return Ok(names_images.then_some(Source::Table(table, files)));
    }
    Ok(Files::of_archive(path)?.and_then(with_images).map(Source::Files))
}

/// The files that are images.
fn images_of(files: &Files) -> Vec<usize> {
    (0..files.names().len()).into_par_iter().filter(|&index| decode::is_image(files, index)).collect()
}

/// One image, and all that is known of it.
#[derive(Clone, Debug)]
struct Item {
    file: usize,
    label: Option<u32>,
    /// Of a soft label what it has of every class.
    shares: Option<Vec<f32>>,
    split: Option<SplitName>,
    group: Option<String>,
}

/// Images, their labels and their splits, before any is decoded.
struct Collection {
    path: PathBuf,
    files: Arc<Files>,
    items: Vec<Item>,
    /// 0 where there are no labels.
    classes: usize,
    task: Task,
    class_names: Option<Vec<String>>,
    shape: [usize; 3],
    depth: Depth,
    remarks: Vec<String>,
    drawn: Option<Drawn>,
}

impl Collection {
    fn open(path: &Path, collecting: &Collecting) -> Result<Option<Collection>> {
        collecting.check()?;
        let (files, table) = match source(path)? {
            None if collecting.is_default() => return Ok(None),
            None => {
                let message = "options for folders of images, and this is none";
                return Err(Error::data(path, message, "leave out --image-size, --labels and what goes with them"));
            }
            Some(Source::Files(files)) => (files, None),
            Some(Source::Table(table, files)) => (files, Some(table)),
        };
        let mut reading = Reading { path, collecting, files: &files, remarks: Vec::new() };
        let images = reading.images()?;
        let Items { items, classes, task, class_names } = reading.items(&images, table)?;
        let (items, remarks) = reading.readable(items)?;
        let mut collection = Collection {
            path: path.to_path_buf(),
            items,
            classes,
            task,
            class_names,
            shape: [collecting.image_size.unwrap_or(SIDE); 3],
            depth: Depth::Eight,
            remarks,
            drawn: None,
            files: Arc::new(files),
        };
        collection.look_at_some()?;
        collection.draw_splits(collecting)?;
        collection.items.retain(|item| item.label.is_some() || collection.classes == 0);
        let table = collection.table();
        if let Some(drawn) = &mut collection.drawn {
            drawn.sha256 = Some(hex(Sha256::digest(table)));
        }
        Ok(Some(collection))
    }

    /// Numbers the classes as these names have them, if it has no others.
    fn number_by(&mut self, names: &[String]) {
        let Some(ours) = &self.class_names else { return };
        let place = |name: &String| names.iter().position(|other| other == name).map(|at| at as u32);
        let Some(places) = ours.iter().map(place).collect::<Option<Vec<u32>>>() else { return };
        let task = self.task;
        let renumbered = |label: u32| match task {
            Task::MultiClass => places[label as usize],
            Task::MultiLabel => task.classes_of(label).map(|class| 1 << places[class]).sum(),
        };
        let moved = |shares: &Vec<f32>| {
            let mut moved = vec![0.0; names.len()];
            shares.iter().zip(&places).for_each(|(&share, &place)| moved[place as usize] = share);
            moved
        };
        for item in &mut self.items {
            (item.label, item.shares) = (item.label.map(renumbered), item.shares.as_ref().map(moved));
        }
        (self.classes, self.class_names) = (names.len(), Some(names.to_vec()));
    }

    /// Colour, if one of a few images, spread over all, is; sixteen bits, if all of those have them.
    fn look_at_some(&mut self) -> Result<()> {
        const LOOKED_AT: usize = 32;
        let every = self.items.len().div_ceil(LOOKED_AT).max(1);
        let mut headers = Vec::new();
        for item in self.items.iter().step_by(every) {
            let bytes = self.files.read(item.file)?;
            let broken = |message| {
                let hint = "mend or remove it, or leave broken images out: --skip-broken";
                Error::data(self.files.path(item.file), message, hint)
            };
            headers.push(decode::header(&bytes).map_err(broken)?);
        }
        self.shape[2] = if headers.iter().any(|header| header.is_colour) { 3 } else { 1 };
        if headers.iter().all(|header| header.depth == Depth::Sixteen) {
            self.depth = Depth::Sixteen;
        }
        let most = headers.iter().map(|header| header.frames).max().unwrap_or(1);
        if most > 1 {
            self.remarks.push(format!("of images with several frames (up to {most}) the middle one is read"));
        }
        Ok(())
    }

    /// Gives every image with a label a split.
    fn draw_splits(&mut self, collecting: &Collecting) -> Result<()> {
        let [val, test] = collecting.shares.unwrap_or([0.1, 0.2]);
        let given: BTreeSet<SplitName> = self.items.iter().filter_map(|item| item.split).collect();
        let has = |split| given.contains(&split);
        // What a publisher calls a split is one: what is missing comes out of the training images.
        let shares = match (has(SplitName::Val), has(SplitName::Test)) {
            (false, false) => [val, test],
            (false, true) => [val / (1.0 - test), 0.0],
            (true, _) => [0.0, 0.0],
        };
        let drawn: Vec<usize> = (0..self.items.len())
            .filter(|&index| {
                let item = &self.items[index];
                item.label.is_some() && item.split.is_none_or(|split| split == SplitName::Train)
            })
            .collect();
        if self.classes > 0 && shares != [0.0, 0.0] && !drawn.is_empty() {
            let labels: Vec<u32> = drawn.iter().map(|&index| self.items[index].label.expect("filtered")).collect();
            let labels = self.task.strata(&labels, self.classes);
            let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
            let mut groups = Vec::new();
            for &index in &drawn {
                let next = numbers.len();
                // One without a group is one of its own.
                groups.push(match self.items[index].group.as_deref().filter(|group| !group.is_empty()) {
                    Some(group) => *numbers.entry(group).or_insert(next),
                    None => usize::MAX - index,
                });
            }
            let splits = splits::draw(&labels, &groups, shares, collecting.split_seed.unwrap_or(0));
            let by = if numbers.is_empty() { "" } else { ", no group in two" };
            let seed = collecting.split_seed.unwrap_or(0);
            let named = match shares {
                [val, 0.0] => format!("{:.0} % of the training images for validation are", 100.0 * val),
                [val, test] => {
                    format!("splits ({:.0} % for validation, {:.0} % for test) are", 100.0 * val, 100.0 * test)
                }
            };
            self.remarks.push(format!("{named} drawn by seed {seed}, of each class its share{by}"));
            let (group_column, label_column) = (collecting.group_column.clone(), collecting.label_column.clone());
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let labels = collecting.labels.as_ref().map(name);
            self.drawn = Some(Drawn { seed, shares: [val, test], group_column, label_column, labels, sha256: None });
            drawn.iter().zip(splits).for_each(|(&index, split)| self.items[index].split = Some(split));
        }
        self.items.iter_mut().for_each(|item| item.split = item.split.or(Some(SplitName::Train)));
        let mut of_group: BTreeMap<&str, BTreeSet<SplitName>> = BTreeMap::new();
        for item in &self.items {
            if let (Some(group), Some(split)) = (item.group.as_deref().filter(|group| !group.is_empty()), item.split) {
                of_group.entry(group).or_default().insert(split);
            }
        }
        let torn = of_group.values().filter(|splits| splits.len() > 1).count();
        if torn > 0 {
            self.remarks.push(format!("{torn} groups are in two splits as they were given: figures may flatter"));
        }
        Ok(())
    }

    /// How many classes there are; images without labels are refused.
    fn labelled(&self) -> Result<usize> {
        if self.classes > 0 {
            return Ok(self.classes);
        }
        let hint = "put images into a folder for each class, or give a table: --labels FILE.csv";
        Err(Error::data(&self.path, "images without labels", hint))
    }

    fn split(&self, name: SplitName, is_kept: bool) -> Split {
        let is_labelled = self.classes > 0;
        let of_split = |item: &&Item| item.split == Some(name) || !is_labelled;
        let items: Vec<&Item> = self.items.iter().filter(of_split).collect();
        let labels = items.iter().filter_map(|item| item.label).collect();
        let chosen: Vec<usize> = items.iter().map(|item| item.file).collect();
        let kept = is_kept.then(|| chosen.iter().map(|_| OnceLock::new()).collect());
        let images = Encoded { files: self.files.clone(), chosen, shape: self.shape, depth: self.depth, kept };
        let shares = || items.iter().flat_map(|item| item.shares.iter().flatten()).copied().collect();
        let shares = items.iter().any(|item| item.shares.is_some()).then(shares);
        match is_labelled {
            true => Split::new(Arc::new(images), labels).with_shares(shares),
            false => Split::unlabelled(Arc::new(images)),
        }
    }

    /// All splits, or one.
    fn dataset(&self, classes: usize, only: Option<SplitName>) -> Dataset {
        let [height, width, channels] = self.shape;
        // What was decoded is kept where all of it takes half of what there is.
        let bytes = Encoded::bytes(self.items.len(), self.shape, self.depth);
        let is_kept = bytes <= memory::available() / 2;
        let [train, val, test] = SplitName::ALL.map(|name| match only {
            Some(only) if only != name => Split::empty(),
            _ => self.split(name, is_kept),
        });
        let class_names = self.class_names.clone().filter(|names| names.len() == classes);
        Dataset {
            path: self.path.clone(),
            train,
            val,
            test,
            height,
            width,
            channels,
            classes,
            task: self.task,
            class_names,
            drawn: self.drawn.clone(),
        }
    }

    /// A table of every image that is used, which gives the same splits again wherever it is given for labels.
    fn table(&self) -> String {
        let name_of = |class: usize| match &self.class_names {
            Some(names) => names[class].clone(),
            None => class.to_string(),
        };
        let names_of = |label: u32| match self.task {
            Task::MultiClass => name_of(label as usize),
            // Without any, it is still a label.
            Task::MultiLabel if label == 0 => NONE.to_string(),
            Task::MultiLabel => self.task.classes_of(label).map(name_of).collect::<Vec<_>>().join("|"),
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        let mut write = |row: Vec<String>| writer.write_record(row).expect("memory takes everything");
        let is_soft = self.items.iter().any(|item| item.shares.is_some());
        let of_labels = match is_soft {
            true => (0..self.classes).map(name_of).collect(),
            false => vec!["label".to_string()],
        };
        let row = |image: &str, labels: Vec<String>, split: &str, group: &str| {
            let [image, split, group] = [image, split, group].map(String::from);
            [image].into_iter().chain(labels).chain([split, group]).collect::<Vec<String>>()
        };
        write(row("image", of_labels, "split", "group"));
        for item in &self.items {
            let labels = match &item.shares {
                Some(shares) => shares.iter().map(f32::to_string).collect(),
                None if is_soft => vec![String::new(); self.classes],
                None => vec![item.label.map_or(String::new(), names_of)],
            };
            let split = item.split.map_or("", SplitName::name);
            write(row(&self.files.names()[item.file], labels, split, item.group.as_deref().unwrap_or_default()));
        }
        String::from_utf8(writer.into_inner().expect("memory takes everything")).expect("names are UTF-8")
    }

    fn summary(self) -> Summary {
        let data = self.dataset(self.classes, None);
        let problem = match self.classes {
            0 => Some("images without labels".to_string()),
            _ => data.check_classes().err().map(|error| match error {
                Error::Data { message, .. } => message,
                other => other.to_string(),
            }),
        };
        let of_split = |name: SplitName| {
            let split = data.split(name);
            // Images without labels are no split.
            let is_there = !split.is_empty() && (self.classes > 0 || name == SplitName::Test);
            let class_counts = split.is_labelled().then(|| self.task.count(&split.labels, self.classes));
            is_there.then(|| SplitSummary { images: split.len(), class_counts })
        };
        let [train, val, test] = SplitName::ALL.map(of_split);
        let [height, width, channels] = self.shape;
        let (classes, task) = ((self.classes > 0).then_some(self.classes), self.task);
        Summary { height, width, channels, classes, class_names: self.class_names, task, train, val, test, problem }
    }
}
