//! Augmentation and normalisation on the device give the bits of the loader.

use std::sync::Arc;

use medmerge::data::{
    Augmentation, Dataset, Depth, Image, Loader, LoaderOptions, Normalisation, Samples, Split, SplitName,
};
use medmerge::error::{Error, Result};
use medmerge::nn::{Architecture, Model};
use medmerge::ops::images::{Images, prepare};
use medmerge::tensor::{DType, Device, Integers, Tensor};
use medmerge::train::{Place, Silent, Subject, Target, TrainOptions, scores, train};

use crate::common::{Numbers, normalized_error};

use crate::devices;

fn options(network_channels: usize, augmentation: Option<Augmentation>) -> LoaderOptions {
    LoaderOptions {
        network_channels,
        normalisation: Normalisation { mean: vec![0.4], std: vec![0.3] },
        batch_size: 5,
        shuffle: true,
        augmentation,
        seed: 3,
        balance: None,
        shares: None,
    }
}

#[test]
fn batches_have_the_loaders_bits() {
    // Shifts beyond the image show its edge alone.
    let augmentations = [None, Some(2), Some(20)]
        .map(|shift| shift.map(|shift| Augmentation { flip: true, shift, ..Default::default() }));
    for gpu in devices() {
        for (channels, network_channels) in [(1, 1), (1, 3), (3, 3)] {
            for augmentation in &augmentations {
                let count = 13;
                let images = (0..count * 6 * 7 * channels).map(|at| (at * 37 % 256) as u8).collect();
                let split = Split::in_memory(images, [6, 7, channels], (0..count as u32).collect());
                let loader = Loader::new(&split, 6, 7, channels, options(network_channels, *augmentation));
                for (batch, raw) in loader.epoch(4).zip(loader.raw_epoch(4)) {
                    let (batch, raw) = (batch.unwrap(), raw.unwrap());
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
                        // Channels behind those of the tables are zeros, whatever was there.
                        let [n, h, w, k] = batch.shape;
                        let mut y =
                            Tensor::from_vec(vec![9f32; n * h * w * 4], [n, h, w, 4]).to_device(device).cast(dtype);
                        prepare(&images, loader.tables(), y.view_mut());
                        let zeros = vec![0.0; 4 - k];
                        let expected = expected.to_vec::<f32>();
                        let expected: Vec<f32> =
                            expected.chunks(k).flat_map(|pixel| [pixel, &zeros].concat()).collect();
                        assert_eq!(y.to_vec::<f32>(), expected, "{dtype} {channels} {augmentation:?}, zeros");
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

/// Images that are no array: sixteen bits, each of another size. One may be broken.
#[derive(Debug)]
struct Scans {
    count: usize,
    broken: Option<usize>,
}

impl medmerge::data::Images for Scans {
    fn len(&self) -> usize {
        self.count
    }

    fn depth(&self) -> Depth {
        Depth::Sixteen
    }

    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
        let image = |&index: &usize| {
            if self.broken == Some(index) {
                return Err(Error::usage("scan 17 is torn", "mend it"));
            }
            let shape = [8 + index % 3, 9, 1];
            let mut numbers = Numbers(index as u64);
            let samples: Vec<u16> = (0..shape.iter().product()).map(|_| (numbers.next() % 65_536) as u16).collect();
            Ok(Image { shape, samples: Samples::Sixteen(samples.into()) })
        };
        indices.iter().map(image).collect()
    }
}

fn scans(broken: Option<usize>) -> Dataset {
    let split = |count: usize, broken| {
        Split::new(Arc::new(Scans { count, broken }), (0..count).map(|index| (index % 2) as u32).collect())
    };
    Dataset {
        path: "scans".into(),
        train: split(22, broken),
        val: split(8, None),
        test: split(16, None),
        height: 8,
        width: 8,
        channels: 1,
        classes: 2,
        class_names: None,
        task: Default::default(),
        drawn: None,
    }
}

/// What is no byte reaches a GPU as numbers, in replayed graphs too; the CPU sees the same.
#[test]
fn images_of_sixteen_bits_and_any_size() {
    let data = scans(None);
    let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
    let trained = |place: Place| {
        let target = Target { data: &data, normalisation: &Normalisation::default(), place };
        let mut model = Model::initialized(network.clone(), 1);
        let augmentation = Some(Augmentation { flip: true, shift: 1, ..Default::default() });
        let options = TrainOptions { epochs: 2, batch_size: 4, augmentation, ..TrainOptions::default() };
        let history = train(&mut model, &mut Subject::Everything, target, &options, &mut Silent).unwrap();
        let logits = scores(&model, target, SplitName::Test, 4, |_| {}).unwrap();
        (history[1].train_loss, logits.into_iter().map(f64::from).collect::<Vec<f64>>())
    };
    let (loss, logits) = trained(Place::default());
    assert!(logits[0] != logits[2], "all images look alike");
    for gpu in devices() {
        for (precision, tolerance) in [(DType::F32, 1e-3), (DType::BF16, 0.1)] {
            let (ours, found) = trained(Place { device: Device::Gpu(gpu), precision, ..Place::default() });
            let error = normalized_error(&found, &logits);
            assert!(error < tolerance && (ours / loss - 1.0).abs() < tolerance, "{precision} on {gpu}: {error:.1e}");
        }
    }
}

/// The error of an image that cannot be read ends the run, whichever thread met it.
#[test]
fn an_image_that_cannot_be_read_ends_the_run() {
    let data = scans(Some(17));
    let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
    for device in devices().into_iter().map(Device::Gpu).chain([Device::Cpu]) {
        let place = Place { device, ..Place::default() };
        let target = Target { data: &data, normalisation: &Normalisation::default(), place };
        let mut model = Model::initialized(network.clone(), 1);
        let options = TrainOptions { epochs: 1, batch_size: 4, ..TrainOptions::default() };
        let error = train(&mut model, &mut Subject::Everything, target, &options, &mut Silent).unwrap_err();
        assert!(error.to_string().contains("torn"), "{error} on {device}");
    }
}
