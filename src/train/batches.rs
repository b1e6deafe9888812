//! Batches where a job computes: from the loader to what a network reads. Training, evaluation and benchmarks have theirs
//! from here.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use super::Place;
use crate::data::{self, Loader, RawBatch};
use crate::error::Result;
use crate::ops::control::Control;
use crate::ops::conv2d::channels_of_images;
use crate::ops::dropout::Key;
use crate::ops::images::{Images, prepare};
use crate::ops::softmax_cross_entropy::CrossEntropy;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Device, Integers, Tensor};

/// The batches of a loader, for one place.
pub struct Batches<'a> {
    loader: Loader<'a>,
    place: Place,
    tables: Tables,
}

/// The normalised value of every byte, per channel of the network.
type Tables = Arc<[[f32; 256]]>;

/// Batches that wait for the step.
const AHEAD: usize = 2;

/// A batch as the host makes it: bytes for a GPU, which augments and normalises by itself, and numbers for the CPU, or where
/// samples have more bits.
pub enum Loaded {
    Numbers(data::Batch),
    Bytes(RawBatch),
}

impl Loaded {
    /// How many images it has.
    pub fn images(&self) -> usize {
        match self {
            Loaded::Numbers(batch) => batch.labels.len(),
            Loaded::Bytes(batch) => batch.labels.len(),
        }
    }
}

impl<'a> Batches<'a> {
    pub fn new(loader: Loader<'a>, place: Place) -> Batches<'a> {
        let tables = loader.tables().into();
        Batches { loader, place, tables }
    }

    /// Their sizes and order.
    pub fn loader(&self) -> &Loader<'a> {
        &self.loader
    }

    /// The batches of an epoch, each made when it is asked for.
    pub fn epoch(&self, epoch: usize) -> Box<dyn Iterator<Item = Result<Loaded>> + '_> {
        match (self.place.device, self.loader.has_bytes()) {
            (Device::Gpu(_), true) => Box::new(self.loader.raw_epoch(epoch).map(|batch| batch.map(Loaded::Bytes))),
            _ => Box::new(self.loader.epoch(epoch).map(|batch| batch.map(Loaded::Numbers))),
        }
    }

    /// Gives `work` the batches of an epoch, which a thread of its own makes ahead of it: reading, and what is done to images,
    /// goes on while a step computes. Where the system has no thread to give, they are made in between.
    pub fn ahead<R>(&self, epoch: usize, work: impl FnOnce(&mut dyn Iterator<Item = Result<Loaded>>) -> R) -> R {
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(AHEAD);
            // It ends when nobody takes its batches any more.
            let read = move || self.epoch(epoch).try_for_each(|loaded| sender.send(loaded).ok()).is_some();
            match std::thread::Builder::new().name("reader".into()).spawn_scoped(scope, read) {
                Ok(_) => work(&mut receiver.into_iter()),
                Err(_) => work(&mut self.epoch(epoch)),
            }
        })
    }

    /// A batch where it is worked on.
    pub fn place(&self, loaded: Loaded) -> Batch {
        let Place { device, precision, .. } = self.place;
        match loaded {
            Loaded::Numbers(batch) => {
                let images = Tensor::from_vec(batch.images, batch.shape).to_device(device);
                let labels = Integers::from_vec(batch.labels).to_device(device);
                let key = Some(self.key(batch.key));
                let shares = shares(batch.shares, batch.shape[0], device);
                Batch { content: Content::Numbers { images, precision }, labels, shares, key }
            }
            Loaded::Bytes(batch) => {
                let shares = shares(batch.shares, batch.shape[0], device);
                let images = Images {
                    bytes: Integers::from_vec(batch.bytes).to_device(device),
                    shape: batch.shape,
                    placements: batch.placements.map(|placements| Integers::from_vec(placements).to_device(device)),
                };
                let labels = Integers::from_vec(batch.labels).to_device(device);
                let key = Some(self.key(batch.key));
                Batch { key, shares, ..Batch::of_bytes(images, Arc::clone(&self.tables), precision, labels) }
            }
        }
    }

    fn key(&self, words: data::Key) -> Key {
        Arc::new(Integers::from_vec(words.to_vec()).to_device(self.place.device))
    }
}

