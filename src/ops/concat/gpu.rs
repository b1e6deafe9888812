//! Concatenation on a GPU: `kernels/concat.cu`.

use crate::gpu::{Address, Cost, Gpu};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

parameters! {
    struct Concat: 40 bytes {
        part: Address,
        whole: Address,
        units: u32,
        channels: u32,
        total: u32,
        first: u32,
        vectorised: u32,
        padding: u32,
    }
}

const THREADS: usize = 256;

/// Channels of the part, of the whole, and where the one begins in the other; the shapes agree with them.
type Channels = [usize; 3];

pub fn insert(gpu: &Gpu, x: &Tensor, channels: Channels, y: TensorMut) {
    assert!(x.is_contiguous() && y.is_contiguous() && x.dtype() == y.dtype(), "concatenation");
    gpu.account(|| Cost::moving(x.bytes(), x.bytes()));
    launch(gpu, "concat_insert", x.dtype(), x.shape().pixels(), channels, x.address(), y.address());
}

pub fn extract(gpu: &Gpu, dy: &Tensor, channels: Channels, dx: TensorMut) {
    assert!(dy.is_contiguous() && dx.is_contiguous() && dy.dtype() == dx.dtype(), "concatenation's gradient");
    gpu.account(|| Cost::moving(dx.bytes(), dx.bytes()));
    launch(gpu, "concat_extract", dy.dtype(), dy.shape().pixels(), channels, dx.address(), dy.address());
}

fn launch(
    gpu: &Gpu,
    name: &'static str,
    dtype: DType,
    pixels: usize,
    [channels, total, first]: Channels,
    part: Address,
    whole: Address,
) {
    let pack = 16 / dtype.size();
    let vectorised = [channels, total, first].iter().all(|size| size.is_multiple_of(pack))
        && [part, whole].iter().all(|address| address.0.is_multiple_of(16));
    let units = pixels * channels / if vectorised { pack } else { 1 };
    // A thread beyond the last unit still counts in 32 bits.
    assert!(units < (1 << 32) - THREADS, "concatenation of {units} units");
    let parameters = Concat {
        part,
        whole,
        units: units as u32,
        channels: channels as u32,
        total: total as u32,
        first: first as u32,
        vectorised: vectorised.into(),
        padding: 0,
    };
    let grid = [units.div_ceil(THREADS) as u32, 1, 1];
    // SAFETY: the part has `pixels` × `channels` numbers of `dtype` and the whole `pixels` × `total`, without padding;
    // `first + channels` is at most `total`.
    unsafe { gpu.launch("concat", name, dtype, grid, THREADS as u32, &parameters) }
}
