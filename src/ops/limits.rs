//! The limits of the device, to measure kernels against: `kernels/limits.cu` and `kernels/limits_tensor.cu`.

use crate::gpu::{Address, Gpu};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

parameters! {
    struct Stream: 40 bytes { x: Address, z: Address, y: Address, units: u64, scale: f32, padding: u32 }
}

parameters! {
    struct Multiply: 24 bytes { y: Address, steps: u32, scale: f32, shift: f32, padding: u32 }
}

parameters! {
    struct Product: 16 bytes { y: Address, steps: u32, padding: u32 }
}

const THREADS: u32 = 256;
/// Floats that a block takes.
const BLOCK: usize = 4 * 4 * THREADS as usize;
/// Chains of multiplications per thread.
const NUMBERS: u64 = 64;
/// Matrix products per warp, and threads of a warp.
const CHAINS: u64 = 8;
const WARP: usize = 32;

/// Which arrays a pass over memory reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Copy,
    Triad,
    Read,
}

impl Gpu {
    /// Copy: `y = x`. Triad: `y = x + 3·z`. Read: `y[b]`, the sum of the b-th 4,096 numbers of `x`; [`Gpu::read_sums`] of
    /// them. `x` and `z` are f32, without padding, and a multiple of 4 long.
    pub(crate) fn stream(&self, pass: Pass, x: &Tensor, z: &Tensor, y: TensorMut) {
        let count = x.shape().len();
        let outputs = if pass == Pass::Read { Gpu::read_sums(count) } else { count };
        assert!(
            count.is_multiple_of(4) && z.shape().len() == count && y.shape().len() == outputs,
            "a pass over memory"
        );
        assert!(x.dtype() == DType::F32 && z.dtype() == DType::F32 && y.dtype() == DType::F32, "a pass over memory");
        let name = match pass {
            Pass::Copy => "limits_copy",
            Pass::Triad => "limits_triad",
            Pass::Read => "limits_read",
        };
        let units = count as u64 / 4;
        let parameters = Stream { x: x.address(), z: z.address(), y: y.address(), units, scale: 3.0, padding: 0 };
        let grid = [u32::try_from(Gpu::read_sums(count)).expect("fewer than 2⁴⁴ numbers"), 1, 1];
        // SAFETY: the lengths that the kernel relies on were checked, and so was that they are f32.
        unsafe { self.launch("limits", name, DType::F32, grid, THREADS, &parameters) }
    }

    /// How many sums a read of `count` numbers leaves.
    pub(crate) fn read_sums(count: usize) -> usize {
        count.div_ceil(BLOCK)
    }

    /// Multiplies and adds `steps` times in each of the chains of a thread, of which there is one per number of `y`, 256 to a
    /// block: v = v·scale + shift, from the number of the thread in its block, plus that of the chain. Returns the FLOPs.
    pub(crate) fn multiply(&self, steps: u32, scale: f32, shift: f32, y: TensorMut) -> u64 {
        let threads = y.shape().len();
        assert!(threads.is_multiple_of(THREADS as usize) && y.dtype() == DType::F32, "whole blocks of f32");
        let parameters = Multiply { y: y.address(), steps, scale, shift, padding: 0 };
        let grid = [u32::try_from(threads / THREADS as usize).expect("a grid"), 1, 1];
        // SAFETY: `y` holds a number for each thread of the grid.
        unsafe { self.launch("limits", "limits_multiply", DType::F32, grid, THREADS, &parameters) }
        2 * NUMBERS * u64::from(steps) * threads as u64
    }

    /// Multiplies matrices of `dtype` on tensor cores, `steps` times in each of the chains of a warp; 256 numbers of `y` to a
    /// block, each the sum of its thread's. Returns the FLOPs.
    pub(crate) fn multiply_matrices(&self, dtype: DType, steps: u32, y: TensorMut) -> u64 {
        let threads = y.shape().len();
        assert!(threads.is_multiple_of(THREADS as usize) && y.dtype() == DType::F32, "whole blocks of f32");
        let parameters = Product { y: y.address(), steps, padding: 0 };
        let grid = [u32::try_from(threads / THREADS as usize).expect("a grid"), 1, 1];
        // SAFETY: `y` holds a number for each thread of the grid.
        unsafe { self.launch("limits_tensor", "limits_product", dtype, grid, THREADS, &parameters) }
        2 * (16 * 8 * depth(dtype)) as u64 * CHAINS * u64::from(steps) * (threads / WARP) as u64
    }
}

