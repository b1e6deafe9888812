//! The limits of the machine, measured in the same run as what is compared with them.
//!
//! Memory by three mixes of reads and writes, since a write costs more than a read: read alone, the triad (2 : 1) and a copy
//! (1 : 1). A mix in between takes a time per byte between theirs. Arithmetic: on the CPU, matrix products that stay in
//! each core's cache; on a GPU without memory, in registers: f32 multiplications and additions, and for each
//! precision that tensor cores know, matrix products by `mma.sync`. A row is judged by the limit of its precision. Hopper has
//! faster matrix instructions (`wgmma`), which no kernel here uses.
//!
//! A limit is the fastest of its timings, and a row the median of its own: what disturbs some of the timings does not make a
//! share larger.

use multiversion::multiversion;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::measure::{Clock, is_emulated};
use super::{random, random_tensor};
use crate::error::Result;
use crate::gpu::{Description, Gpu, Handle};
use crate::ops::Cost;
use crate::ops::gemm::{Matrix, gemm};
use crate::ops::limits::Pass;
use crate::tensor::{DType, Device, Tensor};

/// Bytes and operations per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub read: f64,
    pub triad: f64,
    pub copy: f64,
    /// In f32.
    pub multiply: f64,
    /// On tensor cores, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiply_bf16: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiply_f16: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiply_tf32: Option<f64>,
}

/// Which limit an op meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    Memory,
    Arithmetic,
}

impl Limits {
    /// The least seconds that `cost` takes on this machine with operands of `precision`, and what they are spent on.
    pub fn seconds(&self, cost: Cost, precision: DType) -> (f64, Bound) {
        let memory = self.memory_seconds(cost);
        let arithmetic = cost.flops as f64 / self.multiplications(precision);
        if memory >= arithmetic { (memory, Bound::Memory) } else { (arithmetic, Bound::Arithmetic) }
    }

    /// The least seconds that the bytes of `cost` take.
    pub fn memory_seconds(&self, cost: Cost) -> f64 {
        cost.bytes() as f64 * self.seconds_per_byte(cost)
    }

    /// Per second.
    pub fn multiplications(&self, precision: DType) -> f64 {
        let on_tensor_cores = match precision {
            DType::BF16 => self.multiply_bf16,
            DType::F16 => self.multiply_f16,
            DType::TF32 => self.multiply_tf32,
            _ => None,
        };
        on_tensor_cores.unwrap_or(self.multiply)
    }

    /// By the share of writes, linearly between the three that were measured; beyond a half, as the copy.
    fn seconds_per_byte(&self, cost: Cost) -> f64 {
        let share = cost.written as f64 / cost.bytes().max(1) as f64;
        let (third, half) = (1.0 / 3.0, 0.5);
        let between = |from: f64, to: f64, place: f64| from + (to - from) * place;
        match share {
            _ if share <= third => between(1.0 / self.read, 1.0 / self.triad, share / third),
            _ if share <= half => between(1.0 / self.triad, 1.0 / self.copy, (share - third) / (half - third)),
            _ => 1.0 / self.copy,
        }
    }

    pub fn measure(clock: &Clock) -> Result<Limits> {
        let clock = Clock { rounds: clock.rounds.clamp(3, MOST_ROUNDS), ..*clock };
        match clock.device {
            Device::Cpu => on_cpu(&clock),
            Device::Gpu(gpu) => on_gpu(&clock, gpu),
        }
    }
}

/// Timings of each limit.
const MOST_ROUNDS: usize = 31;

/// Bytes of a cache: three arrays of twice as much each have to fit into memory.
const MOST_CACHE: u64 = 256 << 20;
/// Floats of a parallel piece, as many as the merge takes.
const PIECE: usize = 1 << 14;
/// Sides of the CPU's matrix products: three such matrices fit into a core's own cache.
const SIDE: usize = 256;
/// Products for each thread: enough to share evenly.
const PRODUCTS: usize = 8;

fn on_cpu(clock: &Clock) -> Result<Limits> {
    // Two arrays of a copy exceed the cache four times.
    let count = (clock.cache.clamp(1 << 20, MOST_CACHE) as usize / 2).next_multiple_of(PIECE);
    let [x, z] = [1, 2].map(|seed| random(count, seed));
    let mut y = vec![0f32; count];
    let mut sums = vec![0f32; count / PIECE];
    let bytes = |arrays: usize| (arrays * count * size_of::<f32>()) as f64;
    let read = clock.time(1, &mut |_| {
        sums.par_iter_mut().zip(x.par_chunks(PIECE)).for_each(|(sum, x)| *sum = total(x));
    })?;
    let triad = clock.time(1, &mut |_| {
        let inputs = x.par_chunks(PIECE).zip(z.par_chunks(PIECE));
        y.par_chunks_mut(PIECE).zip(inputs).for_each(|(y, (x, z))| add_scaled(y, x, 3.0, z));
    })?;
    let copy = clock.time(1, &mut |_| {
        y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| y.copy_from_slice(x));
    })?;
    let products = PRODUCTS * rayon::current_num_threads();
    let [a, b] = [Matrix::new(&x, SIDE, SIDE, SIDE), Matrix::new(&z, SIDE, SIDE, SIDE)];
    let mut c = vec![0f32; products * SIDE * SIDE];
    let multiply = clock.time(1, &mut |_| {
        c.par_chunks_mut(SIDE * SIDE).for_each(|c| gemm(a, b, c, SIDE, false));
    })?;
    std::hint::black_box((&sums, &y, &c));
    let flops = 2.0 * (products * SIDE * SIDE * SIDE) as f64;
    Ok(Limits {
        read: bytes(1) / read.fastest,
        triad: bytes(3) / triad.fastest,
        copy: bytes(2) / copy.fastest,
        multiply: flops / multiply.fastest,
        multiply_bf16: None,
        multiply_f16: None,
        multiply_tf32: None,
    })
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn total(x: &[f32]) -> f32 {
    // As many sums as keep the adders busy.
    let mut sums = [0f32; 64];
    for x in x.chunks_exact(64) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += x;
        }
    }
    sums.iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn add_scaled(y: &mut [f32], x: &[f32], scale: f32, z: &[f32]) {
    for ((y, x), z) in y.iter_mut().zip(x).zip(z) {
        *y = x + scale * z;
    }
}

