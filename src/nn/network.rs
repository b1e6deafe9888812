//! The graph: layers, the layout of what they own, and how it runs.
//!
//! Layers are what files, merging and reports know by name; what runs are *stages*, each of one or several layers
//! ([`fuse`]).
//!
//! Parameters lie in two arenas with rows padded to 16 bytes: the *trunk*, which sources share and merging is about, and
//! the *head*, the classifier, which is always new. In the trunk all filters come first, and behind them γ and β: what
//! convolutions read as activations are stored, and what stays f32, are one piece each. Running statistics lie in a
//! third. Names are PyTorch's.

use std::rc::Rc;
use std::sync::Arc;

use super::fuse::{self, Stage};
use crate::ops::batch_norm::{Handoff, Source, Then, Tiles, reciprocal_deviation};
use crate::ops::conv2d::{Conv2d, Geometry, output_size};
use crate::ops::pool::Pool;
use crate::tape::{Tape, Var};
use crate::tensor::{Shape, Tensor};

/// Floats to a multiple of which rows are padded: 16 bytes.
const ROW: usize = 4;

/// Added to the variance of a batch norm, as in PyTorch.
pub const EPSILON: f64 = 1e-5;

/// A value in the graph: the input, or a layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub(super) usize);

impl Node {
    pub(super) fn of_layer(index: usize) -> Node {
        Node(index + 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// No bias: a batch norm follows.
    Conv2d {
        conv: Conv2d,
        weight: usize,
    },
    BatchNorm {
        index: usize,
    },
    Relu,
    Add,
    MaxPool(Pool),
    AveragePool(Pool),
    GlobalAveragePool,
    Concat,
    Linear {
        weight: usize,
        bias: usize,
    },
}

#[derive(Clone, Debug)]
pub struct Layer {
    pub name: String,
    pub operation: Operation,
    pub inputs: Vec<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    Trunk,
    Head,
}

/// What a parameter is, which decides its order in files and how it is initialised and merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Filters, K×R×S×C here and K×C×R×S in PyTorch.
    Filters,
    /// The weight of a linear layer.
    Matrix,
    Bias,
    /// γ of the batch norm with this index.
    Gamma(usize),
    /// β of the batch norm with this index.
    Beta(usize),
}

/// Where a named parameter lies in its arena.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    pub kind: Kind,
    pub region: Region,
    pub shape: Shape,
    pub offset: usize,
    pub pitch: usize,
}

/// A batch norm's channels and where its running statistics lie.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    pub name: String,
    pub channels: usize,
    pub gamma: usize,
    pub beta: usize,
    /// Offsets of the running mean and variance in the arena of statistics.
    pub mean: usize,
    pub variance: usize,
    /// The parameter (filters) whose outputs it normalises, where that is a convolution.
    pub fed_by: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct Network {
    pub layers: Vec<Layer>,
    pub parameters: Vec<Parameter>,
    pub batch_norms: Vec<BatchNorm>,
    pub input_channels: usize,
    pub classes: usize,
    pub trunk_len: usize,
    /// Of the trunk, what holds filters.
    pub filters_len: usize,
    pub head_len: usize,
    pub statistics_len: usize,
    pub stages: Vec<Stage>,
    /// For each node, the stage after which nobody reads it.
    last_use: Vec<usize>,
}

/// Which statistics batch norms normalise by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The batch's own.
    Training,
    /// The running ones.
    Inference,
}

pub struct Output {
    /// N × classes.
    pub logits: Var,
    /// Means and unbiased variances of the batch, laid out as the running ones; in training mode.
    pub statistics: Option<Tensor>,
}

