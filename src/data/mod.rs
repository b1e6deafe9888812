//! Data sets of labelled images: three splits, whose images come from a source (`source`) of its format (`medmnist`).
//!
//! This module knows nothing of networks; `loader` turns images into numbers.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::file_kind::listing;
use crate::hex::hex;
use source::InMemory;

pub mod augment;
mod collection;
mod duplicates;
pub mod loader;
mod medmnist;
mod normalisation;
pub mod npz;
mod soft;
mod source;
pub mod synthetic;
mod task;

pub use augment::{Augmentation, Flips};
pub use collection::{Collected, Collecting, decode, is_collection, split_table};
pub use duplicates::{Pair, duplicates};
pub use normalisation::Normalisation;
pub use source::{Depth, Image, Images, Samples};
pub use task::{MOST_LABELS, Task};

pub use loader::{Batch, Key, Loader, LoaderOptions, RawBatch, check_channels};

/// The largest height and width of an image.
pub const MAX_SIZE: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// Whether labels have to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    Required,
    /// Those of a file that has some are read.
    Optional,
}

/// The classes that the labels of a split may count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classes {
    /// The first `count`, which something tells apart: `the network`. Images in folders and tables name their classes, and may have
    /// some of those of the names alone, in any order.
    Known {
        count: usize,
        by: String,
        names: Option<Vec<String>>,
        /// What labels say; what they look like, where it is not known.
        task: Option<Task>,
    },
    /// As many as labels, or names, say.
    Any,
}

/// Images, and their labels where these are known.
#[derive(Debug, Clone)]
pub struct Split {
    images: Arc<dyn Images>,
    /// One for each image, as the data set's [`Task`] has it, and none where they are not known; images behind the last label do
    /// not count.
    pub labels: Vec<u32>,
    /// Of soft labels what each image has of every class, N×K: shares of 1. Its label is the class with the largest.
    shares: Option<Arc<[f32]>>,
    is_labelled: bool,
}

impl Split {
    /// # Panics
    /// If there are more labels than images.
    pub fn new(images: Arc<dyn Images>, labels: Vec<u32>) -> Split {
        assert!(labels.len() <= images.len(), "{} labels of {} images", labels.len(), images.len());
        Split { images, labels, shares: None, is_labelled: true }
    }

    /// The same with soft labels, N×K; `labels` stay what they are counted and measured by.
    ///
    /// # Panics
    /// Unless there are as many rows as labels.
    pub fn with_shares(self, shares: Option<Arc<[f32]>>) -> Split {
        let fit = |shares: &Arc<[f32]>| shares.len().checked_rem(self.labels.len()).is_none_or(|rest| rest == 0);
        assert!(shares.as_ref().is_none_or(fit), "a row for each label");
        Split { shares, ..self }
    }

    /// Whether labels are soft.
    pub fn is_soft(&self) -> bool {
        self.shares.is_some()
    }

    /// What an image has of every one of `classes`, where labels are soft.
    fn shares_of(&self, image: usize, classes: usize) -> Option<&[f32]> {
        self.shares.as_ref().map(|shares| &shares[image * classes..(image + 1) * classes])
    }

    /// Images to be scored: nothing can be learned from them.
    pub fn unlabelled(images: Arc<dyn Images>) -> Split {
        Split { images, labels: Vec::new(), shares: None, is_labelled: false }
    }

    /// Images of one height, width and number of channels, N×H×W×C bytes.
    pub fn in_memory(bytes: Vec<u8>, shape: [usize; 3], labels: Vec<u32>) -> Split {
        Split::new(Arc::new(InMemory { samples: Samples::Eight(bytes.into()), shape }), labels)
    }

    /// Some of its images, by their numbers.
    fn chosen(&self, indices: Vec<usize>) -> Split {
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        let classes = self.shares.as_ref().map_or(0, |shares| shares.len() / self.labels.len().max(1));
        let rows = || indices.iter().filter_map(|&index| self.shares_of(index, classes)).flatten().copied().collect();
        let shares = self.is_soft().then(rows);
        Split::new(Arc::new(Chosen { of: self.images.clone(), indices }), labels).with_shares(shares)
    }

    /// The same images in a mirror.
    pub fn mirrored(&self, flips: Flips) -> Split {
        Split { images: Arc::new(Mirrored { of: self.images.clone(), flips }), ..self.clone() }
    }

    pub fn empty() -> Split {
        Split::in_memory(Vec::new(), [1, 1, 1], Vec::new())
    }

    pub fn images(&self) -> &dyn Images {
        &*self.images
    }

