//! Device memory that is used again, so that a step allocates nothing after the first.
//!
//! A dropped buffer waits on a shelf for the next one of its size. While a graph is captured, buffers come from and
//! return to a shelf of the graph's own: what a graph's launches touch stays theirs for as long as the graph lives,
//! or a replay would overwrite somebody else's numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::driver::{Address, Driver};
use super::{Failure, Handle};

/// Whose shelf a buffer returns to.
type Owner = u64;

/// Everybody's.
const SHARED: Owner = 0;

#[derive(Default)]
pub(super) struct Memory {
    /// By owner and size.
    shelves: BTreeMap<(Owner, usize), Vec<Address>>,
    /// The graph being captured.
    capturing: Option<Owner>,
    last_owner: Owner,
    alive: BTreeSet<Owner>,
    /// Bytes held from the driver, and the most there ever were.
    pub held: usize,
    pub peak: usize,
    /// Requests that the driver had to serve.
    pub allocations: u64,
}

impl Memory {
    pub fn take(&mut self, driver: &dyn Driver, bytes: usize) -> Result<(Address, Owner), Failure> {
        let owner = self.capturing.unwrap_or(SHARED);
        for shelf in [owner, SHARED] {
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
        // A graph's own stays its own, whoever is being captured; what a capture lets go of may be what it reads.
        let owner = if self.alive.contains(&owner) { owner } else { self.capturing.unwrap_or(SHARED) };
        self.shelves.entry((owner, bytes)).or_default().push(address);
    }

    /// Frees what nobody uses and no graph owns.
    fn trim(&mut self, driver: &dyn Driver) {
        let waiting: Vec<usize> =
            self.shelves.keys().filter(|(owner, _)| *owner == SHARED).map(|(_, bytes)| *bytes).collect();
        for bytes in waiting {
            for address in self.shelves.remove(&(SHARED, bytes)).unwrap_or_default() {
                driver.free(address, bytes);
                self.held -= bytes;
            }
        }
    }

    pub fn begin_capture(&mut self) {
        self.last_owner += 1;
        self.alive.insert(self.last_owner);
        self.capturing = Some(self.last_owner);
    }

    pub fn end_capture(&mut self) -> Owner {
        self.capturing.take().expect("a capture was begun")
    }

    /// The graph is gone: its memory is everybody's.
    pub fn release(&mut self, graph: Owner) {
        self.alive.remove(&graph);
        let sizes: Vec<usize> =
            self.shelves.keys().filter(|(owner, _)| *owner == graph).map(|(_, bytes)| *bytes).collect();
        for bytes in sizes {
            let addresses = self.shelves.remove(&(graph, bytes)).unwrap_or_default();
            self.shelves.entry((SHARED, bytes)).or_default().extend(addresses);
        }
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
