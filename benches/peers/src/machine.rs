//! The machine itself: the bytes of a merge, of its backward and of a triad, moved by loops that do nothing else.
//!
//! Merging M sources reads M arrays and writes one, its backward reads M + 1; here each source has a single coefficient,
//! and filters, layers and shapes do not exist. Writes bypass the cache, as a copy that is as fast as memory must: an
//! ordinary store would first read the line it overwrites. A merge is judged by its share of this rate.

use std::hint::black_box;

use rayon::prelude::*;

use crate::works::{Filters, Peer, Work};

pub struct Machine;

impl Peer for Machine {
    fn merge(&self, sources: usize, layers: &[Filters]) -> Option<Box<dyn Work>> {
        let length = layers.iter().map(Filters::parameters).sum();
        match sources {
            2 => Some(Box::new(Mix::<2>::new(length))),
            4 => Some(Box::new(Mix::<4>::new(length))),
            8 => Some(Box::new(Mix::<8>::new(length))),
            _ => None,
        }
    }

    fn merge_backward(&self, sources: usize, layers: &[Filters]) -> Option<Box<dyn Work>> {
        let length = layers.iter().map(Filters::parameters).sum();
        match sources {
            2 => Some(Box::new(Dots::<2>::new(length))),
            4 => Some(Box::new(Dots::<4>::new(length))),
            8 => Some(Box::new(Dots::<8>::new(length))),
            _ => None,
        }
    }

    fn triad(&self, length: usize) -> Option<Box<dyn Work>> {
        Some(Box::new(Mix::<2>::new(length)))
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Lines per parallel piece: 16 KiB of each array.
const PIECE: usize = 256;

fn array(length: usize, value: f32) -> Vec<Line> {
    let mut lines = Vec::with_capacity(length.div_ceil(16));
    // Every thread touches its own share first, so that on machines with several memory nodes pages lie near it.
    (0..length.div_ceil(16)).into_par_iter().map(|i| Line([value + i as f32 * 1e-9; 16])).collect_into_vec(&mut lines);
    lines
}

#[cfg(target_arch = "x86_64")]
fn stream(to: &mut Line, line: Line) {
    use std::arch::x86_64::{_mm_loadu_ps, _mm_stream_ps};
    for i in (0..16).step_by(4) {
        // SAFETY: i + 4 ≤ 16, SSE is part of x86-64, and a `Line` is aligned to 64 bytes, so every fourth float to 16.
        unsafe { _mm_stream_ps(to.0.as_mut_ptr().add(i), _mm_loadu_ps(line.0.as_ptr().add(i))) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stream(to: &mut Line, line: Line) {
    *to = line;
}

/// Makes streamed writes visible before another thread may read them.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// out = Σ_m a_m · source_m
struct Mix<const M: usize> {
    sources: [Vec<Line>; M],
    out: Vec<Line>,
}

impl<const M: usize> Mix<M> {
    fn new(length: usize) -> Self {
        Self { sources: std::array::from_fn(|m| array(length, m as f32)), out: array(length, 0.0) }
    }
}

impl<const M: usize> Work for Mix<M> {
    fn run(&mut self) {
        let coefficients: [f32; M] = black_box(std::array::from_fn(|m| 0.5 - m as f32));
        let sources = &self.sources;
        self.out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
            let inputs: [&[Line]; M] = std::array::from_fn(|m| &sources[m][piece * PIECE..][..out.len()]);
            for (i, to) in out.iter_mut().enumerate() {
                let mut sum = Line([0.0; 16]);
                for m in 0..M {
                    for lane in 0..16 {
                        sum.0[lane] += coefficients[m] * inputs[m][i].0[lane];
                    }
                }
                stream(to, sum);
            }
            fence();
        });
        black_box(&self.out);
    }

    fn check(&mut self) -> Vec<f64> {
        vec![]
    }
}

/// Two dot products with the same d, lane by lane, so that vectorising needs no reordering. More at once would keep more
/// of memory busy, but also run out of registers, and compilers then give up on vectors.
fn dots(d: &[Line], a: &[Line], b: &[Line]) -> [f32; 2] {
    let mut sums = [Line([0.0; 16]); 2];
    for ((d, a), b) in d.iter().zip(a).zip(b) {
        for lane in 0..16 {
            sums[0].0[lane] += d.0[lane] * a.0[lane];
            sums[1].0[lane] += d.0[lane] * b.0[lane];
        }
    }
    sums.map(|line| line.0.iter().sum())
}

/// dots[m] = Σ_i d[i] · source_m[i]
struct Dots<const M: usize> {
    sources: [Vec<Line>; M],
    d: Vec<Line>,
}

impl<const M: usize> Dots<M> {
    fn new(length: usize) -> Self {
        Self { sources: std::array::from_fn(|m| array(length, m as f32)), d: array(length, 0.5) }
    }
}

impl<const M: usize> Work for Dots<M> {
    fn run(&mut self) {
        let sources = &self.sources;
        let pieces = self.d.par_chunks(PIECE).enumerate().map(|(piece, d)| {
            // d comes from memory once: for the second pair on, this piece of it is in the cache.
            let input = |m: usize| &sources[m][piece * PIECE..][..d.len()];
            let mut results = [0.0; M];
            for m in (0..M).step_by(2) {
                [results[m], results[m + 1]] = dots(d, input(m), input(m + 1));
            }
            results
        });
        black_box(pieces.collect::<Vec<_>>());
    }

    fn check(&mut self) -> Vec<f64> {
        vec![]
    }
}
