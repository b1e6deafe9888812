//! Every op on the tape, as a function of its leaves. The same graphs run in `f64`, where finite differences check
//! their gradients, and in `f32`, where they must come to the same.

use std::sync::Arc;

use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan, Start};
use medmerge::nn::{Architecture, Mode, Model, Network, Role};
use medmerge::ops::batch_norm::{Source, Then};
use medmerge::ops::cases;
use medmerge::ops::conv2d::Conv2d;
use medmerge::ops::dropout::Dropout;
use medmerge::ops::merge::constraint::{Mean, Parametrization};
use medmerge::ops::merge::{Choice, Segment, Table};
use medmerge::ops::pool::Pool;
use medmerge::ops::softmax_cross_entropy::{CrossEntropy, Form};
use medmerge::tape::{Tape, Var};
use medmerge::tensor::{DType, Integers, Shape, Tensor};
use medmerge::train::Change;

use crate::common::Numbers;

pub type Build = Box<dyn Fn(&mut Tape, &[Var]) -> Var + Send + Sync>;

pub struct Graph {
    pub name: String,
    /// In `f64`.
    pub leaves: Vec<Tensor>,
    /// Works in the dtype of the leaves it is given.
    pub build: Build,
}

impl Graph {
    fn new(
        name: impl ToString,
        leaves: impl IntoIterator<Item = Tensor>,
        build: impl Fn(&mut Tape, &[Var]) -> Var + Send + Sync + 'static,
    ) -> Graph {
        Graph { name: name.to_string(), leaves: leaves.into_iter().collect(), build: Box::new(build) }
    }
}

/// Numbers in [−1, 1).
pub fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(Numbers(seed).reals(shape.len()), shape)
}

/// `factor·t + offset`.
fn scaled(t: Tensor, factor: f64, offset: f64) -> Tensor {
    Tensor::from_vec(t.to_f64().into_iter().map(|v| factor * v + offset).collect(), t.shape())
}

/// Numbers at least 1/20 from zero, for what has a kink there.
fn away_from_zero(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let t = random(shape, seed);
    Tensor::from_vec(t.to_f64().into_iter().map(|v| v + 0.05 * v.signum()).collect(), t.shape())
}

/// Numbers of which no two lie closer than 1/100, for what has a kink at ties.
fn without_ties(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut numbers = Numbers(seed);
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.sort_by_cached_key(|_| numbers.next());
    Tensor::from_vec(order.into_iter().map(|rank| rank as f64 / 100.0).collect(), shape)
}

/// Convolutions of the table that are small enough to be differentiated weight by weight.
fn conv2d() -> impl Iterator<Item = Graph> {
    let small = |case: &&cases::ConvCase| case.geometry().flops() < 60_000;
    cases::CONV2D.iter().filter(small).map(|case| {
        let (g, conv) = (case.geometry(), case.conv);
        let arena = random([(g.k - 1) * g.pitch + g.filter_len()], 2);
        let filters = [g.k, g.r, g.s, g.group_channels()];
        Graph::new(format!("conv2d {}", case.name), [random(g.x(), 1), arena], move |tape, leaves| {
            let w = tape.window(&leaves[1], 0, filters, g.pitch);
            tape.conv2d(conv, &leaves[0], &w)
        })
    })
}

/// What a batch norm of the first leaf normalises by.
fn source(leaves: &[Var], mode: Mode) -> Source<'static> {
    match mode {
        Mode::Training => Source::Batch { epsilon: 1e-2, tiles: None, running: None },
        Mode::Inference => {
            let (dtype, c) = (leaves[0].value().dtype(), leaves[0].shape().channels());
            let [mean, rstd] = [random([c], 4), scaled(random([c], 5), 0.5, 1.0)].map(|t| t.cast(dtype));
            Source::Given { mean, rstd }
        }
    }
}

/// A batch norm of x by γ and β, with the sum of a residual where there is a fourth leaf.
pub fn normalized(tape: &mut Tape, leaves: &[Var], mode: Mode, relu: bool) -> Var {
    let [x, gamma, beta, residual @ ..] = leaves else { panic!("three or four leaves") };
    let source = source(leaves, mode);
    tape.batch_norm(x, gamma, beta, source, Then { residual: residual.first().cloned(), relu, ..Then::default() })
}