impl Network {
    /// Runs the graph on `x` (NHWC). `trunk` and `head` are the arenas of parameters, `statistics` the running ones. On a
    /// GPU `x` may be in half precision, which the activations then are too, and the filters for as long as this runs.
    pub fn forward(
        &self,
        tape: &mut Tape,
        trunk: &Var,
        head: &Var,
        statistics: &Tensor,
        x: Tensor,
        mode: Mode,
    ) -> Output {
        let mut nodes: Vec<Option<Var>> = vec![None; self.layers.len() + 1];
        let dtype = x.dtype();
        nodes[0] = Some(Var::constant(x));
        // What neighbours among the stages leave for each other, by the node between them.
        let mut tiles: Vec<Option<Tiles>> = vec![None; nodes.len()];
        let mut handoffs: Vec<Option<Rc<Handoff>>> = vec![None; nodes.len()];
        let mut of_batch = (mode == Mode::Training).then(|| self.uninit_statistics(statistics));
        // Of all layers in one launch. What stands where the means are has no meaning, and nobody reads it.
        let rstd = (mode == Mode::Inference).then(|| {
            let mut rstd = Tensor::uninit(statistics.shape(), statistics.dtype(), statistics.device());
            reciprocal_deviation(statistics, EPSILON, rstd.view_mut());
            rstd
        });
        let trunk = &trunk.with_filters_in(dtype, self.filters_len);
        for (index_of_stage, stage) in self.stages.iter().enumerate() {
            // Taken, not copied, where this is the last use: then ops may write over it, and it is freed early.
            let take = |(i, &Node(node)): (usize, &Node)| {
                let is_last = self.last_use[node] == index_of_stage && !stage.inputs[i + 1..].contains(&Node(node));
                if is_last { nodes[node].take() } else { nodes[node].clone() }.expect("an input that has run")
            };
            let inputs: Vec<Var> = stage.inputs.iter().enumerate().map(take).collect();
            let parameter = |index: usize| {
                let Parameter { region, shape, offset, pitch, .. } = self.parameters[index];
                let arena = if region == Region::Trunk { trunk } else { head };
                (arena, offset, shape, pitch)
            };
            let window = |tape: &mut Tape, index: usize| {
                let (arena, offset, shape, pitch) = parameter(index);
                tape.window(arena, offset, shape, pitch)
            };
            let mut inputs = inputs.into_iter();
            let mut input = || inputs.next().expect("an op has its inputs");
            let (Node(first), Node(output)) = (stage.inputs[0], stage.output);
            let y = match *self.operation(stage) {
                Operation::Conv2d { conv, weight } => {
                    let weight = window(tape, weight);
                    let leaves_statistics = stage.leaves_statistics && mode == Mode::Training;
                    let before = handoffs[first].take();
                    let (y, of_tiles) = tape.conv2d_beside_norms(conv, &input(), &weight, leaves_statistics, before);
                    tiles[output] = of_tiles;
                    y
                }
                Operation::BatchNorm { index } => {
                    let norm = &self.batch_norms[index];
                    let (gamma, beta) = (window(tape, norm.gamma), window(tape, norm.beta));
                    let is_last = self.last_use[first] == index_of_stage;
                    let of_tiles = if is_last { tiles[first].take() } else { tiles[first].clone() };
                    let source = match (&mut of_batch, &rstd) {
                        (Some(of_batch), _) => {
                            // Means lie before variances, so that a cut between the two gives both.
                            let (means, variances) = of_batch.view_mut().split_at(norm.variance);
                            let mean = means.window(norm.mean, [norm.channels], 1);
                            let running = Some([mean, variances.window(0, [norm.channels], 1)]);
                            Source::Batch { epsilon: EPSILON, tiles: of_tiles, running }
                        }
                        (None, rstd) => {
                            let rstd = rstd.as_ref().expect("made for inference");
                            let [mean, rstd] = [(statistics, norm.mean), (rstd, norm.variance)]
                                .map(|(arena, offset)| arena.window(offset, [norm.channels], 1));
                            Source::Given { mean, rstd }
                        }
                    };
                    let x = input();
                    let handoff = stage.meets_dgrad.then(Rc::default);
                    handoffs[output] = handoff.clone();
                    let then = Then { residual: stage.residual.then(input), relu: stage.relu, handoff };
                    tape.batch_norm(&x, &gamma, &beta, source, then)
                }
                Operation::Relu => tape.relu(input()),
                Operation::Add => tape.add(input(), input()),
                Operation::MaxPool(pool) => tape.max_pool(pool, &input()),
                Operation::AveragePool(pool) => tape.average_pool(pool, &input()),
                Operation::GlobalAveragePool => tape.global_average_pool(&input()),
                Operation::Concat => tape.concat(&inputs.collect::<Vec<_>>()),
                Operation::Linear { weight, bias } => {
                    let (weight, bias) = (window(tape, weight), window(tape, bias));
                    tape.linear(&input(), &weight, &bias)
                }
            };
            nodes[output] = Some(y);
        }
        let logits = nodes.pop().flatten().expect("the last layer's output");
        Output { logits, statistics: of_batch }
    }

    /// For the statistics of a batch, laid out as the running ones; padding is zero as it is there.
    fn uninit_statistics(&self, like: &Tensor) -> Tensor {
        let numbers: usize = self.batch_norms.iter().map(|norm| 2 * norm.channels).sum();
        let make = if numbers < self.statistics_len { Tensor::zeros } else { Tensor::uninit };
        make(like.shape(), like.dtype(), like.device())
    }

