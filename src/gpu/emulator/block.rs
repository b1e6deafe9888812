//! One block, or the blocks of one cluster: their threads as coroutines, their shared memory, their barriers and collectives.
//!
//! The blocks of a cluster, in the order of their ranks, have the threads one behind the other, each block the same shared memory at the
//! same places of its own part: so one may reach for what another has.
//!
//! A coroutine runs one thread after the other for as long as none of them waits; a thread that waits (at a barrier or a
//! collective of its warp) keeps the coroutine, and the next one carries on with the threads that have not begun. So a
//! kernel without barriers costs a function call per thread. When every thread has ended or waits, whoever can go on
//! does, in shuffled order; if nobody can, threads have diverged.
//!
//! Everything here runs on one thread of the host, which [`CURRENT`] tells the kernels' callbacks about.

mod calls;

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::mem::{MaybeUninit, take};
use std::ops::Range;

use corosensei::stack::{DefaultStack, Stack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::asynchronous::{Asynchronous, BulkCopy, Product, Shadow, Site};
use super::trap::{self, Fault};
use super::{EntryPoint, mix, shuffle};
use crate::gpu::driver::Blocks;

const WARP: usize = 32;
/// Bytes of shared memory that a kernel can declare; more is dynamic, and asked for by the launch.
const DECLARED: usize = 48 << 10;
const STACK: usize = 128 << 10;
const PAGE: usize = 4096;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Index3 {
    x: u32,
    y: u32,
    z: u32,
}

/// A thread's context: what it knows of itself. The twin of `emulator::Context`.
#[repr(C)]
pub struct Context {
    thread: Index3,
    block: Index3,
    threads: Index3,
    grid: Index3,
    /// The block's rank in its cluster, and how many blocks that has.
    rank: u32,
    cluster: u32,
    tensor_cores: [u32; 2],
    epoch: u32,
    warp_epoch: u16,
    asynchronous: u16,
    runtime: *const Runtime,
    copies_asked: u32,
    copies_group: u32,
    /// Room for `COPIES` copies to shared memory that are under way.
    copies: *mut PendingCopy,
}

/// The twin of `emulator::Copy`; the kernels' own business.
type PendingCopy = MaybeUninit<[u64; 6]>;

/// `emulator::COPIES`.
const COPIES: usize = 64;
/// `emulator::OFFER`.
const OFFER: usize = 256;

#[repr(C)]
struct Runtime {
    barrier: unsafe extern "C" fn(*const Context, *const c_char, u32),
    collective: unsafe extern "C" fn(*const Context, u32, u32, u64, u32, *const c_char, u32) -> u64,
    shared: unsafe extern "C" fn(*const Context, *const c_char, u32, u32, *mut *mut c_void, *mut *mut Shadow),
    dynamic: unsafe extern "C" fn(*const Context, *const c_char, *mut *mut c_void, *mut *mut Shadow) -> u32,
    fault: unsafe extern "C" fn(*const Context, *const c_char, *const c_char, u64, u32),
    exchange: unsafe extern "C" fn(*const Context, *const u8, u32, *const c_char, u32) -> *const u8,
    access: unsafe extern "C" fn(*const Context, *mut Shadow, *const u8, *const c_char, u64, u32),
    barrier_init: unsafe extern "C" fn(*const Context, *mut u64, *mut Shadow, *const c_char, u32, u32),
    fence: unsafe extern "C" fn(*const Context, u32),
    barrier_arrive: unsafe extern "C" fn(*const Context, *mut u64, *const Shadow, *const c_char, u32, u32, u32),
    barrier_wait:
        unsafe extern "C" fn(*const Context, *mut u64, *const Shadow, *const c_char, u32, u32, *const c_char, u32),
    named_barrier: unsafe extern "C" fn(*const Context, u32, u32, *const c_char, u32),
    copy: unsafe extern "C" fn(*const Context, *const BulkCopy, *const Shadow, u32, u32),
    address: unsafe extern "C" fn(*const Context, *const u8, *const c_char) -> u32,
    product: unsafe extern "C" fn(*const Context, *const Product),
    product_fence: unsafe extern "C" fn(*const Context, u32),
    product_wait: unsafe extern "C" fn(*const Context, u32, *mut f32, u32, *const c_char, u32),
    registers: unsafe extern "C" fn(*const Context, u32, u32, *const c_char, u32),
    cluster_barrier: unsafe extern "C" fn(*const Context, *const c_char, u32),
}

static RUNTIME: Runtime = Runtime {
    barrier,
    collective,
    shared,
    dynamic,
    fault,
    exchange,
    access: calls::access,
    barrier_init: calls::barrier_init,
    fence: calls::fence,
    barrier_arrive: calls::barrier_arrive,
    barrier_wait: calls::barrier_wait,
    named_barrier: calls::named_barrier,
    copy: calls::copy,
    address: calls::address,
    product: calls::product,
    product_fence: calls::product_fence,
    product_wait: calls::product_wait,
    registers: calls::registers,
    cluster_barrier: calls::cluster_barrier,
};

#[derive(Clone, Copy)]
enum State {
    NotBegun,
    Running,
    AtBarrier(Site),
    AtCollective(Collective),
    /// At a barrier in shared memory, by its number, for a phase of this parity.
    AtPhase {
        barrier: usize,
        parity: u32,
        site: Site,
    },
    AtNamedBarrier(Named),
    /// At the barrier of all threads of a cluster.
    AtCluster(Site),
    /// Until at most the last `left` groups of products are under way.
    AtProducts {
        left: u32,
        site: Site,
    },
    Ended,
}

/// A barrier of some threads, by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Named {
    id: u32,
    threads: u32,
    site: Site,
}

