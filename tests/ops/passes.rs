//! All passes of all ops on all their cases, with the error each may have.

use medmerge::ops::cases::{self, ConvCase, LinearCase, MergeCase, OptimizerCase, PoolCase, Rule};
use medmerge::ops::optimizer::AdamW;
use medmerge::ops::{self, pool};
use medmerge::tensor::{Element, Shape};

use crate::pass;
use crate::pass::{Input, Layout, Output, Pass, Values, slices};

/// Sums of up to some thousand products, accumulated in `f32`.
const SUM: f64 = 1e-6;
/// Sums of up to 16,384 numbers, added one by one in `f32`: a block of batch norm with one channel, a global mean.
const LONG_SUM: f64 = 1e-5;
/// A handful of operations per element, or of updates.
const FEW: f64 = 5e-7;

fn dense(shape: Shape) -> Layout {
    Layout::dense(shape.len())
}

pub fn conv2d() -> impl Iterator<Item = Pass> {
    cases::CONV2D.iter().flat_map(|case: &ConvCase| {
        let g = case.geometry();
        let (x, y) = (dense(g.x()), dense(g.y()));
        let w = Layout::rows(g.k, g.filter_len(), g.pitch);
        let unit = |layouts: [&Layout; 2]| layouts.map(|layout| Input::unit(layout.clone()));
        [
            pass!(conv2d, "fprop", unit([&x, &w]), [y.clone()], |x, w => y| fprop(&g, x, w, y)),
            pass!(conv2d, "dgrad", unit([&y, &w]), [x.clone()], |dy, w => dx| dgrad(&g, dy, w, dx)),
            pass!(conv2d, "wgrad", unit([&x, &y]), [w.clone()], |x, dy => dw| wgrad(&g, x, dy, dw)),
        ]
        .map(|pass| Pass { name: format!("conv2d {} of {}", pass.name, case.name), ..pass }.within(SUM).exact())
    })
}

pub fn merge() -> impl Iterator<Item = Pass> {
    cases::MERGE.iter().flat_map(|case: &MergeCase| {
        let weights = Input::unit(Layout::of_table(&case.table()));
        let alphas = Layout::dense(case.sources * case.alphas);
        let sources = std::iter::repeat_n(weights.clone(), case.sources);
        let with = |first: Input| std::iter::once(first).chain(sources.clone());
        [
            pass!(merge, "blend", with(Input::unit(alphas.clone())), [Layout::dense(case.arena_len)],
                |alpha, sources @ .. => arena| blend(&case.table(), &slices(sources), alpha, arena)),
            pass!(merge, "α's gradient", with(weights.clone()), [alphas],
                |dw, sources @ .. => dalpha| alpha_gradient(&case.table(), &slices(sources), dw, dalpha)),
        ]
        .map(|pass| Pass { name: format!("merge {}: {}", pass.name, case.name), ..pass }.within(SUM).exact())
    })
}

pub fn batch_norm() -> impl Iterator<Item = Pass> {
    cases::BATCH_NORM.iter().flat_map(|case| {
        let (len, c) = (case.x.iter().product(), case.x[3]);
        let (centre, spread) = (case.mean, case.deviation * 3f64.sqrt());
        let offset = case.first_pixel * case.deviation;
        let values = Values::FirstOff { centre, spread, row: c, offset };
        let x = Input { layout: Layout::dense(len), values };
        let mean = Input::around(c, centre, 0.1 * case.deviation);
        let rstd = Input::around(c, 1.0 / case.deviation, 0.1 / case.deviation);
        let [gamma, beta] = [Input::around(c, 1.0, 0.5), Input::around(c, 0.0, 1.0)];
        let [dgamma, dbeta] = [1.0, 2.0].map(|centre| Input::around(c, centre, 3.0));
        let dy = Input::around(len, 0.1, 1.0);
        let per_channel = || Layout::dense(c);
        let [training, inference] = [(true, "training"), (false, "inference")].map(|(training, mode)| {
            let inputs = [&dy, &x, &mean, &rstd, &gamma, &dgamma, &dbeta].map(Input::clone);
            pass!(batch_norm, format!("dx in {mode}"), inputs, [Output::Over(0)],
                |_dy, x, mean, rstd, gamma, dgamma, dbeta => dy|
                input_gradient_assign(dy, x, mean, rstd, gamma, dgamma, dbeta, training))
        });
        [
            pass!(batch_norm, "statistics", [x.clone()], [per_channel(), per_channel()],
                |x => mean, variance| statistics(x, mean, variance)),
            pass!(batch_norm, "normalisation", [&x, &mean, &rstd, &gamma, &beta].map(Input::clone),
                [Layout::dense(len)],
                |x, mean, rstd, gamma, beta => y| normalize(x, mean, rstd, gamma, beta, y)),
            pass!(batch_norm, "dγ and dβ", [&x, &dy, &mean, &rstd].map(Input::clone), [per_channel(), per_channel()],
                |x, dy, mean, rstd => dgamma, dbeta| parameter_gradients(x, dy, mean, rstd, dgamma, dbeta)),
            training,
            inference,
        ]
        .map(|pass| Pass { name: format!("batch norm, {}: {}", pass.name, case.name), ..pass }.within(LONG_SUM))
    })
}

