//! Products of two matrices over their rows, `AᵀB`, and the moments of the columns of one: correlations of activations, by
//! which networks are aligned, and normal equations, by which they are merged in closed form, are made of them.
//!
//! ```text
//! accumulate   sum[i][j] += Σ_p a[p][i]·b[p][j]                              sum D_a × D_b
//! moments      sum[0][i] += Σ_p a[p][i],   sum[1][i] += Σ_p a[p][i]²         sum 2 × D
//! ```
//!
//! The rows of such a *sample matrix* are the pixels of an activation, N·H·W × C; or what a convolution reads of it, a row
//! for each of its outputs, N·P·Q × R·S·C, in the order of a filter's row and zero in the padding. Nobody wants a gradient:
//! the tape knows nothing of it.

pub mod cpu;
mod gpu;
pub mod reference;

use crate::ops::conv2d::{Conv2d, Geometry};
use crate::tensor::{Implementation, Tensor, TensorMut};

/// An activation, read as a matrix.
#[derive(Clone, Copy)]
pub struct Samples<'a> {
    /// N×H×W×C or, without a window, N×C too.
    pub x: &'a Tensor,
    /// A convolution of one group, and the rows and columns of its filters.
    pub window: Option<(Conv2d, [usize; 2])>,
}

impl<'a> Samples<'a> {
    /// Pixels × channels.
    pub fn of(x: &'a Tensor) -> Samples<'a> {
        Samples { x, window: None }
    }

    /// The patches that filters of R×S taps see: output pixels × R·S·C.
    pub fn patches(x: &'a Tensor, conv: Conv2d, taps: [usize; 2]) -> Samples<'a> {
        Samples { x, window: Some((conv, taps)) }
    }

    pub fn rows(&self) -> usize {
        rows(&self.geometry())
    }

    pub fn columns(&self) -> usize {
        self.geometry().filter_len()
    }

    /// That of a convolution by one filter, which sees a row of the matrix for each output; pixels are 1×1 patches.
    ///
    /// # Panics
    /// If the convolution has groups, or the padded image is smaller than its window.
    fn geometry(&self) -> Geometry {
        let shape = self.x.shape();
        assert!(self.x.is_contiguous(), "samples of {shape}, padded");
        let c = shape.channels();
        match self.window {
            None => Geometry::new(Conv2d::new(1, 0), [shape.pixels(), 1, 1, c].into(), [1, 1, 1, c].into(), c),
            Some((conv, [r, s])) => {
                assert_eq!(conv.groups, 1, "patches of {shape} for a convolution in groups");
                Geometry::new(conv, shape, [1, r, s, c].into(), r * s * c)
            }
        }
    }

    /// With the numbers, on the CPU.
    fn numbers<T: crate::tensor::Element>(&self) -> Numbers<'a, T> {
        Numbers { g: self.geometry(), x: self.x.data() }
    }
}

/// A sample matrix as implementations on the CPU take it: the convolution that sees its rows, and the image.
#[derive(Clone, Copy)]
pub struct Numbers<'a, T> {
    pub g: Geometry,
    pub x: &'a [T],
}

impl<T> Numbers<'_, T> {
    pub fn rows(&self) -> usize {
        rows(&self.g)
    }

    pub fn columns(&self) -> usize {
        self.g.filter_len()
    }
}

fn rows(g: &Geometry) -> usize {
    g.n * g.p * g.q
}

/// Adds `AᵀB` to `sum`, which on a GPU is f32. Both activations are stored alike.
///
/// # Panics
/// If the matrices have not the same number of rows, or the shape of `sum` is not D_a × D_b.
pub fn accumulate(a: Samples, b: Samples, sum: TensorMut) {
    assert_eq!(a.rows(), b.rows(), "rows of two sample matrices");
    assert_eq!(sum.shape().dims(), [a.columns(), b.columns()], "products of two sample matrices");
    assert!(sum.is_contiguous(), "products of two sample matrices, padded");
    match a.x.implementation() {
        Implementation::Cpu => cpu::accumulate(a.numbers(), b.numbers(), sum.data()),
        Implementation::Reference => reference::accumulate::<f64>(a.numbers(), b.numbers(), sum.data()),
        Implementation::Gpu(gpu) => gpu::accumulate(gpu, a, b, sum),
    }
}

