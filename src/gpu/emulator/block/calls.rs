//! What a block does for kernels on sm_90a's terms: the functions that these call, and who can go on of those who wait. What happens
//! beside the threads, and what is a fault, `asynchronous` knows.

use std::ffi::c_char;

use super::{Block, Broken, CURRENT, Context, DECLARED, Named, State, WARP, text};
use crate::gpu::emulator::asynchronous::{Asynchronous, BulkCopy, Cores, Dynamic, Product, Shadow, Site, WARPGROUP};

/// Barriers that a block's threads can meet at by number.
const NAMED_BARRIERS: u32 = 16;

impl Named {
    /// From whatever line of the source it is reached.
    fn is_of(&self, other: &Named) -> bool {
        (self.id, self.threads) == (other.id, other.threads)
    }
}

impl Block {
    /// Lets a bulk copy arrive, if one is under way.
    pub(super) fn land(&mut self, seed: u64) -> Result<(), Broken> {
        let asynchronous = self.asynchronous.as_mut().filter(|asynchronous| asynchronous.is_copying());
        let landed = asynchronous.map_or(Ok(()), |asynchronous| asynchronous.land(seed >> 1));
        landed.map_err(|(thread, what)| self.broken(thread, what))
    }

    /// What a block may leave behind when all threads have ended.
    pub(super) fn finish(&self) -> Result<(), Broken> {
        let left_over = self.asynchronous.as_ref().and_then(|asynchronous| asynchronous.left_over());
        left_over.map_or(Ok(()), |(thread, what)| Err(self.broken(thread, what)))
    }

    /// That of the block with this rank.
    fn dynamic(&self, rank: usize) -> Dynamic {
        let (data, shadow) = (self.shared.as_ptr().cast_mut(), self.shadow.as_ptr().cast_mut());
        // Before the kernel names it there is none.
        let bytes = if self.dynamic_site.is_null() { 0 } else { self.dynamic_shared };
        let at = rank * self.part() + DECLARED;
        Dynamic {
            data: data.cast::<u8>().wrapping_add(at),
            shadow: shadow.wrapping_add(at),
            bytes,
            name: self.dynamic_site,
        }
    }

    /// That of the thread's block.
    fn dynamic_of(&self, thread: usize) -> Dynamic {
        self.dynamic(thread / self.threads)
    }

    /// The bytes from a thread's part of shared memory to that of a block of its cluster, and the marks: as many.
    fn reach(&self, rank: usize, thread: usize) -> Result<isize, String> {
        let (blocks, own) = (self.blocks(), thread / self.threads);
        if rank >= blocks {
            return Err(format!("a block of rank {rank} is reached for in a cluster of {blocks}"));
        }
        if self.has_ended(rank) {
            return Err(format!("the block of rank {rank} is reached for, which has ended"));
        }
        Ok((rank as isize - own as isize) * self.part() as isize)
    }

    fn has_ended(&self, rank: usize) -> bool {
        self.states[self.threads_of(rank)].iter().all(|state| matches!(state, State::Ended))
    }

    /// What a block of a cluster may leave behind for the others, when all of its threads have ended.
    pub(super) fn end_blocks(&mut self) -> Result<(), Broken> {
        if self.blocks() == 1 {
            return Ok(());
        }
        let ended: Vec<usize> = (0..self.blocks()).filter(|rank| self.has_ended(*rank)).collect();
        let left = self
            .asynchronous
            .as_mut()
            .and_then(|asynchronous| ended.into_iter().find_map(|rank| asynchronous.end_block(rank)));
        left.map_or(Ok(()), |(thread, what)| Err(self.broken(thread, what)))
    }

    /// Of a block in which nobody can go on: who is missing at the cluster's barrier.
    pub(super) fn stuck_at_cluster(&self) -> Option<Broken> {
        let site = self.states.iter().find_map(|state| match state {
            State::AtCluster(site) => Some(site),
            _ => None,
        })?;
        let absent = self.states.iter().position(|state| !matches!(state, State::AtCluster(_)))?;
        let what =
            format!("the cluster's barrier at {site} is not reached by this thread, {}", self.whereabouts(absent));
        Some(self.broken(absent, what))
    }

