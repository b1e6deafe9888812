//! Memory between two inaccessible pages, so that the first byte beyond a buffer faults.
//!
//! A buffer ends at its upper page, but for what aligning its start to 16 bytes leaves. That rest is poisoned like all
//! fresh memory, so that reading it gives NaN, and looked at after every launch, so that writing it is found too.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::gpu::driver::Address;
use crate::gpu::{Failure, lock};

/// NaN in every floating-point type, and −1 in whole numbers.
pub const POISON: u8 = 0xFF;

/// Bytes that an emulator may hold: enough for tests, too little to freeze a laptop.
pub const LIMIT: usize = 8 << 30;

const PAGE: usize = 4096;

struct Allocation {
    bytes: usize,
    /// The mapping with its two guards.
    mapping: usize,
    mapped: usize,
}

#[derive(Default)]
pub struct Memory {
    /// By address.
    live: Mutex<BTreeMap<u64, Allocation>>,
}

impl Memory {
    pub fn allocate(&self, bytes: usize) -> Result<Address, Failure> {
        let mut live = lock(&self.live);
        let held: usize = live.values().map(|allocation| allocation.mapped).sum();
        let middle = bytes.next_multiple_of(PAGE);
        let mapped = middle + 2 * PAGE;
        let refuse = || Failure::OutOfMemory { requested: bytes, free: LIMIT.saturating_sub(held), total: LIMIT };
        if held + mapped > LIMIT {
            return Err(refuse());
        }
        // SAFETY: a new private mapping, of which the middle is made accessible.
        let mapping = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let mapping = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0);
            if mapping == libc::MAP_FAILED {
                return Err(refuse());
            }
            let start = mapping.byte_add(PAGE);
            if libc::mprotect(start, middle, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                libc::munmap(mapping, mapped);
                return Err(refuse());
            }
            std::ptr::write_bytes(start.cast::<u8>(), POISON, middle);
            mapping as usize
        };
        let address = (mapping + PAGE + middle - bytes.next_multiple_of(16)) as u64;
        live.insert(address, Allocation { bytes, mapping, mapped });
        Ok(Address(address))
    }

    pub fn free(&self, address: Address) {
        let allocation = lock(&self.live).remove(&address.0).expect("memory that was allocated here");
        // SAFETY: the mapping was made by `allocate`, and nobody uses it any more.
        unsafe { libc::munmap(allocation.mapping as *mut libc::c_void, allocation.mapped) };
    }

    /// Refuses a range that does not lie inside one buffer.
    pub fn check(&self, what: &str, address: Address, bytes: usize) -> Result<(), Failure> {
        let live = lock(&self.live);
        let inside = live
            .range(..=address.0)
            .next_back()
            .is_some_and(|(&start, allocation)| address.0 as usize + bytes <= start as usize + allocation.bytes);
        match inside || bytes == 0 {
            true => Ok(()),
            false => Err(Failure::Fault { message: format!("{what} of {bytes} bytes leaves its buffer") }),
        }
    }

    /// Says which buffer somebody wrote beyond, in the bytes between it and its upper page.
    pub fn overrun(&self) -> Option<String> {
        let live = lock(&self.live);
        live.iter().find_map(|(&start, &Allocation { bytes, .. })| {
            // SAFETY: the rest lies in the accessible part of a live mapping.
            let rest = unsafe {
                let end = (start as usize + bytes) as *const u8;
                std::slice::from_raw_parts(end, bytes.next_multiple_of(16) - bytes)
            };
            let at = rest.iter().position(|&byte| byte != POISON)?;
            Some(format!("out of bounds: byte {} of a buffer of {bytes} was written", bytes + at))
        })
    }

    /// Says of an address that faulted how it lies to the buffers.
    pub fn describe(&self, address: u64) -> String {
        let live = lock(&self.live);
        for (&start, Allocation { bytes, mapping, mapped }) in live.iter() {
            if (*mapping as u64..(*mapping + *mapped) as u64).contains(&address) {
                return match address.checked_sub(start) {
                    Some(offset) => format!("out of bounds: byte {offset} of a buffer of {bytes}"),
                    None => format!("out of bounds: {} bytes before a buffer of {bytes}", start - address),
                };
            }
        }
        format!("out of bounds: address {address:#x} is in no buffer")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let addresses: Vec<u64> = lock(&self.live).keys().copied().collect();
        addresses.into_iter().for_each(|address| self.free(Address(address)));
    }
}
