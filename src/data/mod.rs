//! Data sets of labelled images, in the format of MedMNIST.
//!
//! A file is a `.npz` with `{train,val,test}_{images,labels}`: images of N×H×W or N×H×W×C bytes (C = 1 or 3), labels of
//! N or N×1 integers. Whatever is wrong with a file, damaged pixels excepted, is found before its pixels are
//! decompressed, so that a command fails in its first second. This module knows nothing of networks; `loader` turns
//! images into numbers.

use std::{fmt, fs, path::Path, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub mod augment;
pub mod loader;
pub mod npz;
pub mod synthetic;

pub use augment::Augmentation;
pub use loader::{Batch, Loader, LoaderOptions, RawBatch, check_channels};

/// The largest height and width of an image.
pub const MAX_SIZE: usize = 1024;

const MAX_LABEL: u32 = 65_535;

const FORMAT: &str = "a data set holds {train,val,test}_images and {train,val,test}_labels, as MedMNIST has them";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SplitName {
    Train,
    Val,
    Test,
}

impl SplitName {
    pub const ALL: [SplitName; 3] = [SplitName::Train, SplitName::Val, SplitName::Test];

    pub fn name(self) -> &'static str {
        match self {
            SplitName::Train => "train",
            SplitName::Val => "val",
            SplitName::Test => "test",
        }
    }
}

impl fmt::Display for SplitName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SplitName {
    type Err = Error;

    fn from_str(name: &str) -> Result<SplitName> {
        SplitName::ALL
            .into_iter()
            .find(|split| split.name() == name)
            .ok_or_else(|| Error::unknown("split", name, SplitName::ALL.map(SplitName::name)))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// N×H×W×C.
    pub images: Vec<u8>,
    pub labels: Vec<u32>,
}

impl Split {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Where it came from, for messages.
    pub path: PathBuf,
    pub train: Split,
    pub val: Split,
    pub test: Split,
    pub height: usize,
    pub width: usize,
    /// 1 or 3.
    pub channels: usize,
    /// One more than the largest label of the three splits.
    pub classes: usize,
    pub class_names: Option<Vec<String>>,
}

impl Dataset {
    pub fn load(path: &Path) -> Result<Dataset> {
        Dataset::load_within(path, available_memory())
    }

    /// Loads a data set that takes no more than `memory` bytes.
    fn load_within(path: &Path, memory: u64) -> Result<Dataset> {
        let mut archive = npz::Archive::open(path)?;
        let mut entry = |name: String| match archive.entry(&name)? {
            Some(entry) => Ok(entry),
            None => {
                let message = format!("there is no {name}, but {}", listing(archive.names(), "nothing"));
                Err(Error::data(path, message, FORMAT))
            }
        };
        let mut entries = Vec::new();
        for split in SplitName::ALL {
            entries.push((entry(format!("{split}_images"))?, entry(format!("{split}_labels"))?));
        }

        let [height, width, channels] = image_shape(path, &entries[0].0)?;
        for (images, labels) in &entries {
            if image_shape(path, images)? != [height, width, channels] {
                let message = format!(
                    "{} has the shape {:?}, {} the shape {:?}",
                    entries[0].0.name, entries[0].0.shape, images.name, images.shape
                );
                return Err(Error::data(path, message, "all splits need images of one shape"));
            }
            check_labels(path, images, labels)?;
        }
        if entries[0].0.shape[0] == 0 {
            return Err(Error::data(path, "the train split is empty", "put at least one image of each class into it"));
        }

        // Labels exist twice for a moment, as the file's integers and as ours.
        let needed: u128 = entries
            .iter()
            .flat_map(|(images, labels)| [images.bytes, labels.bytes, 4 * labels.shape[0] as u64])
            .map(u128::from)
            .sum();
        if needed > memory.into() {
            let message =
                format!("the images take {} MiB of memory, of which {} MiB are free", needed >> 20, memory >> 20);
            return Err(Error::data(path, message, "use a smaller image size of the data set, or a larger machine"));
        }

        let mut dataset = Dataset {
            path: path.to_path_buf(),
            train: Split::default(),
            val: Split::default(),
            test: Split::default(),
            height,
            width,
            channels,
            classes: 0,
            class_names: None,
        };
        for (split, (_, labels)) in SplitName::ALL.into_iter().zip(&entries) {
            dataset.split_mut(split).labels = read_labels(path, &mut archive, labels)?;
        }
        let largest = SplitName::ALL.into_iter().filter_map(|split| dataset.split(split).labels.iter().max()).max();
        dataset.classes = largest.map_or(0, |&label| label as usize + 1);
        dataset.check_classes()?;
        for (split, (images, _)) in SplitName::ALL.into_iter().zip(&entries) {
            dataset.split_mut(split).images = archive.read(images)?;
        }
        Ok(dataset)
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
            let labels: Vec<u8> =
                split.labels.iter().flat_map(|label| label.to_le_bytes().into_iter().take(label_bytes)).collect();
            let (images_name, labels_name) = (format!("{name}_images"), format!("{name}_labels"));
            let images = npz::Array { name: images_name, descr: "|u1", shape, elements: (&split.images).into() };
            let shape = vec![split.len(), 1];
            arrays.extend([images, npz::Array { name: labels_name, descr, shape, elements: labels.into() }]);
        }
        npz::write(path, &arrays)
    }

