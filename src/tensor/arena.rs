//! Host memory that is used again.
//!
//! A training step frees what the next one allocates. Handing such large blocks back to the system costs a page fault
//! for every page when they come again, more than the arithmetic of a batch norm. So they stay here: a block is cut from the smallest free
//! stretch that holds it, and joins the free ones beside it when it is dropped. As the same ops run in the same order, each step finds its blocks
//! where the one before had them.
//!
//! Where addresses cost nothing, all blocks lie in one stretch of them, whose pages are huge if the system has such; under a limit on addresses
//! the allocator is asked for one segment after the other. Free memory stays until [`release`].

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

/// What addresses and lengths are multiples of: a line of the cache.
const LINE: usize = 64;
/// A huge page.
#[cfg(target_os = "linux")]
const PAGE: usize = 2 << 20;

/// Bytes of some value, alone in their lines.
#[derive(Debug)]
pub struct Block {
    start: *mut u8,
    len: usize,
}

// SAFETY: a block is nobody else's memory, as a `Vec` is.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    pub fn new(len: usize) -> Block {
        Block { start: std::ptr::with_exposed_provenance_mut(lock().take(padded(len))), len }
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: of the arena, this block's alone, and initialised: by the system with zeros, or by who had it before.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        lock().free.give(self.start.addr(), padded(self.len));
    }
}

fn padded(len: usize) -> usize {
    len.max(1).next_multiple_of(LINE)
}

/// Hands the pages of free memory back to the system, where it takes them.
pub fn release() {
    lock().release();
}

fn lock() -> MutexGuard<'static, Arena> {
    static ARENA: Mutex<Arena> = Mutex::new(Arena::new());
    // A panic while it was held cannot have left it inconsistent: nothing below fails half-way.
    ARENA.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Arena {
    free: Stretches,
    has_reserved: bool,
    /// What the allocator gave, by where the segment in it begins: the length of that, the block's address, and its layout.
    given: BTreeMap<usize, (usize, usize, Layout)>,
}

impl Arena {
    const fn new() -> Arena {
        Arena { free: Stretches::new(), has_reserved: false, given: BTreeMap::new() }
    }

    fn take(&mut self, len: usize) -> usize {
        if let Some(start) = self.free.take(len) {
            return start;
        }
        let (start, segment) = self.segment(len);
        self.free.segments.insert(start);
        self.free.give(start, segment);
        self.free.take(len).expect("a segment holds what it was made for")
    }

    /// More memory, at least `len` bytes: where it begins, and how much it is.
    fn segment(&mut self, len: usize) -> (usize, usize) {
        if !std::mem::replace(&mut self.has_reserved, true)
            && let Some(reserved) = reserve().filter(|&(_, reserved)| reserved >= len)
        {
            return reserved;
        }
        // Without an alignment that the allocator has to clear the memory for: so it stays untouched.
        let layout = Layout::from_size_align(len + LINE, 16).expect("less than the address space");
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc_zeroed(layout) };
        if block.is_null() {
            handle_alloc_error(layout);
        }
        let block = block.expose_provenance();
        let start = block.next_multiple_of(LINE);
        self.given.insert(start, (len, block, layout));
        (start, len)
    }

    /// Gives back segments, and of the reserved one the pages, that are free as a whole.
    fn release(&mut self) {
        let is_free =
            |&start: &usize, &mut (len, ..): &mut (usize, usize, Layout)| self.free.by_start.get(&start) == Some(&len);
        for (start, (len, block, layout)) in self.given.extract_if(.., is_free).collect::<Vec<_>>() {
            self.free.remove(start, len);
            self.free.segments.remove(&start);
            // SAFETY: the allocator gave it with this layout, and nobody has any of it.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
        }
        #[cfg(target_os = "linux")]
        for (&start, &len) in &self.free.by_start {
            let (first, end) = (start.next_multiple_of(PAGE), (start + len) / PAGE * PAGE);
            if first < end {
                // SAFETY: nobody's memory; the next who reads it finds zeros.
                unsafe {
                    libc::madvise(std::ptr::with_exposed_provenance_mut(first), end - first, libc::MADV_DONTNEED)
                };
            }
        }
    }
}

/// Addresses without memory, which comes as they are touched: as many as the machine has memory, so that what is more has to be asked for and may
/// be refused. `None` where each of them counts.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn reserve() -> Option<(usize, usize)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let reserved;
    // SAFETY: writes to the limit, and makes a mapping that nobody else has.
    let start = unsafe {
        if libc::getrlimit(libc::RLIMIT_AS, &mut limit) != 0 || limit.rlim_cur != libc::RLIM_INFINITY {
            return None;
        }
        let pages = usize::try_from(libc::sysconf(libc::_SC_PHYS_PAGES)).ok()?;
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).ok()?;
        reserved = pages.checked_mul(page)? / PAGE * PAGE;
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        libc::mmap(std::ptr::null_mut(), reserved + PAGE, access, kind, -1, 0)
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = start.expose_provenance().next_multiple_of(PAGE);
    // Where they are refused, small ones do.
    // SAFETY: changes nothing but what pages are made of.
    unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), reserved, libc::MADV_HUGEPAGE) };
    Some((start, reserved))
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn reserve() -> Option<(usize, usize)> {
    None
}

