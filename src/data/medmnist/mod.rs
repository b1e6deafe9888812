//! Data sets in the format of MedMNIST.
//!
//! A file is a `.npz` with `{train,val,test}_{images,labels}`: images of N×H×W or N×H×W×C bytes (C = 1 or 3; or uint16, or floats
//! from 0 to 1, which are kept in sixteen bits), labels of N or N×1 integers, of which those that count otherwise than from 0 without
//! gaps are numbered anew, or N×K of 0 and 1, one column for each class, or for each of up to 32 findings that an image may have at once
//! (ChestMNIST): classes where every image has exactly one. N×K floats are soft labels, shares of 1 that an image has of each class. Beside them there may be `class_names`, a text for each class. Training asks for all three splits; who
//! measures asks for one, which may be all that there is; a summary tells of those that there are, and reads no pixels.
//! Whatever is wrong with what is asked for, damaged pixels excepted, is found before its pixels are decompressed, so that a
//! command fails in its first second.

mod labels;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::npz::{Element as _, Sampled};
use super::source::{InMemory, Samples};
use super::{Classes, Dataset, Depth, Labels, MAX_SIZE, Split, SplitName, SplitSummary, Summary, Task, npz};
use crate::error::{Error, Result};
use crate::file_kind::listing;
use crate::memory;
use labels::Stored;

/// The optional array of the classes' names.
const CLASS_NAMES: &str = "class_names";

const FORMAT: &str = "a data set holds {train,val,test}_images and {train,val,test}_labels, as MedMNIST has them";

impl Dataset {
    /// Loads what training needs: three splits with their labels, and an image of every class to learn from.
    pub fn load(path: &Path) -> Result<Dataset> {
        Dataset::load_within(path, memory::available())
    }

    /// Loads one split, for something that tells `classes` apart. No other array has to be there, and no class has to occur;
    /// the other splits are empty.
    ///
    /// # Errors
    /// If a label is none of `classes`, or the file names another number of classes.
    pub fn load_split(path: &Path, split: SplitName, labels: Labels, classes: &Classes) -> Result<Dataset> {
        Dataset::load_split_within(path, split, labels, classes, memory::available())
    }

    /// Loads a data set that takes no more than `memory` bytes.
    fn load_within(path: &Path, memory: u64) -> Result<Dataset> {
        let mut archive = npz::Archive::open(path)?;
        let (mut dataset, found) = Dataset::without_pixels(path, &mut archive, memory)?;
        let shape = [dataset.height, dataset.width, dataset.channels];
        for (split, found) in SplitName::ALL.into_iter().zip(&found) {
            dataset.split_mut(split).images = found.read_images(path, &mut archive, shape)?;
        }
        Ok(dataset)
    }

    /// All that training needs but the pixels, and where these are.
    fn without_pixels(path: &Path, archive: &mut npz::Archive, memory: u64) -> Result<(Dataset, Vec<Found>)> {
        let found: Vec<Found> =
            SplitName::ALL.into_iter().map(|split| Found::whole(path, archive, split)).collect::<Result<_>>()?;
        let shape = check_splits(path, &found)?;
        let class_names = archive.entry(CLASS_NAMES)?;
        check_memory(path, pixels(&found) + texts(&found, class_names.as_ref()), memory)?;

        let mut dataset = Dataset::of_shape(path, shape);
        let mut stored: Vec<Stored> =
            found.iter().map(|found| found.read_labels(path, archive)).collect::<Result<_>>()?;
        labels::check_columns(path, &stored)?;
        if class_names.is_none() {
            dataset.class_names = labels::renumbered(&mut stored);
        }
        dataset.task = labels::task(&stored);
        dataset.classes = stored.iter().map(Stored::classes).max().unwrap_or(0);
        for (split, mut stored) in SplitName::ALL.into_iter().zip(stored) {
            let task = dataset.task;
            let split = dataset.split_mut(split);
            split.shares = stored.shares();
            split.labels = stored.labels(task);
        }
        dataset.check_classes()?;
        let told = format!("there are {} classes", dataset.classes);
        let named =
            class_names.map(|entry| read_class_names(path, archive, &entry, dataset.classes, &told)).transpose()?;
        dataset.class_names = named.or(dataset.class_names);
        Ok((dataset, found))
    }

    fn load_split_within(
        path: &Path,
        split: SplitName,
        labels: Labels,
        classes: &Classes,
        memory: u64,
    ) -> Result<Dataset> {
        let mut archive = npz::Archive::open(path)?;
        let found = Found::split(path, &mut archive, split, labels)?;
        let shape = image_shape(path, &found.images)?;
        found.check_labels(path)?;
        let class_names = archive.entry(CLASS_NAMES)?;
        let all = std::slice::from_ref(&found);
        check_memory(path, pixels(all) + texts(all, class_names.as_ref()), memory)?;

        let mut stored = found.labels.is_some().then(|| found.read_labels(path, &mut archive)).transpose()?;
        let numbers = match classes {
            Classes::Known { names: Some(names), .. } if class_names.is_none() => labels::numbers(names),
            _ => None,
        };
        if let (Some(stored), Some(numbers)) = (&mut stored, &numbers) {
            labels::number_as(path, stored, numbers)?;
        }
        let looks = labels::task(stored.as_slice());
        let (classes, told, task) = match classes {
            Classes::Known { count, by, task, .. } => {
                let told = format!("{by} tells {count} classes apart");
                if let Some(stored) = &stored {
                    labels::check_task(path, stored, *task)?;
                    labels::check_known(path, stored, *count, &told)?;
                }
                (*count, told, task.unwrap_or(looks))
            }
            Classes::Any => {
                let classes = labels::classes(stored.as_slice(), class_names.as_ref());
                (classes, format!("there are {classes} classes"), looks)
            }
        };
        let shares = stored.as_mut().and_then(Stored::shares);
        let of_images = stored.map(|stored| stored.labels(task));
        let mut dataset = Dataset { classes, task, ..Dataset::of_shape(path, shape) };
        let texts = |numbers: &Vec<u32>| numbers.iter().map(u32::to_string).collect();
        dataset.class_names = class_names
            .map(|entry| read_class_names(path, &mut archive, &entry, classes, &told))
            .transpose()?
            .or(numbers.as_ref().map(texts));
        let images = found.read_images(path, &mut archive, shape)?;
        *dataset.split_mut(split) = match of_images {
            Some(labels) => Split::new(images, labels).with_shares(shares),
            None => Split::unlabelled(images),
        };
        Ok(dataset)
    }

