//! How the graph runs: stage by stage, on the tape.

use std::rc::Rc;

use super::concatenations::Place;
use super::fuse::Stage;
use super::graph::{BatchNorm, Network, Node, Operation, Parameter, Region};
use crate::ops::batch_norm::{Finish, Handoff, PerChannel, Residual, Source, Then, Tiles, reciprocal_deviation};
use crate::ops::conv2d::{Conv2d, Neighbours, without_zeros};
use crate::ops::dropout::{Dropout, Key};
use crate::ops::pointwise::Pull;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Device, Shape, Tensor};

/// Added to the variance of a batch norm, as in PyTorch.
pub const EPSILON: f64 = 1e-5;

/// Which statistics batch norms normalise by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The batch's own.
    Training,
    /// The running ones.
    Inference,
}

/// What training may do besides.
#[derive(Clone, Copy, Default)]
pub struct Extras<'a> {
    /// The key of the batch, by which dropout draws; without one nothing is dropped.
    pub key: Option<&'a Key>,
    /// What [`Network::features`] are pulled to.
    pub pull: Option<Pull<'a>>,
}

pub struct Output {
    /// N × classes.
    pub logits: Var,
    /// Means and unbiased variances of the batch, laid out as the running ones; in training mode.
    pub statistics: Option<Tensor>,
}

/// A convolution that its batch norm makes the output of.
struct Waiting {
    conv: Conv2d,
    x: Tensor,
    weight: Tensor,
}

/// A network in the middle of a forward pass.
struct Run<'a> {
    network: &'a Network,
    trunk: Var,
    head: &'a Var,
    statistics: &'a Tensor,
    /// Reciprocal deviations where the running variances lie, in inference.
    rstd: Option<Tensor>,
    /// In training.
    of_batch: Option<Tensor>,
    /// Outputs that somebody still reads: one tensor, the parts of a concatenation that nobody writes, or none of a convolution that waits.
    nodes: Vec<Option<Vec<Var>>>,
    /// Places of parts that have not been made, for each such concatenation whose first part has been asked for.
    places: Vec<Vec<Option<Tensor>>>,
    /// Shape of the images, and how activations are stored.
    images: Shape,
    stored: (DType, Device),
    /// Statistics that a convolution left for the batch norm behind it, by the node between them.
    tiles: Vec<Option<Tiles>>,
    /// The key of the batch, where numbers are dropped.
    key: Option<&'a Key>,
    /// Convolutions that wait for the batch norm behind them, by the node between them.
    waiting: Vec<Option<Waiting>>,
    /// Places where the convolution behind a batch norm leaves the sums of its backward, by the node between them.
    handoffs: Vec<Option<Rc<Handoff>>>,
}

impl Network {
    /// Runs the graph on `x` (NHWC). `trunk` and `head` are the arenas of parameters, `statistics` the running ones. On a
    /// GPU `x` may be in half precision, which the activations then are too, and the filters for as long as this runs.
    /// Nothing is dropped.
    pub fn forward(
        &self,
        tape: &mut Tape,
        trunk: &Var,
        head: &Var,
        statistics: &Tensor,
        x: Tensor,
        mode: Mode,
    ) -> Output {
        self.forward_with(tape, [trunk, head], statistics, x, mode, Extras::default())
    }

    /// [`Network::forward`] with the arenas of trunk and head, and with more.
    pub fn forward_with(
        &self,
        tape: &mut Tape,
        [trunk, head]: [&Var; 2],
        statistics: &Tensor,
        x: Tensor,
        mode: Mode,
        extras: Extras,
    ) -> Output {
        let mut run = self.run([trunk, head], statistics, x, mode, extras.key);
        let features = extras.pull.and_then(|_| self.features_node());
        for index in 0..self.stages.len() {
            run.stage(tape, index);
            let output = self.stages[index].output;
            if let Some(pull) = extras.pull.as_ref().filter(|_| features == Some(output)) {
                let value = run.nodes[output.0].take().expect("made just now");
                run.nodes[output.0] = Some(vec![tape.pull(single(value), pull)]);
            }
        }
        let logits = single(run.nodes.pop().flatten().expect("the last layer's output"));
        Output { logits, statistics: run.of_batch }
    }

