//! Products of what output pixels see of an input, and filters in panels: fprop, and each residue of dgrad.
//!
//! Windows are read where the input lies, and none is copied, as long as none reaches beyond the input. Otherwise each task first copies the
//! rows that it reads, with zeros around them. Taps that lie side by side are one run of terms.

use std::ops::Range;

use rayon::prelude::*;

use super::finish::Finish;
use super::patches::with_scratch;
use super::tile::{Panels, Run, Shared, Windows};
use crate::ops::simd::Isa;

/// Output pixels that a task takes: their windows stay in the second level of the cache. Whole tiles of lines of 7, 14, … pixels.
const PIXELS: usize = 252;
/// Floats of filters of which a task takes more pixels, so that it reads them from memory less often.
const LARGE: usize = 1 << 17;
/// Tasks per thread that are worth cutting columns for.
const TASKS: usize = 4;

/// An image tensor, and the channels of it that are seen.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub data: &'a [f32],
    /// Rows and columns.
    pub size: [usize; 2],
    /// Of all groups.
    pub channels: usize,
    pub group: (usize, usize),
}

/// Which input pixels each output pixel sees.
pub struct Walk {
    pub images: usize,
    /// Output pixels of an image, rows and columns.
    pub grid: [usize; 2],
    /// Input pixels from one output pixel to the next.
    pub step: [usize; 2],
    /// What the first output pixel sees, in the order of the terms: rows down, columns to the right. What lies outside is zero.
    pub taps: Vec<[isize; 2]>,
}

impl Walk {
    /// The first input row or column that is seen, and how many there are from there to the last, of so many output pixels.
    fn reach(&self, axis: usize, outputs: usize) -> (isize, usize) {
        let taps = || self.taps.iter().map(|tap| tap[axis]);
        let (first, last) = (taps().min().expect("a tap"), taps().max().expect("a tap"));
        (first, (last - first) as usize + (outputs - 1) * self.step[axis] + 1)
    }

    /// Whether nothing outside the input is seen.
    fn is_inside(&self, input: &Input) -> bool {
        (0..2).all(|axis| {
            let (first, reach) = self.reach(axis, self.grid[axis]);
            first >= 0 && first as usize + reach <= input.size[axis]
        })
    }

    /// Calls `with` on what some lines of output pixels see: the numbers, where in them each window begins, and how far apart rows and pixels lie.
    pub fn with_windows<R>(
        &self,
        input: &Input,
        lines: Range<usize>,
        with: impl FnOnce(&[f32], &[usize], [usize; 2]) -> R,
    ) -> R {
        let mut bases = Vec::with_capacity(lines.len() * self.grid[1]);
        if self.is_inside(input) {
            let pitches = [input.size[1] * input.channels, input.channels];
            let first = [0, 1].map(|axis| self.reach(axis, 1).0 as usize);
            for line in lines {
                let (image, row) = (line / self.grid[0], line % self.grid[0] * self.step[0] + first[0]);
                let base = (image * input.size[0] + row) * pitches[0] + first[1] * pitches[1] + input.group.0;
                bases.extend((0..self.grid[1]).map(|column| base + column * self.step[1] * pitches[1]));
            }
            return with(input.data, &bases, pitches);
        }
        let len = input.group.1;
        let ((left, width), (_, seen)) = (self.reach(1, self.grid[1]), self.reach(0, 1));
        let pitches = [width * len, len];
        // Rows from an image's first line that is computed to its last.
        let segments: Vec<(usize, Range<usize>)> = segments(&lines, self.grid[0]);
        let rows = |lines: &Range<usize>| (lines.len() - 1) * self.step[0] + seen;
        let total: usize = segments.iter().map(|(_, lines)| rows(lines)).sum();
        with_scratch(total * pitches[0], |scratch| {
            let mut start = 0;
            for (image, lines) in &segments {
                let first = (lines.start * self.step[0]) as isize + self.reach(0, 1).0;
                let to = &mut scratch[start * pitches[0]..][..rows(lines) * pitches[0]];
                copy_with_zeros(input, *image, [first, left], width, to);
                for line in 0..lines.len() {
                    let base = (start + line * self.step[0]) * pitches[0];
                    bases.extend((0..self.grid[1]).map(|column| base + column * self.step[1] * pitches[1]));
                }
                start += rows(lines);
            }
            with(scratch, &bases, pitches)
        })
    }