    /// A data set without images.
    fn of_shape(path: &Path, [height, width, channels]: [usize; 3]) -> Dataset {
        let (path, class_names, drawn) = (path.to_path_buf(), None, None);
        let [train, val, test] = SplitName::ALL.map(|_| Split::empty());
        let task = Task::MultiClass;
        Dataset { path, train, val, test, height, width, channels, classes: 0, task, class_names, drawn }
    }

    /// Writes the three splits as MedMNIST would, whole or not at all; the same data set gives the same bytes.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (descr, label_bytes) = if self.classes > 256 { ("<u2", 2) } else { ("|u1", 1) };
        let mut arrays = Vec::new();
        for name in SplitName::ALL {
            let split = self.split(name);
            let mut shape = vec![split.len(), self.height, self.width];
            if self.channels != 1 {
                shape.push(self.channels);
            }
            let classes = self.classes;
            let labels: Vec<u8> = match self.task {
                Task::MultiClass => {
                    split.labels.iter().flat_map(|label| label.to_le_bytes().into_iter().take(label_bytes)).collect()
                }
                Task::MultiLabel => {
                    let has =
                        |&label: &u32| (0..classes).map(move |class| u8::from(Task::MultiLabel.has(label, class)));
                    split.labels.iter().flat_map(has).collect()
                }
            };
            let (images_name, labels_name) = (images_of(name), labels_of(name));
            let descr_of_images = if split.images.depth() == Depth::Eight { "|u1" } else { "<u2" };
            let elements = split.bytes()?.into();
            let images = npz::Array { name: images_name, descr: descr_of_images, shape, elements };
            arrays.push(images);
            if let Some(shares) = &split.shares {
                let elements = shares.iter().flat_map(|share| share.to_le_bytes()).collect::<Vec<u8>>().into();
                let shape = vec![split.len(), classes];
                arrays.push(npz::Array { name: labels_name, descr: "<f4", shape, elements });
            } else if split.is_labelled() {
                let shape = vec![split.len(), if self.task == Task::MultiLabel { classes } else { 1 }];
                arrays.push(npz::Array { name: labels_name, descr, shape, elements: labels.into() });
            }
        }
        let names = self.class_names.as_deref().unwrap_or_default();
        let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(1);
        let descr = format!("<U{longest}");
        if self.class_names.is_some() {
            let elements = names.iter().flat_map(|name| utf32(name, longest)).collect::<Vec<u8>>().into();
            arrays.push(npz::Array { name: CLASS_NAMES.into(), descr: &descr, shape: vec![names.len()], elements });
        }
        npz::write(path, &arrays)
    }
}

impl Summary {
    /// Reads the splits of a file, whichever it has; of images the headers alone.
    ///
    /// # Errors
    /// If there is no split, or something is wrong with one that is there.
    pub fn read(path: &Path) -> Result<Summary> {
        Summary::read_within(path, memory::available())
    }

    fn read_within(path: &Path, memory: u64) -> Result<Summary> {
        let mut archive = npz::Archive::open(path)?;
        let problem = Dataset::without_pixels(path, &mut archive, memory).err().map(reason);
        let mut names = Vec::new();
        let mut found = Vec::new();
        for split in SplitName::ALL {
            if let Some(arrays) = Found::any(&mut archive, split)? {
                names.push(split);
                found.push(arrays);
            }
        }
        if found.is_empty() {
            return Err(missing(path, &archive, "array of images", FORMAT));
        }
        let [height, width, channels] = check_shapes(path, &found)?;
        let named = archive.entry(CLASS_NAMES)?;
        check_memory(path, texts(&found, named.as_ref()), memory)?;

        let read = |found: &Found| found.labels.is_some().then(|| found.read_labels(path, &mut archive)).transpose();
        let mut stored: Vec<Option<Stored>> = found.iter().map(read).collect::<Result<_>>()?;
        let anew = if named.is_none() { labels::renumbered(stored.iter_mut().flatten()) } else { None };
        let there: Vec<&Stored> = stored.iter().flatten().collect();
        let (task, classes) =
            (labels::task(there.iter().copied()), labels::classes(there.iter().copied(), named.as_ref()));
        let labels: Vec<Option<Vec<u32>>> =
            stored.into_iter().map(|stored| stored.map(|stored| stored.labels(task))).collect();
        let told = format!("there are {classes} classes");
        let class_names =
            named.map(|entry| read_class_names(path, &mut archive, &entry, classes, &told)).transpose()?.or(anew);
        let of_split = |name: SplitName| {
            let index = names.iter().position(|&known| known == name)?;
            let class_counts = labels[index].as_ref().map(|labels| task.count(labels, classes));
            Some(SplitSummary { images: found[index].images.shape[0], class_counts })
        };
        let [train, val, test] = SplitName::ALL.map(of_split);
        let classes = (classes > 0).then_some(classes);
        Ok(Summary { height, width, channels, classes, class_names, task, train, val, test, problem })
    }
}

/// The reason that an error gives, without the file's path.
fn reason(error: Error) -> String {
    match error {
        Error::Data { message, .. } => message,
        other => other.to_string(),
    }
}

/// The arrays of a split, whose headers have been read.
struct Found {
    images: npz::Entry<Sampled>,
    labels: Option<npz::Entry<Sampled>>,
}

impl Found {
    /// A split of a data set that has to have all of them.
    fn whole(path: &Path, archive: &mut npz::Archive, split: SplitName) -> Result<Found> {
        let images = find(path, archive, &images_of(split), FORMAT)?;
        Ok(Found { images, labels: Some(find(path, archive, &labels_of(split), FORMAT)?) })
    }

