//! Vector clocks of a block: who has waited for what.
//!
//! The table has a row for each thread, and a column for each counter: of each thread's steps, of the phases of each barrier in
//! shared memory, of the products of each warpgroup that were waited for. A row says up to where its thread has waited for each.
//! A number in shared memory is marked with the column, and the count in it, of who wrote it last, and of who read it.

use std::collections::HashMap;
use std::ops::Range;

use super::WARPGROUP;

/// Barriers in shared memory that a block can make.
pub const BARRIERS: usize = 64;
/// Bytes that the swizzle permutes; what products read is remembered by these.
pub const ATOM: usize = 1024;

/// Who touched a number: a count in a column of the table, from 1 on; 0: nobody. In the place of `emulator::Mark`, once the block is
/// asynchronous.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct Mark {
    pub count: u32,
    pub column: u16,
    rest: u16,
}

/// In the place of a column, where several threads have read: the count is their number in [`Clocks::readers`].
const SEVERAL: u16 = 0xFFFE;

impl Mark {
    pub fn new(column: usize, count: u32) -> Mark {
        Mark { count, column: column as u16, rest: 0 }
    }
}

/// The twin of `emulator::Shadow`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Shadow {
    pub write: Mark,
    pub read: Mark,
}

/// What a block that is not asynchronous marks with: the twin of `emulator::Mark`.
struct Before {
    epoch: u32,
    /// Or `MANY`, or `WHOLE_WARP` and a warp's number.
    thread: u16,
    warp_epoch: u16,
}

/// `emulator::MANY` and `emulator::WHOLE_WARP`.
const MANY: u16 = 0xFFFF;
const WHOLE_WARP: u16 = 0x8000;

pub struct Clocks {
    pub threads: usize,
    /// Threads of each block.
    in_block: usize,
    width: usize,
    /// Rows of `width`.
    known: Vec<u32>,
    /// The steps that each thread ended with a fence.
    fences: Vec<Vec<u32>>,
    /// For each warpgroup and [`ATOM`], the last product that reads it.
    last_read: Vec<Vec<u32>>,
    readers: Vec<Vec<Mark>>,
    reader_numbers: HashMap<Vec<Mark>, u32>,
    /// The last two marks that became one.
    merged: Option<([Mark; 2], Mark)>,
}

/// What two know together.
pub fn join(row: &mut [u32], other: &[u32]) {
    row.iter_mut().zip(other).for_each(|(own, other)| *own = (*own).max(*other));
}