    /// Runs of terms, where pixels and rows of the input are so far apart.
    pub fn runs(&self, len: usize, [row, pixel]: [usize; 2]) -> Vec<Run> {
        let first = [0, 1].map(|axis| self.reach(axis, 1).0);
        let mut runs: Vec<Run> = Vec::new();
        for tap in &self.taps {
            let offset = (tap[0] - first[0]) as usize * row + (tap[1] - first[1]) as usize * pixel;
            match runs.last_mut() {
                Some(run) if run.offset + run.len == offset => run.len += len,
                _ => runs.push(Run { offset, len }),
            }
        }
        runs
    }
}

/// Where results go in an output.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Rows and columns of an image.
    pub size: [usize; 2],
    /// The first pixel, and from there to the next.
    pub first: [usize; 2],
    pub step: [usize; 2],
    /// Of all groups, and the first of this one.
    pub channels: usize,
    pub column: usize,
}

impl Layout {
    fn place(&self, image: usize, [row, column]: [usize; 2]) -> usize {
        let [row, column] = [self.first[0] + row * self.step[0], self.first[1] + column * self.step[1]];
        ((image * self.size[0] + row) * self.size[1] + column) * self.channels + self.column
    }
}

/// A product of all that a walk sees.
pub struct Product<'a> {
    pub isa: Isa,
    pub walk: Walk,
    pub input: Input<'a>,
    pub filters: Panels<'a>,
    /// Of the pixels of `walk` and the columns of `filters`.
    pub layout: Layout,
    /// Whether results are added to what is there.
    pub adds: bool,
    /// What is done to them then.
    pub finish: Option<Finish<'a>>,
}

/// How a product is cut into tasks: slabs of lines of output pixels, and each of them by panels of columns, so that no thread is without work.
/// The sums are the same however it is cut.
pub struct Cut {
    lines: usize,
    lines_per_slab: usize,
    panels: usize,
    panels_per_task: usize,
}

impl Cut {
    /// Of so many lines of so many pixels.
    pub fn new([lines, line]: [usize; 2], filters: &Panels, threads: usize) -> Cut {
        let pixels = if filters.len() > LARGE { 2 * PIXELS } else { PIXELS };
        let panels = filters.count();
        let wanted = if threads == 1 { 1 } else { TASKS * threads };
        // Panels are tasks first, for which lines are not copied again; then slabs are smaller.
        let slabs = lines.div_ceil((pixels / line).max(1)).max(wanted.div_ceil(panels.max(1)).min(lines));
        // Of equal size, and no more than are needed for that.
        let lines_per_slab = lines.div_ceil(slabs);
        let slabs = lines.div_ceil(lines_per_slab);
        Cut { lines, lines_per_slab, panels, panels_per_task: panels.div_ceil(wanted.div_ceil(slabs)).max(1) }
    }

    fn slabs(&self) -> usize {
        self.lines.div_ceil(self.lines_per_slab)
    }

    /// Each one's lines and panels.
    pub fn tasks(&self) -> impl IndexedParallelIterator<Item = (Range<usize>, Range<usize>)> {
        let Cut { lines, lines_per_slab, panels, panels_per_task } = *self;
        let chunks = panels.div_ceil(panels_per_task);
        let part = move |index: usize, len: usize, end: usize| index * len..((index + 1) * len).min(end);
        (0..self.slabs() * chunks)
            .into_par_iter()
            .map(move |task| (part(task / chunks, lines_per_slab, lines), part(task % chunks, panels_per_task, panels)))
    }
}

