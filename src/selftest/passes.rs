//! All passes of all ops on all their cases, with the error each may have.

use std::iter::{once, repeat_n};

use super::norm_of_parts::norms_of_parts;
use super::operand::{Input, Layout, Output, Values};
use super::pass::Pass;
use crate::ops::batch_norm::{Cut, Finish, Moments, ParameterGradients, PerChannel, Residual, Tiles};
use crate::ops::cases::{
    self, ConstraintCase, ConvCase, CrossEntropyCase, GramCase, LinearCase, MergeCase, OptimizerCase, Other, Rule,
};
use crate::ops::conv2d::{Besides, Epilogue};
use crate::ops::gram::Samples;
use crate::ops::optimizer::AdamW;
use crate::ops::pointwise::Pull;
use crate::ops::{
    batch_norm, concat, conv2d, dropout, gram, linear, merge, optimizer, pointwise, pool, soft_cross_entropy,
    softmax_cross_entropy,
};
use crate::tensor::{DType, Integers, Shape, Tensor, TensorMut};

/// Sums of up to some thousand terms, accumulated in `f32`.
const SUM: f64 = 1e-6;
/// Sums of up to 36,000 terms, 16,384 of them added one by one in `f32`: batch norm over one channel, a global mean.
pub(super) const LONG_SUM: f64 = 1e-5;
/// A handful of operations per element, or of updates.
pub(super) const FEW: f64 = 5e-7;
/// Sums that run in `f64`: only inputs and results are rounded.
const IN_F64: f64 = 1e-7;
/// Numbers that move and are not computed with.
const NONE: f64 = 0.0;

/// An op, and how to make its passes.
pub struct Op {
    pub name: &'static str,
    pub passes: fn() -> Vec<Pass>,
}

pub const OPS: &[Op] = &[
    Op { name: "convert", passes: conversions },
    Op { name: "conv2d", passes: convolutions },
    Op { name: "batch_norm", passes: batch_norms },
    Op { name: "pool", passes: pools },
    Op { name: "pointwise", passes: pointwise },
    Op { name: "dropout", passes: dropouts },
    Op { name: "concat", passes: concatenations },
    Op { name: "linear", passes: linear_layers },
    Op { name: "gram", passes: grams },
    Op { name: "merge", passes: merges },
    Op { name: "constraint", passes: constraints },
    Op { name: "softmax_cross_entropy", passes: losses },
    Op { name: "soft_cross_entropy", passes: soft_losses },
    Op { name: "optimizer", passes: optimizers },
];

/// Between what numbers are stored as; uploads, downloads and copies on the way.
fn conversions() -> Vec<Pass> {
    let of_len = |&len: &usize| {
        let [stored, single] = [Layout::dense([len]), Layout::dense([len]).in_f32()];
        let wide = Input::around(single.clone(), 0.0, 1000.0);
        // f64 stays what it is.
        let single_of = |x: &Tensor| if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        [
            Pass::new("storing", [wide], [stored.clone()], |[x], [y]| y_copy(y, x)),
            Pass::new("loading", [Input::unit(stored)], [single], move |[x], [y]| y.copy_from(&x.cast(single_of(x)))),
        ]
        .map(|pass| pass.of(format!("{len} numbers")).within(NONE).exact())
    };
    cases::LENGTHS.iter().flat_map(of_len).collect()
}

fn y_copy(y: TensorMut, x: &Tensor) {
    let dtype = y.dtype();
    y.copy_from(&x.cast(dtype));
}

fn convolutions() -> Vec<Pass> {
    let of_case = |case: &ConvCase| {
        let (conv, g) = (case.conv, case.geometry());
        let [x, y] = [g.x(), g.y()].map(Layout::dense);
        let w = Layout::padded([g.k, g.r, g.s, g.group_channels()], g.pitch).in_arena();
        let unit = |layouts: [&Layout; 2]| layouts.map(|layout| Input::unit(layout.clone()));
        let [of_filter, of_image, pixels] =
            [g.r * g.s * g.group_channels(), g.r * g.s * g.k / conv.groups, g.n * g.p * g.q];
        [
            Pass::new("fprop", unit([&x, &w]), [y.clone()], move |[x, w], [y]| conv2d::fprop(conv, x, w, y)),
            with_epilogue(case, [&x, &w, &y]),
            Pass::new("dgrad", unit([&y, &w]), [x.clone()], move |[dy, w], [dx]| conv2d::dgrad(conv, dy, w, dx)),
            Pass::new("wgrad", unit([&x, &y]), [w.clone().in_f32()], move |[x, dy], [dw]| {
                conv2d::wgrad(conv, x, dy, dw);
            }),
            wgrad_products(case, [x, y, w.in_f32()]),
        ]
        .map(|pass| {
            let products = match pass.direction {
                "dgrad" => of_image,
                "wgrad" | "products" => pixels,
                _ => of_filter,
            };
            pass.of(case.name).within(SUM).exact().on_tensor_cores(products)
        })
    };
    cases::CONV2D.iter().flat_map(of_case).collect()
}