    fn asynchronous(&mut self) -> &mut Asynchronous {
        let (part, threads, used, dynamic) = (self.part(), self.threads, self.shadow_used, self.dynamic_shared);
        let named = if self.dynamic_site.is_null() { 0 } else { dynamic };
        let (contexts, shadow) = (&mut self.contexts, &mut self.shadow);
        self.asynchronous.get_or_insert_with(|| {
            contexts.iter_mut().for_each(|context| context.asynchronous = 1);
            let steps: Vec<u16> = contexts.iter().map(|context| context.warp_epoch).collect();
            let mut asynchronous = Asynchronous::new(&steps, threads, dynamic);
            // Not every block has shared memory yet.
            for (rank, shadow) in shadow.chunks_exact_mut(part).take(steps.len() / threads).enumerate() {
                let epoch = contexts[rank * threads].epoch;
                asynchronous.take_over(rank, &mut shadow[..used], epoch);
                asynchronous.take_over(rank, &mut shadow[DECLARED..DECLARED + named], epoch);
            }
            Box::new(asynchronous)
        })
    }

    /// Threads that wait for what is asynchronous and can go on.
    pub(super) fn complete_asynchronous(&mut self) -> Result<Vec<u32>, Broken> {
        let Some(mut asynchronous) = self.asynchronous.take() else { return Ok(Vec::new()) };
        let mut ready = self.complete_phases(&mut asynchronous);
        let result = self
            .complete_named_barriers(&mut asynchronous, &mut ready)
            .and_then(|()| self.complete_products(&mut asynchronous, &mut ready));
        self.asynchronous = Some(asynchronous);
        result.map(|()| ready)
    }

    fn complete_phases(&self, asynchronous: &mut Asynchronous) -> Vec<u32> {
        let mut complete = |thread: &usize| match self.states[*thread] {
            State::AtPhase { barrier, parity, .. } => asynchronous.try_wait(*thread, barrier, parity),
            _ => false,
        };
        (0..self.states.len()).filter(|thread| complete(thread)).map(|thread| thread as u32).collect()
    }

    /// The threads of a block that wait at each named barrier, and what the first of them says of it.
    fn at_named_barriers(&self) -> Vec<(Vec<u32>, Named)> {
        let mut barriers: Vec<(Vec<u32>, Named)> = Vec::new();
        for (thread, state) in self.states.iter().enumerate() {
            let State::AtNamedBarrier(named) = *state else { continue };
            let is_there = |threads: &[u32]| threads[0] as usize / self.threads == thread / self.threads;
            match barriers.iter_mut().find(|(threads, first)| first.id == named.id && is_there(threads)) {
                Some((threads, _)) => threads.push(thread as u32),
                None => barriers.push((vec![thread as u32], named)),
            }
        }
        barriers
    }

    fn complete_named_barriers(&self, asynchronous: &mut Asynchronous, ready: &mut Vec<u32>) -> Result<(), Broken> {
        for (threads, named) in self.at_named_barriers() {
            let Named { id, threads: count, site } = named;
            let is_of_another = |thread: &&u32| match self.states[**thread as usize] {
                State::AtNamedBarrier(own) => !own.is_of(&named),
                _ => true,
            };
            if let Some(other) = threads.iter().find(is_of_another) {
                let what = format!("barrier {id} at {site} of {count} threads is one of others for this thread");
                return Err(self.broken(*other as usize, what));
            }
            if threads.len() > count as usize {
                let what = format!("barrier {id} at {site} is one of {count} threads, and more come");
                return Err(self.broken(threads[count as usize] as usize, what));
            }
            let is_whole =
                |warp: &[u32]| warp.len() == WARP && warp[0] as usize / WARP == warp[WARP - 1] as usize / WARP;
            if threads.len() == count as usize && threads.chunks(WARP).all(is_whole) {
                asynchronous.meet(&threads);
                ready.extend(threads);
            }
        }
        Ok(())
    }

    fn complete_products(&self, asynchronous: &mut Asynchronous, ready: &mut Vec<u32>) -> Result<(), Broken> {
        let [bytes, extra] = self.tensor_cores;
        for (group, states) in self.states.chunks_exact(WARPGROUP).enumerate() {
            let State::AtProducts { left, site } = states[0] else { continue };
            if states.iter().all(|state| waits_for_products(state, left, site)) {
                let finished =
                    asynchronous.finish(group, left, self.dynamic_of(group * WARPGROUP), Cores { bytes, extra }, site);
                finished.map_err(|(thread, what)| self.broken(thread, what))?;
                ready.extend((group * WARPGROUP..(group + 1) * WARPGROUP).map(|thread| thread as u32));
            }
        }
        Ok(())
    }

