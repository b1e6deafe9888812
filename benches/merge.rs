//! Merging ResNet-50 with one α per filter, forward and backward, beside what memory allows: `a = b + s·c` over arrays of
//! the same length, on the same threads. All in bytes that must at least move.

mod common;

use std::hint::black_box;

use common::{bytes, empty, numbers};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan};
use medmerge::nn::{Architecture, Network};
use medmerge::ops::merge::{alpha_gradient, blend};
use medmerge::tensor::Tensor;
use rayon::prelude::*;

const SOURCES: [usize; 3] = [2, 4, 8];

/// Floats of a parallel piece, as many as the merge takes.
const PIECE: usize = 1 << 14;

fn plan(network: &Network, sources: usize) -> Plan {
    let (granularity, batch_norm) = (Granularity::Filter, BatchNormPolicy::Merge);
    Plan::new(network, Method { sources, anchor: 0, granularity, constraint: Constraint::Free, batch_norm })
}

fn merges(c: &mut Criterion) {
    let network = Architecture::named("resnet50", None, None).expect("a known name").build(3, 1000);
    let mut group = common::group(c, "merge/resnet50");
    for sources in SOURCES {
        let table = plan(&network, sources).table;
        let trunks: Vec<Tensor> = (0..sources).map(|_| numbers([table.arena_len()])).collect();
        let trunks: Vec<&Tensor> = trunks.iter().collect();
        let alpha = numbers([sources, table.alphas()]);
        let (mut arena, mut dalpha) = (numbers([table.arena_len()]), empty(alpha.shape()));
        group.throughput(Throughput::BytesDecimal(table.bytes(sources) as u64));
        group.bench_function(format!("blend/{sources}"), |b| {
            b.iter(|| blend(&table, &trunks, &alpha, black_box(arena.view_mut())))
        });
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
