//! Where and how a job computes.

use std::sync::Arc;

use crate::error::Result;
use crate::merge::Plan;
use crate::nn::Model;
use crate::tensor::{DType, Device, Tensor};

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
    /// [`Plan::blend`] computed here from what is on the CPU, with the same bits: α comes from the CPU, and every device blends
    /// in the reference's order.
    pub fn blend(self, plan: &Plan, trunks: &[Tensor], learned: &Tensor) -> Result<Tensor> {
        let alpha = plan.parametrization.alpha(learned).to_device(self.device);
        let trunks: Vec<Tensor> = trunks.iter().map(|trunk| trunk.to_device(self.device)).collect();
        let blend = plan.blend_by(&alpha, &trunks).to_device(Device::Cpu);
        self.device.check()?;
        Ok(blend)
    }

    /// A model as it runs here.
    pub(super) fn bring(self, model: &Model) -> Model {
        let mut model = model.to_device(self.device);
        if !self.is_fused {
            model.network = Arc::new(model.network.planned(false));
        }
        model
    }
}
