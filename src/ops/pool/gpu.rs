//! Pooling on a GPU: `kernels/pool.cu`.

use super::{Adaptive, Geometry};
use crate::gpu::{Address, Cost, Gpu};
use crate::ops::pixel_walk::{PixelWalk, THREADS};
use crate::parameters;
use crate::tensor::{DType, Integers, Tensor, TensorMut};

parameters! {
    struct Window: 56 bytes {
        n: u32, h: u32, w: u32, c: u32, p: u32, q: u32,
        r: u32, s: u32,
        stride_h: u32, stride_w: u32,
        padding_h: u32, padding_w: u32,
        count_padding: u32,
        vectorised: u32,
    }
}

parameters! {
    struct MaxPool: 80 bytes { x: Address, y: Address, taps: Address, window: Window }
}

parameters! {
    struct MaxPoolBackward: 80 bytes { dy: Address, taps: Address, dx: Address, window: Window }
}

parameters! {
    struct AveragePool: 72 bytes { x: Address, y: Address, window: Window }
}

parameters! {
    struct AdaptivePool: 48 bytes {
        x: Address, y: Address, n: u32, h: u32, w: u32, c: u32, p: u32, q: u32, vectorised: u32, padding: u32,
    }
}

parameters! {
    struct GlobalPool: 40 bytes { x: Address, y: Address, walk: PixelWalk }
}

parameters! {
    struct GlobalPoolBackward: 40 bytes { dy: Address, dx: Address, walk: PixelWalk }
}

/// The geometry, and the grid that writes one pixel's unit of channels with each thread.
fn window(g: &Geometry, dtype: DType, addresses: &[Address], writes: [usize; 2]) -> (Window, [u32; 3]) {
    let pack = 16 / dtype.size();
    let vectorised = g.c.is_multiple_of(pack) && addresses.iter().all(|address| address.0.is_multiple_of(16));
    let threads = g.n * writes[0] * writes[1] * g.c / if vectorised { pack } else { 1 };
    // Kernels count units, and the elements of one image, in 32 bits.
    let fits = |count: usize| count < (1 << 32) - THREADS as usize;
    assert!(fits(threads) && fits(g.h * g.w * g.c) && fits(g.p * g.q * g.c), "pooling of {g:?}");
    let int = |size: usize| u32::try_from(size).expect("sizes below 2³²");
    let [r, s] = g.pool.window.map(int);
    let [stride_h, stride_w] = g.pool.stride.map(int);
    let [padding_h, padding_w] = g.pool.padding.map(int);
    let [n, h, w, c, p, q] = [g.n, g.h, g.w, g.c, g.p, g.q].map(int);
    let (count_padding, vectorised) = (g.pool.count_padding.into(), vectorised.into());
    let window = Window { n, h, w, c, p, q, r, s, stride_h, stride_w, padding_h, padding_w, count_padding, vectorised };
    (window, [threads.div_ceil(THREADS as usize) as u32, 1, 1])
}

/// Both sides of a pool are activations of one dtype, without padding.
fn check(from: &Tensor, to: &TensorMut) -> DType {
    assert!(from.is_contiguous() && to.is_contiguous(), "pooling of padded rows");
    assert_eq!(from.dtype(), to.dtype(), "pooling");
    from.dtype()
}

fn launch<P: crate::gpu::Parameters>(gpu: &Gpu, name: &'static str, dtype: DType, grid: [u32; 3], parameters: &P) {
    // SAFETY: the callers below own tensors of the shapes that the geometry states, which the contract compares, at
    // the addresses beside it; activations are of `dtype`, the side of the global pool without pixels is f32.
    unsafe { gpu.launch("pool", name, dtype, grid, THREADS, parameters) }
}

pub fn max_pool(gpu: &Gpu, g: &Geometry, x: &Tensor, y: TensorMut, taps: &mut Integers<u8>) {
    let dtype = check(x, &y);
    gpu.account(|| Cost::moving(x.bytes(), y.bytes() + taps.bytes()));
    let (x, y, taps) = (x.address(), y.address(), taps.address());
    let (window, grid) = window(g, dtype, &[x, y, taps], [g.p, g.q]);
    launch(gpu, "max_pool", dtype, grid, &MaxPool { x, y, taps, window });
}

pub fn max_pool_backward(gpu: &Gpu, g: &Geometry, dy: &Tensor, taps: &Integers<u8>, dx: TensorMut) {
    let dtype = check(dy, &dx);
    gpu.account(|| Cost::moving(dy.bytes() + taps.bytes(), dx.bytes()));
    let (dy, taps, dx) = (dy.address(), taps.address(), dx.address());
    let (window, grid) = window(g, dtype, &[dy, taps, dx], [g.h, g.w]);
    launch(gpu, "max_pool_backward", dtype, grid, &MaxPoolBackward { dy, taps, dx, window });
}

