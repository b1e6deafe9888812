//! Products of sample matrices on the CPU: slabs of rows, which are gathered into a buffer that stays in the core's cache
//! as a convolution's patches are, and one matrix product for each.
//!
//! Slabs are added in their order within a *part* of the rows, and parts in theirs. Parts run in parallel, and within them
//! bands of the sum: a small sum has many parts, a large one many bands. How many there are depends on the shapes alone.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Numbers;
use crate::ops::conv2d::cpu::Window;
use crate::ops::gemm::{Matrix, gemm};

/// Floats that the sums of parts may take together.
const PARTIAL_SUMS: usize = 1 << 22;
const MOST_PARTS: usize = 16;
/// Rows of the sum that a task adds to.
const BAND: usize = 256;
/// Numbers of the sum for which a task adds up the parts.
const BLOCK: usize = 1 << 14;

/// How rows are cut.
struct Division {
    rows: usize,
    slab: usize,
    /// Rows of a part, a multiple of a slab's.
    part: usize,
}

impl Division {
    /// Of so many rows for so many sums. A slab suits the wider of the matrices.
    fn new(rows: usize, slab: usize, sums: usize) -> Division {
        let slabs = rows.div_ceil(slab);
        let parts = (PARTIAL_SUMS / sums).clamp(1, MOST_PARTS).min(slabs);
        Division { rows, slab, part: slabs.div_ceil(parts) * slab }
    }

    fn parts(&self) -> usize {
        self.rows.div_ceil(self.part)
    }

    fn slabs(&self, part: usize) -> impl Iterator<Item = Range<usize>> {
        let end = ((part + 1) * self.part).min(self.rows);
        (part * self.part..end).step_by(self.slab).map(move |start| start..(start + self.slab).min(end))
    }
}

fn window<'a>(a: &Numbers<'a, f32>) -> Window<'a> {
    Window::of_input(&a.g, a.x, 0)
}

/// `sum` is D_a × D_b.
pub fn accumulate(a: Numbers<f32>, b: Numbers<f32>, sum: &mut [f32]) {
    let slab = window(&a).pixels_per_slab().min(window(&b).pixels_per_slab());
    let division = Division::new(a.rows(), slab, sum.len());
    if division.parts() == 1 {
        return division.slabs(0).for_each(|slab| add_slab(&a, &b, slab, sum));
    }
    let len = sum.len();
    let mut partial = crate::tensor::Buffer::<f32>::recycled(division.parts() * len);
    partial.par_chunks_mut(len).enumerate().for_each(|(part, sum)| {
        sum.fill(0.0);
        division.slabs(part).for_each(|slab| add_slab(&a, &b, slab, sum));
    });
    sum.par_chunks_mut(BLOCK).enumerate().for_each(|(block, sum)| {
        for part in partial.chunks_exact(len) {
            for (sum, &term) in sum.iter_mut().zip(&part[block * BLOCK..]) {
                *sum += term;
            }
        }
    });
}

fn add_slab(a: &Numbers<f32>, b: &Numbers<f32>, slab: Range<usize>, sum: &mut [f32]) {
    let is_same = std::ptr::eq(a.x, b.x) && a.g == b.g;
    window(a).with_patches(slab.clone(), |left| match is_same {
        true => add_product(left, left, sum),
        false => window(b).with_patches(slab, |right| add_product(left, right, sum)),
    });
}

fn add_product(left: Matrix, right: Matrix, sum: &mut [f32]) {
    let columns = right.columns;
    sum.par_chunks_mut(BAND * columns).enumerate().for_each(|(band, sum)| {
        let left = Matrix { data: &left.data[band * BAND..], columns: sum.len() / columns, ..left };
        gemm(left.transposed(), right, sum, columns, true);
    });
}

/// In `f64`, which costs nothing beside the reads: `sum` is 2 × D.
pub fn moments(a: Numbers<f32>, sum: &mut [f32]) {
    let division = Division::new(a.rows(), window(&a).pixels_per_slab(), sum.len());
    let of_part = |part: usize| {
        let mut sums = vec![0f64; sum.len()];
        for slab in division.slabs(part) {
            window(&a).with_patches(slab, |rows| add_moments(rows, &mut sums));
        }
        sums
    };
    let parts: Vec<Vec<f64>> = (0..division.parts()).into_par_iter().map(of_part).collect();
    for (i, sum) in sum.iter_mut().enumerate() {
        *sum = (f64::from(*sum) + parts.iter().map(|part| part[i]).sum::<f64>()) as f32;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn add_moments(rows: Matrix, sums: &mut [f64]) {
    let (first, second) = sums.split_at_mut(rows.columns);
    for row in rows.data.chunks(rows.stride).take(rows.rows) {
        for ((first, second), &value) in first.iter_mut().zip(second.iter_mut()).zip(row) {
            let value = f64::from(value);
            *first += value;
            *second += value * value;
        }
    }
}