    /// Says of a block in which nobody can go on what somebody waits for that is asynchronous: phases first, which products and named
    /// barriers may wait for.
    pub(super) fn stuck_asynchronous(&self) -> Option<Broken> {
        let asynchronous = self.asynchronous.as_ref()?;
        let states = || self.states.iter().enumerate();
        let phase = states().find_map(|(thread, state)| match *state {
            State::AtPhase { barrier, parity, site } => {
                Some(self.broken(thread, asynchronous.describe_wait(barrier, parity, site)))
            }
            _ => None,
        });
        let products = || {
            states().find_map(|(thread, state)| match *state {
                State::AtProducts { left, site } => Some(self.missing_at_products(thread, left, site)),
                _ => None,
            })
        };
        let named = || {
            states().find_map(|(thread, state)| match *state {
                State::AtNamedBarrier(Named { id, threads, site }) => {
                    let here = |state: &&State| matches!(state, State::AtNamedBarrier(named) if named.id == id);
                    let block = &self.states[self.threads_of(thread / self.threads)];
                    let count = block.iter().filter(here).count();
                    let of = format!("barrier {id} at {site} is one of {threads} threads, whole warps");
                    Some(self.broken(thread, format!("{of}, of which {count} come")))
                }
                _ => None,
            })
        };
        phase.or_else(products).or_else(named)
    }

    /// Somebody of the thread's warpgroup who does not wait for the same products.
    fn missing_at_products(&self, thread: usize, left: u32, site: Site) -> Broken {
        let first = thread / WARPGROUP * WARPGROUP;
        let is_absent = |thread: &usize| !waits_for_products(&self.states[*thread], left, site);
        let absent = (first..first + WARPGROUP).find(is_absent).unwrap_or(thread);
        let what = format!("the wait for products at {site} is not reached by this thread of its warpgroup, ");
        self.broken(absent, what + &self.whereabouts(absent))
    }
}

fn waits_for_products(state: &State, left: u32, site: Site) -> bool {
    matches!(state, State::AtProducts { left: own, site: at } if (*own, *at) == (left, site))
}

/// The thread that runs, among those of its cluster.
///
/// # Safety
/// As in `barrier`.
pub(super) unsafe fn who(context: *const Context) -> usize {
    // SAFETY: as the caller promises.
    unsafe { ((*context).rank * (*context).threads.x + (*context).thread.x) as usize }
}

/// # Safety
/// As in `barrier`.
unsafe fn unless_fault(block: *mut Block, result: Result<(), String>) {
    if let Err(what) = result {
        // SAFETY: as the caller promises.
        unsafe { Block::fail(block, what) }
    }
}

pub(super) unsafe extern "C" fn access(
    context: *const Context,
    shadow: *mut Shadow,
    at: *const u8,
    name: *const c_char,
    i: u64,
    writes: u32,
) {
    // SAFETY: as in `barrier`; the shadow is that of the number that is accessed.
    unsafe {
        let block = CURRENT.get();
        let place = (*block).dynamic_of(who(context)).place(at);
        let named = || format!("{}[{}]", text(name), i as i64);
        let result = (*block).asynchronous().access(who(context), &mut *shadow, place, writes != 0, named);
        unless_fault(block, result);
    }
}

pub(super) unsafe extern "C" fn barrier_init(
    context: *const Context,
    word: *mut u64,
    shadow: *mut Shadow,
    name: *const c_char,
    i: u32,
    arrivals: u32,
) {
    // SAFETY: as in `access`.
    unsafe {
        let block = CURRENT.get();
        let result = (*block).asynchronous().make_barrier(who(context), word, shadow, name, i, arrivals);
        unless_fault(block, result);
    }
}

pub(super) unsafe extern "C" fn fence(context: *const Context, of_barriers: u32) {
    // SAFETY: as in `barrier`.
    unsafe {
        (*CURRENT.get()).asynchronous().fence(who(context), of_barriers != 0);
    }
}

pub(super) unsafe extern "C" fn barrier_arrive(
    context: *const Context,
    word: *mut u64,
    shadow: *const Shadow,
    name: *const c_char,
    i: u32,
    bytes: u32,
    rank: u32,
) {
    // SAFETY: as in `access`; the other block's part of shared memory is like this one's.
    unsafe {
        let block = CURRENT.get();
        let result = (*block).reach(rank as usize, who(context)).and_then(|away| {
            let (word, shadow) = (word.wrapping_byte_offset(away), shadow.wrapping_offset(away));
            let asynchronous = (*block).asynchronous();
            let barrier = asynchronous.find_barrier(who(context), word, shadow, name, i)?;
            asynchronous.arrive(who(context), barrier, bytes)
        });
        unless_fault(block, result);
    }
}

