//! Numbers without a pattern: a processor that computes with zeros draws less power, and clocks higher.

use rayon::prelude::*;

use crate::tensor::{DType, Device, Shape, Tensor};

/// `count` numbers in [−1, 1), others for each seed.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    let start = seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
    (0..count as u64).into_par_iter().map(|i| (hash(start.wrapping_add(i)) >> 40) as f32 / 8_388_608.0 - 1.0).collect()
}

/// [`random`] on a device.
pub fn random_tensor(shape: impl Into<Shape>, seed: u64, device: Device, dtype: DType) -> Tensor {
    let shape = shape.into();
    let numbers = Tensor::from_vec(random(shape.len(), seed), shape).to_device(device);
    if dtype == DType::F32 { numbers } else { numbers.cast(dtype) }
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
    }
}
