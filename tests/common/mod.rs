//! What the test binaries share.
#![allow(dead_code, unused_imports)]

use medmerge::gpu::{Gpu, Handle};
pub use medmerge::numbers::{Numbers, mix, normalized_error};
use medmerge::tensor::Tensor;

/// Panics unless `actual` is within `tolerance` of `expected` by [`normalized_error`].
#[track_caller]
pub fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    let error = normalized_error(actual, expected);
    assert!(error <= tolerance, "{what}: normalised error {error:.3e} > {tolerance:.0e}");
}

pub fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// NCHW, as in PyTorch, to NHWC.
pub fn nhwc(values: &[f32], shape: &[usize]) -> Tensor {
    let &[n, c, h, w] = shape else { panic!("{shape:?} is no batch of images") };
    let mut out = vec![0f32; values.len()];
    for i in 0..n {
        for channel in 0..c {
            for pixel in 0..h * w {
                out[(i * h * w + pixel) * c + channel] = values[(i * c + channel) * h * w + pixel];
            }
        }
    }
    Tensor::from_vec(out, [n, h, w, c])
}

/// The devices that tests run on. One that is asked for and missing fails the test; without any, the test says so.
pub fn devices() -> Vec<Handle> {
    let mut devices = Vec::new();
    if cfg!(feature = "emulator") {
        devices.push(Gpu::emulator(7).expect("built with the emulator"));
    }
    match std::env::var("MEDMERGE_REQUIRE_DEVICE").as_deref() {
        Ok("cuda") => devices.push(Gpu::cuda(0).expect("MEDMERGE_REQUIRE_DEVICE asks for a GPU")),
        Ok(emulator) if emulator.starts_with("emulator:") => {
            devices = vec![Gpu::emulator_of(&emulator["emulator:".len()..], 7).expect("built with the emulator")];
        }
        Ok(other) if !other.is_empty() => panic!("MEDMERGE_REQUIRE_DEVICE={other} is no device"),
        _ => {}
    }
    if devices.is_empty() {
        println!("not run: neither the emulator nor a GPU is here");
    }
    devices
}
