//! A GPU made of the CPU, to test kernels with: the same sources, compiled for the host, and checked more strictly than
//! hardware does.
//!
//! | a kernel that | is told |
//! |---|---|
//! | reads or writes beyond a buffer | by an inaccessible page on either side of each (`memory`) |
//! | reads what nobody wrote | by the NaN that fresh and recycled memory is full of |
//! | depends on the order of threads or blocks | by results that change with the seed, which shuffles both |
//! | lets two threads touch the same shared memory between barriers | as a race, with both threads (`block`) |
//! | lets some threads miss a barrier, or some lanes a collective | with the line that waits and the thread that is elsewhere |
//! | makes a vector access that is not aligned | with its address |
//!
//! | a kernel that, on sm_90a's terms (`asynchronous`), | is told |
//! |---|---|
//! | waits for a phase of a barrier in shared memory that never ends | with the arrivals and the bytes that are missing |
//! | expects fewer bytes than are copied, arrives too often, copies by a barrier that was not made or fenced | with the barrier |
//! | reads, writes, multiplies or copies over what a bulk copy brings, and has not waited for its barrier | as a race; until it lands, NaN is there |
//! | overwrites what a product still reads, by itself or by a bulk copy | as a race |
//! | writes what a product reads, or a bulk copy overwrites, without `fence_async` before the others are told | with the thread that wrote |
//! | reads sums before their product is waited for | by NaN |
//! | changes sums between two products, or hands them over without `multiply_fence` | with the product |
//! | does not ask for a product, or sets its registers, with its whole warpgroup and alike | with the thread that differs |
//! | reaches into a block of its cluster that has ended, or may have | with the barrier, or the copy |
//! | misses the barrier of its cluster | with the line that waits and the thread that is elsewhere |
//! | ends with a copy under way, or a product that nobody waited for | with its line |
//! | copies to, or multiplies from, a place that the swizzle does not begin at; beyond shared memory, or a buffer | with the place |
//!
//! | work that | is told |
//! |---|---|
//! | reads what is uploaded beside it before it has waited for that | by NaN in a kernel, by name in a copy (`streams`) |
//! | is still to read what such an upload overwrites | by name |
//!
//! All of these are a [`Failure::Fault`] that names kernel, block and thread. Blocks run in parallel, the threads of a
//! block as coroutines on one thread of the host. Graphs are recorded and replayed command by command.
//!
//! The blocks of a cluster run together, on one thread of the host. What is not looked at on sm_90a's terms: how many registers there
//! are to be set, and who writes the global memory that a bulk copy reads, as it lands.

mod asynchronous;
mod block;
mod maps;
mod memory;
mod streams;
mod trap;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use rayon::prelude::*;

use super::driver::{
    Address, Blocks, Description, Driver, Event, GraphId, Kernel, Launch, Mark, PIECE, Stream, TensorCores,
};
use super::tensor_map::{Mapped, TensorMap};
use super::{Failure, lock};
pub use block::Context;
use block::{Block, Broken};
use memory::Memory;
use streams::Streams;

/// A kernel compiled for the host.
pub struct EntryPoint {
    pub symbol: &'static str,
    pub run: unsafe extern "C" fn(*const c_void, *const *const Context),
    /// Bytes of its parameter struct.
    pub size: &'static u32,
    /// Threads per block.
    pub threads: &'static u32,
}

#[allow(non_upper_case_globals, improper_ctypes)]
mod entries {
    use super::*;
    include!(concat!(env!("OUT_DIR"), "/entries.rs"));

    pub fn all() -> &'static [EntryPoint] {
        ENTRIES
    }
}

