//! GPUs: memory, launches and graphs, on an NVIDIA GPU or on the emulator that runs the same kernels on the CPU.
//!
//! A [`Gpu`] lives as long as the program. Its work runs in order, on one stream. When something fails (no memory left, a
//! fault in a kernel), the device keeps the first [`Failure`] and does nothing more: launches return at once, downloads
//! give NaN. Whoever shows a result asks [`Gpu::check`] first. So ops need no `Result` for what is never their fault.

pub mod cache;
pub mod compile;
mod convert;
pub mod cuda;
mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
mod failure;
pub(crate) mod limits;
mod memory;
pub mod nvrtc;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

pub use cuda::{Found, Library, Probe, probe};
pub use driver::{Address, Description, Event, Kernel};
use driver::{Driver, GraphId, Launch};
pub use failure::Failure;
pub use memory::Buffer;
use memory::{Memory, Owner};

use crate::tensor::DType;

/// The embedded sources of the GPU kernels: file name and content.
pub const KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A device in use. It is never dropped: tensors anywhere may point into it.
pub type Handle = &'static Gpu;

pub struct Gpu {
    /// As on the command line: `cuda:0`, `emulator`.
    name: String,
    description: Description,
    driver: Box<dyn Driver>,
    memory: Mutex<Memory>,
    failure: Mutex<Option<Failure>>,
    launches: AtomicU64,
    /// Small tables that never change, by content.
    constants: Mutex<HashMap<Vec<u8>, Buffer>>,
}

/// Launches and copies that were recorded once, with the memory they touch.
pub struct Graph {
    gpu: Handle,
    id: GraphId,
    launches: u64,
}

/// A struct that is a kernel's parameter. `parameters!` makes them.
pub trait Parameters: bytemuck::Pod {}

