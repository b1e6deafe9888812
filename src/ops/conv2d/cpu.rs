//! Convolution on the CPU as matrix products over cache-sized slabs.
//!
//! A *slab* is a run of output pixels. Its *patches* (what im2col calls columns) form a matrix of pixels × R·S·C, written
//! into a buffer that stays in the core's cache and is used again for the next slab:
//!
//! | pass | product per slab | slab of |
//! |---|---|---|
//! | fprop | `y = patches(x) · wᵀ` | output pixels |
//! | dgrad, stride 1 | `dx = Σ_{r,s} patches(dy)[r,s] · w[r,s]`, with the filter's taps reversed | input pixels |
//! | dgrad, other strides | `patches(dx) = dy · w`, then added into `dx` | output pixels of one image |
//! | wgrad | `dw += dyᵀ · patches(x)` | output pixels |
//!
//! A 1×1 convolution of stride 1 needs no patches: its input is the matrix. Depthwise convolutions run without matrix
//! products (`depthwise` below). The size of a slab and the number of partial sums of wgrad depend on the shapes alone,
//! never on the number of threads, so the bits of a result do not either.

use std::cell::RefCell;
use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Geometry;
use crate::ops::gemm::{Matrix, gemm};

/// Floats of patches per slab: 1 MB, which a core's second-level cache holds.
const SLAB: usize = 1 << 18;
/// Fewer pixels than this starve the matrix product, more gain nothing.
const PIXELS: Range<usize> = 96..1024;
/// Floats that the partial sums of wgrad may take together.
const PARTIAL_SUMS: usize = 1 << 22;

/// Where patches are taken from: an image tensor and the window that slides over it.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Window<'a> {
    image: &'a [f32],
    size: [usize; 2],
    channels: usize,
    /// The channels of one group.
    group: (usize, usize),
    taps: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    /// Output pixels per image, height and width.
    output: [usize; 2],
}

