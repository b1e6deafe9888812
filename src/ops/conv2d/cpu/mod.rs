//! Convolution on the CPU as products of what output pixels see, without a matrix of patches in memory.
//!
//! | pass | product | of |
//! |---|---|---|
//! | fprop | `y = windows(x) · wᵀ` | output pixels |
//! | dgrad | `dx = windows(dy) · w`, taps reversed: for each residue of the stride those that reach it | input pixels |
//! | wgrad | `dw = dyᵀ · patches(x)`, a few columns of patches at a time | output pixels |
//!
//! `tile` has the innermost loops, `walk` the windows, `wgrad` the patches. Depthwise convolutions run without matrix products
//! (`depthwise`). How a sum is cut depends on the shapes alone, so its bits depend neither on the number of threads nor, where there are fused
//! multiply-adds, on the instruction set.

mod depthwise;
mod finish;
mod patches;
mod tile;
mod transpose;
mod walk;
mod wgrad;

use std::ops::Range;

use rayon::prelude::*;

use super::{Conv2d, Geometry, Pass};
use crate::ops::simd::Isa;
pub use finish::{Affine, Finish};
pub(in crate::ops) use patches::Window;
use tile::Panels;
use transpose::pack_transposed;
use walk::{Cut, Input, Layout, Product, Walk};

/// Numbers that a task of a simple loop takes.
const BLOCK: usize = 1 << 14;

pub fn fprop(isa: Isa, g: &Geometry, x: &[f32], w: &[f32], finish: Option<Finish>, y: &mut [f32]) {
    if depthwise::applies(g) {
        return depthwise::fprop(isa, g, x, w, finish, y);
    }
    let g = &without_window(g);
    let (len, count) = (g.group_channels(), g.k / g.conv.groups);
    for group in 0..g.conv.groups {
        let filters = &w[group * count * g.pitch..];
        let pack = |terms: Range<usize>, columns: Range<usize>, width: usize, to: &mut [f32]| {
            pack_transposed(isa, (filters, g.pitch), terms, columns, width, to);
        };
        let tap = |axis: usize, tap: usize| (tap * g.conv.dilation[axis]) as isize - g.conv.padding[axis] as isize;
        let taps = (0..g.r).flat_map(|r| (0..g.s).map(move |s| [tap(0, r), tap(1, s)])).collect();
        let product = Product {
            isa,
            walk: Walk { images: g.n, grid: [g.p, g.q], step: g.conv.stride, taps },
            input: Input { data: x, size: [g.h, g.w], channels: g.c, group: (group * len, len) },
            filters: Panels::new(isa, g.filter_len(), count, &pack),
            layout: Layout { size: [g.p, g.q], first: [0, 0], step: [1, 1], channels: g.k, column: group * count },
            adds: false,
            finish: finish.map(|finish| finish.behind(group * count)),
        };
        product.multiply(y);
    }
}

/// Filters as large as the image see all of it as one pixel, whose channels lie in the same order.
fn without_window(g: &Geometry) -> Geometry {
    let sees_all = [g.p, g.q] == [1, 1] && [g.r, g.s] == [g.h, g.w];
    let as_it_lies = g.conv.padding == [0, 0] && g.conv.dilation == [1, 1] && g.conv.groups == 1;
    match sees_all && as_it_lies {
        true => Geometry { h: 1, w: 1, c: g.filter_len(), r: 1, s: 1, conv: Conv2d::new(1, 0), ..*g },
        false => *g,
    }
}

/// The multiplications of each task of a pass with so many threads: a list for each product, one after the other.
pub fn tasks(isa: Isa, g: &Geometry, pass: Pass, threads: usize) -> Vec<Vec<usize>> {
    let (rows, line) = (g.n * g.p, g.q * g.r * g.s * g.c);
    if depthwise::applies(g) {
        return vec![if pass == Pass::Fprop { vec![line; rows] } else { vec![line * g.p; g.n] }];
    }
    let g = &without_window(g);
    let (channels, count) = (g.group_channels(), g.k / g.conv.groups);
    let product = |lines: usize, line: usize, depth: usize, columns: usize| -> Vec<usize> {
        let filters = Panels::new(isa, depth, columns, &|_, _, _, _| {});
        let cut = Cut::new([lines, line], &filters, threads);
        let cost =
            |(lines, panels): (Range<usize>, Range<usize>)| lines.len() * line * depth * filters.columns(panels).len();
        cut.tasks().map(cost).collect()
    };
    let of_group = || match pass {
        Pass::Fprop => vec![product(g.n * g.p, g.q, g.filter_len(), count)],
        Pass::Dgrad => {
            let of_residue = |Residue { grid, taps, .. }| product(g.n * grid[0], grid[1], taps.len() * count, channels);
            residues_reached(g).map(of_residue).collect()
        }
        Pass::Wgrad => Vec::new(),
    };
    match pass {
        Pass::Wgrad => {
            let tasks = wgrad::Division::new(isa, g, threads).tasks(g);
            vec![tasks.into_iter().map(|task| task * g.filter_len()).collect()]
        }
        _ => (0..g.conv.groups).flat_map(|_| of_group()).collect(),
    }
}

