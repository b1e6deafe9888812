//! From layers to nodes. Each layer becomes the operator that computes the same, and has its name; a bias that alone reads a
//! convolution becomes the convolution's, and dropout, which does nothing in inference, no node.
//!
//! Activations are N×C×H×W in ONNX. How high and wide they are is known where the images' size is; only adaptive pooling
//! needs to know.

use std::collections::BTreeSet;

use super::initialiser::{Initialiser, Numbers};
use super::proto::{self, Attribute};
use crate::data::Normalisation;
use crate::error::{Error, Result};
use crate::nn::{EPSILON, Layer, Network, Node, Operation};
use crate::ops::conv2d::{Conv2d, output_size};
use crate::ops::pool::{Adaptive, Pool};

pub const IMAGES: &str = "images";
pub const LOGITS: &str = "logits";

pub struct Graph<'a> {
    network: &'a Network,
    /// The images as the first layer sees them, then each layer's output.
    values: Vec<Value>,
    pub nodes: Vec<proto::Node>,
    pub initialisers: Vec<Initialiser>,
    /// Names of nodes and values.
    taken: BTreeSet<String>,
}

#[derive(Clone)]
struct Value {
    name: String,
    pixels: Pixels,
}

/// How many pixels a value has, down and across.
#[derive(Clone, Copy, PartialEq)]
enum Pixels {
    Known([usize; 2]),
    /// As many as the images of the day lead to.
    Open,
    /// None: it is N×C.
    None,
}