/// Summands of one instruction's sums.
fn depth(dtype: DType) -> usize {
    if dtype.size() == 2 { 16 } else { 8 }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::tensor::Device;

    /// Whole numbers, so that every sum is exact; the last block is not full.
    #[test]
    fn passes_over_memory() {
        let gpu = Gpu::emulator(3).unwrap();
        let device = Device::Gpu(gpu);
        let count = BLOCK + 52;
        let numbers = |factor: usize| (0..count).map(|i| (i * factor % 17) as f32).collect::<Vec<f32>>();
        let (x, z) = (numbers(3), numbers(5));
        let on_gpu = |values: &[f32]| Tensor::from_vec(values.to_vec(), [count]).to_device(device);
        let run = |pass, outputs: usize| {
            let mut y = Tensor::uninit([outputs], DType::F32, device);
            gpu.stream(pass, &on_gpu(&x), &on_gpu(&z), y.view_mut());
            y.to_vec::<f32>()
        };
        assert_eq!(run(Pass::Copy, count), x);
        assert_eq!(run(Pass::Triad, count), x.iter().zip(&z).map(|(x, z)| x + 3.0 * z).collect::<Vec<f32>>());
        assert_eq!(run(Pass::Read, 2), x.chunks(BLOCK).map(|block| block.iter().sum()).collect::<Vec<f32>>());
        gpu.check().unwrap();
    }

    /// The numbers of all lanes, laid out as matrices, and multiplied as such.
    #[test]
    fn products_of_matrices_are_done_and_counted() {
        let gpu = Gpu::emulator(3).unwrap();
        for dtype in [DType::BF16, DType::F16, DType::TF32] {
            let depth = depth(dtype);
            // 2 numbers of 16 bits in a register, or one of tf32.
            let each = 32 / (8 * dtype.size());
            let mut y = Tensor::uninit([2 * THREADS as usize], DType::F32, Device::Gpu(gpu));
            let flops = gpu.multiply_matrices(dtype, 3, y.view_mut());
            gpu.check().unwrap();
            assert_eq!(flops, (2 * 16 * 8 * depth * 8 * 3 * 16) as u64);
            let number = |thread: usize, place: usize| {
                let mixed = ((thread * 64 + place + 1) as u32).wrapping_mul(2_654_435_761);
                (mixed >> 16) as i64 % 255 - 127
            };
            let expected = (0..2 * THREADS as usize).map(|thread| {
                let (first, lane) = (thread % 256 / 32 * 32, thread % 32);
                // Which lane, register and half hold A (row, k) and B (k, column), by the tables of PTX.
                let a = |row: usize, k: usize| {
                    let (inner, outer) = (k % (depth / 2), k / (depth / 2));
                    number(first + row % 8 * 4 + inner / each, each * (row / 8 + 2 * outer) + inner % each)
                };
                let b = |chain: usize, k: usize, column: usize| {
                    let (inner, outer) = (k % (depth / 2), k / (depth / 2));
                    number(first + column * 4 + inner / each, each * (4 + 2 * chain + outer) + inner % each)
                };
                let of_chain = |chain: usize| -> i64 {
                    let of = |i: usize| {
                        let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                        (0..depth).map(|k| a(row, k) * b(chain, k, column)).sum::<i64>()
                    };
                    (0..4).map(of).sum()
                };
                (3 * (0..CHAINS as usize).map(of_chain).sum::<i64>()) as f32
            });
            assert!(y.to_vec::<f32>().into_iter().eq(expected), "{dtype}");
        }
    }

    /// Three steps of 2v + 1 from t + i are 8(t + i) + 7, summed over 64 chains.
    #[test]
    fn multiplications_are_done_and_counted() {
        let gpu = Gpu::emulator(3).unwrap();
        let mut y = Tensor::uninit([2 * THREADS as usize], DType::F32, Device::Gpu(gpu));
        assert_eq!(gpu.multiply(3, 2.0, 1.0, y.view_mut()), 2 * 64 * 3 * 512);
        let of_thread = |t: usize| (0..64).map(|i| 8 * (t % 256 + i) + 7).sum::<usize>() as f32;
        assert_eq!(y.to_vec::<f32>(), (0..512).map(of_thread).collect::<Vec<f32>>());
        gpu.check().unwrap();
    }
}
