//! Single steps and short runs of them.

use std::sync::Arc;

use medmerge::data::{Augmentation, Dataset, Loader, LoaderOptions, Normalisation, Split, SplitName, Task};
#[cfg(feature = "emulator")]
use medmerge::gpu::Gpu;
use medmerge::gpu::Handle;
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan, ProbeStatistics, Start};
use medmerge::nn::{Architecture, Model, Network, NetworkBuilder, Operation};
use medmerge::ops::control::{FIRST_SCALE, LOSSES, Values};
use medmerge::ops::conv2d::Conv2d;
use medmerge::ops::merge::{FilterProducts, Term, alpha_gradient_of_products};
use medmerge::ops::softmax_cross_entropy::{CrossEntropy, Form};
use medmerge::tensor::{DType, Device, Integers, Tensor};
use medmerge::train::{
    Batch, Batches, Change, DecayOf, Evaluator, MergeState, OptimizerKind, Place, Recorder, Subject, Target, Teachers,
    TrainOptions, Turn, apply, gradients, scores, step,
};

use crate::common::{Numbers, f32s, normalized_error};
use crate::devices;

const CLASSES: usize = 3;

pub fn split(count: usize, seed: u64) -> Split {
    let mut numbers = Numbers(seed);
    let images = (0..count * 8 * 8).map(|_| (numbers.next() % 256) as u8).collect();
    Split::in_memory(images, [8, 8, 1], (0..count).map(|i| (i % CLASSES) as u32).collect())
}

fn model(seed: u64) -> Model {
    shaken(small_network(), seed)
}

pub fn shaken(network: Arc<Network>, seed: u64) -> Model {
    let mut model = Model::initialized(network, seed);
    let mut numbers = Numbers(seed);
    // γ and β as after training: 1 and 0 hide mistakes.
    let trunk: Vec<f32> = model.trunk.to_vec::<f32>();
    let shaken = trunk.iter().map(|w| if *w == 0.0 || *w == 1.0 { w + 0.2 * numbers.real() as f32 } else { *w });
    let mut shaken = Tensor::from_vec(shaken.collect(), [trunk.len()]);
    // Padding stays zero.
    let mut clean = Model { trunk: Tensor::zeros([trunk.len()], DType::F32, Device::Cpu), ..model.clone() };
    for parameter in model.network.clone().parameters.iter().filter(|p| p.region == medmerge::nn::Region::Trunk) {
        let values = shaken.window(parameter.offset, parameter.shape, parameter.pitch).to_vec::<f32>();
        clean.set_parameter(parameter, &values);
    }
    shaken = clean.trunk;
    model.trunk = shaken;
    model
}

/// What learns: everything, the head, a merge of so many sources, one that is pulled to its start by λ, everything and the merge that
/// it is a fold of, or everything with so many teachers.
#[derive(Clone, Copy, Debug)]
enum What {
    Everything(OptimizerKind),
    Head,
    Merge(usize, Granularity, Constraint),
    /// A merge that normalises by running statistics, with batch norms of their own weights.
    Running,
    Pulled(OptimizerKind, f64),
    Change(usize, Granularity, Constraint, BatchNormPolicy),
    Distilled(u64),
    /// Of a merge or of everything: updates of three batches, clipped, with decay of weights alone, and rates of their own.
    Updated(Option<Granularity>, OptimizerKind),
}

const ALL: [What; 18] = [
    What::Everything(OptimizerKind::AdamW),
    What::Everything(OptimizerKind::Sgd),
    What::Head,
    What::Merge(2, Granularity::Filter, Constraint::Affine),
    What::Merge(3, Granularity::Filter, Constraint::Simplex),
    What::Merge(2, Granularity::Kernel, Constraint::Clamp),
    What::Merge(3, Granularity::Layer, Constraint::Free),
    What::Merge(2, Granularity::Model, Constraint::Affine),
    What::Running,
    What::Pulled(OptimizerKind::AdamW, 5.0),
    What::Pulled(OptimizerKind::Sgd, 0.5),
    What::Change(3, Granularity::Filter, Constraint::Simplex, BatchNormPolicy::Merge),
    What::Change(2, Granularity::Kernel, Constraint::Clamp, BatchNormPolicy::Anchor),
    What::Distilled(1),
    What::Distilled(2),
    What::Updated(None, OptimizerKind::Sgd),
    What::Updated(None, OptimizerKind::AdamW),
    What::Updated(Some(Granularity::Filter), OptimizerKind::AdamW),
];

