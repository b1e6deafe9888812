//! The launches of a stretch of work, and what each of them has to do at least.
//!
//! Whoever launches a kernel states its [`Cost`] first ([`Gpu::account`](super::Gpu::account)); the ledger, which is kept while
//! work is traced or recorded, writes it beside the launch.

use std::collections::HashMap;

use super::Cost;
use super::driver::Kernel;
use super::plan::{Life, MemoryPlan};

/// One thing that a device was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    pub of: WorkOf,
    pub cost: Cost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkOf {
    Launch(Kernel),
    /// On the device.
    Copy,
    Fill,
}

impl WorkOf {
    /// The kernel's, or what the driver calls a copy and a fill.
    pub fn name(self) -> String {
        match self {
            WorkOf::Launch(kernel) => kernel.symbol(),
            WorkOf::Copy => "memcpy".into(),
            WorkOf::Fill => "memset".into(),
        }
    }
}

/// The trace that some work left when it was run for the first time.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// For [`Gpu::capture_planned`](super::Gpu::capture_planned).
    pub plan: MemoryPlan,
    /// The lives that the plan was made of.
    pub lives: Vec<Life>,
    pub work: Vec<Work>,
}

impl Work {
    /// `work` by name: how often, and what it costs altogether; what moves most first.
    pub fn grouped(work: &[Work]) -> Vec<(WorkOf, usize, Cost)> {
        let mut groups: HashMap<WorkOf, (usize, Cost)> = HashMap::new();
        for Work { of, cost } in work {
            let (count, sum) = groups.entry(*of).or_default();
            *count += 1;
            *sum = *sum + *cost;
        }
        let mut groups: Vec<_> = groups.into_iter().map(|(of, (count, cost))| (of, count, cost)).collect();
        groups.sort_by_cached_key(|(of, _, cost)| (std::cmp::Reverse(cost.bytes()), of.name()));
        groups
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    work: Vec<Work>,
    /// The cost of the next launch.
    stated: Cost,
}

impl Ledger {
    pub fn account(&mut self, cost: Cost) {
        self.stated = self.stated + cost;
    }

    pub fn enter(&mut self, of: WorkOf) {
        self.work.push(Work { of, cost: std::mem::take(&mut self.stated) });
    }

    /// Forgets what was stated: it is not launched.
    pub fn forget(&mut self) {
        self.stated = Cost::default();
    }

    pub fn into_work(self) -> Vec<Work> {
        self.work
    }
}