    /// All samples as bytes, N×H×W×C, in the order of a little-endian file.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.each(|image| bytes.extend_from_slice(&image.samples.to_bytes()))?;
        Ok(bytes)
    }

    /// Shows every image to `see`, a few of them in memory at a time.
    fn each(&self, mut see: impl FnMut(&Image)) -> Result<()> {
        const AT_A_TIME: usize = 256;
        let indices: Vec<usize> = (0..self.len()).collect();
        for indices in indices.chunks(AT_A_TIME) {
            self.images.read(indices)?.iter().for_each(&mut see);
        }
        Ok(())
    }

    /// Whether each image has a label.
    pub fn is_labelled(&self) -> bool {
        self.is_labelled
    }

    pub fn len(&self) -> usize {
        if self.is_labelled { self.labels.len() } else { self.images.len() }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Clone)]
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
    /// One more than the largest label of the three splits, or as many as something else tells apart.
    pub classes: usize,
    pub task: Task,
    /// One for each class, where the file has them.
    pub class_names: Option<Vec<String>>,
    /// How its splits were drawn, where it came without.
    pub drawn: Option<Drawn>,
}

/// What says which image is in which split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    pub seed: u64,
    /// Of the images, for validation and test.
    pub shares: [f64; 2],
    /// The column that was asked for, of what is not in two splits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_column: Option<String>,
    /// The column of labels that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// The name of the table of labels that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// SHA-256 of the images' names, labels and splits: who comes to another has other images in training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Dataset {
    /// Identity of the content, in hexadecimal: of the images' shape and of each split's images and labels, however a file
    /// stores them. Names of classes do not count.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let number = |number: usize, hash: &mut Sha256| hash.update((number as u64).to_le_bytes());
        for side in [self.height, self.width, self.channels] {
            number(side, &mut hash);
        }
        for split in SplitName::ALL.map(|name| self.split(name)) {
            number(split.len(), &mut hash);
            split.each(|image| hash.update(image.samples.to_bytes()))?;
            for label in &split.labels {
                hash.update(label.to_le_bytes());
            }
            for share in split.shares.iter().flat_map(|shares| shares.iter()) {
                hash.update(share.to_le_bytes());
            }
        }
        // The same numbers say something else.
        if self.task != Task::MultiClass {
            hash.update(self.task.name());
        }
        Ok(hex(hash.finalize()))
    }

    pub fn split(&self, name: SplitName) -> &Split {
        match name {
            SplitName::Train => &self.train,
            SplitName::Val => &self.val,
            SplitName::Test => &self.test,
        }
    }

    /// The same with one split in a mirror.
    pub fn mirrored(&self, name: SplitName, flips: Flips) -> Dataset {
        let mut data = self.clone();
        *data.split_mut(name) = self.split(name).mirrored(flips);
        data
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
        self.task.count(&self.split(name).labels, self.classes)
    }

    /// Refuses classes that nobody could learn: ones without a training image, or a single one.
    pub fn check_classes(&self) -> Result<()> {
        let counts = self.class_counts(SplitName::Train);
        let called = |class: usize| match &self.class_names {
            // Numbers that are no longer the labels'.
            Some(names) if names.iter().all(|name| name.parse::<u32>().is_ok()) => names[class].clone(),
            _ => class.to_string(),
        };
        let unseen: Vec<String> =
            counts.iter().enumerate().filter(|(_, count)| **count == 0).map(|(class, _)| called(class)).collect();
        if !unseen.is_empty() {
            let noun = if unseen.len() == 1 { "class" } else { "classes" };
            let message = format!("no training image of {noun} {}", listing(unseen));
            return Err(Error::data(&self.path, message, "labels count from 0 without gaps; give each class an image"));
        }
        if counts.len() < 2 && self.task == Task::MultiClass {
            return Err(Error::data(
                &self.path,
                "every image has the label 0",
                "a classifier needs two classes or more",
            ));
        }
        Ok(())
    }

    /// Keeps `count` training images that `seed` draws, in their order: of each class its share, and one at least.
    pub fn draw_train(&mut self, count: usize, seed: u64) {
        let strata = self.task.strata(&self.train.labels, self.classes);
        let of_class =
            |class: u32| -> Vec<usize> { (0..strata.len()).filter(|&image| strata[image] == class).collect() };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Those without any label are a class of their own.
        let mut classes: Vec<Vec<usize>> = (0..=self.classes as u32).map(of_class).collect();
        classes.iter_mut().for_each(|images| images.shuffle(&mut rng));
        let all = self.train.labels.len().max(1);
        let shares: Vec<usize> = classes.iter().map(|images| images.len() * count).collect();
        let mut kept: Vec<usize> =
            shares.iter().zip(&classes).map(|(share, images)| (share / all).max(1).min(images.len())).collect();
        // What is missing goes to the largest remainders, what the smallest classes have too much comes from the largest one.
        let mut order: Vec<usize> = (0..kept.len()).collect();
        order.sort_by_key(|&class| std::cmp::Reverse(shares[class] % all));
        let missing = count.saturating_sub(kept.iter().sum());
        order.iter().filter(|&&class| shares[class] >= all).take(missing).for_each(|&class| kept[class] += 1);
        while kept.iter().sum::<usize>() > count.max(self.classes) {
            let largest = (0..kept.len()).rev().max_by_key(|&class| kept[class]).expect("there is one");
            kept[largest] -= 1;
        }
        let drawn = classes.iter().zip(&kept).flat_map(|(images, &kept)| images.iter().take(kept));
        let mut drawn: Vec<usize> = drawn.copied().collect();
        drawn.sort_unstable();
        self.train = self.train.chosen(drawn);
    }

    /// Keeps the first `count` training images, to imitate a small data set. Classes may lose their last image;
    /// [`Dataset::check_classes`] tells.
    pub fn truncate_train(&mut self, count: usize) {
        self.train.labels.truncate(count);
    }
}

