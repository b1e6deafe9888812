//! Large uploads beside the work under way.
//!
//! An upload in the order of the work waits for the step before it, and with it the host, once what waits for its copy is full. So a large
//! one goes in pieces, on a stream of its own, into places on the device that are taken in turn; the work waits for each piece
//! where it needs it, and copies it from there to where it belongs, which the device does a hundred times as fast. A place is taken
//! again when the work has copied what was in it. Whoever uploads sees no difference but time: what was launched before sees
//! the old bytes, what is launched after it the new ones.

use super::Failure;
use super::driver::{Address, Driver, Mark, PIECE, Stream};

/// Places: a batch of 128 images of 224×224×3 bytes takes five.
const PLACES: usize = 12;

/// Fewer bytes are uploaded in the order of the work: they take less time than what is said of them here.
pub(super) const LEAST: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Staging {
    places: Vec<Place>,
    next: usize,
}

struct Place {
    address: Address,
    /// Behind the copy out of it.
    copied: Mark,
}

impl Staging {
    /// False, and nothing is done, where there is no place and `allocate` has none to give.
    pub fn upload(
        &mut self,
        driver: &dyn Driver,
        to: Address,
        bytes: &[u8],
        mut allocate: impl FnMut(usize) -> Option<Address>,
    ) -> Result<bool, Failure> {
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            if self.next == self.places.len() {
                match allocate(PIECE) {
                    // Whoever had the memory before may not be done with it.
                    Some(address) => self.places.push(Place { address, copied: driver.mark(Stream::Work)? }),
                    None if self.places.is_empty() => return Ok(false),
                    None => self.next = 0,
                }
            }
            let Place { address, copied } = &mut self.places[self.next];
            self.next = (self.next + 1) % PLACES;
            driver.wait(Stream::Copies, *copied)?;
            driver.upload_beside(*address, piece)?;
            driver.wait(Stream::Work, driver.mark(Stream::Copies)?)?;
            driver.copy(to.offset(index * PIECE), *address, piece.len())?;
            *copied = driver.mark(Stream::Work)?;
        }
        Ok(true)
    }
}