pub(super) unsafe extern "C" fn barrier_wait(
    context: *const Context,
    word: *mut u64,
    shadow: *const Shadow,
    name: *const c_char,
    i: u32,
    parity: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: as in `access`.
    unsafe {
        let block = CURRENT.get();
        let found = (*block).asynchronous().find_barrier(who(context), word, shadow, name, i);
        match found {
            Ok(barrier) => {
                if !(*block).asynchronous().try_wait(who(context), barrier, parity) {
                    Block::wait(block, State::AtPhase { barrier, parity, site: Site { file, line } });
                }
            }
            Err(what) => Block::fail(block, what),
        }
    }
}

pub(super) unsafe extern "C" fn named_barrier(
    _: *const Context,
    id: u32,
    threads: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: as in `barrier`.
    unsafe {
        let (block, site) = (CURRENT.get(), Site { file, line });
        (*block).asynchronous();
        if id >= NAMED_BARRIERS || threads == 0 || !threads.is_multiple_of(WARP as u32) {
            Block::fail(block, format!("barrier {id} of {threads} threads at {site}: there are 16, of whole warps"));
        }
        Block::wait(block, State::AtNamedBarrier(Named { id, threads, site }));
    }
}

/// To each block of the cluster whose bit of `mask` is set.
pub(super) unsafe extern "C" fn copy(
    context: *const Context,
    copy: *const BulkCopy,
    shadow: *const Shadow,
    i: u32,
    mask: u32,
) {
    // SAFETY: as in `barrier_arrive`; the copy lies on the stack of the thread.
    unsafe {
        let (block, thread) = (CURRENT.get(), who(context));
        let to = |rank: usize| {
            let away = (*block).reach(rank, thread)?;
            let (copy, shadow) = ((*copy).moved(away), shadow.wrapping_offset(away));
            let dynamic = (*block).dynamic(rank);
            let asynchronous = (*block).asynchronous();
            let barrier = asynchronous.find_barrier(thread, copy.barrier, shadow, copy.barrier_name, i)?;
            asynchronous.copy(thread, &copy, barrier, dynamic)
        };
        let mut ranks = (0..u32::BITS as usize).filter(|rank| mask >> rank & 1 == 1);
        unless_fault(block, ranks.try_for_each(to));
    }
}

pub(super) unsafe extern "C" fn address(context: *const Context, at: *const u8, name: *const c_char) -> u32 {
    // SAFETY: as in `barrier`.
    unsafe {
        let block = CURRENT.get();
        if let Some(place) = (*block).dynamic_of(who(context)).place(at) {
            return place as u32;
        }
        Block::fail(block, format!("{} has no such place in dynamic shared memory, where tiles lie", text(name)));
        0
    }
}

pub(super) unsafe extern "C" fn product(context: *const Context, product: *const Product) {
    // SAFETY: as in `barrier`; the product lies on the stack of the thread, and so do its sums.
    unsafe {
        let block = CURRENT.get();
        let dynamic = (*block).dynamic_of(who(context));
        let result = (*block).asynchronous().ask(who(context), &*product, dynamic);
        unless_fault(block, result);
    }
}

pub(super) unsafe extern "C" fn product_fence(context: *const Context, commits: u32) {
    // SAFETY: as in `barrier`.
    unsafe { (*CURRENT.get()).asynchronous().fence_products(who(context), commits != 0) }
}

pub(super) unsafe extern "C" fn product_wait(
    context: *const Context,
    left: u32,
    sums: *mut f32,
    count: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: as in `product`.
    unsafe {
        let (block, site, thread) = (CURRENT.get(), Site { file, line }, who(context));
        let result = (*block).asynchronous().check_sums(thread, sums, count as usize, site);
        unless_fault(block, result);
        Block::wait(block, State::AtProducts { left, site });
    }
}

pub(super) unsafe extern "C" fn registers(
    context: *const Context,
    count: u32,
    up: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: as in `barrier`.
    unsafe {
        let (block, site) = (CURRENT.get(), Site { file, line });
        let result = (*block).asynchronous().set_registers(who(context), count, up != 0, site);
        unless_fault(block, result);
    }
}

pub(super) unsafe extern "C" fn cluster_barrier(_: *const Context, file: *const c_char, line: u32) {
    // SAFETY: as in `barrier`.
    unsafe {
        let block = CURRENT.get();
        (*block).asynchronous();
        Block::wait(block, State::AtCluster(Site { file, line }));
    }
}