impl What {
    fn subject(self, start: &Model) -> Subject {
        let merged = BatchNormPolicy::Merge;
        let (sources, granularity, constraint, batch_norm) = match self {
            What::Everything(_) | What::Updated(None, _) => return Subject::Everything,
            What::Head => return Subject::Head,
            What::Distilled(teachers) => {
                let teachers = (0..teachers).map(|seed| model(100 + seed)).collect();
                return Subject::Distilled(Teachers::new(teachers, 0.5));
            }
            What::Merge(sources, granularity, constraint) => (sources, granularity, constraint, merged),
            What::Pulled(..) => (2, Granularity::Filter, Constraint::Affine, merged),
            What::Updated(Some(granularity), _) => (2, granularity, Constraint::Affine, merged),
            What::Running => (2, Granularity::Kernel, Constraint::Affine, BatchNormPolicy::Own),
            What::Change(sources, granularity, constraint, policy) => (sources, granularity, constraint, policy),
        };
        let method = Method { sources, anchor: 0, granularity, constraint, batch_norm };
        let plan = Plan::new(&start.network, method).unwrap();
        let merge_weights = plan.start(Start::Weight(0.3)).unwrap();
        let trunks = (0..sources as u64).map(|seed| model(100 + seed).trunk).collect();
        match self {
            What::Change(..) => Subject::EverythingAndMerge(Change::new(plan, trunks, merge_weights)),
            What::Running => Subject::Merge(MergeState {
                probe_statistics: ProbeStatistics::Running,
                ..MergeState::new(plan, trunks, merge_weights)
            }),
            _ => Subject::Merge(MergeState::new(plan, trunks, merge_weights)),
        }
    }

    fn options(self) -> TrainOptions {
        let default = TrainOptions::default();
        match self {
            What::Everything(optimizer) => TrainOptions { optimizer, ..default },
            What::Pulled(optimizer, regularise) => TrainOptions { optimizer, regularise, ..default },
            What::Updated(_, optimizer) => TrainOptions {
                optimizer,
                nesterov: optimizer == OptimizerKind::Sgd,
                accumulate: 3,
                clip_norm: Some(0.5),
                weight_decay: 0.1,
                decay_of: DecayOf::Weights,
                layer_decay: 0.5,
                head_learning_rate: Some(0.02),
                ..default
            },
            _ => default,
        }
    }
}

/// Everything that steps change.
struct Outcome {
    losses: Vec<f32>,
    numbers: Vec<Vec<f32>>,
}

impl Outcome {
    fn bits(&self) -> Vec<Vec<u32>> {
        std::iter::once(&self.losses).chain(&self.numbers).map(|n| n.iter().map(|v| v.to_bits()).collect()).collect()
    }
}

struct Run {
    place: Place,
    graphs: bool,
    epochs: usize,
    /// Images of a batch in the first epoch; later 6.
    first_batch_size: usize,
    learning_rate: f64,
    /// Continues from here.
    control: Option<Values>,
    /// What gets a new place in memory before every fourth step.
    moves: Option<Moved>,
    /// The loss of labels as shares.
    form: Option<Form>,
}

#[derive(Clone, Copy, Debug)]
enum Moved {
    Head,
    Statistics,
    Trunk,
    Numbers,
    Source,
}

impl Run {
    fn on(place: Place) -> Run {
        Run {
            place,
            graphs: true,
            epochs: 3,
            first_batch_size: 6,
            learning_rate: 1e-2,
            control: None,
            moves: None,
            form: None,
        }
    }

    /// Epochs of three batches of six images and one of four.
    fn go(&self, what: What) -> Outcome {
        self.go_with(what, |_| {}).0
    }

