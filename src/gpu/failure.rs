//! The ways in which a device can fail.

use std::path::PathBuf;

/// Everything here is shown to the user with its hint; none of it is a panic.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// `tried` is what the loader says to each name.
    #[error("libcuda, the NVIDIA driver's library, was not found")]
    NoDriver { tried: Vec<String> },

    /// A library for linking programs where there is no driver.
    #[error("{} is not the NVIDIA driver's library but the CUDA toolkit's stub of it", path.display())]
    DriverStub { path: PathBuf },

    #[error("{}, the NVIDIA driver's library, cannot be used: {reason}", path.display())]
    BadDriver { path: PathBuf, reason: String },

    #[error("libnvrtc, NVIDIA's run-time compiler, was not found")]
    NoCompiler { searched: Vec<PathBuf> },

    /// MEDMERGE_NVRTC is set to something else than a libnvrtc.
    #[error("MEDMERGE_NVRTC names {}, which cannot be used: {reason}", path.display())]
    BadCompiler { path: PathBuf, reason: String },

    #[error("libnvrtc cannot compile: {builtins} is missing or broken beside {}", nvrtc.display())]
    NoBuiltins { nvrtc: PathBuf, builtins: String },

    #[error("the NVIDIA driver supports CUDA {found}; CUDA {needed} is needed")]
    DriverTooOld { found: String, needed: String },

    #[error("libnvrtc {version} cannot compile for {architecture}")]
    CompilerTooOld { version: String, architecture: String },

    #[error("libnvrtc {version} no longer compiles for {architecture}")]
    GpuTooOld { version: String, architecture: String },

    /// An older driver may not understand what a newer compiler makes.
    #[error("the NVIDIA driver (CUDA {driver}) cannot load what libnvrtc {compiler} compiled: {message}")]
    CompilerTooNew { driver: String, compiler: String, message: String },

    #[error("there is no GPU {index}: the driver reports {count}")]
    NoDevice { index: usize, count: usize },

    #[error("this build has no emulator")]
    NoEmulator,

    #[error("out of GPU memory: {requested} bytes asked for, {free} of {total} free")]
    OutOfMemory { requested: usize, free: usize, total: usize },

    /// `log` names the kernel's file and line.
    #[error("kernels/{file}.cu does not compile for {architecture}:\n{log}")]
    Compile { file: String, architecture: String, log: String },

    /// An error inside a kernel: which one, and where if that is known.
    #[error("{message}")]
    Fault { message: String },

    /// Something that cannot be part of a graph.
    #[error("{call} while a graph is being recorded")]
    Recording { call: &'static str },

    /// Any other call of the driver that failed.
    #[error("{call} failed: {message}")]
    Driver { call: &'static str, message: String },
}

impl Failure {
    /// 2 where what was asked for is not here, 1 where the work itself failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::NoDriver { .. }
            | Failure::DriverStub { .. }
            | Failure::BadDriver { .. }
            | Failure::NoCompiler { .. }
            | Failure::BadCompiler { .. }
            | Failure::NoBuiltins { .. }
            | Failure::DriverTooOld { .. }
            | Failure::CompilerTooOld { .. }
            | Failure::CompilerTooNew { .. }
            | Failure::GpuTooOld { .. }
            | Failure::NoDevice { .. }
            | Failure::NoEmulator => 2,
            Failure::OutOfMemory { .. }
            | Failure::Compile { .. }
            | Failure::Fault { .. }
            | Failure::Recording { .. }
            | Failure::Driver { .. } => 1,
        }
    }

    pub fn hint(&self) -> String {
        match self {
            Failure::NoDriver { .. } => "install NVIDIA's driver, or use --device cpu".into(),
            Failure::DriverStub { .. } => {
                "take the toolkit's folder `stubs` out of LD_LIBRARY_PATH and install NVIDIA's driver, or use --device cpu".into()
            }
            Failure::BadDriver { .. } => "update or reinstall NVIDIA's driver, or use --device cpu".into(),
            Failure::NoCompiler { .. } => {
                "pip install nvidia-cuda-nvrtc-cu12 (for drivers of CUDA 13: nvidia-cuda-nvrtc), or install the CUDA toolkit, \
                 or name the file in MEDMERGE_NVRTC; `medmerge devices` lists where it was looked for"
                    .into()
            }
            Failure::BadCompiler { .. } => {
                "name a libnvrtc.so of CUDA 12 or later, or its folder, or leave the variable out".into()
            }
            Failure::NoBuiltins { .. } => {
                "install the whole package again (pip install --force-reinstall nvidia-cuda-nvrtc-cu12; for drivers of CUDA 13: \
                 nvidia-cuda-nvrtc), or name another libnvrtc in MEDMERGE_NVRTC"
                    .into()
            }
            Failure::DriverTooOld { .. } => "update NVIDIA's driver, or use --device cpu".into(),
            Failure::CompilerTooOld { .. } => {
                "install a newer libnvrtc: pip install -U nvidia-cuda-nvrtc-cu12 (for drivers of CUDA 13: nvidia-cuda-nvrtc)".into()
            }
            Failure::CompilerTooNew { .. } => {
                "install a libnvrtc of the driver's version (pip install nvidia-cuda-nvrtc-cu12), or update the driver".into()
            }
            Failure::GpuTooOld { .. } => "install a libnvrtc of CUDA 12, or use --device cpu".into(),
            Failure::NoDevice { .. } => "`medmerge devices` lists the GPUs; CUDA_VISIBLE_DEVICES may hide some".into(),
            Failure::NoEmulator => {
                "build it with `cargo build --release --features emulator`; it needs a C++ compiler".into()
            }
            Failure::OutOfMemory { .. } => "use a smaller --batch-size, or --precision bf16".into(),
            Failure::Compile { .. } | Failure::Recording { .. } => "this is a defect of medmerge: report it with the message above".into(),
            Failure::Fault { .. } => {
                "this is a defect of medmerge or of the GPU: `medmerge selftest --device cuda` tells which op".into()
            }
            // Modules, graphs and the context itself take memory that nobody asked for by size.
            Failure::Driver { message, .. } if message.starts_with("CUDA_ERROR_OUT_OF_MEMORY") => {
                "another program may hold the GPU's memory (`nvidia-smi` tells); or use a smaller --batch-size".into()
            }
            Failure::Driver { .. } => {
                "`medmerge devices` shows what was found; another program may hold the GPU".into()
            }
        }
    }
}
