//! NVIDIA GPUs, through the driver's own functions (`libcuda` finds them).
//!
//! cudarc's safe layer stands between a program and what is needed here: it records events for each allocation, cannot
//! capture on the stream it starts with, and makes events that do not measure time.
//!
//! Nothing here is ever dropped: at exit the driver may be gone before the last of our destructors.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUevent, CUevent_flags, CUfunction, CUfunction_attribute, CUgraphExec,
    CUlaunchAttribute, CUlaunchAttributeID, CUlaunchConfig, CUmodule, CUresult, CUstream, CUstream_flags,
    CUstreamCaptureMode, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use super::cache::Cache;
use super::compile::{self, KernelFacts, Source};
use super::driver::{Address, Description, Driver, Event, GraphId, Kernel, Launch, Mark, PIECE, Stream, TensorCores};
use super::libcuda::{self, Api};
use super::library::Status;
use super::nvrtc::{self, Nvrtc, Version};
use super::tensor_map::{Images, Mapped, TensorMap};
use super::{Failure, lock};
use crate::dtype::DType;

/// Uploads wait in pinned memory for their copy: so many buffers of so many bytes.
const SLOTS: usize = 4;
const SLOT_BYTES: usize = PIECE;

/// Uploads that share a buffer begin at multiples of this.
const ALIGNMENT: usize = 64;

/// Events that are remembered; older ones are used again.
const EVENTS: usize = 4096;

/// The same of marks. Who waits for an older one waits for a later one, which is behind it.
const MARKS: usize = 64;

// ---- what is here ---------------------------------------------------------------------------------------------------

/// The libraries and GPUs that a look around found.
pub struct Probe {
    /// libcuda, and the version of CUDA that it supports.
    pub driver: Result<Library, Failure>,
    /// libnvrtc.
    pub compiler: Result<Library, Failure>,
    pub gpus: Vec<Found>,
}

pub struct Library {
    pub path: PathBuf,
    pub version: Version,
}

/// A GPU, and whether kernels can be compiled for it.
pub struct Found {
    pub description: Description,
    pub usable: Result<(), Failure>,
}

impl Probe {
    /// The GPU that is taken where none is asked for: the first that can be used, or why there is none.
    pub fn first(&self) -> Result<usize, Failure> {
        for problem in [&self.driver, &self.compiler] {
            problem.as_ref().map_err(Failure::clone)?;
        }
        match self.gpus.iter().position(|gpu| gpu.usable.is_ok()) {
            Some(index) => Ok(index),
            None => {
                self.gpus.first().map_or(Ok(()), |gpu| gpu.usable.clone())?;
                Err(Failure::NoDevice { index: 0, count: 0 })
            }
        }
    }
}

/// Looks at the driver, the compiler and the GPUs, and touches no GPU's memory.
pub fn probe() -> Probe {
    let compiler = nvrtc::compiler();
    let found = |index| {
        let description = describe(initialise().ok()?, device(index).ok()?).ok()?;
        let usable = compiler.as_ref().map_err(Failure::clone);
        let usable = usable.and_then(|nvrtc| nvrtc.check(&description.architecture));
        Some(Found { description, usable })
    };
    let gpus = (0..device_count().unwrap_or(0)).map_while(found).collect();
    let driver = initialise().and_then(|_| libcuda::driver());
    Probe {
        driver: driver.map(|libcuda| Library { path: libcuda.path.clone(), version: libcuda.version }),
        compiler: compiler.map(|nvrtc| Library { path: nvrtc.path.clone(), version: nvrtc.version }),
        gpus,
    }
}

/// The driver's functions, where it is ready. A machine with a driver and no GPU is fine.
fn initialise() -> Result<&'static Api, Failure> {
    let libcuda = libcuda::driver()?;
    let api = &libcuda.api;
    match libcuda.started {
        SUCCESS | NO_DEVICE => Ok(api),
        code => Err(Refused { api, call: "cuInit", code }.explain(None)),
    }
}

