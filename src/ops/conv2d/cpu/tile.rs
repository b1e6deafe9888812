//! The innermost products of a convolution: a tile of results stays in registers while its terms are added one by one.
//!
//! ```text
//! windows   y[i][j] = (y[i][j] +) Σ_l x[window i, term l] · b[l][j]      terms are read in place, where a window sees them
//! columns   s[i][j] = (s[i][j] +) Σ_l a[l][i] · b[l][j]                  both packed, term after term
//! ```
//!
//! b comes in *panels*: so many columns, of one term after the other. A result is a sum in the order of its terms, of windows in stretches of
//! [`DEPTH`] terms that are added up. So its bits depend on neither the tile nor the instruction set, as long as that has fused multiply-adds, and
//! rounding grows with the length of a stretch and not of the sum.

#![expect(clippy::needless_range_loop, reason = "rows i and columns j are those of the formula")]

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use crate::ops::simd::{Isa, Vector};
use crate::tensor::Buffer;

/// Terms that a pass over a slab of windows takes at most: a panel of so many stays in the first or second level of the cache.
pub(super) const DEPTH: usize = 512;

/// The largest tile that an instruction set's registers hold: rows, and columns.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub rows: usize,
    pub columns: usize,
}

impl Size {
    pub fn of(isa: Isa) -> Size {
        match isa {
            Isa::Avx512 => Size { rows: 8, columns: 32 },
            Isa::Avx2 | Isa::Neon => Size { rows: 6, columns: 16 },
            Isa::Portable => Size { rows: 4, columns: 8 },
        }
    }
}

/// Writes terms × columns of a matrix, term by term, `width` numbers each: those columns, then zeros.
pub type Pack<'a> = dyn Fn(Range<usize>, Range<usize>, usize, &mut [f32]) + Sync + 'a;

/// A matrix of terms × columns, as panels: packed once, or by each who multiplies by them. The last panel may be half as wide.
pub struct Panels<'a> {
    depth: usize,
    columns: usize,
    width: usize,
    pack: &'a Pack<'a>,
    packed: Option<Buffer<f32>>,
}

impl<'a> Panels<'a> {
    pub fn new(isa: Isa, depth: usize, columns: usize, pack: &'a Pack<'a>) -> Panels<'a> {
        Panels { depth, columns, width: Size::of(isa).columns, pack, packed: None }
    }

    /// Packs them, for more than one slab.
    pub fn packed(mut self) -> Panels<'a> {
        let mut data = Buffer::recycled(self.depth * self.columns.next_multiple_of(self.width / 2));
        data.par_chunks_mut((self.width * self.depth).max(1)).enumerate().for_each(|(panel, to)| {
            (self.pack)(0..self.depth, self.columns(panel..panel + 1), self.width(panel), to);
        });
        self.packed = Some(data);
        self
    }

    /// Numbers of the matrix.
    pub fn len(&self) -> usize {
        self.depth * self.columns
    }

    pub fn count(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    pub fn columns(&self, panels: Range<usize>) -> Range<usize> {
        panels.start * self.width..(panels.end * self.width).min(self.columns)
    }

    /// How wide a panel is, zeros included.
    fn width(&self, panel: usize) -> usize {
        let left = self.columns - panel * self.width;
        if left <= self.width / 2 { self.width / 2 } else { self.width }
    }

    /// Terms of a panel, in `scratch` where they are not packed yet.
    fn terms<'b>(&'b self, panel: usize, terms: Range<usize>, scratch: &'b mut [f32]) -> &'b [f32] {
        let width = self.width(panel);
        match &self.packed {
            Some(packed) => &packed[panel * self.width * self.depth..][terms.start * width..terms.end * width],
            None => {
                let to = &mut scratch[..terms.len() * width];
                (self.pack)(terms, self.columns(panel..panel + 1), width, to);
                to
            }
        }
    }
}

