//! Bulk copies: asked for by one thread, under way until they land, which a barrier in shared memory counts.

use std::ffi::{c_char, c_void};

use super::clocks::{ATOM, Mark, Shadow};
use super::{Asynchronous, Dynamic, Other, Site};
use crate::gpu::emulator::block::text;
use crate::gpu::emulator::memory::POISON;

/// The twin of `emulator::BulkCopy`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BulkCopy {
    to: *mut u8,
    shadow: *mut Shadow,
    name: *const c_char,
    place: u64,
    lines: u32,
    per_line: u32,
    map: *const c_void,
    at: [i32; 4],
    offset: [u32; 2],
    land: unsafe extern "C" fn(*const BulkCopy),
    pub barrier: *mut u64,
    pub barrier_name: *const c_char,
    file: *const c_char,
    line: u32,
}

impl BulkCopy {
    pub fn site(&self) -> Site {
        Site { file: self.file, line: self.line }
    }

    /// The same to another block, so many bytes and marks away.
    pub fn moved(&self, by: isize) -> BulkCopy {
        BulkCopy {
            to: self.to.wrapping_offset(by),
            shadow: self.shadow.wrapping_offset(by),
            barrier: self.barrier.wrapping_byte_offset(by),
            ..*self
        }
    }

    fn numbers(&self) -> usize {
        self.lines as usize * self.per_line as usize
    }

    fn bytes(&self) -> usize {
        self.lines as usize * 128
    }
}

/// A copy under way.
pub struct Flying {
    pub copy: BulkCopy,
    pub barrier: usize,
    pub thread: usize,
    /// Of the block that it goes to.
    pub rank: usize,
}

impl Asynchronous {
    /// # Safety
    /// The copy is a kernel's, whose bounds were checked.
    pub unsafe fn copy(
        &mut self,
        thread: usize,
        copy: &BulkCopy,
        barrier: usize,
        dynamic: Dynamic,
    ) -> Result<(), String> {
        let (site, name) = (copy.site(), text(copy.name));
        let at = &self.barriers[barrier];
        if !at.is_fenced {
            return Err(format!(
                "the bulk copy at {site} does not see barrier {}: fence_barriers is missing behind barrier_init",
                at.name()
            ));
        }

        let own = Mark::new(self.clocks.column_of_barrier(barrier), at.phases + 1);
        let row = self.clocks.row(thread);
        // SAFETY: as the caller promises.
        let (marks, data) = unsafe {
            (
                std::slice::from_raw_parts_mut(copy.shadow, copy.numbers()),
                std::slice::from_raw_parts_mut(copy.to, copy.bytes()),
            )
        };
        let place = dynamic.place(copy.to).ok_or("a bulk copy to shared memory that is not dynamic")?;
        let rank = at.made_by_rank;
        for atom in (0..copy.bytes()).step_by(ATOM) {
            if let Some(group) = self.clocks.reading(row, rank, place + atom) {
                let number = copy.place as usize + atom / 128 * copy.per_line as usize;
                let who = self.describe(Other::Product(group));
                return Err(format!("race: write after read of {name}[{number}] by the bulk copy at {site}{who}"));
            }
        }
        let mut before = Shadow::default();
        for (i, shadow) in marks.iter_mut().enumerate() {
            // Most are as those beside them.
            if (shadow.write, shadow.read) != (before.write, before.read) {
                let number = copy.place as usize + i;
                let race = |what: &str, mark| {
                    let who = self.describe(Other::Mark(mark));
                    Err(format!("race: {what} of {name}[{number}] by the bulk copy at {site}{who}"))
                };
                if !self.clocks.is_known(row, shadow.write) {
                    return race("two writes", shadow.write);
                }
                if !self.clocks.is_known(row, shadow.read) {
                    return race("write after read", shadow.read);
                }
                if !self.clocks.is_fenced(row, shadow.write) {
                    return Err(format!(
                        "the bulk copy at {site} does not see {name}[{number}], which {} wrote without fence_async",
                        self.clocks.name_of(shadow.write.column.into())
                    ));
                }
                before = *shadow;
            }
            shadow.write = own;
        }
        data.fill(POISON);
        self.flying.push(Flying { copy: *copy, barrier, thread, rank });
        Ok(())
    }

    pub fn is_copying(&self) -> bool {
        !self.flying.is_empty()
    }

    /// Lets one of the copies under way arrive. A fault is that of the thread that asked for it.
    pub fn land(&mut self, seed: u64) -> Result<(), (usize, String)> {
        let index = (seed % self.flying.len() as u64) as usize;
        let Flying { copy, barrier, thread, .. } = self.flying.swap_remove(index);
        // SAFETY: memory that was checked when the copy was asked for; a launch's parameters and buffers outlive it.
        unsafe { (copy.land)(&copy) };
        let landed = self.expect(barrier, -(copy.bytes() as i64));
        landed.map_err(|what| (thread, what))
    }
}