/// Something the stream does.
#[derive(Clone)]
enum Command {
    Launch { entry: &'static EntryPoint, grid: [u32; 3], blocks: Blocks, parameters: Vec<u8> },
    Copy { to: Address, from: Address, bytes: usize },
    Fill { to: Address, byte: u8, bytes: usize },
}

pub struct Emulator {
    seed: u64,
    tensor_cores: TensorCores,
    warpgroups: bool,
    /// Commands so far: each launch is shuffled in its own way.
    clock: AtomicU64,
    memory: Memory,
    streams: Mutex<Streams>,
    events: Mutex<Vec<Instant>>,
    recording: Mutex<Option<Vec<Command>>>,
    graphs: Mutex<HashMap<u64, Vec<Command>>>,
    /// Kernels that are not part of the program: tests bring their own.
    guests: Vec<&'static EntryPoint>,
}

impl Emulator {
    pub fn new(seed: u64) -> Emulator {
        trap::install();
        Emulator {
            seed,
            tensor_cores: TensorCores::default(),
            warpgroups: false,
            clock: AtomicU64::new(0),
            memory: Memory::default(),
            streams: Mutex::default(),
            events: Mutex::default(),
            recording: Mutex::default(),
            graphs: Mutex::default(),
            guests: Vec::new(),
        }
    }

    /// An emulator that also knows `guests`.
    pub fn with_guests(seed: u64, guests: Vec<&'static EntryPoint>) -> Emulator {
        Emulator { guests, ..Emulator::new(seed) }
    }

    /// An emulator whose tensor cores add as those of a GPU do.
    pub fn with_tensor_cores(self, tensor_cores: TensorCores) -> Emulator {
        Emulator { tensor_cores, ..self }
    }

    /// An emulator that says of itself whether it runs what only sm_90a has. It does in any case.
    pub fn with_warpgroups(self, warpgroups: bool) -> Emulator {
        Emulator { warpgroups, ..self }
    }

    fn entry(&self, kernel: Kernel) -> Result<&'static EntryPoint, Failure> {
        static BY_SYMBOL: OnceLock<HashMap<&str, &EntryPoint>> = OnceLock::new();
        let known = BY_SYMBOL.get_or_init(|| entries::all().iter().map(|entry| (entry.symbol, entry)).collect());
        let symbol = kernel.symbol();
        let guest = || self.guests.iter().find(|entry| entry.symbol == symbol);
        known
            .get(symbol.as_str())
            .or_else(guest)
            .copied()
            .ok_or_else(|| Failure::Fault { message: format!("kernels/{}.cu has no kernel {symbol}", kernel.file) })
    }

    /// Does `command` now, or records it.
    fn submit(&self, command: Command) -> Result<(), Failure> {
        if let Some(recording) = &mut *lock(&self.recording) {
            recording.push(command);
            return Ok(());
        }
        self.execute(&command)
    }