    fn go_with(&self, what: What, mut after_step: impl FnMut(usize)) -> (Outcome, Recorder) {
        let images = split(22, 5);
        let options = |batch_size| LoaderOptions {
            network_channels: 1,
            normalisation: Normalisation::default(),
            batch_size,
            shuffle: true,
            augmentation: Some(Augmentation { flip: true, shift: 1, ..Default::default() }),
            seed: 1,
            balance: None,
            shares: self.form.map(|_| (Task::MultiLabel, CLASSES)),
        };
        let [first_loader, later_loader] = [self.first_batch_size, 6]
            .map(|size| Batches::new(Loader::new(&images, 8, 8, 1, options(size)), self.place));
        let start = model(1);
        let mut subject = what.subject(&start);
        let (learning_rate, merge_learning_rate) = (self.learning_rate, 5.0 * self.learning_rate);
        let options = TrainOptions { learning_rate, merge_learning_rate, ..what.options() };
        options.check().unwrap();
        let loss = CrossEntropy {
            class_weights: vec![1.0, 0.5, 2.0],
            label_smoothing: 0.1,
            form: self.form.unwrap_or_default(),
        };
        let mut recorder = Recorder::new(self.place, subject.optimizers(&options, &start.network), loss, self.control);
        if !self.graphs {
            recorder = recorder.without_graphs();
        }
        let device = self.place.device;
        let mut model = start.copy().to_device(device);
        subject.move_to(device);
        let (mut losses, mut steps, mut places_left) = (Vec::new(), 0, Vec::new());
        for epoch in 0..self.epochs {
            let loader = if epoch == 0 { &first_loader } else { &later_loader };
            let (mut batches, in_epoch) = (loader.epoch(epoch), loader.loader().batches_per_epoch());
            let turn = |batch: usize, steps: usize| {
                Turn::of(batch.min(in_epoch - 1), options.accumulate, loader.loader(), 1.0 / (1 + steps) as f64)
            };
            let mut batch = 0;
            while recorder.step(&mut model, &mut subject, loader, &mut batches, turn(batch, steps)).unwrap() {
                (batch, steps) = (batch + 1, steps + 1);
                after_step(steps);
                if steps % 4 == 0
                    && let Some(moved) = self.moves
                {
                    moved.leave(&mut model, &mut subject, &mut places_left);
                }
            }
            losses.extend(recorder.losses().unwrap().losses);
        }
        let learned = subject.merge_weights().map(|weights| weights.to_vec::<f32>()).unwrap_or_default();
        let mut numbers = vec![learned];
        numbers.extend([&model.trunk, &model.head, &model.statistics].map(|arena| arena.to_vec::<f32>()));
        numbers.push(model.batches_tracked.iter().map(|&count| count as f32).collect());
        (Outcome { losses, numbers }, recorder)
    }
}

impl Moved {
    /// What lies in the old place keeps it, so that nobody else is given it.
    fn leave(self, model: &mut Model, subject: &mut Subject, left: &mut Vec<Tensor>) {
        let tensor = match (self, subject) {
            (Moved::Head, _) => &mut model.head,
            (Moved::Statistics, _) => &mut model.statistics,
            (Moved::Trunk, _) => &mut model.trunk,
            (Moved::Numbers, Subject::Merge(state) | Subject::EverythingAndMerge(Change { merge: state, .. })) => {
                &mut state.merge_weights
            }
            (Moved::Source, Subject::Merge(state) | Subject::EverythingAndMerge(Change { merge: state, .. })) => {
                &mut state.trunks[1]
            }
            _ => panic!("no merge"),
        };
        let copy = tensor.copy();
        let mut old = std::mem::replace(tensor, copy);
        old.view_mut().fill(f64::NAN);
        left.push(old);
    }
}