fn batch_norm() -> impl Iterator<Item = Graph> {
    let shapes: [[usize; 4]; 3] = [[3, 2, 3, 5], [2, 1, 1, 3], [4, 3, 2, 1]];
    let forms = [Mode::Training, Mode::Inference].into_iter().flat_map(|mode| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(residual, relu)| (mode, residual, relu))
    });
    forms.flat_map(move |(mode, residual, relu)| {
        shapes.map(|shape| {
            let c = shape[3];
            let leaves = [random(shape, 1), scaled(random([c], 2), 0.5, 1.0), random([c], 3), random(shape, 6)];
            let leaves = leaves.into_iter().take(if residual { 4 } else { 3 });
            let name = format!("batch norm, {mode:?}, {shape:?}, residual: {residual}, ReLU: {relu}");
            Graph::new(name, leaves, move |tape, l| normalized(tape, l, mode, relu))
        })
    })
}

/// The sum of two batch norms of which none is written, by numbers of their own.
fn two_batch_norms() -> impl Iterator<Item = Graph> {
    [(Mode::Training, false), (Mode::Training, true), (Mode::Inference, true)].into_iter().map(|(mode, relu)| {
        let (shape, c) = ([3, 2, 3, 5], 5);
        let norm = |seed: u64| [random(shape, seed), scaled(random([c], seed + 1), 0.5, 1.0), random([c], seed + 2)];
        let leaves = norm(1).into_iter().chain(norm(11));
        let name = format!("two batch norms, {mode:?}, ReLU: {relu}");
        Graph::new(name, leaves, move |tape, l| {
            let (x, y) = l.split_at(3);
            let (residual, of_residual) = tape.batch_norm_unwritten(&y[0], &y[1], &y[2], source(y, mode));
            let then = Then { residual: Some(residual), of_residual: Some(of_residual), relu, handoff: None };
            tape.batch_norm(&x[0], &x[1], &x[2], source(x, mode), then)
        })
    })
}

fn pools() -> impl Iterator<Item = Graph> {
    let small = |case: &&cases::PoolCase| case.x.iter().product::<usize>() < 500;
    let sliding = cases::POOL.iter().filter(small).flat_map(|&cases::PoolCase { name, x, pool }| {
        let other = Pool { count_padding: !pool.count_padding, ..pool };
        let average = move |pool: Pool| {
            let name = format!("average pool {name}, padding counts: {}", pool.count_padding);
            Graph::new(name, [random(x, 1)], move |tape, l| tape.average_pool(pool, &l[0]))
        };
        let max =
            Graph::new(format!("max pool {name}"), [without_ties(x, 1)], move |tape, l| tape.max_pool(pool, &l[0]));
        [max, average(pool), average(other)]
    });
    let global = |x: [usize; 4]| Graph::new("global pool", [random(x, 1)], |tape, l| tape.global_average_pool(&l[0]));
    let small = |(x, _): &&([usize; 4], _)| x.iter().product::<usize>() < 1000;
    let adaptive = cases::ADAPTIVE_POOL.iter().filter(small).map(|&(x, to)| {
        let name = format!("adaptive average pool of {x:?} to {to:?}");
        Graph::new(name, [random(x, 1)], move |tape, l| tape.adaptive_average_pool(to, l[0].clone()))
    });
    sliding.chain(adaptive).chain([[2, 3, 4, 5], [3, 1, 1, 2]].map(global))
}

fn pointwise() -> impl Iterator<Item = Graph> {
    let shape = [2, 3, 4, 5];
    [
        Graph::new("ReLU", [away_from_zero(shape, 1)], |tape, l| tape.relu(l[0].clone())),
        Graph::new("ReLU of what others read", [away_from_zero(shape, 1)], |tape, l| {
            let y = tape.relu(l[0].clone());
            tape.add(l[0].clone(), y)
        }),
        Graph::new("add", [random(shape, 1), random(shape, 2)], |tape, l| tape.add(l[0].clone(), l[1].clone())),
        Graph::new("add to itself", [random(shape, 1)], |tape, l| tape.add(l[0].clone(), l[0].clone())),
        Graph::new("concat", [[2, 2, 3, 1], [2, 2, 3, 4], [2, 2, 3, 2]].map(|s| random(s, s[3] as u64)), |tape, l| {
            tape.concat(l)
        }),
        Graph::new("concat of one thing twice", [random(shape, 1)], |tape, l| {
            tape.concat(&[l[0].clone(), l[0].clone()])
        }),
    ]
    .into_iter()
}