    fn execute(&self, command: &Command) -> Result<(), Failure> {
        lock(&self.streams).work();
        match command {
            Command::Launch { entry, grid, blocks, parameters } => self.run(entry, *grid, *blocks, parameters),
            &Command::Copy { to, from, bytes } => {
                lock(&self.streams).touch("a copy", from, bytes)?;
                lock(&self.streams).touch("a copy", to, bytes)?;
                self.memory.check("a copy", from, bytes)?;
                self.memory.check("a copy", to, bytes)?;
                // SAFETY: both ranges lie in live allocations; `copy` allows overlap.
                unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, bytes) };
                Ok(())
            }
            &Command::Fill { to, byte, bytes } => {
                lock(&self.streams).touch("a fill", to, bytes)?;
                self.memory.check("a fill", to, bytes)?;
                // SAFETY: the range lies in a live allocation.
                unsafe { std::ptr::write_bytes(to.0 as *mut u8, byte, bytes) };
                Ok(())
            }
        }
    }

    fn run(
        &self,
        entry: &'static EntryPoint,
        grid: [u32; 3],
        blocks: Blocks,
        parameters: &[u8],
    ) -> Result<(), Failure> {
        let clock = self.clock.fetch_add(1, Ordering::Relaxed);
        let seed = mix(self.seed ^ mix(clock));
        // Clusters: of single blocks, mostly.
        let count = grid.iter().zip(blocks.cluster).map(|(&n, of)| (n / of) as usize).product::<usize>();
        let mut order: Vec<u32> = (0..count as u32).collect();
        shuffle(&mut order, seed);
        let next = AtomicUsize::new(0);
        let broken: Mutex<Option<Broken>> = Mutex::new(None);
        // The struct's alignment is at most that of a tensor map.
        let mut aligned = vec![Aligned([0; 64]); parameters.len().div_ceil(size_of::<Aligned>())];
        bytemuck::cast_slice_mut(&mut aligned)[..parameters.len()].copy_from_slice(parameters);
        let aligned: &[Aligned] = &aligned;
        let work = |_| {
            let tensor_cores = match self.tensor_cores {
                TensorCores::Rounding => [0, 0],
                TensorCores::Ampere => [16, 1],
                TensorCores::Hopper => [32, 2],
            };
            let mut block = Block::new(entry, aligned.as_ptr().cast(), grid, blocks, tensor_cores);
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count || lock(&broken).is_some() {
                    return;
                }
                let number = order[index];
                if let Err(what) = block.run(number, mix(seed ^ u64::from(number))) {
                    lock(&broken).get_or_insert(what);
                }
            }
        };
        let hosts = rayon::current_num_threads().min(count);
        if hosts == 1 {
            work(0)
        } else {
            (0..hosts).into_par_iter().for_each(work)
        }
        match broken.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            None => match self.memory.overrun() {
                None => Ok(()),
                Some(what) => Err(Failure::Fault { message: format!("kernel {}: {what}", entry.symbol) }),
            },
            Some(broken) => Err(Failure::Fault {
                message: format!(
                    "kernel {}, block {:?}, thread {}: {}",
                    entry.symbol,
                    broken.block,
                    broken.thread,
                    match broken.address {
                        Some(address) => self.memory.describe(address),
                        None => broken.what,
                    }
                ),
            }),
        }
    }

    fn not_recording(&self, what: &str) -> Result<(), Failure> {
        match *lock(&self.recording) {
            Some(_) => Err(Failure::Fault { message: format!("{what} while a graph is captured") }),
            None => Ok(()),
        }
    }
}

