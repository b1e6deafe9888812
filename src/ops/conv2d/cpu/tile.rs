//! The innermost products of a convolution: a tile of results stays in registers while its terms are added one by one.
//!
//! ```text
//! windows   y[i][j] = (y[i][j] +) Σ_l x[window i, term l] · b[l][j]      terms are read in place, where a window sees them
//! columns   s[i][j] = (s[i][j] +) Σ_l a[l][i] · b[l][j]                  a packed, term after term; rows of b where they lie
//! outer     s[i][j] = (s[i][j] +) Σ_l x[window l, i] · b[l][j]           both where they lie
//! ```
//!
//! b comes in *panels*: so many columns, of one term after the other. A result is a sum in the order of its terms, of windows in stretches of
//! [`DEPTH`] terms that are added up. So its bits depend on neither the tile nor the instruction set, as long as that has fused multiply-adds, and
//! rounding grows with the length of a stretch and not of the sum.

#![expect(clippy::needless_range_loop, reason = "rows i and columns j are those of the formula")]

use std::marker::PhantomData;
use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::ops::simd::{Isa, Job, Vector};
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
            Isa::Avx512 => Size { rows: 14, columns: 32 },
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
    pub fn len(self) -> usize {
        self.len
    }

    pub fn start(self) -> *mut f32 {
        self.start
    }

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
        assert!(self.bases.is_empty() || farthest(self.bases) + reach <= self.x.len(), "windows beyond x");
        assert!(
            farthest(self.places) + self.filters.columns(self.panels.clone()).end <= self.y.len,
            "windows beyond y"
        );
        assert_eq!(self.bases.len(), self.places.len(), "a place for each window");
        assert_eq!(self.runs.iter().map(|run| run.len).sum::<usize>(), self.filters.depth, "terms of a window");
        isa.run(AllTiles(self));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn farthest(places: &[usize]) -> usize {
    places.iter().copied().max().unwrap_or(0)
}

/// Windows of which all reads and writes were checked.
struct AllTiles<'a>(&'a Windows<'a>);

impl Job for AllTiles<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's promise, and what was checked.
        unsafe {
            match V::ISA {
                Isa::Avx512 => windows::<V, 14, 7, 2>(self.0),
                Isa::Avx2 => windows::<V, 6, 3, 2>(self.0),
                Isa::Neon => windows::<V, 6, 3, 4>(self.0),
                Isa::Portable => windows::<V, 4, 2, 2>(self.0),
            }
        }
    }
}

/// Products of what windows see at one place and rows of a matrix, `s[i][j] = (s[i][j] +) Σ_w x[window w, i] · b[w][j]`: both are read where they
/// lie.
pub struct Outer<'a> {
    pub x: &'a [f32],
    /// Where the windows begin in x, and how far behind that what is multiplied.
    pub bases: Bases<'a>,
    pub offset: usize,
    pub rows: usize,
    /// A row for each window, `pitch` apart.
    pub b: &'a [f32],
    pub pitch: usize,
    /// As many as a tile has, or half of them.
    pub columns: usize,
    /// Rows of sums, as far apart.
    pub sums: &'a mut [f32],
    pub adds: bool,
}

impl Outer<'_> {
    /// # Panics
    /// If a slice is too short, a tile is not one of this instruction set, or the processor lacks the instructions.
    pub fn multiply(&mut self, isa: Isa) {
        let (size, rows, pitch, columns) = (Size::of(isa), self.rows, self.pitch, self.columns);
        let fits = (1..=size.rows).contains(&rows) && [size.columns, size.columns / 2].contains(&columns);
        assert!(fits && columns <= pitch, "{rows}×{columns}");
        assert!(self.bases.farthest + self.offset + rows <= self.x.len(), "beyond x");
        assert!(self.b.len() + pitch >= self.bases.all.len() * pitch + columns, "beyond b");
        assert!(self.sums.len() >= (rows - 1) * pitch + columns, "{rows} rows of {columns}");
        isa.run(OuterTile(self));
    }
}

/// Windows of which all reads and writes were checked.
struct OuterTile<'a, 'b>(&'a mut Outer<'b>);

impl Job for OuterTile<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's promise, and what was checked.
        unsafe {
            match V::ISA {
                Isa::Neon => outer_of_rows::<V, 4>(self.0),
                Isa::Avx512 | Isa::Avx2 | Isa::Portable => outer_of_rows::<V, 2>(self.0),
            }
        }
    }
}