/// fprop with a bias, and in every other case a ReLU.
fn with_epilogue(case: &ConvCase, [x, w, y]: [&Layout; 3]) -> Pass {
    let (conv, k) = (case.conv, case.filters[0]);
    let relu = k % 2 == 0;
    let name = if relu { "fprop, bias and ReLU" } else { "fprop and bias" };
    let bias = Layout::dense([k]).in_arena().in_f32();
    Pass::new(name, [x, w, &bias].map(|layout| Input::unit(layout.clone())), [y.clone()], move |[x, w, bias], [y]| {
        conv2d::fprop_besides(conv, x, w, y, Besides::Epilogue(Epilogue { bias, relu }));
    })
}

/// Pixels of a tile, from whose sums statistics are made.
const TILE: usize = 48;

/// Elements from which on a case is checked in fewer forms.
const LARGE: usize = 20_000;

/// With two sources, and in some cases with more than are in flight at once.
fn wgrad_products(case: &ConvCase, [x, y, w]: [Layout; 3]) -> Pass {
    let (conv, g) = (case.conv, case.geometry());
    let sources = if g.k % 3 == 0 { 5 } else { 2 };
    let sum = Layout::dense([sources, g.k]).in_f32();
    let inputs = [x, y].into_iter().chain(repeat_n(w, sources)).map(Input::unit).collect();
    Pass::with_many("products", inputs, vec![sum.into()], move |inputs, outputs| {
        let ([x, dy, sources @ ..], [to]) = (inputs, only(outputs)) else { unreachable!() };
        let parts = conv2d::product_parts(x.device(), &g, x.dtype(), sources.len());
        let mut products = Tensor::uninit([parts, sources.len(), g.k], sources[0].dtype(), x.device());
        conv2d::wgrad_products(conv, x, dy, sources, products.view_mut());
        let products = products.to_f64();
        let of_parts = |i: usize| products.iter().skip(i).step_by(sources.len() * g.k).sum();
        write(to, (0..sources.len() * g.k).map(of_parts).collect());
    })
}

fn batch_norms() -> Vec<Pass> {
    let of_whole = cases::BATCH_NORM.iter().flat_map(|case| NormPasses::of(case).all());
    of_whole.chain(cases::PARTS.iter().flat_map(|&(pixels, channels)| norms_of_parts(pixels, channels))).collect()
}

/// The operands of batch norm's passes on one case.
struct NormPasses {
    case: &'static str,
    is_of_cpu: bool,
    shape: [usize; 4],
    deviation: f64,
    x: Input,
    dy: Input,
    /// Mean, rstd, γ and β.
    by: [Input; 4],
    per_channel: Layout,
}

pub(super) fn by<'a>([mean, rstd, gamma, beta]: [&'a Tensor; 4]) -> PerChannel<'a> {
    PerChannel { mean, rstd, gamma, beta }
}

pub(super) fn moments<'a>([mean, rstd, mean_again, variance]: [TensorMut<'a>; 4]) -> Moments<'a> {
    Moments { mean, rstd, running: Some([mean_again, variance]) }
}

/// dγ, dβ and, if there is a third output, the means.
pub(super) fn parameter_gradients(outputs: Vec<TensorMut>) -> ParameterGradients {
    let mut outputs = outputs.into_iter();
    let mut next = || outputs.next();
    ParameterGradients { dgamma: next(), dbeta: next(), means: next() }
}

impl NormPasses {
    fn of(case: &cases::BatchNormCase) -> NormPasses {
        let c = case.x[3];
        let (centre, spread) = (case.mean, case.deviation * 3f64.sqrt());
        let offset = case.first_pixel * case.deviation;
        let image = Layout::dense(case.x);
        let per_channel = Layout::dense([c]).in_arena().in_f32();
        let channels = |centre: f64, spread: f64| Input::around(per_channel.clone(), centre, spread);
        NormPasses {
            case: case.name,
            is_of_cpu: case.is_of_cpu,
            shape: case.x,
            deviation: case.deviation,
            x: Input { layout: image.clone(), values: Values::FirstOff { centre, spread, row: c, offset } },
            // The sums of dy and of dy·x̂ must not cancel, or their relative error says nothing: neither mean is zero.
            dy: Input::around(image.clone(), 0.5, 1.0),
            by: [
                channels(centre - 0.5 * case.deviation, 0.1 * case.deviation),
                channels(1.0 / case.deviation, 0.1 / case.deviation),
                channels(1.0, 0.5),
                channels(0.0, 1.0),
            ],
            per_channel,
        }
    }

