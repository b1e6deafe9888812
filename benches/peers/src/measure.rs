//! How long a work takes: warmed up, then timed run by run, summed up as median, minimum and maximum.

use std::time::Instant;

use crate::works::Work;

/// When to stop timing: after `runs` runs and `seconds` seconds, whichever comes later, but at `cap` seconds whatever
/// came first. One run is always timed, so a work slower than the cap takes twice its own time: warm-up and run.
#[derive(Clone, Copy)]
pub struct Policy {
    pub seconds: f64,
    pub runs: usize,
    pub cap: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { seconds: 1.5, runs: 7, cap: 20.0 }
    }
}

pub struct Timing {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

/// Up to three runs of warm-up, fewer where they would eat a quarter of the cap.
pub fn measure(work: &mut dyn Work, policy: Policy) -> Timing {
    let start = Instant::now();
    for _ in 0..3 {
        work.run();
        if start.elapsed().as_secs_f64() > policy.cap / 4.0 {
            break;
        }
    }
    let mut seconds = vec![];
    let start = Instant::now();
    loop {
        let run = Instant::now();
        work.run();
        seconds.push(run.elapsed().as_secs_f64());
        let elapsed = start.elapsed().as_secs_f64();
        if elapsed >= policy.cap || (elapsed >= policy.seconds && seconds.len() >= policy.runs) {
            break;
        }
    }
    seconds.sort_by(f64::total_cmp);
    let runs = seconds.len();
    Timing {
        median: (seconds[(runs - 1) / 2] + seconds[runs / 2]) / 2.0,
        min: seconds[0],
        max: seconds[runs - 1],
        runs,
    }
}
