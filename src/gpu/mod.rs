//! GPUs: memory, launches and graphs, on an NVIDIA GPU or on the emulator that runs the same kernels on the CPU.
//!
//! A [`Gpu`] lives as long as the program. Its work runs in order, on one stream. When something fails (no memory left, a
//! fault in a kernel), the device keeps the first [`Failure`] and does nothing more: launches return at once, downloads
//! give NaN. Whoever shows a result asks [`Gpu::check`] first. So ops need no `Result` for what is never their fault.
//!
//! Any thread may use it. What one traces or records is its own: others wait until it is done.

pub mod cache;
pub mod compile;
mod convert;
mod cost;
pub mod cuda;
mod driver;
mod dry;
#[cfg(feature = "emulator")]
pub mod emulator;
mod failure;
pub mod libcuda;
pub mod library;
mod memory;
pub mod nvrtc;
pub(crate) mod plan;
mod staging;
pub mod tensor_map;
mod trace;
mod turn;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

pub use cost::Cost;
pub use cuda::{Found, Library, Probe, probe};
pub use driver::{Address, Blocks, Description, Event, Kernel, TensorCores};
use driver::{Driver, GraphId, Launch, PIECE};
pub use failure::Failure;
pub use memory::Buffer;
use memory::{ArenaId, Memory, Owner};
use plan::Log;
pub use plan::{Life, MemoryPlan};
use staging::Staging;
use tensor_map::Mapped;
pub use tensor_map::TensorMap;
use trace::Ledger;
pub use trace::{Trace, Work, WorkOf};
use turn::{Held, Turn};

use crate::dtype::DType;

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
    /// The ledger of what is launched while somebody keeps account.
    ledger: Mutex<Option<Ledger>>,
    /// Small tables that never change, by content.
    constants: Mutex<HashMap<Vec<u8>, Address>>,
    staging: Mutex<Staging>,
    rehearsal: OnceLock<Handle>,
    turn: Turn,
}

/// Launches and copies that were recorded once, with the memory they touch.
pub struct Graph {
    gpu: Handle,
    id: GraphId,
    work: Vec<Work>,
    launches: u64,
    arena: Option<ArenaId>,
}

/// Work being recorded. Dropped before it is finished, by a panic, it leaves the device as if nothing had been.
struct Recording {
    gpu: Handle,
    /// Other threads wait until it ends.
    _turn: Held<'static>,
    arena: Option<ArenaId>,
    /// Launches before.
    launches: u64,
    is_finished: bool,
}

/// The result of a recording.
struct Recorded {
    id: Result<GraphId, Failure>,
    work: Vec<Work>,
    launches: u64,
    /// Planned buffers that are still there.
    left: usize,
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

    /// A device that does nothing, for what is known without running: launches, bytes, memory. Its numbers are all zero.
    pub fn dry() -> Handle {
        Gpu::new("dry".into(), Box::new(dry::Dry::new(dry::nothing())))
    }