/// Adds the sums of the columns to the first row of `sum`, and those of their squares to the second.
///
/// # Panics
/// If the shape of `sum` is not 2 × D.
pub fn moments(a: Samples, sum: TensorMut) {
    assert_eq!(sum.shape().dims(), [2, a.columns()], "moments of a sample matrix");
    assert!(sum.is_contiguous(), "moments of a sample matrix, padded");
    match a.x.implementation() {
        Implementation::Cpu => cpu::moments(a.numbers(), sum.data()),
        Implementation::Reference => reference::moments::<f64>(a.numbers(), sum.data()),
        Implementation::Gpu(gpu) => gpu::moments(gpu, a, sum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{cases, conv2d};
    use crate::tensor::{DType, Device, Element, Shape};

    fn integers<T: Element>(shape: impl Into<Shape>, seed: usize) -> Tensor {
        let shape = shape.into();
        let number = |i: usize| T::from_f64(((i * 31 + seed * 17) % 7) as f64 - 3.0);
        Tensor::from_vec((0..shape.len()).map(number).collect(), shape)
    }

    /// The matrix itself, D × rows: its product with the identity.
    fn transposed(samples: Samples, dtype: DType) -> Vec<f64> {
        let rows = samples.rows();
        let identity = (0..rows * rows).map(|i| f64::from(i % (rows + 1) == 0)).collect();
        let identity = Tensor::from_vec::<f64>(identity, [rows, rows]).cast(dtype);
        let mut sum = Tensor::zeros([samples.columns(), rows], dtype, Device::Cpu);
        accumulate(samples, Samples::of(&identity), sum.view_mut());
        sum.to_f64()
    }

    fn patches_by_filters_are_the_convolution<T: Element>() {
        for case in cases::CONV2D.iter().filter(|case| case.conv.groups == 1) {
            let g = case.geometry();
            if g.n * g.p * g.q > 1000 {
                continue;
            }
            let [x, w] = [integers::<T>(g.x(), 1), integers::<T>([g.k, g.r, g.s, g.c], 2)];
            let mut y = Tensor::uninit(g.y(), T::DTYPE, Device::Cpu);
            conv2d::fprop(case.conv, &x, &w, y.view_mut());
            let samples = Samples::patches(&x, case.conv, [g.r, g.s]);
            let (rows, columns) = (samples.rows(), samples.columns());
            let (patches, w) = (transposed(samples, T::DTYPE), w.to_f64());
            let product = |row: usize, k: usize| -> f64 {
                (0..columns).map(|i| patches[i * rows + row] * w[k * columns + i]).sum()
            };
            let expected: Vec<f64> = (0..rows * g.k).map(|i| product(i / g.k, i % g.k)).collect();
            assert_eq!(y.to_f64(), expected, "{}", case.name);
        }
    }

    /// So columns have the order of a filter's row.
    #[test]
    fn patches_by_filters_are_what_the_convolution_gives() {
        patches_by_filters_are_the_convolution::<f32>();
        patches_by_filters_are_the_convolution::<f64>();
    }

    fn sums_are_those_of_loops<T: Element>() {
        let (rows, d) = (2 * 3 * 5, 7);
        let x = integers::<T>([2, 3, 5, d], 3);
        let flat = x.reshape([rows, d]);
        let [mut product, mut moment] = [integers::<T>([d, d], 4), integers::<T>([2, d], 5)];
        let [before_product, before_moment] = [product.to_f64(), moment.to_f64()];
        accumulate(Samples::of(&x), Samples::of(&flat), product.view_mut());
        moments(Samples::of(&flat), moment.view_mut());
        let x = x.to_f64();
        for i in 0..d {
            let (mut sum, mut squares) = (before_moment[i], before_moment[d + i]);
            for p in 0..rows {
                sum += x[p * d + i];
                squares += x[p * d + i] * x[p * d + i];
            }
            assert_eq!([moment.to_f64()[i], moment.to_f64()[d + i]], [sum, squares]);
            for j in 0..d {
                let mut sum = before_product[i * d + j];
                for p in 0..rows {
                    sum += x[p * d + i] * x[p * d + j];
                }
                assert_eq!(product.to_f64()[i * d + j], sum, "{i}, {j}");
            }
        }
    }

    #[test]
    fn products_and_moments_are_added_to_what_is_there() {
        sums_are_those_of_loops::<f32>();
        sums_are_those_of_loops::<f64>();
    }

    #[test]
    #[should_panic(expected = "groups")]
    fn patches_for_groups_are_refused() {
        let x = integers::<f32>([1, 4, 4, 4], 6);
        Samples::patches(&x, Conv2d { groups: 2, ..Conv2d::new(1, 1) }, [3, 3]).rows();
    }

    #[test]
    #[should_panic(expected = "rows of two sample matrices")]
    fn matrices_of_different_rows_are_refused() {
        let [a, b] = [5, 6].map(|n| integers::<f32>([n, 2], 7));
        let mut sum = Tensor::zeros([2, 2], DType::F32, Device::Cpu);
        accumulate(Samples::of(&a), Samples::of(&b), sum.view_mut());
    }
}
