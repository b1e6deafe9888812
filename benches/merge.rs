//! Merging ResNet-50 with one α per filter, forward and backward, beside what memory allows: `a = b + s·c` over arrays of
//! the same length, on the same threads. All in bytes that must at least move.

mod common;

use std::hint::black_box;

use common::{bytes, empty, numbers};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medmerge::bench::{plan, shapes};
use medmerge::nn::Stem;
use medmerge::ops::merge::{alpha_gradient, blend};
use medmerge::tensor::Tensor;
use rayon::prelude::*;

/// Floats of a parallel piece, as many as the merge takes.
const PIECE: usize = 1 << 14;

fn merges(c: &mut Criterion) {
    let network = shapes::network("resnet50", Stem::Large, 1000).expect("a known name");
    let mut group = common::group(c, "merge/resnet50");
    for sources in shapes::SOURCES {
        let table = plan(&network, sources).table;
        let trunks: Vec<Tensor> = (0..sources).map(|_| numbers([table.arena_len()])).collect();
        let trunks: Vec<&Tensor> = trunks.iter().collect();
        let alpha = numbers([sources, table.alphas()]);
        let (mut arena, mut dalpha) = (numbers([table.arena_len()]), empty(alpha.shape()));
        group.throughput(Throughput::BytesDecimal(table.blend_cost(sources).bytes()));
        group.bench_function(format!("blend/{sources}"), |b| {
            b.iter(|| blend(&table, &trunks, &alpha, black_box(arena.view_mut())))
        });
        group.throughput(Throughput::BytesDecimal(table.gradient_cost(sources).bytes()));
        group.bench_function(format!("alpha_gradient/{sources}"), |b| {
            b.iter(|| alpha_gradient(&table, &trunks, &arena, black_box(dalpha.view_mut())))
        });
    }
    let len = network.trunk_len;
    let (mut sum, base, scaled) = (vec![0f32; len], vec![0.5f32; len], vec![2f32; len]);
    group.throughput(bytes(3, len));
    group.bench_function("triad", |b| b.iter(|| triad(black_box(&mut sum), &base, 3.0, &scaled)));
}

fn triad(a: &mut [f32], b: &[f32], s: f32, c: &[f32]) {
    let inputs = b.par_chunks(PIECE).zip(c.par_chunks(PIECE));
    a.par_chunks_mut(PIECE).zip(inputs).for_each(|(a, (b, c))| {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = b + s * c;
        }
    });
}

criterion_group! { name = benches; config = common::criterion(); targets = merges }
criterion_main!(benches);
