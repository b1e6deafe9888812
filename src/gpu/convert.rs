//! Filling, and conversion between f32 and the storage types of activations: `kernels/convert.cu`.

use super::{Address, Cost, Gpu};
use crate::dtype::DType;
use crate::parameters;

parameters! {
    struct Fill: 24 bytes { x: Address, count: u64, value: f32, padding: u32 }
}

parameters! {
    struct Convert: 24 bytes { x: Address, y: Address, count: u64 }
}

const THREADS: u32 = 256;

/// A thread for every 16 bytes of `dtype`.
fn grid(count: usize, dtype: DType) -> [u32; 3] {
    let blocks = count.div_ceil(THREADS as usize * 16 / dtype.size());
    [u32::try_from(blocks).expect("fewer than 2⁴² bytes"), 1, 1]
}

impl Gpu {
    /// Fills `count` numbers of `dtype` at `x`.
    pub(crate) fn fill_numbers(&self, x: Address, dtype: DType, count: usize, value: f64) {
        let parameters = Fill { x, count: count as u64, value: value as f32, padding: 0 };
        self.account(|| Cost::moving(0, count * dtype.size()));
        // SAFETY: callers own `count` numbers of `dtype` at `x`.
        unsafe { self.launch("convert", "fill", dtype, grid(count, dtype), THREADS, &parameters) }
    }

    /// `y` (f32) from `x` (`dtype`), or the other way round.
    pub(crate) fn convert(&self, x: Address, from: DType, y: Address, to: DType, count: usize) {
        let (name, dtype) = match (from, to) {
            (dtype, DType::F32) => ("to_f32", dtype),
            (DType::F32, dtype) => ("from_f32", dtype),
            _ => panic!("no conversion from {from} to {to}"),
        };
        let parameters = Convert { x, y, count: count as u64 };
        self.account(|| Cost::moving(count * from.size(), count * to.size()));
        // SAFETY: callers own `count` numbers at both addresses, of the types that the kernel is compiled for.
        unsafe { self.launch("convert", name, dtype, grid(count, dtype), THREADS, &parameters) }
    }
}
