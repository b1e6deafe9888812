//! medmerge itself: steps as its own training runs them, convolutions and merges by its ops.
//!
//! Its order is NHWC and KRSC, that of `numbers` NCHW and KCRS: inputs are permuted before anything is timed, and checks
//! are means, which know no order.

use std::sync::Arc;

use medmerge::bench::shapes;
use medmerge::checkpoint::to_our_order;
use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan, Start};
use medmerge::nn::{Model, Network, Region, Role, Stem};
use medmerge::ops::conv2d::{Conv2d, Geometry, dgrad, fprop, wgrad};
use medmerge::ops::simd::Isa;
use medmerge::ops::merge::{alpha_gradient, blend};
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tape::Tape;
use medmerge::tensor::{DType, Device, Integers, Tensor};
use medmerge::train::{Batch, MergeState, OptimizerKind, Subject, TrainOptions, step};

use crate::numbers::{labels, mean_abs, seed, uniform};
use crate::works::{self, Conv, Filters, LEARN_SOURCES, Pass, Peer, Work, sgd};

pub struct Ours;

impl Peer for Ours {
    fn isa(&self) -> Option<String> {
        Some(Isa::chosen().to_string())
    }

    fn step(&self, step: &works::Step) -> Option<Box<dyn Work>> {
        Some(Box::new(TrainingStep::new(step, network(step, seed::STEP), Subject::Everything)))
    }

    fn conv(&self, conv: &Conv, pass: Pass) -> Option<Box<dyn Work>> {
        Some(Box::new(Convolution::new(conv, pass)))
    }

    fn merge(&self, sources: usize, layers: &[Filters]) -> Option<Box<dyn Work>> {
        Some(Box::new(Blend::new(sources, layers)))
    }

    fn merge_backward(&self, sources: usize, layers: &[Filters]) -> Option<Box<dyn Work>> {
        Some(Box::new(AlphaGradient::new(sources, layers)))
    }

    fn learn_step(&self, step: &works::Step) -> Option<Box<dyn Work>> {
        Some(Box::new(TrainingStep::new(step, network(step, seed::STEP), Subject::Merge(merge_state(step)))))
    }

    fn infer(&self, step: &works::Step) -> Option<Box<dyn Work>> {
        let x = channels_last(seed::X, [step.n, 3, step.px, step.px]);
        Some(Box::new(Inference { model: network(step, seed::STEP), x, logits: None }))
    }

    fn learn_merge(&self, step: &works::Step) -> Option<Box<dyn Work>> {
        let state = merge_state(step);
        let dw = uniform(seed::DY, state.plan.table.arena_len(), 1.0);
        Some(Box::new(LearnMerge { dw: Tensor::from_vec(dw, [state.plan.table.arena_len()]), state, result: None }))
    }
}

/// A random tensor of `dims` in PyTorch's order, its second dimension moved to the end.
fn channels_last(seed: u32, [n, c, h, w]: [usize; 4]) -> Tensor {
    let values = uniform(seed, n * c * h * w, 1.0);
    let index = |n: usize, pixel: usize, channel: usize| (n * c + channel) * h * w + pixel;
    let indices = (0..n).flat_map(|n| (0..h * w).flat_map(move |pixel| (0..c).map(move |c| index(n, pixel, c))));
    Tensor::from_vec(indices.map(|i| values[i]).collect(), [n, h, w, c])
}

fn mean_abs_of(tensor: &Tensor) -> f64 {
    mean_abs(&tensor.to_vec())
}

fn empty(dims: &[usize]) -> Tensor {
    Tensor::zeros(dims, DType::F32, Device::Cpu)
}

struct Convolution {
    conv: Conv2d,
    pass: Pass,
    is_stem: bool,
    x: Tensor,
    w: Tensor,
    dy: Tensor,
    y: Tensor,
    dx: Tensor,
    dw: Tensor,
}

impl Convolution {
    fn new(conv: &Conv, pass: Pass) -> Self {
        let (x, w) = ([conv.n, conv.c, conv.h, conv.w], [conv.k, conv.c, conv.r, conv.s]);
        let (x, w) = (channels_last(seed::X, x), channels_last(seed::W, w));
        let layer = Conv2d::new(conv.stride, conv.pad);
        let shape = Geometry::new(layer, x.shape(), w.shape(), w.pitch()).y();
        let dy = if pass == Pass::All {
            Tensor::from_vec(vec![1f32; shape.len()], shape)
        } else {
            channels_last(seed::DY, [conv.n, conv.k, conv.p(), conv.q()])
        };
        let (y, dx, dw) = (empty(shape.dims()), empty(x.dims()), empty(w.dims()));
        Self { conv: layer, pass, is_stem: conv.is_stem(), x, w, dy, y, dx, dw }
    }

