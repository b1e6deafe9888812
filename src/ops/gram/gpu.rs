//! Products of sample matrices on a GPU: `kernels/gram.cu`.

use super::{Samples, rows};
use crate::gpu::{Address, Cost, Handle};
use crate::ops::conv2d::{Sizes, sizes};
use crate::parameters;
use crate::tensor::{DType, Device, Tensor, TensorMut};

parameters! {
    struct Matrix: 88 bytes { x: Address, g: Sizes }
}

parameters! {
    struct Product: 200 bytes { a: Matrix, b: Matrix, to: Address, split: i32, adds: u32, mirrored: u32, padding: u32 }
}

parameters! {
    struct Moments: 104 bytes { a: Matrix, to: Address, split: i32, adds: u32 }
}

parameters! {
    struct Sum: 24 bytes { partial: Address, sum: Address, count: u32, splits: u32 }
}

/// Columns of a tile on both sides, and the most rows that a step takes: those of 16-bit storage.
const SPAN: usize = 64;
const DEPTH: usize = 16;
const THREADS: u32 = 128;
/// Threads of a block of the other two kernels, and the columns it takes.
const COLUMN_THREADS: u32 = 256;
const LANES: usize = 32;

/// Splits of the rows have at least so many, and there are as many as it takes to have so many blocks. Both depend on the
/// shapes alone, so the bits of a result are the same on every device.
const STRETCH: usize = 512;
const BLOCKS: usize = 1024;

/// How many rows a split has, of which each makes `blocks` blocks; and how many splits there are.
fn split(rows: usize, blocks: usize) -> (usize, usize) {
    let most = rows.div_ceil(STRETCH);
    let split = rows.div_ceil((BLOCKS / blocks).clamp(1, most)).next_multiple_of(DEPTH);
    (split, rows.div_ceil(split))
}

fn dim(size: usize) -> u32 {
    u32::try_from(size).expect("fewer than 2³² blocks")
}

fn int(size: usize) -> i32 {
    i32::try_from(size).expect("sizes below 2³¹")
}

impl Matrix {
    fn of(samples: Samples) -> Matrix {
        let (g, x) = (samples.geometry(), samples.x.address());
        // The kernels count rows, up to a step beyond the last one, in 32 bits; `sizes` sees to columns.
        int(rows(&g) + STRETCH);
        Matrix { x, g: sizes(&g, samples.x.dtype(), x, x, None) }
    }
}

/// Calls `launch` with where `splits` partial sums go and whether they are added there, and adds them up if need be.
fn in_splits(gpu: Handle, dtype: DType, splits: usize, sum: TensorMut, launch: impl FnOnce(Address, bool)) {
    assert_eq!(sum.dtype(), DType::F32, "sums over sample matrices");
    let to = sum.address();
    if splits == 1 {
        return launch(to, true);
    }
    let count = sum.shape().len();
    let mut partial = Tensor::uninit([splits, count], DType::F32, Device::Gpu(gpu));
    let partial_address = partial.view_mut().address();
    launch(partial_address, false);
    let parameters = Sum { partial: partial_address, sum: to, count: dim(count), splits: dim(splits) };
    gpu.account(|| Cost::moving(partial.bytes() + sum.bytes(), sum.bytes()));
    let grid = [dim(count.div_ceil(LANES)), 1, 1];
    // SAFETY: `partial` holds `splits` times `count` numbers, `sum` has as many once.
    unsafe { gpu.launch("gram", "gram_sum", dtype, grid, COLUMN_THREADS, &parameters) }
}

/// The cost of reading `read` bytes and writing the sums of one split, or adding to them, or those of several.
fn cost(flops: usize, read: usize, splits: usize, sum: usize) -> Cost {
    let read = if splits == 1 { read + sum } else { read };
    Cost { flops: flops as u64, ..Cost::moving(read, splits * sum) }
}

pub fn accumulate(gpu: Handle, a: Samples, b: Samples, sum: TensorMut) {
    let dtype = a.x.dtype();
    assert_eq!(b.x.dtype(), dtype, "products of two sample matrices");
    let (rows, columns) = (a.rows(), [a.columns(), b.columns()]);
    let is_same = a.x.address() == b.x.address() && a.geometry() == b.geometry();
    let [down, right] = columns.map(|columns| columns.div_ceil(SPAN));
    let (split, splits) = split(rows, if is_same { down * (down + 1) / 2 } else { down * right });
    let (of_a, of_b, bytes) = (Matrix::of(a), Matrix::of(b), sum.bytes());
    in_splits(gpu, dtype, splits, sum, |to, adds| {
        let read = a.x.bytes() + if is_same { 0 } else { b.x.bytes() };
        gpu.account(|| cost(2 * rows * columns[0] * columns[1], read, splits, bytes));
        let (split, adds, mirrored) = (int(split), adds.into(), is_same.into());
        let parameters = Product { a: of_a, b: of_b, to, split, adds, mirrored, padding: 0 };
        // SAFETY: both matrices are `rows` long and their sizes those of the activations; `to` holds D_a × D_b sums for
        // each split.
        unsafe { gpu.launch("gram", "gram_product", dtype, [down, right, splits].map(dim), THREADS, &parameters) }
    });
}

pub fn moments(gpu: Handle, a: Samples, sum: TensorMut) {
    let dtype = a.x.dtype();
    let (rows, columns) = (a.rows(), a.columns());
    let chunks = columns.div_ceil(LANES);
    let (split, splits) = split(rows, chunks);
    let (of_a, bytes) = (Matrix::of(a), sum.bytes());
    in_splits(gpu, dtype, splits, sum, |to, adds| {
        gpu.account(|| cost(4 * rows * columns, a.x.bytes(), splits, bytes));
        let parameters = Moments { a: of_a, to, split: int(split), adds: adds.into() };
        // SAFETY: the sizes are those of the activation; `to` holds 2 × D sums for each split.
        unsafe { gpu.launch("gram", "gram_moments", dtype, [chunks, splits, 1].map(dim), COLUMN_THREADS, &parameters) }
    });
}
