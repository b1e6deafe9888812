//! Device memory that is used again, so that a step allocates nothing after the first.
//!
//! A dropped buffer waits on a shelf for the next one of exactly its size. While a graph is captured, buffers have a place
//! in an arena, if the step was traced and a [`MemoryPlan`] made of it; what no plan knows comes from and returns to a shelf
//! that belongs to graphs. Either way, what a graph's launches touch stays theirs for as long as a graph lives, or a
//! replay would overwrite somebody else's numbers.
//!
//! All graphs of a device share one arena, and that shelf: they run one after the other, and nothing that one of them
//! allocates outlives its capture. The arena is as large as the largest plan. A plan that needs more gets a new one; graphs
//! recorded in the old one hold it until they are recorded again.
//!
//! A plan is a promise about the order of sizes and lives, which is checked: a buffer of another size than the plan's next,
//! or one whose place is still taken, comes from the shelf, with all that follow in this capture.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::{Address, Driver};
use super::plan::{Log, MemoryPlan};
use super::{Failure, Handle};

/// Where a buffer returns to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Everybody,
    Graphs,
    /// The arena, in the capture of this number.
    Plan(u64),
}

/// Which of the arenas alive; later ones have larger numbers.
pub(super) type ArenaId = u64;

#[derive(Default)]
pub(super) struct Memory {
    /// By owner and size.
    shelves: BTreeMap<(Owner, usize), Vec<Address>>,
    arenas: BTreeMap<ArenaId, Arena>,
    /// The graph being captured.
    capture: Option<Capture>,
    /// Captures so far.
    captures: u64,
    /// Graphs alive, with the one being captured.
    graphs: usize,
    /// The log of what a traced step allocates and drops.
    pub log: Option<Log>,
    /// Bytes held from the driver, and the most there ever were.
    pub held: usize,
    pub peak: usize,
    /// Requests that the driver had to serve.
    pub allocations: u64,
    /// Buffers of planned captures that did not keep to the plan.
    pub misfits: u64,
}

struct Arena {
    address: Address,
    bytes: usize,
    /// Graphs recorded in it that are alive.
    graphs: usize,
}

struct Capture {
    number: u64,
    planned: Option<Planned>,
}

/// A capture that follows a plan.
struct Planned {
    plan: MemoryPlan,
    arena: Address,
    /// Buffers so far.
    count: usize,
    /// Places that are taken: where each ends, by where it begins.
    live: BTreeMap<usize, usize>,
    /// Whether everything so far was as planned.
    fits: bool,
}

impl Planned {
    /// The next buffer's place.
    fn take(&mut self, bytes: usize) -> Option<Address> {
        let place =
            self.plan.place(self.count).filter(|place| place.bytes == bytes && self.is_free(place.offset, place.end()));
        self.fits &= place.is_some();
        let place = place.filter(|_| self.fits)?;
        self.count += 1;
        self.live.insert(place.offset, place.end());
        Some(self.arena.offset(place.offset))
    }

    fn is_free(&self, begin: usize, end: usize) -> bool {
        // Places do not overlap, so the last one that begins before `end` is the last one that ends.
        self.live.range(..end).next_back().is_none_or(|(_, &other)| other <= begin)
    }

    fn give_back(&mut self, address: Address) {
        let offset = (address.0 - self.arena.0) as usize;
        self.live.remove(&offset).expect("a place that was taken");
    }
}

impl Memory {
    pub fn take(&mut self, driver: &dyn Driver, bytes: usize) -> Result<(Address, Owner), Failure> {
        let (address, owner) = self.find(driver, bytes)?;
        if let Some(log) = &mut self.log {
            log.take(address, bytes);
        }
        Ok((address, owner))
    }

    fn find(&mut self, driver: &dyn Driver, bytes: usize) -> Result<(Address, Owner), Failure> {
        if let Some(Capture { number, planned: Some(planned) }) = &mut self.capture {
            if let Some(address) = planned.take(bytes) {
                let owner = Owner::Plan(*number);
                driver.recycle(address, bytes)?;
                return Ok((address, owner));
            }
            self.misfits += 1;
        }
        let owner = if self.capture.is_some() { Owner::Graphs } else { Owner::Everybody };
        for shelf in [owner, Owner::Everybody] {
            if let Some(address) = self.shelves.get_mut(&(shelf, bytes)).and_then(Vec::pop) {
                driver.recycle(address, bytes)?;
                return Ok((address, owner));
            }
        }
        self.ask(driver, bytes).map(|address| (address, owner))
    }

