//! Rows of a matrix as columns of a panel.

use std::ops::Range;

use crate::ops::simd::{Isa, Job, Vector};

/// Rows and terms of a square that is transposed in registers.
const SIDE: usize = 8;

/// These columns of some rows, `pitch` apart, as columns: term by term, one number of each row, then zeros up to `width`.
///
/// # Panics
/// If a slice is too short, or the processor lacks the instructions.
pub fn pack_transposed(
    isa: Isa,
    (rows, pitch): (&[f32], usize),
    terms: Range<usize>,
    columns: Range<usize>,
    width: usize,
    to: &mut [f32],
) {
    assert!(columns.len() <= width && to.len() >= terms.len() * width, "{columns:?} of {width}");
    assert!(columns.is_empty() || (columns.end - 1) * pitch + terms.end <= rows.len(), "{columns:?} of {terms:?}");
    if columns.len() < width {
        to.fill(0.0);
    }
    isa.run(Transpose { rows, pitch, terms, columns, width, to });
}

/// Of which all reads and writes were checked.
struct Transpose<'a> {
    rows: &'a [f32],
    pitch: usize,
    terms: Range<usize>,
    columns: Range<usize>,
    width: usize,
    to: &'a mut [f32],
}

impl Job for Transpose<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Transpose { rows, pitch, terms, columns, width, to } = self;
        let (rows, to) = (rows.as_ptr(), to.as_mut_ptr());
        for first in (0..columns.len()).step_by(SIDE) {
            let count = SIDE.min(columns.len() - first);
            let whole = if count == SIDE { terms.len() / SIDE * SIDE } else { 0 };
            // SAFETY: the caller's promise, and what was checked.
            unsafe {
                let rows = rows.add((columns.start + first) * pitch + terms.start);
                for term in (0..whole).step_by(SIDE) {
                    square::<V>(rows.add(term), pitch, to.add(term * width + first), width);
                }
                for row in 0..count {
                    for term in whole..terms.len() {
                        *to.add(term * width + first + row) = *rows.add(row * pitch + term);
                    }
                }
            }
        }
    }
}

/// A square whose rows lie so far apart, before and after.
///
/// # Safety
/// All of it can be read and written, and V's instructions are there.
#[inline(always)]
unsafe fn square<V: Vector>(from: *const f32, pitch: usize, to: *mut f32, width: usize) {
    // SAFETY: as the caller promises; AVX-512 comes with AVX2.
    unsafe {
        match V::ISA {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => square_avx2(from, pitch, to, width),
            _ => {
                for row in 0..SIDE {
                    for term in 0..SIDE {
                        *to.add(term * width + row) = *from.add(row * pitch + term);
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`square`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn square_avx2(from: *const f32, pitch: usize, to: *mut f32, width: usize) {
    use std::arch::x86_64::*;
    // SAFETY: as the caller promises.
    unsafe {
        // Each row's first four terms, and those of the row four below it in the upper half; then the last four.
        let mut all = [_mm256_setzero_ps(); SIDE];
        for half in 0..2 {
            for row in 0..4 {
                let at = |row: usize| _mm_loadu_ps(from.add(row * pitch + 4 * half));
                all[4 * half + row] = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(at(row)), at(row + 4));
            }
        }
        // Four terms of four rows in each half of a register: transposed there.
        for half in 0..2 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|row| all[4 * half + row]);
            let [ab, cd] = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)];
            let [ab_high, cd_high] = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)];
            let columns = [
                _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
                _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
            ];
            for (term, column) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(to.add((4 * half + term) * width), column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_transposes() {
        for (pitch, terms, columns, width) in
            [(40, 3..38, 2..19, 32), (9, 0..9, 0..8, 8), (17, 0..16, 0..16, 16), (5, 1..4, 0..3, 8)]
        {
            let rows: Vec<f32> = (0..pitch * columns.end).map(|i| i as f32).collect();
            for isa in Isa::here() {
                let mut to = vec![f32::NAN; terms.len() * width];
                pack_transposed(isa, (&rows, pitch), terms.clone(), columns.clone(), width, &mut to);
                for (term, to) in terms.clone().zip(to.chunks(width)) {
                    for (i, &number) in to.iter().enumerate() {
                        let row = columns.start + i;
                        let expected = if row < columns.end { rows[row * pitch + term] } else { 0.0 };
                        assert_eq!(number, expected, "{isa}, {term}, {row}");
                    }
                }
            }
        }
    }
}