/// N×K.
fn shares(shares: Option<Vec<f32>>, images: usize, device: Device) -> Option<Tensor> {
    shares.map(|shares| {
        let shape = [images, shares.len() / images];
        Tensor::from_vec(shares, shape).to_device(device)
    })
}

/// A batch in the memory of the device that works on it.
pub struct Batch {
    content: Content,
    labels: Integers<u32>,
    /// N×K, where labels are shares of classes.
    shares: Option<Tensor>,
    /// The key that dropout draws by; without one, nothing is dropped.
    key: Option<Key>,
}

enum Content {
    /// N×H×W×C in f32, or f64 in the reference.
    Numbers {
        images: Tensor,
        precision: DType,
    },
    Bytes {
        images: Images,
        tables: Tables,
        precision: DType,
    },
}

impl Batch {
    /// One whose activations are there, N×H×W×C.
    pub fn of_activations(images: Tensor, labels: Integers<u32>) -> Batch {
        let precision = images.dtype();
        Batch { content: Content::Numbers { images, precision }, labels, shares: None, key: None }
    }

    /// One on a GPU, whose activations are stored in `precision`.
    pub fn of_bytes(images: Images, tables: Arc<[[f32; 256]]>, precision: DType, labels: Integers<u32>) -> Batch {
        Batch { content: Content::Bytes { images, tables, precision }, labels, shares: None, key: None }
    }

    pub(super) fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// One per image.
    pub fn labels(&self) -> &Integers<u32> {
        &self.labels
    }

    /// One whose images are so much of each class, N×K.
    pub fn with_shares(self, shares: Tensor) -> Batch {
        Batch { shares: Some(shares), ..self }
    }

    /// The mean loss of these logits.
    pub fn loss(&self, tape: &mut Tape, loss: &CrossEntropy, logits: &Var, control: Option<&Control>) -> Var {
        let Some(shares) = &self.shares else { return tape.softmax_cross_entropy(loss, logits, &self.labels, control) };
        let dtype = logits.value().dtype();
        let as_logits = if shares.dtype() == dtype { shares.clone() } else { shares.cast(dtype) };
        tape.soft_cross_entropy(loss, logits, &as_logits, control)
    }

    /// N×H×W×C, for a network to read; on a GPU made by a launch, and with the channels of zeros that its convolutions want.
    pub fn activations(&self) -> Tensor {
        match &self.content {
            Content::Numbers { images, precision } if images.dtype() == *precision => images.clone(),
            Content::Numbers { images, precision } => images.cast(*precision),
            Content::Bytes { images, tables, precision } => {
                let [n, h, w, _] = images.shape;
                let device = self.labels.device();
                let channels = channels_of_images(device, *precision, tables.len());
                let mut x = Tensor::uninit([n, h, w, channels], *precision, device);
                prepare(images, tables, x.view_mut());
                x
            }
        }
    }

    /// Puts another batch of as many images into the memory of this one, which is on a GPU.
    pub(super) fn overwrite(&mut self, next: &Loaded) {
        if let Some(key) = &mut self.key {
            let words = match next {
                Loaded::Bytes(next) => next.key,
                Loaded::Numbers(next) => next.key,
            };
            Arc::get_mut(key).expect("no step is under way").write(&words);
        }
        let shares = match next {
            Loaded::Bytes(next) => &next.shares,
            Loaded::Numbers(next) => &next.shares,
        };
        if let (Some(on_device), Some(shares)) = (&mut self.shares, shares) {
            let shape = on_device.shape();
            on_device.view_mut().copy_from(&Tensor::from_vec(shares.clone(), shape));
        }
        match (&mut self.content, next) {
            (Content::Bytes { images, .. }, Loaded::Bytes(next)) => {
                images.bytes.write(&next.bytes);
                if let (Some(on_device), Some(placements)) = (&mut images.placements, &next.placements) {
                    on_device.write(placements);
                }
                self.labels.write(&next.labels);
            }
            (Content::Numbers { images, .. }, Loaded::Numbers(next)) => {
                images.view_mut().copy_from(&Tensor::from_vec(next.images.clone(), next.shape));
                self.labels.write(&next.labels);
            }
            _ => panic!("bytes over numbers, or numbers over bytes"),
        }
    }
}