#[derive(Clone, Copy)]
struct Collective {
    kind: u32,
    mask: u32,
    value: u64,
    argument: u32,
    site: Site,
}

/// `emulator::Collective`.
mod kind {
    pub const SYNC: u32 = 0;
    pub const SHUFFLE: u32 = 1;
    pub const SHUFFLE_XOR: u32 = 2;
    pub const SHUFFLE_DOWN: u32 = 3;
    pub const SHUFFLE_UP: u32 = 4;
    pub const BALLOT: u32 = 5;
    pub const ANY: u32 = 6;
    pub const ALL: u32 = 7;
    /// Not CUDA's: every lane gets what every lane offers, `argument` bytes that lie where its `value` says.
    pub const EXCHANGE: u32 = 8;
}

/// A kernel's fault: what it did wrong, and where.
pub struct Broken {
    pub block: [u32; 3],
    pub thread: u32,
    pub what: String,
    /// Where it reached for, if that was the fault.
    pub address: Option<u64>,
}

type Worker = Coroutine<(), (), (), Shifted>;

/// A stack that begins a little below its pages' end, each elsewhere: all would share a few lines of the cache otherwise.
struct Shifted {
    pages: DefaultStack,
    by: usize,
}

impl Shifted {
    /// The `number`-th.
    fn new(number: usize) -> Shifted {
        let pages = DefaultStack::new(STACK + PAGE).expect("memory for a small stack");
        // Several lines of 64 bytes, and coprime to those in a page.
        Shifted { pages, by: number * 5 * 64 % PAGE }
    }
}

// SAFETY: the pages' own stack, less some bytes at its upper end; they are a multiple of what stacks are aligned to.
unsafe impl Stack for Shifted {
    fn base(&self) -> StackPointer {
        StackPointer::new(self.pages.base().get() - self.by).expect("an address within the pages")
    }

    fn limit(&self) -> StackPointer {
        self.pages.limit()
    }
}

/// Memory that the blocks on one thread of the host hand on: what a launch would spend clearing it is more than most
/// kernels take. Whoever declares an array clears its own part.
#[derive(Default)]
struct Handed {
    contexts: Vec<Context>,
    copies: Vec<PendingCopy>,
    shared: Vec<u128>,
    shadow: Vec<Shadow>,
}

/// An array in shared memory: where it is declared, and where it and its shadow lie in the part of each block.
struct Declared {
    site: *const c_char,
    data: usize,
    shadow: usize,
}

