//! Time: device events on a GPU, the wall clock on the CPU; the median of several timings, and their quartiles.
//!
//! Each timing covers as many launches as make it long beside the clock's grain, and these walk over as many sets of
//! buffers as do not fit into the last-level cache. On a GPU a timing replays one graph, its memory planned as that of a training
//! step, and all replays are queued at once: the host, which needs microseconds for a launch, is not part of what is measured.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpu::{Event, Failure, Handle};
use crate::interrupt::interrupted;
use crate::tensor::Device;

/// Seconds that a timing takes at least; both clocks' grain is below a microsecond.
const LONG_ENOUGH: f64 = 5e-3;
const LONG_ENOUGH_ON_GPU: f64 = 2e-3;
/// Launches of one graph.
const MOST_LAUNCHES: usize = 4096;
/// Bytes; sets fill more than twice as many. Second-level caches hold 40 MB (A100) to 126 MB (B200).
const GPU_CACHE: u64 = 64 << 20;
/// Where a CPU does not say.
const CPU_CACHE: u64 = 64 << 20;

/// Seconds of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    pub median: f64,
    /// The first and the third quartile: the spread.
    pub first_quartile: f64,
    pub third_quartile: f64,
    pub fastest: f64,
    pub slowest: f64,
    pub timings: usize,
    pub launches_per_timing: usize,
    pub buffer_sets: usize,
}

impl Timing {
    /// # Panics
    /// If there is no timing.
    pub(super) fn of(mut seconds: Vec<f64>, launches_per_timing: usize, buffer_sets: usize) -> Timing {
        seconds.sort_by(f64::total_cmp);
        Timing {
            median: quantile(&seconds, 0.5),
            first_quartile: quantile(&seconds, 0.25),
            third_quartile: quantile(&seconds, 0.75),
            fastest: seconds[0],
            slowest: seconds[seconds.len() - 1],
            timings: seconds.len(),
            launches_per_timing,
            buffer_sets,
        }
    }

    /// Half the distance between the quartiles, relative to the median.
    pub fn spread(&self) -> f64 {
        (self.third_quartile - self.first_quartile) / 2.0 / self.median
    }

    /// Whether the quartiles of two timings leave a gap between them.
    pub fn differs_from(&self, other: &Timing) -> bool {
        self.first_quartile > other.third_quartile || self.third_quartile < other.first_quartile
    }
}

/// A quantile of sorted values; between two of them, by how near each is.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// Whether the times of a device mean anything: those of the emulator do not.
pub fn is_emulated(device: Device) -> bool {
    matches!(device, Device::Gpu(gpu) if gpu.description().architecture == "host")
}

/// Bytes of the last-level cache, or more.
pub fn cache(device: Device) -> u64 {
    match device {
        _ if is_emulated(device) => 0,
        Device::Gpu(_) => GPU_CACHE,
        Device::Cpu => cpu_cache().unwrap_or(CPU_CACHE),
    }
}

/// The largest cache that the first core sees.
fn cpu_cache() -> Option<u64> {
    let sizes = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?.filter_map(|entry| {
        let text = std::fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        bytes(text.trim())
    });
    sizes.max()
}

/// `32768K` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    Some(digits.parse::<u64>().ok()? << unit)
}

/// Times launches on one device.
#[derive(Clone, Copy)]
pub struct Clock {
    pub device: Device,
    /// Timings of each row.
    pub rounds: usize,
    /// Bytes of the last-level cache, which what is timed has to exceed.
    pub cache: u64,
}

impl Clock {
    /// How many sets of `bytes` each fill more than twice the last-level cache.
    pub fn sets(&self, bytes: u64) -> usize {
        let sets = (2 * self.cache).checked_div(bytes).unwrap_or(0) + 1;
        sets.min(MOST_LAUNCHES as u64) as usize
    }

    /// Times `work`, which is told the set of buffers to use. It runs with each set first, which is not timed.
    pub fn time(&self, sets: usize, work: &mut dyn FnMut(usize)) -> Result<Timing> {
        match self.device {
            Device::Cpu => self.time_on_cpu(sets, work),
            Device::Gpu(gpu) => self.time_on_gpu(gpu, sets, work),
        }
    }

    fn time_on_cpu(&self, sets: usize, work: &mut dyn FnMut(usize)) -> Result<Timing> {
        (0..sets).for_each(&mut *work);
        check()?;
        let start = Instant::now();
        work(0);
        let launches = (LONG_ENOUGH / start.elapsed().as_secs_f64()).ceil().clamp(1.0, 1e6) as usize;
        let mut seconds = Vec::with_capacity(self.rounds);
        let mut set = 0;
        for _ in 0..self.rounds {
            check()?;
            let start = Instant::now();
            for _ in 0..launches {
                set = (set + 1) % sets;
                work(set);
            }
            seconds.push(start.elapsed().as_secs_f64() / launches as f64);
        }
        Ok(Timing::of(seconds, launches, sets))
    }