    /// Memory that is never given back, whether or not work is traced or recorded; what others may still use is none.
    pub fn take_for_good(&mut self, driver: &dyn Driver, bytes: usize) -> Result<Address, Failure> {
        self.ask(driver, bytes)
    }

    /// Takes memory from the driver; where that has none left, after giving back what nobody uses.
    fn ask(&mut self, driver: &dyn Driver, bytes: usize) -> Result<Address, Failure> {
        let address = match driver.allocate(bytes) {
            Err(Failure::OutOfMemory { .. }) => {
                self.trim(driver);
                driver.allocate(bytes)?
            }
            result => result?,
        };
        self.allocations += 1;
        self.held += bytes;
        self.peak = self.peak.max(self.held);
        Ok(address)
    }

    pub fn give_back(&mut self, address: Address, bytes: usize, owner: Owner) {
        if let Some(log) = &mut self.log {
            log.give_back(address);
        }
        if let Owner::Plan(of) = owner {
            if let Some(Capture { number, planned: Some(planned) }) = &mut self.capture
                && *number == of
            {
                planned.give_back(address);
            }
            return;
        }
        // What a capture lets go of may be what the graph reads.
        let is_of_graphs = (owner == Owner::Graphs && self.graphs > 0) || self.capture.is_some();
        let owner = if is_of_graphs { Owner::Graphs } else { Owner::Everybody };
        self.shelves.entry((owner, bytes)).or_default().push(address);
    }

    /// Frees what nobody uses and no graph owns; nothing while a graph is captured, when the driver may not wait for those
    /// who used it.
    pub fn trim(&mut self, driver: &dyn Driver) {
        self.sizes(Owner::Everybody).into_iter().for_each(|bytes| self.free_shelf(driver, bytes));
    }

    fn free_shelf(&mut self, driver: &dyn Driver, bytes: usize) {
        if self.capture.is_some() {
            return;
        }
        for address in self.shelves.remove(&(Owner::Everybody, bytes)).unwrap_or_default() {
            driver.free(address, bytes);
            self.held -= bytes;
        }
    }

    /// The arena for a plan: the one there is, if it is large enough. A new one takes the place of all that waits on shelves,
    /// which are the buffers of the step that was planned.
    pub fn reserve(&mut self, driver: &dyn Driver, plan: &MemoryPlan) -> Result<ArenaId, Failure> {
        let last = self.arenas.last_key_value().map(|(id, arena)| (*id, arena.bytes));
        if let Some((id, bytes)) = last
            && bytes >= plan.arena()
        {
            return Ok(id);
        }
        self.trim(driver);
        let bytes = plan.arena().max(1);
        let address = self.ask(driver, bytes)?;
        let id = last.map_or(0, |(id, _)| id + 1);
        self.arenas.insert(id, Arena { address, bytes, graphs: 0 });
        Ok(id)
    }

    pub fn begin_capture(&mut self, planned: Option<(&MemoryPlan, ArenaId)>) {
        let planned = planned.map(|(plan, id)| {
            let arena = self.arenas.get_mut(&id).expect("it was just reserved");
            arena.graphs += 1;
            Planned { plan: plan.clone(), arena: arena.address, count: 0, live: BTreeMap::new(), fits: true }
        });
        self.captures += 1;
        self.graphs += 1;
        self.capture = Some(Capture { number: self.captures, planned });
    }

    pub fn is_recording(&self) -> bool {
        self.capture.is_some()
    }

    /// Says how many planned buffers are still there, whose places the next graph would write to.
    pub fn end_capture(&mut self) -> usize {
        self.capture.take().and_then(|capture| capture.planned).map_or(0, |planned| planned.live.len())
    }

