//! Networks layer by layer: what each owns is laid out, named, and told what feeds it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::feeds::{self, Feed};
use super::graph::{BatchNorm, Initial, Layer, Network, Node, Operation, Order, Parameter, ROW, Region, Role};
use crate::ops::conv2d::Conv2d;
use crate::tensor::Shape;

/// Adds layers one by one, and lays out what they own.
pub struct NetworkBuilder {
    network: Network,
    /// The distribution of the first filters of a convolution of this shape.
    filters: fn(Shape) -> Initial,
    /// Filters of layers that have others than their family says.
    widths: BTreeMap<String, usize>,
    /// Stages that have begun behind the first.
    depth: usize,
    /// The feeds of each node; shared by those that leave channels where they are.
    feeds: Vec<Rc<Vec<Feed>>>,
}

/// A parameter before it has a place.
struct Owned {
    name: String,
    role: Role,
    initial: Initial,
    region: Region,
    shape: Shape,
    feeds: Vec<Feed>,
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
            wholes: Vec::new(),
        };
        NetworkBuilder {
            network,
            filters: Initial::he_fan_out,
            widths: BTreeMap::new(),
            depth: 0,
            feeds: vec![Rc::new(vec![Feed::of_nobody(input_channels)])],
        }
    }

    /// Gives layers that are added from here on these numbers of filters, by their names.
    pub(super) fn widen(&mut self, filters: BTreeMap<String, usize>) {
        self.widths = filters;
    }

    /// How filters of convolutions begin from here on; [`Initial::he_fan_out`] where nothing else is said.
    pub fn begin_filters_by(&mut self, initial: fn(Shape) -> Initial) {
        self.filters = initial;
    }

    /// Begins the next stage: layers that are added from here on lie deeper. What is trained at other rates by its depth goes by
    /// these.
    pub fn begin_stage(&mut self) {
        self.depth += 1;
    }

    pub fn input(&self) -> Node {
        Node::INPUT
    }

    /// Channels of a node.
    pub fn channels(&self, node: Node) -> usize {
        self.feeds[node.0].iter().map(|feed| feed.channels).sum()
    }

    /// A convolution without a bias, of square windows.
    pub fn conv2d(&mut self, name: &str, input: Node, filters: usize, window: usize, conv: Conv2d) -> Node {
        let filters = self.widths.get(name).copied().unwrap_or(filters);
        let shape = Shape::from([filters, window, window, self.channels(input) / conv.groups]);
        let weight = self.filters(name, shape, (self.filters)(shape), Region::Trunk);
        let feeds = Rc::new(vec![Feed::of_filters(weight, filters)]);
        self.layer(name, Operation::Conv2d { conv, weight }, vec![input], feeds)
    }

    /// A convolution with a bias, which is 0 at first.
    pub fn conv2d_with_bias(&mut self, name: &str, input: Node, filters: usize, window: usize, conv: Conv2d) -> Node {
        let y = self.conv2d(name, input, filters, window, conv);
        self.bias(name, y, Region::Trunk)
    }

    fn bias(&mut self, name: &str, y: Node, region: Region) -> Node {
        let bias = self.per_channel(format!("{name}.bias"), Role::Bias, Initial::Constant(0.0), region, y);
        let feeds = Rc::clone(&self.feeds[y.0]);
        self.layer(&format!("{name}.add_bias"), Operation::Bias { bias }, vec![y], feeds)
    }

    /// A linear layer over all pixels of an image of `window`×`window`, which runs as the convolution that it is: to a single
    /// pixel, with a bias. Files have its weights as a matrix. In the trunk it is merged as other convolutions are.
    pub fn fully_connected(&mut self, name: &str, input: Node, outputs: usize, window: usize, region: Region) -> Node {
        let outputs = self.widths.get(name).copied().unwrap_or(outputs);
        let shape = Shape::from([outputs, window, window, self.channels(input)]);
        // torchvision's VGG has a deviation of 0.01, which at its width is about as much; this one fits narrow networks too.
        let weight = self.filters(name, shape, Initial::he_fan_in(shape), region);
        self.network.parameters[weight].order = Order::Matrix;
        let feeds = Rc::new(vec![Feed::of_filters(weight, outputs)]);
        let y = self.layer(name, Operation::Conv2d { conv: Conv2d::new(1, 0), weight }, vec![input], feeds);
        self.bias(name, y, region)
    }

    pub fn batch_norm(&mut self, name: &str, input: Node) -> Node {
        let (channels, index) = (self.channels(input), self.network.batch_norms.len());
        let [gamma, beta] =
            [("weight", Role::Scale, 1.0), ("bias", Role::Shift, 0.0)].map(|(suffix, role, initial)| {
                self.per_channel(format!("{name}.{suffix}"), role, Initial::Constant(initial), Region::Trunk, input)
            });
        let mean = self.network.statistics_len;
        let variance = mean + channels.next_multiple_of(ROW);
        self.network.statistics_len = variance + channels.next_multiple_of(ROW);
        let name_owned = name.to_string();
        self.network.batch_norms.push(BatchNorm { name: name_owned, channels, gamma, beta, mean, variance });
        let feeds = Rc::clone(&self.feeds[input.0]);
        self.layer(name, Operation::BatchNorm { index }, vec![input], feeds)
    }

    /// The classifier: a linear layer of the head.
    pub fn linear(&mut self, name: &str, input: Node, outputs: usize) -> Node {
        self.linear_in(Region::Head, name, input, outputs)
    }

    /// A linear layer of the trunk, merged as a convolution is. Reads and makes N×C.
    pub fn hidden_linear(&mut self, name: &str, input: Node, outputs: usize) -> Node {
        self.linear_in(Region::Trunk, name, input, outputs)
    }

    fn linear_in(&mut self, region: Region, name: &str, input: Node, outputs: usize) -> Node {
        let inputs = self.channels(input);
        let initial = Initial::of_linear(inputs);
        let weight = self.filters(name, [outputs, inputs].into(), initial, region);
        let feeds = vec![Feed::of_filters(weight, outputs)];
        let bias = self.parameter(Owned {
            name: format!("{name}.bias"),
            role: Role::Bias,
            initial,
            region,
            shape: [outputs].into(),
            feeds: feeds.clone(),
        });
        self.layer(name, Operation::Linear { weight, bias }, vec![input], Rc::new(feeds))
    }

    /// A layer that owns nothing.
    pub fn plain(&mut self, name: &str, operation: Operation, inputs: &[Node]) -> Node {
        let mut of_inputs = inputs.iter().map(|input| &self.feeds[input.0]);
        let feeds = match operation {
            Operation::Concat => Rc::new(of_inputs.flat_map(|feeds| feeds.iter().cloned()).collect()),
            Operation::PadChannels(sides) => {
                let [before, behind] = sides.map(|count| (count > 0).then(|| Feed::of_nobody(count)));
                let within = of_inputs.next().expect("a layer has its input").iter().cloned();
                Rc::new(before.into_iter().chain(within).chain(behind).collect())
            }
            Operation::Add => {
                let first = of_inputs.next().expect("a sum has operands");
                of_inputs.fold(Rc::clone(first), |sum, feeds| Rc::new(feeds::of_sum(&sum, feeds)))
            }
            _ => Rc::clone(&self.feeds[inputs[0].0]),
        };
        self.layer(name, operation, inputs.to_vec(), feeds)
    }

    /// Puts what is f32 behind the filters, and joins layers into stages.
    pub fn finish(mut self) -> Arc<Network> {
        let network = &mut self.network;
        let behind_filters = |p: &&mut Parameter| p.region == Region::Trunk && p.role != Role::Filters;
        for parameter in network.parameters.iter_mut().filter(behind_filters) {
            parameter.offset += network.filters_len;
        }
        network.trunk_len += network.filters_len;
        network.classes = self.feeds.last().into_iter().flat_map(|feeds| feeds.iter()).map(|feed| feed.channels).sum();
        Arc::new(self.network.planned(true))
    }

    fn layer(&mut self, name: &str, operation: Operation, inputs: Vec<Node>, feeds: Rc<Vec<Feed>>) -> Node {
        self.network.layers.push(Layer { name: name.to_string(), operation, inputs });
        self.feeds.push(feeds);
        Node::of_layer(self.network.layers.len() - 1)
    }

    fn filters(&mut self, layer: &str, shape: Shape, initial: Initial, region: Region) -> usize {
        let feeds = vec![Feed::of_filters(self.network.parameters.len(), shape.rows())];
        let name = format!("{layer}.weight");
        self.parameter(Owned { name, role: Role::Filters, initial, region, shape, feeds })
    }

    /// A vector with a number for each channel of a node.
    fn per_channel(&mut self, name: String, role: Role, initial: Initial, region: Region, node: Node) -> usize {
        let shape = [self.channels(node)].into();
        let feeds = self.feeds[node.0].to_vec();
        self.parameter(Owned { name, role, initial, region, shape, feeds })
    }

    fn parameter(&mut self, owned: Owned) -> usize {
        let Owned { name, role, initial, region, shape, feeds } = owned;
        // What lies behind the filters is moved there when their number is known.
        let end = match (region, role) {
            (Region::Trunk, Role::Filters) => &mut self.network.filters_len,
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
        let order = if shape.rank() == 4 { Order::ChannelsBeforeWindow } else { Order::Same };
        let depth = self.depth;
        self.network.parameters.push(Parameter {
            name,
            role,
            order,
            initial,
            region,
            depth,
            shape,
            offset,
            pitch,
            feeds,
        });
        self.network.parameters.len() - 1
    }
}