pub fn pools() -> impl Iterator<Item = Pass> {
    let sliding = cases::POOL.iter().flat_map(|case: &PoolCase| {
        [true, false].into_iter().flat_map(move |count_padding| {
            let pool = pool::Pool { count_padding, ..case.pool };
            let g = pool::Geometry::new(pool, case.x.into());
            let (x, y) = (dense(case.x.into()), dense(g.y()));
            let window = pool.window[0] * pool.window[1];
            let taps = Input { layout: y.clone(), values: Values::Below(window as u64) };
            // Sums of integers are exact as long as nothing else than a power of two divides them.
            let exact = count_padding && window.is_power_of_two();
            let average = [
                pass!(pool, "average", [Input::unit(x.clone())], [y.clone()], |x => y| average_pool(&g, x, y)),
                pass!(pool, "average's dx", [Input::unit(y.clone())], [x.clone()],
                    |dy => dx| average_pool_backward(&g, dy, dx)),
            ]
            .map(|pass| Pass { is_exact: exact, ..pass.within(LONG_SUM) });
            // The winners are compared as numbers.
            let max = [
                pass!(pool, "max", [Input::unit(x.clone())], [y.clone(), y.clone()],
                    |x => y, winners| with_taps(winners, |taps| max_pool(&g, x, y, taps))),
                pass!(pool, "max's dx", [Input::unit(y), taps], [x],
                    |dy, winners => dx| max_pool_backward(&g, dy, &as_taps(winners), dx)),
            ]
            .map(|pass| pass.within(FEW).exact());
            let name = move |pass: Pass| Pass {
                name: format!("pool {} of {}, padding counts: {count_padding}", pass.name, case.name),
                ..pass
            };
            average.into_iter().chain(max.into_iter().filter(move |_| count_padding)).map(name)
        })
    });
    sliding.chain(cases::GLOBAL_POOL.iter().flat_map(|&[n, h, w, c]| {
        let (x, y) = (Layout::dense(n * h * w * c), Layout::dense(n * c));
        let pixels = h * w;
        [
            pass!(pool, "mean", [Input::unit(x.clone())], [y.clone()],
                |x => y| global_average_pool(pixels, x, c, y)),
            pass!(pool, "mean's dx", [Input::unit(y)], [x],
                |dy => dx| global_average_pool_backward(pixels, dy, c, dx)),
        ]
        .map(|pass| Pass {
            name: format!("global pool {} of {:?}", pass.name, [n, h, w, c]),
            is_exact: pixels.is_power_of_two(),
            ..pass.within(LONG_SUM)
        })
    }))
}

/// Runs max pooling, whose winners are bytes, and hands them on as numbers.
fn with_taps<T: Element>(winners: &mut [T], run: impl FnOnce(&mut [u8])) {
    let mut taps = vec![0; winners.len()];
    run(&mut taps);
    winners.iter_mut().zip(taps).for_each(|(winner, tap)| *winner = T::from_f64(f64::from(tap)));
}

fn as_taps<T: Element>(winners: &[T]) -> Vec<u8> {
    winners.iter().map(|winner| winner.to_f64() as u8).collect()
}

pub fn pointwise() -> impl Iterator<Item = Pass> {
    cases::POINTWISE.iter().flat_map(|&[rows, row, padding]| {
        let pitch = row + padding;
        let padded = Input::unit(Layout::rows(rows, row, pitch));
        let dense = Input::unit(Layout::dense(rows * row));
        [
            pass!(pointwise, "ReLU", [dense.clone()], [Output::Over(0)], |_x => y| relu_assign(y)),
            pass!(pointwise, "ReLU's dx", [dense.clone(), dense.clone()], [Output::Over(0)],
                |_dy, y => dx| relu_backward_assign(dx, y)),
            Pass::new(
                "add",
                [padded, dense],
                [Output::Over(0)],
                move |inputs, outputs| match padding {
                    0 => ops::pointwise::cpu::add_assign(outputs[0], &inputs[1]),
                    _ => ops::pointwise::reference::add_assign(outputs[0], &inputs[1], row, pitch),
                },
                move |inputs, outputs| ops::pointwise::reference::add_assign(outputs[0], &inputs[1], row, pitch),
            ),
        ]
        .map(|pass| Pass { name: format!("{} of {rows}×{row}", pass.name), ..pass }.within(FEW).exact())
    })
}