pub struct Block {
    entry: &'static EntryPoint,
    parameters: *const c_void,
    grid: [u32; 3],
    /// Blocks of a cluster by dimension, and the threads of each.
    cluster: [u32; 3],
    threads: usize,
    /// The twin of `emulator::TensorCores`.
    tensor_cores: [u32; 2],
    /// Of the first block.
    index: [u32; 3],
    contexts: Vec<Context>,
    /// `COPIES` for each thread. Not in its context, which is small so that those of a block lie side by side.
    copies: Vec<PendingCopy>,
    states: Vec<State>,
    /// The result that a collective gave each thread.
    results: Vec<u64>,
    /// The bytes that each warp's last exchange made known: a stretch of `WARP * OFFER` for each.
    exchanged: Vec<u128>,
    /// Threads in the order in which they begin, and how many have begun.
    order: Vec<u32>,
    begun: usize,
    workers: Vec<Option<Worker>>,
    yielders: Vec<*const Yielder<(), ()>>,
    /// The coroutine that each thread runs on.
    worker_of: Vec<usize>,
    current: u32,
    worker: usize,
    /// For each block, [`Block::part`] bytes: shared memory that the kernel declares, and from [`DECLARED`] on `dynamic_shared` bytes
    /// more; the shadow likewise, a mark for each number and at most one for each byte.
    shared: Vec<u128>,
    shared_used: usize,
    shadow: Vec<Shadow>,
    shadow_used: usize,
    declared: Vec<Declared>,
    dynamic_shared: usize,
    /// Where the kernel names its dynamic shared memory; null before it does.
    dynamic_site: *const c_char,
    /// What runs beside the threads, in a block that has begun to use it.
    asynchronous: Option<Box<Asynchronous>>,
    fault: Option<String>,
}

thread_local! {
    /// The block that runs on this thread of the host.
    static CURRENT: Cell<*mut Block> = const { Cell::new(std::ptr::null_mut()) };
    /// Always the context of the thread that runs: what kernels read `threadIdx` from.
    static SLOT: Cell<*const Context> = const { Cell::new(std::ptr::null()) };
    static HANDED: Cell<Handed> = Cell::default();
    static STACKS: RefCell<Vec<Shifted>> = const { RefCell::new(Vec::new()) };
}

impl Block {
    /// Runs the clusters of one launch, one after the other.
    pub fn new(
        entry: &'static EntryPoint,
        parameters: *const c_void,
        grid: [u32; 3],
        blocks: Blocks,
        tensor_cores: [u32; 2],
    ) -> Block {
        let Blocks { cluster, dynamic_shared, .. } = blocks;
        let in_block = *entry.threads as usize;
        let threads = in_block * cluster.iter().product::<u32>() as usize;
        let Handed { contexts, mut copies, shared, shadow } = HANDED.take();
        if copies.len() < threads * COPIES {
            copies.resize(threads * COPIES, PendingCopy::uninit());
        }
        Block {
            entry,
            parameters,
            grid,
            cluster,
            threads: in_block,
            tensor_cores,
            index: [0; 3],
            contexts,
            copies,
            states: vec![State::NotBegun; threads],
            results: vec![0; threads],
            exchanged: Vec::new(),
            order: (0..threads as u32).collect(),
            begun: 0,
            workers: Vec::new(),
            yielders: Vec::new(),
            worker_of: vec![0; threads],
            current: 0,
            worker: 0,
            shared,
            shared_used: 0,
            shadow,
            shadow_used: 0,
            declared: Vec::new(),
            dynamic_shared: dynamic_shared as usize,
            dynamic_site: std::ptr::null(),
            asynchronous: None,
            fault: None,
        }
    }

    /// Blocks of a cluster.
    fn blocks(&self) -> usize {
        self.states.len() / self.threads
    }

    /// Bytes of the part of shared memory that a block has.
    fn part(&self) -> usize {
        DECLARED + self.dynamic_shared.next_multiple_of(16)
    }

    /// The index in the grid of the block with this rank in the cluster.
    fn index_of(&self, rank: usize) -> [u32; 3] {
        let [a, b, _] = self.cluster;
        let rank = rank as u32;
        let [x, y, z] = self.index;
        [x + rank % a, y + rank / a % b, z + rank / a / b]
    }