    pub fn sha256(&self) -> String {
        String::new()
    }

    pub fn split(&self, name: SplitName) -> &Split {
        match name {
            SplitName::Train => &self.train,
            SplitName::Val => &self.val,
            SplitName::Test => &self.test,
        }
    }

    fn split_mut(&mut self, name: SplitName) -> &mut Split {
        match name {
            SplitName::Train => &mut self.train,
            SplitName::Val => &mut self.val,
            SplitName::Test => &mut self.test,
        }
    }

    /// How many images of each class a split has.
    pub fn class_counts(&self, name: SplitName) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        for &label in &self.split(name).labels {
            counts[label as usize] += 1;
        }
        counts
    }

    /// Refuses classes that nobody could learn: ones without a training image, or a single one.
    pub fn check_classes(&self) -> Result<()> {
        let counts = self.class_counts(SplitName::Train);
        let unseen: Vec<String> =
            counts.iter().enumerate().filter(|(_, count)| **count == 0).map(|(class, _)| class.to_string()).collect();
        if !unseen.is_empty() {
            let noun = if unseen.len() == 1 { "class" } else { "classes" };
            let message = format!("no training image of {noun} {}", listing(unseen, ""));
            return Err(Error::data(&self.path, message, "labels count from 0 without gaps; give each class an image"));
        }
        if counts.len() < 2 {
            return Err(Error::data(
                &self.path,
                "every image has the label 0",
                "a classifier needs two classes or more",
            ));
        }
        Ok(())
    }

    /// Keeps the first `count` training images, to imitate a small data set. Classes may lose their last image;
    /// [`Dataset::check_classes`] tells.
    pub fn truncate_train(&mut self, count: usize) {
        self.train.labels.truncate(count);
        self.train.images.truncate(count * self.height * self.width * self.channels);
    }

    pub fn describe(&self) -> Summary {
        let split = |name| SplitSummary { images: self.split(name).len(), class_counts: self.class_counts(name) };
        Summary {
            height: self.height,
            width: self.width,
            channels: self.channels,
            classes: self.classes,
            train: split(SplitName::Train),
            val: split(SplitName::Val),
            test: split(SplitName::Test),
        }
    }
}

/// What `inspect` shows of a data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub classes: usize,
    pub train: SplitSummary,
    pub val: SplitSummary,
    pub test: SplitSummary,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    pub images: usize,
    pub class_counts: Vec<usize>,
}

/// Brings bytes v to (v / 255 − mean) / std, per channel; a single mean or std holds for all channels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

impl Default for Normalisation {
    /// MedMNIST's own: from −1 to 1.
    fn default() -> Self {
        Normalisation { mean: vec![0.5], std: vec![0.5] }
    }
}

/// As the options that ask for it.
impl fmt::Display for Normalisation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
        write!(f, "--mean {} --std {}", list(&self.mean), list(&self.std))
    }
}

impl Normalisation {
    pub fn check(&self, channels: usize) -> Result<()> {
        for (name, values) in [("mean", &self.mean), ("standard deviation", &self.std)] {
            if ![1, channels].contains(&values.len()) {
                return Err(Error::usage(
                    format!("{} values for the {name} of {channels} channels", values.len()),
                    format!("give one value, or {channels}"),
                ));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::usage(format!("a {name} of {value}"), "give a finite number"));
            }
        }
        match self.std.iter().find(|std| **std <= 0.0) {
            Some(std) => Err(Error::usage(format!("a standard deviation of {std}"), "give a number above 0")),
            None => Ok(()),
        }
    }

    /// Whether both bring the same bytes to the same numbers, in a network of so many channels.
    ///
    /// # Panics
    /// If [`Normalisation::check`] would refuse the number of channels.
    pub fn is_same(&self, other: &Normalisation, channels: usize) -> bool {
        (0..channels).all(|channel| self.of_channel(channel) == other.of_channel(channel))
    }

    /// # Panics
    /// If [`Normalisation::check`] would refuse the number of channels.
    pub fn of_channel(&self, channel: usize) -> (f32, f32) {
        let pick = |values: &[f32]| if values.len() == 1 { values[0] } else { values[channel] };
        (pick(&self.mean), pick(&self.std))
    }
}

