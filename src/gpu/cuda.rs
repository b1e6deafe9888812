//! NVIDIA GPUs, through cudarc's bindings of the driver, loaded at run time.

use super::Failure;
use super::driver::{Address, Description, Driver, Event, GraphId, Kernel, Launch};

/// What a look around found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// libcuda could be loaded.
    pub driver: bool,
    /// libnvrtc could be loaded.
    pub compiler: bool,
    /// The names of the GPUs.
    pub gpus: Vec<String>,
}

pub fn probe() -> Probe {
    // SAFETY: both functions only try to load a library, and keep it loaded if that succeeds.
    let (driver, compiler) =
        unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
    Probe { driver, compiler, gpus: if driver { names() } else { Vec::new() } }
}

/// Only with libcuda present: without it cudarc panics.
fn names() -> Vec<String> {
    let Ok(count) = cudarc::driver::CudaContext::device_count() else { return Vec::new() };
    (0..count as usize).filter_map(|index| cudarc::driver::CudaContext::new(index).ok()?.name().ok()).collect()
}

pub struct Cuda {}

impl Cuda {
    pub fn open(_index: usize) -> Result<Cuda, Failure> {
        Err(Failure::NoDriver)
    }
}

#[rustfmt::skip]
impl Driver for Cuda {
    fn describe(&self) -> Description { todo!() }
    fn allocate(&self, _bytes: usize) -> Result<Address, Failure> { todo!() }
    fn free(&self, _address: Address, _bytes: usize) { todo!() }
    fn upload(&self, _to: Address, _bytes: &[u8]) -> Result<(), Failure> { todo!() }
    fn download(&self, _from: Address, _bytes: &mut [u8]) -> Result<(), Failure> { todo!() }
    fn copy(&self, _to: Address, _from: Address, _bytes: usize) -> Result<(), Failure> { todo!() }
    fn fill(&self, _to: Address, _byte: u8, _bytes: usize) -> Result<(), Failure> { todo!() }
    fn prepare(&self, _kernel: Kernel) -> Result<(), Failure> { todo!() }
    fn launch(&self, _launch: &Launch) -> Result<(), Failure> { todo!() }
    fn synchronize(&self) -> Result<(), Failure> { todo!() }
    fn record_event(&self) -> Result<Event, Failure> { todo!() }
    fn milliseconds(&self, _from: Event, _to: Event) -> Result<f32, Failure> { todo!() }
    fn begin_capture(&self) -> Result<(), Failure> { todo!() }
    fn end_capture(&self) -> Result<GraphId, Failure> { todo!() }
    fn replay(&self, _graph: GraphId) -> Result<(), Failure> { todo!() }
    fn drop_graph(&self, _graph: GraphId) { todo!() }
}
