//! Dropout on a GPU: `kernels/dropout.cu`.

use super::Dropout;
use crate::gpu::{Address, Cost, Gpu};
use crate::parameters;
use crate::tensor::{Integers, Tensor, TensorMut};

parameters! {
    struct Drop: 48 bytes {
        x: Address, y: Address, key: Address, count: u64, stream: u32, threshold: u32, scale: f32, vectorised: u32,
    }
}

const THREADS: usize = 256;

pub fn dropout(gpu: &Gpu, of: &Dropout, key: &Integers<u32>, x: &Tensor, y: TensorMut) {
    assert!(x.is_contiguous() && y.is_contiguous() && x.dtype() == y.dtype(), "dropout");
    let (dtype, count) = (x.dtype(), x.shape().len());
    gpu.account(|| Cost::moving(x.bytes(), y.bytes()));
    let (x, y, key) = (x.address(), y.address(), key.address());
    let vectorised = [x, y].iter().all(|address| address.0.is_multiple_of(16)).into();
    let Dropout { threshold, scale, stream } = *of;
    let parameters = Drop { x, y, key, count: count as u64, stream, threshold, scale, vectorised };
    let blocks = count.div_ceil(THREADS * (16 / dtype.size()));
    let grid = [u32::try_from(blocks).expect("fewer than 2³² blocks"), 1, 1];
    // SAFETY: x and y hold `count` numbers of `dtype`, and the key two words, which the contract compares.
    unsafe { gpu.launch("dropout", "dropout", dtype, grid, THREADS as u32, &parameters) }
}