fn device_count() -> Result<usize, Failure> {
    let api = initialise()?;
    let mut count: c_int = 0;
    // SAFETY: the function writes to the integer that it is given.
    match unsafe { call!(api, cuDeviceGetCount(&mut count)) } {
        // `cuInit` says the same where there is no GPU.
        Err(Refused { code: NO_DEVICE | NOT_INITIALIZED, .. }) => Ok(0),
        result => result.map(|()| count.unsigned_abs() as usize).map_err(|error| error.explain(None)),
    }
}

fn device(index: usize) -> Result<CUdevice, Failure> {
    let count = device_count()?;
    if index >= count {
        return Err(Failure::NoDevice { index, count });
    }
    let (api, mut device) = (initialise()?, 0);
    // SAFETY: the function writes to the integer that it is given.
    unsafe { call!(api, cuDeviceGet(&mut device, index as c_int)) }.map_err(|error| error.explain(None))?;
    Ok(device)
}

fn describe(api: &'static Api, device: CUdevice) -> Result<Description, Failure> {
    use CUdevice_attribute::*;
    let attribute = |which| {
        let mut value: c_int = 0;
        // SAFETY: the function writes to the integer that it is given.
        unsafe { call!(api, cuDeviceGetAttribute(&mut value, which, device)) }.map(|()| value.unsigned_abs())
    };
    let ask = || {
        let mut name = [0u8; 256];
        let mut memory = 0;
        // SAFETY: the functions write at most as many bytes as they are told, and one number.
        unsafe {
            call!(api, cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device))?;
            call!(api, cuDeviceTotalMem_v2(&mut memory, device))?;
        }
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        let architecture = architecture(major, minor);
        let tensor_cores = TensorCores::of(&architecture);
        let warpgroups = architecture == "sm_90a";
        Ok(Description { name, architecture, multiprocessors, memory, tensor_cores, warpgroups })
    };
    ask().map_err(|error: Refused| error.explain(None))
}