/// Whether dgrad can add to what is there.
pub fn adds(g: &Geometry) -> bool {
    !depthwise::applies(g)
}

/// Overwrites dx, or adds to it.
pub fn dgrad(isa: Isa, g: &Geometry, dy: &[f32], w: &[f32], adds: bool, dx: &mut [f32]) {
    if depthwise::applies(g) {
        assert!(!adds, "this kernel adds to nothing");
        return depthwise::dgrad(g, dy, w, dx);
    }
    let g = &without_window(g);
    let (channels, count) = (g.group_channels(), g.k / g.conv.groups);
    let is_unreached = |[row, column]: [usize; 2]| reaching(g, 0, row).is_empty() || reaching(g, 1, column).is_empty();
    if !adds && residues(g).any(is_unreached) {
        dx.par_chunks_mut(BLOCK).for_each(|dx| dx.fill(0.0));
    }
    for group in 0..g.conv.groups {
        for Residue { first, grid, taps } in residues_reached(g) {
            let filters = &w[group * count * g.pitch..];
            let pack = |terms: Range<usize>, columns: Range<usize>, width: usize, to: &mut [f32]| {
                for (term, to) in terms.zip(to.chunks_exact_mut(width)) {
                    let (_, _, tap) = taps[term / count];
                    let from = &filters[term % count * g.pitch + tap * channels..][columns.clone()];
                    to[..from.len()].copy_from_slice(from);
                    to[from.len()..].fill(0.0);
                }
            };
            let product = Product {
                isa,
                walk: Walk {
                    images: g.n,
                    grid,
                    step: [1, 1],
                    taps: taps.iter().map(|&(down, right, _)| [down, right]).collect(),
                },
                input: Input { data: dy, size: [g.p, g.q], channels: g.k, group: (group * count, count) },
                filters: Panels::new(isa, taps.len() * count, channels, &pack),
                layout: Layout {
                    size: [g.h, g.w],
                    first,
                    step: g.conv.stride,
                    channels: g.c,
                    column: group * channels,
                },
                adds,
                finish: None,
            };
            product.multiply(dx);
        }
    }
}

/// The input pixels of a residue of the stride that output pixels see.
struct Residue {
    first: [usize; 2],
    /// How many there are, rows and columns.
    grid: [usize; 2],
    /// As of [`reaching`], and the filter's tap.
    taps: Vec<(isize, isize, usize)>,
}

fn residues_reached(g: &Geometry) -> impl Iterator<Item = Residue> {
    residues(g).filter_map(move |first| {
        let grid = [0, 1].map(|axis| ([g.h, g.w][axis] - first[axis]).div_ceil(g.conv.stride[axis]));
        let [down, right] = [0, 1].map(|axis| reaching(g, axis, first[axis]));
        let taps: Vec<(isize, isize, usize)> = down
            .iter()
            .flat_map(|&(down, r)| right.iter().map(move |&(right, s)| (down, right, r * g.s + s)))
            .collect();
        (!taps.is_empty()).then_some(Residue { first, grid, taps })
    })
}

/// The first input pixels of each residue of the stride.
fn residues(g: &Geometry) -> impl Iterator<Item = [usize; 2]> {
    let [rows, columns] = [g.conv.stride[0].min(g.h), g.conv.stride[1].min(g.w)];
    (0..rows).flat_map(move |row| (0..columns).map(move |column| [row, column]))
}

/// The taps through which the input pixels of a residue reach output pixels, and which one the first of these pixels reaches: in the order of
/// the output pixels.
fn reaching(g: &Geometry, axis: usize, first: usize) -> Vec<(isize, usize)> {
    let Geometry { conv, .. } = g;
    let stride = conv.stride[axis] as isize;
    let place = |tap: usize| (first + conv.padding[axis]) as isize - (tap * conv.dilation[axis]) as isize;
    let taps = (0..[g.r, g.s][axis]).rev();
    taps.filter(|&tap| place(tap) % stride == 0).map(|tap| (place(tap) / stride, tap)).collect()
}