impl Product<'_> {
    pub fn multiply(mut self, y: &mut [f32]) {
        let y = Shared::from(y);
        let Walk { images, grid, .. } = self.walk;
        let cut = Cut::new([images * grid[0], grid[1]], &self.filters, rayon::current_num_threads());
        if cut.slabs() > 1 {
            self.filters = self.filters.packed();
        }
        cut.tasks().for_each(|(lines, panels)| {
            // SAFETY: no two tasks have lines and panels in common.
            unsafe { self.multiply_slab(y, lines, panels) }
        });
    }

    /// # Safety
    /// These lines of output pixels and these panels of columns are nobody else's meanwhile.
    unsafe fn multiply_slab(&self, y: Shared, lines: Range<usize>, panels: Range<usize>) {
        self.walk.with_windows(&self.input, lines.clone(), |x, bases, pitches| {
            // SAFETY: as the caller promises.
            unsafe { self.multiply_windows((x, bases), pitches, y, lines, panels) }
        });
    }

    /// # Safety
    /// As [`Product::multiply_slab`].
    unsafe fn multiply_windows(
        &self,
        (x, bases): (&[f32], &[usize]),
        pitches: [usize; 2],
        y: Shared,
        lines: Range<usize>,
        panels: Range<usize>,
    ) {
        let Product { walk, layout, .. } = self;
        let mut places = Vec::with_capacity(bases.len());
        for line in lines {
            let first = layout.place(line / walk.grid[0], [line % walk.grid[0], 0]);
            places.extend((0..walk.grid[1]).map(|column| first + column * layout.step[1] * layout.channels));
        }
        let runs = walk.runs(self.input.group.1, pitches);
        let columns = self.filters.columns(panels.clone());
        let windows =
            Windows { x, bases, runs: &runs, filters: &self.filters, panels, y, places: &places, adds: self.adds };
        // SAFETY: as the caller promises.
        unsafe {
            windows.multiply(self.isa);
            if let Some(finish) = self.finish {
                finish.apply(self.isa, y, &places, columns);
            }
        }
    }
}

/// Lines of all images, cut where an image ends: each image, and its lines.
fn segments(lines: &Range<usize>, lines_per_image: usize) -> Vec<(usize, Range<usize>)> {
    let images = lines.start / lines_per_image..lines.end.div_ceil(lines_per_image);
    let of_image = |image: usize| {
        let first = image * lines_per_image;
        (image, lines.start.max(first) - first..lines.end.min(first + lines_per_image) - first)
    };
    images.map(of_image).collect()
}

/// Rows of an image from `first` on, `width` pixels of each from `left` on: `to` is rows × width × channels of the group.
fn copy_with_zeros(input: &Input, image: usize, [first, left]: [isize; 2], width: usize, to: &mut [f32]) {
    let Input { data, size, channels, group: (group, len) } = *input;
    let before = (-left).clamp(0, width as isize) as usize;
    let inside = (size[1] as isize - left).clamp(before as isize, width as isize) as usize;
    for (row, to) in (first..).zip(to.chunks_exact_mut(width * len)) {
        if row < 0 || row >= size[0] as isize || inside == before {
            to.fill(0.0);
            continue;
        }
        to[..before * len].fill(0.0);
        to[inside * len..].fill(0.0);
        let from =
            ((image * size[0] + row as usize) * size[1]) * channels + (left + before as isize) as usize * channels;
        let to = &mut to[before * len..inside * len];
        if len == channels {
            to.copy_from_slice(&data[from..][..to.len()]);
            continue;
        }
        for (pixel, to) in to.chunks_exact_mut(len).enumerate() {
            to.copy_from_slice(&data[from + pixel * channels + group..][..len]);
        }
    }
}
