//! Augmentation and normalisation on the device give the bits of the loader.

use medmerge::data::{Augmentation, Loader, LoaderOptions, Normalisation, Split};
use medmerge::ops::images::{Images, prepare};
use medmerge::tensor::{DType, Device, Integers, Tensor};

use crate::devices;

fn options(network_channels: usize, augmentation: Option<Augmentation>) -> LoaderOptions {
    LoaderOptions {
        network_channels,
        normalisation: Normalisation { mean: vec![0.4], std: vec![0.3] },
        batch_size: 5,
        shuffle: true,
        augmentation,
        seed: 3,
    }
}

#[test]
fn batches_have_the_loaders_bits() {
    // Shifts beyond the image show its edge alone.
    let augmentations = [None, Some(2), Some(20)].map(|shift| shift.map(|shift| Augmentation { flip: true, shift }));
    for gpu in devices() {
        for (channels, network_channels) in [(1, 1), (1, 3), (3, 3)] {
            for augmentation in &augmentations {
                let count = 13;
                let images = (0..count * 6 * 7 * channels).map(|at| (at * 37 % 256) as u8).collect();
                let split = Split { images, labels: (0..count as u32).collect() };
                let loader = Loader::new(&split, 6, 7, channels, options(network_channels, *augmentation));
                for (batch, raw) in loader.epoch(4).zip(loader.raw_epoch(4)) {
                    let device = Device::Gpu(gpu);
                    let images = Images {
                        bytes: Integers::from_vec(raw.bytes).to_device(device),
                        shape: raw.shape,
                        placements: raw.placements.map(|placements| Integers::from_vec(placements).to_device(device)),
                    };
                    for dtype in [DType::F32, DType::BF16, DType::F16] {
                        let mut y = Tensor::uninit(batch.shape, dtype, device);
                        prepare(&images, loader.tables(), y.view_mut());
                        let expected =
                            Tensor::from_vec(batch.images.clone(), batch.shape).to_device(device).cast(dtype);
                        assert_eq!(y.to_vec::<f32>(), expected.to_vec::<f32>(), "{dtype} {channels} {augmentation:?}");
                    }
                    assert_eq!(raw.labels, batch.labels);
                }
            }
        }
        gpu.check().unwrap();
    }
}

/// A window in an arena of half precision may begin at 8 bytes, and have rows that are padded.
#[test]
fn windows_come_home_whole() {
    for gpu in devices() {
        let numbers: Vec<f32> = (0..64).map(|i| i as f32 - 31.0).collect();
        let arena = Tensor::from_vec(numbers.clone(), [64]);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let on_device = arena.to_device(Device::Gpu(gpu)).cast(dtype);
            for (offset, shape, pitch) in [(0, [3, 9], 12), (4, [2, 17], 20), (1, [1, 5], 5), (3, [4, 1], 1)] {
                let expected = arena.window(offset, shape, pitch).to_vec::<f32>();
                assert_eq!(on_device.window(offset, shape, pitch).to_vec::<f32>(), expected, "{dtype} at {offset}");
                assert_eq!(on_device.window(offset, shape, pitch).copy().to_vec::<f32>(), expected);
            }
        }
        gpu.check().unwrap();
    }
}
