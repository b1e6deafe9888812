//! What the benches share: inputs, and how long to measure.

#![allow(dead_code)] // Each bench uses its part.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use medmerge::bench::random_tensor;
use medmerge::tensor::{DType, Device, Shape, Tensor};

/// Few samples of one length: most of these run for tens of milliseconds or more, and a bench should end in minutes.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .nresamples(2000)
        .configure_from_args()
}

pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// Bytes of `arrays` arrays of `f32` of this length.
pub fn bytes(arrays: usize, len: usize) -> Throughput {
    Throughput::BytesDecimal((arrays * len * size_of::<f32>()) as u64)
}

/// Numbers between −1 and 1 with no pattern that an op could notice.
pub fn numbers(shape: impl Into<Shape>) -> Tensor {
    random_tensor(shape, 1, Device::Cpu, DType::F32)
}

pub fn empty(shape: impl Into<Shape>) -> Tensor {
    Tensor::zeros(shape, DType::F32, Device::Cpu)
}