    /// A split, if the file has its images.
    fn any(archive: &mut npz::Archive, split: SplitName) -> Result<Option<Found>> {
        let Some(images) = archive.entry(&images_of(split))? else { return Ok(None) };
        Ok(Some(Found { images, labels: archive.entry(&labels_of(split))? }))
    }

    /// A split by itself.
    fn split(path: &Path, archive: &mut npz::Archive, split: SplitName, labels: Labels) -> Result<Found> {
        let hint = format!("the {split} split is asked for; --split names another");
        let images = find(path, archive, &images_of(split), &hint)?;
        let hint = "eval compares with labels; predict needs none";
        let labels = match labels {
            Labels::Required => Some(find(path, archive, &labels_of(split), hint)?),
            Labels::Optional => archive.entry(&labels_of(split))?,
        };
        Ok(Found { images, labels })
    }

    fn check_labels(&self, path: &Path) -> Result<()> {
        self.labels.as_ref().map_or(Ok(()), |entry| labels::check(path, &self.images, entry))
    }

    /// # Panics
    /// If it has none.
    fn read_labels(&self, path: &Path, archive: &mut npz::Archive) -> Result<Stored> {
        labels::read(path, archive, self.labels.as_ref().expect("there are labels"))
    }

    fn read_images(&self, path: &Path, archive: &mut npz::Archive, shape: [usize; 3]) -> Result<Arc<InMemory>> {
        let bytes = archive.read(&self.images)?;
        let samples = match self.images.element {
            Sampled::Integer(integer) if integer.bytes == 1 => Samples::Eight(bytes.into()),
            Sampled::Integer(integer) => {
                Samples::Sixteen(integer.values(&bytes).map(|value| value as u16).collect::<Vec<u16>>().into())
            }
            float => {
                let sample = |(index, value): (usize, f64)| {
                    if (0.0..=1.0).contains(&value) {
                        return Ok((65_535.0 * value).round() as u16);
                    }
                    let message = format!(
                        "{} has {value} in image {}",
                        self.images.name,
                        index / shape.iter().product::<usize>()
                    );
                    Err(Error::data(
                        path,
                        message,
                        "floats are samples from 0 to 1: divide by the largest that is possible",
                    ))
                };
                Samples::Sixteen(float.floats(&bytes).enumerate().map(sample).collect::<Result<Vec<u16>>>()?.into())
            }
        };
        Ok(Arc::new(InMemory { samples, shape }))
    }
}

fn images_of(split: SplitName) -> String {
    format!("{split}_images")
}

fn labels_of(split: SplitName) -> String {
    format!("{split}_labels")
}

fn find<E: npz::Element>(path: &Path, archive: &mut npz::Archive, name: &str, hint: &str) -> Result<npz::Entry<E>> {
    archive.entry(name)?.ok_or_else(|| missing(path, archive, name, hint))
}

fn missing(path: &Path, archive: &npz::Archive, what: &str, hint: &str) -> Error {
    let others = archive.names();
    let others = if others.is_empty() { "nothing".into() } else { listing(others) };
    Error::data(path, format!("there is no {what}, but {others}"), hint)
}

/// Height, width and channels of all images; there have to be some to train with, and a label for each.
fn check_splits(path: &Path, splits: &[Found]) -> Result<[usize; 3]> {
    let shape = check_shapes(path, splits)?;
    if splits[0].images.shape[0] == 0 {
        return Err(Error::data(path, "the train split is empty", "put at least one image of each class into it"));
    }
    Ok(shape)
}

/// Height, width and channels of all images, each of which has a label in a split that has any.
fn check_shapes(path: &Path, splits: &[Found]) -> Result<[usize; 3]> {
    let first = &splits[0].images;
    let shape = image_shape(path, first)?;
    for found in splits {
        let images = &found.images;
        if image_shape(path, images)? != shape {
            let message =
                format!("{} has the shape {:?}, {} the shape {:?}", first.name, first.shape, images.name, images.shape);
            return Err(Error::data(path, message, "all splits need images of one shape"));
        }
        found.check_labels(path)?;
    }
    Ok(shape)
}

/// Height, width and channels.
fn image_shape(path: &Path, images: &npz::Entry<Sampled>) -> Result<[usize; 3]> {
    let refuse = |reason: &str, hint: &str| {
        Err(Error::data(path, format!("{} has the shape {:?}: {reason}", images.name, images.shape), hint))
    };
    if let Sampled::Integer(integer) = images.element
        && (integer.bytes > 2 || integer.signed)
    {
        return refuse("its elements are not unsigned bytes", Sampled::HINT);
    }
    let shape = match images.shape[..] {
        [_, height, width] => [height, width, 1],
        [_, height, width, channels @ (1 | 3)] => [height, width, channels],
        [_, 1 | 3, _, _] => return refuse("channels come first", "transpose it to N×H×W×C"),
        [_, _, _, 2 | 4] => return refuse("images have one or three channels", "drop the alpha channel"),
        [_, _, _, _] => return refuse("volumes are not supported", "take slices, as N×H×W"),
        _ => return refuse("images are N×H×W or N×H×W×3", FORMAT),
    };
    if shape[..2].iter().any(|side| !(1..=MAX_SIZE).contains(side)) {
        return refuse("its images are too small or too large", "images measure 1 to 1024 pixels a side");
    }
    Ok(shape)
}
/// Bytes that pixels take.
fn pixels(splits: &[Found]) -> u128 {
    let is_eight = |images: &npz::Entry<Sampled>| images.element.size() == 1;
    let kept = |images: &npz::Entry<Sampled>| {
        images.bytes / images.element.size() as u64 * if is_eight(images) { 1 } else { 2 }
    };
    // Images in another order, or of other numbers, are brought to ours one split after the other.
    let second_copy =
        |images: &npz::Entry<Sampled>| images.second_copy() + if is_eight(images) { 0 } else { images.bytes };
    let second_copy = splits.iter().map(|found| second_copy(&found.images)).max().unwrap_or(0);
    splits.iter().map(|found| kept(&found.images)).chain([second_copy]).map(u128::from).sum()
}

