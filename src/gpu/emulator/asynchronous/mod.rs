//! What runs beside a block's threads on Hopper, and in which order: barriers in shared memory that count arrivals and bytes, bulk
//! copies that arrive when they like, products of warpgroups that are computed when they are waited for, named barriers.
//!
//! A block that uses any of these is *asynchronous* from then on: barriers of all its threads no longer say alone who sees what. It keeps
//! vector clocks. Each thread counts its *steps*; one ends where the thread tells others of what it did so far: where it
//! arrives at a barrier, or fences. Barriers in shared memory count their phases, warpgroups the products that were waited for. These three
//! kinds of counters are the columns of a table with a row for each thread: up to where the thread has waited for each. Who
//! waits for a phase takes the rows over of all who arrived. A number in shared memory is marked with the column and the count of who wrote
//! it last, and of who read it; a bulk copy writes in the name of its barrier's phase, from when it is asked for. An
//! access whose thread's row does not reach the mark is a race, even if all went well this time.
//!
//! The asynchronous proxy (bulk copies, products) sees what a thread wrote only behind that thread's `fence_async`, the end of a step too.
//!
//! Blocks of a cluster have one table: each sees of the others what it has waited for. They reach into each other by arriving at barriers
//! and by copies to several of them at once, only while the other is there: one that has ended without having waited for them is a fault.
//!
//! Bulk copies only read global memory when they land.

mod barriers;
mod clocks;
mod copies;
mod products;

use std::ffi::c_char;

use super::block::text;
use barriers::Barrier;
pub use clocks::Shadow;
use clocks::{Clocks, Mark};
pub use copies::BulkCopy;
use copies::Flying;
pub use products::{Cores, Product};
use products::{Lane, Warpgroup};

pub const WARPGROUP: usize = 128;

/// A place in a kernel's source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Site {
    pub file: *const c_char,
    pub line: u32,
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", text(self.file), self.line)
    }
}

/// The memory that a block's threads share, as far as it is dynamic.
#[derive(Clone, Copy)]
pub struct Dynamic {
    pub data: *mut u8,
    pub shadow: *mut Shadow,
    pub bytes: usize,
    pub name: *const c_char,
}

impl Dynamic {
    pub fn place(&self, at: *const u8) -> Option<usize> {
        (at as usize).checked_sub(self.data as usize).filter(|place| *place < self.bytes)
    }

    fn name(&self) -> String {
        if self.name.is_null() { "dynamic shared memory".into() } else { text(self.name) }
    }
}

/// Who stands in the way of an access.
#[derive(Clone, Copy)]
enum Other {
    Mark(Mark),
    Product(usize),
}

pub struct Asynchronous {
    clocks: Clocks,
    barriers: Vec<Barrier>,
    flying: Vec<Flying>,
    lanes: Vec<Lane>,
    warpgroups: Vec<Warpgroup>,
}

impl Asynchronous {
    /// Of blocks of so many threads each, which have synchronised their warps so often, plus one.
    pub fn new(warp_steps: &[u16], in_block: usize, dynamic: usize) -> Asynchronous {
        let threads = warp_steps.len();
        let clocks = Clocks::new(warp_steps, in_block, dynamic);
        Asynchronous {
            warpgroups: (0..clocks.groups()).map(|_| Warpgroup::default()).collect(),
            clocks,
            barriers: Vec::new(),
            flying: Vec::new(),
            lanes: (0..threads).map(|_| Lane::default()).collect(),
        }
    }

    /// Shared memory that was marked as before, of a block in its `epoch`-th stretch between barriers.
    pub fn take_over(&mut self, rank: usize, marks: &mut [Shadow], epoch: u32) {
        self.clocks.take_over(rank, marks, epoch);
    }

    /// These threads have waited for each other.
    pub fn meet(&mut self, threads: &[u32]) {
        self.clocks.meet(threads);
    }

    fn describe(&self, other: Other) -> String {
        match other {
            Other::Product(group) => {
                format!(", also touched by a product of warpgroup {group} that was not waited for")
            }
            Other::Mark(mark) => match (self.clocks.owners(mark), self.clocks.barrier_of(mark)) {
                (1, None) => format!(", also touched by {}", self.clocks.name_of(mark.column.into())),
                (1, Some(barrier)) => {
                    let name = self.barriers[barrier].name();
                    format!(", also touched by a bulk copy; barrier {name} of it was not waited for")
                }
                (several, _) => format!(", also touched by {several} other threads"),
            },
        }
    }

    /// A thread reads or writes a number, `named` so.
    pub fn access(
        &mut self,
        thread: usize,
        shadow: &mut Shadow,
        place: Option<usize>,
        writes: bool,
        named: impl Fn() -> String,
    ) -> Result<(), String> {
        let row = self.clocks.row(thread);
        let race = |what: &str, other| Err(format!("race: {what} of {}{}", named(), self.describe(other)));
        if !self.clocks.is_known(row, shadow.write) {
            let what = if writes { "two writes" } else { "read after write" };
            return race(what, Other::Mark(shadow.write));
        }
        let own = Mark::new(thread, row[thread]);
        let is_read_known = self.clocks.is_known(row, shadow.read);
        if !writes {
            shadow.read = if is_read_known { own } else { self.clocks.merge([shadow.read, own]) };
            return Ok(());
        }
        if !is_read_known {
            return race("write after read", Other::Mark(shadow.read));
        }
        let rank = self.clocks.rank_of(thread);
        if let Some(group) = place.and_then(|place| self.clocks.reading(row, rank, place)) {
            return race("write after read", Other::Product(group));
        }
        shadow.write = own;
        Ok(())
    }

    /// What others of the cluster have begun with a block that has ended, and that it has not waited for; with one of its threads.
    pub fn end_block(&mut self, rank: usize) -> Option<(usize, String)> {
        let first = self.clocks.threads_of(rank).start;
        if let Some(Flying { copy, thread, .. }) = self.flying.iter().find(|flying| flying.rank == rank) {
            return Some((*thread, format!("the block ends before the bulk copy at {} is complete", copy.site())));
        }
        let is_awaited = |barrier: usize, phase: u32| {
            let column = self.clocks.column_of_barrier(barrier);
            self.clocks.threads_of(rank).any(|thread| self.clocks.row(thread)[column] >= phase)
        };
        let mut of_block = self.barriers.iter().enumerate().filter(|(_, barrier)| barrier.made_by_rank == rank);
        of_block.find(|(index, barrier)| !is_awaited(*index, barrier.reached_in)).map(|(_, barrier)| {
            let what = format!(
                "the block ends before it has waited for those of others that arrive at barrier {}",
                barrier.name()
            );
            (first, what)
        })
    }

    /// What is left over when all threads have ended, and of which thread.
    pub fn left_over(&self) -> Option<(usize, String)> {
        if let Some(Flying { copy, thread, .. }) = self.flying.first() {
            return Some((*thread, format!("the block ends before the bulk copy at {} is complete", copy.site())));
        }
        for (group, at) in self.warpgroups.iter().enumerate() {
            let first = group * WARPGROUP;
            if let Some(asked) = at.asked.front() {
                return Some((first, format!("the product at {} was never waited for", asked.product.site())));
            }
            let lanes = &self.lanes[first..first + WARPGROUP];
            if let Some(lane) = lanes.iter().position(|lane| lane.registers != at.registers.len()) {
                let what = "the thread ends without setting its registers as others of its warpgroup do";
                return Some((first + lane, what.into()));
            }
        }
        None
    }
}