    fn all(self) -> Vec<Pass> {
        let mut passes = self.of_statistics();
        passes.extend(self.of_gradients());
        passes.push(self.normalisation_of_two());
        // The forms between the barest and the fullest differ in nothing that depends on the size.
        let is_small = self.shape.iter().product::<usize>() < LARGE;
        for (relu, other) in [(false, false), (true, true), (false, true), (true, false)] {
            if is_small || relu == other {
                passes.extend([self.normalisation(relu, other), self.input_gradient(relu, other)]);
            }
        }
        passes.into_iter().map(|pass| pass.of(self.case).of_cpu_if(self.is_of_cpu)).collect()
    }

    fn channels(&self, centre: f64, spread: f64) -> Input {
        Input::around(self.per_channel.clone(), centre, spread)
    }

    fn pixels(&self) -> usize {
        self.shape[..3].iter().product()
    }

    /// Sums over tiles of the pixels, the first of each near `centre` and the second above zero.
    fn tiles(&self, span: usize) -> Layout {
        Layout::dense([self.pixels().div_ceil(span), 2, self.shape[3]]).in_f32()
    }

    fn of_statistics(&self) -> Vec<Pass> {
        let (pixels, square) = (self.pixels(), self.deviation.powi(2));
        let four = || [0; 4].map(|_| self.per_channel.clone());
        let variance = self.channels(square, 0.9 * square);
        let running = [self.channels(0.3, 0.2), self.by[0].clone()];
        vec![
            Pass::new("statistics", [self.x.clone()], four(), |[x], to| {
                batch_norm::statistics(x, 1e-5, moments(to));
            })
            .within(LONG_SUM),
            Pass::new("statistics of tiles", [Input::around(self.tiles(TILE), 1.5, 1.0)], four(), move |[sums], to| {
                let tiles = Tiles { sums: sums.clone(), span: TILE, pixels };
                batch_norm::statistics_of_tiles(&tiles, 1e-5, moments(to));
            })
            .within(FEW),
            Pass::new("1/σ", [variance], [self.per_channel.clone()], |[variance], [rstd]| {
                batch_norm::reciprocal_deviation(variance, 1e-5, rstd);
            })
            .within(FEW),
            Pass::new("running statistics", running, [Output::Over(0)], |[_, of_batch], [running]| {
                batch_norm::update_running(running, of_batch, 0.1, None);
            })
            .within(FEW),
        ]
    }

    fn normalisation(&self, relu: bool, residual: bool) -> Pass {
        let mut inputs: Vec<Input> = once(self.x.clone()).chain(self.by.iter().cloned()).collect();
        inputs.extend(residual.then(|| self.dy.clone()));
        let name = match (residual, relu) {
            (false, false) => "normalisation",
            (false, true) => "normalisation and ReLU",
            (true, false) => "normalisation and sum",
            (true, true) => "normalisation, sum and ReLU",
        };
        let out = vec![self.x.layout.clone().into()];
        let pass = Pass::with_many(name, inputs, out, move |inputs, outputs| {
            let ([x, mean, rstd, gamma, beta, residual @ ..], [out]) = (inputs, only(outputs)) else { unreachable!() };
            batch_norm::normalize(x, by([mean, rstd, gamma, beta]), residual.first(), relu, out);
        });
        pass.within(FEW).exact()
    }

    /// The sum of two normalisations, and a ReLU.
    fn normalisation_of_two(&self) -> Pass {
        let inputs = [&self.x, &self.dy].into_iter().chain(self.by.iter().chain(&self.by)).cloned().collect();
        let out = vec![self.x.layout.clone().into()];
        let pass = Pass::with_many("sum of two normalisations and ReLU", inputs, out, |inputs, outputs| {
            let ([x, y, first @ .., mean, rstd, gamma, beta], [out]) = (inputs, only(outputs)) else { unreachable!() };
            let [x_mean, x_rstd, x_gamma, x_beta] = first else { unreachable!() };
            let residual = Some(Residual::Normalized(y, by([mean, rstd, gamma, beta])));
            let then = Finish { residual, relu: true, leaves_signs: false };
            batch_norm::normalize_then(x.into(), by([x_mean, x_rstd, x_gamma, x_beta]), then, out);
        });
        pass.within(FEW).exact()
    }

