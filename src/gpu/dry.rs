//! A device that does nothing: it hands out addresses, and forgets what it is told to run.
//!
//! What a step launches, and the bytes and memory that it needs, follow from the shapes alone. With this driver they are
//! known for networks and batches that no machine at hand could run. Downloads are zeros, so no result means anything.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Failure;
use super::driver::{Address, Description, Driver, Event, GraphId, Kernel, Launch, Mark, Stream, TensorCores};
use super::tensor_map::{Mapped, TensorMap};

/// Addresses are aligned to this.
const ALIGNMENT: u64 = 256;

pub struct Dry {
    description: Description,
    next: AtomicU64,
}

impl Dry {
    /// One that others take for a device of this description.
    pub fn new(description: Description) -> Dry {
        Dry { description, next: AtomicU64::new(ALIGNMENT) }
    }
}

/// A device that has what all have.
pub fn nothing() -> Description {
    Description {
        name: "no device".into(),
        architecture: "none".into(),
        multiprocessors: 1,
        memory: usize::MAX,
        tensor_cores: TensorCores::default(),
        warpgroups: false,
    }
}

impl Driver for Dry {
    fn describe(&self) -> Description {
        Description { memory: usize::MAX, ..self.description.clone() }
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Failure> {
        let bytes = (bytes as u64).next_multiple_of(ALIGNMENT);
        Ok(Address(self.next.fetch_add(bytes, Ordering::Relaxed)))
    }

    fn free(&self, _address: Address, _bytes: usize) {}

    fn upload(&self, _to: Address, _bytes: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn upload_beside(&self, _to: Address, _bytes: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn mark(&self, _of: Stream) -> Result<Mark, Failure> {
        Ok(Mark::default())
    }

    fn wait(&self, _stream: Stream, _mark: Mark) -> Result<(), Failure> {
        Ok(())
    }

    fn settle_copies(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn download(&self, _from: Address, bytes: &mut [u8]) -> Result<(), Failure> {
        bytes.fill(0);
        Ok(())
    }

    fn copy(&self, _to: Address, _from: Address, _bytes: usize) -> Result<(), Failure> {
        Ok(())
    }

    fn fill(&self, _to: Address, _byte: u8, _bytes: usize) -> Result<(), Failure> {
        Ok(())
    }

    fn prepare(&self, _kernel: Kernel) -> Result<(), Failure> {
        Ok(())
    }

    fn launch(&self, _launch: &Launch) -> Result<(), Failure> {
        Ok(())
    }

    fn encode(&self, _mapped: &Mapped) -> Result<TensorMap, Failure> {
        Ok(TensorMap([0; 16]))
    }

    fn synchronize(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn record_event(&self) -> Result<Event, Failure> {
        Ok(Event(0))
    }

    fn milliseconds(&self, _from: Event, _to: Event) -> Result<f32, Failure> {
        Ok(0.0)
    }

    fn begin_capture(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, Failure> {
        Ok(GraphId(0))
    }

    fn replay(&self, _graph: GraphId) -> Result<(), Failure> {
        Ok(())
    }

    fn drop_graph(&self, _graph: GraphId) {}
}
