//! What is known of GPUs on this machine: whether the driver and the run-time compiler are there, and which GPUs the
//! driver reports. Both libraries are loaded when asked for; a machine without them is an answer, not an error.

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
