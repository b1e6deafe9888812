//! Batches where a job computes: from the loader to what a network reads. Training, evaluation and benchmarks have theirs
//! from here.

use std::rc::Rc;

use super::Place;
use crate::data::{self, Loader, RawBatch};
use crate::ops::images::{Images, prepare};
use crate::tensor::{DType, Device, Integers, Tensor};

/// The batches of a loader, for one place.
pub struct Batches<'a> {
    loader: Loader<'a>,
    place: Place,
    tables: Tables,
}

/// The normalised value of every byte, per channel of the network.
type Tables = Rc<[[f32; 256]]>;

/// A batch as the host makes it: numbers for the CPU, bytes for a GPU, which augments and normalises by itself.
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
    pub fn epoch(&self, epoch: usize) -> Box<dyn Iterator<Item = Loaded> + '_> {
        match self.place.device {
            Device::Cpu => Box::new(self.loader.epoch(epoch).map(Loaded::Numbers)),
            Device::Gpu(_) => Box::new(self.loader.raw_epoch(epoch).map(Loaded::Bytes)),
        }
    }

    /// A batch where it is worked on.
    pub fn place(&self, loaded: Loaded) -> Batch {
        let Place { device, precision, .. } = self.place;
        match loaded {
            Loaded::Numbers(batch) => {
                let images = Tensor::from_vec(batch.images, batch.shape);
                Batch::of_activations(images, Integers::from_vec(batch.labels))
            }
            Loaded::Bytes(batch) => {
                let images = Images {
                    bytes: Integers::from_vec(batch.bytes).to_device(device),
                    shape: batch.shape,
                    placements: batch.placements.map(|placements| Integers::from_vec(placements).to_device(device)),
                };
                let labels = Integers::from_vec(batch.labels).to_device(device);
                Batch::of_bytes(images, Rc::clone(&self.tables), precision, labels)
            }
        }
    }
}

/// A batch in the memory of the device that works on it.
pub struct Batch {
    content: Content,
    labels: Integers<u32>,
}

enum Content {
    /// N×H×W×C.
    Activations(Tensor),
    Bytes {
        images: Images,
        tables: Tables,
        precision: DType,
    },
}

impl Batch {
    /// One on the CPU.
    pub fn of_activations(images: Tensor, labels: Integers<u32>) -> Batch {
        Batch { content: Content::Activations(images), labels }
    }

    /// One on a GPU, whose activations are stored in `precision`.
    pub fn of_bytes(images: Images, tables: Rc<[[f32; 256]]>, precision: DType, labels: Integers<u32>) -> Batch {
        Batch { content: Content::Bytes { images, tables, precision }, labels }
    }

    /// One per image.
    pub fn labels(&self) -> &Integers<u32> {
        &self.labels
    }

    /// N×H×W×C, for a network to read; on a GPU made by a launch.
    pub fn activations(&self) -> Tensor {
        match &self.content {
            Content::Activations(images) => images.clone(),
            Content::Bytes { images, tables, precision } => {
                let [n, h, w, _] = images.shape;
                let mut x = Tensor::uninit([n, h, w, tables.len()], *precision, self.labels.device());
                prepare(images, tables, x.view_mut());
                x
            }
        }
    }

    /// Puts another batch of as many images into the memory of this one, which is on a GPU.
    pub(super) fn overwrite(&mut self, next: &RawBatch) {
        let Content::Bytes { images, .. } = &mut self.content else { panic!("a batch on the CPU is not written over") };
        images.bytes.write(&next.bytes);
        if let (Some(on_device), Some(placements)) = (&mut images.placements, &next.placements) {
            on_device.write(placements);
        }
        self.labels.write(&next.labels);
    }
}