    fn makes(&self, pass: Pass) -> bool {
        self.pass == pass || (self.pass == Pass::All && !(pass == Pass::Dgrad && self.is_stem))
    }
}

impl Work for Convolution {
    fn run(&mut self) {
        if self.makes(Pass::Fprop) {
            fprop(self.conv, &self.x, &self.w, self.y.view_mut());
        }
        if self.makes(Pass::Dgrad) {
            dgrad(self.conv, &self.dy, &self.w, self.dx.view_mut());
        }
        if self.makes(Pass::Wgrad) {
            wgrad(self.conv, &self.x, &self.dy, self.dw.view_mut());
        }
    }

    fn check(&mut self) -> Vec<f64> {
        let y = self.makes(Pass::Fprop).then_some(&self.y);
        let dx = self.makes(Pass::Dgrad).then_some(&self.dx);
        let dw = self.makes(Pass::Wgrad).then_some(&self.dw);
        [y, dx, dw].into_iter().flatten().map(mean_abs_of).collect()
    }
}

/// Weights from stream `first` on, one stream for each layer.
fn network(step: &works::Step, first: u32) -> Model {
    let stem = if step.is_small() { Stem::Small } else { Stem::Large };
    let network = shapes::network(&step.network, stem, step.classes).expect("a known name");
    let mut model = Model::zeros(network.clone(), DType::F32, Device::Cpu);
    let mut streams = first..;
    for parameter in &network.parameters {
        let fan_in = parameter.shape.row_len() as f32;
        let mut random =
            |bound: f32| uniform(streams.next().expect("streams do not end"), parameter.shape.len(), bound);
        let values = match (parameter.role, parameter.region) {
            (Role::Filters, Region::Trunk) => random((6.0 / fan_in).sqrt()),
            (Role::Filters, Region::Head) => random((1.0 / fan_in).sqrt()),
            (Role::Scale, _) => vec![1.0; parameter.shape.len()],
            _ => continue,
        };
        model.set_parameter(parameter, &to_our_order(parameter, &values));
    }
    for (index, norm) in network.batch_norms.iter().enumerate() {
        model.set_running(index, &vec![0f32; norm.channels], &vec![1f32; norm.channels]);
    }
    model
}

fn per_filter(sources: usize, constraint: Constraint) -> Method {
    let (granularity, batch_norm) = (Granularity::Filter, BatchNormPolicy::Merge);
    Method { sources, anchor: 0, granularity, constraint, batch_norm }
}

/// Two networks to merge, the first of them the one that the training step starts from.
fn merge_state(step: &works::Step) -> MergeState {
    let models: Vec<Model> = (0..LEARN_SOURCES as u32).map(|m| network(step, (m + 1) * seed::STEP)).collect();
    let plan = Plan::new(&models[0].network, per_filter(LEARN_SOURCES, Constraint::Affine));
    let plan = plan.expect("filters feed every parameter of these networks");
    let merge_weights = plan.start(Start::Weight(works::START)).expect("a start that affine weights may have");
    let trunks = models.into_iter().map(|model| model.trunk).collect();
    MergeState::new(plan, trunks, merge_weights)
}

struct TrainingStep {
    run: Box<dyn FnMut() -> f32>,
    losses: Vec<f64>,
}

impl TrainingStep {
    fn new(shape: &works::Step, mut model: Model, mut subject: Subject) -> Self {
        let options = TrainOptions {
            optimizer: OptimizerKind::Sgd, // with sgd::MOMENTUM
            learning_rate: sgd::LEARNING_RATE,
            merge_learning_rate: sgd::LEARNING_RATE,
            weight_decay: sgd::WEIGHT_DECAY,
            ..TrainOptions::default()
        };
        let mut optimizers = subject.optimizers(&options, &model.network);
        let loss = CrossEntropy::default();
        let x = channels_last(seed::X, [shape.n, 3, shape.px, shape.px]);
        let labels = labels(shape.n, shape.classes).into_iter().map(|label| label as u32).collect();
        let batch = Batch::of_activations(x, Integers::from_vec(labels));
        let run = move || step(&mut model, &mut subject, &mut optimizers, &loss, &batch, 1.0, None).data::<f32>()[0];
        Self { run: Box::new(run), losses: vec![] }
    }
}

impl Work for TrainingStep {
    fn run(&mut self) {
        self.losses.push(f64::from((self.run)()));
    }

    fn check(&mut self) -> Vec<f64> {
        self.losses[..2].to_vec()
    }
}

