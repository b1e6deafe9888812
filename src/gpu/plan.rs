//! Where the buffers of a step lie in one arena.
//!
//! A step allocates and drops the same sizes in the same order every time. A [`Log`] of one step says of each buffer when
//! it lived; a [`MemoryPlan`] made of it gives each a place, so that buffers which live at the same time never overlap and those
//! which do not may. Work runs in the order of one stream: who takes the place of a buffer that was dropped before is
//! launched behind the last one that used it.
//!
//! Large buffers are placed first, each into the smallest gap that those of its time leave. Nothing here knows a device.

use std::collections::HashMap;

use super::driver::Address;

/// Places begin at multiples of this, as what the driver allocates does.
pub const ALIGNMENT: usize = 256;

/// A buffer's size and life, from the event that took it up to, not including, the one that let it go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub bytes: usize,
    pub begin: usize,
    pub end: usize,
}

/// A log of what was allocated and dropped, in order.
#[derive(Debug, Default)]
pub struct Log {
    events: usize,
    /// In the order of allocation; without an end while they live.
    lives: Vec<(usize, usize, Option<usize>)>,
    /// Which of them is where.
    live: HashMap<Address, usize>,
}

/// Places in an arena for the buffers of a step, in the order in which it allocates them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    places: Vec<Slot>,
    arena: usize,
    peak_live: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub offset: usize,
    pub bytes: usize,
}

impl Slot {
    pub fn end(self) -> usize {
        self.offset + self.bytes.next_multiple_of(ALIGNMENT)
    }
}

impl Log {
    pub fn take(&mut self, address: Address, bytes: usize) {
        self.live.insert(address, self.lives.len());
        self.lives.push((bytes, self.events, None));
        self.events += 1;
    }

    /// Ends the life of a buffer. One that was allocated before the log began is nobody's business here.
    pub fn give_back(&mut self, address: Address) {
        if let Some(index) = self.live.remove(&address) {
            self.lives[index].2 = Some(self.events);
            self.events += 1;
        }
    }

    /// The buffers whose whole life the log has seen. Those that outlive it (tables, moments of an optimiser) are made
    /// once, and are not there when the step is run again.
    pub fn lives(&self) -> Vec<Life> {
        let whole = |&(bytes, begin, end): &(usize, usize, Option<usize>)| Some(Life { bytes, begin, end: end? });
        self.lives.iter().filter_map(whole).collect()
    }
}

impl MemoryPlan {
    /// `lives` in the order of their beginnings.
    pub fn new(lives: &[Life]) -> MemoryPlan {
        let mut order: Vec<usize> = (0..lives.len()).collect();
        order.sort_by_key(|&index| (std::cmp::Reverse(lives[index].bytes), index));
        let mut places: Vec<Option<Slot>> = vec![None; lives.len()];
        for index in order {
            let Life { bytes, begin, end } = lives[index];
            let is_neighbour = |other: &Life| other.begin < end && begin < other.end;
            let placed = lives.iter().zip(&places).filter(|(other, _)| is_neighbour(other));
            let mut taken: Vec<Slot> = placed.filter_map(|(_, place)| *place).collect();
            taken.sort_by_key(|place| place.offset);
            places[index] = Some(Slot { offset: best_fit(&taken, bytes), bytes });
        }
        let places: Vec<Slot> = places.into_iter().flatten().collect();
        let arena = places.iter().map(|place| place.end()).max().unwrap_or(0);
        MemoryPlan { places, arena, peak_live: peak_live(lives) }
    }

    /// The i-th buffer's place. A capture may run the step several times.
    pub fn place(&self, index: usize) -> Option<Slot> {
        self.places.get(index.checked_rem(self.places.len())?).copied()
    }

    /// How many buffers a step has.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes of the arena.
    pub fn arena(&self) -> usize {
        self.arena
    }

    /// The most bytes that live at the same time: no plan needs less.
    pub fn peak_live(&self) -> usize {
        self.peak_live
    }
}

/// The offset of the smallest gap between `taken`, sorted by offset, that holds `bytes`; else behind them all.
fn best_fit(taken: &[Slot], bytes: usize) -> usize {
    let (mut end, mut best) = (0, None);
    for place in taken {
        let gap = place.offset.saturating_sub(end);
        if gap >= bytes && best.is_none_or(|(smallest, _)| gap < smallest) {
            best = Some((gap, end));
        }
        end = end.max(place.end());
    }
    best.map_or(end, |(_, offset)| offset)
}

