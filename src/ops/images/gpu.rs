//! The launch of `kernels/images.cu`.

use super::Images;
use crate::gpu::{Address, Cost};
use crate::parameters;
use crate::tensor::{Device, Integers, TensorMut};

const THREADS: u32 = 256;

parameters! {
    struct Parameters: 56 bytes {
        x: Address,
        placements: Address,
        table: Address,
        y: Address,
        n: u32,
        h: u32,
        w: u32,
        c: u32,
        k: u32,
        stored: u32,
    }
}

pub fn images(images: &Images, tables: &[[f32; 256]], y: TensorMut) {
    let Device::Gpu(gpu) = images.bytes.device() else { panic!("images on the CPU are the loader's business") };
    let [n, h, w, c] = images.shape.map(|size| size as u32);
    let parameters = Parameters {
        x: images.bytes.address(),
        placements: images.placements.as_ref().map_or(Address::NULL, |placements| placements.address()),
        table: gpu.constant(tables),
        y: y.address(),
        n,
        h,
        w,
        c,
        k: tables.len() as u32,
        stored: y.shape().channels() as u32,
    };
    let pixels = images.shape[..3].iter().product::<usize>();
    let blocks = u32::try_from(pixels.div_ceil(THREADS as usize)).expect("fewer than 2⁴⁰ pixels");
    let placements = images.placements.as_ref().map_or(0, Integers::bytes);
    gpu.account(|| Cost::moving(images.bytes.bytes() + placements, y.bytes()));
    // SAFETY: the contract checked all sizes; a placement keeps every read inside its image.
    unsafe { gpu.launch("images", "images", y.dtype(), [blocks, 1, 1], THREADS, &parameters) }
}