    /// Runs the cluster of this number.
    pub fn run(&mut self, number: u32, seed: u64) -> Result<(), Broken> {
        let [a, b, c] = self.cluster;
        let [x, y] = [self.grid[0] / a, self.grid[1] / b];
        self.index = [number % x * a, number / x % y * b, number / x / y * c];
        let three = |[x, y, z]: [u32; 3]| Index3 { x, y, z };
        let (threads, blocks) = (self.threads, self.blocks());
        let copies = self.copies.as_mut_ptr();
        let mut contexts = take(&mut self.contexts);
        contexts.clear();
        contexts.extend((0..threads * blocks).map(|thread| Context {
            thread: three([(thread % threads) as u32, 0, 0]),
            block: three(self.index_of(thread / threads)),
            threads: three([threads as u32, 1, 1]),
            grid: three(self.grid),
            rank: (thread / threads) as u32,
            cluster: blocks as u32,
            tensor_cores: self.tensor_cores,
            epoch: 1,
            warp_epoch: 1,
            asynchronous: 0,
            runtime: &RUNTIME,
            copies_asked: 0,
            copies_group: 0,
            copies: copies.wrapping_add(thread * COPIES),
        }));
        self.contexts = contexts;
        self.states.fill(State::NotBegun);
        (self.begun, self.shared_used, self.shadow_used) = (0, 0, 0);
        self.declared.clear();
        self.dynamic_site = std::ptr::null();
        self.asynchronous = None;
        shuffle(&mut self.order, seed);
        // From here on the coroutines write to the block too: nothing below holds a reference to it while one runs.
        let block: *mut Block = self;
        let before = CURRENT.replace(block);
        // SAFETY: the block lives until `run` returns.
        let result = unsafe { Block::schedule(block, seed) };
        CURRENT.set(before);
        self.abandon();
        result
    }

    /// # Safety
    /// The block is live, and nobody holds a reference to it.
    unsafe fn schedule(block: *mut Block, mut seed: u64) -> Result<(), Broken> {
        // SAFETY: references made here end before a coroutine runs.
        unsafe {
            loop {
                while (*block).begun < (*block).order.len() {
                    let worker = Block::hire(block);
                    Block::resume(block, worker)?;
                }
                (*block).end_blocks()?;
                if (*block).states.iter().all(|state| matches!(state, State::Ended)) {
                    return (*block).finish();
                }
                seed = mix(seed);
                // A copy may arrive now, or later.
                if seed & 1 == 0 {
                    (*block).land(seed)?;
                }
                let mut ready = (*block).release()?;
                if ready.is_empty() {
                    (*block).land(mix(seed))?;
                }
                shuffle(&mut ready, seed);
                for thread in ready {
                    (&mut (*block).states)[thread as usize] = State::Running;
                    (*block).enter(thread);
                    let worker = (&(*block).worker_of)[thread as usize];
                    Block::resume(block, worker)?;
                }
            }
        }
    }