impl Driver for Emulator {
    fn describe(&self) -> Description {
        Description {
            name: "emulator".into(),
            architecture: "host".into(),
            multiprocessors: rayon::current_num_threads(),
            memory: memory::LIMIT,
            tensor_cores: self.tensor_cores,
            warpgroups: self.warpgroups,
        }
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Failure> {
        self.memory.allocate(bytes)
    }

    fn free(&self, address: Address, bytes: usize) {
        lock(&self.streams).forget(address, bytes);
        self.memory.free(address);
    }

    fn recycle(&self, address: Address, bytes: usize) -> Result<(), Failure> {
        self.submit(Command::Fill { to: address, byte: memory::POISON, bytes })
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        self.not_recording("an upload")?;
        lock(&self.streams).work();
        lock(&self.streams).touch("an upload", to, bytes.len())?;
        self.memory.check("an upload", to, bytes.len())?;
        // SAFETY: the range lies in a live allocation, and `bytes` elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        Ok(())
    }

    fn upload_beside(&self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        assert!(bytes.len() <= PIECE, "{} bytes at a time", bytes.len());
        self.memory.check("an upload", to, bytes.len())?;
        lock(&self.streams).upload(to, bytes)?;
        // SAFETY: the range lies in a live allocation.
        unsafe { std::ptr::write_bytes(to.0 as *mut u8, memory::POISON, bytes.len()) };
        Ok(())
    }

    fn mark(&self, of: Stream) -> Result<Mark, Failure> {
        Ok(lock(&self.streams).mark(of))
    }

    fn wait(&self, stream: Stream, mark: Mark) -> Result<(), Failure> {
        for (to, bytes) in lock(&self.streams).wait(stream, mark) {
            // SAFETY: the range was checked when it was uploaded to, and memory that is uploaded to is not freed before.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        }
        Ok(())
    }

    fn settle_copies(&self) -> Result<(), Failure> {
        let mark = self.mark(Stream::Copies)?;
        self.wait(Stream::Work, mark)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), Failure> {
        self.not_recording("a download")?;
        lock(&self.streams).touch("a download", from, bytes.len())?;
        self.memory.check("a download", from, bytes.len())?;
        // SAFETY: the range lies in a live allocation, and `bytes` elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Failure> {
        self.submit(Command::Copy { to, from, bytes })
    }

    fn fill(&self, to: Address, byte: u8, bytes: usize) -> Result<(), Failure> {
        self.submit(Command::Fill { to, byte, bytes })
    }

    fn prepare(&self, kernel: Kernel) -> Result<(), Failure> {
        self.entry(kernel).map(drop)
    }

    fn launch(&self, launch: &Launch) -> Result<(), Failure> {
        let entry = self.entry(launch.kernel)?;
        let refuse = |message: String| Err(Failure::Fault { message: format!("kernel {}: {message}", entry.symbol) });
        if launch.parameters.len() != *entry.size as usize {
            return refuse(format!("{} bytes of parameters, not {}", launch.parameters.len(), entry.size));
        }
        let Launch { grid, blocks, .. } = *launch;
        let threads = blocks.threads;
        if threads != *entry.threads || !threads.is_multiple_of(32) || threads > 1024 {
            return refuse(format!("launched with {threads} threads per block, made for {}", entry.threads));
        }
        let [x, y, z] = grid;
        if x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return refuse(format!("a grid of {x}×{y}×{z} blocks is beyond what a GPU takes"));
        }
        if blocks.dynamic_shared as usize > Blocks::SHARED {
            return refuse(format!(
                "{} bytes of dynamic shared memory; a block has {}",
                blocks.dynamic_shared,
                Blocks::SHARED
            ));
        }
        let [a, b, c] = blocks.cluster;
        let divides = |(size, cluster): (&u32, &u32)| *cluster > 0 && size.is_multiple_of(*cluster);
        if !grid.iter().zip(&blocks.cluster).all(divides) {
            return refuse(format!("clusters of {a}×{b}×{c} blocks do not divide a grid of {x}×{y}×{z}"));
        }
        if a.saturating_mul(b).saturating_mul(c) > Blocks::CLUSTER {
            return refuse(format!(
                "clusters of {a}×{b}×{c} blocks; every GPU takes {}, some take more",
                Blocks::CLUSTER
            ));
        }
        self.submit(Command::Launch { entry, grid, blocks, parameters: launch.parameters.to_vec() })
    }

    fn encode(&self, mapped: &Mapped) -> Result<TensorMap, Failure> {
        Ok(maps::encode(mapped))
    }

    fn synchronize(&self) -> Result<(), Failure> {
        self.not_recording("a wait")
    }

    fn record_event(&self) -> Result<Event, Failure> {
        let mut events = lock(&self.events);
        events.push(Instant::now());
        Ok(Event(events.len() as u64 - 1))
    }

    fn milliseconds(&self, from: Event, to: Event) -> Result<f32, Failure> {
        let events = lock(&self.events);
        Ok((events[to.0 as usize] - events[from.0 as usize]).as_secs_f32() * 1e3)
    }

    fn begin_capture(&self) -> Result<(), Failure> {
        self.not_recording("a capture")?;
        *lock(&self.recording) = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, Failure> {
        let commands = lock(&self.recording).take();
        let commands = commands.ok_or(Failure::Fault { message: "no capture was begun".into() })?;
        let id = self.clock.fetch_add(1, Ordering::Relaxed);
        lock(&self.graphs).insert(id, commands);
        Ok(GraphId(id))
    }

    fn replay(&self, graph: GraphId) -> Result<(), Failure> {
        self.not_recording("a replay")?;
        let graphs = lock(&self.graphs);
        graphs[&graph.0].iter().try_for_each(|command| self.execute(command))
    }

    fn drop_graph(&self, graph: GraphId) {
        lock(&self.graphs).remove(&graph.0);
    }
}

/// A piece of a kernel's parameters.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Aligned([u8; 64]);

/// The last step of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fisher and Yates.
fn shuffle(items: &mut [u32], seed: u64) {
    let mut state = seed;
    for i in (1..items.len()).rev() {
        state = mix(state);
        // A share of what is left, as the upper half of a product: a division would take many times as long.
        items.swap(i, ((u128::from(state) * (i as u128 + 1)) >> 64) as usize);
    }
}