/// Overwrites dw.
pub fn wgrad(isa: Isa, g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    match depthwise::applies(g) {
        true => depthwise::wgrad(g, x, dy, dw),
        false => wgrad::wgrad(isa, &without_window(g), x, dy, dw),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::numbers::{Numbers, normalized_error};
    use crate::ops::cases::{CONV2D, ConvCase};

    /// y, dx, dx added to x, and dw of a case.
    fn passes(isa: Isa, case: &ConvCase, draw: fn(&mut Numbers, usize) -> Vec<f64>) -> [Vec<f32>; 4] {
        let (g, mut numbers) = (case.geometry(), Numbers::named(case.name));
        let mut tensor =
            |len| -> Vec<f32> { draw(&mut numbers, len).into_iter().map(|number| number as f32).collect() };
        let (x, w, dy) = (tensor(g.x().len()), tensor(g.k * g.pitch), tensor(g.y().len()));
        let mut results = [g.y().len(), g.x().len(), g.x().len(), g.k * g.pitch].map(|len| vec![0.0; len]);
        let [y, dx, sum, dw] = &mut results;
        fprop(isa, &g, &x, &w, None, y);
        dgrad(isa, &g, &dy, &w, false, dx);
        if adds(&g) {
            sum.copy_from_slice(&x);
            dgrad(isa, &g, &dy, &w, true, sum);
        }
        wgrad(isa, &g, &x, &dy, dw);
        results
    }

    #[test]
    fn every_instruction_set_has_the_bits_of_the_reference_for_integers() {
        for case in CONV2D {
            let (g, mut numbers) = (case.geometry(), Numbers::named(case.name));
            let [x, w, dy] = [g.x().len(), g.k * g.pitch, g.y().len()].map(|len| numbers.integers(len));
            let mut expected = [g.y().len(), g.x().len(), g.x().len(), g.k * g.pitch].map(|len| vec![0.0; len]);
            let [y, dx, sum, dw] = &mut expected;
            reference::fprop::<f64>(&g, &x, &w, y);
            reference::dgrad::<f64>(&g, &dy, &w, dx);
            if adds(&g) {
                sum.iter_mut().zip(&*dx).zip(&x).for_each(|((sum, dx), x)| *sum = dx + x);
            }
            reference::wgrad::<f64>(&g, &x, &dy, dw);
            for isa in Isa::here() {
                let found: [Vec<f64>; 4] =
                    passes(isa, case, Numbers::integers).map(|numbers| numbers.into_iter().map(f64::from).collect());
                assert!(found == expected, "{}, {isa}", case.name);
            }
        }
    }

    /// With fused multiply-adds the bits are the same, and without them nearly so.
    #[test]
    fn instruction_sets_agree() {
        for case in CONV2D {
            let all: Vec<(Isa, [Vec<f32>; 4])> =
                Isa::here().map(|isa| (isa, passes(isa, case, Numbers::reals))).collect();
            let (_, expected) = &all[0];
            for (isa, found) in &all {
                if *isa != Isa::Portable {
                    assert!(found == expected, "{}, {isa}", case.name);
                }
                for (found, expected) in found.iter().zip(expected) {
                    let [found, expected] =
                        [found, expected].map(|numbers| numbers.iter().copied().map(f64::from).collect::<Vec<_>>());
                    let error = normalized_error(&found, &expected);
                    assert!(error < 1e-6, "{}, {isa}: {error}", case.name);
                }
            }
        }
    }

    /// With fused multiply-adds a number of y is the sum, in stretches of `DEPTH` terms, that plain code makes term by term: neither the tile nor
    /// the width of a vector is seen in its bits.
    #[test]
    fn a_sum_has_the_order_of_its_definition() {
        let sizes = [([2, 5, 7, 8], [21, 3, 3], 1), ([1, 6, 9, 70], [37, 3, 3], 2), ([1, 3, 5, 1100], [9, 1, 1], 1)];
        for (x, [k, r, s], stride) in sizes {
            let conv = super::super::Conv2d::new(stride, r / 2);
            let g = Geometry::new(conv, x.into(), [k, r, s, x[3]].into(), r * s * x[3]);
            let mut numbers = Numbers(5);
            let [x, w] = [g.x().len(), g.k * g.pitch]
                .map(|len| numbers.reals(len).into_iter().map(|number| number as f32).collect::<Vec<f32>>());
            let mut expected = Vec::new();
            for (n, p, q) in (0..g.n).flat_map(|n| (0..g.p).flat_map(move |p| (0..g.q).map(move |q| (n, p, q)))) {
                let taps = (0..g.r).flat_map(|r| (0..g.s).map(move |s| (r, s)));
                let seen: Vec<f32> = taps
                    .flat_map(|(r, s)| match (g.input_row(p, r), g.input_column(q, s)) {
                        (Some(h), Some(column)) => x[((n * g.h + h) * g.w + column) * g.c..][..g.c].to_vec(),
                        _ => vec![0.0; g.c],
                    })
                    .collect();
                for filter in w.chunks(g.pitch) {
                    let stretches = seen.chunks(tile::DEPTH).zip(filter.chunks(tile::DEPTH));
                    let sum = |(seen, filter): (&[f32], &[f32])| {
                        seen.iter().zip(filter).fold(0.0, |sum, (x, w)| x.mul_add(*w, sum))
                    };
                    expected.push(stretches.map(sum).reduce(|all, sum: f32| all + sum).expect("terms"));
                }
            }
            for isa in Isa::here().filter(|isa| *isa != Isa::Portable) {
                let mut y = vec![f32::NAN; g.y().len()];
                fprop(isa, &g, &x, &w, None, &mut y);
                assert!(y == expected, "{:?}, {isa}", g.x());
            }
        }
    }

    /// Multiplications of a product for each input pixel, by all taps whose steps from there are whole strides, beyond the edges too.
    fn of_dgrad(g: &Geometry) -> usize {
        let (rows, columns) = ((g.h, g.r), (g.w, g.s));
        let whole = |axis: usize, (size, taps): (usize, usize)| {
            let Conv2d { stride, padding, dilation, .. } = g.conv;
            let steps = (0..size).flat_map(|place| (0..taps).map(move |tap| (place, tap)));
            steps
                .filter(|(place, tap)| {
                    let step = (place + padding[axis]) as isize - (tap * dilation[axis]) as isize;
                    step.rem_euclid(stride[axis] as isize) == 0
                })
                .count()
        };
        g.n * whole(0, rows) * whole(1, columns) * g.k * g.group_channels()
    }

    /// Whatever the number of threads, tasks are all multiplications of a pass, each once.
    #[test]
    fn tasks_are_the_whole_pass() {
        for case in CONV2D {
            let g = case.geometry();
            for (isa, threads, pass) in Isa::ALL.into_iter().flat_map(|isa| {
                [1, 2, 7, 64].into_iter().flat_map(move |threads| Pass::ALL.map(|pass| (isa, threads, pass)))
            }) {
                let all: usize = tasks(isa, &g, pass, threads).concat().iter().sum();
                let expected = match pass {
                    Pass::Dgrad if !depthwise::applies(&g) => of_dgrad(&without_window(&g)),
                    _ => g.flops() as usize / 2,
                };
                assert_eq!(all, expected, "{}, {pass}, {isa}, {threads} threads", case.name);
            }
        }
    }

    /// Slabs, panels, blocks and parts of which there are several, also behind an epilogue.
    #[test]
    fn large_products_are_those_of_the_reference() {
        let sizes = [
            ([2, 23, 31, 40], [50, 3, 3], 1, 1),
            ([3, 40, 40, 3], [70, 7, 7], 2, 3),
            ([1, 9, 9, 800], [33, 1, 1], 1, 0),
            // Where they lie: dy and patches, one of the two, filters that see all of the image.
            ([4, 17, 19, 16], [48, 3, 3], 1, 1),
            ([3, 16, 21, 3], [32, 3, 3], 2, 1),
            ([3, 13, 15, 64], [70, 3, 3], 1, 0),
            ([5, 7, 7, 40], [33, 7, 7], 1, 0),
        ];
        for (x, [k, r, s], stride, padding) in sizes {
            let conv = super::super::Conv2d::new(stride, padding);
            let g = Geometry::new(conv, x.into(), [k, r, s, x[3]].into(), r * s * x[3]);
            let mut numbers = Numbers(3);
            let [x, w, dy] = [g.x().len(), g.k * g.pitch, g.y().len()].map(|len| numbers.integers(len));
            let mut expected = [g.y().len(), g.x().len(), w.len()].map(|len| vec![0.0; len]);
            let [y, dx, dw] = &mut expected;
            reference::fprop::<f64>(&g, &x, &w, y);
            let bias: Vec<f32> = (0..k).map(|filter| filter as f32 - 20.0).collect();
            for pixel in y.chunks_mut(k) {
                pixel.iter_mut().zip(&bias).for_each(|(y, &bias)| *y = (*y + f64::from(bias)).max(0.0));
            }
            reference::dgrad::<f64>(&g, &dy, &w, dx);
            reference::wgrad::<f64>(&g, &x, &dy, dw);
            let single = |numbers: &[f64]| numbers.iter().map(|&number| number as f32).collect::<Vec<f32>>();
            let (x, w, dy, expected) = (single(&x), single(&w), single(&dy), expected.map(|numbers| single(&numbers)));
            for isa in Isa::here() {
                let mut found = expected.clone().map(|numbers| vec![f32::NAN; numbers.len()]);
                let [y, dx, dw] = &mut found;
                let affine = Affine { normal: None, shift: &bias };
                fprop(isa, &g, &x, &w, Some(Finish { affine, residual: None, relu: true }), y);
                dgrad(isa, &g, &dy, &w, false, dx);
                wgrad(isa, &g, &x, &dy, dw);
                assert!(found == expected, "{:?}, {isa}", g.x());
            }
        }
    }
}
