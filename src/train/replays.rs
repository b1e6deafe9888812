//! Work that is done batch after batch on a GPU: the first time a batch size comes it is launched kernel by kernel and traced,
//! which gives the plan of its memory; the second time it is recorded as a graph, and from then on replayed: small uploads and
//! one launch. Where something that it reads or writes has moved since, it begins again.

use std::collections::HashMap;

use super::batches::{Batch, Batches, Loaded};
use crate::error::Result;
use crate::gpu::{Address, Graph, Handle, MemoryPlan};

pub(super) struct Replays {
    gpu: Handle,
    /// By the number of images.
    by_size: HashMap<usize, Recorded>,
    /// Whether anything is recorded at all.
    uses_graphs: bool,
}

/// A batch's place on the device, and the work that is done with it.
pub(super) struct Recorded {
    batch: Batch,
    /// Where the work's own memory lies in a graph.
    pub plan: MemoryPlan,
    pub graph: Option<Graph>,
    /// Where everything lies that the graph reads and writes beside its own memory.
    addresses: Vec<Address>,
}

/// The way in which the work on one batch was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The closure ran.
    Ran,
    /// A graph of it did, and the closure did not.
    Replayed,
}

impl Replays {
    pub fn new(gpu: Handle) -> Replays {
        Replays { gpu, by_size: HashMap::new(), uses_graphs: true }
    }

    /// Launches everything kernel by kernel: the same bits, for comparison.
    pub fn without_graphs(self) -> Replays {
        Replays { uses_graphs: false, ..self }
    }

    /// The largest batch that was recorded.
    pub fn largest(&self) -> Option<(usize, &Recorded)> {
        let recorded = self.by_size.iter().filter(|(_, recorded)| recorded.graph.is_some());
        recorded.max_by_key(|(images, _)| **images).map(|(images, recorded)| (*images, recorded))
    }

    /// Does `work` with the batch. `addresses` tells where everything lies that it reads and writes beside the batch and what
    /// it allocates; `state` is what both are about.
    pub fn run<S>(
        &mut self,
        batches: &Batches,
        loaded: Loaded,
        state: &mut S,
        addresses: impl Fn(&S) -> Vec<Address>,
        work: impl Fn(&mut S, &Batch),
    ) -> Result<Done> {
        let Replays { gpu, by_size, uses_graphs } = self;
        let images = loaded.images();
        let Some(recorded) = by_size.get_mut(&images) else {
            let batch = batches.place(loaded);
            let plan = gpu.trace(|| work(state, &batch)).plan;
            by_size.insert(images, Recorded { batch, plan, graph: None, addresses: addresses(state) });
            gpu.check()?;
            return Ok(Done::Ran);
        };
        recorded.batch.overwrite(&loaded);
        let Recorded { batch, plan, graph, addresses: recorded_at } = recorded;
        let done = match graph {
            _ if !*uses_graphs => {
                work(state, batch);
                Done::Ran
            }
            _ if *recorded_at != addresses(state) => {
                // Not recorded at once: tables that hold addresses are uploaded when they are first needed.
                *graph = None;
                *plan = gpu.trace(|| work(state, batch)).plan;
                *recorded_at = addresses(state);
                Done::Ran
            }
            // Where a larger batch has come since, this one moves to its arena.
            Some(known) if !known.is_outgrown() => {
                known.replay();
                Done::Replayed
            }
            _ => {
                *graph = None;
                let new = gpu.capture_planned(plan, || work(state, batch))?;
                new.replay();
                *graph = Some(new);
                Done::Ran
            }
        };
        gpu.check()?;
        Ok(done)
    }
}