/// Declares a kernel's parameter struct, laid out as its twin in the `.cu` file; both sides state the size.
#[macro_export]
macro_rules! parameters {
    ($(#[$doc:meta])* $visible:vis struct $name:ident: $size:literal bytes {
        $($(#[$field_doc:meta])* $field_visible:vis $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        $visible struct $name { $($(#[$field_doc])* $field_visible $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
        impl $crate::gpu::Parameters for $name {}
    };
}

impl Gpu {
    /// GPU `index` of those that the driver reports.
    pub fn cuda(index: usize) -> Result<Handle, Failure> {
        static OPEN: Mutex<Vec<(usize, Handle)>> = Mutex::new(Vec::new());
        let mut open = lock(&OPEN);
        if let Some((_, gpu)) = open.iter().find(|(known, _)| *known == index) {
            return Ok(gpu);
        }
        let gpu = Gpu::new(format!("cuda:{index}"), Box::new(cuda::Cuda::open(index)?));
        open.push((index, gpu));
        Ok(gpu)
    }

    /// A new emulator, whose blocks and threads run in an order that `seed` decides.
    #[cfg(feature = "emulator")]
    pub fn emulator(seed: u64) -> Result<Handle, Failure> {
        Ok(Gpu::on_emulator(emulator::Emulator::new(seed)))
    }

    #[cfg(feature = "emulator")]
    pub fn on_emulator(emulator: emulator::Emulator) -> Handle {
        Gpu::new("emulator".into(), Box::new(emulator))
    }

    #[cfg(not(feature = "emulator"))]
    pub fn emulator(_seed: u64) -> Result<Handle, Failure> {
        Err(Failure::NoEmulator)
    }

    fn new(name: String, driver: Box<dyn Driver>) -> Handle {
        let description = driver.describe();
        let memory = Mutex::new(Memory::default());
        let (failure, constants) = (Mutex::default(), Mutex::default());
        Box::leak(Box::new(Gpu { name, description, driver, memory, failure, launches: 0.into(), constants }))
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The first failure, if there was one. Does not wait for work under way; [`Gpu::synchronize`] does.
    pub fn check(&self) -> Result<(), Failure> {
        lock(&self.failure).clone().map_or(Ok(()), Err)
    }

    /// Waits for all work.
    pub fn synchronize(&self) -> Result<(), Failure> {
        self.run(|driver| driver.synchronize());
        self.check()
    }

    /// Launches so far, replayed ones included.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    /// How often memory had to be asked from the driver.
    pub fn allocations(&self) -> u64 {
        lock(&self.memory).allocations
    }

    /// The most bytes ever held.
    pub fn peak_memory(&self) -> usize {
        lock(&self.memory).peak
    }

    /// Waits for all work, and gives the driver back what nobody uses; the peak counts from here.
    pub fn release_unused(&self) -> Result<(), Failure> {
        self.synchronize()?;
        let mut memory = lock(&self.memory);
        memory.trim(&*self.driver);
        memory.peak = memory.held;
        Ok(())
    }

    pub fn allocate(&'static self, bytes: usize) -> Buffer {
        let bytes = bytes.max(1);
        // Taken outside of `run`, which a failure of another thread may be waiting for.
        let taken = match self.check() {
            Ok(()) => lock(&self.memory).take(&*self.driver, bytes).map_err(|failure| self.fail(failure)).ok(),
            Err(_) => None,
        };
        let (address, owner) = taken.unwrap_or((Address::NULL, Owner::Everybody));
        Buffer::new(self, address, bytes, owner)
    }

    /// A table on the device with this content: uploaded at the first call, kept for good.
    pub fn constant<T: bytemuck::NoUninit>(&'static self, table: &[T]) -> Address {
        let bytes: &[u8] = bytemuck::cast_slice(table);
        if let Some(known) = lock(&self.constants).get(bytes) {
            return known.address();
        }
        let buffer = self.allocate(bytes.len());
        self.upload(buffer.address(), bytes);
        lock(&self.constants).entry(bytes.to_vec()).or_insert(buffer).address()
    }

    fn give_back(&self, address: Address, bytes: usize, owner: Owner) {
        lock(&self.memory).give_back(address, bytes, owner);
    }

    pub fn upload(&self, to: Address, bytes: &[u8]) {
        self.run(|driver| driver.upload(to, bytes));
    }

    /// Fills `bytes` with 0xFF, a NaN in every floating-point type, if the device has failed.
    pub fn download(&self, from: Address, bytes: &mut [u8]) {
        self.run(|driver| driver.download(from, bytes));
        if self.check().is_err() {
            bytes.fill(0xFF);
        }
    }

    pub fn copy(&self, to: Address, from: Address, bytes: usize) {
        self.run(|driver| driver.copy(to, from, bytes));
    }

    pub fn fill(&self, to: Address, byte: u8, bytes: usize) {
        self.run(|driver| driver.fill(to, byte, bytes));
    }

    /// Runs kernel `name` of `kernels/<file>.cu`, compiled for activations of `dtype`.
    ///
    /// # Safety
    /// The kernel takes a `P`; the addresses in it lie on this device and reach as far as the kernel reads and writes; and
    /// `grid` and `threads` are what it expects.
    pub unsafe fn launch<P: Parameters>(
        &self,
        file: &'static str,
        name: &'static str,
        dtype: DType,
        grid: [u32; 3],
        threads: u32,
        parameters: &P,
    ) {
        if grid.contains(&0) {
            return;
        }
        self.launches.fetch_add(1, Ordering::Relaxed);
        let kernel = Kernel { file, name, dtype: compile::storage(file, dtype) };
        let parameters = bytemuck::bytes_of(parameters);
        self.run(|driver| driver.launch(&Launch { kernel, grid, threads, parameters }));
    }

    /// Compiles and loads a kernel ahead of its first launch.
    pub fn prepare(&self, file: &'static str, name: &'static str, dtype: DType) {
        self.run(|driver| driver.prepare(Kernel { file, name, dtype: compile::storage(file, dtype) }));
    }

    pub fn record_event(&self) -> Option<Event> {
        let mut event = None;
        self.run(|driver| {
            event = Some(driver.record_event()?);
            Ok(())
        });
        event
    }

    pub fn milliseconds(&self, from: Event, to: Event) -> Result<f32, Failure> {
        self.check()?;
        self.driver.milliseconds(from, to)
    }

    /// Records what `work` launches instead of running it. What `work` allocates, and must drop before it
    /// returns, belongs to graphs from then on; it may neither upload nor download, and no other thread may use the device.
    pub fn capture(&'static self, work: impl FnOnce()) -> Result<Graph, Failure> {
        self.run(|driver| driver.begin_capture());
        self.check()?;
        lock(&self.memory).begin_capture();
        let before = self.launches();
        work();
        let launches = self.launches() - before;
        lock(&self.memory).end_capture();
        let id = self.driver.end_capture();
        self.launches.store(before, Ordering::Relaxed);
        match self.check().and(id) {
            Ok(id) => Ok(Graph { gpu: self, id, launches }),
            Err(failure) => {
                lock(&self.memory).release();
                self.fail(failure.clone());
                Err(failure)
            }
        }
    }

    /// Runs `work` on the driver unless the device has failed, and keeps its failure.
    fn run(&self, work: impl FnOnce(&dyn Driver) -> Result<(), Failure>) {
        if self.check().is_ok()
            && let Err(failure) = work(&*self.driver)
        {
            self.fail(failure);
        }
    }

    fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
    }
}

impl Graph {
    /// How many kernels one replay runs.
    pub fn launches(&self) -> u64 {
        self.launches
    }

    pub fn replay(&self) {
        self.gpu.launches.fetch_add(self.launches, Ordering::Relaxed);
        self.gpu.run(|driver| driver.replay(self.id));
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.run(|driver| {
            driver.drop_graph(self.id);
            Ok(())
        });
        lock(&self.gpu.memory).release();
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Gpu) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Gpu {}

/// A panic while one of these locks was held cannot have left its content inconsistent: nothing inside can fail half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
