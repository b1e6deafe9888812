//! Where and how a job computes, and how its images get there.

use std::sync::Arc;

use crate::data::{Loader, RawBatch};
use crate::nn::Model;
use crate::ops::images::{Images, prepare};
use crate::tensor::{DType, Device, Integers, Tensor};

/// A device, the dtype in which activations are stored on it, and whether layers run joined into stages. Models rest on
/// the CPU; a job moves them to its device and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub device: Device,
    pub precision: DType,
    pub is_fused: bool,
}

impl Default for Place {
    /// The CPU, in f32, in stages.
    fn default() -> Place {
        Place { device: Device::Cpu, precision: DType::F32, is_fused: true }
    }
}

impl Place {
    /// A model as it runs here.
    pub(super) fn host(self, model: &Model) -> Model {
        let mut model = model.to_device(self.device);
        if !self.is_fused {
            model.network = Arc::new(model.network.planned(false));
        }
        model
    }

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
