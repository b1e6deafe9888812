//! Numbers without a pattern: a processor that computes with zeros draws less power, and clocks higher.

use rayon::prelude::*;

use crate::tensor::{DType, Device, Shape, Tensor};

/// Numbers in a row that are drawn; beyond that they repeat. To draw as many as exceed a large cache would take longer than
/// what is measured.
const BLOCK: usize = 1 << 22;

/// `count` numbers in [−1, 1), others for each seed.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    let start = seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
    let number = |i: u64| (hash(start.wrapping_add(i)) >> 40) as f32 / 8_388_608.0 - 1.0;
    let block: Vec<f32> = (0..count.min(BLOCK) as u64).into_par_iter().map(number).collect();
    // In parallel for the pages' sake: they belong to the processor that first writes them.
    if count <= BLOCK { block } else { (0..count).into_par_iter().map(|i| block[i % BLOCK]).collect() }
}

/// [`random`] on a device. To a GPU goes one block, which is copied there: uploads would take longer than what is measured.
pub fn random_tensor(shape: impl Into<Shape>, seed: u64, device: Device, dtype: DType) -> Tensor {
    let shape = shape.into();
    let count = shape.len();
    let Device::Gpu(gpu) = device else { return Tensor::from_vec(random(count, seed), shape) };
    let block = Tensor::from_vec(random(count.min(BLOCK), seed), [count.min(BLOCK)]).to_device(device).cast(dtype);
    if count <= BLOCK {
        return block.reshape(shape);
    }
    let mut tensor = Tensor::uninit(shape, dtype, device);
    let to = tensor.view_mut().address();
    for first in (0..count).step_by(BLOCK) {
        gpu.copy(to.offset(first * dtype.size()), block.address(), BLOCK.min(count - first) * dtype.size());
    }
    tensor
}

/// As many bytes.
pub fn random_bytes(count: usize) -> Vec<u8> {
    (0..count as u64).into_par_iter().map(|i| (hash(i) >> 56) as u8).collect()
}

fn hash(i: u64) -> u64 {
    let mut z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_their_interval() {
        let numbers = random(10_000, 1);
        assert!(numbers.iter().all(|number| (-1.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.02, "{mean}");
        assert_ne!(numbers, random(10_000, 2));
        let many = random(BLOCK + 7, 1);
        assert!(many[..10_000] == numbers && many[BLOCK..] == numbers[..7]);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn blocks_on_a_gpu() {
        let device = Device::Gpu(crate::gpu::Gpu::emulator(1).unwrap());
        let numbers = random_tensor([2, BLOCK / 2 + 3], 5, device, DType::F32).to_vec::<f32>();
        let expected = random(BLOCK, 5);
        assert!(numbers[..BLOCK] == expected && numbers[BLOCK..] == expected[..6]);
        assert_eq!(random_tensor([7], 5, device, DType::F32).to_vec::<f32>(), expected[..7]);
        device.check().unwrap();
    }
}