    fn of_gradients(&self) -> Vec<Pass> {
        let with = |more: &[&Input]| -> Vec<Input> {
            [&self.x, &self.dy].into_iter().chain(&self.by).chain(more.iter().copied()).cloned().collect()
        };
        let [dgamma, dbeta] = [0; 2].map(|_| Output::from(self.per_channel.clone()));
        let means = || Output::from(Layout::dense([2, self.shape[3]]).in_f32());
        let two = || vec![dgamma.clone(), dbeta.clone()];
        let (pixels, rstd) = (self.pixels(), self.by[1].clone());
        // The output that the ReLU let pass: zeros too, where integers stand for it.
        let out = Input::unit(self.x.layout.clone());
        vec![
            Pass::with_many("dγ and dβ", with(&[]), two(), move |inputs, outputs| {
                let [x, dy, mean, rstd, gamma, beta] = inputs else { unreachable!() };
                batch_norm::gradients(x, Cut::Whole(dy), by([mean, rstd, gamma, beta]), parameter_gradients(outputs));
            })
            .within(LONG_SUM)
            .exact(),
            Pass::with_many("dγ and dβ through a ReLU", with(&[]), two(), move |inputs, outputs| {
                let [x, dy, mean, rstd, gamma, beta] = inputs else { unreachable!() };
                batch_norm::gradients(x, Cut::ByInput(dy), by([mean, rstd, gamma, beta]), parameter_gradients(outputs));
            })
            .within(LONG_SUM)
            .exact(),
            Pass::with_many(
                "dγ, dβ and dz through a sum and a ReLU",
                with(&[&out]),
                [vec![Output::Over(1)], two()].concat(),
                move |inputs, mut outputs| {
                    let [x, _, mean, rstd, gamma, beta, out] = inputs else { unreachable!() };
                    let dy = outputs.remove(0);
                    batch_norm::gradients(
                        x,
                        Cut::ByOutput(dy, out),
                        by([mean, rstd, gamma, beta]),
                        parameter_gradients(outputs),
                    );
                },
            )
            .within(LONG_SUM)
            .exact(),
            Pass::with_many(
                "dγ, dβ and means",
                with(&[]),
                [two(), vec![means()]].concat(),
                move |inputs, outputs| {
                    let [x, dy, mean, rstd, gamma, beta] = inputs else { unreachable!() };
                    batch_norm::gradients(
                        x,
                        Cut::ByInput(dy),
                        by([mean, rstd, gamma, beta]),
                        parameter_gradients(outputs),
                    );
                },
            )
            .within(LONG_SUM),
            Pass::with_many(
                "dγ, dβ and means of tiles",
                vec![Input::around(self.tiles(TILE), 1.5, 1.0), rstd],
                [two(), vec![means()]].concat(),
                move |inputs, outputs| {
                    let [sums, rstd] = inputs else { unreachable!() };
                    batch_norm::gradients_of_tiles(sums, pixels, rstd, parameter_gradients(outputs));
                },
            )
            .within(FEW),
        ]
    }

    fn input_gradient(&self, relu: bool, training: bool) -> Pass {
        let means = Input::around(Layout::dense([2, self.shape[3]]).in_f32(), 0.2, 0.1);
        let inputs: Vec<Input> = [&self.dy, &self.x].into_iter().chain(&self.by).chain([&means]).cloned().collect();
        let name = match (training, relu) {
            (false, false) => "dx in inference",
            (false, true) => "dx in inference, through a ReLU",
            (true, false) => "dx in training",
            (true, true) => "dx in training, through a ReLU",
        };
        // Over dy, and beside it.
        let outputs = vec![Output::Over(0), self.x.layout.clone().into()];
        let pass = Pass::with_many(name, inputs, outputs, move |inputs, outputs| {
            let [dy, x, mean, rstd, gamma, beta, means] = inputs else { unreachable!() };
            let (by, means) = (by([mean, rstd, gamma, beta]), training.then_some(means));
            for (dx, dy) in outputs.into_iter().zip([None, Some(dy)]) {
                batch_norm::input_gradient(dy, dx, x, by, relu, means);
            }
        });
        pass.within(FEW).exact()
    }
}

