//! The least work of an op, or of one launch of it, whoever does it: for benchmarks, which compare it with what the
//! machine can do.

use std::iter::Sum;
use std::ops::Add;

/// Bytes count each operand once, read or written, as if everything in between stayed in registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications and additions.
    pub flops: u64,
    pub read: u64,
    pub written: u64,
}

impl Cost {
    /// The cost of moving so many bytes, with too few operations to count.
    pub fn moving(read: usize, written: usize) -> Cost {
        Cost { flops: 0, read: read as u64, written: written as u64 }
    }

    pub fn bytes(self) -> u64 {
        self.read + self.written
    }
}

impl Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost { flops: self.flops + other.flops, read: self.read + other.read, written: self.written + other.written }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), Add::add)
    }
}