/// Terms of a window that lie side by side: `len` from `offset` behind its base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    pub offset: usize,
    pub len: usize,
}

/// A tensor that tasks write to, each its own places.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    start: *mut f32,
    len: usize,
    whole: PhantomData<&'a mut [f32]>,
}

// SAFETY: who writes promises to be alone with what it writes (`Windows::multiply`).
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> From<&'a mut [f32]> for Shared<'a> {
    fn from(whole: &'a mut [f32]) -> Shared<'a> {
        Shared { start: whole.as_mut_ptr(), len: whole.len(), whole: PhantomData }
    }
}

impl<'a> Shared<'a> {
    /// # Safety
    /// Nobody else reads or writes these places meanwhile.
    pub unsafe fn row(self, places: Range<usize>) -> &'a mut [f32] {
        assert!(places.start <= places.end && places.end <= self.len, "{places:?} of {}", self.len);
        // SAFETY: inside the tensor, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(places.start), places.len()) }
    }
}

/// Products of windows and a matrix in panels.
pub struct Windows<'a> {
    pub x: &'a [f32],
    /// Where the windows begin in x.
    pub bases: &'a [usize],
    /// What each of them sees.
    pub runs: &'a [Run],
    pub filters: &'a Panels<'a>,
    pub panels: Range<usize>,
    pub y: Shared<'a>,
    /// Where each window's results begin in y.
    pub places: &'a [usize],
    /// Whether they are added to what is there.
    pub adds: bool,
}

impl Windows<'_> {
    /// # Safety
    /// These windows' results of these panels' columns are nobody else's meanwhile.
    ///
    /// # Panics
    /// If x or y is too short, or the processor lacks the instructions.
    pub unsafe fn multiply(&self, isa: Isa) {
        let reach = self.runs.iter().map(|run| run.offset + run.len).max().unwrap_or(0);
        let farthest = |places: &[usize]| places.iter().copied().max().unwrap_or(0);
        assert!(self.bases.is_empty() || farthest(self.bases) + reach <= self.x.len(), "windows beyond x");
        assert!(
            farthest(self.places) + self.filters.columns(self.panels.clone()).end <= self.y.len,
            "windows beyond y"
        );
        assert_eq!(self.bases.len(), self.places.len(), "a place for each window");
        assert_eq!(self.runs.iter().map(|run| run.len).sum::<usize>(), self.filters.depth, "terms of a window");
        assert!(isa.is_here(), "no {isa} here");
        // SAFETY: all reads and writes were checked, and so was the instruction set.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::windows_avx512(self),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::windows_avx2(self),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => windows::<std::arch::aarch64::float32x4_t, 6, 4>(self),
                _ => windows::<[f32; 4], 4, 2>(self),
            }
        }
    }
}

/// Products of packed columns.
pub struct Columns<'a> {
    /// Terms × rows, term by term.
    pub a: &'a [f32],
    pub rows: usize,
    /// Terms × columns, term by term: as wide as a tile or half of it.
    pub b: &'a [f32],
    pub width: usize,
    pub terms: usize,
    /// Rows of sums, `pitch` apart, of which `columns` are meant.
    pub sums: &'a mut [f32],
    pub pitch: usize,
    pub columns: usize,
    pub adds: bool,
}