/// Images in a mirror.
#[derive(Debug)]
struct Mirrored {
    of: Arc<dyn Images>,
    flips: Flips,
}

impl Images for Mirrored {
    fn len(&self) -> usize {
        self.of.len()
    }

    fn depth(&self) -> Depth {
        self.of.depth()
    }

    fn name(&self, index: usize) -> Option<&str> {
        self.of.name(index)
    }

    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
        let mirrored = |image: Image| {
            let samples = match &image.samples {
                Samples::Eight(samples) => Samples::Eight(self.flips.of(samples, image.shape).into()),
                Samples::Sixteen(samples) => Samples::Sixteen(self.flips.of(samples, image.shape).into()),
            };
            Image { shape: image.shape, samples }
        };
        Ok(self.of.read(indices)?.into_iter().map(mirrored).collect())
    }
}

/// Some of other images.
#[derive(Debug)]
struct Chosen {
    of: Arc<dyn Images>,
    indices: Vec<usize>,
}

impl Images for Chosen {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn depth(&self) -> Depth {
        self.of.depth()
    }

    fn name(&self, index: usize) -> Option<&str> {
        self.of.name(self.indices[index])
    }

    fn file(&self, index: usize) -> Option<Result<Vec<u8>>> {
        self.of.file(self.indices[index])
    }

    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
        self.of.read(&indices.iter().map(|&index| self.indices[index]).collect::<Vec<_>>())
    }
}

/// What a file says of its images: the summary of a data set that `inspect` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// One more than the largest label of all splits, or as many as the file names; `None` where it does neither.
    pub classes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Task::is_multi_class")]
    pub task: Task,
    /// `None` where the file has no such images.
    pub train: Option<SplitSummary>,
    pub val: Option<SplitSummary>,
    pub test: Option<SplitSummary>,
    /// The reason for which [`Dataset::load`] refuses the file.
    pub problem: Option<String>,
}

impl Summary {
    pub fn split(&self, name: SplitName) -> Option<&SplitSummary> {
        match name {
            SplitName::Train => self.train.as_ref(),
            SplitName::Val => self.val.as_ref(),
            SplitName::Test => self.test.as_ref(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    pub images: usize,
    /// `None` where the images have no labels.
    pub class_counts: Option<Vec<usize>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_images_are_drawn_by_class() {
        // 60, 30, 9 and 1 of four classes, each image its own number.
        let labels: Vec<u32> = [(0, 60), (1, 30), (2, 9), (3, 1)].iter().flat_map(|&(c, n)| vec![c; n]).collect();
        let all = Dataset {
            path: "drawn".into(),
            height: 1,
            width: 1,
            channels: 1,
            classes: 4,
            task: Task::MultiClass,
            class_names: None,
            drawn: None,
            train: Split::in_memory((0..100).collect(), [1, 1, 1], labels.clone()),
            val: Split::empty(),
            test: Split::empty(),
        };
        let drawn = |count: usize, seed: u64| {
            let mut data = all.clone();
            data.draw_train(count, seed);
            let bytes = data.train.bytes().unwrap();
            // Labels are those of the images, which come in the order of the file.
            assert!(bytes.iter().zip(&data.train.labels).all(|(&image, &label)| labels[image as usize] == label));
            assert!(bytes.windows(2).all(|pair| pair[0] < pair[1]));
            (bytes, data.class_counts(SplitName::Train))
        };
        assert_eq!(drawn(50, 1).1, [30, 15, 4, 1]);
        assert_eq!(drawn(10, 1).1, [5, 3, 1, 1]);
        assert_eq!(drawn(33, 1).1, [19, 10, 3, 1]);
        assert_eq!(drawn(36, 1).1, [21, 11, 3, 1]);
        assert_eq!(drawn(4, 1).1, [1, 1, 1, 1]);
        assert_eq!(drawn(100, 1), drawn(100, 2));
        assert_eq!(drawn(20, 3), drawn(20, 3));
        assert_ne!(drawn(20, 3).0, drawn(20, 4).0);
    }

    #[test]
    fn split_names_are_parsed() {
        assert_eq!("val".parse::<SplitName>().unwrap(), SplitName::Val);
        assert_eq!("tset".parse::<SplitName>().unwrap_err().hint().unwrap(), "did you mean 'test'?");
    }
}