fn linear() -> impl Iterator<Item = Graph> {
    cases::LINEAR.iter().filter(|case| case.n * case.c * case.k < 1000).map(
        |&cases::LinearCase { n, c, k, row_padding }| {
            let pitch = c + row_padding;
            let leaves = [random([n, c], 1), random([(k - 1) * pitch + c], 2), random([k], 3)];
            Graph::new(format!("linear {n}×{c} by {k}"), leaves, move |tape, l| {
                let w = tape.window(&l[1], 0, [k, c], pitch);
                tape.linear(&l[0], &w, &l[2])
            })
        },
    )
}

fn cross_entropy() -> impl Iterator<Item = Graph> {
    cases::CROSS_ENTROPY.iter().filter(|case| case.scale < 10.0 && case.n < 100).map(|case| {
        let (n, classes) = (case.n, case.classes);
        let logits = scaled(random([n, classes], 1), case.scale, 0.0);
        Graph::new(format!("{case:?}"), [logits], move |tape, l| {
            let labels = Integers::from_vec((0..n).map(|i| (3 * i % classes) as u32).collect());
            tape.softmax_cross_entropy(&case.loss(), &l[0], &labels, None)
        })
    })
}

fn soft_cross_entropy() -> impl Iterator<Item = Graph> {
    cases::SOFT_CROSS_ENTROPY.iter().filter(|case| case.scale < 10.0 && case.n < 100).map(|case| {
        let (n, classes) = (case.n, case.classes);
        let logits = scaled(random([n, classes], 1), case.scale, 0.0);
        let mut targets: Vec<f64> = (0..n * classes).map(|i| (7 * i % 5) as f64 / 4.0).collect();
        if case.form == Form::Softmax {
            // A mixture of two images. Were it one of all classes, their gradients would be small beside the loss, whose rounding a
            // difference has in it.
            targets.fill(0.0);
            for (image, row) in targets.chunks_mut(classes).enumerate() {
                row[3 * image % classes] += 0.75;
                row[(3 * image + 1) % classes] += 0.25;
            }
        }
        let targets = Tensor::from_vec(targets, [n, classes]);
        Graph::new(format!("{case:?}"), [logits], move |tape, l| {
            tape.soft_cross_entropy(&case.loss(), &l[0], &targets.cast(l[0].value().dtype()), None)
        })
    })
}

/// α as the leaf, at every granularity of the table.
fn merge() -> impl Iterator<Item = Graph> {
    cases::MERGE.iter().filter(|case| case.arena_len < 1000 && case.alphas > 0).map(|case| {
        let table = Arc::new(case.table());
        let sources: Vec<Tensor> = (0..case.sources as u64).map(|m| random([case.arena_len], 10 + m)).collect();
        Graph::new(format!("merge {}", case.name), [random([case.sources, case.alphas], 1)], move |tape, l| {
            let cast = |t: &Tensor| t.cast(l[0].value().dtype());
            tape.merge(&table, &sources.iter().map(cast).collect::<Vec<_>>(), &l[0])
        })
    })
}