    /// A coroutine that runs threads which have not begun.
    ///
    /// # Safety
    /// As [`Block::schedule`].
    unsafe fn hire(block: *mut Block) -> usize {
        // SAFETY: as the caller promises.
        let (workers, yielders) = unsafe { (&mut (*block).workers, &mut (*block).yielders) };
        let number = workers.len();
        let stack = STACKS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Shifted::new(number));
        let worker = Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            // SAFETY: the block outlives its coroutines, and nobody holds a reference to it while one runs.
            unsafe {
                (&mut (*block).yielders)[number] = yielder;
                while let Some(thread) = (*block).begin(number) {
                    let slot = SLOT.with(Cell::as_ptr).cast_const();
                    ((*block).entry.run)((*block).parameters, slot);
                    (&mut (*block).states)[thread as usize] = State::Ended;
                }
            }
        });
        workers.push(Some(worker));
        yielders.push(std::ptr::null());
        number
    }

    fn begin(&mut self, worker: usize) -> Option<u32> {
        let thread = *self.order.get(self.begun)?;
        self.begun += 1;
        self.worker_of[thread as usize] = worker;
        self.states[thread as usize] = State::Running;
        self.enter(thread);
        Some(thread)
    }

    fn enter(&mut self, thread: u32) {
        self.current = thread;
        SLOT.set(&self.contexts[thread as usize]);
    }

    /// Runs a coroutine until it waits or ends.
    ///
    /// # Safety
    /// As [`Block::schedule`].
    unsafe fn resume(block: *mut Block, number: usize) -> Result<(), Broken> {
        // SAFETY: as the caller promises; while the worker runs, nobody touches the list that it lies in.
        let worker = unsafe {
            (*block).worker = number;
            (&mut (*block).workers)[number].as_mut().expect("a coroutine that has not ended")
        };
        let mut ended = false;
        let fault = trap::watched(worker.trap_handler(), || {
            ended = matches!(worker.resume(()), CoroutineResult::Return(()));
        });
        // SAFETY: the coroutine waits or has ended.
        let block = unsafe { &mut *block };
        if ended {
            let stack = block.workers[number].take().map(Worker::into_stack);
            STACKS.with_borrow_mut(|stacks| stacks.extend(stack));
        }
        let (what, address) = match (fault, block.fault.take()) {
            (Some(Fault::Address(address)), _) => (String::new(), Some(address)),
            (Some(Fault::Wild), _) => ("an address beyond all memory, or misaligned for its vector".into(), None),
            (Some(Fault::Arithmetic), _) => ("a whole number is divided by zero".into(), None),
            (None, Some(what)) => (what, None),
            (None, None) => return Ok(()),
        };
        Err(Broken { address, ..block.broken(block.current as usize, what) })
    }

    fn broken(&self, thread: usize, what: String) -> Broken {
        let (block, thread) = (self.index_of(thread / self.threads), (thread % self.threads) as u32);
        Broken { block, thread, what, address: None }
    }

    /// The threads that can go on; none where bulk copies are under way that others wait for.
    fn release(&mut self) -> Result<Vec<u32>, Broken> {
        let mut ready = self.complete_collectives()?;
        ready.extend(self.complete_asynchronous()?);
        if !ready.is_empty() {
            return Ok(ready);
        }
        for rank in 0..self.blocks() {
            if let (None, Some(_)) = self.at_barrier(rank) {
                let threads = self.threads_of(rank);
                let all: Vec<u32> = threads.clone().map(|thread| thread as u32).collect();
                self.contexts[threads].iter_mut().for_each(|context| context.epoch += 1);
                if let Some(asynchronous) = self.asynchronous.as_mut() {
                    asynchronous.meet(&all);
                }
                ready.extend(all);
            }
        }
        if !ready.is_empty() {
            return Ok(ready);
        }
        if let Some(asynchronous) = self.asynchronous.as_mut()
            && self.states.iter().all(|state| matches!(state, State::AtCluster(_)))
        {
            ready = (0..self.states.len() as u32).collect();
            asynchronous.meet(&ready);
            return Ok(ready);
        }
        let missing = (0..self.blocks()).map(|rank| self.at_barrier(rank));
        let missing = missing.filter_map(|(absent, site)| absent.zip(site)).next();
        match missing {
            _ if self.asynchronous.as_ref().is_some_and(|asynchronous| asynchronous.is_copying()) => Ok(Vec::new()),
            _ if let Some(broken) = self.stuck_asynchronous() => Err(broken),
            Some((absent, site)) if !matches!(self.states[absent], State::AtCollective(_)) => {
                let what = format!("the barrier at {site} is not reached by this thread, {}", self.whereabouts(absent));
                Err(self.broken(absent, what))
            }
            _ if let Some(broken) = self.stuck_at_cluster() => Err(broken),
            _ => {
                let (thread, collective) = self.stuck();
                let absent = (0..WARP).map(|lane| thread / WARP * WARP + lane).find(|&other| {
                    let in_mask = collective.mask >> (other % WARP) & 1 == 1;
                    in_mask && !self.joins(other, &collective)
                });
                let absent = absent.unwrap_or(thread);
                let site = collective.site;
                let what =
                    format!("the collective at {site} is not reached by this lane, {}", self.whereabouts(absent));
                Err(self.broken(absent, what))
            }
        }
    }

    fn threads_of(&self, rank: usize) -> Range<usize> {
        rank * self.threads..(rank + 1) * self.threads
    }

    /// The barrier at which threads of a block wait, and one of them that does not.
    fn at_barrier(&self, rank: usize) -> (Option<usize>, Option<Site>) {
        let waiting = |thread: usize| match self.states[thread] {
            State::AtBarrier(site) => Some(site),
            _ => None,
        };
        let first = self.threads_of(rank).find_map(waiting);
        (self.threads_of(rank).find(|thread| waiting(*thread) != first), first)
    }

    /// A thread that waits at a collective.
    fn stuck(&self) -> (usize, Collective) {
        let at = |(thread, state): (usize, &State)| match state {
            State::AtCollective(collective) => Some((thread, *collective)),
            _ => None,
        };
        self.states.iter().enumerate().find_map(at).expect("somebody waits")
    }

    fn whereabouts(&self, thread: usize) -> String {
        match self.states[thread] {
            State::Ended => "which has ended".into(),
            State::AtBarrier(site) => format!("which waits at the barrier at {site}"),
            State::AtCollective(Collective { site, .. }) => format!("which waits at the collective at {site}"),
            State::AtPhase { site, .. } => format!("which waits for a phase at {site}"),
            State::AtNamedBarrier(Named { site, .. }) => format!("which waits at the barrier at {site}"),
            State::AtCluster(site) => format!("which waits at the cluster's barrier at {site}"),
            State::AtProducts { site, .. } => format!("which waits for products at {site}"),
            State::NotBegun | State::Running => "which runs".into(),
        }
    }

    fn joins(&self, thread: usize, with: &Collective) -> bool {
        let same = |own: &Collective| {
            let of_one_size = own.kind != kind::EXCHANGE || own.argument == with.argument;
            own.kind == with.kind && own.mask == with.mask && own.site == with.site && of_one_size
        };
        matches!(&self.states[thread], State::AtCollective(own) if same(own))
    }

    /// Computes every collective that all lanes of its mask have reached; returns those lanes.
    fn complete_collectives(&mut self) -> Result<Vec<u32>, Broken> {
        let mut ready = Vec::new();
        if !self.states.iter().any(|state| matches!(state, State::AtCollective(_))) {
            return Ok(ready);
        }
        ready.reserve(self.states.len());
        for first in (0..self.states.len()).step_by(WARP) {
            let mut done = [false; WARP];
            for lane in 0..WARP {
                let State::AtCollective(collective) = self.states[first + lane] else { continue };
                if done[lane] {
                    continue;
                }
                let whose = self.broken(first + lane, String::new());
                let broken =
                    |what: &str| Broken { what: format!("the collective at {}: {what}", collective.site), ..whose };
                if collective.mask >> lane & 1 == 0 {
                    return Err(broken("the lane is not in its own mask"));
                }
                let lanes = || (0..WARP).filter(|lane| collective.mask >> lane & 1 == 1);
                if !lanes().all(|lane| self.joins(first + lane, &collective)) {
                    continue;
                }
                for lane in lanes() {
                    self.results[first + lane] = self.result_of(first, lane).map_err(broken)?;
                }
                let is_whole = collective.mask == u32::MAX;
                for lane in lanes() {
                    done[lane] = true;
                    ready.push((first + lane) as u32);
                    // Shuffles and votes exchange values; only a synchronisation orders accesses to memory.
                    if collective.kind == kind::SYNC && is_whole {
                        let context = &mut self.contexts[first + lane];
                        context.warp_epoch = context.warp_epoch.wrapping_add(1);
                    }
                }
                if let Some(asynchronous) = self.asynchronous.as_mut()
                    && collective.kind == kind::SYNC
                    && is_whole
                {
                    let warp: Vec<u32> = (first..first + WARP).map(|thread| thread as u32).collect();
                    asynchronous.meet(&warp);
                }
            }
        }
        Ok(ready)
    }

    /// The result that a collective gives `lane` of the warp whose first thread is `first`, once all lanes of its mask wait there.
    fn result_of(&mut self, first: usize, lane: usize) -> Result<u64, &'static str> {
        let at = |lane: usize| match self.states[first + lane] {
            State::AtCollective(collective) => collective,
            _ => unreachable!("all of them wait"),
        };
        let own = at(lane);
        let is_in = |lane: usize| lane < WARP && own.mask >> lane & 1 == 1;
        let from = |other: usize| match is_in(other) {
            true => Ok(at(other).value),
            false => Err("a lane outside its mask is read"),
        };
        let lanes = || (0..WARP).filter(|&lane| is_in(lane));
        let votes = lanes().filter(|&lane| at(lane).value != 0);
        let argument = own.argument as usize;
        Ok(match own.kind {
            kind::EXCHANGE => {
                let to =
                    &mut bytemuck::cast_slice_mut(&mut self.exchanged)[first * OFFER + lane * argument..][..argument];
                // SAFETY: the lane waits, and what it offers lies on its stack.
                to.copy_from_slice(unsafe { std::slice::from_raw_parts(own.value as *const u8, argument) });
                0
            }
            kind::SYNC => 0,
            kind::SHUFFLE => from(argument)?,
            kind::SHUFFLE_XOR => from(lane ^ argument)?,
            kind::SHUFFLE_DOWN if lane + argument >= WARP => own.value,
            kind::SHUFFLE_DOWN => from(lane + argument)?,
            kind::SHUFFLE_UP if lane < argument => own.value,
            kind::SHUFFLE_UP => from(lane - argument)?,
            kind::BALLOT => votes.fold(0, |ballot, lane| ballot | 1 << lane),
            kind::ANY => u64::from(votes.count() > 0),
            kind::ALL => u64::from(votes.count() == lanes().count()),
            _ => return Err("unknown"),
        })
    }

    /// Gives back the coroutines that a fault left behind.
    fn abandon(&mut self) {
        for mut worker in self.workers.drain(..).flatten() {
            // SAFETY: kernels own nothing that must be dropped, and neither do the callbacks below while they wait.
            unsafe { worker.force_reset() };
            STACKS.with_borrow_mut(|stacks| stacks.push(worker.into_stack()));
        }
        self.yielders.clear();
    }

    /// Lets the current thread wait.
    ///
    /// # Safety
    /// Called on the coroutine of the current thread.
    #[inline(always)]
    unsafe fn wait(block: *mut Block, state: State) {
        // SAFETY: as in `hire`; no reference into the block is held while the coroutine waits.
        unsafe {
            let current = (*block).current as usize;
            (&mut (*block).states)[current] = state;
            let yielder = (&(*block).yielders)[(*block).worker];
            (*yielder).suspend(());
        }
    }

    /// Ends the block: the current thread never goes on.
    ///
    /// # Safety
    /// As [`Block::wait`].
    unsafe fn fail(block: *mut Block, what: String) {
        // SAFETY: as in `wait`.
        unsafe {
            (*block).fault = Some(what);
            loop {
                Block::wait(block, State::Running);
            }
        }
    }

    /// The array is there in each block from now on.
    fn declare(&mut self, site: *const c_char, bytes: usize, count: usize) -> Result<&Declared, String> {
        let found = self.declared.iter().position(|declared| declared.site == site);
        let index = match found {
            Some(index) => index,
            None => {
                let start = self.shared_used.next_multiple_of(16);
                let room = DECLARED.min(Blocks::SHARED - self.dynamic_shared);
                if start + bytes > room {
                    return Err(format!("{} bytes of shared memory; {room} can be declared", start + bytes));
                }
                self.declared.push(Declared { site, data: start, shadow: self.shadow_used });
                self.shared_used = start + bytes;
                self.shadow_used += count;
                self.clear_shared(start..start + bytes, self.shadow_used - count..self.shadow_used);
                self.declared.len() - 1
            }
        };
        Ok(&self.declared[index])
    }

    /// Poisons these bytes and marks of each block. Shared memory and its shadow are reserved in full size at once: kernels keep pointers
    /// into both.
    fn clear_shared(&mut self, bytes: Range<usize>, marks: Range<usize>) {
        let (part, blocks) = (self.part(), self.blocks());
        self.shared.resize(self.shared.len().max(blocks * part / 16), 0);
        self.shadow.resize(self.shadow.len().max(blocks * part), Shadow::default());
        let shared: &mut [u8] = bytemuck::cast_slice_mut(&mut self.shared);
        for (shared, shadow) in shared.chunks_exact_mut(part).zip(self.shadow.chunks_exact_mut(part)).take(blocks) {
            shared[bytes.clone()].fill(super::memory::POISON);
            shadow[marks.clone()].fill(Shadow::default());
        }
    }

    /// Makes the dynamic shared memory known, under the one name and type that a kernel gives it.
    fn name_dynamic(&mut self, site: *const c_char) -> Result<(), String> {
        if self.dynamic_site.is_null() {
            let range = DECLARED..DECLARED + self.dynamic_shared;
            self.clear_shared(range.clone(), range);
            self.dynamic_site = site;
        }
        match self.dynamic_site == site {
            true => Ok(()),
            false => Err(format!("{} is a second name of the dynamic shared memory", text(site))),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        HANDED.set(Handed {
            contexts: take(&mut self.contexts),
            copies: take(&mut self.copies),
            shared: take(&mut self.shared),
            shadow: take(&mut self.shadow),
        });
    }
}

