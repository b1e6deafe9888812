//! Where and how a job computes.

use std::sync::Arc;

use crate::nn::Model;
use crate::tensor::{DType, Device};

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
}