impl Columns<'_> {
    /// # Panics
    /// If a slice is too short, a tile is not one of this instruction set, or the processor lacks the instructions.
    pub fn multiply(&mut self, isa: Isa) {
        let Columns { rows, width, terms, pitch, columns, .. } = *self;
        let size = Size::of(isa);
        assert!((1..=size.rows).contains(&rows) && [size.columns, size.columns / 2].contains(&width), "{rows}×{width}");
        assert!(self.a.len() >= terms * rows && self.b.len() >= terms * width, "{terms} terms");
        assert!(columns <= width && self.sums.len() >= (rows - 1) * pitch + columns, "{rows} rows of {columns}");
        assert!(isa.is_here(), "no {isa} here");
        // SAFETY: all reads and writes were checked, and so was the instruction set.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::columns_avx512(self),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::columns_avx2(self),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => columns_of_rows::<std::arch::aarch64::float32x4_t, 4>(self),
                _ => columns_of_rows::<[f32; 4], 2>(self),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m512};

    use super::{Columns, Windows, columns_of_rows, windows};

    #[target_feature(enable = "avx512f")]
    pub unsafe fn windows_avx512(job: &Windows) {
        // SAFETY: the caller's promises.
        unsafe { windows::<__m512, 8, 2>(job) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn windows_avx2(job: &Windows) {
        // SAFETY: the caller's promises.
        unsafe { windows::<__m256, 6, 2>(job) }
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn columns_avx512(job: &mut Columns) {
        // SAFETY: the caller's promises.
        unsafe { columns_of_rows::<__m512, 2>(job) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn columns_avx2(job: &mut Columns) {
        // SAFETY: the caller's promises.
        unsafe { columns_of_rows::<__m256, 2>(job) }
    }
}

/// All tiles of a slab, in tiles of M windows by N vectors.
///
/// # Safety
/// As [`Windows::multiply`], which has checked what is read and written.
#[inline(always)]
unsafe fn windows<V: Vector, const M: usize, const N: usize>(job: &Windows) {
    let mut adds = job.adds;
    let mut first = 0;
    let mut scratch = if job.filters.packed.is_none() { vec![0.0; DEPTH * N * V::LANES] } else { Vec::new() };
    for runs in stretches(job.runs) {
        let terms: usize = runs.iter().map(|run| run.len).sum();
        for panel in job.panels.clone() {
            let width = job.filters.width(panel);
            let columns = job.filters.columns(panel..panel + 1);
            let b = job.filters.terms(panel, first..first + terms, &mut scratch).as_ptr();
            for (bases, places) in job.bases.chunks(M).zip(job.places.chunks(M)) {
                // Tiles at the end compute their last window several times.
                let last = bases.len() - 1;
                let tile = Tile {
                    rows: std::array::from_fn::<_, M, _>(|i| job.x.as_ptr().wrapping_add(bases[i.min(last)])),
                    to: std::array::from_fn::<_, M, _>(|i| {
                        job.y.start.wrapping_add(places[i.min(last)] + columns.start)
                    }),
                    runs: &runs,
                    b,
                    columns: columns.len(),
                    adds,
                };
                // SAFETY: as the caller promises.
                unsafe { if width == N * V::LANES { tile.multiply::<V, N>() } else { tile.multiply_half::<V, N>() } }
            }
        }
        first += terms;
        adds = true;
    }
}

/// Runs in stretches of up to [`DEPTH`] terms.
fn stretches(runs: &[Run]) -> Vec<Vec<Run>> {
    let mut all: Vec<Vec<Run>> = Vec::new();
    let mut left = 0;
    for &Run { mut offset, mut len } in runs {
        while len > 0 {
            if left == 0 {
                all.push(Vec::new());
                left = DEPTH;
            }
            let taken = len.min(left);
            all.last_mut().expect("one was begun").push(Run { offset, len: taken });
            (offset, len, left) = (offset + taken, len - taken, left - taken);
        }
    }
    all
}

struct Tile<'a, const M: usize> {
    rows: [*const f32; M],
    to: [*mut f32; M],
    runs: &'a [Run],
    b: *const f32,
    columns: usize,
    adds: bool,
}

impl<const M: usize> Tile<'_, M> {
    /// # Safety
    /// As [`windows`].
    #[inline(always)]
    unsafe fn multiply_half<V: Vector, const N: usize>(&self) {
        // SAFETY: as the caller promises.
        unsafe {
            match N {
                4 => self.multiply::<V, 2>(),
                _ => self.multiply::<V, 1>(),
            }
        }
    }

    /// # Safety
    /// As [`windows`].
    #[inline(always)]
    unsafe fn multiply<V: Vector, const N: usize>(&self) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut sums = [[V::splat(0.0); N]; M];
            let mut b = self.b;
            for run in self.runs {
                let rows: [*const f32; M] = std::array::from_fn(|i| self.rows[i].add(run.offset));
                for l in 0..run.len {
                    let columns: [V; N] = std::array::from_fn(|j| V::load(b.add(j * V::LANES)));
                    for i in 0..M {
                        let x = V::splat(*rows[i].add(l));
                        for j in 0..N {
                            sums[i][j] = x.mul_add(columns[j], sums[i][j]);
                        }
                    }
                    b = b.add(N * V::LANES);
                }
            }
            store(sums, &self.to, self.columns, self.adds);
        }
    }
}