    /// The same network with layers joined into stages where that is possible, or each layer on its own.
    pub fn planned(&self, is_fused: bool) -> Network {
        let stages = fuse::stages(&self.layers, is_fused);
        let last_use = fuse::last_uses(&stages, self.layers.len() + 1);
        Network { stages, last_use, ..self.clone() }
    }

    /// What a stage does.
    pub fn operation(&self, stage: &Stage) -> &Operation {
        &self.layers[stage.layers[0]].operation
    }

    /// The names of a stage's layers.
    pub fn names(&self, stage: &Stage) -> Vec<&str> {
        stage.layers.iter().map(|&layer| self.layers[layer].name.as_str()).collect()
    }

    /// The last stage that reads a node; `usize::MAX` if none does.
    pub(super) fn last_use(&self, Node(node): Node) -> usize {
        self.last_use[node]
    }

    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// Parameters of one region, in the order of their layers.
    pub fn region(&self, region: Region) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(move |parameter| parameter.region == region)
    }

    /// How many numbers are trained, padding left out.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.shape.len()).sum()
    }

    /// Whether images of this size pass through all layers.
    pub fn accepts(&self, height: usize, width: usize) -> bool {
        self.sizes(height, width).is_some()
    }

    /// The fewest numbers per channel and image that a batch norm sees; `None` if the images are too small.
    pub fn pixels_of_smallest_norm(&self, height: usize, width: usize) -> Option<usize> {
        let sizes = self.sizes(height, width)?;
        let norms = self.layers.iter().filter(|layer| matches!(layer.operation, Operation::BatchNorm { .. }));
        norms.map(|norm| sizes[norm.inputs[0].0].iter().product()).min()
    }

    /// Numbers that each stage makes of one image; `None` if the images are too small. What comes behind global pooling
    /// does not count.
    pub fn activations(&self, height: usize, width: usize) -> Option<Vec<usize>> {
        let sizes = self.sizes(height, width)?;
        let mut channels = vec![self.input_channels];
        for layer in &self.layers {
            let of_input = |&Node(node): &Node| channels[node];
            channels.push(match &layer.operation {
                Operation::Conv2d { weight, .. } => self.parameters[*weight].shape.dims()[0],
                Operation::Concat => layer.inputs.iter().map(of_input).sum(),
                Operation::GlobalAveragePool | Operation::Linear { .. } => 0,
                _ => of_input(&layer.inputs[0]),
            });
        }
        let of_stage = |stage: &Stage| {
            let Node(output) = stage.output;
            sizes[output].iter().product::<usize>() * channels[output]
        };
        Some(self.stages.iter().map(of_stage).collect())
    }

    /// Each convolution on a batch of images of shape N×H×W×C, in the order they run: its name and its sizes. `None` if the
    /// images are too small.
    pub fn convolutions(&self, images: Shape) -> Option<Vec<(&str, Geometry)>> {
        let [n, h, w, _] = images.four();
        let sizes = self.sizes(h, w)?;
        let of = |layer: &'_ Layer| {
            let Operation::Conv2d { conv, weight } = layer.operation else { return None };
            let Parameter { shape, pitch, .. } = self.parameters[weight];
            let [.., group_channels] = shape.four();
            let [h, w] = sizes[layer.inputs[0].0];
            Some(Geometry::new(conv, [n, h, w, group_channels * conv.groups].into(), shape, pitch))
        };
        Some(self.layers.iter().filter_map(|layer| Some((layer.name.as_str(), of(layer)?))).collect())
    }

    /// Height and width of every node, but for those behind global pooling; `None` if the input is too small.
    fn sizes(&self, height: usize, width: usize) -> Option<Vec<[usize; 2]>> {
        let mut sizes = vec![[height, width]];
        for layer in &self.layers {
            let input = sizes[layer.inputs[0].0];
            let (window, stride, padding, dilation) = match &layer.operation {
                Operation::Conv2d { conv, weight } => {
                    let [_, r, s, _] = self.parameters[*weight].shape.four();
                    ([r, s], conv.stride, conv.padding, conv.dilation)
                }
                Operation::MaxPool(pool) | Operation::AveragePool(pool) => {
                    (pool.window, pool.stride, pool.padding, [1, 1])
                }
                _ => {
                    sizes.push(input);
                    continue;
                }
            };
            let size =
                |axis: usize| output_size(input[axis], window[axis], stride[axis], padding[axis], dilation[axis]);
            sizes.push([size(0)?, size(1)?]);
        }
        Some(sizes)
    }
}

/// Adds layers one by one, and lays out what they own.
pub struct NetworkBuilder {
    network: Network,
    channels: Vec<usize>,
}

