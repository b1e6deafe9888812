//! Training and learning on a device: agreement with the CPU, the same bits with and without graphs and whatever the
//! order of threads, nothing allocated in a steady state, and what happens when numbers overflow.
//!
//! Runs on the emulator, and on the GPU that `MEDMERGE_REQUIRE_DEVICE` names.

mod images;
mod jobs;
mod steps;

#[path = "../common/mod.rs"]
mod common;

use medmerge::gpu::{Gpu, Handle};

/// The devices that tests run on. One that is asked for and missing fails the test; without any, the test says so.
fn devices() -> Vec<Handle> {
    let mut devices = Vec::new();
    if cfg!(feature = "emulator") {
        devices.push(Gpu::emulator(7).expect("built with the emulator"));
    }
    match std::env::var("MEDMERGE_REQUIRE_DEVICE").as_deref() {
        Ok("cuda") => devices.push(Gpu::cuda(0).expect("MEDMERGE_REQUIRE_DEVICE asks for a GPU")),
        Ok(other) if !other.is_empty() => panic!("MEDMERGE_REQUIRE_DEVICE={other} is no device"),
        _ => {}
    }
    if devices.is_empty() {
        println!("not run: neither the emulator nor a GPU is here");
    }
    devices
}
