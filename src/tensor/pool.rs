//! Host memory that is used again.
//!
//! A training step frees what the next one allocates. Handing such large blocks back to the system costs a page fault
//! for every 4 KB when they come again, more than the arithmetic of a batch norm; so a dropped buffer waits here for the
//! next one of its length.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Bytes of waiting buffers above which a request that finds no match releases them all first.
const RETAINED: usize = 2 << 30;

/// A block of numbers that returns to the pool when it is dropped.
#[derive(Debug)]
pub struct Buffer<T: Pooled> {
    data: Vec<T>,
    /// Whether it came from here. Others are freed: nobody asks for their lengths again, and they would pile up.
    is_pooled: bool,
}

#[derive(Default)]
pub struct Shelf<T> {
    waiting: HashMap<usize, Vec<Vec<T>>>,
    bytes: usize,
}

pub trait Pooled: Copy + Default + 'static {
    const POISON: Self;

    fn with_shelf<R>(f: impl FnOnce(&mut Shelf<Self>) -> R) -> R;
}

macro_rules! pooled {
    ($type:ty) => {
        impl Pooled for $type {
            const POISON: Self = <$type>::NAN;

            fn with_shelf<R>(f: impl FnOnce(&mut Shelf<Self>) -> R) -> R {
                static SHELF: Mutex<Option<Shelf<$type>>> = Mutex::new(None);
                // A panic while the shelf was held cannot have left it inconsistent: nothing below can fail half-way.
                let mut shelf = SHELF.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                f(shelf.get_or_insert_with(Shelf::default))
            }
        }
    };
}

pooled!(f32);
pooled!(f64);

/// Hands everything that waits back to the system.
pub fn release() {
    f32::with_shelf(|shelf| *shelf = Shelf::default());
    f64::with_shelf(|shelf| *shelf = Shelf::default());
}

impl<T: Pooled> Buffer<T> {
    /// `len` numbers of unspecified value.
    pub fn recycled(len: usize) -> Buffer<T> {
        let found = T::with_shelf(|shelf| {
            let found = shelf.waiting.get_mut(&len).and_then(Vec::pop);
            match &found {
                Some(_) => shelf.bytes -= len * size_of::<T>(),
                None if shelf.bytes > RETAINED => *shelf = Shelf::default(),
                None => {}
            }
            found
        });
        let mut data = found.unwrap_or_else(|| vec![T::default(); len]);
        if cfg!(debug_assertions) {
            data.fill(T::POISON);
        }
        Buffer { data, is_pooled: true }
    }
}

impl<T: Pooled> From<Vec<T>> for Buffer<T> {
    fn from(data: Vec<T>) -> Buffer<T> {
        Buffer { data, is_pooled: false }
    }
}

impl<T: Pooled> Drop for Buffer<T> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        // Small blocks are the allocator's trade.
        if self.is_pooled && data.len() * size_of::<T>() >= 1 << 14 {
            T::with_shelf(|shelf| {
                shelf.bytes += data.len() * size_of::<T>();
                shelf.waiting.entry(data.len()).or_default().push(data);
            });
        }
    }
}

impl<T: Pooled> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data
    }
}

impl<T: Pooled> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_comes_back() {
        // A length no other test uses: the pool is shared by the whole process.
        let buffer = Buffer::<f64>::recycled(123_457);
        let address = buffer.as_ptr();
        drop(buffer);
        assert_eq!(Buffer::<f64>::recycled(123_457).as_ptr(), address);
    }
}