/// As the compiler names it; on Hopper with the instructions that only Hopper has.
fn architecture(major: u32, minor: u32) -> String {
    let own = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

// ---- errors ---------------------------------------------------------------------------------------------------------

/// A call that the driver refused, or that brings the news of an earlier one's fault.
#[derive(Clone, Copy)]
struct Refused {
    /// Knows the code's name.
    api: &'static Api,
    call: &'static str,
    code: Status,
}

const SUCCESS: Status = CUresult::CUDA_SUCCESS as Status;
const OUT_OF_MEMORY: Status = CUresult::CUDA_ERROR_OUT_OF_MEMORY as Status;
const NOT_INITIALIZED: Status = CUresult::CUDA_ERROR_NOT_INITIALIZED as Status;
const NO_DEVICE: Status = CUresult::CUDA_ERROR_NO_DEVICE as Status;
const NOT_FOUND: Status = CUresult::CUDA_ERROR_NOT_FOUND as Status;

/// Errors that a kernel can cause, and a call after it tells.
const FAULTS: [CUresult; 13] = {
    use CUresult::*;
    [
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUDA_ERROR_LAUNCH_FAILED,
        CUDA_ERROR_LAUNCH_TIMEOUT,
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        CUDA_ERROR_ASSERT,
        CUDA_ERROR_ECC_UNCORRECTABLE,
        CUDA_ERROR_NVLINK_UNCORRECTABLE,
        CUDA_ERROR_CONTAINED,
    ]
};

/// The binary itself is refused.
const OF_BINARIES: [CUresult; 5] = {
    use CUresult::*;
    [
        CUDA_ERROR_INVALID_IMAGE,
        CUDA_ERROR_NO_BINARY_FOR_GPU,
        CUDA_ERROR_INVALID_SOURCE,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        CUDA_ERROR_INSUFFICIENT_LOADER_VERSION,
    ]
};

/// The work that ran last: a fault is noticed by a later call.
#[derive(Clone, Copy)]
enum Last {
    Kernel(Kernel),
    Graph,
}

/// `call!(api, cuFunction(arguments))`: anything but success is a [`Refused`].
macro_rules! call {
    ($api:expr, $function:ident($($argument:expr),*)) => {
        match ($api.$function)($($argument),*) {
            SUCCESS => Ok(()),
            code => Err(Refused { api: $api, call: stringify!($function), code }),
        }
    };
}
use call;

impl Refused {
    fn is_among(self, codes: &[CUresult]) -> bool {
        codes.iter().any(|code| *code as Status == self.code)
    }

    fn explain(self, last: Option<Last>) -> Failure {
        let what = self.describe();
        if !self.is_among(&FAULTS) {
            return Failure::Driver { call: self.call, message: what };
        }
        let place = match last {
            Some(Last::Kernel(kernel)) => {
                format!(" at or before kernel {} of kernels/{}.cu", kernel.symbol(), kernel.file)
            }
            Some(Last::Graph) => " in a recorded step, or before it".into(),
            None => String::new(),
        };
        Failure::Fault { message: format!("the GPU reports {what}{place} (CUDA_LAUNCH_BLOCKING=1 tells more exactly)") }
    }

    /// `CUDA_ERROR_ASSERT (device-side assert triggered)`.
    fn describe(self) -> String {
        let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
        // SAFETY: both write a pointer to a string of the driver's own, or null for what it does not know.
        unsafe {
            (self.api.cuGetErrorName)(self.code, &mut name);
            (self.api.cuGetErrorString)(self.code, &mut text);
        }
        let string = |pointer: *const std::ffi::c_char| {
            // SAFETY: as above.
            (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
        };
        match (string(name), string(text)) {
            (Some(name), Some(text)) => format!("{name} ({text})"),
            (Some(name), None) => name,
            _ => format!("error {}, which the driver has no name for", self.code),
        }
    }
}

// ---- one GPU --------------------------------------------------------------------------------------------------------

/// A GPU with its primary context and one stream.
pub struct Cuda {
    api: &'static Api,
    description: Description,
    nvrtc: &'static Nvrtc,
    driver: Version,
    cache: Option<Cache>,
    context: CUcontext,
    stream: CUstream,
    /// Of uploads beside the work.
    copies: CUstream,
    is_recording: AtomicBool,
    last: Mutex<Option<Last>>,
    code: Mutex<Code>,
    uploads: Mutex<Uploads>,
    uploads_beside: Mutex<Uploads>,
    marks: Mutex<Marks>,
    /// Pinned memory for downloads, [`SLOT_BYTES`] of it.
    downloads: Mutex<Option<*mut u8>>,
    events: Mutex<Events>,
    graphs: Mutex<Graphs>,
}

// SAFETY: the pointers are handles of the driver, which any thread may use once the context is current there, and pinned
// memory, which is behind a lock.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// The code that was loaded: modules by file and storage type.
#[derive(Default)]
struct Code {
    functions: HashMap<Kernel, Function>,
    modules: HashMap<(&'static str, DType), Loaded>,
}

/// A module, and what its kernels need.
struct Loaded {
    module: CUmodule,
    kernels: Vec<KernelFacts>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: CUfunction,
    /// Bytes of dynamic shared memory that it may be launched with.
    dynamic_shared: u32,
}

#[derive(Default)]
struct Events {
    /// By number modulo [`EVENTS`], with the number of the last one that was recorded there.
    handles: Vec<(u64, CUevent)>,
    count: u64,
}

#[derive(Default)]
struct Graphs {
    ready: HashMap<u64, CUgraphExec>,
    last: u64,
}

/// Points in the streams, by number modulo [`MARKS`].
#[derive(Default)]
struct Marks {
    handles: Vec<CUevent>,
    count: u64,
}

/// Pinned buffers that are filled in turn.
#[derive(Default)]
struct Uploads {
    slots: Vec<Slot>,
    current: usize,
}

struct Slot {
    memory: *mut u8,
    used: usize,
    /// After the last copy out of it.
    copied: CUevent,
}

impl Cuda {
    /// GPU `index`, with a compiler that knows it.
    pub fn open(index: usize) -> Result<Cuda, Failure> {
        let device = device(index)?;
        let api = initialise()?;
        let description = describe(api, device)?;
        let nvrtc = nvrtc::compiler()?;
        nvrtc.check(&description.architecture)?;
        let (mut context, mut stream, mut copies) = (null_mut(), null_mut(), null_mut());
        let mut start = || {
            // SAFETY: the functions write handles to where they are told. A stream that is not the default one can be
            // captured; one that does not block waits for nobody who uses the default one.
            unsafe {
                call!(api, cuDevicePrimaryCtxRetain(&mut context, device))?;
                call!(api, cuCtxSetCurrent(context))?;
                call!(api, cuStreamCreate(&mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint))?;
                call!(api, cuStreamCreate(&mut copies, CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint))
            }
        };
        start().map_err(|error: Refused| error.explain(None))?;
        Ok(Cuda {
            api,
            description,
            nvrtc,
            driver: libcuda::driver()?.version,
            cache: Cache::of_user(),
            context,
            stream,
            copies,
            is_recording: false.into(),
            last: Mutex::default(),
            code: Mutex::default(),
            uploads: Mutex::default(),
            uploads_beside: Mutex::default(),
            marks: Mutex::default(),
            downloads: Mutex::default(),
            events: Mutex::default(),
            graphs: Mutex::default(),
        })
    }

    /// Every call begins so: which context is current is a thread's own affair, and any thread may call.
    fn enter(&self) -> Result<(), Refused> {
        // SAFETY: the context is never released.
        unsafe { call!(self.api, cuCtxSetCurrent(self.context)) }
    }

    /// For what waits or copies to the host.
    fn enter_outside_of_a_graph(&self, call: &'static str) -> Result<(), Failure> {
        if self.is_recording.load(Ordering::SeqCst) {
            return Err(Failure::Recording { call });
        }
        self.explained(self.enter())
    }

    fn explained<T>(&self, result: Result<T, Refused>) -> Result<T, Failure> {
        result.map_err(|error| error.explain(*lock(&self.last)))
    }

    fn wait(&self) -> Result<(), Refused> {
        // SAFETY: the stream exists.
        unsafe { call!(self.api, cuStreamSynchronize(self.stream)) }
    }

    /// The kernel's entry point; loads its module where that has not happened yet.
    fn function(&self, kernel: Kernel) -> Result<Function, Failure> {
        let mut code = lock(&self.code);
        if let Some(function) = code.functions.get(&kernel) {
            return Ok(*function);
        }
        let Loaded { module, kernels } = match code.modules.entry((kernel.file, kernel.dtype)) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => place.insert(self.load(kernel)?),
        };
        let (module, symbol) = (*module, kernel.symbol());
        let facts = kernels.iter().find(|facts| facts.symbol == symbol);
        let carve_out = facts.and_then(|facts| facts.carve_out(&self.description.architecture, 0));
        let symbol = CString::new(symbol).expect("a name in the source");
        let mut handle = null_mut();
        // SAFETY: the module is never unloaded, the name ends with a zero.
        match unsafe { call!(self.api, cuModuleGetFunction(&mut handle, module, symbol.as_ptr())) } {
            Err(Refused { call, code: NOT_FOUND, .. }) => {
                let message = format!("kernels/{}.cu has no kernel {}", kernel.file, kernel.symbol());
                return Err(Failure::Driver { call, message });
            }
            result => self.explained(result)?,
        }
        self.explained(carve_out.map_or(Ok(()), |percent| self.carve_out(handle, percent)))?;
        let function = Function { handle, dynamic_shared: 0 };
        code.functions.insert(kernel, function);
        Ok(function)
    }

    /// Says how much of a processor's memory is to be shared memory while the kernel runs; the driver rounds it up to what there is. By itself it
    /// may leave room for fewer blocks than would fit.
    fn carve_out(&self, function: CUfunction, percent: u32) -> Result<(), Refused> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function exists.
        unsafe { call!(self.api, cuFuncSetAttribute(function, attribute, percent as c_int)) }
    }

    /// Lets the kernel be launched with so much dynamic shared memory. 48 KiB need no permission, with what the kernel
    /// declares; who asks for all of it need not know how much that is.
    fn allow(&self, kernel: Kernel, function: Function, dynamic_shared: u32) -> Result<(), Refused> {
        if dynamic_shared <= function.dynamic_shared {
            return Ok(());
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function exists.
        unsafe { call!(self.api, cuFuncSetAttribute(function.handle, attribute, dynamic_shared as c_int)) }?;
        let percent = lock(&self.code).modules.get(&(kernel.file, kernel.dtype)).and_then(|loaded| {
            let facts = loaded.kernels.iter().find(|facts| facts.symbol == kernel.symbol())?;
            facts.carve_out(&self.description.architecture, dynamic_shared)
        });
        percent.map_or(Ok(()), |percent| self.carve_out(function.handle, percent))?;
        lock(&self.code).functions.insert(kernel, Function { dynamic_shared, ..function });
        Ok(())
    }

    fn load(&self, kernel: Kernel) -> Result<Loaded, Failure> {
        let architecture = &self.description.architecture;
        let text = compile::text(kernel.file);
        let Some(text) = text else {
            let log = "there is no such file".to_string();
            return Err(Failure::Compile { file: kernel.file.to_string(), architecture: architecture.clone(), log });
        };
        let source = Source { file: kernel.file, text, dtype: kernel.dtype };
        let compiled = compile::compile(self.nvrtc, self.cache.as_ref(), &source, architecture)?;
        let mut module = null_mut();
        // SAFETY: the image is a whole binary, which knows its own length.
        match unsafe { call!(self.api, cuModuleLoadData(&mut module, compiled.cubin.as_ptr().cast())) } {
            Err(error) if error.is_among(&OF_BINARIES) => Err(Failure::CompilerTooNew {
                driver: self.driver.to_string(),
                compiler: self.nvrtc.version.to_string(),
                message: error.describe(),
            }),
            result => self.explained(result).map(|()| Loaded { module, kernels: compiled.kernels }),
        }
    }

    fn stream(&self, stream: Stream) -> CUstream {
        match stream {
            Stream::Work => self.stream,
            Stream::Copies => self.copies,
        }
    }

    /// Copies a piece of at most [`SLOT_BYTES`] to pinned memory and from there, in the order of the stream, to the GPU.
    fn upload_piece(&self, stream: CUstream, uploads: &mut Uploads, to: Address, bytes: &[u8]) -> Result<(), Refused> {
        if uploads.slots.get(uploads.current).is_some_and(|slot| slot.used + bytes.len() > SLOT_BYTES) {
            uploads.current = (uploads.current + 1) % SLOTS;
            if let Some(slot) = uploads.slots.get_mut(uploads.current) {
                // SAFETY: the event exists. What it marks is the last copy out of this buffer.
                unsafe { call!(self.api, cuEventSynchronize(slot.copied)) }?;
                slot.used = 0;
            }
        }
        if uploads.current == uploads.slots.len() {
            let mut copied = null_mut();
            // SAFETY: the function writes a handle to where it is told.
            unsafe { call!(self.api, cuEventCreate(&mut copied, CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint)) }?;
            uploads.slots.push(Slot { memory: pinned(self.api)?, used: 0, copied });
        }
        let slot = &mut uploads.slots[uploads.current];
        // SAFETY: from `used` on nobody reads the buffer, and there is room; the copy may not outlive what it reads,
        // which stays until the event after it.
        unsafe {
            let staged = slot.memory.add(slot.used);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), staged, bytes.len());
            call!(self.api, cuMemcpyHtoDAsync_v2(to.0, staged.cast::<c_void>(), bytes.len(), stream))?;
            call!(self.api, cuEventRecord(slot.copied, stream))?;
        }
        slot.used = (slot.used + bytes.len()).next_multiple_of(ALIGNMENT);
        Ok(())
    }

    fn finish_recording(&self) -> Result<CUgraphExec, Refused> {
        let (mut graph, mut ready) = (null_mut(), null_mut());
        // SAFETY: the stream is capturing; the graph is not used after it was destroyed, and what was made of it does
        // not need it.
        unsafe {
            call!(self.api, cuStreamEndCapture(self.stream, &mut graph))?;
            let result = call!(self.api, cuGraphInstantiateWithFlags(&mut ready, graph, 0));
            call!(self.api, cuGraphDestroy(graph))?;
            result?;
        }
        Ok(ready)
    }
}