fn peak_live(lives: &[Life]) -> usize {
    let taken = lives.iter().map(|life| (life.begin, life.bytes as isize));
    let given_back = lives.iter().map(|life| (life.end, -(life.bytes as isize)));
    let mut events: Vec<(usize, isize)> = taken.chain(given_back).collect();
    // At the same moment, what ends comes first.
    events.sort_unstable();
    let (mut now, mut peak) = (0, 0);
    for (_, change) in events {
        now += change;
        peak = peak.max(now);
    }
    peak.unsigned_abs()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::numbers::Numbers;

    fn life(bytes: usize, begin: usize, end: usize) -> Life {
        Life { bytes, begin, end }
    }

    fn offsets(plan: &MemoryPlan) -> Vec<usize> {
        plan.places.iter().map(|place| place.offset).collect()
    }

    /// Checks what every plan must keep, said once more and by brute force.
    #[track_caller]
    pub(crate) fn check(lives: &[Life], plan: &MemoryPlan) {
        assert_eq!(plan.len(), lives.len());
        let last = lives.iter().map(|life| life.end).max().unwrap_or(0);
        let mut most = 0;
        for moment in 0..last {
            let live: Vec<usize> =
                (0..lives.len()).filter(|&i| lives[i].begin <= moment && moment < lives[i].end).collect();
            most = most.max(live.iter().map(|&i| lives[i].bytes).sum());
            for (n, &i) in live.iter().enumerate() {
                let a = plan.places[i];
                assert_eq!((a.bytes, a.offset % ALIGNMENT), (lives[i].bytes, 0), "buffer {i}");
                assert!(a.offset + a.bytes <= plan.arena(), "buffer {i} leaves the arena");
                for &j in &live[n + 1..] {
                    let b = plan.places[j];
                    let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                    assert!(apart, "buffers {i} and {j} at {moment}: {a:?} {b:?}");
                }
            }
        }
        assert_eq!(plan.peak_live(), most);
        assert!(plan.arena() >= most, "{} bytes for {most}", plan.arena());
    }

    #[test]
    fn buffers_that_never_meet_share_their_place() {
        let lives = [life(1000, 0, 2), life(600, 1, 4), life(900, 3, 5)];
        let plan = MemoryPlan::new(&lives);
        check(&lives, &plan);
        assert_eq!((offsets(&plan), plan.arena(), plan.peak_live()), (vec![0, 1024, 0], 1792, 1600));
    }

    #[test]
    fn the_smallest_gap_is_taken() {
        // Two large ones leave gaps of 1,024 and 512 bytes below others; the last two buffers fit one each.
        let taken = [Slot { offset: 1024, bytes: 256 }, Slot { offset: 1792, bytes: 256 }];
        assert_eq!([1, 512, 513, 1024, 1025].map(|bytes| best_fit(&taken, bytes)), [1280, 1280, 0, 0, 2048]);
        assert_eq!(best_fit(&[], 7), 0);
        // The rest of a last unit is nobody's.
        assert_eq!(best_fit(&[Slot { offset: 0, bytes: 1 }], 7), 256);
    }

    #[test]
    fn a_log_leaves_out_what_outlives_it() {
        let mut log = Log::default();
        let at = Address;
        log.give_back(at(99));
        log.take(at(1), 10);
        log.take(at(2), 20);
        log.give_back(at(1));
        log.take(at(1), 30);
        log.give_back(at(1));
        assert_eq!(log.lives(), [life(10, 0, 2), life(30, 3, 4)]);
    }

    #[test]
    fn a_plan_of_nothing() {
        let plan = MemoryPlan::new(&[]);
        assert_eq!((plan.arena(), plan.peak_live(), plan.place(0)), (0, 0, None));
    }

    /// Random sequences: stacks, queues and everything between, sizes from one byte to many units.
    #[test]
    fn random_lives_never_overlap() {
        let mut worst: f64 = 1.0;
        for seed in 0..200 {
            let mut numbers = Numbers(seed);
            let mut below = |limit: u64| (numbers.next() % limit) as usize;
            let (mut log, mut live) = (Log::default(), Vec::new());
            let (count, most) = (1 + below(120), 1 + below(12));
            for number in 0..count {
                while live.len() > below(most as u64 + 1) {
                    let gone = below(live.len() as u64);
                    log.give_back(live.swap_remove(gone));
                }
                let exponent = below(14);
                let address = Address(1 + number as u64);
                log.take(address, 1 + below(1 << exponent));
                live.push(address);
            }
            live.into_iter().for_each(|address| log.give_back(address));
            let lives = log.lives();
            assert_eq!(lives.len(), count);
            let plan = MemoryPlan::new(&lives);
            check(&lives, &plan);
            let aligned = |life: &Life| Life { bytes: life.bytes.next_multiple_of(ALIGNMENT), ..*life };
            let least = peak_live(&lives.iter().map(aligned).collect::<Vec<_>>());
            worst = worst.max(plan.arena() as f64 / least as f64);
        }
        // Not a law, but a plan that shares nothing is ten times as large.
        assert!(worst < 1.5, "{worst}");
    }

    /// As a training step does: activations pile up, and go one by one while gradients of their sizes come.
    #[test]
    fn a_step_needs_little_more_than_its_peak() {
        let sizes: Vec<usize> = (0..50).map(|layer| (1 << 20) >> (layer / 10)).collect();
        let (mut log, mut next) = (Log::default(), 0);
        let mut take = |log: &mut Log, bytes| {
            next += 1;
            log.take(Address(next), bytes);
            Address(next)
        };
        let activations: Vec<Address> = sizes.iter().map(|&bytes| take(&mut log, bytes)).collect();
        let mut gradient = take(&mut log, 4);
        for (&activation, &bytes) in activations.iter().zip(&sizes).rev() {
            let workspace = take(&mut log, bytes / 3);
            let own = take(&mut log, bytes);
            log.give_back(workspace);
            log.give_back(std::mem::replace(&mut gradient, own));
            log.give_back(activation);
        }
        log.give_back(gradient);
        let lives = log.lives();
        let plan = MemoryPlan::new(&lives);
        check(&lives, &plan);
        assert!(plan.arena() as f64 <= 1.02 * plan.peak_live() as f64, "{} {}", plan.arena(), plan.peak_live());
    }
}