/// Height, width and channels.
fn image_shape(path: &Path, images: &npz::Entry) -> Result<[usize; 3]> {
    let refuse = |reason: &str, hint: &str| {
        Err(Error::data(path, format!("{} has the shape {:?}: {reason}", images.name, images.shape), hint))
    };
    if images.integer.bytes != 1 || images.integer.signed {
        return refuse("its elements are not unsigned bytes", "store images as uint8, from 0 to 255");
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

fn check_labels(path: &Path, images: &npz::Entry, labels: &npz::Entry) -> Result<()> {
    match labels.shape[..] {
        [_] | [_, 1] => {}
        [_, several] if several > 1 => {
            return Err(Error::data(
                path,
                format!("{} has {several} labels per image; multi-label sets are not supported", labels.name),
                "choose one column, or a data set with one label per image",
            ));
        }
        _ => {
            let message = format!("{} has the shape {:?}", labels.name, labels.shape);
            return Err(Error::data(path, message, "labels are N or N×1 integers"));
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

fn read_labels(path: &Path, archive: &mut npz::Archive, entry: &npz::Entry) -> Result<Vec<u32>> {
    let bytes = archive.read(entry)?;
    let label = |(index, value): (usize, i128)| match u32::try_from(value) {
        Ok(label) if label <= MAX_LABEL => Ok(label),
        _ => {
            let message = format!("{} has the label {value} at index {index}", entry.name);
            Err(Error::data(path, message, format!("labels are classes from 0 to {MAX_LABEL}")))
        }
    };
    entry.integer.values(&bytes).enumerate().map(label).collect()
}

/// The first few of `items`, for a message.
fn listing(items: Vec<String>, none: &str) -> String {
    const SHOWN: usize = 12;
    let rest = items.len().saturating_sub(SHOWN);
    match items.len() {
        0 => none.to_string(),
        _ if rest > 0 => format!("{} and {rest} more", items[..SHOWN].join(", ")),
        _ => items.join(", "),
    }
}

/// Bytes that can be taken without swapping; where the system does not tell, the memory of a workstation.
fn available_memory() -> u64 {
    const ASSUMED: u64 = 32 << 30;
    let Ok(report) = fs::read_to_string("/proc/meminfo") else { return ASSUMED };
    let line = report.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(ASSUMED, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(dataset.test.images, (0..12).collect::<Vec<u8>>());
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

        let floats = |array: &mut Array| (array.descr, array.elements) = ("<f4", vec![0; 48].into());
        assert!(refusal("train_images", floats).contains("type '<f4'"));
        assert!(refusal("train_images", |array| array.descr = "|i1").contains("not unsigned bytes"));
        let many_labels = |array: &mut Array| (array.shape, array.elements) = (vec![3, 14], vec![0; 84].into());
        assert!(refusal("train_labels", many_labels).contains("14 labels per image; multi-label"));
        let negative = |array: &mut Array| (array.descr, array.elements) = ("|i1", vec![0, 0xfe, 1].into());
        assert!(refusal("val_labels", negative).contains("label -2 at index 1"));
        let large = |array: &mut Array| {
            (array.descr, array.elements) = ("<u4", vec![0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0].into())
        };
        assert!(refusal("val_labels", large).contains("label 65536 at index 1"));
        let skipped = |array: &mut Array| array.elements.to_mut()[4] = 3;
        assert!(refusal("test_labels", skipped).contains("no training image of classes 2, 3"));
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

    #[test]
    fn fortran_order_is_refused() {
        let literal = "{'descr': '|u1', 'fortran_order': True, 'shape': (3, 2, 2), }";
        let entry = npz::tests::npy(literal, &[0; 12]);
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        fs::write(&path, npz::tests::zip_of(&[("train_images.npy", entry)], CompressionMethod::Deflated)).unwrap();
        assert!(Dataset::load(&path).unwrap_err().to_string().contains("Fortran order"));
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
            let split = Split {
                images: (0..classes * 6 * channels).map(|byte| byte as u8).collect(),
                labels: (0..classes as u32).collect(),
            };
            let (height, width, val, test) = (2, 3, split.clone(), Split::default());
            let saved = Dataset { path: path.clone(), train: split, val, test, height, width, channels, classes };
            saved.save(&path).unwrap();
            assert_eq!(Dataset::load(&path).unwrap(), saved);
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
        assert_eq!((dataset.train.len(), dataset.train.images.len()), (2, 8));
        assert!(dataset.check_classes().is_ok());
        dataset.truncate_train(1);
        assert!(dataset.check_classes().unwrap_err().to_string().contains("class 1"));
    }

    #[test]
    fn split_names_are_parsed() {
        assert_eq!("val".parse::<SplitName>().unwrap(), SplitName::Val);
        assert_eq!("tset".parse::<SplitName>().unwrap_err().hint().unwrap(), "did you mean 'test'?");
    }

    #[test]
    fn normalisations_that_cannot_work_are_refused() {
        let check = |mean: &[f32], std: &[f32]| Normalisation { mean: mean.into(), std: std.into() }.check(3).is_ok();
        assert!(check(&[0.5], &[0.1, 0.2, 0.3]));
        assert!(!check(&[0.5, 0.5], &[0.5]));
        assert!(!check(&[0.5], &[0.0]));
        assert!(!check(&[0.5], &[0.5, f32::NAN, 0.5]));
    }
}