/// # Safety
/// As [`Outer::multiply`], which has checked what is read and written.
#[inline(always)]
unsafe fn outer_of_rows<V: Vector, const N: usize>(job: &mut Outer) {
    /// The tile of as many rows as there are.
    macro_rules! of_rows {
        ($($rows:literal)*) => {
            match (job.rows, job.columns == N * V::LANES) {
                $(($rows, true) => outer::<V, $rows, N>(job),)*
                $(($rows, false) => match N {
                    4 => outer::<V, $rows, 2>(job),
                    _ => outer::<V, $rows, 1>(job),
                },)*
                (rows, _) => unreachable!("{rows} rows"),
            }
        };
    }
    // SAFETY: as the caller promises.
    unsafe { of_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

/// # Safety
/// As [`outer_of_rows`].
#[inline(always)]
unsafe fn outer<V: Vector, const M: usize, const N: usize>(job: &mut Outer) {
    let (start, pitch) = (job.sums.as_mut_ptr(), job.pitch);
    let to: [*mut f32; M] = std::array::from_fn(|i| start.wrapping_add(i * pitch));
    let x = job.x.as_ptr().wrapping_add(job.offset);
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; M];
        let mut b = job.b.as_ptr();
        for &base in job.bases.all {
            add_outer(&mut sums, x.add(base), b);
            b = b.wrapping_add(pitch);
        }
        store(sums, &to, job.columns, job.adds);
    }
}

/// Where windows begin.
#[derive(Clone, Copy)]
pub struct Bases<'a> {
    all: &'a [usize],
    farthest: usize,
}

impl<'a> From<&'a [usize]> for Bases<'a> {
    fn from(all: &'a [usize]) -> Bases<'a> {
        Bases { all, farthest: farthest(all) }
    }
}

/// Rows of a matrix, one for each term.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// So many, one behind the other.
    Packed(&'a [f32], usize),
    /// Each so far behind a base.
    At(&'a [f32], Bases<'a>, usize),
}

impl Rows<'_> {
    /// How many there are.
    fn terms(self) -> usize {
        match self {
            Rows::Packed(_, terms) => terms,
            Rows::At(_, bases, _) => bases.all.len(),
        }
    }

    /// Whether each of them has this many numbers.
    fn reach(self, width: usize) -> bool {
        match self {
            Rows::Packed(b, terms) => terms * width <= b.len(),
            Rows::At(b, bases, offset) => bases.farthest + offset + width <= b.len(),
        }
    }
}

/// Products of packed columns and rows of a matrix.
pub struct Columns<'a> {
    /// Terms × rows, term by term.
    pub a: &'a [f32],
    pub rows: usize,
    pub b: Rows<'a>,
    /// As wide as a tile, or half of it.
    pub width: usize,
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
        let Columns { rows, width, pitch, columns, .. } = *self;
        let (size, terms) = (Size::of(isa), self.b.terms());
        assert!((1..=size.rows).contains(&rows) && [size.columns, size.columns / 2].contains(&width), "{rows}×{width}");
        assert!(self.a.len() >= terms * rows && self.b.reach(width), "{terms} terms");
        assert!(columns <= width && self.sums.len() >= (rows - 1) * pitch + columns, "{rows} rows of {columns}");
        isa.run(OneTile(self));
    }
}

/// Columns of which all reads and writes were checked.
struct OneTile<'a, 'b>(&'a mut Columns<'b>);

impl Job for OneTile<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's promise, and what was checked.
        unsafe {
            match V::ISA {
                Isa::Neon => columns_of_rows::<V, 4>(self.0),
                Isa::Avx512 | Isa::Avx2 | Isa::Portable => columns_of_rows::<V, 2>(self.0),
            }
        }
    }
}

/// All tiles of a slab, in tiles of M windows by N vectors; the last one may have no more than HALF of them.
///
/// # Safety
/// As [`Windows::multiply`], which has checked what is read and written.
#[inline(always)]
unsafe fn windows<V: Vector, const M: usize, const HALF: usize, const N: usize>(job: &Windows) {
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
                let tile =
                    Tile { job, bases, places, first: columns.start, columns: columns.len(), runs: &runs, b, adds };
                // SAFETY: as the caller promises.
                unsafe {
                    match (bases.len() <= HALF, width == N * V::LANES) {
                        (false, true) => tile.multiply::<V, M, N>(),
                        (true, true) => tile.multiply::<V, HALF, N>(),
                        (false, false) => tile.multiply_half::<V, M, N>(),
                        (true, false) => tile.multiply_half::<V, HALF, N>(),
                    }
                }
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

struct Tile<'a> {
    job: &'a Windows<'a>,
    bases: &'a [usize],
    places: &'a [usize],
    /// The first column, and how many are meant.
    first: usize,
    columns: usize,
    runs: &'a [Run],
    b: *const f32,
    adds: bool,
}

