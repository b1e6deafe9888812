//! α from what is learned, and its backward: `kernels/merge.cu`.

use bytemuck::{Pod, Zeroable};

use super::{FLOAT, List, PerGpu, THREADS, WARP, small};
use crate::gpu::{Address, Cost, Handle};
use crate::ops::merge::constraint::{Constraint, Parametrization};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

parameters! {
    struct ConstrainForward: 40 bytes {
        learned: Address,
        alpha: Address,
        alphas: u64,
        learned_count: u32,
        source_count: u32,
        anchor: u32,
        constraint: u32,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MeanRow {
    first: u32,
    period: u32,
}
const _: () = assert!(size_of::<MeanRow>() == 8);

parameters! {
    struct MeansForward: 32 bytes { rows: Address, alpha: Address, alphas: u64, learned_count: u32, row_count: u32 }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MeanRange {
    first: u32,
    rows: u32,
    period: u32,
    alpha: u32,
}
const _: () = assert!(size_of::<MeanRange>() == 16);

parameters! {
    struct ConstrainBackward: 64 bytes {
        alpha: Address,
        dalpha: Address,
        dlearned: Address,
        begins: Address,
        means: Address,
        alphas: u64,
        learned_count: u32,
        source_count: u32,
        anchor: u32,
        constraint: u32,
    }
}

/// The means that a [`Parametrization`] keeps on GPUs.
#[derive(Debug, Default)]
pub struct Means(PerGpu<MeanTable>);

#[derive(Debug)]
struct MeanTable {
    rows: List,
    begins: List,
    ranges: List,
}

impl MeanTable {
    fn new(gpu: Handle, parametrization: &Parametrization) -> MeanTable {
        let rows: Vec<MeanRow> = parametrization
            .means
            .iter()
            .flat_map(|mean| {
                (0..mean.rows)
                    .map(|row| MeanRow { first: small(mean.first + row * mean.period), period: small(mean.period) })
            })
            .collect();
        let mut alpha = parametrization.learned;
        let mut ranges = Vec::new();
        for mean in &parametrization.means {
            let [first, rows, period] = [mean.first, mean.rows, mean.period].map(small);
            ranges.push(MeanRange { first, rows, period, alpha: small(alpha) });
            alpha += mean.rows;
        }
        let (mut begins, mut of_blocks) = (Vec::new(), Vec::<MeanRange>::new());
        for block in (0..parametrization.learned).step_by(THREADS) {
            begins.push(small(of_blocks.len()));
            of_blocks.extend(ranges.iter().filter(|range| {
                let first = range.first as usize;
                first < block + THREADS && first + range.rows as usize * range.period as usize > block
            }));
        }
        begins.push(small(of_blocks.len()));
        MeanTable { rows: List::new(gpu, &rows), begins: List::new(gpu, &begins), ranges: List::new(gpu, &of_blocks) }
    }
}

/// As the kernels number them: clamping is the optimiser's matter.
fn number_of(constraint: Constraint) -> u32 {
    match constraint {
        Constraint::Affine | Constraint::Clamp => 0,
        Constraint::Simplex => 1,
        Constraint::Free => 2,
    }
}

pub fn constrain(gpu: Handle, of: &Parametrization, learned: &Tensor, alpha: TensorMut) {
    assert!(learned.dtype() == DType::F32 && alpha.dtype() == DType::F32, "merge weights are f32");
    let alphas = of.alphas() as u64;
    let parameters = ConstrainForward {
        learned: learned.address(),
        alpha: alpha.address(),
        alphas,
        learned_count: small(of.learned),
        source_count: small(of.sources),
        anchor: small(of.anchor),
        constraint: number_of(of.constraint),
    };
    gpu.account(|| Cost::moving(FLOAT * of.rows() * of.learned, FLOAT * of.sources * of.learned));
    let grid = [small(of.learned.div_ceil(THREADS)), 1, 1];
    // SAFETY: the shapes of both were checked against `of`.
    unsafe { gpu.launch("merge", "merge_constrain", DType::F32, grid, THREADS as u32, &parameters) }
    if of.means.is_empty() {
        return;
    }
    let means = of.on_gpus.0.get(gpu, || MeanTable::new(gpu, of));
    let parameters = MeansForward {
        rows: means.rows.address(),
        alpha: alpha.address(),
        alphas,
        learned_count: small(of.learned),
        row_count: small(means.rows.len),
    };
    let averaged: usize = of.means.iter().map(|mean| mean.rows * mean.period).sum();
    gpu.account(|| Cost::moving(FLOAT * of.sources * averaged, FLOAT * of.sources * means.rows.len));
    let grid = [small(means.rows.len.div_ceil(THREADS / WARP)), small(of.sources), 1];
    // SAFETY: means are of learned α, and their own lie behind those.
    unsafe { gpu.launch("merge", "merge_means", DType::F32, grid, THREADS as u32, &parameters) }
}

pub fn constrain_backward(gpu: Handle, of: &Parametrization, alpha: &Tensor, dalpha: &Tensor, dlearned: TensorMut) {
    let dtypes = [alpha.dtype(), dalpha.dtype(), dlearned.dtype()];
    assert!(dtypes == [DType::F32; 3], "merge weights are f32");
    let means = of.on_gpus.0.get(gpu, || MeanTable::new(gpu, of));
    let parameters = ConstrainBackward {
        alpha: alpha.address(),
        dalpha: dalpha.address(),
        dlearned: dlearned.address(),
        begins: means.begins.address(),
        means: means.ranges.address(),
        alphas: of.alphas() as u64,
        learned_count: small(of.learned),
        source_count: small(of.sources),
        anchor: small(of.anchor),
        constraint: number_of(of.constraint),
    };
    // Only the simplex reads any α.
    let alphas = if of.constraint == Constraint::Simplex { of.learned } else { 0 };
    let read = FLOAT * of.sources * (of.alphas() + alphas);
    gpu.account(|| Cost::moving(read, FLOAT * of.rows() * of.learned));
    let grid = [small(of.learned.div_ceil(THREADS)), 1, 1];
    // SAFETY: the shapes of all three were checked against `of`; there are begins for every block and one more.
    unsafe { gpu.launch("merge", "merge_constrain_backward", DType::F32, grid, THREADS as u32, &parameters) }
}
