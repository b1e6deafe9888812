//! What activations are stored as has the bits that the host's conversions give.

use half::{bf16, f16};
use medmerge::tensor::{DType, Device, Tensor};

use crate::devices;

/// Every number that either type can hold, every tie between two of them, and what lies next to those.
fn numbers() -> Vec<f32> {
    let leading = 0..1u32 << 19;
    let trailing = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF];
    leading.flat_map(|bits| trailing.map(|rest| f32::from_bits(bits << 13 | rest))).collect()
}

#[test]
fn storing_rounds_to_nearest() {
    let x = numbers();
    for gpu in devices() {
        let on_device = Tensor::from_vec(x.clone(), [x.len()]).to_device(Device::Gpu(gpu));
        for (dtype, rounded) in [
            (DType::BF16, (|x| bf16::from_f32(x).to_f32()) as fn(f32) -> f32),
            (DType::F16, |x| f16::from_f32(x).to_f32()),
        ] {
            let stored = on_device.cast(dtype).to_vec::<f32>();
            for (&x, y) in x.iter().zip(stored) {
                let expected = rounded(x);
                let same = y.to_bits() == expected.to_bits() || y.is_nan() && expected.is_nan();
                assert!(same, "{x:e} ({:#010x}) in {dtype} on {gpu}: {y:e}, not {expected:e}", x.to_bits());
            }
        }
    }
}

#[test]
fn filling_ends_where_the_tensor_does() {
    for gpu in devices() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for len in [1, 4, 7, 8, 1001, 4097] {
                let mut whole =
                    Tensor::from_vec(vec![1f32; len + 24], [len + 24]).to_device(Device::Gpu(gpu)).cast(dtype);
                whole.view_mut().window(8, [1, len], len).fill(2.5);
                let mut expected = vec![1f32; len + 24];
                expected[8..][..len].fill(2.5);
                assert_eq!(whole.to_vec::<f32>(), expected, "{len} in {dtype} on {gpu}");
            }
        }
    }
}
