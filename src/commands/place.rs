//! The flags that say where to compute, and in which precision.

use std::path::Path;

use medmerge::error::{Error, Result};
use medmerge::gpu::{self, Failure, Gpu, Handle};
use medmerge::ops::conv2d::tiles;
use medmerge::tensor::{DType, Device};
use medmerge::train::Place;

use super::note;
use crate::cli::Global;

/// The environment's name of a table of tiles, as `bench conv --tune` writes it.
const TILES: &str = "MEDMERGE_TILES";

/// What `--device` names.
enum Named {
    Auto,
    Cpu,
    Cuda(usize),
    Emulator,
}

/// Refuses names that mean nothing, before anything is read.
pub fn check(global: &Global) -> Result<()> {
    let device = device(global)?;
    precision(global, matches!(device, Named::Cpu)).map(drop)
}

/// Opens the device. What was asked for by name and is not here is an error; `auto` takes what there is.
pub fn open(global: &Global) -> Result<Place> {
    let unavailable = |source| Error::Device { device: global.device.clone(), source };
    let device = match device(global)? {
        Named::Cpu => Device::Cpu,
        Named::Cuda(index) => Device::Gpu(Gpu::cuda(index).map_err(unavailable)?),
        Named::Emulator => Device::Gpu(Gpu::emulator(global.seed).map_err(unavailable)?),
        Named::Auto => match first_usable() {
            Ok(gpu) => Device::Gpu(gpu),
            Err(Failure::NoDriver { .. } | Failure::NoDevice { .. }) => Device::Cpu,
            Err(failure) => {
                note(global, format_args!("note: computing on the CPU, for {failure}"));
                Device::Cpu
            }
        },
    };
    if device != Device::Cpu
        && let Some(path) = std::env::var_os(TILES)
    {
        tiles::follow(Path::new(&path))?;
    }
    Ok(Place { device, precision: precision(global, device == Device::Cpu)?, is_fused: !global.no_fusion })
}

/// No device, for what is known without one.
pub fn dry(global: &Global) -> Result<Place> {
    Ok(Place { device: Device::Gpu(Gpu::dry()), precision: precision(global, false)?, is_fused: !global.no_fusion })
}

/// The GPU that `devices` says `auto` takes: one that is too old, or too new, may stand before it.
fn first_usable() -> std::result::Result<Handle, Failure> {
    Gpu::cuda(0).or_else(|failure| match failure {
        Failure::GpuTooOld { .. } | Failure::CompilerTooOld { .. } => gpu::probe().first().and_then(Gpu::cuda),
        other => Err(other),
    })
}

fn device(global: &Global) -> Result<Named> {
    let unknown = || Error::unknown("device", &global.device, ["auto", "cpu", "cuda", "emulator"]);
    match global.device.as_str() {
        "auto" => Ok(Named::Auto),
        "cpu" => Ok(Named::Cpu),
        "cuda" => Ok(Named::Cuda(0)),
        "emulator" => Ok(Named::Emulator),
        other => {
            let index = other.strip_prefix("cuda:").ok_or_else(unknown)?;
            let hint = "only GPUs are numbered, such as --device cuda:0";
            index.parse().map(Named::Cuda).map_err(|_| Error::usage(format!("unknown device '{other}'"), hint))
        }
    }
}

pub(super) fn precision(global: &Global, is_cpu: bool) -> Result<DType> {
    let hint = "leave --precision out, or give f32";
    match global.precision.as_str() {
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