/// Bytes that labels and names take: both exist twice for a moment, labels as the file's integers and as ours.
fn texts(splits: &[Found], class_names: Option<&npz::Entry<npz::Text>>) -> u128 {
    let labels = splits.iter().filter_map(|found| found.labels.as_ref());
    let of_labels = labels.map(|labels| labels.bytes + 4 * labels.shape.iter().product::<usize>() as u64);
    of_labels.chain(class_names.map(|names| 2 * names.bytes)).map(u128::from).sum()
}

/// Refuses arrays of `needed` bytes that do not fit into `memory`.
fn check_memory(path: &Path, needed: u128, memory: u64) -> Result<()> {
    if needed > memory.into() {
        let message = format!("the images take {} MiB of memory, of which {} MiB are free", needed >> 20, memory >> 20);
        return Err(Error::data(path, message, "use a smaller image size of the data set, or a larger machine"));
    }
    Ok(())
}

/// A name for each of `classes`, of which `told` says whose they are.
fn read_class_names(
    path: &Path,
    archive: &mut npz::Archive,
    entry: &npz::Entry<npz::Text>,
    classes: usize,
    told: &str,
) -> Result<Vec<String>> {
    let refuse = |message: String, hint: &str| Err(Error::data(path, message, hint));
    if entry.shape != [classes] {
        let message = format!("{CLASS_NAMES} has the shape {:?}, and {told}", entry.shape);
        return refuse(message, "give one name for each class, in the order of the labels, or leave the names out");
    }
    let bytes = archive.read(entry)?;
    let mut names = Vec::new();
    for (index, name) in entry.element.values(&bytes).enumerate() {
        match name {
            Some(name) if !name.chars().any(char::is_control) => names.push(name),
            _ => return refuse(format!("{CLASS_NAMES} has no line of text at index {index}"), npz::Text::HINT),
        }
    }
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(name) => refuse(format!("{CLASS_NAMES} has '{name}' twice"), "give each class a name of its own"),
        None => Ok(names),
    }
}

