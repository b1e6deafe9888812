//! Barriers in shared memory, whose phases count arrivals and bytes.

use std::ffi::c_char;

use super::clocks::{BARRIERS, Shadow, join};
use super::copies::Flying;
use super::{Asynchronous, Other, Site};
use crate::gpu::emulator::block::text;

/// Pending bytes of a barrier's phase stay below this.
const PENDING: i64 = 1 << 20;
/// In a barrier's word, above its number.
const MADE: u64 = 0x6261_7272 << 32;

/// A barrier in shared memory.
pub struct Barrier {
    name: *const c_char,
    index: u32,
    /// So many threads arrive in each phase; so many are missing in this one, and so many bytes.
    arrivals: u32,
    missing: u32,
    bytes: i64,
    /// Phases that are complete.
    pub phases: u32,
    /// What those who arrived had waited for, in this phase and in those before; and up to the last one that is complete.
    gathered: Vec<u32>,
    released: Vec<u32>,
    made_by: usize,
    pub made_by_rank: usize,
    /// The last phase in which somebody of another block arrived, counted from 1; 0: none.
    pub reached_in: u32,
    pub is_fenced: bool,
}

impl Barrier {
    pub fn name(&self) -> String {
        format!("{}[{}]", text(self.name), self.index)
    }

    fn is_complete(&self, parity: u32) -> bool {
        self.phases & 1 != parity & 1
    }
}

impl Asynchronous {
    /// # Safety
    /// `word` is a barrier of the kernel's, and `shadow` its shadow.
    pub unsafe fn make_barrier(
        &mut self,
        thread: usize,
        word: *mut u64,
        shadow: *mut Shadow,
        name: *const c_char,
        index: u32,
        arrivals: u32,
    ) -> Result<(), String> {
        // SAFETY: as the caller promises.
        let (word, shadow) = unsafe { (&mut *word, &mut *shadow) };
        let named = format!("{}[{index}]", text(name));
        self.access(thread, shadow, None, true, || named.clone())?;
        if *word & !0xFFFF_FFFF == MADE {
            return Err(format!("barrier {named} is made a second time"));
        }
        if arrivals == 0 || arrivals >= PENDING as u32 {
            return Err(format!("barrier {named} is made for {arrivals} arrivals"));
        }
        let made_by_rank = self.clocks.rank_of(thread);
        if self.barriers.iter().filter(|barrier| barrier.made_by_rank == made_by_rank).count() == BARRIERS {
            return Err(format!("more than {BARRIERS} barriers in a block are beyond the emulator"));
        }
        *word = MADE | self.barriers.len() as u64;
        let nothing = vec![0; self.clocks.width()];
        self.barriers.push(Barrier {
            name,
            index,
            arrivals,
            missing: arrivals,
            bytes: 0,
            phases: 0,
            gathered: nothing.clone(),
            released: nothing,
            made_by: thread,
            made_by_rank,
            reached_in: 0,
            is_fenced: false,
        });
        Ok(())
    }

    /// # Safety
    /// As [`Asynchronous::make_barrier`].
    pub unsafe fn find_barrier(
        &self,
        thread: usize,
        word: *const u64,
        shadow: *const Shadow,
        name: *const c_char,
        index: u32,
    ) -> Result<usize, String> {
        // SAFETY: as the caller promises.
        let (word, write) = unsafe { (*word, (*shadow).write) };
        let named = || format!("barrier {}[{index}]", text(name));
        if !self.clocks.is_known(self.clocks.row(thread), write) {
            return Err(format!("race: use of {} before it is made{}", named(), self.describe(Other::Mark(write))));
        }
        match word & !0xFFFF_FFFF == MADE {
            true => Ok((word & 0xFFFF_FFFF) as usize),
            false => Err(format!("{} was not made", named())),
        }
    }

    /// What the thread wrote is seen by the asynchronous proxy; the barriers that it made are too.
    pub fn fence(&mut self, thread: usize, of_barriers: bool) {
        let made = self.barriers.iter_mut().filter(|barrier| barrier.made_by == thread);
        made.for_each(|barrier| barrier.is_fenced = true);
        if !of_barriers {
            self.clocks.fence(thread);
        }
    }

    pub fn arrive(&mut self, thread: usize, barrier: usize, bytes: u32) -> Result<(), String> {
        let (row, rank) = (self.clocks.row(thread), self.clocks.rank_of(thread));
        let at = &mut self.barriers[barrier];
        if at.made_by_rank != rank {
            at.reached_in = at.phases + 1;
        }
        if at.missing == 0 {
            let (name, arrivals) = (at.name(), at.arrivals);
            return Err(format!("more threads arrive at barrier {name} than the {arrivals} that it was made for"));
        }
        join(&mut at.gathered, row);
        at.missing -= 1;
        self.clocks.step(thread);
        self.expect(barrier, i64::from(bytes))
    }

    /// So many bytes are to come in this phase, or fewer.
    pub fn expect(&mut self, barrier: usize, bytes: i64) -> Result<(), String> {
        let at = &mut self.barriers[barrier];
        at.bytes += bytes;
        match at.bytes.abs() < PENDING {
            true => self.complete(barrier),
            false => Err(format!("barrier {} waits for {} bytes, more than it can count", at.name(), at.bytes)),
        }
    }

    /// Begins the next phase if this one is complete.
    fn complete(&mut self, barrier: usize) -> Result<(), String> {
        let column = self.clocks.column_of_barrier(barrier);
        let at = &mut self.barriers[barrier];
        if at.missing > 0 || at.bytes != 0 {
            return Ok(());
        }
        if let Some(Flying { copy, .. }) = self.flying.iter().find(|flying| flying.barrier == barrier) {
            let name = at.name();
            return Err(format!(
                "a phase of barrier {name} is complete before the bulk copy at {} is: fewer bytes are expected than copied",
                copy.site()
            ));
        }
        at.phases += 1;
        at.missing = at.arrivals;
        at.gathered[column] = at.phases;
        at.released.copy_from_slice(&at.gathered);
        Ok(())
    }

    /// Whether the phase of this parity is complete; then the thread knows what those who arrived knew.
    pub fn try_wait(&mut self, thread: usize, barrier: usize, parity: u32) -> bool {
        let at = &self.barriers[barrier];
        if !at.is_complete(parity) {
            return false;
        }
        join(self.clocks.row_mut(thread), &at.released);
        true
    }

    pub fn describe_wait(&self, barrier: usize, parity: u32, site: Site) -> String {
        let at = &self.barriers[barrier];
        format!(
            "the wait at {site} for a phase of barrier {} of parity {parity} never ends: {} of {} arrivals and {} bytes are \
             missing in phase {}",
            at.name(),
            at.missing,
            at.arrivals,
            at.bytes,
            at.phases
        )
    }
}