    /// What the classifier reads, before any dropout, in inference; `None` of a network that has no features, since it is a single layer.
    pub fn features(
        &self,
        tape: &mut Tape,
        [trunk, head]: [&Var; 2],
        statistics: &Tensor,
        x: Tensor,
    ) -> Option<Tensor> {
        let node = self.features_node()?;
        let mut run = self.run([trunk, head], statistics, x, Mode::Inference, None);
        for index in 0..self.stages.len() {
            run.stage(tape, index);
            if self.stages[index].output == node {
                break;
            }
        }
        run.nodes[node.0].take().map(|value| single(value).into_value())
    }

    /// The node of [`Network::features`].
    fn features_node(&self) -> Option<Node> {
        let made = |node: Node| self.stages.iter().find(|stage| stage.output == node);
        let stage = made(*self.stages.last()?.inputs.first()?)?;
        match self.operation(stage) {
            Operation::Dropout { .. } => made(stage.inputs[0]).map(|stage| stage.output),
            _ => Some(stage.output),
        }
    }

    /// A run before its first stage.
    fn run<'a>(
        &'a self,
        [trunk, head]: [&'a Var; 2],
        statistics: &'a Tensor,
        x: Tensor,
        mode: Mode,
        key: Option<&'a Key>,
    ) -> Run<'a> {
        // The rstd of all layers in one launch. What stands where the means are has no meaning, and nobody reads it.
        let rstd = (mode == Mode::Inference).then(|| {
            let mut rstd = Tensor::uninit(statistics.shape(), statistics.dtype(), statistics.device());
            reciprocal_deviation(statistics, EPSILON, rstd.view_mut());
            rstd
        });
        let count = self.layers.len() + 1;
        let mut run = Run {
            network: self,
            trunk: trunk.with_prefix_in(x.dtype(), self.filters_len),
            head,
            statistics,
            rstd,
            of_batch: (mode == Mode::Training).then(|| self.uninit_statistics(statistics)),
            nodes: vec![None; count],
            places: vec![Vec::new(); self.wholes.len()],
            images: x.shape(),
            stored: (x.dtype(), x.device()),
            tiles: vec![None; count],
            key: key.filter(|_| mode == Mode::Training),
            handoffs: vec![None; count],
            waiting: (0..count).map(|_| None).collect(),
        };
        // Convolutions alone read images that have channels of zeros behind them.
        let mut readers = self.stages.iter().filter(|stage| stage.inputs.contains(&Node(0)));
        let are_read = x.shape().channels() == self.input_channels
            || readers.all(|stage| matches!(self.operation(stage), Operation::Conv2d { .. }));
        let x = if are_read { x } else { without_zeros(&x, self.input_channels) };
        run.nodes[0] = Some(vec![Var::constant(x)]);
        run
    }

    /// Inference in which `look` sees the value of every node as it is made, before others may write over it; of a network whose
    /// layers run each on its own ([`Network::planned`]).
    pub fn watch(
        &self,
        tape: &mut Tape,
        [trunk, head]: [&Var; 2],
        statistics: &Tensor,
        x: Tensor,
        look: &mut dyn FnMut(Node, &Tensor),
    ) {
        let mut run = self.run([trunk, head], statistics, x, Mode::Inference, None);
        for index in 0..self.stages.len() {
            run.stage(tape, index);
            let node = self.stages[index].output;
            if let Some([value]) = run.nodes[node.0].as_deref() {
                look(node, value.value());
            }
        }
    }

    /// For the statistics of a batch, laid out as the running ones; padding is zero as it is there.
    fn uninit_statistics(&self, like: &Tensor) -> Tensor {
        let numbers: usize = self.batch_norms.iter().map(|norm| 2 * norm.channels).sum();
        let make = if numbers < self.statistics_len { Tensor::zeros } else { Tensor::uninit };
        make(like.shape(), like.dtype(), like.device())
    }
}