impl Tile<'_> {
    /// # Safety
    /// As [`windows`].
    #[inline(always)]
    unsafe fn multiply_half<V: Vector, const M: usize, const N: usize>(&self) {
        // SAFETY: as the caller promises.
        unsafe {
            match N {
                4 => self.multiply::<V, M, 2>(),
                _ => self.multiply::<V, M, 1>(),
            }
        }
    }

    /// # Safety
    /// As [`windows`]; there are no more than M windows.
    #[inline(always)]
    unsafe fn multiply<V: Vector, const M: usize, const N: usize>(&self) {
        // Where there are fewer, the last one is computed several times.
        let window = |i: usize| i.min(self.bases.len() - 1);
        let rows: [*const f32; M] = std::array::from_fn(|i| self.job.x.as_ptr().wrapping_add(self.bases[window(i)]));
        let to: [*mut f32; M] =
            std::array::from_fn(|i| self.job.y.start.wrapping_add(self.places[window(i)] + self.first));
        // SAFETY: as the caller promises.
        unsafe {
            let mut sums = [[V::splat(0.0); N]; M];
            let mut b = self.b;
            for run in self.runs {
                let rows: [*const f32; M] = std::array::from_fn(|i| rows[i].add(run.offset));
                // More rows than there are registers for pointers: of a narrow tile each pointer serves several terms.
                let whole = if N == 1 { run.len / TERMS * TERMS } else { 0 };
                for l in (0..whole).step_by(TERMS) {
                    add_terms::<V, M, N, TERMS>(&mut sums, &rows, l, b);
                    b = b.add(TERMS * N * V::LANES);
                }
                for l in whole..run.len {
                    add_terms::<V, M, N, 1>(&mut sums, &rows, l, b);
                    b = b.add(N * V::LANES);
                }
            }
            store(sums, &to, self.columns, self.adds);
        }
    }
}

/// Terms that a narrow tile takes at a time.
const TERMS: usize = 4;

/// Terms of a panel that are fetched before their turn: a panel of many columns does not fit the first level of the cache.
const AHEAD: usize = 8;

/// Adds L terms from `l` on, in their order.
///
/// # Safety
/// There are as many terms in all rows, and in `b`.
#[inline(always)]
unsafe fn add_terms<V: Vector, const M: usize, const N: usize, const L: usize>(
    sums: &mut [[V; N]; M],
    rows: &[*const f32; M],
    l: usize,
    b: *const f32,
) {
    // SAFETY: as the caller promises.
    unsafe {
        for j in 0..N * L {
            V::prefetch(b.wrapping_add((AHEAD * N + j) * V::LANES));
        }
        let columns: [[V; N]; L] =
            std::array::from_fn(|t| std::array::from_fn(|j| V::load(b.add((t * N + j) * V::LANES))));
        for i in 0..M {
            for t in 0..L {
                let x = V::splat(*rows[i].add(l + t));
                for j in 0..N {
                    sums[i][j] = x.mul_add(columns[t][j], sums[i][j]);
                }
            }
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
    unsafe { of_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
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
        let mut a = job.a.as_ptr();
        // Loops and no closures, which would not be compiled for the instructions.
        match job.b {
            Rows::Packed(b, terms) => {
                for term in 0..terms {
                    add_outer(&mut sums, a, b.as_ptr().add(term * N * V::LANES));
                    a = a.add(M);
                }
            }
            Rows::At(b, bases, offset) => {
                for &base in bases.all {
                    add_outer(&mut sums, a, b.as_ptr().add(offset + base));
                    a = a.add(M);
                }
            }
        }
        store(sums, &to, job.columns, job.adds);
    }
}

/// Adds M numbers times N vectors.
///
/// # Safety
/// There are as many at `a` and `b`.
#[inline(always)]
unsafe fn add_outer<V: Vector, const M: usize, const N: usize>(sums: &mut [[V; N]; M], a: *const f32, b: *const f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let columns: [V; N] = std::array::from_fn(|j| V::load(b.add(j * V::LANES)));
        for i in 0..M {
            let a = V::splat(*a.add(i));
            for j in 0..N {
                sums[i][j] = a.mul_add(columns[j], sums[i][j]);
            }
        }
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