    /// One that is told to run the kernels that this one is.
    pub fn rehearsal(&self) -> Handle {
        self.rehearsal.get_or_init(|| Gpu::new("dry".into(), Box::new(dry::Dry::new(self.description().clone()))))
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

    /// [`Gpu::emulator`] whose tensor cores add as those of this architecture.
    #[cfg(feature = "emulator")]
    pub fn emulator_of(architecture: &str, seed: u64) -> Result<Handle, Failure> {
        let emulator = emulator::Emulator::new(seed)
            .with_tensor_cores(TensorCores::of(architecture))
            .with_warpgroups(architecture == "sm_90a");
        Ok(Gpu::new(format!("emulator:{architecture}"), Box::new(emulator)))
    }

    #[cfg(not(feature = "emulator"))]
    pub fn emulator(_seed: u64) -> Result<Handle, Failure> {
        Err(Failure::NoEmulator)
    }

    #[cfg(not(feature = "emulator"))]
    pub fn emulator_of(_architecture: &str, _seed: u64) -> Result<Handle, Failure> {
        Err(Failure::NoEmulator)
    }

    fn new(name: String, driver: Box<dyn Driver>) -> Handle {
        let description = driver.describe();
        let memory = Mutex::new(Memory::default());
        let (failure, ledger, constants) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (launches, staging, turn) = (0.into(), Mutex::default(), Turn::default());
        Box::leak(Box::new(Gpu {
            name,
            description,
            driver,
            memory,
            failure,
            launches,
            ledger,
            constants,
            staging,
            rehearsal: OnceLock::new(),
            turn,
        }))
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

    /// Bytes held now.
    pub fn held_memory(&self) -> usize {
        lock(&self.memory).held
    }

    /// Buffers of planned captures that did not keep to their plan.
    pub fn misfits(&self) -> u64 {
        lock(&self.memory).misfits
    }

    /// Waits for all work, and gives the driver back what nobody uses; the peak counts from here.
    pub fn release_unused(&self) -> Result<(), Failure> {
        self.synchronize()?;
        let _turn = self.turn.take();
        let mut memory = lock(&self.memory);
        memory.trim(&*self.driver);
        memory.peak = memory.held;
        Ok(())
    }

    pub fn allocate(&'static self, bytes: usize) -> Buffer {
        let (bytes, _turn) = (bytes.max(1), self.turn.take());
        // Taken outside of `run`, which a failure of another thread may be waiting for.
        let taken = match self.check() {
            Ok(()) => lock(&self.memory).take(&*self.driver, bytes).map_err(|failure| self.fail(failure)).ok(),
            Err(_) => None,
        };
        let (address, owner) = taken.unwrap_or((Address::NULL, Owner::Everybody));
        Buffer::new(self, address, bytes, owner)
    }

    /// A table on the device with this content: uploaded at the first call, also while work is recorded, and kept for good.
    pub fn constant<T: bytemuck::NoUninit>(&self, table: &[T]) -> Address {
        let bytes: &[u8] = bytemuck::cast_slice(table);
        let _turn = self.turn.take();
        let mut constants = lock(&self.constants);
        if let Some(known) = constants.get(bytes) {
            return *known;
        }
        let mut address = Address::NULL;
        self.run(|driver| {
            address = lock(&self.memory).take_for_good(driver, bytes.len().max(1))?;
            let upload = |(index, piece)| driver.upload_beside(address.offset(index * PIECE), piece);
            bytes.chunks(PIECE).enumerate().try_for_each(upload)?;
            driver.settle_copies()
        });
        if address != Address::NULL {
            constants.insert(bytes.to_vec(), address);
        }
        address
    }

    fn give_back(&self, address: Address, bytes: usize, owner: Owner) {
        let _turn = self.turn.take();
        lock(&self.memory).give_back(address, bytes, owner);
    }

    /// What is launched from now on sees these bytes; what was launched before, those that were there.
    pub fn upload(&self, to: Address, bytes: &[u8]) {
        self.run(|driver| {
            let allocate = |bytes| lock(&self.memory).take_for_good(driver, bytes).ok();
            let is_large = bytes.len() >= staging::LEAST && !lock(&self.memory).is_recording();
            if is_large && lock(&self.staging).upload(driver, to, bytes, allocate)? {
                return Ok(());
            }
            driver.upload(to, bytes)
        });
    }

    /// Fills `bytes` with 0xFF, a NaN in every floating-point type, if the device has failed.
    pub fn download(&self, from: Address, bytes: &mut [u8]) {
        self.run(|driver| driver.download(from, bytes));
        if self.check().is_err() {
            bytes.fill(0xFF);
        }
    }

    pub fn copy(&self, to: Address, from: Address, bytes: usize) {
        let _turn = self.turn.take();
        self.account(|| Cost::moving(bytes, bytes));
        self.enter(WorkOf::Copy);
        self.run(|driver| driver.copy(to, from, bytes));
    }

    pub fn fill(&self, to: Address, byte: u8, bytes: usize) {
        let _turn = self.turn.take();
        self.account(|| Cost::moving(0, bytes));
        self.enter(WorkOf::Fill);
        self.run(|driver| driver.fill(to, byte, bytes));
    }

    /// States what the next launch reads, writes and computes at least. Whoever launches a kernel says so first; the cost is
    /// computed where somebody keeps account.
    pub fn account(&self, cost: impl FnOnce() -> Cost) {
        let _turn = self.turn.take();
        let is_kept = lock(&self.ledger).is_some();
        // Not while the account is locked: a cost may take long.
        let Some(cost) = is_kept.then(cost) else { return };
        if let Some(ledger) = &mut *lock(&self.ledger) {
            ledger.account(cost);
        }
    }

    fn enter(&self, of: WorkOf) {
        if let Some(ledger) = &mut *lock(&self.ledger) {
            ledger.enter(of);
        }
    }

    /// Runs kernel `name` of `kernels/<file>.cu`, compiled for activations of `dtype`.
    ///
    /// # Safety
    /// The kernel takes a `P`; the addresses in it lie on this device and reach as far as the kernel reads and writes; and
    /// `grid` and `blocks` are what it expects.
    pub unsafe fn launch<P: Parameters>(
        &self,
        file: &'static str,
        name: &'static str,
        dtype: DType,
        grid: [u32; 3],
        blocks: impl Into<Blocks>,
        parameters: &P,
    ) {
        let _turn = self.turn.take();
        if grid.contains(&0) {
            if let Some(ledger) = &mut *lock(&self.ledger) {
                ledger.forget();
            }
            return;
        }
        self.launches.fetch_add(1, Ordering::Relaxed);
        let kernel = Kernel { file, name, dtype: compile::storage(file, dtype) };
        self.enter(WorkOf::Launch(kernel));
        let launch = Launch { kernel, grid, blocks: blocks.into(), parameters: bytemuck::bytes_of(parameters) };
        self.run(|driver| driver.launch(&launch));
    }

    /// The tensor map of what bulk copies take. Zeros if the device has failed, or fails by this.
    pub fn encode(&self, mapped: impl Into<Mapped>) -> TensorMap {
        let mut map = bytemuck::Zeroable::zeroed();
        let mapped = mapped.into();
        self.run(|driver| {
            mapped.check().map_err(|message| Failure::Driver { call: mapped.call(), message })?;
            map = driver.encode(&mapped)?;
            Ok(())
        });
        map
    }

    /// Compiles and loads a kernel ahead of its first launch.
    pub fn prepare(&self, file: &'static str, name: &'static str, dtype: DType) {
        self.run(|driver| driver.prepare(Kernel { file, name, dtype: compile::storage(file, dtype) }));
    }

    /// Whether it compiles kernels, and keeps them where [`Gpu::compile_ahead`] can put some.
    pub fn compiles_ahead(&self) -> bool {
        self.driver.compiles_ahead()
    }

    /// Fills the cache of compiled kernels with these, side by side. A help, not a promise: what fails here fails again where it is
    /// launched.
    pub fn compile_ahead(&self, kernels: &[Kernel]) {
        if self.check().is_ok() {
            self.driver.compile_ahead(kernels);
        }
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

    /// Runs `work` and tells what it launched, and where its buffers would lie best when it is recorded. Other threads that use the
    /// device wait until it ends.
    pub fn trace(&self, work: impl FnOnce()) -> Trace {
        /// A panic ends the account too.
        struct Tracing<'a> {
            gpu: &'a Gpu,
            _turn: Held<'a>,
        }
        impl Drop for Tracing<'_> {
            fn drop(&mut self) {
                lock(&self.gpu.memory).log = None;
                *lock(&self.gpu.ledger) = None;
            }
        }
        let tracing = Tracing { gpu: self, _turn: self.turn.take() };
        lock(&self.memory).log = Some(Log::default());
        *lock(&self.ledger) = Some(Ledger::default());
        work();
        let log = lock(&self.memory).log.take().unwrap_or_default();
        let ledger = lock(&self.ledger).take().unwrap_or_default();
        drop(tracing);
        let lives = log.lives();
        Trace { plan: MemoryPlan::new(&lives), lives, work: ledger.into_work() }
    }

    /// Records what `work` launches instead of running it. What `work` allocates, and must drop before it
    /// returns, belongs to graphs from then on; it may neither upload nor download. Other threads that use the device wait until it
    /// ends, so `work` may not wait for them.
    pub fn capture(&'static self, work: impl FnOnce()) -> Result<Graph, Failure> {
        self.record(None, work)
    }

    /// [`Gpu::capture`] of what was traced before, once or several times over, with its buffers where `plan` says, in an
    /// arena that all such graphs share.
    ///
    /// # Panics
    /// If a planned buffer outlives `work`.
    pub fn capture_planned(&'static self, plan: &MemoryPlan, work: impl FnOnce()) -> Result<Graph, Failure> {
        self.record(Some(plan), work)
    }

    fn record(&'static self, plan: Option<&MemoryPlan>, work: impl FnOnce()) -> Result<Graph, Failure> {
        self.check()?;
        let turn = self.turn.take();
        let reserve = |plan| lock(&self.memory).reserve(&*self.driver, plan);
        let arena = plan.map(reserve).transpose().inspect_err(|failure| self.fail(failure.clone()))?;
        self.run(|driver| driver.begin_capture());
        self.check()?;
        lock(&self.memory).begin_capture(plan.zip(arena));
        *lock(&self.ledger) = Some(Ledger::default());
        let (arena, launches) = (arena, self.launches());
        let mut recording = Recording { gpu: self, _turn: turn, arena, launches, is_finished: false };
        work();
        let recorded = recording.end();
        let graph =
            recorded.id.map(|id| Graph { gpu: self, id, work: recorded.work, launches: recorded.launches, arena });
        // The first failure says more than what came of it.
        self.check()?;
        let graph = graph.inspect_err(|failure| self.fail(failure.clone()))?;
        assert_eq!(recorded.left, 0, "buffers of a planned capture outlive it");
        Ok(graph)
    }

    /// Runs `work` on the driver unless the device has failed, and keeps its failure.
    fn run(&self, work: impl FnOnce(&dyn Driver) -> Result<(), Failure>) {
        let _turn = self.turn.take();
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

impl Recording {
    fn end(&mut self) -> Recorded {
        let gpu = self.gpu;
        let left = lock(&gpu.memory).end_capture();
        let ledger = lock(&gpu.ledger).take().unwrap_or_default();
        let launches = gpu.launches.swap(self.launches, Ordering::Relaxed) - self.launches;
        let id = gpu.driver.end_capture();
        self.is_finished = true;
        if id.is_err() {
            lock(&gpu.memory).release(&*gpu.driver, self.arena);
        }
        Recorded { id, work: ledger.into_work(), launches, left }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.is_finished
            && let Recorded { id: Ok(id), work, launches, .. } = self.end()
        {
            drop(Graph { gpu: self.gpu, id, work, launches, arena: self.arena });
        }
    }
}

impl Graph {
    /// How many kernels one replay runs.
    pub fn launches(&self) -> u64 {
        self.launches
    }

    /// The work that one replay does, in order.
    pub fn work(&self) -> &[Work] {
        &self.work
    }

    /// Whether a later graph needed a larger arena. Recorded again, this one would lie in that, and its own be free.
    pub fn is_outgrown(&self) -> bool {
        self.arena.is_some_and(|arena| lock(&self.gpu.memory).is_outgrown(arena))
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
        lock(&self.gpu.memory).release(&*self.gpu.driver, self.arena);
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