fn pools() -> Vec<Pass> {
    let sliding = cases::POOL.iter().flat_map(|case| {
        [true, false].into_iter().flat_map(move |count_padding| {
            let pool = pool::Pool { count_padding, ..case.pool };
            let g = pool::Geometry::new(pool, case.x.into());
            let (x, y) = (Layout::dense(case.x), Layout::dense(g.y()));
            let taps = pool.window[0] * pool.window[1];
            // Sums of integers are exact as long as nothing else than a power of two divides them.
            let is_exact = count_padding && taps.is_power_of_two();
            let average = [
                Pass::new("average", [Input::unit(x.clone())], [y.clone()], move |[x], [y]| {
                    pool::average_pool(pool, x, y);
                }),
                Pass::new("average's dx", [Input::unit(y.clone())], [x.clone()], move |[dy], [dx]| {
                    pool::average_pool_backward(pool, dy, dx);
                }),
            ]
            .map(|pass| pass.within(SUM).exact_if(is_exact));
            // The winners are compared as numbers.
            let max = [
                Pass::new(
                    "max",
                    [Input::unit(x.clone())],
                    [y.clone(), y.clone().in_f32()],
                    move |[x], [y, winners]| {
                        let mut taps = Integers::from_vec(vec![u8::MAX; y.shape().len()]).to_device(x.device());
                        pool::max_pool(pool, x, y, &mut taps);
                        let taps: Vec<f64> = taps.to_vec().into_iter().map(f64::from).collect();
                        write(winners, taps);
                    },
                ),
                Pass::new(
                    "max's dx",
                    [Input::unit(y.clone()), Input::below(y, taps as u64)],
                    [x],
                    move |[dy, winners], [dx]| {
                        let taps = winners.to_f64().into_iter().map(|tap| tap as u8).collect();
                        let taps = Integers::from_vec(taps).to_device(dy.device());
                        pool::max_pool_backward(pool, dy, &taps, dx);
                    },
                ),
            ]
            .map(|pass| pass.within(FEW).exact());
            let padding = if count_padding { "" } else { " (only the image counts)" };
            let name = move |pass: Pass| pass.of(format!("{}{padding}", case.name));
            average.into_iter().chain(max.into_iter().filter(move |_| count_padding)).map(name)
        })
    });
    let global = cases::GLOBAL_POOL.iter().flat_map(|&[n, h, w, c]| {
        let (x, y) = (Layout::dense([n, h, w, c]), Layout::dense([n, c]).in_f32());
        [
            Pass::new("mean", [Input::unit(x.clone())], [y.clone()], |[x], [y]| pool::global_average_pool(x, y)),
            Pass::new("mean's dx", [Input::unit(y)], [x], |[dy], [dx]| pool::global_average_pool_backward(dy, dx)),
        ]
        .map(|pass| pass.of(Shape::from([n, h, w, c])).within(LONG_SUM).exact_if((h * w).is_power_of_two()))
    });
    sliding.chain(cases::ADAPTIVE_POOL.iter().flat_map(adaptive_pools)).chain(global).collect()
}

fn adaptive_pools(&(shape, [p, q]): &([usize; 4], [usize; 2])) -> [Pass; 2] {
    let [n, h, w, c] = shape;
    let (x, y) = (Layout::dense(shape), Layout::dense([n, p, q, c]));
    // Windows of one size, a power of two: integers stay exact.
    let is_even = |inputs: usize, outputs: usize| inputs.is_multiple_of(outputs) || outputs.is_multiple_of(inputs);
    let pixels = h.div_ceil(p) * w.div_ceil(q);
    let is_exact = is_even(h, p) && is_even(w, q) && pixels.is_power_of_two();
    [
        Pass::new("adaptive average", [Input::unit(x.clone())], [y.clone()], |[x], [y]| {
            pool::adaptive_average_pool(x, y);
        }),
        Pass::new("adaptive average's dx", [Input::unit(y)], [x], |[dy], [dx]| {
            pool::adaptive_average_pool_backward(dy, dx);
        }),
    ]
    .map(|pass| pass.of(format!("{} to {p}×{q}", Shape::from(shape))).within(SUM).exact_if(is_exact))
}

/// Chances whose scales are powers of two, so that integers stay exact, and one of 4/3.
fn dropouts() -> Vec<Pass> {
    let of = |(stream, &(len, p, key)): (u32, &(usize, f32, [u32; 2]))| {
        let layout = Layout::dense([len]);
        let is_exact = (1.0 / (1.0 - p)).log2().fract() == 0.0;
        let pass = Pass::new("dropout", [Input::unit(layout.clone())], [layout], move |[x], [y]| {
            let key = Integers::from_vec(key.to_vec()).to_device(x.device());
            dropout::dropout(&dropout::Dropout::new(p, stream), &key, x, y);
        });
        pass.of(format!("{len} numbers, {p} of them")).within(FEW).exact_if(is_exact)
    };
    (0..).zip(cases::DROPOUT).map(of).collect()
}

/// Writes numbers that were no tensor before.
fn write(to: TensorMut, values: Vec<f64>) {
    let shape = to.shape();
    let values = Tensor::from_vec(values, shape);
    let dtype = if to.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    to.copy_from(&values.cast(dtype));
}

fn pointwise() -> Vec<Pass> {
    let of_case = |&[rows, row, padding]: &[usize; 3]| {
        let shape = [rows, row];
        // Rows are padded in arenas, which are f32.
        let padded = Layout::padded(shape, row + padding).in_arena();
        let role = |layout: Layout| if padding > 0 { layout.in_f32() } else { layout };
        let [sum, term] = [role(padded), role(Layout::dense(shape))].map(Input::unit);
        let dense = Input::unit(Layout::dense(shape));
        [
            Pass::new("ReLU", [dense.clone()], [Output::Over(0)], |_, [y]| pointwise::relu_assign(y)),
            Pass::new("ReLU's dx", [dense.clone(), dense.clone()], [Output::Over(0)], |[_, y], [dx]| {
                pointwise::relu_backward_assign(dx, y);
            }),
            Pass::new("add", [sum, term], [Output::Over(0)], |[_, term], [sum]| pointwise::add_assign(sum, term)),
            Pass::new(
                "pull",
                [dense.clone(), dense.clone(), dense.clone()],
                [Output::Over(0)],
                |[_, x, towards], [dx]| {
                    // Powers of two: integers stay whole.
                    let pull = Pull { towards, share: 2.0, strength: 4.0, control: None };
                    pointwise::pull_assign(&pull, dx, x);
                },
            ),
        ]
        .map(|pass| pass.of(format!("{rows}×{row}, {padding} of padding")).within(FEW).exact())
    };
    cases::POINTWISE.iter().flat_map(of_case).collect()
}