/// Merged filters that a convolution reads twice, another one once, and something else too; vectors that share their α.
fn merged_filters() -> Graph {
    let segment = |offset, [rows, row_len, pitch]: [usize; 3], [first, row_step, period]: [usize; 3]| {
        let choice = Choice::Alpha { first, row_step, period };
        Segment { offset, rows, row_len, pitch, choice }
    };
    let segments = vec![
        segment(0, [4, 36, 36], [0, 1, 1]),
        segment(144, [3, 4, 4], [4, 1, 1]),
        segment(156, [1, 4, 4], [0, 0, 4]),
        segment(160, [1, 4, 4], [0, 0, 4]),
    ];
    let table = Arc::new(Table::new(segments, 7, 164).with_filters(156));
    let sources: Vec<Tensor> = (0..3).map(|m| random([164], 10 + m)).collect();
    let leaves = [random([2, 4, 4, 4], 1), random([3, 7], 2)];
    Graph::new("merged filters used in several ways", leaves, move |tape, l| {
        let dtype = l[1].value().dtype();
        let sources: Vec<Tensor> = sources.iter().map(|source| source.cast(dtype)).collect();
        let trunk = tape.merge_for_step(&table, &sources, &l[1], dtype);
        let twice = tape.window(&trunk, 0, [4, 3, 3, 4], 36);
        let once = tape.window(&trunk, 144, [3, 1, 1, 4], 4);
        let [gamma, beta] = [156, 160].map(|offset| tape.window(&trunk, offset, [4], 1));
        let y = tape.conv2d(Conv2d::new(1, 1), &l[0], &twice);
        let given = Source::Given { mean: random([4], 4).cast(dtype), rstd: random([4], 5).cast(dtype) };
        let y = tape.batch_norm(&y, &gamma, &beta, given, Then::default());
        let y = tape.conv2d(Conv2d::new(1, 1), &y, &twice);
        let y = tape.conv2d(Conv2d::new(1, 0), &y, &once);
        // Pooled like an image: of a single channel for each of the filters' own.
        let [other, again] = [&twice, &twice].map(|filters| tape.average_pool(Pool::new(3, 1, 0), filters));
        let [first, second, third] = [y, other, again].map(|y| crate::gradients::dot(tape, &y));
        let two = tape.add(first, second);
        tape.add(two, third)
    })
}

const CONSTRAINTS: [Constraint; 4] = [Constraint::Affine, Constraint::Clamp, Constraint::Simplex, Constraint::Free];

fn constrain() -> impl Iterator<Item = Graph> {
    let methods = CONSTRAINTS.into_iter().flat_map(|constraint| [2, 3].map(|sources| (constraint, sources)));
    methods.map(|(constraint, sources)| {
        let means = vec![Mean { first: 0, rows: 2, period: 3 }, Mean { first: 7, rows: 2, period: 2 }];
        let parametrization = Arc::new(Parametrization::new(constraint, sources, 1, 12, means));
        let learned = random([parametrization.rows(), 12], 1);
        Graph::new(format!("constraint {constraint} of {sources} sources"), [learned], move |tape, l| {
            tape.constrain(&parametrization, &l[0])
        })
    })
}

pub fn ops() -> impl Iterator<Item = Graph> {
    let two_convolutions = Graph::new(
        "filters used twice",
        [random([1, 4, 4, 3], 1), random([3, 3, 3, 3], 2)],
        |tape: &mut Tape, l: &[Var]| {
            let y = tape.conv2d(Conv2d::new(1, 1), &l[0], &l[1]);
            tape.conv2d(Conv2d::new(1, 1), &y, &l[1])
        },
    );
    conv2d()
        .chain([two_convolutions])
        .chain(batch_norm())
        .chain(two_batch_norms())
        .chain(pools())
        .chain([0.5, 0.1].map(|p| {
            let key = Arc::new(Integers::from_vec(vec![3, 4]));
            Graph::new(format!("dropout of {p}"), [random([3, 7], 1)], move |tape, l| {
                tape.dropout(Dropout::new(p, 5), &key, &l[0])
            })
        }))
        .chain([[0, 3], [2, 0], [1, 4]].map(|sides| {
            let name = format!("channels padded by {sides:?}");
            Graph::new(name, [random([2, 3, 2, 5], 1)], move |tape, l| tape.pad_channels(sides, &l[0]))
        }))
        .chain(pointwise())
        .chain(linear())
        .chain(cross_entropy())
        .chain(soft_cross_entropy())
        .chain(merge())
        .chain([merged_filters()])
        .chain(constrain())
}

const CLASSES: usize = 3;

fn images() -> Tensor {
    random([3, 6, 6, 1], 77)
}

fn loss(tape: &mut Tape, network: &Network, trunk: &Var, head: &Var, statistics: &Tensor, mode: Mode) -> Var {
    let dtype = head.value().dtype();
    let output = network.forward(tape, trunk, head, &statistics.cast(dtype), images().cast(dtype), mode);
    let loss = CrossEntropy { class_weights: vec![1.0, 0.5, 2.0], label_smoothing: 0.1, ..Default::default() };
    tape.softmax_cross_entropy(&loss, &output.logits, &Integers::from_vec(vec![0, 2, 1]), None)
}