/// # Safety
/// As [`Columns::multiply`], which has checked what is read and written.
#[inline(always)]
unsafe fn columns_of_rows<V: Vector, const N: usize>(job: &mut Columns) {
    /// The tile of as many rows as there are.
    macro_rules! of_rows {
        ($($rows:literal)*) => {
            match (job.rows, job.width == N * V::LANES) {
                $(($rows, true) => columns::<V, $rows, N>(job),)*
                $(($rows, false) => match N {
                    4 => columns::<V, $rows, 2>(job),
                    _ => columns::<V, $rows, 1>(job),
                },)*
                (rows, _) => unreachable!("{rows} rows"),
            }
        };
    }
    // SAFETY: as the caller promises.
    unsafe { of_rows!(1 2 3 4 5 6 7 8) }
}

/// # Safety
/// As [`columns_of_rows`].
#[inline(always)]
unsafe fn columns<V: Vector, const M: usize, const N: usize>(job: &mut Columns) {
    let (sums, pitch) = (job.sums.as_mut_ptr(), job.pitch);
    let to: [*mut f32; M] = std::array::from_fn(|i| sums.wrapping_add(i * pitch));
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; M];
        let (mut a, mut b) = (job.a.as_ptr(), job.b.as_ptr());
        for _ in 0..job.terms {
            let columns: [V; N] = std::array::from_fn(|j| V::load(b.add(j * V::LANES)));
            for i in 0..M {
                let a = V::splat(*a.add(i));
                for j in 0..N {
                    sums[i][j] = a.mul_add(columns[j], sums[i][j]);
                }
            }
            (a, b) = (a.add(M), b.add(N * V::LANES));
        }
        store(sums, &to, job.columns, job.adds);
    }
}

/// The most columns of a tile.
const WIDEST: usize = 32;

/// Writes the sums, or adds them to what is there. Several rows may be one and the same.
///
/// # Safety
/// `columns` numbers can be written to each of `to`.
#[inline(always)]
unsafe fn store<V: Vector, const M: usize, const N: usize>(
    mut sums: [[V; N]; M],
    to: &[*mut f32; M],
    columns: usize,
    adds: bool,
) {
    // SAFETY: as the caller promises; `line` has as many lanes as a row of vectors.
    unsafe {
        if columns == N * V::LANES {
            // All is read before anything is written.
            if adds {
                for i in 0..M {
                    for j in 0..N {
                        sums[i][j] = V::load(to[i].add(j * V::LANES)).add(sums[i][j]);
                    }
                }
            }
            for i in 0..M {
                for j in 0..N {
                    sums[i][j].store(to[i].add(j * V::LANES));
                }
            }
            return;
        }
        let mut lines = [[0f32; WIDEST]; M];
        for i in 0..M {
            for j in 0..N {
                sums[i][j].store(lines[i].as_mut_ptr().add(j * V::LANES));
            }
        }
        if adds {
            for i in 0..M {
                for j in 0..columns {
                    lines[i][j] += *to[i].add(j);
                }
            }
        }
        for i in 0..M {
            std::ptr::copy_nonoverlapping(lines[i].as_ptr(), to[i], columns);
        }
    }
}
