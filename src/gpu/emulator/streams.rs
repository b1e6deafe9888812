//! Which work has waited for which upload beside it.
//!
//! Everything runs when it is submitted, but for uploads beside the work: these arrive as late as they may, when the work waits for a mark
//! behind them, and until then their place holds NaN. The other way round, an upload needs to have waited for the last work that
//! touched its place. Kernels' own accesses are not known here; that of copies, fills, uploads and downloads are.

use crate::gpu::Failure;
use crate::gpu::driver::{Address, Mark, Stream};

#[derive(Default)]
pub struct Streams {
    /// What each stream was given so far, and how much of the other each has waited for.
    work: u64,
    copies: u64,
    copies_known: u64,
    work_known: u64,
    marks: Vec<(Stream, u64)>,
    places: Vec<Place>,
}

/// A range that was uploaded to.
struct Place {
    to: Address,
    bytes: usize,
    /// When in the order of copies, and what has not arrived yet.
    uploaded: u64,
    content: Option<Vec<u8>>,
    /// When the work last touched it.
    touched: u64,
}

impl Place {
    fn overlaps(&self, address: Address, bytes: usize) -> bool {
        address.0 < self.to.0 + self.bytes as u64 && self.to.0 < address.0 + bytes as u64
    }
}

impl Streams {
    /// Another piece of work.
    pub fn work(&mut self) {
        self.work += 1;
    }

    /// Refuses a range that an upload is on its way to.
    pub fn touch(&mut self, what: &str, address: Address, bytes: usize) -> Result<(), Failure> {
        for place in self.places.iter_mut().filter(|place| place.overlaps(address, bytes)) {
            if place.content.is_some() {
                let message =
                    format!("{what} of {bytes} bytes that are uploaded beside the work, which has not waited for them");
                return Err(Failure::Fault { message });
            }
            place.touched = self.work;
        }
        Ok(())
    }

    pub fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        let mut touched = 0;
        for place in self.places.iter().filter(|place| place.overlaps(to, bytes.len())) {
            if place.touched > self.work_known || place.content.is_some() {
                let message =
                    format!("an upload beside the work of {} bytes onto others that work may still read", bytes.len());
                return Err(Failure::Fault { message });
            }
            touched = place.touched.max(touched);
        }
        self.forget(to, bytes.len());
        self.copies += 1;
        let (uploaded, content) = (self.copies, Some(bytes.to_vec()));
        self.places.push(Place { to, bytes: bytes.len(), uploaded, content, touched });
        Ok(())
    }

    pub fn mark(&mut self, of: Stream) -> Mark {
        let count = if of == Stream::Work { self.work } else { self.copies };
        self.marks.push((of, count));
        Mark(self.marks.len() as u64 - 1)
    }

    /// What arrives.
    pub fn wait(&mut self, stream: Stream, mark: Mark) -> Vec<(Address, Vec<u8>)> {
        match (stream, self.marks[mark.0 as usize]) {
            (Stream::Copies, (Stream::Work, count)) => self.work_known = self.work_known.max(count),
            (Stream::Work, (Stream::Copies, count)) => self.copies_known = self.copies_known.max(count),
            // In its own order it comes anyway.
            _ => {}
        }
        let known = self.copies_known;
        let arrived = self.places.iter_mut().filter(|place| place.uploaded <= known);
        arrived.filter_map(|place| place.content.take().map(|content| (place.to, content))).collect()
    }

    /// Memory that is given back, or uploaded to anew.
    pub fn forget(&mut self, address: Address, bytes: usize) {
        self.places.retain(|place| !place.overlaps(address, bytes));
    }
}

#[cfg(test)]
mod tests {
    use crate::gpu::Failure;
    use crate::gpu::driver::{Address, Driver, PIECE, Stream};
    use crate::gpu::emulator::Emulator;
    use crate::gpu::staging::Staging;

    fn fault(result: Result<(), Failure>) -> String {
        match result {
            Err(Failure::Fault { message }) => message,
            other => panic!("{other:?}"),
        }
    }

    fn bytes(emulator: &Emulator, from: Address, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        emulator.download(from, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_not_waited_for_is_not_there() {
        let emulator = Emulator::new(0);
        let [place, to] = [8, 8].map(|bytes| emulator.allocate(bytes).unwrap());
        emulator.fill(place, 7, 8).unwrap();
        let done = emulator.mark(Stream::Work).unwrap();
        emulator.wait(Stream::Copies, done).unwrap();
        emulator.upload_beside(place, &[1; 8]).unwrap();
        assert!(fault(emulator.copy(to, place, 8)).contains("which has not waited for them"));
        let copied = emulator.mark(Stream::Copies).unwrap();
        // A mark of its own stream is none to wait for.
        emulator.wait(Stream::Copies, copied).unwrap();
        assert!(emulator.copy(to, place, 8).is_err());
        emulator.wait(Stream::Work, copied).unwrap();
        emulator.copy(to, place, 8).unwrap();
        assert_eq!(bytes(&emulator, to, 8), [1; 8]);
        // The copy out of it may be under way.
        assert!(fault(emulator.upload_beside(place, &[2; 8])).contains("work may still read"));
        let read = emulator.mark(Stream::Work).unwrap();
        emulator.wait(Stream::Copies, read).unwrap();
        emulator.upload_beside(place, &[2; 8]).unwrap();
        emulator.settle_copies().unwrap();
        assert_eq!(bytes(&emulator, place, 8), [2; 8]);
    }

    #[test]
    fn staged_uploads_wait_for_what_they_need_and_no_more() {
        let emulator = Emulator::new(0);
        let mut staging = Staging::default();
        let mut places = 0;
        // As with little memory: two places for all pieces, and with none, nothing happens.
        let mut allocate = |bytes| {
            places += 1;
            (places <= 2).then(|| emulator.allocate(bytes).unwrap())
        };
        let count = 5 * PIECE / 2;
        let to = emulator.allocate(count).unwrap();
        for round in 0..4 {
            let content: Vec<u8> = (0..count).map(|i| (i / 1000 + round) as u8).collect();
            assert!(staging.upload(&emulator, to, &content, &mut allocate).unwrap());
            assert!(bytes(&emulator, to, count) == content, "round {round}");
        }
        assert!(!Staging::default().upload(&emulator, to, &[0; 8], |_| None).unwrap());
    }
}