/// Trained in all parameters: no γ is 1 and no β 0, as they are at the start.
pub fn model(width: usize, seed: u64) -> Model {
    let network = Architecture::named("resnet8", None, Some(width)).unwrap().build(1, CLASSES);
    let mut model = Model::initialized(network.clone(), seed);
    for parameter in network.parameters.iter().filter(|parameter| matches!(parameter.role, Role::Scale | Role::Shift)) {
        let noise = Numbers(parameter.offset as u64 + seed).reals(parameter.shape.len());
        let values: Vec<f32> =
            model.parameter(parameter).to_f64().iter().zip(noise).map(|(v, r)| (v + 0.3 * r) as f32).collect();
        model.set_parameter(parameter, &values);
    }
    model
}

/// A residual network in all its parameters.
pub fn network(mode: Mode) -> Graph {
    let Model { network, trunk, head, statistics, .. } = model(4, 1);
    Graph::new(format!("resnet8, {mode:?}"), [trunk, head].map(|t| t.cast(DType::F64)), move |tape, l| {
        loss(tape, &network, &l[0], &l[1], &statistics, mode)
    })
}

/// A residual network whose trunk is merged, in its merge weights and its head.
pub fn merged_network(granularity: Granularity, constraint: Constraint, sources: usize) -> Graph {
    let models: Vec<Model> = (0..sources as u64).map(|seed| model(4, seed + 1)).collect();
    let Model { network, head, statistics, .. } = models[0].clone();
    let trunks: Vec<Tensor> = models.into_iter().map(|model| model.trunk).collect();
    let method = Method { sources, anchor: 0, granularity, constraint, batch_norm: BatchNormPolicy::Merge };
    let plan = Plan::new(&network, method).unwrap();
    let shape = [plan.parametrization.rows(), plan.parametrization.learned];
    let leaves = [scaled(random(shape, 5), 0.3, 0.5), head.cast(DType::F64)];
    Graph::new(format!("resnet8 merged of {sources} by {granularity}, {constraint}"), leaves, move |tape, l| {
        let trunks: Vec<Tensor> = trunks.iter().map(|trunk| trunk.cast(l[0].value().dtype())).collect();
        let alpha = tape.constrain(&plan.parametrization, &l[0]);
        let trunk = tape.merge_for_step(&plan.table, &trunks, &alpha, l[0].value().dtype());
        loss(tape, &network, &trunk, &l[1], &statistics, Mode::Training)
    })
}

/// A residual network whose trunk is fine-tuned while the merge that it is a fold of is learned on: in its merge weights, which
/// have moved since, the trunk and the head.
pub fn changed_network(granularity: Granularity, constraint: Constraint, batch_norm: BatchNormPolicy) -> Graph {
    let models: Vec<Model> = (0..3).map(|seed| model(4, seed + 1)).collect();
    let Model { network, head, statistics, .. } = models[0].clone();
    let trunks: Vec<Tensor> = models.into_iter().map(|model| model.trunk).collect();
    let plan = Plan::new(&network, Method { sources: 3, anchor: 0, granularity, constraint, batch_norm }).unwrap();
    let folded = plan.start(Start::Weight(0.3)).unwrap();
    let moved = random(folded.shape(), 5).to_f64().into_iter().zip(folded.to_f64()).map(|(r, w)| w + 0.1 * r);
    let moved = Tensor::from_vec(moved.collect(), folded.shape());
    let leaves = [moved, plan.blend(&trunks, &folded).cast(DType::F64), head.cast(DType::F64)];
    let name = format!("resnet8 fine-tuned and merged on by {granularity}, {constraint}, batch norms {batch_norm}");
    Graph::new(name, leaves, move |tape, l| {
        let cast = |tensor: &Tensor| tensor.cast(l[0].value().dtype());
        let change = Change::new(plan.clone(), trunks.iter().map(cast).collect(), cast(&folded));
        let trunk = change.trunk(tape, &l[1], &l[0]);
        loss(tape, &network, &trunk, &l[2], &statistics, Mode::Training)
    })
}