impl<'a> Graph<'a> {
    /// The graph of a whole network. Of images whose size is `None` it takes any; with a normalisation they are numbers from
    /// 0 to 255.
    pub fn of(
        network: &'a Network,
        image_size: Option<[usize; 2]>,
        normalisation: Option<&Normalisation>,
    ) -> Result<Graph<'a>> {
        let taken = [IMAGES, LOGITS].map(String::from).into();
        let mut graph = Graph { network, values: Vec::new(), nodes: Vec::new(), initialisers: Vec::new(), taken };
        let name = match normalisation {
            Some(normalisation) => graph.normalised(normalisation),
            None => IMAGES.into(),
        };
        graph.values.push(Value { name, pixels: image_size.map_or(Pixels::Open, Pixels::Known) });
        for index in 0..network.layers.len() {
            let value = graph.layer(index)?;
            graph.values.push(value);
        }
        graph.end()?;
        Ok(graph)
    }

    /// (x / 255 − mean) / std, rounded where the program rounds when it reads bytes.
    fn normalised(&mut self, normalisation: &Normalisation) -> String {
        let channels = self.network.input_channels;
        let (mean, std) = (0..channels).map(|channel| normalisation.of_channel(channel)).unzip();
        let mut x = String::from(IMAGES);
        for (what, operator, dims, values) in [
            ("scale", "Div", Vec::new(), vec![255.0]),
            ("mean", "Sub", vec![1, channels, 1, 1], mean),
            ("std", "Div", vec![1, channels, 1, 1], std),
        ] {
            let constant = self.constant(&format!("normalise.{what}.value"), dims, Numbers::Floats(values));
            x = self.node(&format!("normalise.{what}"), operator, [x, constant], Vec::new());
        }
        x
    }

    fn layer(&mut self, index: usize) -> Result<Value> {
        let network = self.network;
        let layer = &network.layers[index];
        let inputs: Vec<Value> = layer.inputs.iter().map(|&node| self.value(node).clone()).collect();
        let (x, all) = (inputs[0].clone(), inputs.into_iter().map(|input| input.name));
        let node = |graph: &mut Self, operator: &str, inputs: Vec<String>, attributes: Vec<Attribute>| Value {
            name: graph.node(&layer.name, operator, inputs, attributes),
            pixels: x.pixels,
        };
        Ok(match &layer.operation {
            Operation::Conv2d { conv, weight } => self.convolution(index, &x, *conv, *weight)?,
            Operation::Bias { .. } if self.is_folded(layer) => x,
            Operation::Bias { bias } => {
                let channels = network.parameters[*bias].shape.len();
                let dims = if x.pixels == Pixels::None { vec![channels] } else { vec![channels, 1, 1] };
                let bias = self.constant(&network.parameters[*bias].name, dims, Numbers::Parameter(*bias));
                node(self, "Add", vec![x.name, bias], Vec::new())
            }
            Operation::BatchNorm { index } => {
                let constants = self.batch_norm(*index);
                let epsilon = Attribute::float("epsilon", EPSILON as f32);
                node(self, "BatchNormalization", [vec![x.name], constants].concat(), vec![epsilon])
            }
            Operation::Relu => node(self, "Relu", all.collect(), Vec::new()),
            Operation::Add => node(self, "Add", all.collect(), Vec::new()),
            Operation::Concat => node(self, "Concat", all.collect(), vec![Attribute::int("axis", 1)]),
            Operation::MaxPool(pool) => self.pool(layer, &x, "MaxPool", *pool)?,
            Operation::AveragePool(pool) => self.pool(layer, &x, "AveragePool", *pool)?,
            Operation::AdaptiveAveragePool(to) => self.adaptive_pool(layer, &x, *to)?,
            Operation::GlobalAveragePool => self.global_pool(layer, x),
            Operation::PadChannels([before, behind]) => {
                let pads = [0, *before, 0, 0, 0, *behind, 0, 0].map(|count| count as i64).to_vec();
                let pads = self.constant(&format!("{}.pads", layer.name), vec![8], Numbers::Integers(pads));
                node(self, "Pad", vec![x.name, pads], Vec::new())
            }
            Operation::Dropout { .. } => x,
            Operation::Linear { weight, bias } => {
                let [weight, bias] = [weight, bias].map(|&index| self.parameter(index));
                node(self, "Gemm", vec![x.name, weight, bias], vec![Attribute::int("transB", 1)])
            }
        })
    }

    fn convolution(&mut self, index: usize, x: &Value, conv: Conv2d, weight: usize) -> Result<Value> {
        let network = self.network;
        let layer = &network.layers[index];
        let [_, r, s, _] = network.parameters[weight].shape.four();
        let pixels = windowed(x.pixels, [r, s], conv.stride, conv.padding, conv.dilation)?;
        let mut inputs = vec![x.name.clone(), self.parameter(weight)];
        if let Some(bias) = bias_behind(network, index) {
            inputs.push(self.parameter(bias));
        }
        let mut attributes = window_attributes([r, s], conv.stride, conv.padding);
        attributes.push(Attribute::ints("dilations", conv.dilation));
        attributes.push(Attribute::int("group", conv.groups as i64));
        Ok(Value { name: self.node(&layer.name, "Conv", inputs, attributes), pixels })
    }

    /// Whether a bias became that of the convolution before it.
    fn is_folded(&self, bias: &Layer) -> bool {
        bias.inputs[0].layer().is_some_and(|index| bias_behind(self.network, index).is_some())
    }

    /// The constants of a batch norm, in the operator's order.
    fn batch_norm(&mut self, index: usize) -> Vec<String> {
        let network = self.network;
        let norm = &network.batch_norms[index];
        let mut constants = vec![self.parameter(norm.gamma), self.parameter(norm.beta)];
        for (suffix, numbers) in [("running_mean", Numbers::Mean(index)), ("running_var", Numbers::Variance(index))] {
            constants.push(self.constant(&format!("{}.{suffix}", norm.name), vec![norm.channels], numbers));
        }
        constants
    }

    fn pool(&mut self, layer: &Layer, x: &Value, operator: &str, pool: Pool) -> Result<Value> {
        let pixels = windowed(x.pixels, pool.window, pool.stride, pool.padding, [1, 1])?;
        let mut attributes = window_attributes(pool.window, pool.stride, pool.padding);
        if operator == "AveragePool" {
            attributes.push(Attribute::int("count_include_pad", i64::from(pool.count_padding)));
        }
        Ok(Value { name: self.node(&layer.name, operator, [x.name.clone()], attributes), pixels })
    }

    /// Equal windows side by side are a pooling. Others, which overlap or repeat pixels, are two products with matrices of
    /// means: over rows, and over columns.
    fn adaptive_pool(&mut self, layer: &Layer, x: &Value, to: [usize; 2]) -> Result<Value> {
        let from = match x.pixels {
            Pixels::Known(from) if from == to => return Ok(x.clone()),
            _ if to == [1, 1] => {
                let name = self.node(&layer.name, "GlobalAveragePool", [x.name.clone()], Vec::new());
                return Ok(Value { name, pixels: Pixels::Known(to) });
            }
            Pixels::Known(from) => from,
            _ => {
                let message = format!("{} pools to {}×{} pixels, and of how many is open", layer.name, to[0], to[1]);
                return Err(Error::usage(message, "give the size of the images, such as --image-size 224"));
            }
        };
        if (0..2).all(|axis| from[axis].is_multiple_of(to[axis])) {
            let window = [from[0] / to[0], from[1] / to[1]];
            let pool = Pool { window, stride: window, padding: [0, 0], count_padding: true };
            return self.pool(layer, x, "AveragePool", pool);
        }
        let mut name = x.name.clone();
        if from[0] != to[0] {
            let dims = vec![to[0], from[0]];
            let means = self.constant(&format!("{}.rows", layer.name), dims, Numbers::Floats(means(from[0], to[0])));
            name = self.node(&format!("{}.over_rows", layer.name), "MatMul", [means, name], Vec::new());
        }
        if from[1] != to[1] {
            let (dims, means) = (vec![from[1], to[1]], transposed(&means(from[1], to[1]), from[1]));
            let means = self.constant(&format!("{}.columns", layer.name), dims, Numbers::Floats(means));
            name = self.node(&format!("{}.over_columns", layer.name), "MatMul", [name, means], Vec::new());
        }
        Ok(Value { name, pixels: Pixels::Known(to) })
    }

    /// The mean of a single pixel is this one.
    fn global_pool(&mut self, layer: &Layer, x: Value) -> Value {
        let (x, name) = match x.pixels {
            Pixels::Known([1, 1]) => (x.name, layer.name.clone()),
            _ => {
                let mean = self.node(&layer.name, "GlobalAveragePool", [x.name], Vec::new());
                (mean, format!("{}.flatten", layer.name))
            }
        };
        let name = self.node(&name, "Flatten", [x], vec![Attribute::int("axis", 1)]);
        Value { name, pixels: Pixels::None }
    }

    /// Gives the last layer's output the name of the graph's.
    fn end(&mut self) -> Result<()> {
        let last = self.values.last().expect("the images are a value");
        if last.pixels != Pixels::None {
            let name = self.network.layers.last().map_or(IMAGES, |layer| layer.name.as_str());
            let hint = "only networks that end with one row of logits per image can be exported";
            return Err(Error::usage(format!("the last layer, {name}, makes an image and no row of logits"), hint));
        }
        let name = last.name.clone();
        for node in &mut self.nodes {
            for value in node.input.iter_mut().chain(&mut node.output).filter(|value| **value == name) {
                *value = LOGITS.into();
            }
        }
        Ok(())
    }

    fn value(&self, node: Node) -> &Value {
        &self.values[node.layer().map_or(0, |index| index + 1)]
    }

    /// A parameter in the shape that operators want: what files have as a matrix may be a convolution's.
    fn parameter(&mut self, index: usize) -> String {
        let parameter = &self.network.parameters[index];
        let dims = match *parameter.shape.dims() {
            [k, r, s, c] => vec![k, c, r, s],
            ref dims => dims.to_vec(),
        };
        self.constant(&parameter.name, dims, Numbers::Parameter(index))
    }

    /// Adds a constant, or finds the one that is the same.
    fn constant(&mut self, name: &str, dims: Vec<usize>, numbers: Numbers) -> String {
        let known = self.initialisers.iter().find(|other| other.dims == dims && other.numbers == numbers);
        if let Some(known) = known {
            return known.name.clone();
        }
        let name = self.unique(name);
        self.initialisers.push(Initialiser { name: name.clone(), dims, numbers });
        name
    }

    /// Adds a node, whose only output has its name.
    fn node(
        &mut self,
        name: &str,
        operator: &str,
        inputs: impl IntoIterator<Item = String>,
        attribute: Vec<Attribute>,
    ) -> String {
        let name = self.unique(name);
        self.nodes.push(proto::Node {
            input: inputs.into_iter().collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: operator.into(),
            attribute,
        });
        name
    }

    /// The name, or where it is taken the first of `name_2`, `name_3` … that is not.
    fn unique(&mut self, name: &str) -> String {
        let others = (2..).map(|number| format!("{name}_{number}"));
        let mut names = [name.to_string()].into_iter().chain(others);
        let free = names.find(|name| !self.taken.contains(name)).expect("there is no last number");
        self.taken.insert(free.clone());
        free
    }
}

