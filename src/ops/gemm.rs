//! Matrix products on one CPU thread, by the crate that `faer` has them from, or by `matrixmultiply` where there is no AVX2.
//!
//! One thread, because the ops cut their work into blocks whose sizes do not depend on the number of threads: so each
//! block's sum is the same whoever computes it. Of the crates measured with the shapes of a ResNet's convolutions on one
//! core (Zen 5, AVX-512, GFLOP/s; 784×64×576, 784×512×4608, and transposed 64×576×784): `faer` 236, 223, 214;
//! `matrixmultiply` 144, 173, 194; `gemm` 119, 117, 109.

use super::simd::Isa;

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

    /// Rows and columns as they are read, and the steps from row to row and from column to column.
    fn layout(self) -> ([usize; 2], [isize; 2]) {
        // No slice has more elements than that.
        let stride = self.stride as isize;
        match self.transposed {
            false => ([self.rows, self.columns], [stride, 1]),
            true => ([self.columns, self.rows], [1, stride]),
        }
    }
}

/// `c = a·b`, or `c += a·b`, where the rows of `c` lie `stride` apart.
pub fn gemm(a: Matrix, b: Matrix, c: &mut [f32], stride: usize, accumulate: bool) {
    product(a, b, c, stride, accumulate, Isa::chosen().into());
}

/// Who multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Implementation {
    #[cfg(target_arch = "x86_64")]
    X86(private_gemm_x86::InstrSet),
    Any,
}

impl From<Isa> for Implementation {
    fn from(isa: Isa) -> Implementation {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Implementation::X86(private_gemm_x86::InstrSet::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Implementation::X86(private_gemm_x86::InstrSet::Avx256),
            _ => Implementation::Any,
        }
    }
}

/// C = A·B, or C + A·B where it accumulates: A is M × K, B is K × N, and the rows of C begin `stride` apart.
fn product(a: Matrix, b: Matrix, c: &mut [f32], stride: usize, accumulate: bool, by: Implementation) {
    let ([m, k], [inner, n]) = (a.layout().0, b.layout().0);
    assert_eq!(k, inner, "inner sizes of a matrix product");
    assert!(stride >= n && (m == 0 || c.len() >= (m - 1) * stride + n), "{m}×{n}");
    if k == 0 && !accumulate {
        c.chunks_mut(stride.max(1)).take(m).for_each(|row| row[..n].fill(0.0));
    }
    if [m, n, k].contains(&0) {
        return;
    }
    // SAFETY: `Matrix::new` and the assertion above keep every element inside its slice, and rows of `c` do not overlap.
    unsafe {
        match by {
            #[cfg(target_arch = "x86_64")]
            Implementation::X86(instructions) => gemm_x86(a, b, c, stride, accumulate, instructions),
            Implementation::Any => gemm_any(a, b, c, stride, accumulate),
        }
    }
}

/// # Safety
/// Every element of the matrices lies inside its slice, C with rows `stride` apart that do not overlap, and the processor has
/// the instructions.
#[cfg(target_arch = "x86_64")]
unsafe fn gemm_x86(
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    stride: usize,
    accumulate: bool,
    instructions: private_gemm_x86::InstrSet,
) {
    use private_gemm_x86::{Accum, DType, DstKind, IType};
    let (([m, k], [a_row, a_column]), ([_, n], [b_row, b_column])) = (a.layout(), b.layout());
    let (none, one) = (std::ptr::null(), 1f32);
    let beta = if accumulate { Accum::Add } else { Accum::Replace };
    // SAFETY: as the caller promises; null is no list of indices, and no diagonal.
    unsafe {
        private_gemm_x86::gemm(
            DType::F32,
            IType::U64,
            instructions,
            m,
            n,
            k,
            c.as_mut_ptr().cast(),
            stride as isize,
            1,
            none,
            none,
            DstKind::Full,
            beta,
            a.data.as_ptr().cast(),
            a_row,
            a_column,
            false,
            none,
            0,
            b.data.as_ptr().cast(),
            b_row,
            b_column,
            false,
            (&raw const one).cast(),
            1,
        );
    }
}

/// # Safety
/// As [`gemm_x86`], on any processor.
unsafe fn gemm_any(a: Matrix, b: Matrix, c: &mut [f32], stride: usize, accumulate: bool) {
    let (([m, k], [a_row, a_column]), ([_, n], [b_row, b_column])) = (a.layout(), b.layout());
    let beta = if accumulate { 1.0 } else { 0.0 };
    let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), c.as_mut_ptr());
    // SAFETY: as the caller promises.
    unsafe {
        matrixmultiply::sgemm(m, k, n, 1.0, a, a_row, a_column, b, b_row, b_column, beta, c, stride as isize, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_integers_are_exact_whatever_the_strides() {
        let sizes = [(1, 1, 1), (3, 5, 7), (17, 33, 64), (50, 16, 9), (1, 40, 5), (40, 1, 30), (25, 30, 1), (3, 4, 0)];
        for ((m, n, k), by) in
            sizes.into_iter().flat_map(|size| Isa::here().map(move |isa| (size, Implementation::from(isa))))
        {
            let a: Vec<f32> = (0..m * (k + 3)).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..n * (k + 1)).map(|i| (i % 5) as f32 - 2.0).collect();
            for accumulate in [true, false] {
                let mut c = vec![1.0; m * (n + 2)];
                let (a_, b_) = (Matrix::new(&a, m, k, k + 3), Matrix::new(&b, n, k, k + 1).transposed());
                product(a_, b_, &mut c, n + 2, accumulate, by);
                for (i, row) in c.chunks(n + 2).enumerate() {
                    for j in 0..n {
                        let dot: f32 = (0..k).map(|l| a[i * (k + 3) + l] * b[j * (k + 1) + l]).sum();
                        let before = if accumulate { 1.0 } else { 0.0 };
                        assert_eq!(row[j], dot + before, "{m}×{n}×{k} by {by:?}");
                    }
                    assert_eq!(row[n..], [1.0; 2], "{m}×{n}×{k} by {by:?}");
                }
            }
        }
    }
}
