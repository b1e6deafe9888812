//! The numbers of tensors in host memory.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use super::arena::Block;

/// Shorter ones are the allocator's trade.
const LEAST: usize = 1 << 14;

/// A block of numbers, from the arena if it is long and was not made elsewhere.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: Memory<T>,
}

#[derive(Debug)]
enum Memory<T> {
    Arena(Block),
    Own(Vec<T>),
}

pub trait Number: Pod + Default {
    const POISON: Self;
}

impl Number for f32 {
    const POISON: f32 = f32::NAN;
}

impl Number for f64 {
    const POISON: f64 = f64::NAN;
}

impl<T: Number> Buffer<T> {
    /// `len` numbers of unspecified value.
    pub fn recycled(len: usize) -> Buffer<T> {
        let bytes = len * size_of::<T>();
        let memory =
            if bytes < LEAST { Memory::Own(vec![T::default(); len]) } else { Memory::Arena(Block::new(bytes)) };
        let mut buffer = Buffer { memory };
        if cfg!(debug_assertions) {
            buffer.fill(T::POISON);
        }
        buffer
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(data: Vec<T>) -> Buffer<T> {
        Buffer { memory: Memory::Own(data) }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match &self.memory {
            Memory::Arena(block) => cast_slice(block),
            Memory::Own(data) => data,
        }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Arena(block) => cast_slice_mut(block),
            Memory::Own(data) => data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_short_buffers_hold_what_is_written() {
        for len in [0, 1, 1000, 123_457] {
            let mut buffer = Buffer::<f64>::recycled(len);
            assert_eq!(buffer.len(), len);
            buffer.fill(3.0);
            assert_eq!(buffer.iter().sum::<f64>(), 3.0 * len as f64);
        }
    }
}