impl Clocks {
    /// `warp_steps`: the synchronisations of each thread's warp so far, plus one. Blocks know nothing of each other.
    pub fn new(warp_steps: &[u16], in_block: usize, dynamic: usize) -> Clocks {
        let threads = warp_steps.len();
        // None where they would reach from one block into the next.
        let groups = if in_block == threads || in_block.is_multiple_of(WARPGROUP) { threads / WARPGROUP } else { 0 };
        let width = threads + BARRIERS * (threads / in_block) + groups;
        let mut known = vec![0; threads * width];
        for (thread, (row, &step)) in known.chunks_mut(width).zip(warp_steps).enumerate() {
            // The first step is all that came before the last barrier.
            row[thread / in_block * in_block..][..in_block].fill(1);
            row[thread / 32 * 32..][..32].fill(step.into());
            row[thread] = u32::from(step) + 1;
        }
        Clocks {
            threads,
            in_block,
            width,
            known,
            fences: vec![Vec::new(); threads],
            last_read: vec![vec![0; dynamic.div_ceil(ATOM)]; groups],
            readers: Vec::new(),
            reader_numbers: HashMap::new(),
            merged: None,
        }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn row(&self, thread: usize) -> &[u32] {
        &self.known[thread * self.width..][..self.width]
    }

    pub fn row_mut(&mut self, thread: usize) -> &mut [u32] {
        &mut self.known[thread * self.width..][..self.width]
    }

    pub fn column_of_barrier(&self, barrier: usize) -> usize {
        self.threads + barrier
    }

    pub fn column_of_group(&self, group: usize) -> usize {
        self.width - self.groups() + group
    }

    /// Whole warpgroups.
    pub fn groups(&self) -> usize {
        self.last_read.len()
    }

    /// The rank of a thread's block.
    pub fn rank_of(&self, thread: usize) -> usize {
        thread / self.in_block
    }

    pub fn threads_of(&self, rank: usize) -> Range<usize> {
        rank * self.in_block..(rank + 1) * self.in_block
    }

    pub fn name_of(&self, thread: usize) -> String {
        match self.threads == self.in_block {
            true => format!("thread {thread}"),
            false => format!("thread {} of the block of rank {}", thread % self.in_block, self.rank_of(thread)),
        }
    }

    /// The barrier that a column is of, if it is none of a thread.
    pub fn barrier_of(&self, mark: Mark) -> Option<usize> {
        usize::from(mark.column).checked_sub(self.threads)
    }

    /// How many threads a mark is of.
    pub fn owners(&self, mark: Mark) -> usize {
        if mark.column == SEVERAL { self.readers[mark.count as usize - 1].len() } else { 1 }
    }

    /// Ends a thread's step: what it does from here on, nobody knows who only waits for what it did.
    pub fn step(&mut self, thread: usize) {
        self.row_mut(thread)[thread] += 1;
    }

    /// These threads have waited for each other.
    pub fn meet(&mut self, threads: &[u32]) {
        let mut all = vec![0; self.width];
        threads.iter().for_each(|&thread| join(&mut all, self.row(thread as usize)));
        for &thread in threads {
            self.row_mut(thread as usize).copy_from_slice(&all);
            self.step(thread as usize);
        }
    }

    /// The asynchronous proxy sees what the thread wrote.
    pub fn fence(&mut self, thread: usize) {
        let step = self.row(thread)[thread];
        self.fences[thread].push(step);
        self.step(thread);
    }

    pub fn is_known(&self, row: &[u32], mark: Mark) -> bool {
        match mark.column {
            _ if mark.count == 0 => true,
            SEVERAL => self.readers[mark.count as usize - 1].iter().all(|mark| self.is_known(row, *mark)),
            column => row[usize::from(column)] >= mark.count,
        }
    }

    /// Whether the thread that wrote fenced before those of the row waited for it.
    pub fn is_fenced(&self, row: &[u32], mark: Mark) -> bool {
        let thread = usize::from(mark.column);
        if mark.count == 0 || thread >= self.threads {
            return true;
        }
        let fences = &self.fences[thread];
        let next = fences.partition_point(|fence| *fence < mark.count);
        fences.get(next).is_some_and(|fence| *fence < row[thread])
    }

    /// The products of a warpgroup, up to this number, read 16 bytes of dynamic shared memory.
    pub fn reads(&mut self, group: usize, place: usize, number: u32) {
        self.last_read[group][place / ATOM] = number;
    }

    /// A warpgroup with a product that reads this place of its block's memory, and that those of the row have not waited for.
    pub fn reading(&self, row: &[u32], rank: usize, place: usize) -> Option<usize> {
        let is_open = |group: &usize| self.last_read[*group][place / ATOM] > row[self.column_of_group(*group)];
        let Range { start, end } = self.threads_of(rank);
        (start / WARPGROUP..(end / WARPGROUP).min(self.groups())).find(is_open)
    }

    /// A mark of two readers, neither of whom knows of the other.
    pub fn merge(&mut self, two: [Mark; 2]) -> Mark {
        if let Some((_, merged)) = self.merged.filter(|(of, _)| *of == two) {
            return merged;
        }
        let mut readers = match two[0].column {
            SEVERAL => self.readers[two[0].count as usize - 1].clone(),
            _ => vec![two[0]],
        };
        readers.retain(|reader| reader.column != two[1].column);
        readers.push(two[1]);
        let mark = self.several(readers);
        self.merged = Some((two, mark));
        mark
    }

    fn several(&mut self, readers: Vec<Mark>) -> Mark {
        let number = match self.reader_numbers.get(&readers) {
            Some(number) => *number,
            None => {
                self.readers.push(readers.clone());
                self.reader_numbers.insert(readers, self.readers.len() as u32);
                self.readers.len() as u32
            }
        };
        Mark::new(SEVERAL.into(), number)
    }

    /// Marks of before a block was asynchronous, in its `epoch`-th stretch between barriers, become those of now.
    pub fn take_over(&mut self, rank: usize, marks: &mut [Shadow], epoch: u32) {
        for shadow in marks.iter_mut().filter(|shadow| **shadow != Shadow::default()) {
            let [write, read] = [shadow.write, shadow.read].map(|mark| self.taken_over(rank, mark, epoch));
            *shadow = Shadow { write, read };
        }
    }

    fn taken_over(&mut self, rank: usize, mark: Mark, epoch: u32) -> Mark {
        let base = rank * self.in_block;
        let before = Before { epoch: mark.count, thread: mark.column, warp_epoch: mark.rest };
        let count = u32::from(before.warp_epoch) + 1;
        match before.thread {
            _ if before.epoch == 0 => mark,
            // A barrier has made these void, but for fences.
            WHOLE_WARP.. if before.epoch != epoch => Mark::default(),
            thread if before.epoch != epoch => Mark::new(base + usize::from(thread), 1),
            // Not said which: all of them, now.
            MANY => {
                let all = self.threads_of(rank).map(|thread| Mark::new(thread, self.row(thread)[thread])).collect();
                self.several(all)
            }
            warp @ WHOLE_WARP.. => {
                let first = base + usize::from(warp - WHOLE_WARP) * 32;
                self.several((first..first + 32).map(|thread| Mark::new(thread, count)).collect())
            }
            thread => Mark::new(base + usize::from(thread), count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_known_to_who_waited_for_it() {
        let mut clocks = Clocks::new(&[1; 128], 128, 0);
        let own = |clocks: &Clocks, thread: usize| Mark::new(thread, clocks.row(thread)[thread]);
        let first = own(&clocks, 3);
        assert!(clocks.is_known(clocks.row(3), first) && !clocks.is_known(clocks.row(4), first));
        clocks.meet(&[3, 4]);
        assert!(clocks.is_known(clocks.row(4), first) && !clocks.is_known(clocks.row(5), first));
        // What thread 3 does next is news again; 5 hears of the first step from 4.
        let second = own(&clocks, 3);
        clocks.meet(&[4, 5]);
        assert!(clocks.is_known(clocks.row(5), first) && !clocks.is_known(clocks.row(5), second));
        assert!(clocks.is_known(clocks.row(9), Mark::default()));
    }

    #[test]
    fn a_fence_counts_if_it_comes_before_the_waiting() {
        let mut clocks = Clocks::new(&[1; 128], 128, 0);
        let mark = Mark::new(3, clocks.row(3)[3]);
        clocks.meet(&[3, 4]);
        clocks.fence(3);
        assert!(clocks.is_fenced(clocks.row(3), mark) && !clocks.is_fenced(clocks.row(4), mark));
        clocks.meet(&[3, 4]);
        assert!(clocks.is_fenced(clocks.row(4), mark) && !clocks.is_fenced(clocks.row(5), mark));
    }

    #[test]
    fn several_readers_are_known_if_all_are() {
        let mut clocks = Clocks::new(&[1; 128], 128, 0);
        let [a, b] = [3, 40].map(|thread| Mark::new(thread, clocks.row(thread)[thread]));
        let both = clocks.merge([a, b]);
        assert_eq!((clocks.owners(both), clocks.merge([both, b])), (2, both));
        clocks.meet(&[3, 5]);
        assert!(!clocks.is_known(clocks.row(5), both));
        clocks.meet(&[40, 5]);
        assert!(clocks.is_known(clocks.row(5), both));
    }

    #[test]
    fn earlier_marks_are_taken_over() {
        let mut clocks = Clocks::new(&[4; 128], 128, 0);
        let before = |epoch, thread, warp_epoch| Mark { count: epoch, column: thread, rest: warp_epoch };
        let mut take = |read| {
            let mut shadow = [Shadow { write: Mark::default(), read }];
            clocks.take_over(0, &mut shadow, 2);
            let known = |thread| clocks.is_known(clocks.row(thread), shadow[0].read);
            [3, 4, 40].map(known)
        };
        assert_eq!(take(before(1, 3, 4)), [true; 3], "a barrier came since");
        assert_eq!(take(before(2, 3, 4)), [true, false, false]);
        assert_eq!(take(before(2, 3, 3)), [true, true, false], "its warp has met since");
        assert_eq!(take(before(2, WHOLE_WARP, 3)), [true, true, false]);
        assert_eq!(take(before(2, WHOLE_WARP, 4)), [false; 3]);
        assert_eq!(take(before(2, MANY, 3)), [false; 3]);
        // That nobody fenced is not forgotten.
        let mut shadow = [Shadow { write: before(1, 3, 4), read: Mark::default() }];
        clocks.take_over(0, &mut shadow, 2);
        assert!(!clocks.is_fenced(clocks.row(4), shadow[0].write));
        clocks.fence(3);
        clocks.meet(&[3, 4]);
        assert!(clocks.is_fenced(clocks.row(4), shadow[0].write));
    }
}