/// The bias that alone reads the convolution of that index.
fn bias_behind(network: &Network, index: usize) -> Option<usize> {
    if !matches!(network.layers[index].operation, Operation::Conv2d { .. }) {
        return None;
    }
    let reads = |layer: &&Layer| layer.inputs.iter().any(|input| input.layer() == Some(index));
    let mut readers = network.layers.iter().filter(reads);
    match (readers.next()?.operation.clone(), readers.next()) {
        (Operation::Bias { bias }, None) => Some(bias),
        _ => None,
    }
}

fn window_attributes(window: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Vec<Attribute> {
    // Before both axes, then behind both.
    let pads = [padding, padding].concat();
    vec![Attribute::ints("kernel_shape", window), Attribute::ints("strides", stride), Attribute::ints("pads", pads)]
}

/// What a sliding window leaves of so many pixels.
fn windowed(
    pixels: Pixels,
    window: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
) -> Result<Pixels> {
    let Pixels::Known(from) = pixels else { return Ok(pixels) };
    let size = |axis: usize| output_size(from[axis], window[axis], stride[axis], padding[axis], dilation[axis]);
    match (size(0), size(1)) {
        (Some(height), Some(width)) => Ok(Pixels::Known([height, width])),
        _ => Err(Error::usage("the images are too small for the network", "give a larger --image-size")),
    }
}

/// The matrix, outputs × inputs, of adaptive average pooling along an axis.
fn means(inputs: usize, outputs: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; outputs * inputs];
    for (output, row) in matrix.chunks_mut(inputs).enumerate() {
        let window = Adaptive::window(output, inputs, outputs);
        let share = 1.0 / window.len() as f32;
        row[window].fill(share);
    }
    matrix
}

fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}
