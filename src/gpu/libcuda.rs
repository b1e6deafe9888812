//! Finds libcuda, the NVIDIA driver's library, and the functions in it that are called.
//!
//! The driver installs `libcuda.so.1`. A plain `libcuda.so` is there for linking: a link to it at best, and often the
//! toolkit's *stub*, a library with the driver's names in which every function answers that it is one. cudarc opens the
//! plain name first, and panics where a function is missing. Of cudarc, only types are used.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUlaunchConfig, CUmodule, CUresult, CUstream, CUstreamCaptureMode, CUtensorMap, CUtensorMapDataType,
    CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use libloading::Library;

use super::Failure;
use super::library::{Machine, Status, api, expand, file_of, reason};
use super::nvrtc::{OLDEST, Version};

/// A libcuda in use. It is never unloaded.
pub struct Libcuda {
    pub path: PathBuf,
    /// The CUDA version that the driver supports.
    pub version: Version,
    /// The status that `cuInit` returned.
    pub(super) started: Status,
    pub(super) api: Api,
}

// Each exists under this name in every driver since CUDA 12.0. What a later one renamed keeps its first name: the newest
// headers know `cuEventElapsedTime` only by one that CUDA 12.8 brought.
api! {
    cuInit(c_uint) -> Status;
    cuGetErrorName(Status, *mut *const c_char) -> Status;
    cuGetErrorString(Status, *mut *const c_char) -> Status;
    cuDeviceGetCount(*mut c_int) -> Status;
    cuDeviceGet(*mut CUdevice, c_int) -> Status;
    cuDeviceGetName(*mut c_char, c_int, CUdevice) -> Status;
    cuDeviceTotalMem_v2(*mut usize, CUdevice) -> Status;
    cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice) -> Status;
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice) -> Status;
    cuCtxSetCurrent(CUcontext) -> Status;
    cuStreamCreate(*mut CUstream, c_uint) -> Status;
    cuStreamSynchronize(CUstream) -> Status;
    cuStreamWaitEvent(CUstream, CUevent, c_uint) -> Status;
    cuMemAlloc_v2(*mut CUdeviceptr, usize) -> Status;
    cuMemFree_v2(CUdeviceptr) -> Status;
    cuMemGetInfo_v2(*mut usize, *mut usize) -> Status;
    cuMemAllocHost_v2(*mut *mut c_void, usize) -> Status;
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream) -> Status;
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream) -> Status;
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream) -> Status;
    cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream) -> Status;
    cuEventCreate(*mut CUevent, c_uint) -> Status;
    cuEventRecord(CUevent, CUstream) -> Status;
    cuEventSynchronize(CUevent) -> Status;
    cuEventElapsedTime(*mut f32, CUevent, CUevent) -> Status;
    cuModuleLoadData(*mut CUmodule, *const c_void) -> Status;
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char) -> Status;
    cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int) -> Status;
    cuLaunchKernelEx(*const CUlaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void) -> Status;
    cuTensorMapEncodeTiled(
        *mut CUtensorMap, CUtensorMapDataType, u32, *mut c_void, *const u64, *const u64, *const u32, *const u32,
        CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill
    ) -> Status;
    cuTensorMapEncodeIm2col(
        *mut CUtensorMap, CUtensorMapDataType, u32, *mut c_void, *const u64, *const u64, *const c_int, *const c_int,
        u32, u32, *const u32, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill
    ) -> Status;
    cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode) -> Status;
    cuStreamEndCapture(CUstream, *mut CUgraph) -> Status;
    cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong) -> Status;
    cuGraphDestroy(CUgraph) -> Status;
    cuGraphLaunch(CUgraphExec, CUstream) -> Status;
    cuGraphExecDestroy(CUgraphExec) -> Status;
}

/// The libcuda of this machine, looked for once.
pub fn driver() -> Result<&'static Libcuda, Failure> {
    static FOUND: OnceLock<Result<Libcuda, Failure>> = OnceLock::new();
    FOUND.get_or_init(|| find(&Machine::this())).as_ref().map_err(Failure::clone)
}

/// Where drivers put their library: that of Windows for its Linux, those of distributions, of containers, and of NixOS.
/// The loader does not look in all of them, and a stub may stand before those in which it does.
const FOLDERS: [&str; 6] = [
    "usr/lib/wsl/lib",
    "usr/lib/*-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/nvidia/lib64",
    "run/opengl-driver/lib",
];

/// Names for the loader and paths, in the order in which they are tried.
fn candidates(machine: &Machine) -> Vec<PathBuf> {
    let by_name = |name: &str| machine.loader.then(|| PathBuf::from(name));
    if cfg!(windows) {
        return by_name("nvcuda.dll").into_iter().collect();
    }
    let folders = FOLDERS.iter().flat_map(|folder| expand(&machine.root.join(folder)));
    let files = folders.map(|folder| folder.join("libcuda.so.1")).filter(|file| file.exists());
    by_name("libcuda.so.1").into_iter().chain(files).chain(by_name("libcuda.so")).collect()
}

/// The first libcuda that can be used; where there is none, what was wrong with the first that could be opened.
pub fn find(machine: &Machine) -> Result<Libcuda, Failure> {
    let (mut tried, mut unusable) = (Vec::new(), None);
    for candidate in candidates(machine) {
        // SAFETY: loading the driver's library runs its own initialisation alone.
        match unsafe { Library::new(&candidate) } {
            Ok(library) => match start(&candidate, library) {
                Ok(found) => return Ok(found),
                Err(failure) => unusable = unusable.or(Some(failure)),
            },
            Err(error) => tried.push(reason(error)),
        }
    }
    Err(unusable.unwrap_or(Failure::NoDriver { tried }))
}

/// Looks the functions up and makes the driver ready, if it is one.
fn start(candidate: &Path, library: Library) -> Result<Libcuda, Failure> {
    type DriverVersion = unsafe extern "C" fn(*mut c_int) -> Status;
    const STUB: Status = CUresult::CUDA_ERROR_STUB_LIBRARY as Status;
    let path = |function: *const c_void| file_of(function).unwrap_or_else(|| candidate.to_path_buf());
    let bad = |reason| Failure::BadDriver { path: candidate.to_path_buf(), reason };
    // Before the others, some of which an older driver lacks.
    // SAFETY: the signature is that of cuda.h.
    let ask = *unsafe { library.get::<DriverVersion>("cuDriverGetVersion") }.map_err(|error| bad(reason(error)))?;
    let path = path(ask as *const c_void);
    let mut version = 0;
    // SAFETY: the function writes to the integer that it is given; it may be called before `cuInit`.
    match unsafe { ask(&mut version) } {
        0 => {}
        STUB => return Err(Failure::DriverStub { path }),
        code => return Err(bad(format!("cuDriverGetVersion answers {code}"))),
    }
    let version = Version(version.unsigned_abs() / 1000, version.unsigned_abs() % 1000 / 10);
    if version < OLDEST {
        return Err(Failure::DriverTooOld { found: version.to_string(), needed: OLDEST.to_string() });
    }
    let api = Api::load(library).map_err(|error| bad(reason(error)))?;
    // SAFETY: no flags are defined.
    match unsafe { (api.cuInit)(0) } {
        STUB => Err(Failure::DriverStub { path }),
        started => Ok(Libcuda { path, version, started, api }),
    }
}