    /// A graph is gone; with the last one, their memory is everybody's.
    pub fn release(&mut self, driver: &dyn Driver, arena: Option<ArenaId>) {
        if let Some(id) = arena {
            let arena = self.arenas.get_mut(&id).expect("an arena with a graph");
            arena.graphs -= 1;
            if arena.graphs == 0 {
                let Arena { address, bytes, .. } = self.arenas.remove(&id).expect("as above");
                self.shelves.entry((Owner::Everybody, bytes)).or_default().push(address);
                self.free_shelf(driver, bytes);
            }
        }
        self.graphs -= 1;
        if self.graphs > 0 {
            return;
        }
        for bytes in self.sizes(Owner::Graphs) {
            let addresses = self.shelves.remove(&(Owner::Graphs, bytes)).unwrap_or_default();
            self.shelves.entry((Owner::Everybody, bytes)).or_default().extend(addresses);
        }
    }

    /// Whether there is a later arena, in which there is room for everybody.
    pub fn is_outgrown(&self, arena: ArenaId) -> bool {
        self.arenas.last_key_value().is_some_and(|(last, _)| *last > arena)
    }

    /// The sizes on somebody's shelf.
    fn sizes(&self, of: Owner) -> Vec<usize> {
        self.shelves.keys().filter(|(owner, _)| *owner == of).map(|(_, bytes)| *bytes).collect()
    }
}

/// Device memory that returns to its shelf when it is dropped: a block of its own, or a part of one, which returns with the
/// last of its parts.
pub struct Buffer {
    gpu: Handle,
    address: Address,
    bytes: usize,
    source: Source,
}

enum Source {
    Shelf(Owner),
    PartOf { _whole: Arc<Buffer> },
}

impl Buffer {
    pub(super) fn new(gpu: Handle, address: Address, bytes: usize, owner: Owner) -> Buffer {
        Buffer { gpu, address, bytes, source: Source::Shelf(owner) }
    }

    /// Cuts it into parts of these sizes that lie one behind the other.
    ///
    /// # Panics
    /// If it is smaller than all of them.
    pub fn into_parts(self, sizes: impl IntoIterator<Item = usize>) -> Vec<Buffer> {
        let whole = Arc::new(self);
        let mut begin = 0;
        let part = |bytes: usize| {
            let address = whole.address.offset(begin);
            begin += bytes;
            assert!(begin <= whole.bytes, "a part that ends at byte {begin} of {}", whole.bytes);
            Buffer { gpu: whole.gpu, address, bytes, source: Source::PartOf { _whole: whole.clone() } }
        };
        sizes.into_iter().map(part).collect()
    }