impl<'a> Window<'a> {
    pub(in crate::ops) fn of_input(g: &Geometry, x: &'a [f32], group: usize) -> Window<'a> {
        Window {
            image: x,
            size: [g.h, g.w],
            channels: g.c,
            group: (group * g.group_channels(), g.group_channels()),
            taps: [g.r, g.s],
            stride: g.conv.stride,
            padding: g.conv.padding,
            dilation: g.conv.dilation,
            output: [g.p, g.q],
        }
    }

    /// The window of `dy` that input pixels see when the stride is 1; `None` where padding exceeds the filter's reach.
    fn of_output(g: &Geometry, dy: &'a [f32], group: usize) -> Option<Window<'a>> {
        let filters = g.k / g.conv.groups;
        let mut padding = [0; 2];
        for (axis, taps) in [g.r, g.s].into_iter().enumerate() {
            padding[axis] = (g.conv.dilation[axis] * (taps - 1)).checked_sub(g.conv.padding[axis])?;
        }
        Some(Window {
            image: dy,
            size: [g.p, g.q],
            channels: g.k,
            group: (group * filters, filters),
            taps: [g.r, g.s],
            stride: [1, 1],
            padding,
            dilation: g.conv.dilation,
            output: [g.h, g.w],
        })
    }

    fn patch_len(&self) -> usize {
        self.taps[0] * self.taps[1] * self.group.1
    }

    pub(in crate::ops) fn pixels_per_slab(&self) -> usize {
        (SLAB / self.patch_len()).clamp(PIXELS.start, PIXELS.end)
    }

    /// Whether the image itself is the matrix of patches.
    fn is_identity(&self) -> bool {
        self.taps == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }

    /// Calls `with` on the patches of `pixels`.
    pub(in crate::ops) fn with_patches<R>(&self, pixels: Range<usize>, with: impl FnOnce(Matrix) -> R) -> R {
        let (first, len) = self.group;
        if self.is_identity() {
            let rows = &self.image[pixels.start * self.channels + first..];
            return with(Matrix::new(rows, pixels.len(), len, self.channels));
        }
        with_scratch(pixels.len() * self.patch_len(), |patches| {
            gather(self, pixels.clone(), patches);
            with(Matrix::new(patches, pixels.len(), self.patch_len(), self.patch_len()))
        })
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `with` on `len` floats of unspecified value that this thread keeps for the next call.
fn with_scratch<R>(len: usize, with: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken, not borrowed: while this thread waits inside `with` rayon may hand it another slab.
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = with(&mut scratch[..len]);
    SCRATCH.set(scratch);
    result
}

/// Writes the patches of `pixels`, one row each, taps in the order r, s, c.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn gather(window: &Window, pixels: Range<usize>, patches: &mut [f32]) {
    let Window { image, size: [height, width], channels, group: (first, len), taps: [_, taps], .. } = *window;
    let [stride_h, stride_w] = window.stride;
    let [dilation_h, dilation_w] = window.dilation;
    let [out_h, out_w] = window.output;
    // With unit dilation and all channels, the taps of one filter row lie side by side in the image.
    let side_by_side = dilation_w == 1 && len == channels;
    let row_len = taps * len;
    for (pixel, patch) in pixels.zip(patches.chunks_exact_mut(window.patch_len())) {
        let (n, p, q) = (pixel / (out_h * out_w), pixel / out_w % out_h, pixel % out_w);
        let left = (q * stride_w) as isize - window.padding[1] as isize;
        for (r, row) in patch.chunks_exact_mut(row_len).enumerate() {
            let h = (p * stride_h + r * dilation_h) as isize - window.padding[0] as isize;
            if h < 0 || h >= height as isize {
                row.fill(0.0);
                continue;
            }
            let line = &image[(n * height + h as usize) * width * channels..][..width * channels];
            if side_by_side {
                let skip = (-left).clamp(0, taps as isize) as usize;
                let stop = (width as isize - left).clamp(skip as isize, taps as isize) as usize;
                row[..skip * len].fill(0.0);
                row[stop * len..].fill(0.0);
                if stop > skip {
                    let start = (left + skip as isize) as usize * channels;
                    row[skip * len..stop * len].copy_from_slice(&line[start..start + (stop - skip) * len]);
                }
                continue;
            }
            for (s, tap) in row.chunks_exact_mut(len).enumerate() {
                let w = left + (s * dilation_w) as isize;
                if w < 0 || w >= width as isize {
                    tap.fill(0.0);
                } else {
                    tap.copy_from_slice(&line[w as usize * channels + first..][..len]);
                }
            }
        }
    }
}

/// Adds patches back to where [`gather`] would take them from. `image` is one image.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn scatter_add(g: &Geometry, group: usize, pixels: Range<usize>, patches: &[f32], image: &mut [f32]) {
    let len = g.group_channels();
    for (pixel, patch) in pixels.zip(patches.chunks_exact(g.filter_len())) {
        let (p, q) = (pixel / g.q, pixel % g.q);
        for r in 0..g.r {
            let Some(h) = g.input_row(p, r) else { continue };
            for s in 0..g.s {
                let Some(w) = g.input_column(q, s) else { continue };
                let to = &mut image[(h * g.w + w) * g.c + group * len..][..len];
                for (to, &from) in to.iter_mut().zip(&patch[(r * g.s + s) * len..][..len]) {
                    *to += from;
                }
            }
        }
    }
}

/// The filters of one group, K/G × RSC.
fn filters<'a>(g: &Geometry, w: &'a [f32], group: usize) -> Matrix<'a> {
    let count = g.k / g.conv.groups;
    Matrix::new(&w[group * count * g.pitch..], count, g.filter_len(), g.pitch)
}

/// With an epilogue: a bias per filter, and whether a ReLU follows.
pub fn fprop(g: &Geometry, x: &[f32], w: &[f32], epilogue: Option<(&[f32], bool)>, y: &mut [f32]) {
    let finish = |y: &mut [f32]| {
        if let Some((bias, relu)) = epilogue {
            finish_block(bias, relu, y);
        }
    };
    if depthwise::applies(g) {
        depthwise::fprop(g, x, w, y);
        return y.par_chunks_mut(PIXELS.end * g.k).for_each(finish);
    }
    let pixels = Window::of_input(g, x, 0).pixels_per_slab();
    y.par_chunks_mut(pixels * g.k).enumerate().for_each(|(slab, y)| {
        let range = slab * pixels..slab * pixels + y.len() / g.k;
        for group in 0..g.conv.groups {
            let filters = filters(g, w, group);
            Window::of_input(g, x, group).with_patches(range.clone(), |patches| {
                gemm(patches, filters.transposed(), &mut y[group * filters.rows..], g.k, false);
            });
        }
        finish(y);
    });
}

/// Adds the bias to each pixel, and cuts by the ReLU.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn finish_block(bias: &[f32], relu: bool, y: &mut [f32]) {
    for y in y.chunks_exact_mut(bias.len()) {
        for (y, &bias) in y.iter_mut().zip(bias) {
            let sum = *y + bias;
            // Not `max`, which would turn NaN into 0.
            *y = if relu && sum <= 0.0 { 0.0 } else { sum };
        }
    }
}