    fn time_on_gpu(&self, gpu: Handle, sets: usize, work: &mut dyn FnMut(usize)) -> Result<Timing> {
        // Compiles kernels and builds tables: none of that can be part of a graph.
        let trace = gpu.trace(|| (0..sets).for_each(&mut *work));
        gpu.synchronize()?;
        check()?;
        let repeats = if is_emulated(self.device) {
            1
        } else {
            let start = event(gpu)?;
            (0..sets).for_each(&mut *work);
            let seconds = f64::from(gpu.milliseconds(start, event(gpu)?)?) / 1e3;
            let most = (MOST_LAUNCHES / sets).max(1);
            ((LONG_ENOUGH_ON_GPU / seconds.max(1e-9)).ceil() as usize).clamp(1, most)
        };
        // What was launched one by one leaves its memory to the graph, and the peak is the graph's.
        gpu.release_unused()?;
        let graph = gpu.capture_planned(&trace.plan, || {
            for _ in 0..repeats {
                (0..sets).for_each(&mut *work);
            }
        })?;
        graph.replay();
        let mut events = vec![event(gpu)?];
        for _ in 0..self.rounds {
            check()?;
            graph.replay();
            events.push(event(gpu)?);
        }
        gpu.synchronize()?;
        let launches = sets * repeats;
        let seconds = events.windows(2).map(|pair| {
            gpu.milliseconds(pair[0], pair[1]).map(|milliseconds| f64::from(milliseconds) / 1e3 / launches as f64)
        });
        Ok(Timing::of(seconds.collect::<std::result::Result<_, Failure>>()?, launches, sets))
    }
}

fn event(gpu: Handle) -> Result<Event> {
    match gpu.record_event() {
        Some(event) => Ok(event),
        None => Err(gpu.check().err().map_or(Error::Interrupted { last_checkpoint: None }, Error::Gpu)),
    }
}

/// Ctrl-C.
fn check() -> Result<()> {
    if interrupted() { Err(Error::Interrupted { last_checkpoint: None }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles() {
        let timing = Timing::of(vec![5.0, 1.0, 3.0, 2.0, 4.0], 7, 2);
        assert_eq!((timing.first_quartile, timing.median, timing.third_quartile), (2.0, 3.0, 4.0));
        assert_eq!((timing.fastest, timing.slowest, timing.timings, timing.launches_per_timing), (1.0, 5.0, 5, 7));
        assert_eq!(timing.spread(), 1.0 / 3.0);
        let even = Timing::of(vec![4.0, 2.0, 1.0, 3.0], 1, 1);
        assert_eq!((even.first_quartile, even.median, even.third_quartile), (1.75, 2.5, 3.25));
        let one = Timing::of(vec![2.0], 1, 1);
        assert_eq!((one.first_quartile, one.median, one.third_quartile, one.spread()), (2.0, 2.0, 2.0, 0.0));
    }

    #[test]
    fn timings_differ_beyond_both_spreads() {
        let of = |seconds: &[f64]| Timing::of(seconds.to_vec(), 1, 1);
        let (low, middle, high) = (of(&[1.0, 2.0, 3.0]), of(&[2.0, 3.0, 4.0]), of(&[3.0, 4.0, 5.0]));
        assert!(!low.differs_from(&middle) && !middle.differs_from(&low));
        assert!(low.differs_from(&high) && high.differs_from(&low));
    }

    #[test]
    fn sizes_of_caches() {
        assert_eq!(
            ["48K", "32768K", "2M", "1G", "512"].map(bytes),
            [48 << 10, 32 << 20, 2 << 20, 1 << 30, 512].map(Some)
        );
        assert_eq!(bytes("many"), None);
    }

    #[test]
    fn sets_exceed_the_cache() {
        let clock = Clock { device: Device::Cpu, rounds: 1, cache: 24 << 20 };
        for bytes in [1 << 16, 1 << 20, 100 << 20, 1 << 40] {
            let sets = clock.sets(bytes) as u64;
            assert!(sets * bytes > 48 << 20 || sets == MOST_LAUNCHES as u64, "{bytes}");
        }
        assert_eq!(clock.sets(1 << 40), 1);
    }

    #[test]
    fn every_set_has_its_turn() {
        let clock = Clock { device: Device::Cpu, rounds: 3, cache: 0 };
        let mut seen = [0; 4];
        let timing = clock.time(4, &mut |set| seen[set] += 1).unwrap();
        assert!(seen.iter().all(|&count| count > 1), "{seen:?}");
        assert!(timing.fastest <= timing.median && timing.median <= timing.slowest && timing.timings == 3);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn times_of_the_emulator() {
        let gpu = crate::gpu::Gpu::emulator(1).unwrap();
        let clock = Clock { device: Device::Gpu(gpu), rounds: 3, cache: 0 };
        let buffer = gpu.allocate(1024);
        let timing = clock.time(clock.sets(1024), &mut |_| gpu.fill(buffer.address(), 0, 1024)).unwrap();
        assert_eq!((timing.timings, timing.launches_per_timing, timing.buffer_sets), (3, 1, 1));
        assert!(timing.median > 0.0 && is_emulated(clock.device));
    }
}