fn concatenations() -> Vec<Pass> {
    let of_case = |&([n, h, w], inputs): &([usize; 3], &'static [usize])| {
        let total: usize = inputs.iter().sum();
        inputs.iter().enumerate().flat_map(move |(index, &channels)| {
            let first: usize = inputs[..index].iter().sum();
            let x = Layout::dense([n, h, w, channels]);
            // The other inputs' channels are not touched.
            let part = Layout::channels([n, h, w, total], first, channels);
            [
                Pass::new("concat", [Input::unit(x.clone())], [part.clone()], move |[x], [y]| {
                    concat::insert(x, first, y);
                }),
                Pass::new("dx", [Input::unit(part)], [x], move |[dy], [dx]| concat::backward(dy, first, dx)),
            ]
            .map(|pass| pass.of(format!("{channels} channels from {first} of {:?}", [n, h, w, total])))
            .map(|pass| pass.within(NONE).exact())
        })
    };
    cases::CONCAT.iter().flat_map(of_case).collect()
}

fn linear_layers() -> Vec<Pass> {
    let of_case = |&LinearCase { n, c, k, row_padding }: &LinearCase| {
        let [x, y] = [Layout::dense([n, c]), Layout::dense([n, k])];
        let w = Layout::padded([k, c], c + row_padding).in_arena();
        let b = Layout::dense([k]).in_arena();
        let unit = |layout: &Layout| Input::unit(layout.clone());
        [
            Pass::new("y", [&x, &w, &b].map(unit), [y.clone()], |[x, w, b], [y]| linear::forward(x, w, b, y)),
            Pass::new("dx", [&y, &w].map(unit), [x.clone()], |[dy, w], [dx]| linear::input_gradient(dy, w, dx)),
            Pass::new("dw", [&x, &y].map(unit), [w.clone()], |[x, dy], [dw]| linear::weight_gradient(x, dy, dw)),
            Pass::new("db", [unit(&y)], [b], |[dy], [db]| linear::bias_gradient(dy, db)),
        ]
        .map(|pass| pass.of(format!("{n}×{c} by {k}")).within(SUM).exact().in_f32())
    };
    cases::LINEAR.iter().flat_map(of_case).collect()
}

fn grams() -> Vec<Pass> {
    let of_case = |case: &GramCase| {
        let GramCase { x, window, other, .. } = *case;
        // The outputs of the convolution, and how many numbers it reads for each.
        let ([n, h, w], columns) = match window {
            None => ([x[0], x[1], x[2]], [1, 1]),
            Some((conv, taps)) => {
                let g = conv2d::Geometry::new(conv, x.into(), [1, taps[0], taps[1], x[3]].into(), 0);
                ([g.n, g.p, g.q], taps)
            }
        };
        let wide = |channels: usize| columns[0] * columns[1] * channels;
        let (b, b_window, b_columns) = match other {
            Other::Itself => (None, window, wide(x[3])),
            Other::ItsPixels => (None, None, x[3]),
            Other::Pixels(c) => (Some([n, h, w, c]), None, c),
            Other::Patches(c) => (Some([x[0], x[1], x[2], c]), window, wide(c)),
        };
        let sums = |rows: usize, columns: usize| Input::unit(Layout::dense([rows, columns]).in_f32());
        let image = |shape: [usize; 4]| Input::unit(Layout::dense(shape));
        let inputs = [sums(wide(x[3]), b_columns), image(x)].into_iter().chain(b.map(image)).collect();
        [
            Pass::with_many("product", inputs, vec![Output::Over(0)], move |inputs, outputs| {
                let ([_, a, b @ ..], [sum]) = (inputs, only(outputs)) else { unreachable!() };
                let b = Samples { x: b.first().unwrap_or(a), window: b_window };
                gram::accumulate(Samples { x: a, window }, b, sum);
            }),
            Pass::new("moments", [sums(2, wide(x[3])), image(x)], [Output::Over(0)], move |[_, a], [sum]| {
                gram::moments(Samples { x: a, window }, sum);
            }),
        ]
        .map(|pass| pass.of(case.name).within(SUM).exact().of_cpu_if(case.is_of_cpu))
    };
    cases::GRAM.iter().flat_map(of_case).collect()
}

