//! The graph: layers, and the layout of what they own.
//!
//! Layers are what files, merging and reports know by name; what runs are *stages*, each of one or several layers
//! ([`fuse`]).
//!
//! Parameters lie in two arenas with rows padded to 16 bytes: the *trunk*, which sources share and merging is about, and
//! the *head*, the classifier, which is always new. In the trunk all filters come first, and behind them what there is one of
//! per channel: what convolutions read as activations are stored, and what stays f32, are one piece each. Running statistics
//! lie in a third. Names are PyTorch's.

use std::ops::Range;

use super::concatenations;
use super::feeds::Feed;
use super::fuse::{self, Stage};
use crate::ops::conv2d::{Conv2d, Geometry, output_size};
use crate::ops::pool::Pool;
use crate::tensor::Shape;

/// Floats to a multiple of which rows are padded: 16 bytes.
pub(super) const ROW: usize = 4;

/// A value in the graph: the input, or a layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node(pub(super) usize);

impl Node {
    /// The images.
    pub const INPUT: Node = Node(0);

    /// The output of a layer.
    pub fn of_layer(index: usize) -> Node {
        Node(index + 1)
    }

    /// The index of the layer whose output this is; `None` for the images.
    pub fn layer(self) -> Option<usize> {
        self.0.checked_sub(1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    Conv2d {
        conv: Conv2d,
        weight: usize,
    },
    BatchNorm {
        index: usize,
    },
    /// A number added per channel, of pixels: the bias of a convolution.
    Bias {
        bias: usize,
    },
    Relu,
    Add,
    MaxPool(Pool),
    AveragePool(Pool),
    /// To P×Q pixels, whatever the image's size.
    AdaptiveAveragePool([usize; 2]),
    GlobalAveragePool,
    Concat,
    /// Channels of zeros before and behind the others.
    PadChannels([usize; 2]),
    /// In training: drops numbers by chance, in percent.
    Dropout {
        percent: u8,
    },
    /// A linear layer of N×C, one row per image.
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

/// A parameter's part in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Weights with a row for each output channel: K×R×S×C of a convolution, K×C of a linear layer.
    Filters,
    /// Numbers added to the output channels of a convolution or a linear layer.
    Bias,
    /// γ of a batch norm.
    Scale,
    /// β of a batch norm.
    Shift,
}

/// The order of a parameter's dimensions in PyTorch, and so in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// As here.
    Same,
    /// K×C×R×S there, K×R×S×C here.
    ChannelsBeforeWindow,
    /// K×(C·R·S) there, a matrix over the flattened image; K×R×S×C here.
    Matrix,
}

/// The distribution of a parameter's first numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Initial {
    Constant(f32),
    /// Normal with mean 0.
    Normal {
        deviation: f32,
    },
    /// Uniform in ±bound.
    Uniform {
        bound: f32,
    },
}

impl Initial {
    /// Normal with variance 2/(K·R·S), fan out (He et al., 2015), as PyTorch's ResNet has its filters of K×R×S×C.
    pub fn he_fan_out(shape: Shape) -> Initial {
        let [k, r, s, _] = shape.four();
        Initial::Normal { deviation: (2.0 / (k * r * s) as f32).sqrt() }
    }

    /// Normal with variance 2/(R·S·C), fan in, as PyTorch's DenseNet has them.
    pub fn he_fan_in(shape: Shape) -> Initial {
        Initial::Normal { deviation: (2.0 / shape.row_len() as f32).sqrt() }
    }

    /// Uniform in ±1/√C, as PyTorch has the weights and biases of a linear layer of C inputs.
    pub fn of_linear(inputs: usize) -> Initial {
        Initial::Uniform { bound: 1.0 / (inputs as f32).sqrt() }
    }
}

/// A named parameter: its part in the network, and where it lies in its arena.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    pub role: Role,
    pub order: Order,
    pub initial: Initial,
    pub region: Region,
    /// How many stages of the network lie before it: of a ResNet 0 in the stem, 1 in layer1.
    pub depth: usize,
    pub shape: Shape,
    pub offset: usize,
    pub pitch: usize,
    /// The filters of each of its rows, or of each of its numbers if it is a vector, in their order. Filters feed themselves.
    pub feeds: Vec<Feed>,
}