fn cluster_attribute([x, y, z]: [u32; 3]) -> CUlaunchAttribute {
    // SAFETY: whole numbers in a union of plain data, for which zeros are values.
    let mut attribute: CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    (attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z) = (x, y, z);
    attribute
}

/// [`SLOT_BYTES`] of memory that the GPU can read while the host goes on.
fn pinned(api: &'static Api) -> Result<*mut u8, Refused> {
    let mut memory = null_mut();
    // SAFETY: the function writes a pointer to where it is told.
    unsafe { call!(api, cuMemAllocHost_v2(&mut memory, SLOT_BYTES)) }?;
    Ok(memory.cast())
}

impl Driver for Cuda {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Failure> {
        self.explained(self.enter())?;
        let mut address = 0;
        // SAFETY: the function writes an address to where it is told.
        match unsafe { call!(self.api, cuMemAlloc_v2(&mut address, bytes)) } {
            Err(Refused { code: OUT_OF_MEMORY, .. }) => {
                let (mut free, mut total) = (0, 0);
                // SAFETY: the function writes two numbers.
                self.explained(unsafe { call!(self.api, cuMemGetInfo_v2(&mut free, &mut total)) })?;
                Err(Failure::OutOfMemory { requested: bytes, free, total })
            }
            result => self.explained(result).map(|()| Address(address)),
        }
    }