struct Inference {
    model: Model,
    x: Tensor,
    logits: Option<Tensor>,
}

impl Work for Inference {
    fn run(&mut self) {
        self.logits = Some(self.model.logits(self.x.clone()));
    }

    fn check(&mut self) -> Vec<f64> {
        self.logits.iter().map(mean_abs_of).collect()
    }
}

/// The part of a learning step that makes the blend and takes its gradient back to what is learned.
struct LearnMerge {
    state: MergeState,
    dw: Tensor,
    result: Option<Tensor>,
}

impl Work for LearnMerge {
    fn run(&mut self) {
        let MergeState { plan, trunks, merge_weights, .. } = &self.state;
        let mut tape = Tape::new();
        let merge_weights = tape.leaf(merge_weights.clone());
        let alpha = tape.constrain(&plan.parametrization, &merge_weights);
        let trunk = tape.merge(&plan.table, trunks, &alpha);
        // Stands for the network: something whose gradient with respect to the blend is dw.
        let id = trunk.id();
        let dw = self.dw.clone();
        let loss = tape.record(Tensor::scalar(0f32), &[id], || {
            Box::new(move |_, gradients| gradients.give(id.expect("α are learned"), dw))
        });
        drop(trunk);
        self.result = tape.backward(loss).take(&merge_weights);
    }

    fn check(&mut self) -> Vec<f64> {
        self.result.iter().map(mean_abs_of).collect()
    }
}

/// ResNet-50 without a head, the table that merges it by filter, and its sources.
struct Merge {
    network: Arc<Network>,
    plan: Plan,
    sources: Vec<Tensor>,
}

impl Merge {
    fn new(sources: usize, layers: &[Filters]) -> Self {
        let network = shapes::network("resnet50", Stem::Large, 1).expect("a known name");
        let shapes = layers.iter().map(|layer| [layer.k, layer.r, layer.s, layer.c]);
        assert!(network.region(Region::Trunk).step_by(3).map(|filters| filters.shape.four()).eq(shapes));
        let plan = Plan::new(&network, per_filter(sources, Constraint::Free)).expect("a ResNet");
        let sources = (1..=sources as u32).map(|number| trunk(&network, number)).collect();
        Self { network, plan, sources }
    }

    fn sources(&self) -> Vec<&Tensor> {
        self.sources.iter().collect()
    }
}

/// Filters, γ and β of each layer from three streams.
fn trunk(network: &Arc<Network>, number: u32) -> Tensor {
    let mut model = Model::zeros(network.clone(), DType::F32, Device::Cpu);
    for (stream, parameter) in (seed::SOURCE * number..).zip(network.region(Region::Trunk)) {
        let values = uniform(stream, parameter.shape.len(), 1.0);
        model.set_parameter(parameter, &to_our_order(parameter, &values));
    }
    model.trunk
}

struct Blend {
    merge: Merge,
    alpha: Tensor,
    blend: Tensor,
}

impl Blend {
    fn new(sources: usize, layers: &[Filters]) -> Self {
        let merge = Merge::new(sources, layers);
        let alphas = merge.plan.table.alphas();
        let alpha = (0..sources as u32).flat_map(|m| uniform(seed::ALPHA + m, alphas, 1.0)).collect();
        let blend = empty(&[merge.plan.table.arena_len()]);
        Self { merge, alpha: Tensor::from_vec(alpha, [sources, alphas]), blend }
    }
}

impl Work for Blend {
    fn run(&mut self) {
        blend(&self.merge.plan.table, &self.merge.sources(), &self.alpha, self.blend.view_mut());
    }

    fn check(&mut self) -> Vec<f64> {
        let window = |p: &medmerge::nn::Parameter| self.blend.window(p.offset, p.shape, p.pitch).to_vec::<f32>();
        vec![mean_abs(&self.merge.network.region(Region::Trunk).flat_map(window).collect::<Vec<f32>>())]
    }
}

struct AlphaGradient {
    merge: Merge,
    dw: Tensor,
    dalpha: Tensor,
}

impl AlphaGradient {
    fn new(sources: usize, layers: &[Filters]) -> Self {
        let merge = Merge::new(sources, layers);
        let dw = trunk(&merge.network, seed::GRADIENT);
        let dalpha = empty(&[sources, merge.plan.table.alphas()]);
        Self { merge, dw, dalpha }
    }
}

impl Work for AlphaGradient {
    fn run(&mut self) {
        alpha_gradient(&self.merge.plan.table, &self.merge.sources(), &self.dw, self.dalpha.view_mut());
    }

    fn check(&mut self) -> Vec<f64> {
        vec![mean_abs_of(&self.dalpha)]
    }
}
