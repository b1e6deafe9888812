//! Where a job computes, and in which precision.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::gpu::{self, Failure, Gpu, Handle};
use crate::hex::hex;
use crate::ops::conv2d::tiles;
use crate::tensor::{DType, Device};
use crate::train::{Observer, Place};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// `auto`, `cpu`, `cuda`, `cuda:N` or `emulator`.
    pub device: String,
    /// Precision of activations: `f32`, `tf32`, `bf16` or `f16`.
    pub precision: String,
    /// Whether layers run joined into stages.
    pub is_fused: bool,
    /// The emulator orders threads by it.
    #[serde(default)]
    pub seed: u64,
    /// A table of tiles, as `bench conv --tune` writes it, for GPUs to follow.
    #[serde(default)]
    pub tiles: Option<PathBuf>,
}

impl Default for Compute {
    /// The device that there is, in f32, in stages.
    fn default() -> Compute {
        Compute { device: "auto".into(), precision: "f32".into(), is_fused: true, seed: 0, tiles: None }
    }
}

/// A device's name, understood.
enum Named {
    Auto,
    Cpu,
    Cuda(usize),
    /// Whose tensor cores add as those of an architecture.
    Emulator(Option<&'static str>),
}

impl Compute {
    /// Refuses names that mean nothing.
    pub fn check(&self) -> Result<()> {
        let device = self.named()?;
        self.precision_on(matches!(device, Named::Cpu)).map(drop)
    }

    /// Opens the device. What was asked for by name and is not here is an error; `auto` takes what there is.
    pub fn open(&self, observer: &mut dyn Observer) -> Result<Place> {
        let unavailable = |source| Error::Device { device: self.device.clone(), source };
        let device = match self.named()? {
            Named::Cpu => Device::Cpu,
            Named::Cuda(index) => Device::Gpu(Gpu::cuda(index).map_err(unavailable)?),
            Named::Emulator(None) => Device::Gpu(Gpu::emulator(self.seed).map_err(unavailable)?),
            Named::Emulator(Some(of)) => Device::Gpu(Gpu::emulator_of(of, self.seed).map_err(unavailable)?),
            Named::Auto => match first_usable() {
                Ok(gpu) => Device::Gpu(gpu),
                Err(Failure::NoDriver { .. } | Failure::NoDevice { .. }) => Device::Cpu,
                Err(failure) => {
                    observer.remark(&format!("computing on the CPU, for {failure}"));
                    Device::Cpu
                }
            },
        };
        if let Some(path) = self.tiles.as_deref().filter(|_| device != Device::Cpu) {
            tiles::follow(path)?;
        }
        Ok(Place { device, precision: self.precision_on(device == Device::Cpu)?, is_fused: self.is_fused })
    }

    /// No device, for what is known without one.
    pub fn dry(&self) -> Result<Place> {
        if let Some(path) = &self.tiles {
            tiles::follow(path)?;
        }
        Ok(Place { device: Device::Gpu(Gpu::dry()), precision: self.precision_on(false)?, is_fused: self.is_fused })
    }

    /// SHA-256 of the table of tiles, in hexadecimal: it decides how sums are grouped.
    pub(super) fn tiles_hash(&self) -> Result<Option<String>> {
        let hash = |path: &PathBuf| -> Result<String> {
            let bytes = std::fs::read(path).map_err(Error::io("read", path as &Path))?;
            Ok(hex(Sha256::digest(bytes)))
        };
        self.tiles.as_ref().map(hash).transpose()
    }

    fn named(&self) -> Result<Named> {
        let unknown = || {
            Error::unknown(
                "device",
                &self.device,
                ["auto", "cpu", "cuda", "emulator", "emulator:sm_80", "emulator:sm_90a"],
            )
        };
        match self.device.as_str() {
            "auto" => Ok(Named::Auto),
            "cpu" => Ok(Named::Cpu),
            "cuda" => Ok(Named::Cuda(0)),
            "emulator" => Ok(Named::Emulator(None)),
            "emulator:sm_80" => Ok(Named::Emulator(Some("sm_80"))),
            "emulator:sm_90a" => Ok(Named::Emulator(Some("sm_90a"))),
            other => {
                let index = other.strip_prefix("cuda:").ok_or_else(unknown)?;
                let hint = "only GPUs are numbered, such as --device cuda:0";
                index.parse().map(Named::Cuda).map_err(|_| Error::usage(format!("unknown device '{other}'"), hint))
            }
        }
    }

    /// The precision, if the CPU or a GPU has it.
    pub fn precision_on(&self, is_cpu: bool) -> Result<DType> {
        let hint = "leave --precision out, or give f32";
        match self.precision.as_str() {
            "f32" => Ok(DType::F32),
            name @ ("tf32" | "bf16" | "f16") if is_cpu => {
                Err(Error::usage(format!("precision {name} is not available on the CPU"), hint))
            }
            "tf32" => Ok(DType::TF32),
            "bf16" => Ok(DType::BF16),
            "f16" => Ok(DType::F16),
            other => Err(Error::unknown("precision", other, ["f32", "tf32", "bf16", "f16"])),
        }
    }
}

/// The GPU that `devices` says `auto` takes: one that is too old, or too new, may stand before it.
fn first_usable() -> std::result::Result<Handle, Failure> {
    Gpu::cuda(0).or_else(|failure| match failure {
        Failure::GpuTooOld { .. } | Failure::CompilerTooOld { .. } => gpu::probe().first().and_then(Gpu::cuda),
        other => Err(other),
    })
}