    fn free(&self, address: Address, _bytes: usize) {
        // An error here is an earlier one's, and shows again at the next call. Work under way may still use the memory.
        // While a graph is recorded nothing may wait on the stream; the driver then waits by itself.
        let _ = self.enter();
        if !self.is_recording.load(Ordering::SeqCst) {
            let _ = self.wait();
        }
        // SAFETY: the address came from `cuMemAlloc`, and its owner gave it up.
        let _: Result<(), Refused> = unsafe { call!(self.api, cuMemFree_v2(address.0)) };
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        self.enter_outside_of_a_graph("an upload")?;
        let mut uploads = lock(&self.uploads);
        for (index, piece) in bytes.chunks(SLOT_BYTES).enumerate() {
            self.explained(self.upload_piece(self.stream, &mut uploads, to.offset(index * SLOT_BYTES), piece))?;
        }
        Ok(())
    }

    fn upload_beside(&self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        assert!(bytes.len() <= PIECE, "{} bytes at a time", bytes.len());
        self.explained(self.enter())?;
        self.explained(self.upload_piece(self.copies, &mut lock(&self.uploads_beside), to, bytes))
    }

    fn mark(&self, of: Stream) -> Result<Mark, Failure> {
        self.explained(self.enter())?;
        let mut marks = lock(&self.marks);
        let slot = marks.count as usize % MARKS;
        if slot == marks.handles.len() {
            let mut event = null_mut();
            let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
            // SAFETY: the function writes a handle to where it is told.
            self.explained(unsafe { call!(self.api, cuEventCreate(&mut event, flags)) })?;
            marks.handles.push(event);
        }
        // SAFETY: event and stream exist.
        self.explained(unsafe { call!(self.api, cuEventRecord(marks.handles[slot], self.stream(of))) })?;
        marks.count += 1;
        Ok(Mark(marks.count - 1))
    }