impl NetworkBuilder {
    pub fn new(input_channels: usize) -> NetworkBuilder {
        let network = Network {
            layers: Vec::new(),
            parameters: Vec::new(),
            batch_norms: Vec::new(),
            input_channels,
            classes: 0,
            trunk_len: 0,
            filters_len: 0,
            head_len: 0,
            statistics_len: 0,
            stages: Vec::new(),
            last_use: Vec::new(),
        };
        NetworkBuilder { network, channels: vec![input_channels] }
    }

    pub fn input(&self) -> Node {
        Node(0)
    }

    /// Channels of a node.
    pub fn channels(&self, node: Node) -> usize {
        self.channels[node.0]
    }

    pub fn conv2d(&mut self, name: &str, input: Node, filters: usize, window: usize, conv: Conv2d) -> Node {
        let shape = [filters, window, window, self.channels(input) / conv.groups];
        let weight = self.parameter(format!("{name}.weight"), Kind::Filters, Region::Trunk, shape.into());
        self.layer(name, Operation::Conv2d { conv, weight }, vec![input], filters)
    }

    pub fn batch_norm(&mut self, name: &str, input: Node) -> Node {
        let (channels, index) = (self.channels(input), self.network.batch_norms.len());
        let shape = Shape::from([channels]);
        let gamma = self.parameter(format!("{name}.weight"), Kind::Gamma(index), Region::Trunk, shape);
        let beta = self.parameter(format!("{name}.bias"), Kind::Beta(index), Region::Trunk, shape);
        let fed_by = match self.network.layers.get(input.0.wrapping_sub(1)).map(|layer| &layer.operation) {
            Some(Operation::Conv2d { weight, .. }) => Some(*weight),
            _ => None,
        };
        let mean = self.network.statistics_len;
        let variance = mean + channels.next_multiple_of(ROW);
        self.network.statistics_len = variance + channels.next_multiple_of(ROW);
        let name_owned = name.to_string();
        self.network.batch_norms.push(BatchNorm { name: name_owned, channels, gamma, beta, mean, variance, fed_by });
        self.layer(name, Operation::BatchNorm { index }, vec![input], channels)
    }

    pub fn linear(&mut self, name: &str, input: Node, outputs: usize) -> Node {
        let shape = [outputs, self.channels(input)];
        let weight = self.parameter(format!("{name}.weight"), Kind::Matrix, Region::Head, shape.into());
        let bias = self.parameter(format!("{name}.bias"), Kind::Bias, Region::Head, [outputs].into());
        self.layer(name, Operation::Linear { weight, bias }, vec![input], outputs)
    }

    /// A layer that owns nothing.
    pub fn plain(&mut self, name: &str, operation: Operation, inputs: &[Node]) -> Node {
        let channels = match operation {
            Operation::Concat => inputs.iter().map(|&input| self.channels(input)).sum(),
            _ => self.channels(inputs[0]),
        };
        self.layer(name, operation, inputs.to_vec(), channels)
    }

    pub fn finish(mut self) -> Arc<Network> {
        let network = &mut self.network;
        for parameter in network.parameters.iter_mut().filter(|parameter| parameter.region == Region::Trunk) {
            if parameter.kind != Kind::Filters {
                parameter.offset += network.filters_len;
            }
        }
        network.trunk_len += network.filters_len;
        network.classes = *self.channels.last().expect("the input at least");
        Arc::new(network.planned(true))
    }

    fn layer(&mut self, name: &str, operation: Operation, inputs: Vec<Node>, channels: usize) -> Node {
        self.network.layers.push(Layer { name: name.to_string(), operation, inputs });
        self.channels.push(channels);
        Node::of_layer(self.network.layers.len() - 1)
    }

    fn parameter(&mut self, name: String, kind: Kind, region: Region, shape: Shape) -> usize {
        // What lies behind the filters is moved there when their number is known.
        let end = match (region, kind) {
            (Region::Trunk, Kind::Filters) => &mut self.network.filters_len,
            (Region::Trunk, _) => &mut self.network.trunk_len,
            (Region::Head, _) => &mut self.network.head_len,
        };
        // A vector is one row.
        let (pitch, len) = match shape.rank() {
            1 => (1, shape.len().next_multiple_of(ROW)),
            _ => (shape.row_len().next_multiple_of(ROW), shape.rows() * shape.row_len().next_multiple_of(ROW)),
        };
        let offset = *end;
        *end += len;
        self.network.parameters.push(Parameter { name, kind, region, shape, offset, pitch });
        self.network.parameters.len() - 1
    }
}
