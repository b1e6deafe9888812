//! Device memory that is used again, so that a step allocates nothing after the first.
//!
//! A dropped buffer waits on a shelf for the next one of its size. While a graph is captured, buffers come from and
//! return to a shelf that belongs to graphs: what a graph's launches touch stays theirs for as long as a graph lives, or a
//! replay would overwrite somebody else's numbers. All graphs of a device share that shelf, for they run one after the
//! other and nothing that one of them allocates outlives its capture. Only buffers of one size serve each other, so graphs of
//! two batch sizes share what does not depend on it (gradients of weights, workspaces), and each has its own activations.

use std::collections::BTreeMap;

use super::driver::{Address, Driver};
use super::{Failure, Handle};

/// Whose shelf a buffer returns to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Everybody,
    Graphs,
}

#[derive(Default)]
pub(super) struct Memory {
    /// By owner and size.
    shelves: BTreeMap<(Owner, usize), Vec<Address>>,
    /// Whether a graph is being captured.
    is_capturing: bool,
    /// Graphs alive, with the one being captured.
    graphs: usize,
    /// Bytes held from the driver, and the most there ever were.
    pub held: usize,
    pub peak: usize,
    /// Requests that the driver had to serve.
    pub allocations: u64,
}

impl Memory {
    pub fn take(&mut self, driver: &dyn Driver, bytes: usize) -> Result<(Address, Owner), Failure> {
        let owner = if self.is_capturing { Owner::Graphs } else { Owner::Everybody };
        for shelf in [owner, Owner::Everybody] {
            if let Some(address) = self.shelves.get_mut(&(shelf, bytes)).and_then(Vec::pop) {
                driver.recycle(address, bytes)?;
                return Ok((address, owner));
            }
        }
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
        Ok((address, owner))
    }

    pub fn give_back(&mut self, address: Address, bytes: usize, owner: Owner) {
        // What a capture lets go of may be what the graph reads.
        let is_of_graphs = (owner == Owner::Graphs && self.graphs > 0) || self.is_capturing;
        let owner = if is_of_graphs { Owner::Graphs } else { Owner::Everybody };
        self.shelves.entry((owner, bytes)).or_default().push(address);
    }

    /// Frees what nobody uses and no graph owns.
    pub fn trim(&mut self, driver: &dyn Driver) {
        for bytes in self.sizes(Owner::Everybody) {
            for address in self.shelves.remove(&(Owner::Everybody, bytes)).unwrap_or_default() {
                driver.free(address, bytes);
                self.held -= bytes;
            }
        }
    }

    pub fn begin_capture(&mut self) {
        self.is_capturing = true;
        self.graphs += 1;
    }

    pub fn end_capture(&mut self) {
        self.is_capturing = false;
    }

    /// A graph is gone; with the last one, their memory is everybody's.
    pub fn release(&mut self) {
        self.graphs -= 1;
        if self.graphs > 0 {
            return;
        }
        for bytes in self.sizes(Owner::Graphs) {
            let addresses = self.shelves.remove(&(Owner::Graphs, bytes)).unwrap_or_default();
            self.shelves.entry((Owner::Everybody, bytes)).or_default().extend(addresses);
        }
    }

    /// The sizes on somebody's shelf.
    fn sizes(&self, of: Owner) -> Vec<usize> {
        self.shelves.keys().filter(|(owner, _)| *owner == of).map(|(_, bytes)| *bytes).collect()
    }
}

/// A block of device memory that returns to its shelf when it is dropped.
pub struct Buffer {
    gpu: Handle,
    address: Address,
    bytes: usize,
    owner: Owner,
}

impl Buffer {
    pub(super) fn new(gpu: Handle, address: Address, bytes: usize, owner: Owner) -> Buffer {
        Buffer { gpu, address, bytes, owner }
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
        if self.address != Address::NULL {
            self.gpu.give_back(self.address, self.bytes, self.owner);
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x} of {}", self.bytes, self.address.0, self.gpu)
    }
}