pub(super) fn text(string: *const c_char) -> String {
    // SAFETY: all strings here are literals of the kernels' sources.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn barrier(_: *const Context, file: *const c_char, line: u32) {
    // SAFETY: called by a kernel, so on the coroutine of the current thread of the current block.
    unsafe { Block::wait(CURRENT.get(), State::AtBarrier(Site { file, line })) }
}

unsafe extern "C" fn collective(
    context: *const Context,
    kind: u32,
    mask: u32,
    value: u64,
    argument: u32,
    file: *const c_char,
    line: u32,
) -> u64 {
    // SAFETY: as in `barrier`.
    unsafe {
        let (block, thread) = (CURRENT.get(), calls::who(context));
        let site = Site { file, line };
        Block::wait(block, State::AtCollective(Collective { kind, mask, value, argument, site }));
        (&(*block).results)[thread]
    }
}

/// Everybody's offers are copied when all have arrived: whoever runs ahead to the next exchange cannot overwrite them.
unsafe extern "C" fn exchange(
    context: *const Context,
    offer: *const u8,
    bytes: u32,
    file: *const c_char,
    line: u32,
) -> *const u8 {
    // SAFETY: as in `barrier`; an offer has at most `OFFER` bytes, which stay where they are while its thread waits.
    unsafe {
        let (block, thread) = (CURRENT.get(), calls::who(context));
        let threads = (*block).states.len();
        (*block).exchanged.resize(threads * OFFER / size_of::<u128>(), 0);
        collective(context, kind::EXCHANGE, u32::MAX, offer as u64, bytes, file, line);
        (*block).exchanged.as_ptr().cast::<u8>().add(thread / WARP * WARP * OFFER)
    }
}