fn merges() -> Vec<Pass> {
    let of_case = |case: &'static MergeCase| {
        let [table, backward_table] = [case.table(), case.table()];
        let weights = Input::unit(Layout::of_table(&table));
        let alphas = Layout::dense([case.sources, case.alphas]);
        let arena = Layout::dense([case.arena_len]).in_arena();
        let with = |first: Input| once(first).chain(repeat_n(weights.clone(), case.sources)).collect();
        [
            Pass::with_many("blend", with(Input::unit(alphas.clone())), vec![arena.into()], move |inputs, outputs| {
                let ([alpha, sources @ ..], [blend]) = (inputs, only(outputs)) else { unreachable!() };
                merge::blend(&table, &sources.iter().collect::<Vec<_>>(), alpha, blend);
            }),
            Pass::with_many(
                "α's gradient from dW",
                with(weights.clone()),
                vec![alphas.into()],
                move |inputs, outputs| {
                    let ([dw, sources @ ..], [dalpha]) = (inputs, only(outputs)) else { unreachable!() };
                    merge::alpha_gradient(&backward_table, &sources.iter().collect::<Vec<_>>(), dw, dalpha);
                },
            ),
        ]
        .map(Pass::in_f32)
        .into_iter()
        .chain([blend_in_parts(case)])
        .chain(case.table().takes_products().then(|| gradient_of_products(case)))
        .map(|pass| pass.of(case.name).within(SUM).exact())
    };
    cases::MERGE.iter().flat_map(of_case).collect()
}

/// Filters as activations are stored.
fn blend_in_parts(case: &'static MergeCase) -> Pass {
    let table = case.table();
    let weights = Input::unit(Layout::of_table(&table).in_f32());
    let alpha = Input::unit(Layout::dense([case.sources, case.alphas]).in_f32());
    let filters = Layout::dense([case.filters_len]).in_arena();
    let rest = Layout::dense([case.arena_len - case.filters_len]).in_arena().in_f32();
    let inputs = once(alpha).chain(repeat_n(weights, case.sources)).collect();
    Pass::with_many("blend in parts", inputs, vec![filters.into(), rest.into()], move |inputs, outputs| {
        let [alpha, sources @ ..] = inputs else { unreachable!() };
        let [filters, rest]: [TensorMut; 2] = outputs.try_into().unwrap_or_else(|_| panic!("two outputs"));
        let sources: Vec<&Tensor> = sources.iter().collect();
        merge::blend_in_parts(&table, &sources, alpha, merge::Parts { filters, rest });
    })
}

/// Layers that leave one part or several; the first twice, as filters that are used twice do, the third not at all.
fn gradient_of_products(case: &'static MergeCase) -> Pass {
    let table = case.table();
    let (mut terms, mut len) = (Vec::new(), 0);
    let filters = table.segments().iter().filter(|segment| segment.offset < case.filters_len);
    for (index, segment) in filters.enumerate() {
        for use_of in 0..[2, 1, 0, 1][index % 4] {
            let parts = 1 + (9 * index + 2 * use_of) % 20;
            terms.push(merge::Term { offset: segment.offset, filters: segment.rows, at: len, parts });
            len += parts * case.sources * segment.rows;
        }
    }
    let vectors = table.segments().iter().filter(|segment| segment.offset >= case.filters_len);
    let covered =
        vectors.map(|segment| segment.offset - case.filters_len..segment.offset - case.filters_len + segment.row_len);
    let rest = Layout { covered: covered.collect(), ..Layout::dense([case.arena_len - case.filters_len]) };
    let weights = Input::unit(Layout::of_table(&table));
    let [sums, rest] = [Layout::dense([len]), rest.in_arena()].map(Input::unit);
    let inputs = [sums, rest].into_iter().chain(repeat_n(weights, case.sources)).collect();
    let dalpha = Layout::dense([case.sources, case.alphas]);
    Pass::with_many("α's gradient from products", inputs, vec![dalpha.into()], move |inputs, outputs| {
        let ([sums, rest, sources @ ..], [dalpha]) = (inputs, only(outputs)) else { unreachable!() };
        let products = merge::FilterProducts { sums, terms: &terms, rest };
        let sources: Vec<&Tensor> = sources.iter().collect();
        merge::alpha_gradient_of_products(&table, &sources, &products, dalpha);
    })
    .in_f32()
}

fn only(outputs: Vec<TensorMut>) -> [TensorMut; 1] {
    outputs.try_into().unwrap_or_else(|_| panic!("one output"))
}