impl Run<'_> {
    fn stage(&mut self, tape: &mut Tape, index: usize) {
        let stage = &self.network.stages[index];
        let mut inputs = self.inputs(index).into_iter();
        if stage.is_unwritten {
            self.nodes[stage.output.0] = Some(inputs.flatten().collect());
            return;
        }
        if let Some(place) = stage.place {
            tape.place_next(self.place(place));
        }
        let mut input = || single(inputs.next().expect("an op has its inputs"));
        let y = match *self.network.operation(stage) {
            Operation::Conv2d { conv, weight } => {
                let (Node(first), Node(output)) = (stage.inputs[0], stage.output);
                let x = input();
                // Those of the head are stored in f32.
                let weight = self.parameter(tape, weight).read_as(x.value().dtype());
                if stage.is_normalized && self.is_for_inference_alone(&x) {
                    let [x, weight] = [x, weight].map(Var::into_value);
                    self.waiting[output] = Some(Waiting { conv, x, weight });
                    self.nodes[output] = Some(Vec::new());
                    return;
                }
                let around = Neighbours {
                    leaves_statistics: stage.leaves_statistics && self.of_batch.is_some(),
                    before: self.handoffs[first].take(),
                    bias: stage.bias(&self.network.layers).map(|bias| (self.parameter(tape, bias), stage.relu)),
                };
                let (y, tiles) = tape.conv2d_among(conv, &x, &weight, around);
                self.tiles[output] = tiles;
                y
            }
            Operation::BatchNorm { index: norm } => self.batch_norm(tape, index, norm, inputs),
            Operation::Bias { bias } => {
                let (x, bias) = (input(), self.parameter(tape, bias));
                tape.bias(&x, &bias, stage.residual.then(input), stage.relu)
            }
            Operation::Relu => tape.relu(input()),
            Operation::Add => tape.add(input(), input()),
            Operation::MaxPool(pool) => tape.max_pool(pool, &input()),
            Operation::AveragePool(pool) => tape.average_pool(pool, &input()),
            Operation::AdaptiveAveragePool(size) => tape.adaptive_average_pool(size, input()),
            Operation::GlobalAveragePool => tape.global_average_pool(&input()),
            Operation::Concat => tape.concat(&inputs.map(single).collect::<Vec<_>>()),
            Operation::PadChannels(sides) => tape.pad_channels(sides, &input()),
            Operation::Dropout { percent } => match self.key {
                Some(key) => {
                    tape.dropout(Dropout::new(f32::from(percent) / 100.0, stage.layers[0] as u32), key, &input())
                }
                None => input(),
            },
            Operation::Linear { weight, bias } => {
                let x = input();
                // Filters of the trunk may be stored in half precision, which is a convolution's matter.
                let weight = self.parameter(tape, weight).read_as(x.value().dtype());
                let bias = self.parameter(tape, bias);
                tape.linear(&x, &weight, &bias)
            }
        };
        self.nodes[stage.output.0] = Some(vec![y]);
    }

    /// Whether, on the CPU, nothing is learned from what is made of `x`.
    fn is_for_inference_alone(&self, x: &Var) -> bool {
        let is_learned = [x, &self.trunk].into_iter().any(|var| var.id().is_some());
        self.rstd.is_some() && !is_learned && self.stored.1 == Device::Cpu
    }

    /// Where a part of a concatenation lies that nobody writes.
    fn place(&mut self, Place { whole, part }: Place) -> Tensor {
        let Run { network, images, stored: (dtype, device), .. } = *self;
        let places = &mut self.places[whole];
        if places.is_empty() {
            let [n, h, w, _] = images.four();
            let (sizes, channels) = (network.sizes(h, w).expect("images that pass through"), network.channels());
            let shape = |&Node(node): &Node| Shape::from([n, sizes[node][0], sizes[node][1], channels[node]]);
            let shapes: Vec<Shape> = network.wholes[whole].iter().map(shape).collect();
            *places = Tensor::parts(&shapes, dtype, device).into_iter().map(Some).collect();
        }
        places[part].take().expect("a part is made once")
    }

    fn batch_norm(
        &mut self,
        tape: &mut Tape,
        index: usize,
        norm: usize,
        mut inputs: impl Iterator<Item = Vec<Var>>,
    ) -> Var {
        let (network, stage) = (self.network, &self.network.stages[index]);
        let x = inputs.next().expect("a batch norm has its input");
        let handoff = stage.meets_dgrad.then(Rc::default);
        self.handoffs[stage.output.0] = handoff.clone();
        let mut residual = stage.residual.then(|| single(inputs.next().expect("a stage has its residual")));
        let mut of_residual = None;
        if let (Some(second), Some(x)) = (stage.norm_of_residual, &mut residual) {
            let second = &network.batch_norms[second];
            let (gamma, beta) = (self.parameter(tape, second.gamma), self.parameter(tape, second.beta));
            let source = self.source(index, second, stage.inputs[1]);
            let norm;
            (*x, norm) = tape.batch_norm_unwritten(x, &gamma, &beta, source);
            of_residual = Some(norm);
        }
        let norm = &network.batch_norms[norm];
        let (gamma, beta) = (self.parameter(tape, norm.gamma), self.parameter(tape, norm.beta));
        let waiting = self.waiting[stage.inputs[0].0].take();
        let source = self.source(index, norm, stage.inputs[0]);
        if let (Some(Waiting { conv, x, weight }), Source::Given { mean, rstd }) = (waiting, &source) {
            let by = PerChannel { mean, rstd, gamma: gamma.value(), beta: beta.value() };
            let residual = residual.as_ref().map(|residual| match &of_residual {
                Some(norm) => Residual::Normalized(residual.value(), norm.by()),
                None => Residual::Of(residual.value()),
            });
            let then = Finish { residual, relu: stage.relu, leaves_signs: false };
            return tape.conv2d_normalized(conv, &x, &weight, by, then);
        }
        let then = Then { residual, of_residual, relu: stage.relu, handoff };
        tape.batch_norm_of_parts(&x, &gamma, &beta, source, then)
    }

    /// What a batch norm of stage `index` normalises by, which reads `input`.
    fn source(&mut self, index: usize, norm: &BatchNorm, Node(input): Node) -> Source<'_> {
        let is_last = self.network.last_use[input] == index;
        let tiles = if is_last { self.tiles[input].take() } else { self.tiles[input].clone() };
        match (&mut self.of_batch, &self.rstd) {
            (Some(of_batch), _) => {
                // Means lie before variances, so that a cut between the two gives both.
                let (means, variances) = of_batch.view_mut().split_at(norm.variance);
                let mean = means.window(norm.mean, [norm.channels], 1);
                let running = Some([mean, variances.window(0, [norm.channels], 1)]);
                Source::Batch { epsilon: EPSILON, tiles, running }
            }
            (None, rstd) => {
                let rstd = rstd.as_ref().expect("made for inference");
                let [mean, rstd] = [(self.statistics, norm.mean), (rstd, norm.variance)]
                    .map(|(arena, offset)| arena.window(offset, [norm.channels], 1));
                Source::Given { mean, rstd }
            }
        }
    }

    /// Inputs of a stage: taken, not copied, at the last use. Then ops may write over them, and they are freed early.
    fn inputs(&mut self, index: usize) -> Vec<Vec<Var>> {
        let Stage { inputs, .. } = &self.network.stages[index];
        let take = |(i, &Node(node)): (usize, &Node)| {
            let is_last = self.network.last_use[node] == index && !inputs[i + 1..].contains(&Node(node));
            let vars = if is_last { self.nodes[node].take() } else { self.nodes[node].clone() };
            vars.expect("an input that has run")
        };
        inputs.iter().enumerate().map(take).collect()
    }

    fn parameter(&self, tape: &mut Tape, index: usize) -> Var {
        let Parameter { region, shape, offset, pitch, .. } = self.network.parameters[index];
        let arena = if region == Region::Trunk { &self.trunk } else { self.head };
        tape.window(arena, offset, shape, pitch)
    }
}

/// The one tensor of a value that is no concatenation.
fn single(value: Vec<Var>) -> Var {
    let [var] = <[Var; 1]>::try_from(value).expect("only batch norms read what nobody wrote");
    var
}