unsafe extern "C" fn shared(
    context: *const Context,
    site: *const c_char,
    bytes: u32,
    count: u32,
    data: *mut *mut c_void,
    shadow: *mut *mut Shadow,
) {
    // SAFETY: as in `barrier`; both results point into vectors that keep their place while the block runs.
    unsafe {
        let block = CURRENT.get();
        let part = (*context).rank as usize * (*block).part();
        match (*block).declare(site, bytes as usize, count as usize) {
            Ok(declared) => {
                let (at, shadow_at) = (part + declared.data, part + declared.shadow);
                *data = (*block).shared.as_mut_ptr().byte_add(at).cast();
                *shadow = (*block).shadow.as_mut_ptr().add(shadow_at);
            }
            Err(what) => Block::fail(block, what),
        }
    }
}

/// Returns how many bytes there are.
unsafe extern "C" fn dynamic(
    context: *const Context,
    site: *const c_char,
    data: *mut *mut c_void,
    shadow: *mut *mut Shadow,
) -> u32 {
    // SAFETY: as in `shared`.
    unsafe {
        let block = CURRENT.get();
        match (*block).name_dynamic(site) {
            Ok(()) => {
                let at = (*context).rank as usize * (*block).part() + DECLARED;
                *data = (*block).shared.as_mut_ptr().byte_add(at).cast();
                *shadow = (*block).shadow.as_mut_ptr().add(at);
            }
            Err(what) => Block::fail(block, what),
        }
        (*block).dynamic_shared as u32
    }
}

unsafe extern "C" fn fault(context: *const Context, what: *const c_char, name: *const c_char, place: u64, other: u32) {
    // SAFETY: as in `barrier`.
    unsafe {
        let who = match other {
            // As `emulator::MANY` and `emulator::WHOLE_WARP` mark them.
            0xFFFF => ", also touched by several other threads".into(),
            0x8000.. => format!(", also touched by warp {}", other - 0x8000),
            _ if other == (*context).thread.x => String::new(),
            _ => format!(", also touched by thread {other}"),
        };
        let (what, name) = (text(what), text(name));
        let place = if name == "address" { format!("{place:#x}") } else { format!("[{}]", place as i64) };
        let message = format!("{what} {name}{place}{who}").replace("address0x", "address 0x");
        Block::fail(CURRENT.get(), message);
    }
}