    pub fn gpu(&self) -> Handle {
        self.gpu
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Source::Shelf(owner) = self.source
            && self.address != Address::NULL
        {
            self.gpu.give_back(self.address, self.bytes, owner);
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x} of {}", self.bytes, self.address.0, self.gpu)
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::plan::Life;
    use super::*;
    use crate::gpu::emulator::Emulator;

    const SIZES: [usize; 3] = [1000, 3000, 500];

    /// The first and the last of three buffers may share a place.
    fn plan() -> MemoryPlan {
        let lives = [(0, 2), (1, 5), (3, 4)];
        let life = |(bytes, (begin, end)): (usize, (usize, usize))| Life { bytes, begin, end };
        MemoryPlan::new(&SIZES.into_iter().zip(lives).map(life).collect::<Vec<_>>())
    }

    fn begin(memory: &mut Memory, driver: &Emulator) -> ArenaId {
        let (plan, arena) = (plan(), memory.reserve(driver, &plan()).unwrap());
        memory.begin_capture(Some((&plan, arena)));
        arena
    }

    #[test]
    fn a_capture_that_keeps_to_the_plan_has_its_places() {
        let (mut memory, driver) = (Memory::default(), Emulator::new(0));
        let arena = begin(&mut memory, &driver);
        assert_eq!((memory.held, plan().arena()), (4096, 4096));
        // Twice over, as benchmarks record a step.
        for _ in 0..2 {
            let (first, owner) = memory.take(&driver, 1000).unwrap();
            let (second, _) = memory.take(&driver, 3000).unwrap();
            memory.give_back(first, 1000, owner);
            let (third, _) = memory.take(&driver, 500).unwrap();
            assert_eq!((second.0.abs_diff(first.0), third), (3072, first));
            memory.give_back(third, 500, owner);
            memory.give_back(second, 3000, owner);
        }
        assert_eq!((memory.end_capture(), memory.misfits, memory.allocations), (0, 0, 1));
        memory.release(&driver, Some(arena));
        assert_eq!(memory.held, 0, "the arena goes with its last graph");
    }

    /// A buffer that differs from the plan in size or in life lies elsewhere, and so do all that follow.
    #[test]
    fn a_capture_that_strays_from_the_plan_overwrites_nothing() {
        let (mut memory, driver) = (Memory::default(), Emulator::new(0));
        for (sizes, first_lives_on, misfits) in [([1000, 3000, 500], true, 1), ([1000, 2999, 500], false, 2)] {
            let arena = begin(&mut memory, &driver);
            let before = memory.misfits;
            let mut live = Vec::new();
            for (number, bytes) in sizes.into_iter().enumerate() {
                if number == 2 && !first_lives_on {
                    let (address, bytes, owner) = live.remove(0);
                    memory.give_back(address, bytes, owner);
                }
                let (address, owner) = memory.take(&driver, bytes).unwrap();
                let is_apart = |&(other, size, _): &(Address, usize, Owner)| {
                    address.0 + bytes as u64 <= other.0 || other.0 + size as u64 <= address.0
                };
                assert!(live.iter().all(is_apart), "{address:?} {live:?}");
                live.push((address, bytes, owner));
            }
            assert_eq!(memory.misfits - before, misfits);
            live.into_iter().for_each(|(address, bytes, owner)| memory.give_back(address, bytes, owner));
            assert_eq!(memory.end_capture(), 0);
            memory.release(&driver, Some(arena));
        }
    }

    #[test]
    fn a_larger_plan_has_a_new_arena() {
        let (mut memory, driver) = (Memory::default(), Emulator::new(0));
        let first = begin(&mut memory, &driver);
        memory.end_capture();
        assert_eq!(memory.reserve(&driver, &plan()).unwrap(), first);
        let larger = MemoryPlan::new(&[Life { bytes: 5000, begin: 0, end: 1 }]);
        let second = memory.reserve(&driver, &larger).unwrap();
        memory.begin_capture(Some((&larger, second)));
        memory.end_capture();
        assert!(memory.is_outgrown(first) && !memory.is_outgrown(second));
        // The smaller plan from now on lies in it too.
        assert_eq!(memory.reserve(&driver, &plan()).unwrap(), second);
        assert_eq!(memory.held, 4096 + 5120);
        memory.release(&driver, Some(first));
        assert_eq!(memory.held, 5120);
        memory.release(&driver, Some(second));
        assert_eq!(memory.held, 0);
    }

    #[test]
    fn a_late_buffer_of_an_earlier_capture_frees_no_place() {
        let (mut memory, driver) = (Memory::default(), Emulator::new(0));
        let arena = begin(&mut memory, &driver);
        let (address, owner) = memory.take(&driver, 1000).unwrap();
        assert_eq!(memory.end_capture(), 1);
        begin(&mut memory, &driver);
        let (again, _) = memory.take(&driver, 1000).unwrap();
        assert_eq!(again, address);
        memory.give_back(address, 1000, owner);
        assert_eq!(memory.end_capture(), 1, "the place is still taken");
        memory.release(&driver, Some(arena));
        memory.release(&driver, Some(arena));
    }

    #[test]
    fn nothing_is_freed_while_a_graph_is_captured() {
        let (mut memory, driver) = (Memory::default(), Emulator::new(0));
        let (address, owner) = memory.take(&driver, 64).unwrap();
        memory.give_back(address, 64, owner);
        memory.begin_capture(None);
        memory.trim(&driver);
        assert_eq!((memory.held, memory.take(&driver, 64).unwrap().0), (64, address));
        memory.give_back(address, 64, Owner::Everybody);
        memory.end_capture();
        memory.release(&driver, None);
        memory.trim(&driver);
        assert_eq!(memory.held, 0);
    }
}
