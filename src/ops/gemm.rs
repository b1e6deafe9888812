//! Matrix products on one CPU thread, by the crate `faer`.
//!
//! One thread, because the ops cut their work into blocks whose sizes do not depend on the number of threads: so each
//! block's sum is the same whoever computes it. Of the crates measured with the shapes of a ResNet's convolutions on one
//! core (Zen 5, AVX-512, GFLOP/s; 784×64×576, 784×512×4608, and transposed 64×576×784): `faer` 236, 223, 214;
//! `matrixmultiply` 144, 173, 194; `gemm` 119, 117, 109.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// A row-major matrix, its rows `stride` apart. Rows may overlap.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
    pub transposed: bool,
}

impl<'a> Matrix<'a> {
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Matrix<'a> {
        assert!(rows == 0 || data.len() >= (rows - 1) * stride + columns, "{rows}×{columns} in {}", data.len());
        Matrix { data, rows, columns, stride, transposed: false }
    }

    pub fn transposed(self) -> Matrix<'a> {
        Matrix { transposed: !self.transposed, ..self }
    }

    fn faer(self) -> MatRef<'a, f32> {
        // SAFETY: `new` checked that the last element of the last row lies inside `data`.
        let matrix =
            unsafe { MatRef::from_raw_parts(self.data.as_ptr(), self.rows, self.columns, self.stride as isize, 1) };
        if self.transposed { matrix.transpose() } else { matrix }
    }
}

/// `c = a·b`, or `c += a·b`, where the rows of `c` lie `stride` apart.
pub fn gemm(a: Matrix, b: Matrix, c: &mut [f32], stride: usize, accumulate: bool) {
    let (a, b) = (a.faer(), b.faer());
    assert_eq!(a.ncols(), b.nrows(), "inner sizes of a matrix product");
    let (rows, columns) = (a.nrows(), b.ncols());
    assert!(stride >= columns && (rows == 0 || c.len() >= (rows - 1) * stride + columns), "{rows}×{columns}");
    // SAFETY: the assertion above keeps every element inside `c`, and rows do not overlap.
    let c = unsafe { MatMut::from_raw_parts_mut(c.as_mut_ptr(), rows, columns, stride as isize, 1) };
    matmul(c, if accumulate { Accum::Add } else { Accum::Replace }, a, b, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_integers_are_exact_whatever_the_strides() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 33, 64), (50, 16, 9)] {
            let a: Vec<f32> = (0..m * (k + 3)).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..n * (k + 1)).map(|i| (i % 5) as f32 - 2.0).collect();
            let mut c = vec![1.0; m * (n + 2)];
            gemm(Matrix::new(&a, m, k, k + 3), Matrix::new(&b, n, k, k + 1).transposed(), &mut c, n + 2, true);
            for i in 0..m {
                for j in 0..n {
                    let dot: f32 = (0..k).map(|l| a[i * (k + 3) + l] * b[j * (k + 1) + l]).sum();
                    assert_eq!(c[i * (n + 2) + j], dot + 1.0);
                }
            }
        }
    }
}