/// As numpy stores a text in an array of texts of `length` characters.
fn utf32(text: &str, length: usize) -> impl Iterator<Item = u8> {
    text.chars().map(u32::from).chain(std::iter::repeat(0)).take(length).flat_map(u32::to_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use zip::CompressionMethod;

    use super::{npz::Array, *};

    /// A valid file: three images of 2×2 per split, of the classes 0, 1 and 1.
    fn arrays() -> Vec<Array<'static>> {
        let pixels: Vec<u8> = (0..12).collect();
        let labels: Vec<u8> = [0u16, 1, 1].iter().flat_map(|label| label.to_le_bytes()).collect();
        let array = |name, descr, shape: &[usize], elements: &[u8]| Array {
            name,
            descr,
            shape: shape.to_vec(),
            elements: elements.to_vec().into(),
        };
        let of_split = |split| {
            [
                array(format!("{split}_images"), "|u1", &[3, 2, 2], &pixels),
                array(format!("{split}_labels"), "<u2", &[3, 1], &labels),
            ]
        };
        SplitName::ALL.into_iter().flat_map(of_split).collect()
    }

    fn write(arrays: &[Array]) -> tempfile::TempPath {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        npz::write(&path, arrays).unwrap();
        path
    }

    /// The message about a valid file after `change` to its array `name`.
    fn refusal(name: &str, change: impl FnOnce(&mut Array)) -> String {
        let mut arrays = arrays();
        change(arrays.iter_mut().find(|array| array.name == name).unwrap());
        let error = Dataset::load(&write(&arrays)).unwrap_err();
        assert!(matches!(error, Error::Data { .. }) && error.hint().is_some(), "{error:?}");
        error.to_string()
    }

    fn shaped(shape: &[usize]) -> impl FnOnce(&mut Array) {
        move |array| {
            array.shape = shape.to_vec();
            array.elements = vec![0; shape.iter().product()].into();
        }
    }

    #[test]
    fn a_valid_file_is_read() {
        let dataset = Dataset::load(&write(&arrays())).unwrap();
        assert_eq!([dataset.height, dataset.width, dataset.channels, dataset.classes], [2, 2, 1, 2]);
        assert_eq!(dataset.val.labels, [0, 1, 1]);
        assert_eq!(dataset.test.bytes().unwrap(), (0..12).collect::<Vec<u8>>());
        assert_eq!(dataset.class_counts(SplitName::Test), [1, 2]);
    }

    #[test]
    fn labels_may_be_flat_signed_and_big_endian() {
        let mut arrays = arrays();
        arrays[1].shape = vec![3];
        (arrays[3].descr, arrays[3].elements) =
            (">i8", [1i64, 0, 1].iter().flat_map(|label| label.to_be_bytes()).collect::<Vec<_>>().into());
        let dataset = Dataset::load(&write(&arrays)).unwrap();
        assert_eq!(dataset.train.labels, [0, 1, 1]);
        assert_eq!(dataset.val.labels, [1, 0, 1]);
    }

    /// Sixteen bits are kept, floats brought to them.
    #[test]
    fn images_may_have_more_bits() {
        let of = |descr: &'static str, elements: Vec<u8>| {
            let mut arrays = arrays();
            let array = arrays.iter_mut().find(|array| array.name == "test_images").unwrap();
            (array.descr, array.elements) = (descr, elements.into());
            let data = Dataset::load(&write(&arrays)).unwrap();
            assert_eq!((data.test.images().depth(), data.train.images().depth()), (Depth::Sixteen, Depth::Eight));
            data.test.bytes().unwrap().chunks(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect::<Vec<u16>>()
        };
        let deep: Vec<u16> = (0..12).map(|at| 5000 * at).collect();
        assert_eq!(of(">u2", deep.iter().flat_map(|sample| sample.to_be_bytes()).collect()), deep);
        let shares: Vec<f64> = (0..12).map(|at| f64::from(at) / 11.0).collect();
        let expected: Vec<u16> = shares.iter().map(|share| (65535.0 * share).round() as u16).collect();
        assert_eq!(of("<f8", shares.iter().flat_map(|share| share.to_le_bytes()).collect()), expected);
        assert_eq!(of(">f4", shares.iter().flat_map(|share| (*share as f32).to_be_bytes()).collect()), expected);
        let halves: Vec<u8> = shares.iter().flat_map(|&share| half::f16::from_f64(share).to_le_bytes()).collect();
        assert_eq!(of("<f2", halves)[11], 65535);
    }

    #[test]
    fn labels_with_gaps_are_numbered_anew() {
        let mut arrays = arrays();
        for array in arrays.iter_mut().filter(|array| array.name.ends_with("labels")) {
            (array.descr, array.elements) = ("|u1", vec![4, 9, 9].into());
        }
        let path = write(&arrays);
        let data = Dataset::load(&path).unwrap();
        assert_eq!((data.classes, &data.train.labels), (2, &vec![0, 1, 1]));
        let names = Some(vec!["4".to_string(), "9".into()]);
        assert_eq!(data.class_names, names);
        assert_eq!(Summary::read(&path).unwrap().class_names, names);
        let split = |names: &[&str]| {
            let names = Some(names.iter().map(ToString::to_string).collect());
            let classes = Classes::Known { count: 2, by: "the network".into(), names, task: Some(Task::MultiClass) };
            Dataset::load_split(&path, SplitName::Test, Labels::Required, &classes)
        };
        let test = split(&["4", "9"]).unwrap();
        assert_eq!((test.test.labels, test.class_names), (vec![0, 1, 1], names));
        let error = split(&["4", "8"]).unwrap_err();
        assert!(error.to_string().contains("test_labels has the label 9 at index 1"), "{error}");
        assert!(error.hint().unwrap().contains("the labels 4, 8"));
        assert!(split(&["nevus", "melanoma"]).unwrap_err().to_string().contains("the label 4 at index 0"));
    }

    #[test]
    fn every_fault_has_its_message() {
        let message = refusal("val_labels", |array| array.name = "val_\nlabel".into());
        assert!(message.contains("no val_labels") && message.contains("test_images"), "{message}");
        assert!(message.contains("val_\\nlabel") && !message.contains('\n'), "{message}");

        for (name, shape, part) in [
            ("train_images", &[3, 2, 2, 4][..], "one or three channels"),
            ("train_images", &[3, 3, 28, 28], "channels come first"),
            ("train_images", &[3, 9, 9, 9], "volumes"),
            ("train_images", &[3, 2], "N×H×W"),
            ("train_images", &[3, 1025, 2], "too small or too large"),
            ("train_images", &[3, 2, 0], "too small or too large"),
            ("test_images", &[3, 2, 3], "test_images the shape"),
            ("val_images", &[4, 2, 2], "4 images and val_labels has 3 labels"),
        ] {
            let message = refusal(name, shaped(shape));
            assert!(message.contains(part), "{shape:?}: {message}");
        }

        let complex = |array: &mut Array| (array.descr, array.elements) = ("<c8", vec![0; 96].into());
        assert!(refusal("train_images", complex).contains("type '<c8'"));
        let bright = |array: &mut Array| {
            (array.descr, array.elements) =
                ("<f4", [0f32; 12].map(|_| 200f32).iter().flat_map(|v| v.to_le_bytes()).collect());
        };
        assert!(refusal("train_images", bright).contains("train_images has 200 in image 0"));
        assert!(refusal("train_images", |array| array.descr = "|i1").contains("not unsigned bytes"));
        let many_labels = |array: &mut Array| (array.shape, array.elements) = (vec![3, 14], vec![0; 84].into());
        let said = refusal("train_labels", many_labels);
        assert!(said.contains("val_labels has 1 labels per image, and train_labels has 14"), "{said}");
        let negative = |array: &mut Array| (array.descr, array.elements) = ("|i1", vec![0, 0xfe, 1].into());
        assert!(refusal("val_labels", negative).contains("label -2 at index 1"));
        let large = |array: &mut Array| {
            (array.descr, array.elements) = ("<u4", vec![0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0].into())
        };
        assert!(refusal("val_labels", large).contains("label 65536 at index 1"));
        let skipped = |array: &mut Array| array.elements.to_mut()[4] = 3;
        assert!(refusal("test_labels", skipped).contains("no training image of class 3"));
    }

    #[test]
    fn a_data_set_needs_images_and_two_classes() {
        let mut empty = arrays();
        for array in &mut empty[..2] {
            array.shape[0] = 0;
            array.elements.to_mut().clear();
        }
        assert!(Dataset::load(&write(&empty)).unwrap_err().to_string().contains("train split is empty"));
        let mut single = arrays();
        single
            .iter_mut()
            .filter(|array| array.name.ends_with("labels"))
            .for_each(|array| array.elements.to_mut().fill(0));
        assert!(Dataset::load(&write(&single)).unwrap_err().to_string().contains("label 0"));
    }

    /// [`arrays`] as a file of members that lack `.npy`, in Fortran order.
    fn fortran(arrays: &[Array]) -> tempfile::TempPath {
        let transposed = |array: &Array| -> Vec<u8> {
            let &[count, height, width] = array.shape.as_slice() else { return array.elements.to_vec() };
            let place = |at: usize| (at % count * height + at / count % height) * width + at / count / height;
            (0..array.elements.len()).map(|at| array.elements[place(at)]).collect()
        };
        let entry = |array: &Array| {
            let shape: Vec<String> = array.shape.iter().map(usize::to_string).collect();
            let shape = shape.join(", ");
            let literal = format!("{{'descr': '{}', 'fortran_order': True, 'shape': ({shape}), }}", array.descr);
            npz::tests::npy(&literal, &transposed(array))
        };
        let entries: Vec<(&str, Vec<u8>)> = arrays.iter().map(|array| (array.name.as_str(), entry(array))).collect();
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        fs::write(&path, npz::tests::zip_of(&entries, CompressionMethod::Deflated)).unwrap();
        path
    }

    #[test]
    fn a_file_in_fortran_order_and_without_npy_holds_the_same_data_set() {
        let (plain, other) = (write(&arrays()), fortran(&arrays()));
        let [plain, other] = [plain, other].map(|path| Dataset::load(&path).unwrap());
        assert_eq!(other.test.labels, plain.test.labels);
        assert_eq!(other.sha256().unwrap(), plain.sha256().unwrap());
    }

    #[test]
    fn the_second_copy_of_a_file_in_fortran_order_counts_as_memory() {
        // As for the same file in C order, and one split's 12 pixels twice.
        let path = fortran(&arrays());
        assert!(Dataset::load_within(&path, 102).is_ok());
        assert!(Dataset::load_within(&path, 101).unwrap_err().to_string().contains("memory"));
    }

    /// [`arrays`] with these names of classes.
    fn named<'a>(descr: &'a str, shape: &[usize], elements: &[u8]) -> Vec<Array<'a>> {
        let mut arrays: Vec<Array<'a>> = arrays();
        arrays.push(Array {
            name: "class_names".into(),
            descr,
            shape: shape.to_vec(),
            elements: elements.to_vec().into(),
        });
        arrays
    }

    #[test]
    fn class_names_are_read_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let names = |dataset: &Dataset| dataset.class_names.clone().unwrap();
        let dataset = Dataset::load(&write(&named("|S4", &[2], b"mole\xc3\xa4\0\0"))).unwrap();
        assert_eq!(names(&dataset), ["mole", "ä"]);
        let path = folder.path().join("named.npz");
        dataset.save(&path).unwrap();
        let again = Dataset::load(&path).unwrap();
        assert_eq!(names(&again), names(&dataset));
        assert_eq!(Summary::read(&path).unwrap().class_names, again.class_names);
        let mut archive = npz::Archive::open(&path).unwrap();
        let entry = archive.entry::<npz::Text>("class_names").unwrap().unwrap();
        assert_eq!(entry.element, npz::Text::Utf32 { bytes: 16, big_endian: false });
    }

    #[test]
    fn without_class_names_none_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plain.npz");
        let dataset = Dataset::load(&write(&arrays())).unwrap();
        assert_eq!(dataset.class_names, None);
        dataset.save(&path).unwrap();
        assert_eq!(npz::Archive::open(&path).unwrap().names().len(), 6);
    }

    #[test]
    fn class_names_that_do_not_fit_are_refused() {
        for (descr, shape, elements, part) in [
            ("|S1", &[3][..], &b"abc"[..], "class_names has the shape [3], and there are 2 classes"),
            ("|S1", &[1], b"a", "there are 2 classes"),
            ("|S1", &[2, 1], b"ab", "class_names has the shape [2, 1]"),
            ("|S1", &[2], b"aa", "class_names has 'a' twice"),
            ("|S2", &[2], b"ab\xffc", "class_names has no line of text at index 1"),
            ("|S2", &[2], b"a\nbb", "class_names has no line of text at index 0"),
            ("|u1", &[2], b"ab", "class_names has elements of type '|u1', not text"),
            ("|O", &[2], b"ab", "class_names has elements of type '|O', not text"),
        ] {
            let error = Dataset::load(&write(&named(descr, shape, elements))).unwrap_err();
            assert!(matches!(error, Error::Data { .. }) && error.to_string().contains(part), "{part}: {error}");
        }
    }

    /// The arrays of [`arrays`] that have these names.
    fn only(names: &[&str]) -> Vec<Array<'static>> {
        arrays().into_iter().filter(|array| names.contains(&array.name.as_str())).collect()
    }

    fn known(count: usize) -> Classes {
        Classes::Known { count, by: "the network".into(), names: None, task: Some(Task::MultiClass) }
    }

    fn test_split(path: &Path, labels: Labels, classes: usize) -> Result<Dataset> {
        Dataset::load_split(path, SplitName::Test, labels, &known(classes))
    }

    /// A valid file whose labels have two columns.
    fn with_columns(train: [u8; 6], rest: [u8; 6]) -> Vec<Array<'static>> {
        let mut arrays = arrays();
        for array in arrays.iter_mut().filter(|array| array.name.ends_with("labels")) {
            let values = if array.name == "train_labels" { train } else { rest };
            (array.descr, array.shape, array.elements) = ("|u1", vec![3, 2], values.to_vec().into());
        }
        arrays
    }

    #[test]
    fn columns_are_classes_or_findings() {
        let one_hot = Dataset::load(&write(&with_columns([1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]))).unwrap();
        assert_eq!((one_hot.task, one_hot.classes, one_hot.train.labels), (Task::MultiClass, 2, vec![0, 1, 1]));
        let path = write(&with_columns([1, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 1]));
        let several = Dataset::load(&path).unwrap();
        assert_eq!((several.task, several.classes), (Task::MultiLabel, 2));
        assert_eq!((&several.train.labels, &several.val.labels), (&vec![1, 2, 3], &vec![0, 1, 2]));
        assert_eq!(several.class_counts(SplitName::Train), [2, 2]);
        // What is written is read again, and is not the same content as classes of these numbers.
        let copy = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        several.save(&copy).unwrap();
        let again = Dataset::load(&copy).unwrap();
        assert_eq!(again.train.labels, several.train.labels);
        assert_eq!(again.sha256().unwrap(), several.sha256().unwrap());
        assert_ne!(Dataset { task: Task::MultiClass, ..again }.sha256().unwrap(), several.sha256().unwrap());
        assert_eq!(Summary::read(&path).unwrap().test.unwrap().class_counts.unwrap(), [1, 1]);

        let split = |task| {
            let classes = Classes::Known { count: 2, by: "the network".into(), names: None, task };
            Dataset::load_split(&path, SplitName::Test, Labels::Required, &classes)
        };
        assert_eq!(split(None).unwrap().task, Task::MultiLabel);
        assert_eq!(split(Some(Task::MultiLabel)).unwrap().test.labels, [0, 1, 2]);
        let refused = split(Some(Task::MultiClass)).unwrap_err().to_string();
        assert!(refused.contains("several classes or of none"), "{refused}");
        let said = refusal("val_labels", |array| {
            (array.descr, array.shape, array.elements) = ("|u1", vec![3, 2], vec![0, 1, 1, 2, 0, 1].into());
        });
        assert!(said.contains("val_labels has 2 in row 1, and 2 columns"), "{said}");
        let mut many = arrays();
        for array in many.iter_mut().filter(|array| array.name.ends_with("labels")) {
            (array.descr, array.shape, array.elements) = ("|u1", vec![3, 33], vec![1; 99].into());
        }
        let said = Dataset::load(&write(&many)).unwrap_err().to_string();
        assert!(said.contains("33 labels that an image may have at once"), "{said}");
    }

    #[test]
    fn one_split_may_be_all_that_there_is() {
        let path = write(&only(&["test_images", "test_labels"]));
        assert!(Dataset::load(&path).unwrap_err().to_string().contains("there is no train_images, but test_images"));
        for labels in [Labels::Required, Labels::Optional] {
            // Classes that do not occur are the network's.
            let dataset = test_split(&path, labels, 7).unwrap();
            assert_eq!([dataset.height, dataset.width, dataset.channels, dataset.classes], [2, 2, 1, 7]);
            assert_eq!(dataset.test.labels, [0, 1, 1]);
            assert_eq!(dataset.test.bytes().unwrap(), (0..12).collect::<Vec<u8>>());
            assert!(dataset.train.is_empty() && dataset.val.is_empty() && dataset.test.is_labelled());
        }
        let any = Dataset::load_split(&path, SplitName::Test, Labels::Optional, &Classes::Any).unwrap();
        assert_eq!((any.classes, any.test.labels), (2, vec![0, 1, 1]));
        let missing = Dataset::load_split(&path, SplitName::Val, Labels::Optional, &known(2)).unwrap_err();
        assert!(missing.to_string().contains("there is no val_images, but test_images, test_labels"), "{missing}");
        assert!(missing.hint().unwrap().contains("--split"));
    }

    #[test]
    fn a_summary_tells_what_is_there_and_why_nothing_can_be_learned_from_it() {
        let of = |arrays: &[Array]| Summary::read(&write(arrays));
        let split = |class_counts: Option<&[usize]>| {
            Some(SplitSummary { images: 3, class_counts: class_counts.map(<[usize]>::to_vec) })
        };
        let whole = of(&arrays()).unwrap();
        assert_eq!([whole.height, whole.width, whole.channels], [2, 2, 1]);
        assert_eq!((whole.classes, whole.problem), (Some(2), None));
        assert_eq!([&whole.train, &whole.val, &whole.test], [&split(Some(&[1, 2])); 3]);
        let lone = of(&only(&["val_images"])).unwrap();
        assert_eq!((lone.classes, [lone.train, lone.val, lone.test]), (None, [None, split(None), None]));
        assert_eq!(lone.problem.unwrap(), "there is no train_images, but val_images");
        // Names tell how many classes there are, whether or not all of them occur.
        let test_and_names = &named("|S1", &[3], b"abc")[4..];
        let named = of(test_and_names).unwrap();
        assert_eq!((named.classes, named.test), (Some(3), split(Some(&[1, 2, 0]))));
    }

    #[test]
    fn a_summary_of_what_makes_no_sense_is_refused() {
        let refused = |arrays: &[Array], part: &str| {
            let error = Summary::read(&write(arrays)).unwrap_err();
            assert!(matches!(error, Error::Data { .. }) && error.to_string().contains(part), "{part}: {error}");
        };
        refused(&only(&["test_labels"]), "there is no array of images, but test_labels");
        let many = vec![0; 1 << 20];
        refused(&named("|S1", &[1 << 20], &many), "class_names has the shape [1048576], and there are 65536 classes");
        refused(&named("|S1", &[1], b"a"), "class_names has the shape [1], and there are 2 classes");
        let mut other_size = arrays();
        shaped(&[3, 2, 3])(&mut other_size[4]);
        refused(&other_size, "train_images has the shape [3, 2, 2], test_images the shape [3, 2, 3]");
        // Of memory it takes what labels do, as they stand there and as numbers.
        let path = write(&arrays());
        assert!(Summary::read_within(&path, 54).is_ok());
        assert!(Summary::read_within(&path, 53).unwrap_err().to_string().contains("memory"));
    }

    #[test]
    fn labels_are_needed_only_where_they_are_asked_for() {
        let path = write(&only(&["test_images"]));
        let dataset = test_split(&path, Labels::Optional, 2).unwrap();
        assert_eq!((dataset.test.len(), dataset.test.is_labelled(), dataset.test.labels.len()), (3, false, 0));
        assert_eq!(dataset.test.bytes().unwrap(), (0..12).collect::<Vec<u8>>());
        let missing = test_split(&path, Labels::Required, 2).unwrap_err();
        assert!(missing.to_string().contains("there is no test_labels, but test_images"), "{missing}");
        assert!(missing.hint().unwrap().contains("predict needs none"));
        // The file that is written says as little.
        dataset.save(&path).unwrap();
        assert_eq!(npz::Archive::open(&path).unwrap().names().len(), 5);
        assert!(!test_split(&path, Labels::Optional, 2).unwrap().test.is_labelled());
    }

    #[test]
    fn nothing_else_of_the_file_is_looked_at() {
        let mut arrays = arrays();
        shaped(&[3, 9, 9, 9])(&mut arrays[0]);
        shaped(&[2, 14])(&mut arrays[1]);
        (arrays[2].descr, arrays[2].elements) = ("<f4", vec![0; 48].into());
        assert_eq!(test_split(&write(&arrays), Labels::Required, 2).unwrap().test.len(), 3);
    }

    #[test]
    fn what_is_wrong_with_a_split_is_found() {
        let refused = |arrays: &[Array], classes, part: &str| {
            for labels in [Labels::Required, Labels::Optional] {
                let error = test_split(&write(arrays), labels, classes).unwrap_err();
                assert!(matches!(error, Error::Data { .. }) && error.to_string().contains(part), "{part}: {error}");
            }
        };
        refused(&arrays(), 1, "test_labels has the label 1 at index 1, and the network tells 1 classes apart");
        refused(&named("|S1", &[2], b"ab"), 3, "class_names has the shape [2], and the network tells 3 classes apart");
        refused(&named("|S1", &[2], b"aa"), 2, "class_names has 'a' twice");
        for (name, shape, part) in [
            ("test_images", &[3, 2, 2, 4][..], "one or three channels"),
            ("test_images", &[4, 2, 2], "4 images and test_labels has 3 labels"),
            ("test_labels", &[3, 14], "test_labels has images of several classes or of none"),
        ] {
            let mut arrays = arrays();
            let array = arrays.iter_mut().find(|array| array.name == name).unwrap();
            array.shape = shape.to_vec();
            array.elements = vec![0; shape.iter().product::<usize>() * if array.descr == "<u2" { 2 } else { 1 }].into();
            refused(&arrays, 2, part);
        }
    }

    #[test]
    fn a_label_is_refused_before_pixels_are_read() {
        let path = write(&only(&["test_images", "test_labels"]));
        let mut bytes = fs::read(&path).unwrap();
        // The pixels, which are the last bytes of their array, whether or not they are compressed.
        let end = bytes.windows(4).enumerate().filter(|(_, four)| four == b"PK\x03\x04").nth(1).unwrap().0;
        bytes[end - 8..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).unwrap();
        let said = |classes| test_split(&path, Labels::Required, classes).unwrap_err().to_string();
        assert!(said(1).contains("test_labels has the label 1"), "{}", said(1));
        assert!(said(2).contains("test_images"), "{}", said(2));
    }

    #[test]
    fn memory_counts_what_is_read_of_a_file() {
        let within = |arrays: &[Array], labels, memory| {
            Dataset::load_split_within(&write(arrays), SplitName::Test, labels, &known(2), memory)
        };
        // 12 pixels, and 3 labels of 2 bytes that become 4, of three times as many.
        assert!(within(&arrays(), Labels::Optional, 30).is_ok());
        assert!(within(&arrays(), Labels::Optional, 29).unwrap_err().to_string().contains("memory"));
        let images = only(&["test_images"]);
        assert!(within(&images, Labels::Optional, 12).is_ok());
        assert!(within(&images, Labels::Optional, 11).unwrap_err().to_string().contains("memory"));
    }

    fn change_bytes(split: &mut Split, change: impl Fn(&mut Vec<u8>)) {
        let (mut bytes, shape) = (split.bytes().unwrap(), split.images.read(&[0]).unwrap()[0].shape);
        change(&mut bytes);
        *split = Split::in_memory(bytes, shape, split.labels.clone());
    }

    #[test]
    fn the_identity_of_a_data_set_is_that_of_its_content() {
        let loaded = |arrays: &[Array]| Dataset::load(&write(arrays)).unwrap();
        let same = loaded(&arrays()).sha256().unwrap();
        // Written down so that it stays the same from version to version.
        assert_eq!(same, "0a591092653f45d2a40873742a4390e8820899b034b9a616f5efaa4079171203");
        // Other types of labels, another order of members, another order of elements, stored and not compressed, names.
        let mut wide = arrays();
        (wide[1].descr, wide[1].elements) = ("<i8", [0i64, 1, 1].map(i64::to_le_bytes).concat().into());
        wide.reverse();
        assert_eq!(loaded(&wide).sha256().unwrap(), same);
        assert_eq!(Dataset::load(&fortran(&arrays())).unwrap().sha256().unwrap(), same);
        assert_eq!(loaded(&named("|S1", &[2], b"ab")).sha256().unwrap(), same);
        // One pixel, one label, where a split ends, and how wide the images are.
        let other = |change: &dyn Fn(&mut Dataset)| {
            let mut dataset = loaded(&arrays());
            change(&mut dataset);
            dataset.sha256().unwrap()
        };
        let others = [
            other(&|dataset| change_bytes(&mut dataset.test, |bytes| bytes[11] ^= 1)),
            other(&|dataset| dataset.val.labels[0] = 1),
            other(&|dataset| dataset.truncate_train(2)),
            other(&|dataset| (dataset.height, dataset.width) = (1, 4)),
            other(&|dataset| {
                let [first, second] = [dataset.train.bytes().unwrap()[0], dataset.val.bytes().unwrap()[1]];
                assert_ne!(first, second);
                change_bytes(&mut dataset.train, |bytes| bytes[0] = second);
                change_bytes(&mut dataset.val, |bytes| bytes[1] = first);
            }),
        ];
        assert!(others.iter().all(|other| *other != same), "{others:?}");
    }

    #[test]
    fn a_data_set_larger_than_memory_is_refused() {
        let path = write(&arrays());
        // Three times 12 pixels, and 3 labels of 2 bytes that become 4.
        assert!(Dataset::load_within(&path, 90).is_ok());
        assert!(Dataset::load_within(&path, 89).unwrap_err().to_string().contains("memory"));
    }

    #[test]
    fn saving_and_loading_gives_the_same_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.npz");
        for (channels, classes) in [(3, 2), (1, 300)] {
            let bytes = (0..classes * 6 * channels).map(|byte| byte as u8).collect();
            let split = Split::in_memory(bytes, [2, 3, channels], (0..classes as u32).collect());
            let (height, width, val, test) = (2, 3, split.clone(), Split::empty());
            let class_names = None;
            let path = path.clone();
            let saved = Dataset {
                path,
                train: split,
                val,
                test,
                height,
                width,
                channels,
                classes,
                task: Task::MultiClass,
                class_names,
                drawn: None,
            };
            saved.save(&saved.path).unwrap();
            let loaded = Dataset::load(&saved.path).unwrap();
            assert_eq!((loaded.classes, &loaded.class_names), (saved.classes, &saved.class_names));
            assert_eq!(loaded.sha256().unwrap(), saved.sha256().unwrap());
        }
        let nowhere = Dataset::load(&path).unwrap().save(&folder.path().join("no/set.npz")).unwrap_err();
        assert!(nowhere.hint().unwrap().contains("folder"));
    }

    #[test]
    fn truncation_keeps_images_and_labels_together() {
        let mut dataset = Dataset::load(&write(&arrays())).unwrap();
        dataset.truncate_train(5);
        assert_eq!(dataset.train.len(), 3);
        dataset.truncate_train(2);
        assert_eq!((dataset.train.len(), dataset.train.bytes().unwrap().len()), (2, 8));
        assert!(dataset.check_classes().is_ok());
        dataset.truncate_train(1);
        assert!(dataset.check_classes().unwrap_err().to_string().contains("class 1"));
    }
}