impl Parameter {
    /// Where its numbers lie in their arena, with what pads its rows.
    pub fn range(&self) -> Range<usize> {
        let len = if self.shape.rank() == 1 { self.shape.len() } else { self.shape.rows() * self.pitch };
        self.offset..self.offset + len
    }
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
}

#[derive(Clone, Debug)]
pub struct Network {
    pub layers: Vec<Layer>,
    pub parameters: Vec<Parameter>,
    pub batch_norms: Vec<BatchNorm>,
    pub input_channels: usize,
    pub classes: usize,
    pub trunk_len: usize,
    /// Length of the part of the trunk that holds filters.
    pub filters_len: usize,
    pub head_len: usize,
    pub statistics_len: usize,
    pub stages: Vec<Stage>,
    /// For each node, the stage after which nobody reads it.
    pub(super) last_use: Vec<usize>,
    /// The parts of each concatenation that nobody writes and that is no part of another one.
    pub(super) wholes: Vec<Vec<Node>>,
}

impl Network {
    /// The same network with layers joined into stages where that is possible, or each layer on its own.
    pub fn planned(&self, is_fused: bool) -> Network {
        let mut stages = fuse::stages(&self.layers, is_fused);
        let wholes = match is_fused {
            true => concatenations::leave_unwritten(&self.layers, &mut stages, &self.channels()),
            false => Vec::new(),
        };
        let last_use = fuse::last_uses(&stages, self.layers.len() + 1);
        Network { stages, last_use, wholes, ..self.clone() }
    }

    /// The operation that a stage does.
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

    /// Weight and bias of the last linear layer, which tells the classes apart; `None` if the network ends otherwise.
    pub fn classifier(&self) -> Option<[&Parameter; 2]> {
        match self.layers.last()?.operation {
            Operation::Linear { weight, bias } => Some([weight, bias].map(|index| &self.parameters[index])),
            _ => None,
        }
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
        let (sizes, channels) = (self.sizes(height, width)?, self.channels());
        let of_stage = |stage: &Stage| match (stage.is_unwritten, stage.output) {
            (true, _) => 0,
            (false, Node(output)) => sizes[output].iter().product::<usize>() * channels[output],
        };
        Some(self.stages.iter().map(of_stage).collect())
    }

    /// Channels of every node.
    pub(super) fn channels(&self) -> Vec<usize> {
        let mut channels = vec![self.input_channels];
        for layer in &self.layers {
            let of_input = |&Node(node): &Node| channels[node];
            channels.push(match &layer.operation {
                Operation::Conv2d { weight, .. } | Operation::Linear { weight, .. } => {
                    self.parameters[*weight].shape.rows()
                }
                Operation::Concat => layer.inputs.iter().map(of_input).sum(),
                Operation::PadChannels([before, behind]) => before + of_input(&layer.inputs[0]) + behind,
                _ => of_input(&layer.inputs[0]),
            });
        }
        channels
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

    /// Multiplications and additions of a forward pass over one image, in convolutions and linear layers; `None` if it is too
    /// small.
    pub fn flops(&self, height: usize, width: usize) -> Option<u64> {
        let convolutions = self.convolutions([1, height, width, self.input_channels].into())?;
        let linear = self.layers.iter().map(|layer| match layer.operation {
            Operation::Linear { weight, .. } => 2 * self.parameters[weight].shape.len() as u64,
            _ => 0,
        });
        Some(convolutions.iter().map(|(_, g)| g.flops()).sum::<u64>() + linear.sum::<u64>())
    }

    /// Height and width of every node, none behind global pooling; `None` if the input is too small.
    pub(super) fn sizes(&self, height: usize, width: usize) -> Option<Vec<[usize; 2]>> {
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
                Operation::AdaptiveAveragePool(size) => {
                    sizes.push(*size);
                    continue;
                }
                Operation::GlobalAveragePool => {
                    sizes.push([0, 0]);
                    continue;
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