fn constraints() -> Vec<Pass> {
    let of_case = |case: &ConstraintCase| {
        let [forward, backward] = [case.parametrization(), case.parametrization()];
        let learned = Layout::dense([forward.rows(), forward.learned]);
        let alpha = Layout::dense([forward.sources, forward.alphas()]);
        // Backward takes any α.
        let [a, dalpha] = [&alpha, &alpha].map(|layout| Input::unit(layout.clone()));
        [
            Pass::new("α", [Input::unit(learned.clone())], [alpha], move |[learned], [alpha]| {
                forward.forward_into(learned, alpha);
            }),
            Pass::new("gradient", [a, dalpha], [learned], move |[alpha, dalpha], [dlearned]| {
                backward.backward_into(alpha, dalpha, dlearned);
            }),
        ]
        .map(|pass| pass.of(case.name).within(FEW).exact_if(case.is_exact()).in_f32())
    };
    cases::CONSTRAINT.iter().flat_map(of_case).collect()
}

fn losses() -> Vec<Pass> {
    let of_case = |case: &CrossEntropyCase| {
        let (loss, n, classes) = (case.loss(), case.n, case.classes);
        let logits = Input::around(Layout::dense([n, classes]), 0.0, case.scale);
        let labels = Input::below(Layout::dense([n]), classes as u64);
        let results = [[1].into(), [n, classes].into()].map(|shape: Shape| Layout::dense(shape));
        let pass = Pass::new("loss and gradient", [logits, labels], results, move |[z, labels], [value, gradient]| {
            let labels = labels.to_f64().into_iter().map(|label| label as u32).collect();
            let labels = Integers::from_vec(labels).to_device(z.device());
            softmax_cross_entropy::forward_backward(&loss, z, &labels, value, gradient, None);
        });
        pass.of(case.name).within(SUM).within_on_cpu(IN_F64).in_f32()
    };
    cases::CROSS_ENTROPY.iter().map(of_case).collect()
}

fn soft_losses() -> Vec<Pass> {
    let of_case = |case: &CrossEntropyCase| {
        let (loss, n, classes) = (case.loss(), case.n, case.classes);
        let logits = Input::around(Layout::dense([n, classes]), 0.0, case.scale);
        // Shares from 0 to 1.
        let targets = Input::around(Layout::dense([n, classes]), 0.5, 0.5);
        let results = [[1].into(), [n, classes].into()].map(|shape: Shape| Layout::dense(shape));
        let pass = Pass::new("loss and gradient", [logits, targets], results, move |[z, t], [value, gradient]| {
            soft_cross_entropy::forward_backward(&loss, z, t, value, gradient, None);
        });
        pass.of(case.name).within(SUM).within_on_cpu(IN_F64).in_f32()
    };
    cases::SOFT_CROSS_ENTROPY.iter().map(of_case).collect()
}

fn optimizers() -> Vec<Pass> {
    let of_case = |&OptimizerCase { name, len, steps, rule }: &OptimizerCase| {
        let arena = Layout::dense([len]);
        let unit = Input::unit(arena.clone());
        let zero = Input { layout: arena, values: Values::Zero };
        // The parameters, their moments, and a gradient per step.
        let inputs = |moments: usize| {
            let moments = repeat_n(zero.clone(), moments);
            once(unit.clone()).chain(moments).chain(repeat_n(unit.clone(), steps as usize)).collect()
        };
        let pass = match rule {
            Rule::Sgd(rule) => {
                Pass::with_many("SGD", inputs(1), [0, 1].map(Output::Over).to_vec(), move |inputs, outputs| {
                    let [mut w, mut v] = [&inputs[0], &inputs[1]].map(Tensor::copy);
                    inputs[2..]
                        .iter()
                        .for_each(|gradient| optimizer::sgd(&rule, w.view_mut(), gradient, v.view_mut(), None));
                    outputs.into_iter().zip([w, v]).for_each(|(to, from)| to.copy_from(&from));
                })
            }
            Rule::AdamW(rule) => {
                Pass::with_many("AdamW", inputs(2), [0, 1, 2].map(Output::Over).to_vec(), move |inputs, outputs| {
                    let [mut w, mut m, mut u] = [&inputs[0], &inputs[1], &inputs[2]].map(Tensor::copy);
                    for (gradient, step) in inputs[3..].iter().zip(1..) {
                        let rule = AdamW { step, ..rule };
                        optimizer::adamw(&rule, w.view_mut(), gradient, [m.view_mut(), u.view_mut()], None);
                    }
                    outputs.into_iter().zip([w, m, u]).for_each(|(to, from)| to.copy_from(&from));
                })
            }
        };
        pass.of(name).within(FEW).in_f32()
    };
    let clamp = cases::LENGTHS.iter().map(|&len| {
        let pass = Pass::new("clamp", [Input::unit(Layout::dense([len]))], [Output::Over(0)], |[x], [y]| {
            let mut x = x.copy();
            optimizer::clamp(&mut x, None);
            y.copy_from(&x);
        });
        pass.of(format!("{len} numbers")).within(NONE).exact().in_f32()
    });
    cases::OPTIMIZER.iter().map(of_case).chain(clamp).collect()
}
