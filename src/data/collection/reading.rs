//! What is found in the files of a collection: which are images, and which label, split and group each has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;

use super::files::Files;
use super::table::{Found, Names, Table, TableLabels, base, split_named, stem};
use super::{Collecting, Item, decode, dicom, images_of, known, table};
use crate::data::{Depth, SplitName, Task};
use crate::error::{Error, Result};
use crate::file_kind::listing;

/// Images, and what their labels say.
pub(super) struct Items {
    pub items: Vec<Item>,
    pub classes: usize,
    pub task: Task,
    pub class_names: Option<Vec<String>>,
}

/// What is found in the files.
pub(super) struct Reading<'a> {
    pub path: &'a Path,
    pub collecting: &'a Collecting,
    pub files: &'a Files,
    pub remarks: Vec<String>,
}

impl Reading<'_> {
    /// Files that are images. Masks beside their images, as BUSI has them, are none.
    pub fn images(&mut self) -> Result<Vec<usize>> {
        let names = self.files.names();
        let all = images_of(self.files);
        let stems: BTreeSet<&str> = all.iter().map(|&index| stem(&names[index])).collect();
        let is_mask = |index: usize| {
            let stem = stem(&names[index]);
            stem.rsplit_once("_mask").is_some_and(|(of, rest)| {
                (rest.is_empty() || rest.starts_with('_') && rest[1..].parse::<u32>().is_ok()) && stems.contains(of)
            })
        };
        let images: Vec<usize> = all.iter().copied().filter(|&index| !is_mask(index)).collect();
        if images.len() < all.len() {
            self.remarks.push(format!("{} masks are left out", all.len() - images.len()));
        }
        match images.is_empty() {
            true => Err(Error::data(
                self.path,
                "no image in it",
                "images are JPEG, PNG, TIFF, BMP, WebP and DICOM files, by their names, and DICOM files without extension",
            )),
            false => Ok(images),
        }
    }

    pub fn items(&mut self, images: &[usize], table: Option<Table>) -> Result<Items> {
        let names = Names::new(self.files, images);
        let tables = match (table, &self.collecting.labels) {
            (Some(table), _) => vec![table],
            (None, Some(path)) => {
                let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
                vec![Table::parse(path, &bytes)?]
            }
            (None, None) => self.tables()?,
        };
        let is_asked = self.collecting.labels.is_some();
        let mut found: Vec<(Table, usize)> = Vec::new();
        for table in tables {
            match table.images(&names) {
                Some(column) => found.push((table, column)),
                None if is_asked => {
                    let message = "no column names an image";
                    return Err(Error::data(
                        &table.path,
                        message,
                        "its images are named by a path, a name or a number",
                    ));
                }
                None => {}
            }
        }
        let tables_found: Vec<&Table> = found.iter().map(|(table, _)| table).collect();
        if let Some(known) = known::recognised(self.files.names(), &tables_found) {
            self.remarks.push(format!("it looks like {known}"));
        }
        // The table with labels of the most images; others may add groups and splits.
        let mut labels = Vec::new();
        for (index, (table, column)) in found.iter().enumerate() {
            let others: Vec<usize> = [Some(*column), table.split(), table.group()].into_iter().flatten().collect();
            match table.labels(self.collecting.label_column.as_deref(), &others) {
                Ok(Some(of_table)) => labels.push((index, of_table)),
                Ok(None) => {}
                // Of several tables the others may have it.
                Err(_) if found.len() > 1 && self.collecting.label_column.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        if labels.is_empty() && self.collecting.label_column.is_some() && found.len() > 1 {
            let name = self.collecting.label_column.clone().unwrap_or_default();
            let message = format!("no table has a column '{name}'");
            return Err(Error::data(self.path, message, "name the table too: --labels FILE.csv"));
        }
        let Some((chosen, mut of_table)) = labels.into_iter().rev().max_by_key(|(index, _)| found[*index].0.rows.len())
        else {
            if is_asked {
                let message = "no column of labels";
                return Err(Error::data(&found[0].0.path, message, "name it: --label-column NAME"));
            }
            let mut items = self.of_folders(images)?;
            self.add_groups(&mut items.items, &found, None, &names)?;
            return Ok(items);
        };
        let (table, column) = &found[chosen];
        let (columns, path) = (&of_table.column, table.path.display());
        self.remarks.push(match of_table.task {
            Task::MultiClass if of_table.shares.is_some() => {
                format!("labels are shares of classes: '{columns}' of {path}; figures count the largest")
            }
            Task::MultiClass => format!("labels are column '{columns}' of {path}"),
            Task::MultiLabel => format!("an image may have several labels at once: '{columns}' of {path}"),
        });
        let split = table.split();
        let mut items: BTreeMap<usize, Item> = BTreeMap::new();
        let (mut missing, mut twice) = (Vec::new(), Vec::new());
        for row in 0..table.rows.len() {
            let text = table.value(row, *column);
            match names.find(text) {
                Found::One(file) => {
                    let split = split.and_then(|column| split_named(table.value(row, column)));
                    let shares = of_table.shares.as_mut().and_then(|shares| shares[row].take());
                    let item = Item { file, label: of_table.labels[row], shares, split, group: None };
                    let says = |item: &Item| (item.label, item.shares.clone());
                    let now = says(&item);
                    if items.insert(file, item).is_some_and(|before| says(&before) != now) {
                        twice.push(text.to_string());
                    }
                }
                Found::Several => {
                    let message = format!("row {}: several images are called '{text}'", row + 2);
                    return Err(Error::data(&table.path, message, "name them by their paths"));
                }
                Found::None => missing.push(text.to_string()),
            }
        }
        if !twice.is_empty() {
            let message = format!("images with two labels: {}", listing(twice));
            return Err(Error::data(&table.path, message, "give each image one label"));
        }
        if !missing.is_empty() && !self.collecting.skip_broken {
            let (count, all) = (missing.len(), table.rows.len());
            let message = format!("{count} of {all} rows name images that are not there: {}", listing(missing));
            return Err(Error::data(&table.path, message, "add the images, or leave such rows out: --skip-broken"));
        }
        if !missing.is_empty() {
            self.remarks.push(format!("{} rows whose images are not there are left out", missing.len()));
        }
        if items.len() < images.len() {
            self.remarks.push(format!("{} images without a row are left out", images.len() - items.len()));
        }
        let mut items: Vec<Item> = items.into_values().collect();
        let without = items.iter().filter(|item| item.label.is_none()).count();
        if without > 0 {
            self.remarks.push(format!("{without} images without a label are left out"));
        }
        if items.iter().all(|item| item.split.is_none()) {
            let names = self.files.names();
            items.iter_mut().for_each(|item| item.split = split_of_folders(&names[item.file]));
        }
        self.add_groups(&mut items, &found, Some(chosen), &names)?;
        if let Some(names) =
            of_table.names.as_ref().filter(|names| names.iter().all(|name| name.parse::<i64>().is_ok()))
        {
            self.remarks.push(format!("labels {} are classes 0 to {}", listing(names.clone()), names.len() - 1));
        }
        let TableLabels { classes, task, names: class_names, .. } = of_table;
        Ok(Items { items, classes, task, class_names })
    }

    /// Tables among the files, but for forms to hand predictions in, whose labels are none, and tables of pixels.
    fn tables(&self) -> Result<Vec<Table>> {
        const LARGEST: usize = 32 << 20;
        let names = self.files.names();
        let is_form = |name: &str| base(name).to_ascii_lowercase().contains("submission");
        let mut tables = Vec::new();
        for index in (0..names.len()).filter(|&index| table::is_table(&names[index]) && !is_form(&names[index])) {
            let bytes = self.files.read(index)?;
            // One that is none has nothing to say.
            if bytes.len() <= LARGEST
                && let Ok(table) = Table::parse(&self.files.path(index), &bytes)
            {
                tables.push(table);
            }
        }
        Ok(tables)
    }

    /// Classes are folders; without any, images have no labels.
    fn of_folders(&self, images: &[usize]) -> Result<Items> {
        let names = self.files.names();
        let folders = |index: usize| -> Vec<&str> {
            let mut parts: Vec<&str> = names[index].split('/').collect();
            parts.pop();
            parts
        };
        let studies: Option<Vec<u32>> = images.iter().map(|&file| known::study(&names[file])).collect();
        if let Some(labels) = studies {
            let (classes, task) = known::STUDY;
            let item = |(&file, label)| Item {
                file,
                label: Some(label),
                shares: None,
                split: split_of_folders(&names[file]),
                group: None,
            };
            let items = images.iter().zip(labels).map(item).collect();
            return Ok(Items { items, classes: 2, task, class_names: Some(classes.map(String::from).to_vec()) });
        }
        // Folders that hold everything are no class.
        let all: Vec<Vec<&str>> = images.iter().map(|&index| folders(index)).collect();
        let shared = (0..).take_while(|&depth| {
            let first = all[0].get(depth);
            first.is_some_and(|name| split_named(name).is_none()) && all.iter().all(|parts| parts.get(depth) == first)
        });
        let shared = shared.count();
        let class_of = |parts: &[&str]| {
            let below: Vec<&str> = parts[shared..].iter().copied().filter(|name| split_named(name).is_none()).collect();
            below.first().map(|name| name.to_string())
        };
        let classes: Vec<Option<String>> = all.iter().map(|parts| class_of(parts)).collect();
        let known: BTreeSet<&String> = classes.iter().flatten().collect();
        let item = |(&file, label): (&usize, Option<u32>)| Item {
            file,
            label,
            shares: None,
            split: split_of_folders(&names[file]),
            group: None,
        };
        if known.len() < 2 {
            // A single folder tells nothing apart.
            let items = images.iter().map(|file| item((file, None))).collect();
            return Ok(Items { items, classes: 0, task: Task::MultiClass, class_names: None });
        }
        if let Some(at) = classes.iter().position(Option::is_none) {
            let message = format!("{} is in no folder of a class", names[images[at]]);
            return Err(Error::data(
                self.path,
                message,
                "put each image into the folder of its class, or give a table: --labels FILE",
            ));
        }
        let label =
            |name: &Option<String>| name.as_ref().and_then(|name| known.iter().position(|known| *known == name));
        let items = images.iter().zip(&classes).map(|(file, name)| item((file, label(name).map(|label| label as u32))));
        let (items, class_names) = (items.collect(), Some(known.iter().map(ToString::to_string).collect()));
        Ok(Items { items, classes: known.len(), task: Task::MultiClass, class_names })
    }

    /// Groups, by the column that was asked for or by any table's usual one; the two eyes of a patient in EyePACS.
    fn add_groups(
        &mut self,
        items: &mut [Item],
        tables: &[(Table, usize)],
        first: Option<usize>,
        names: &Names,
    ) -> Result<()> {
        let asked = self.collecting.group_column.as_deref();
        if asked == Some("none") {
            return Ok(());
        }
        let mut order: Vec<usize> = (0..tables.len()).collect();
        order.sort_by_key(|&index| Some(index) != first);
        let column_of = |table: &Table| match asked {
            Some(name) => table.column(name),
            None => table.group(),
        };
        let found = order.iter().find_map(|&index| column_of(&tables[index].0).map(|column| (index, column)));
        if let Some((index, column)) = found {
            let (table, of_images) = &tables[index];
            let mut groups: BTreeMap<usize, &str> = BTreeMap::new();
            for row in 0..table.rows.len() {
                if let Found::One(file) = names.find(table.value(row, *of_images)) {
                    groups.insert(file, table.value(row, column));
                }
            }
            let distinct: BTreeSet<&&str> = groups.values().collect();
            // Where each image is its own there are no groups.
            if distinct.len() < groups.len() {
                let name = &table.columns[column];
                self.remarks.push(format!("{} groups are column '{name}' of {}", distinct.len(), table.path.display()));
                items.iter_mut().for_each(|item| item.group = groups.get(&item.file).map(ToString::to_string));
            }
            return Ok(());
        }
        if asked.is_none_or(|name| name.eq_ignore_ascii_case("PatientID")) && self.add_patients(items)? {
            return Ok(());
        }
        if let Some(name) = asked {
            let message = format!("no table has a column '{name}'");
            return Err(Error::data(self.path, message, "name one that is there, or none: --group-column none"));
        }
        let eye = |item: &Item| {
            let stem = stem(base(&self.files.names()[item.file]));
            let (patient, side) = stem.rsplit_once('_')?;
            (["left", "right"].contains(&side) && patient.parse::<u64>().is_ok()).then(|| patient.to_string())
        };
        let patients: Option<Vec<String>> = items.iter().map(eye).collect();
        if let Some(patients) = patients.filter(|patients| !patients.is_empty()) {
            self.remarks.push("groups are patients, by the names of both eyes' images".into());
            items.iter_mut().zip(patients).for_each(|(item, patient)| item.group = Some(patient));
            return Ok(());
        }
        let patient = |item: &Item| known::patient(&self.files.names()[item.file]).map(String::from);
        let patients: Option<Vec<String>> = items.iter().map(patient).collect();
        if let Some(patients) = patients.filter(|patients| !patients.is_empty()) {
            self.remarks.push("groups are patients, by their folders".into());
            items.iter_mut().zip(patients).for_each(|(item, patient)| item.group = Some(patient));
        }
        Ok(())
    }

    /// Groups by the patient that the headers of DICOM files tell; whether there are some. One without a patient is a group of its own.
    fn add_patients(&mut self, items: &mut [Item]) -> Result<bool> {
        // Long enough for what stands before the patient in all but a few files.
        const START: u64 = 64 << 10;
        let patient = |item: &Item| -> Result<Option<String>> {
            if item.label.is_none() || !decode::may_be_dicom(&self.files.names()[item.file]) {
                return Ok(None);
            }
            let start = self.files.start(item.file, START)?;
            match dicom::patient(&start) {
                Ok(patient) => Ok(patient),
                // What is wrong with a damaged file is told when it is decoded.
                Err(_) if (start.len() as u64) < START => Ok(None),
                Err(_) => Ok(dicom::patient(&self.files.read(item.file)?).unwrap_or(None)),
            }
        };
        let patients = items.par_iter().map(patient).collect::<Result<Vec<Option<String>>>>()?;
        let known = patients.iter().flatten().count();
        let distinct = patients.iter().flatten().collect::<BTreeSet<_>>().len();
        match (distinct, known) {
            (0, _) => return Ok(false),
            (1, 2..) => {
                let remark = "every DICOM file has the same PatientID, which tells no patients apart: no groups";
                self.remarks.push(remark.into());
            }
            // Where each image is its own there are no groups.
            (distinct, known) if distinct == known => {}
            _ => {
                self.remarks.push(format!("{distinct} groups are patients, by PatientID of the DICOM files"));
                items.iter_mut().zip(patients).for_each(|(item, patient)| item.group = patient);
            }
        }
        Ok(true)
    }

    /// Images that can be decoded, where broken ones are to be left out; all of them otherwise.
    pub fn readable(mut self, items: Vec<Item>) -> Result<(Vec<Item>, Vec<String>)> {
        if !self.collecting.skip_broken {
            return Ok((items, self.remarks));
        }
        let is_broken = |item: &Item| {
            let decoded = self.files.read(item.file).map(|bytes| decode::decode(&bytes, 3, Depth::Eight));
            !matches!(decoded, Ok(Ok(_)))
        };
        let broken: Vec<bool> = items.par_iter().map(is_broken).collect();
        let names: Vec<String> = items
            .iter()
            .zip(&broken)
            .filter(|(_, broken)| **broken)
            .map(|(item, _)| self.files.names()[item.file].clone())
            .collect();
        if !names.is_empty() {
            self.remarks.push(format!("{} broken images are left out: {}", names.len(), listing(names)));
        }
        let kept: Vec<Item> =
            items.into_iter().zip(broken).filter(|(_, broken)| !broken).map(|(item, _)| item).collect();
        match kept.is_empty() {
            true => Err(Error::data(self.path, "no image can be read", "give images that other programs can open")),
            false => Ok((kept, self.remarks)),
        }
    }
}

/// The split whose folder an image is in.
fn split_of_folders(name: &str) -> Option<SplitName> {
    let (folders, _) = name.rsplit_once('/')?;
    folders.split('/').find_map(split_named)
}