pub fn concat() -> impl Iterator<Item = Pass> {
    cases::CONCAT.iter().flat_map(|&([n, h, w], inputs)| {
        let (pixels, total) = (n * h * w, inputs.iter().sum::<usize>());
        inputs.iter().enumerate().flat_map(move |(index, &channels)| {
            let first: usize = inputs[..index].iter().sum();
            let x = Layout::dense(pixels * channels);
            // The other inputs' channels are not touched.
            let part = Layout::rows(pixels, channels, total).at(first, pixels * total);
            let name = format!("of channels {first}.. of {total}, {pixels} pixels");
            [
                pass!(concat, format!("concat {name}"), [Input::unit(x.clone())], [part.clone()],
                    |x => y| insert(x, channels, y, total, first)),
                pass!(concat, format!("concat's dx {name}"), [Input::unit(part)], [x],
                    |dy => dx| extract(dy, total, first, dx, channels)),
            ]
            .map(|pass| pass.within(0.0).exact())
        })
    })
}

pub fn linear() -> impl Iterator<Item = Pass> {
    cases::LINEAR.iter().flat_map(|&LinearCase { n, c, k, row_padding }| {
        let g = ops::linear::Geometry::new([n, c].into(), [k, c].into(), c + row_padding);
        let [x, b, y] = [n * c, k, n * k].map(Layout::dense);
        let w = Layout::rows(k, c, g.pitch);
        let unit = |layout: &Layout| Input::unit(layout.clone());
        [
            pass!(linear, "y", [&x, &w, &b].map(unit), [y.clone()], |x, w, b => y| forward(&g, x, w, b, y)),
            pass!(linear, "dx", [&y, &w].map(unit), [x.clone()], |dy, w => dx| input_gradient(&g, dy, w, dx)),
            pass!(linear, "dw", [&x, &y].map(unit), [w.clone()], |x, dy => dw| weight_gradient(&g, x, dy, dw)),
            Pass::new(
                "db",
                [unit(&y)],
                [Output::Fresh(b)],
                |dy, db| ops::linear::reference::bias_gradient(&dy[0], db[0]),
                |dy, db| ops::linear::reference::bias_gradient(&dy[0], db[0]),
            ),
        ]
        .map(|pass| Pass { name: format!("linear {} of {n}×{c} by {k}", pass.name), ..pass }.within(SUM).exact())
    })
}

pub fn optimizer() -> impl Iterator<Item = Pass> {
    cases::OPTIMIZER.iter().map(|&OptimizerCase { name, len, steps, rule }| {
        let zero = Input { values: Values::Zero, ..Input::unit(Layout::dense(len)) };
        let numbers = |moments: usize| {
            let zeros = std::iter::repeat_n(zero.clone(), moments);
            let gradients = std::iter::repeat_n(Input::unit(Layout::dense(len)), steps as usize);
            std::iter::once(Input::unit(Layout::dense(len))).chain(zeros).chain(gradients)
        };
        let pass = match rule {
            Rule::Sgd(rule) => pass!(optimizer, name, numbers(1), [0, 1].map(Output::Over),
                |_w, _v, gradients @ .. => w, v| gradients.iter().for_each(|g| sgd(&rule, w, g, v))),
            Rule::AdamW(rule) => pass!(optimizer, name, numbers(2), [0, 1, 2].map(Output::Over),
            |_w, _m, _u, gradients @ .. => w, m, u| for (g, step) in gradients.iter().zip(1..) {
                adamw(&AdamW { step, ..rule }, w, g, m, u);
            }),
        };
        pass.within(FEW)
    })
}

pub fn all() -> impl Iterator<Item = Pass> {
    let ops: [Box<dyn Iterator<Item = Pass>>; 8] = [
        Box::new(conv2d()),
        Box::new(merge()),
        Box::new(batch_norm()),
        Box::new(pools()),
        Box::new(pointwise()),
        Box::new(concat()),
        Box::new(linear()),
        Box::new(optimizer()),
    ];
    ops.into_iter().flatten()
}