/// Floats of each array, where a sixteenth of the memory is as much: far more than any cache holds.
const COUNT: usize = 64 << 20;
/// Blocks for each multiprocessor, a multiple of the three that fit at once, and multiplications of each chain.
const BLOCKS: usize = 24;
const STEPS: u32 = 4096;

fn on_gpu(clock: &Clock, gpu: Handle) -> Result<Limits> {
    let is_emulated = is_emulated(clock.device);
    let (count, blocks, steps) = match is_emulated {
        true => (1 << 13, 1, 8),
        false => {
            let Description { memory, multiprocessors, .. } = gpu.description();
            let count = COUNT.min(memory / size_of::<f32>() / 16).next_multiple_of(4);
            (count, BLOCKS * multiprocessors, STEPS)
        }
    };
    let array = |seed| random_tensor([count], seed, clock.device, DType::F32);
    let (x, z) = (array(1), array(2));
    let uninit = |count: usize| Tensor::uninit([count], DType::F32, clock.device);
    let (mut y, mut sums, mut chains) = (uninit(count), uninit(Gpu::read_sums(count)), uninit(blocks * 256));
    let bytes = |arrays: usize| (arrays * count * size_of::<f32>()) as f64;
    let read = clock.time(1, &mut |_| gpu.stream(Pass::Read, &x, &z, sums.view_mut()))?;
    let triad = clock.time(1, &mut |_| gpu.stream(Pass::Triad, &x, &z, y.view_mut()))?;
    let copy = clock.time(1, &mut |_| gpu.stream(Pass::Copy, &x, &z, y.view_mut()))?;
    let mut flops = 0;
    let multiply = clock.time(1, &mut |_| flops = gpu.multiply(steps, 0.5, 1.0, chains.view_mut()))?;
    let mut product = |dtype| -> Result<f64> {
        let mut flops = 0;
        let timing = clock.time(1, &mut |_| flops = gpu.multiply_matrices(dtype, steps, chains.view_mut()))?;
        Ok(flops as f64 / timing.fastest)
    };
    let [bf16, f16, tf32] = [DType::BF16, DType::F16, DType::TF32].map(&mut product);
    Ok(Limits {
        read: bytes(1) / read.fastest,
        triad: bytes(3) / triad.fastest,
        copy: bytes(2) / copy.fastest,
        multiply: flops as f64 / multiply.fastest,
        multiply_bf16: Some(bf16?),
        multiply_f16: Some(f16?),
        multiply_tf32: Some(tf32?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        read: 8.0,
        triad: 4.0,
        copy: 2.0,
        multiply: 100.0,
        multiply_bf16: Some(800.0),
        multiply_f16: Some(1000.0),
        multiply_tf32: Some(500.0),
    };

    /// A mix that was measured has its own limit; one in between, one in between.
    #[test]
    fn the_limit_of_a_mix() {
        let seconds = |read, written| LIMITS.seconds(Cost { flops: 0, read, written }, DType::BF16);
        assert_eq!(seconds(24, 0), (3.0, Bound::Memory));
        assert_eq!(seconds(16, 8), (6.0, Bound::Memory));
        assert_eq!(seconds(12, 12), (12.0, Bound::Memory));
        assert_eq!(seconds(0, 24), (12.0, Bound::Memory));
        // One write in six: half-way between reading alone and the triad.
        assert!((seconds(20, 4).0 - 24.0 * (1.0 / 8.0 + 1.0 / 4.0) / 2.0).abs() < 1e-12);
        assert_eq!(seconds(0, 0).0, 0.0);
    }

    #[test]
    fn the_nearer_limit_counts() {
        let seconds = |flops, read, precision| LIMITS.seconds(Cost { flops, read, written: 0 }, precision);
        assert_eq!(seconds(1000, 8, DType::F32), (10.0, Bound::Arithmetic));
        assert_eq!(seconds(100, 16, DType::F32), (2.0, Bound::Memory));
        // By the precision's own arithmetic.
        assert_eq!(seconds(1000, 8, DType::BF16), (1.25, Bound::Arithmetic));
        assert_eq!(seconds(1000, 8, DType::F16), (1.0, Bound::Memory));
        assert_eq!(seconds(1000, 8, DType::TF32), (2.0, Bound::Arithmetic));
        let without = Limits { multiply_f16: None, ..LIMITS };
        assert_eq!(without.multiplications(DType::F16), 100.0);
    }

    #[test]
    fn sums_and_triads_are_what_they_say() {
        let x: Vec<f32> = (0..PIECE).map(|i| (i % 5) as f32).collect();
        assert_eq!(total(&x), x.iter().sum::<f32>());
        let mut y = vec![0f32; PIECE];
        add_scaled(&mut y, &x, 2.0, &x);
        assert!(y.iter().zip(&x).all(|(y, x)| *y == 3.0 * x));
    }
}