fn place(gpu: Handle, precision: DType) -> Place {
    Place { device: Device::Gpu(gpu), precision, ..Place::default() }
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn steps_agree_with_the_cpu() {
    for gpu in devices() {
        for what in ALL {
            let (ours, cpu) = (Run::on(place(gpu, DType::F32)).go(what), Run::on(Place::default()).go(what));
            assert_eq!(ours.losses.len(), 12);
            let error = normalized_error(&doubles(&ours.losses), &doubles(&cpu.losses));
            assert!(error < 1e-4, "{what:?} on {gpu}: losses {error:.1e}");
            for (index, (ours, cpu)) in ours.numbers.iter().zip(&cpu.numbers).enumerate() {
                let error = normalized_error(&doubles(ours), &doubles(cpu));
                // AdamW makes a step of the rounding of a gradient that is nearly zero.
                assert!(error < 2e-3, "{what:?} on {gpu}: numbers {index} {error:.1e}");
            }
        }
    }
}

/// Half precision rounds at every layer: what is compared is that it learns the same thing.
#[test]
fn half_precision_stays_near() {
    for gpu in devices() {
        for what in [ALL[0], ALL[1], ALL[3], ALL[5], ALL[8], ALL[10]] {
            let exact = Run::on(Place::default()).go(what);
            for (precision, tolerance) in [(DType::BF16, 0.05), (DType::F16, 0.01)] {
                let ours = Run::on(place(gpu, precision)).go(what);
                let error = normalized_error(&doubles(&ours.losses), &doubles(&exact.losses));
                assert!(error < tolerance, "{what:?} in {precision} on {gpu}: losses {error:.1e}");
                assert!(error > 1e-6, "{what:?} in {precision} on {gpu} was computed in f32");
            }
        }
    }
}

#[test]
fn a_replayed_graph_gives_the_bits_of_launches() {
    for gpu in devices() {
        for precision in [DType::F32, DType::BF16, DType::F16] {
            for what in ALL {
                // Batches of 6 are launched, recorded, and then replayed five times; the one of 4 launched and recorded.
                let recorded = Run { epochs: 2, ..Run::on(place(gpu, precision)) };
                let direct = Run { graphs: false, epochs: 2, ..Run::on(place(gpu, precision)) };
                assert_eq!(recorded.go(what).bits(), direct.go(what).bits(), "{what:?} in {precision} on {gpu}");
            }
        }
        // In graphs all of a step's memory lay where it was planned, else on shelves.
        assert_eq!(gpu.misfits(), 0, "on {gpu}");
    }
}

/// Evaluation too: batches of 6, 6, 6 and 4, twice, and of another network in between, which lies elsewhere.
#[test]
fn evaluation_replays_the_bits_of_launches() {
    let data = Dataset { val: split(22, 5), ..dataset() };
    for (gpu, precision) in devices().into_iter().flat_map(|gpu| [DType::F32, DType::BF16].map(|dtype| (gpu, dtype))) {
        let place = place(gpu, precision);
        let target = Target { data: &data, normalisation: &Normalisation::default(), place };
        let models = [1, 2].map(|seed| model(seed).to_device(place.device));
        let mut launched = Vec::new();
        let mut all = |mut evaluator: Evaluator| {
            let order = [&models[0], &models[0], &models[1], &models[0]];
            order.map(|model| {
                let before = gpu.launches();
                let logits = evaluator.scores(model, target, SplitName::Val, 6, |_| {}).unwrap();
                launched.push(gpu.launches() - before);
                logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            })
        };
        let replayed = all(Evaluator::new(place));
        let direct = all(Evaluator::new(place).without_graphs());
        assert!(replayed == direct && replayed[0] == replayed[3] && replayed[0] != replayed[2], "{precision} on {gpu}");
        assert_eq!(launched[..4], launched[4..], "{precision} on {gpu}: what a replay runs");
        // A whole batch, once: other shapes, and the same but for rounding.
        let whole = scores(&models[0], target, SplitName::Val, 22, |_| {}).unwrap();
        let logits: Vec<f64> = replayed[0].iter().map(|bits| f64::from(f32::from_bits(*bits))).collect();
        let tolerance = if precision == DType::F32 { 1e-5 } else { 1e-2 };
        assert!(normalized_error(&doubles(&whole), &logits) < tolerance, "{precision} on {gpu}");
    }
}

/// Gradients change nothing; applied, they are a step.
#[test]
fn a_step_is_gradients_that_are_applied() {
    let images = f32s(&Numbers(3).reals(6 * 8 * 8));
    let labels = Integers::from_vec((0..6).map(|i| i % CLASSES as u32).collect());
    let batch = Batch::of_activations(Tensor::from_vec(images, [6, 8, 8, 1]), labels);
    let loss = CrossEntropy::default();
    for what in ALL {
        let start = model(1);
        let run = |apart: bool| {
            let (mut model, mut subject) = (start.copy(), what.subject(&start));
            let mut optimizers = subject.optimizers(&what.options(), &start.network);
            let value = if apart {
                let found = gradients(&model, &subject, &loss, &batch, None);
                assert_eq!(numbers(&model, &subject), numbers(&start, &what.subject(&start)), "{what:?}");
                apply(&mut model, &mut subject, &mut optimizers, found, 0.5, None)
            } else {
                step(&mut model, &mut subject, &mut optimizers, &loss, &batch, 0.5, None)
            };
            (value.to_vec::<f32>(), numbers(&model, &subject))
        };
        let (apart, together) = (run(true), run(false));
        assert!(apart == together && apart.1 != numbers(&start, &what.subject(&start)), "{what:?}");
    }
}

/// Without batch norms, which see one batch at a time, an update of several batches is that of one large batch.
#[test]
fn gathered_batches_are_a_large_one() {
    let mut builder = NetworkBuilder::new(1);
    let x = builder.conv2d_with_bias("conv", builder.input(), 4, 3, Conv2d::new(2, 1));
    let x = builder.plain("relu", Operation::Relu, &[x]);
    let x = builder.plain("mean", Operation::GlobalAveragePool, &[x]);
    builder.linear("head", x, CLASSES);
    let start = Model::initialized(builder.finish(), 1);
    let images = split(22, 5);
    let places = devices().into_iter().map(|gpu| place(gpu, DType::F32)).chain([Place::default()]);
    for place in places {
        let run = |batch_size: usize, accumulate: usize| {
            let (network_channels, normalisation) = (1, Normalisation::default());
            let options = LoaderOptions {
                network_channels,
                normalisation,
                batch_size,
                shuffle: true,
                augmentation: None,
                seed: 1,
                balance: None,
                shares: None,
            };
            let batches = Batches::new(Loader::new(&images, 8, 8, 1, options), place);
            let (mut subject, clip_norm) = (Subject::Everything, Some(0.3));
            let options = TrainOptions {
                learning_rate: 0.1,
                clip_norm,
                optimizer: OptimizerKind::Sgd,
                ..TrainOptions::default()
            };
            let optimizers = subject.optimizers(&options, &start.network);
            let mut recorder = Recorder::new(place, optimizers, CrossEntropy::default(), None);
            let mut model = start.copy().to_device(place.device);
            let mut updates = 0;
            for epoch in 0..4 {
                let mut of_epoch = batches.epoch(epoch);
                for batch in 0..batches.loader().batches_per_epoch() {
                    let turn = Turn::of(batch, accumulate, batches.loader(), 1.0);
                    updates += usize::from(turn.is_last);
                    assert!(recorder.step(&mut model, &mut subject, &batches, &mut of_epoch, turn).unwrap());
                }
            }
            recorder.losses().unwrap();
            assert_eq!(updates, 8);
            doubles(&[model.trunk.to_vec::<f32>(), model.head.to_vec()].concat())
        };
        // Batches of 5, 5 and 5, 5, 2, which are shuffled as those of 15 and 7.
        let (gathered, large) = (run(5, 3), run(15, 1));
        let error = normalized_error(&gathered, &large);
        assert!(error < 1e-5, "{error:.1e} on {}", place.device);
        let moved = normalized_error(&large, &doubles(&[start.trunk.to_vec::<f32>(), start.head.to_vec()].concat()));
        assert!(moved > 1e-2, "{moved:.1e} on {}", place.device);
    }
}

/// Everything that steps change.
fn numbers(model: &Model, subject: &Subject) -> Vec<Vec<f32>> {
    let learned = subject.merge_weights().map(|weights| weights.to_vec()).unwrap_or_default();
    let arenas = [&model.trunk, &model.head, &model.statistics].map(|arena| arena.to_vec());
    [vec![learned], arenas.to_vec()].concat()
}

/// A batch that is larger than those before needs a larger arena, into which they move when they come again.
#[test]
fn batches_that_grow_share_one_arena() {
    for gpu in devices() {
        // Batches of 4 and 2, from the seventh step on of 6, 6, 6, 4.
        let grows = |graphs| Run { first_batch_size: 4, graphs, ..Run::on(place(gpu, DType::BF16)) };
        let mut held = Vec::new();
        let recorded = grows(true).go_with(ALL[3], |_| held.push(gpu.held_memory())).0.bits();
        assert!(held[9] < held[8], "the smaller arena stays: {held:?} on {gpu}");
        assert_eq!(recorded, grows(false).go(ALL[3]).bits(), "on {gpu}");
        assert_eq!(gpu.misfits(), 0, "on {gpu}");
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_order_of_threads_and_blocks_changes_nothing() {
    for precision in [DType::F32, DType::F16] {
        for what in ALL {
            let run = |seed| {
                let place = place(Gpu::emulator(seed).unwrap(), precision);
                Run { epochs: 2, ..Run::on(place) }.go(what).bits()
            };
            let first = run(0);
            for seed in 1..3 {
                assert_eq!(run(seed), first, "{what:?} in {precision}, seed {seed}");
            }
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_number_of_cpu_threads_changes_nothing() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Run::on(place(Gpu::emulator(0).unwrap(), DType::F32)).go(ALL[0]).bits())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_steady_state_allocates_nothing() {
    for gpu in devices() {
        for graphs in [true, false] {
            let mut counts = Vec::new();
            let run = Run { graphs, ..Run::on(place(gpu, DType::F32)) };
            run.go_with(ALL[3], |_| counts.push(gpu.allocations()));
            // Both batch sizes have been launched, and recorded, in the first two epochs.
            assert_eq!(counts[8..].iter().collect::<std::collections::BTreeSet<_>>().len(), 1, "{counts:?} on {gpu}");
        }
    }
}

#[test]
fn the_loss_scale_grows_falls_and_ends() {
    for gpu in devices() {
        let (_, recorder) = Run::on(place(gpu, DType::F16)).go_with(ALL[0], |_| {});
        let control = recorder.control().unwrap();
        assert_eq!((control.diverged, control.steps), (0, 12));
        assert!(control.scale <= FIRST_SCALE && control.scale >= 1.0);
        // A step that is skipped is not counted as an update, and halves the scale.
        let skipped = control.steps - control.updates;
        assert_eq!(control.scale, FIRST_SCALE / 2f32.powi(skipped as i32), "{control:?}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_all_updates() {
    for gpu in devices() {
        for precision in [DType::F32, DType::F16] {
            let run = Run { learning_rate: 1e30, epochs: 3, ..Run::on(place(gpu, precision)) };
            let (outcome, recorder) = run.go_with(ALL[1], |_| {});
            let control = recorder.control().unwrap();
            assert_eq!(control.diverged, 1, "{precision} on {gpu}: {control:?}");
            assert_eq!(control.steps, 12, "later steps run, but update nothing");
            assert!(control.updates < 12);
            assert!(outcome.losses.iter().any(|loss| !loss.is_finite()), "{:?}", outcome.losses);
            // The statistics of such a batch included.
            assert!(outcome.numbers.iter().flatten().all(|number| number.is_finite()), "{precision} on {gpu}");
        }
    }
}

/// `merge` on any device gives the bytes that `learn` folded on another.
#[test]
fn a_blend_has_the_bits_of_the_cpu() {
    for gpu in devices() {
        for (sources, granularity, constraint) in [
            (2, Granularity::Filter, Constraint::Affine),
            (3, Granularity::Kernel, Constraint::Simplex),
            (8, Granularity::Filter, Constraint::Free),
            (5, Granularity::Layer, Constraint::Free),
            (2, Granularity::Model, Constraint::Affine),
        ] {
            for batch_norm in [BatchNormPolicy::Merge, BatchNormPolicy::Anchor] {
                let trunks: Vec<Tensor> = (0..sources as u64).map(|seed| model(seed).trunk).collect();
                let method = Method { sources, anchor: 1, granularity, constraint, batch_norm };
                let plan = Plan::new(&small_network(), method).unwrap();
                let shape = [plan.parametrization.rows(), plan.parametrization.learned];
                let numbers = Numbers(9).reals(shape[0] * shape[1]).iter().map(|&v| v as f32).collect();
                let numbers = Tensor::from_vec(numbers, shape);
                let bits = |trunk: Tensor| trunk.to_vec::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let ours = place(gpu, DType::F32).blend(&plan, &trunks, &numbers).unwrap();
                assert!(bits(ours) == bits(plan.blend(&trunks, &numbers)), "{method:?} on {gpu}");
            }
        }
    }
}

/// With an α per filter or per kernel, batch norms merged or not, every α's weights lie in one block.
#[test]
fn a_merge_is_one_launch_each_way() {
    for gpu in devices() {
        let device = Device::Gpu(gpu);
        // The last: of dα, from dW and from products alike.
        for (granularity, batch_norm, backward) in [
            (Granularity::Filter, BatchNormPolicy::Merge, 1),
            (Granularity::Filter, BatchNormPolicy::Anchor, 1),
            (Granularity::Kernel, BatchNormPolicy::Merge, 1),
            (Granularity::Layer, BatchNormPolicy::Merge, 2),
        ] {
            let method = Method { sources: 3, anchor: 0, granularity, constraint: Constraint::Free, batch_norm };
            let plan = Plan::new(&small_network(), method).unwrap();
            let trunks: Vec<Tensor> = (0..3).map(|seed| model(seed).trunk.to_device(device)).collect();
            let trunks: Vec<&Tensor> = trunks.iter().collect();
            let alpha = Tensor::zeros([3, plan.table.alphas()], DType::F32, device);
            let mut blend = Tensor::uninit([plan.table.arena_len()], DType::F32, device);
            let mut dalpha = Tensor::uninit(alpha.shape(), DType::F32, device);
            let before = gpu.launches();
            medmerge::ops::merge::blend(&plan.table, &trunks, &alpha, blend.view_mut());
            assert_eq!(gpu.launches() - before, 1, "{method:?}");
            medmerge::ops::merge::alpha_gradient(&plan.table, &trunks, &blend, dalpha.view_mut());
            assert_eq!(gpu.launches() - before, 1 + backward, "{method:?}");
            if !plan.table.takes_products() {
                assert_eq!(granularity, Granularity::Kernel);
                continue;
            }
            // A part of each layer's, in the order of the filters.
            let (mut terms, mut len) = (Vec::new(), 0);
            for segment in plan.table.segments().iter().filter(|s| s.offset < plan.table.filters_len()) {
                terms.push(Term { offset: segment.offset, filters: segment.rows, at: len, parts: 1 });
                len += 3 * segment.rows;
            }
            let sums = Tensor::zeros([len], DType::F32, device);
            let rest = Tensor::zeros([plan.table.arena_len() - plan.table.filters_len()], DType::F32, device);
            let products = FilterProducts { sums: &sums, terms: &terms, rest: &rest };
            let before = gpu.launches();
            alpha_gradient_of_products(&plan.table, &trunks, &products, dalpha.view_mut());
            assert_eq!(gpu.launches() - before, backward, "{method:?}");
        }
    }
}

/// A recorded step would go on with what is no longer there.
#[test]
fn what_has_moved_is_recorded_again() {
    for gpu in devices() {
        let moves = [
            (ALL[0], Moved::Head),
            (ALL[0], Moved::Statistics),
            (ALL[0], Moved::Trunk),
            (ALL[3], Moved::Numbers),
            (ALL[3], Moved::Source),
            (ALL[10], Moved::Trunk),
            (ALL[10], Moved::Numbers),
            (ALL[10], Moved::Source),
        ];
        for (what, moved) in moves {
            let run = Run { epochs: 4, ..Run::on(place(gpu, DType::F32)) };
            let expected = run.go(what).bits();
            assert_eq!(Run { moves: Some(moved), ..run }.go(what).bits(), expected, "{what:?}, {moved:?} on {gpu}");
        }
    }
}

#[test]
fn losses_are_read_by_step_in_a_run_that_continues() {
    for gpu in devices() {
        let fresh = Run::on(place(gpu, DType::F32));
        let steps = LOSSES as u32 - 2;
        let control = Values { power1: 1.0, power2: 1.0, factor: 1.0, scale: 1.0, steps, ..Values::default() };
        let later = Run { control: Some(control), ..Run::on(place(gpu, DType::F32)) };
        assert_eq!(later.go(ALL[0]).bits(), fresh.go(ALL[0]).bits(), "on {gpu}");
    }
}

#[test]
fn a_scale_that_is_too_large_falls() {
    for gpu in devices() {
        let scale = 16_777_216.0;
        let control = Values { power1: 1.0, power2: 1.0, factor: 1.0, scale, ..Values::default() };
        let run = Run { control: Some(control), ..Run::on(place(gpu, DType::F16)) };
        let (outcome, recorder) = run.go_with(ALL[0], |_| {});
        let control = recorder.control().unwrap();
        let skipped = control.steps - control.updates;
        assert!(skipped > 0 && control.updates > 0, "{control:?} on {gpu}");
        assert_eq!(control.scale, scale / 2f32.powi(skipped as i32), "on {gpu}");
        assert!(outcome.losses.iter().chain(outcome.numbers.iter().flatten()).all(|number| number.is_finite()));
    }
}

#[test]
fn the_norm_is_that_of_all_that_learns() {
    for gpu in devices() {
        let norm = |what| {
            let still = Run { learning_rate: 0.0, epochs: 1, ..Run::on(place(gpu, DType::F32)) };
            still.go_with(what, |_| {}).1.control().unwrap().norm
        };
        // Steps of length zero: the head's gradient is the same.
        assert!(norm(ALL[0]) > norm(ALL[2]), "on {gpu}");
    }
}

#[test]
fn steps_of_shares_agree_with_the_cpu() {
    for gpu in devices() {
        for (form, what) in [(Form::Softmax, ALL[0]), (Form::Sigmoid, ALL[0]), (Form::Sigmoid, ALL[5])] {
            let of = |place| Run { form: Some(form), ..Run::on(place) };
            let (ours, cpu) = (of(place(gpu, DType::F32)).go(what), of(Place::default()).go(what));
            let error = normalized_error(&doubles(&ours.losses), &doubles(&cpu.losses));
            assert!(error < 1e-4, "{form:?}, {what:?} on {gpu}: losses {error:.1e}");
            for (index, (ours, cpu)) in ours.numbers.iter().zip(&cpu.numbers).enumerate() {
                let error = normalized_error(&doubles(ours), &doubles(cpu));
                assert!(error < 2e-3, "{form:?}, {what:?} on {gpu}: numbers {index} {error:.1e}");
            }
            // A recorded step reads the shares of its own batch.
            let launched = Run { graphs: false, ..of(place(gpu, DType::F32)) }.go(what);
            assert!(launched.bits() == ours.bits(), "{form:?}, {what:?} on {gpu}");
        }
    }
}

#[test]
fn merge_weights_are_clamped() {
    for gpu in devices() {
        let outcome = Run { learning_rate: 0.5, ..Run::on(place(gpu, DType::F32)) }.go(ALL[5]);
        let numbers = &outcome.numbers[0];
        assert!(numbers.iter().all(|number| (0.0..=1.0).contains(number)), "on {gpu}");
        assert!(numbers.contains(&0.0) && numbers.contains(&1.0), "on {gpu}: nothing was clamped");
    }
}

/// A data set for the whole loop.
pub fn dataset() -> Dataset {
    Dataset {
        path: "generated".into(),
        height: 8,
        width: 8,
        channels: 1,
        classes: CLASSES,
        class_names: None,
        task: Default::default(),
        drawn: None,
        train: split(22, 5),
        val: split(9, 6),
        test: split(9, 7),
    }
}

pub fn small_network() -> Arc<Network> {
    Architecture::named("resnet8", None, Some(4)).unwrap().build(1, CLASSES)
}
