//! Patches of images as the rows of a matrix, for products of other kinds than a convolution's (`ops::gram`).

use std::cell::RefCell;
use std::ops::Range;

use multiversion::multiversion;

use super::Geometry;
use crate::ops::gemm::Matrix;
use crate::tensor::Buffer;

/// Floats of patches per slab: 1 MB, which a core's second-level cache holds.
const SLAB: usize = 1 << 18;
/// Fewer pixels than this starve the matrix product, more gain nothing.
const PIXELS: Range<usize> = 96..1024;

/// Where patches are taken from: an image tensor and the window that slides over it.
#[derive(Clone, Copy)]
pub struct Window<'a> {
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
    pub fn of_input(g: &Geometry, x: &'a [f32], group: usize) -> Window<'a> {
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

    fn patch_len(&self) -> usize {
        self.taps[0] * self.taps[1] * self.group.1
    }

    pub fn pixels_per_slab(&self) -> usize {
        (SLAB / self.patch_len()).clamp(PIXELS.start, PIXELS.end)
    }

    /// Whether the image itself is the matrix of patches.
    fn is_identity(&self) -> bool {
        self.taps == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }

    /// Calls `with` on the patches of `pixels`.
    pub fn with_patches<R>(&self, pixels: Range<usize>, with: impl FnOnce(Matrix) -> R) -> R {
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

/// Floats that are kept at least, so that they begin at a line of the cache.
const LEAST: usize = 1 << 12;

thread_local! {
    static SCRATCH: RefCell<Option<Buffer<f32>>> = const { RefCell::new(None) };
}

/// Calls `with` on `len` floats of unspecified value that this thread keeps for the next call.
pub fn with_scratch<R>(len: usize, with: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken, not borrowed: while this thread waits inside `with` rayon may hand it another slab.
    let kept = SCRATCH.take().filter(|kept| kept.len() >= len);
    let mut scratch = kept.unwrap_or_else(|| Buffer::recycled(len.max(LEAST)));
    let result = with(&mut scratch[..len]);
    SCRATCH.set(Some(scratch));
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