pub fn dgrad(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    if depthwise::applies(g) {
        return depthwise::dgrad(g, dy, w, dx);
    }
    match Window::of_output(g, dy, 0) {
        Some(window) if g.conv.stride == [1, 1] => {
            let pixels = window.pixels_per_slab();
            dx.par_chunks_mut(pixels * g.c).enumerate().for_each(|(slab, dx)| {
                let range = slab * pixels..slab * pixels + dx.len() / g.c;
                for group in 0..g.conv.groups {
                    dgrad_slab(g, dy, w, group, range.clone(), dx);
                }
            });
        }
        _ => dx.par_chunks_mut(g.h * g.w * g.c).enumerate().for_each(|(n, image)| dgrad_image(g, dy, w, n, image)),
    }
}

/// dgrad of stride 1 for the input pixels `range`, whose gradients are `dx`.
fn dgrad_slab(g: &Geometry, dy: &[f32], w: &[f32], group: usize, range: Range<usize>, dx: &mut [f32]) {
    let (channels, count) = (g.group_channels(), g.k / g.conv.groups);
    let filters = &w[group * count * g.pitch..];
    let window = Window::of_output(g, dy, group).expect("checked by the caller");
    window.with_patches(range, |patches| {
        for tap in 0..g.r * g.s {
            let seen = Matrix { data: &patches.data[tap * count..], columns: count, ..patches };
            // Going back, the taps come in reverse order.
            let back = &filters[(g.r * g.s - 1 - tap) * channels..];
            let weights = Matrix::new(back, count, channels, g.pitch);
            gemm(seen, weights, &mut dx[group * channels..], g.c, tap > 0);
        }
    });
}

/// dgrad of any stride for one image.
fn dgrad_image(g: &Geometry, dy: &[f32], w: &[f32], n: usize, image: &mut [f32]) {
    image.fill(0.0);
    let per_slab = (SLAB / g.filter_len()).clamp(PIXELS.start, PIXELS.end);
    let count = g.k / g.conv.groups;
    for start in (0..g.p * g.q).step_by(per_slab) {
        let range = start..(start + per_slab).min(g.p * g.q);
        for group in 0..g.conv.groups {
            with_scratch(range.len() * g.filter_len(), |patches| {
                let rows = &dy[(n * g.p * g.q + start) * g.k + group * count..];
                let rows = Matrix::new(rows, range.len(), count, g.k);
                gemm(rows, filters(g, w, group), patches, g.filter_len(), false);
                scatter_add(g, group, range.clone(), patches, image);
            });
        }
    }
}

pub fn wgrad(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    if depthwise::applies(g) {
        return depthwise::wgrad(g, x, dy, dw);
    }
    let total = g.n * g.p * g.q;
    let dense = g.k * g.filter_len();
    let per_slab = Window::of_input(g, x, 0).pixels_per_slab();
    // As many partial sums as memory allows and slabs there are.
    let parts = (PARTIAL_SUMS / dense).clamp(2, 16).min(total.div_ceil(per_slab));
    let slabs = total.div_ceil(per_slab).div_ceil(parts);
    let mut partial = crate::tensor::Buffer::<f32>::recycled(parts * dense);
    partial.par_chunks_mut(dense).enumerate().for_each(|(part, sum)| {
        let range = part * slabs * per_slab..((part + 1) * slabs * per_slab).min(total);
        wgrad_part(g, x, dy, range, per_slab, sum);
    });
    let filter_len = g.filter_len();
    dw.par_chunks_mut(g.pitch).enumerate().for_each(|(k, filter)| {
        let filter = &mut filter[..filter_len];
        filter.copy_from_slice(&partial[k * filter_len..][..filter_len]);
        for part in partial.chunks_exact(dense).skip(1) {
            for (sum, &term) in filter.iter_mut().zip(&part[k * filter_len..]) {
                *sum += term;
            }
        }
    });
}

/// The part of dw, K×RSC without padding, that the output pixels `range` contribute.
fn wgrad_part(g: &Geometry, x: &[f32], dy: &[f32], range: Range<usize>, per_slab: usize, sum: &mut [f32]) {
    if range.is_empty() {
        return sum.fill(0.0);
    }
    let (count, filter_len) = (g.k / g.conv.groups, g.filter_len());
    for start in range.clone().step_by(per_slab) {
        let slab = start..(start + per_slab).min(range.end);
        for (group, sum) in sum.chunks_exact_mut(count * filter_len).enumerate() {
            let rows = Matrix::new(&dy[start * g.k + group * count..], slab.len(), count, g.k);
            Window::of_input(g, x, group).with_patches(slab.clone(), |patches| {
                gemm(rows.transposed(), patches, sum, filter_len, start > range.start);
            });
        }
    }
}