pub fn average_pool(gpu: &Gpu, g: &Geometry, x: &Tensor, y: TensorMut) {
    let dtype = check(x, &y);
    gpu.account(|| Cost::moving(x.bytes(), y.bytes()));
    let (x, y) = (x.address(), y.address());
    let (window, grid) = window(g, dtype, &[x, y], [g.p, g.q]);
    launch(gpu, "average_pool", dtype, grid, &AveragePool { x, y, window });
}

pub fn average_pool_backward(gpu: &Gpu, g: &Geometry, dy: &Tensor, dx: TensorMut) {
    let dtype = check(dy, &dx);
    gpu.account(|| Cost::moving(dy.bytes(), dx.bytes()));
    let (dy, dx) = (dy.address(), dx.address());
    let (window, grid) = window(g, dtype, &[dy, dx], [g.h, g.w]);
    launch(gpu, "average_pool_backward", dtype, grid, &AveragePool { x: dy, y: dx, window });
}

/// The sizes, and the grid that writes one pixel's unit of channels with each thread.
fn adaptive(g: &Adaptive, dtype: DType, [x, y]: [Address; 2], writes: [usize; 2]) -> (AdaptivePool, [u32; 3]) {
    let pack = 16 / dtype.size();
    let vectorised = g.c.is_multiple_of(pack) && [x, y].iter().all(|address| address.0.is_multiple_of(16));
    let threads = g.n * writes[0] * writes[1] * g.c / if vectorised { pack } else { 1 };
    let fits = |count: usize| count < (1 << 32) - THREADS as usize;
    // The product of a size and an index is counted in 32 bits as well.
    assert!(fits(threads) && fits(g.h * g.w * g.c) && fits(g.p * g.q * g.c), "pooling of {g:?}");
    assert!(fits((g.h + 1) * (g.p + 1)) && fits((g.w + 1) * (g.q + 1)), "pooling of {g:?}");
    let [n, h, w, c, p, q] = [g.n, g.h, g.w, g.c, g.p, g.q].map(|size| u32::try_from(size).expect("sizes below 2³²"));
    let parameters = AdaptivePool { x, y, n, h, w, c, p, q, vectorised: vectorised.into(), padding: 0 };
    (parameters, [threads.div_ceil(THREADS as usize) as u32, 1, 1])
}

pub fn adaptive_average_pool(gpu: &Gpu, g: &Adaptive, x: &Tensor, y: TensorMut) {
    let dtype = check(x, &y);
    gpu.account(|| Cost::moving(x.bytes(), y.bytes()));
    let (parameters, grid) = adaptive(g, dtype, [x.address(), y.address()], [g.p, g.q]);
    launch(gpu, "adaptive_average_pool", dtype, grid, &parameters);
}

pub fn adaptive_average_pool_backward(gpu: &Gpu, g: &Adaptive, dy: &Tensor, dx: TensorMut) {
    let dtype = check(dy, &dx);
    gpu.account(|| Cost::moving(dy.bytes(), dx.bytes()));
    let (parameters, grid) = adaptive(g, dtype, [dy.address(), dx.address()], [g.h, g.w]);
    launch(gpu, "adaptive_average_pool_backward", dtype, grid, &parameters);
}

/// The averages of images of so many pixels.
pub fn global_average_pool(gpu: &Gpu, pixels: usize, x: &Tensor, y: TensorMut) {
    assert!(x.is_contiguous() && y.is_contiguous() && y.dtype() == DType::F32, "global average pooling");
    let (dtype, matrix) = (x.dtype(), [x.shape().pixels(), x.shape().channels()]);
    gpu.account(|| Cost::moving(x.bytes(), y.bytes()));
    let (x, y) = (x.address(), y.address());
    let walk = PixelWalk::of_image(matrix, pixels, dtype, &[x], &[]);
    launch(gpu, "global_average_pool", dtype, walk.grid(dtype), &GlobalPool { x, y, walk });
}

pub fn global_average_pool_backward(gpu: &Gpu, pixels: usize, dy: &Tensor, dx: TensorMut) {
    assert!(dy.is_contiguous() && dx.is_contiguous() && dy.dtype() == DType::F32, "global average pooling");
    let (dtype, matrix) = (dx.dtype(), [dx.shape().pixels(), dx.shape().channels()]);
    gpu.account(|| Cost::moving(dy.bytes(), dx.bytes()));
    let (dy, dx) = (dy.address(), dx.address());
    let walk = PixelWalk::of_image(matrix, pixels, dtype, &[dx], &[dy]);
    launch(gpu, "global_average_pool_backward", dtype, walk.grid(dtype), &GlobalPoolBackward { dy, dx, walk });
}