/// Free addresses: each stretch by where it begins, and by its length. None reaches from one segment into the next.
struct Stretches {
    segments: BTreeSet<usize>,
    by_start: BTreeMap<usize, usize>,
    by_len: BTreeSet<(usize, usize)>,
}

impl Stretches {
    const fn new() -> Stretches {
        Stretches { segments: BTreeSet::new(), by_start: BTreeMap::new(), by_len: BTreeSet::new() }
    }

    /// The beginning of the smallest one that is long enough, the first of several.
    fn take(&mut self, len: usize) -> Option<usize> {
        let &(found, start) = self.by_len.range((len, 0)..).next()?;
        self.remove(start, found);
        if found > len {
            self.insert(start + len, found - len);
        }
        Some(start)
    }

    /// Joins those beside it.
    fn give(&mut self, mut start: usize, mut len: usize) {
        let before = self.by_start.range(..start).next_back().map(|(&before, &len)| (before, len));
        if let Some((before, of_before)) = before.filter(|(before, len)| before + len == start)
            && !self.segments.contains(&start)
        {
            self.remove(before, of_before);
            (start, len) = (before, len + of_before);
        }
        let end = start + len;
        if let Some(&behind) = self.by_start.get(&end).filter(|_| !self.segments.contains(&end)) {
            self.remove(end, behind);
            len += behind;
        }
        self.insert(start, len);
    }

    fn insert(&mut self, start: usize, len: usize) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
    }

    fn remove(&mut self, start: usize, len: usize) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;

    fn of_segments(segments: &[(usize, usize)]) -> Stretches {
        let mut free = Stretches::new();
        for &(start, len) in segments {
            free.segments.insert(start);
            free.give(start, len);
        }
        free
    }

    #[test]
    fn the_smallest_stretch_that_is_long_enough_is_cut() {
        let mut free = of_segments(&[(1000, 100), (2000, 30), (3000, 50)]);
        assert_eq!(free.take(40), Some(3000));
        assert_eq!(free.take(30), Some(2000));
        assert_eq!(free.take(10), Some(3040));
        assert_eq!(free.take(101), None);
        assert_eq!(free.take(100), Some(1000));
        assert_eq!(free.take(1), None);
    }

    /// Segments that lie side by side stay two.
    #[test]
    fn free_stretches_join_inside_their_segment() {
        let mut free = of_segments(&[(1000, 100), (1100, 100)]);
        assert_eq!(free.by_start, BTreeMap::from([(1000, 100), (1100, 100)]));
        let taken: Vec<usize> = std::iter::from_fn(|| free.take(20)).collect();
        assert_eq!(taken.len(), 10);
        for i in [3, 1, 2, 9, 5, 0, 4, 8, 6, 7] {
            free.give(taken[i], 20);
        }
        assert_eq!(free.by_start, BTreeMap::from([(1000, 100), (1100, 100)]));
        assert_eq!(free.by_len, BTreeSet::from([(100, 1000), (100, 1100)]));
    }

    #[test]
    fn segments_are_given_back_when_they_are_free_as_a_whole() {
        let mut arena = Arena { has_reserved: true, ..Arena::new() };
        let [first, second] = [640, 1280].map(|len| arena.take(len));
        arena.free.give(first, 640);
        let part = arena.take(64);
        arena.release();
        assert_eq!((part, arena.given.len()), (first, 2));
        arena.free.give(part, 64);
        arena.release();
        assert_eq!(arena.given.keys().collect::<Vec<_>>(), [&second]);
        arena.free.give(second, 1280);
        arena.release();
        assert!(arena.given.is_empty() && arena.free.by_start.is_empty() && arena.free.segments.is_empty());
    }

    #[test]
    fn blocks_of_all_lengths_keep_their_bytes() {
        let mut numbers = Numbers(7);
        let mut blocks: Vec<(u8, Block)> = Vec::new();
        for round in 0..2000 {
            let [which, len] =
                [40, 100_000].map(|below| (numbers.integers(1)[0].abs() as usize * 7919 + round * 31) % below);
            if blocks.len() > which {
                let (mark, block) = blocks.swap_remove(which);
                assert!(block.iter().all(|&byte| byte == mark), "round {round}");
            }
            let mut block = Block::new(len);
            assert!(block.as_ptr().addr().is_multiple_of(LINE));
            block.fill(round as u8);
            blocks.push((round as u8, block));
        }
    }
}