    fn wait(&self, stream: Stream, mark: Mark) -> Result<(), Failure> {
        self.explained(self.enter())?;
        let event = lock(&self.marks).handles[mark.0 as usize % MARKS];
        // SAFETY: stream and event exist.
        self.explained(unsafe { call!(self.api, cuStreamWaitEvent(self.stream(stream), event, 0)) })
    }

    fn settle_copies(&self) -> Result<(), Failure> {
        self.explained(self.enter())?;
        // SAFETY: the stream exists, and is never captured.
        self.explained(unsafe { call!(self.api, cuStreamSynchronize(self.copies)) })
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), Failure> {
        self.enter_outside_of_a_graph("a download")?;
        let mut downloads = lock(&self.downloads);
        let staged = match *downloads {
            Some(staged) => staged,
            None => *downloads.insert(self.explained(pinned(self.api))?),
        };
        for (index, piece) in bytes.chunks_mut(SLOT_BYTES).enumerate() {
            let from = from.offset(index * SLOT_BYTES).0;
            // SAFETY: the pinned memory holds a piece, nobody else has it, and it is read after the copy is done.
            let copied =
                unsafe { call!(self.api, cuMemcpyDtoHAsync_v2(staged.cast(), from, piece.len(), self.stream)) };
            self.explained(copied.and_then(|()| self.wait()))?;
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(staged, piece.as_mut_ptr(), piece.len()) };
        }
        Ok(())
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Failure> {
        self.explained(self.enter())?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both places belong to the caller.
        self.explained(unsafe { call!(self.api, cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream)) })
    }

    fn fill(&self, to: Address, byte: u8, bytes: usize) -> Result<(), Failure> {
        self.explained(self.enter())?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the place belongs to the caller.
        self.explained(unsafe { call!(self.api, cuMemsetD8Async(to.0, byte, bytes, self.stream)) })
    }

    fn prepare(&self, kernel: Kernel) -> Result<(), Failure> {
        self.explained(self.enter())?;
        self.function(kernel).map(drop)
    }

    fn compiles_ahead(&self) -> bool {
        // Without a cache there is nowhere to put them.
        self.cache.is_some()
    }

    fn compile_ahead(&self, kernels: &[Kernel]) {
        if self.compiles_ahead() {
            let is_needed = |source: &Source| {
                kernels.iter().any(|kernel| (kernel.file, kernel.dtype) == (source.file, source.dtype))
            };
            let sources = compile::sources(&self.description.architecture);
            let needed: Vec<Source> = sources.into_iter().filter(is_needed).collect();
            let _ = compile::compile_all(self.nvrtc, self.cache.as_ref(), &needed, &self.description.architecture);
        }
    }

    fn launch(&self, launch: &Launch) -> Result<(), Failure> {
        self.explained(self.enter())?;
        let function = self.function(launch.kernel)?;
        *lock(&self.last) = Some(Last::Kernel(launch.kernel));
        let ([x, y, z], blocks) = (launch.grid, launch.blocks);
        let mut clusters = cluster_attribute(blocks.cluster);
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: blocks.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: blocks.dynamic_shared,
            hStream: self.stream,
            attrs: &mut clusters,
            // A GPU without clusters refuses the attribute, whatever it says.
            numAttrs: blocks.are_clustered().into(),
        };
        // The driver copies what this points to before it returns.
        let mut parameters = [launch.parameters.as_ptr().cast_mut().cast::<c_void>()];
        let launched = self.allow(launch.kernel, function, blocks.dynamic_shared).and_then(|()| {
            // SAFETY: the kernel has one parameter, of the size that both sides state; what it does with the addresses in
            // it is what `Gpu::launch` asks its callers to answer for.
            unsafe { call!(self.api, cuLaunchKernelEx(&config, function.handle, parameters.as_mut_ptr(), null_mut())) }
        });
        self.explained(launched).map_err(|failure| match failure {
            Failure::Driver { call, message } => Failure::Driver { call, message: format!("{message}: {launch}") },
            other => other,
        })
    }

    fn encode(&self, mapped: &Mapped) -> Result<TensorMap, Failure> {
        self.explained(self.enter())?;
        let mut map = CUtensorMap { opaque: [0; 16] };
        let dtype = match mapped.dtype() {
            DType::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            // Numbers of f32 are rounded as they are copied.
            DType::TF32 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
            _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let address = mapped.address().0 as *mut c_void;
        let (sizes, pitches) = (mapped.sizes(), mapped.pitches());
        let rank = sizes.len() as u32;
        let interleave = CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        let swizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        // What lies beside a line is read soon: the next channels, or the next pixel.
        let l2 = CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        // Zeros.
        let outside = CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        // SAFETY: the functions read as many numbers as the rank says, of pitches one less and of corners two less, and write a map.
        let encoded = unsafe {
            match mapped {
                Mapped::Matrix(_) => {
                    let (sizes_of_box, strides) = ([mapped.line(), mapped.lines()], [1, 1]);
                    call!(
                        self.api,
                        cuTensorMapEncodeTiled(
                            &mut map,
                            dtype,
                            rank,
                            address,
                            sizes.as_ptr(),
                            pitches.as_ptr(),
                            sizes_of_box.as_ptr(),
                            strides.as_ptr(),
                            interleave,
                            swizzle,
                            l2,
                            outside
                        )
                    )
                }
                Mapped::Images(Images { lower: [top, left], upper: [bottom, right], strides: [h, w], .. }) => {
                    // From the innermost dimension on, as the sizes.
                    let (lower, upper, strides) = ([*left, *top], [*right, *bottom], [1, *w, *h, 1]);
                    call!(
                        self.api,
                        cuTensorMapEncodeIm2col(
                            &mut map,
                            dtype,
                            rank,
                            address,
                            sizes.as_ptr(),
                            pitches.as_ptr(),
                            lower.as_ptr(),
                            upper.as_ptr(),
                            mapped.line(),
                            mapped.lines(),
                            strides.as_ptr(),
                            interleave,
                            swizzle,
                            l2,
                            outside
                        )
                    )
                }
            }
        };
        self.explained(encoded).map(|()| TensorMap(map.opaque))
    }

    fn synchronize(&self) -> Result<(), Failure> {
        self.enter_outside_of_a_graph("waiting")?;
        self.explained(self.wait())
    }

    fn record_event(&self) -> Result<Event, Failure> {
        self.enter_outside_of_a_graph("an event")?;
        let mut events = lock(&self.events);
        let number = events.count;
        let slot = number as usize % EVENTS;
        if slot == events.handles.len() {
            let mut event = null_mut();
            // SAFETY: the function writes a handle to where it is told. Only such an event measures time.
            self.explained(unsafe {
                call!(self.api, cuEventCreate(&mut event, CUevent_flags::CU_EVENT_DEFAULT as c_uint))
            })?;
            events.handles.push((number, event));
        }
        events.handles[slot].0 = number;
        // SAFETY: event and stream exist.
        self.explained(unsafe { call!(self.api, cuEventRecord(events.handles[slot].1, self.stream)) })?;
        events.count += 1;
        Ok(Event(number))
    }

    fn milliseconds(&self, from: Event, to: Event) -> Result<f32, Failure> {
        self.explained(self.enter())?;
        let find = |event: Event| match lock(&self.events).handles.get(event.0 as usize % EVENTS) {
            Some((number, handle)) if *number == event.0 => Ok(*handle),
            _ => Err(Failure::Driver { call: "an event", message: format!("more than {EVENTS} came after it") }),
        };
        let (from, to) = (find(from)?, find(to)?);
        let mut milliseconds = 0.0;
        // SAFETY: both events were recorded.
        self.explained(unsafe { call!(self.api, cuEventSynchronize(to)) })?;
        // SAFETY: as above.
        self.explained(unsafe { call!(self.api, cuEventElapsedTime(&mut milliseconds, from, to)) })?;
        Ok(milliseconds)
    }

    fn begin_capture(&self) -> Result<(), Failure> {
        self.explained(self.enter())?;
        // Memory may be allocated and modules loaded while the graph is recorded; neither becomes part of it.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream exists and is not the default one.
        self.explained(unsafe { call!(self.api, cuStreamBeginCapture_v2(self.stream, mode)) })?;
        self.is_recording.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, Failure> {
        self.explained(self.enter())?;
        let ready = self.finish_recording();
        self.is_recording.store(false, Ordering::SeqCst);
        let ready = self.explained(ready)?;
        let mut graphs = lock(&self.graphs);
        graphs.last += 1;
        let id = graphs.last;
        graphs.ready.insert(id, ready);
        Ok(GraphId(id))
    }

    fn replay(&self, graph: GraphId) -> Result<(), Failure> {
        self.explained(self.enter())?;
        let ready = lock(&self.graphs).ready[&graph.0];
        *lock(&self.last) = Some(Last::Graph);
        // SAFETY: the graph was made and not dropped; the memory it touches is kept for it.
        self.explained(unsafe { call!(self.api, cuGraphLaunch(ready, self.stream)) })
    }

    fn drop_graph(&self, graph: GraphId) {
        // A replay may be under way. While another graph is recorded nothing can wait for it: then this one stays.
        if self.is_recording.load(Ordering::SeqCst) || self.enter().and_then(|()| self.wait()).is_err() {
            return;
        }
        if let Some(ready) = lock(&self.graphs).ready.remove(&graph.0) {
            // SAFETY: the graph was made, and runs no more.
            let _: Result<(), Refused> = unsafe { call!(self.api, cuGraphExecDestroy(ready)) };
        }
    }
}