/// Convolutions in which every channel has its own single filter: too thin for a matrix product, so channels run in
/// the lanes of the vector unit. `taps` holds the filters transposed, tap by tap, so that channels are contiguous.
mod depthwise {
    use super::*;

    pub fn applies(g: &Geometry) -> bool {
        g.conv.groups == g.c && g.k == g.c
    }

    fn transpose(g: &Geometry, w: &[f32]) -> Vec<f32> {
        let taps = g.r * g.s;
        let mut transposed = vec![0.0; taps * g.c];
        for c in 0..g.c {
            for tap in 0..taps {
                transposed[tap * g.c + c] = w[c * g.pitch + tap];
            }
        }
        transposed
    }

    pub fn fprop(g: &Geometry, x: &[f32], w: &[f32], y: &mut [f32]) {
        let taps = transpose(g, w);
        y.par_chunks_mut(g.q * g.c).enumerate().for_each(|(row, y)| {
            y.fill(0.0);
            fprop_row(g, x, &taps, row / g.p, row % g.p, y);
        });
    }

    #[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
    fn fprop_row(g: &Geometry, x: &[f32], taps: &[f32], n: usize, p: usize, y: &mut [f32]) {
        for (q, y) in y.chunks_exact_mut(g.c).enumerate() {
            for r in 0..g.r {
                let Some(h) = g.input_row(p, r) else { continue };
                for s in 0..g.s {
                    let Some(w) = g.input_column(q, s) else { continue };
                    let x = &x[((n * g.h + h) * g.w + w) * g.c..][..g.c];
                    let tap = &taps[(r * g.s + s) * g.c..][..g.c];
                    for ((y, &x), &tap) in y.iter_mut().zip(x).zip(tap) {
                        *y += x * tap;
                    }
                }
            }
        }
    }

    pub fn dgrad(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
        let taps = transpose(g, w);
        dx.par_chunks_mut(g.h * g.w * g.c).enumerate().for_each(|(n, dx)| {
            dx.fill(0.0);
            dgrad_image(g, dy, &taps, n, dx);
        });
    }

    #[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
    fn dgrad_image(g: &Geometry, dy: &[f32], taps: &[f32], n: usize, dx: &mut [f32]) {
        for p in 0..g.p {
            for q in 0..g.q {
                let dy = &dy[((n * g.p + p) * g.q + q) * g.c..][..g.c];
                for r in 0..g.r {
                    let Some(h) = g.input_row(p, r) else { continue };
                    for s in 0..g.s {
                        let Some(w) = g.input_column(q, s) else { continue };
                        let dx = &mut dx[(h * g.w + w) * g.c..][..g.c];
                        let tap = &taps[(r * g.s + s) * g.c..][..g.c];
                        for ((dx, &dy), &tap) in dx.iter_mut().zip(dy).zip(tap) {
                            *dx += dy * tap;
                        }
                    }
                }
            }
        }
    }

    pub fn wgrad(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let taps = g.r * g.s;
        // One partial sum per image, added in the order of the images.
        let partial: Vec<Vec<f32>> = (0..g.n)
            .into_par_iter()
            .map(|n| {
                let mut sum = vec![0.0; taps * g.c];
                wgrad_image(g, x, dy, n, &mut sum);
                sum
            })
            .collect();
        for c in 0..g.c {
            for tap in 0..taps {
                dw[c * g.pitch + tap] = partial.iter().map(|sum| sum[tap * g.c + c]).sum();
            }
        }
    }

    #[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
    fn wgrad_image(g: &Geometry, x: &[f32], dy: &[f32], n: usize, sum: &mut [f32]) {
        for p in 0..g.p {
            for q in 0..g.q {
                let dy = &dy[((n * g.p + p) * g.q + q) * g.c..][..g.c];
                for r in 0..g.r {
                    let Some(h) = g.input_row(p, r) else { continue };
                    for s in 0..g.s {
                        let Some(w) = g.input_column(q, s) else { continue };
                        let x = &x[((n * g.h + h) * g.w + w) * g.c..][..g.c];
                        let sum = &mut sum[(r * g.s + s) * g.c..][..g.c];
                        for ((sum, &x), &dy) in sum.iter_mut().zip(x).zip(dy) {
                            *sum += x * dy;
                        }
                    }
                }
            }
        }
    }
}
