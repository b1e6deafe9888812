//! Where a job computes, and how its images get there.

use crate::data::{Loader, RawBatch};
use crate::ops::images::{Images, prepare};
use crate::tensor::{DType, Device, Integers, Tensor};

/// A device, and the dtype in which activations are stored on it. Models rest on the CPU; a job moves them to its device
/// and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub device: Device,
    pub precision: DType,
}

impl Default for Place {
    /// The CPU, in f32.
    fn default() -> Place {
        Place { device: Device::Cpu, precision: DType::F32 }
    }
}

impl Place {
    /// The batches of an epoch as activations on the device, and the number of images in each.
    pub fn batches<'a>(self, loader: &'a Loader, epoch: usize) -> Box<dyn Iterator<Item = (Tensor, usize)> + 'a> {
        match self.device {
            Device::Cpu => Box::new(loader.epoch(epoch).map(|batch| {
                let images = batch.labels.len();
                (Tensor::from_vec(batch.images, batch.shape), images)
            })),
            Device::Gpu(_) => Box::new(loader.raw_epoch(epoch).map(move |batch| {
                let images = self.upload(&batch);
                (self.show(&images, loader), batch.labels.len())
            })),
        }
    }

    /// A batch as stored, on the device.
    pub(super) fn upload(self, batch: &RawBatch) -> Images {
        Images {
            bytes: Integers::from_vec(batch.bytes.clone()).to_device(self.device),
            shape: batch.shape,
            placements: batch
                .placements
                .as_ref()
                .map(|placements| Integers::from_vec(placements.clone()).to_device(self.device)),
        }
    }

    /// Activations of images that are on the device, augmented and normalised.
    pub(super) fn show(self, images: &Images, loader: &Loader) -> Tensor {
        let [n, h, w, _] = images.shape;
        let mut x = Tensor::uninit([n, h, w, loader.tables().len()], self.precision, self.device);
        prepare(images, loader.tables(), x.view_mut());
        x
    }
}
