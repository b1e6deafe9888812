//! From the layers of a network to the stages that run.
//!
//! A batch norm, a sum and a ReLU do little but read and write activations. Where one follows the other and nobody else
//! reads what lies between, they are one stage, which reads and writes once:
//!
//! | layers | stage | where |
//! |---|---|---|
//! | batch norm, ReLU | relu(x̂·γ + β) | the ReLU alone reads the batch norm |
//! | batch norm, add | x̂·γ + β + residual | the sum alone reads the batch norm, and once |
//! | batch norm, add, ReLU | relu(x̂·γ + β + residual) | the same, and the ReLU alone reads the sum |
//! | batch norm, batch norm, add | x̂·γ + β + x̂₂·γ₂ + β₂ | the sum alone reads each of the two |
//!
//! The bias of a convolution that alone it reads, with the ReLU behind it, is the convolution's epilogue, unless a residual comes
//! between the two; then it is joined like a batch norm, of which it is one with a mean of 0 and a deviation of 1.
//! A sum of two batch norms is one stage too, where the sum alone reads both: the output of neither is written. Everything else stays a stage of its
//! own, but convolutions on tensor cores work for the batch norms around them:
//!
//! | convolution | does | where |
//! |---|---|---|
//! | fprop | leaves the statistics of its output | a batch norm reads it |
//! | fprop | in inference on the CPU, does all that the batch norm's stage does | it alone reads the output |
//! | dgrad | adds to the gradient that is there | another layer reads its input, behind it |
//! | dgrad | cuts by the ReLU and leaves the sums of the batch norm's backward | of those that read a batch norm it is the first |
//!
//! A concatenation that only batch norms read is not written at all ([`concatenations`](super::concatenations)).
//!
//! In f32, where no tensor cores serve, the numbers are the same as layer by layer, bit for bit; in half precision a fused
//! stage rounds once instead of two or three times, and sums are grouped by other tiles.

use super::concatenations::Place;
use super::graph::{Layer, Network, Node, Operation, Parameter, Region};
use crate::ops::conv2d::{Geometry, Operands, Pass, on_tensor_cores};
use crate::tensor::DType;

/// Layers that run as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Indices of the layers, in their order. The first one's operation is what the stage does.
    pub layers: Vec<usize>,
    /// The nodes that the first layer reads; behind them the residual, if there is one.
    pub inputs: Vec<Node>,
    /// The last layer's.
    pub output: Node,
    /// Whether a residual is added to the output of a batch norm, or a bias.
    pub residual: bool,
    /// The batch norm whose output the residual is: what the stage reads is that one's input.
    pub norm_of_residual: Option<usize>,
    /// Whether a ReLU follows it.
    pub relu: bool,
    /// Whether a batch norm wants the statistics of this convolution's output.
    pub leaves_statistics: bool,
    /// Whether a batch norm alone reads this convolution's output: where the statistics are known before, and nobody learns, it does the stage of that
    /// one too.
    pub is_normalized: bool,
    /// Whether the first stage that reads this batch norm, the last one backward, is a convolution, which can do the first pass of its
    /// backward.
    pub meets_dgrad: bool,
    /// Where its output lies as a part of a concatenation that nobody writes.
    pub place: Option<Place>,
    /// Whether it is such a concatenation.
    pub is_unwritten: bool,
}

impl Stage {
    fn alone(index: usize, layer: &Layer) -> Stage {
        let output = Node::of_layer(index);
        let (layers, inputs) = (vec![index], layer.inputs.clone());
        let [residual, relu, leaves_statistics, is_normalized, meets_dgrad, is_unwritten] = [false; 6];
        let (norm_of_residual, place) = (None, None);
        Stage {
            layers,
            inputs,
            output,
            residual,
            norm_of_residual,
            relu,
            leaves_statistics,
            is_normalized,
            meets_dgrad,
            place,
            is_unwritten,
        }
    }

    fn operation<'a>(&self, layers: &'a [Layer]) -> &'a Operation {
        &layers[self.layers[0]].operation
    }

    /// The bias that a convolution adds, as the index of a parameter.
    pub(super) fn bias(&self, layers: &[Layer]) -> Option<usize> {
        match layers[*self.layers.get(1)?].operation {
            Operation::Bias { bias } => Some(bias),
            _ => None,
        }
    }

    /// Whether it normalises what a node holds.
    fn normalises(&self, layers: &[Layer], node: Node) -> bool {
        let is_norm = matches!(self.operation(layers), Operation::BatchNorm { .. });
        is_norm && (self.inputs[0] == node || self.norm_of_residual.is_some() && self.inputs[1] == node)
    }

    fn absorb(&mut self, index: usize) {
        self.layers.push(index);
        self.output = Node::of_layer(index);
    }
}

/// The stages in the order in which they run: each where its last layer stood, when all it reads is there.
pub(super) fn stages(layers: &[Layer], is_fused: bool) -> Vec<Stage> {
    let mut ending_at: Vec<Option<Stage>> = vec![None; layers.len()];
    let mut is_absorbed = vec![false; layers.len()];
    for (index, layer) in layers.iter().enumerate().filter(|_| is_fused) {
        let is_first = matches!(layer.operation, Operation::BatchNorm { .. } | Operation::Bias { .. });
        if !is_first || is_absorbed[index] {
            continue;
        }
        if let Some(stage) = convolution_with_bias(layers, index) {
            stage.layers.iter().for_each(|&layer| is_absorbed[layer] = true);
            let Node(end) = stage.output;
            ending_at[end - 1] = Some(stage);
            continue;
        }
        let mut stage = Stage::alone(index, layer);
        let next = |stage: &Stage| only_reader(layers, stage.output);
        if let Some(add) = next(&stage).filter(|&add| layers[add].operation == Operation::Add && !is_absorbed[add]) {
            stage.residual = true;
            stage.inputs.extend(layers[add].inputs.iter().filter(|&&input| input != stage.output));
            if let Some((norm, at)) = norm_to_add(layers, &stage) {
                stage.layers.push(at);
                stage.inputs[1] = layers[at].inputs[0];
                stage.norm_of_residual = Some(norm);
            }
            stage.absorb(add);
        }
        if let Some(relu) = next(&stage).filter(|&relu| layers[relu].operation == Operation::Relu) {
            stage.relu = true;
            stage.absorb(relu);
        }
        stage.layers.iter().for_each(|&layer| is_absorbed[layer] = true);
        let Node(end) = stage.output;
        ending_at[end - 1] = Some(stage);
    }
    let alone = |index: usize| (!is_absorbed[index]).then(|| Stage::alone(index, &layers[index]));
    let stages = ending_at.into_iter().enumerate().filter_map(|(index, stage)| stage.or_else(|| alone(index)));
    let mut stages: Vec<Stage> = stages.collect();
    if is_fused {
        introduce_neighbours(layers, &mut stages);
    }
    stages
}

/// The batch norm whose output is the residual of a stage that is a batch norm itself, if nobody else reads that; and the index of its
/// layer.
fn norm_to_add(layers: &[Layer], stage: &Stage) -> Option<(usize, usize)> {
    let at = stage.inputs.get(1)?.layer()?;
    match (stage.operation(layers), &layers[at].operation) {
        (Operation::BatchNorm { .. }, &Operation::BatchNorm { index }) => {
            only_reader(layers, stage.inputs[1]).map(|_| (index, at))
        }
        _ => None,
    }
}

/// The stage of a bias, at `index`, that a convolution can add.
fn convolution_with_bias(layers: &[Layer], index: usize) -> Option<Stage> {
    let Operation::Bias { .. } = layers[index].operation else { return None };
    let before = layers[index].inputs[0].layer()?;
    let is_convolution = matches!(layers[before].operation, Operation::Conv2d { .. });
    let mut stage = Stage::alone(before, &layers[before]);
    if !is_convolution || only_reader(layers, stage.output) != Some(index) {
        return None;
    }
    stage.absorb(index);
    match only_reader(layers, stage.output).map(|next| (next, &layers[next].operation)) {
        Some((_, Operation::Add)) => return None,
        Some((relu, Operation::Relu)) => {
            stage.relu = true;
            stage.absorb(relu);
        }
        _ => {}
    }
    Some(stage)
}

/// Finds convolutions and batch norms that read each other.
fn introduce_neighbours(layers: &[Layer], stages: &mut [Stage]) {
    let is_convolution = |stage: &Stage| matches!(stage.operation(layers), Operation::Conv2d { .. });
    let is_norm = |stage: &Stage| matches!(stage.operation(layers), Operation::BatchNorm { .. });
    let found: Vec<[bool; 3]> = stages
        .iter()
        .map(|stage| {
            let readings = |other: &&Stage| other.inputs.iter().filter(|&&input| input == stage.output).count();
            let readers: Vec<&Stage> = stages.iter().filter(|other| readings(other) > 0).collect();
            let leaves_statistics = is_convolution(stage)
                && stage.bias(layers).is_none()
                && readers.iter().any(|reader| reader.normalises(layers, stage.output));
            let is_normalized = leaves_statistics
                && matches!(readers[..], [only] if readings(&only) == 1 && only.inputs[0] == stage.output);
            let meets_dgrad = is_norm(stage) && readers.first().is_some_and(|first| is_convolution(first));
            [leaves_statistics, is_normalized, meets_dgrad]
        })
        .collect();
    for (stage, found) in stages.iter_mut().zip(found) {
        [stage.leaves_statistics, stage.is_normalized, stage.meets_dgrad] = found;
    }
}

/// The layer that reads a node, if there is one and it reads it once.
fn only_reader(layers: &[Layer], node: Node) -> Option<usize> {
    let mut readers = layers
        .iter()
        .enumerate()
        .flat_map(|(index, layer)| layer.inputs.iter().filter(|&&input| input == node).map(move |_| index));
    let reader = readers.next()?;
    readers.next().is_none().then_some(reader)
}

/// For each node, the last stage that reads it; `usize::MAX` where none does.
pub(super) fn last_uses(stages: &[Stage], nodes: usize) -> Vec<usize> {
    let mut last = vec![usize::MAX; nodes];
    for (index, stage) in stages.iter().enumerate() {
        stage.inputs.iter().for_each(|&Node(node)| last[node] = index);
    }
    last
}

/// Launches on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Launches {
    pub forward: usize,
    /// At most: a convolution's wgrad takes a second one only by split-K.
    pub backward: usize,
}

impl std::iter::Sum for Launches {
    fn sum<I: Iterator<Item = Launches>>(launches: I) -> Launches {
        launches.fold(Launches::default(), |a, b| Launches {
            forward: a.forward + b.forward,
            backward: a.backward + b.backward,
        })
    }
}

impl Network {
    /// Describes what a stage does, in words.
    pub fn describe(&self, stage: &Stage) -> String {
        let first = match self.operation(stage) {
            Operation::Conv2d { .. } => "convolution",
            Operation::BatchNorm { .. } => "batch norm",
            Operation::Bias { .. } => "bias",
            Operation::Relu => "ReLU",
            Operation::Add => "sum",
            Operation::MaxPool(_) => "max pool",
            Operation::AveragePool(_) => "average pool",
            Operation::AdaptiveAveragePool(_) => "adaptive average pool",
            Operation::GlobalAveragePool => "global average pool",
            Operation::Concat if stage.is_unwritten => "concatenation in place",
            Operation::Concat => "concatenation",
            Operation::PadChannels(_) => "zero channels",
            Operation::Dropout { .. } => "dropout",
            Operation::Linear { .. } => "linear",
        };
        let has_bias = stage.bias(&self.layers).is_some();
        let has_second = stage.norm_of_residual.is_some();
        let more = [(has_bias, "bias"), (has_second, "batch norm"), (stage.residual, "sum"), (stage.relu, "ReLU")];
        let more = more.into_iter().filter_map(|(is_there, word)| is_there.then_some(word));
        [first].into_iter().chain(more).collect::<Vec<_>>().join(", ")
    }

    /// Whether a pass of a stage that is a convolution runs on tensor cores, operands being aligned.
    fn is_on_tensor_cores(&self, stage: &Stage, pass: Pass, precision: DType) -> bool {
        let Operation::Conv2d { conv, weight } = *self.operation(stage) else { return false };
        let Parameter { shape, pitch, .. } = self.parameters[weight];
        let [_, r, s, c] = shape.four();
        // The geometry of images as small as the window: no usual size makes a difference.
        let [h, w] = [0, 1].map(|axis| conv.dilation[axis] * ([r, s][axis] - 1) + 1);
        let g = Geometry::new(conv, [1, h, w, c * conv.groups].into(), shape, pitch);
        on_tensor_cores(&g, pass, precision, Operands::ALIGNED).is_some()
    }

    /// The launches of a stage in a training step in which everything learns, with activations of this precision.
    pub fn launches(&self, index: usize, precision: DType) -> Launches {
        let stage = &self.stages[index];
        let is_image = |&Node(node): &Node| node == 0;
        let runs = |stage: &Stage, pass: Pass| usize::from(self.is_on_tensor_cores(stage, pass, precision));
        let (forward, backward) = match *self.operation(stage) {
            Operation::Conv2d { weight, .. } => {
                let channels = self.parameters[weight].shape.channels();
                // Padding of x and, in fprop, of the filters.
                let is_padded = usize::from(channels < 16 / precision.size());
                let dgrad = usize::from(!stage.inputs.iter().any(is_image));
                let [fprop, wgrad] = [Pass::Fprop, Pass::Wgrad].map(|pass| runs(stage, pass) * is_padded);
                // The sums of the gradient, and what is per channel.
                let of_bias = if stage.bias(&self.layers).is_some() { 2 } else { 0 };
                (1 + 2 * fprop, dgrad + 2 + wgrad + of_bias)
            }
            // The sums, what is per channel, the elements. The sums may be a convolution's work.
            Operation::BatchNorm { .. } => {
                let statistics = |input: &Node| {
                    let before = self.stages.iter().find(|other| other.leaves_statistics && other.output == *input);
                    2 - before.map_or(0, |before| runs(before, Pass::Fprop))
                };
                let normalised = if stage.norm_of_residual.is_some() { 2 } else { 1 };
                let reads = |other: &&Stage| other.inputs.contains(&stage.output);
                let behind = self.stages.iter().find(reads).filter(|_| stage.meets_dgrad);
                let dgrad = behind.map_or(0, |behind| runs(behind, Pass::Dgrad));
                let forward = 1 + stage.inputs[..normalised].iter().map(statistics).sum::<usize>();
                (forward, 3 * normalised - dgrad)
            }
            // A batch norm whose deviations of 1 are filled in; its mean is zeros, which is no launch.
            Operation::Bias { .. } => (2, 3),
            Operation::Relu
            | Operation::Dropout { .. }
            | Operation::MaxPool(_)
            | Operation::AveragePool(_)
            | Operation::AdaptiveAveragePool(_)
            | Operation::GlobalAveragePool => (1, 1),
            Operation::Add => (1, 0),
            Operation::Concat if stage.is_unwritten => (0, 0),
            Operation::Concat => (stage.inputs.len(), stage.inputs.len()),
            Operation::PadChannels(_) => (1, 1),
            // The trunk's weights are stored like filters, and read as f32.
            Operation::Linear { weight, .. } => {
                let is_cast = self.parameters[weight].region == Region::Trunk && precision.size() < 4;
                (1 + usize::from(is_cast), 3)
            }
        };
        // A gradient that somebody has contributed to already, later in the network, is added to. To that of a concatenation in
        // place a batch norm adds itself, and so does dgrad on tensor cores.
        let adds_itself = runs(stage, Pass::Dgrad) > 0;
        let is_unwritten = |node: Node| self.stages.iter().any(|other| other.is_unwritten && other.output == node);
        let sums = stage.inputs.iter().enumerate().filter(|&(i, input)| {
            let is_again = stage.inputs[i + 1..].contains(input);
            !adds_itself && !is_image(input) && !is_unwritten(*input) && (is_again || self.last_use(*input) > index)
        });
        Launches { forward, backward: backward + sums.count() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, NetworkBuilder};
    use crate::ops::conv2d::Conv2d;

    /// The stages of a graph behind a convolution and a batch norm, as the names of their layers.
    fn joined(build: impl Fn(&mut NetworkBuilder, Node) -> Node) -> Vec<String> {
        let mut b = NetworkBuilder::new(3);
        let x = b.conv2d("conv", b.input(), 4, 3, Conv2d::new(1, 1));
        let x = b.batch_norm("bn", x);
        build(&mut b, x);
        let network = b.finish();
        network.stages.iter().map(|stage| network.names(stage).join("+")).collect()
    }

    fn relu(b: &mut NetworkBuilder, name: &str, x: Node) -> Node {
        b.plain(name, Operation::Relu, &[x])
    }

    fn add(b: &mut NetworkBuilder, name: &str, x: Node, y: Node) -> Node {
        b.plain(name, Operation::Add, &[x, y])
    }

    #[test]
    fn a_batch_norm_takes_what_follows_it() {
        assert_eq!(joined(|_, x| x), ["conv", "bn"]);
        assert_eq!(joined(|b, x| relu(b, "relu", x)), ["conv", "bn+relu"]);
        let residual = |b: &mut NetworkBuilder, x: Node, swapped: bool| {
            let y = b.conv2d("other", b.input(), 4, 1, Conv2d::new(1, 0));
            if swapped { add(b, "add", y, x) } else { add(b, "add", x, y) }
        };
        for swapped in [false, true] {
            assert_eq!(joined(|b, x| residual(b, x, swapped)), ["conv", "other", "bn+add"]);
            let with_relu = |b: &mut NetworkBuilder, x: Node| {
                let sum = residual(b, x, swapped);
                relu(b, "relu", sum)
            };
            assert_eq!(joined(with_relu), ["conv", "other", "bn+add+relu"]);
        }
    }

    #[test]
    fn a_second_reader_keeps_layers_apart() {
        // A second reader of the batch norm.
        let of_norm = |b: &mut NetworkBuilder, x: Node| {
            let y = relu(b, "relu", x);
            add(b, "add", x, y)
        };
        assert_eq!(joined(of_norm), ["conv", "bn", "relu", "add"]);
        assert_eq!(joined(|b, x| add(b, "add", x, x)), ["conv", "bn", "add"]);
        // A second reader of the sum.
        let of_sum = |b: &mut NetworkBuilder, x: Node| {
            let sum = add(b, "add", x, b.input());
            let y = relu(b, "relu", sum);
            add(b, "again", sum, y)
        };
        let mut of_images = NetworkBuilder::new(4);
        let x = of_images.batch_norm("bn", of_images.input());
        of_sum(&mut of_images, x);
        let network = of_images.finish();
        let names: Vec<String> = network.stages.iter().map(|stage| network.names(stage).join("+")).collect();
        assert_eq!(names, ["bn+add", "relu", "again"]);
    }

    #[test]
    fn two_batch_norms_and_their_sum_are_one() {
        let two = |b: &mut NetworkBuilder, x: Node| {
            let y = b.conv2d("other", b.input(), 4, 1, Conv2d::new(1, 0));
            let y = b.batch_norm("other bn", y);
            add(b, "add", y, x)
        };
        assert_eq!(joined(two), ["conv", "other", "bn+other bn+add"]);
        // Not where somebody else reads one of them.
        let read = |b: &mut NetworkBuilder, x: Node| {
            let y = b.conv2d("other", b.input(), 4, 1, Conv2d::new(1, 0));
            let y = b.batch_norm("other bn", y);
            let z = add(b, "add", y, x);
            add(b, "again", z, y)
        };
        assert_eq!(joined(read), ["conv", "other", "other bn", "bn+add", "again"]);
    }

    /// Whether a convolution leaves statistics, and a batch norm meets its dgrad: the names of those that do.
    fn neighbours(network: &Network) -> [Vec<&str>; 2] {
        let of = |is: fn(&Stage) -> bool| {
            network
                .stages
                .iter()
                .filter(move |stage| is(stage))
                .map(|stage| network.layers[stage.layers[0]].name.as_str())
        };
        assert!(network.planned(false).stages.iter().all(|stage| !stage.leaves_statistics && !stage.meets_dgrad));
        [of(|stage| stage.leaves_statistics).collect(), of(|stage| stage.meets_dgrad).collect()]
    }

    #[test]
    fn convolutions_and_batch_norms_that_read_each_other() {
        let network = Architecture::named("resnet8", None, None).unwrap().build(3, 2);
        let [leaves, meets] = neighbours(&network);
        let convolutions = network.layers.iter().filter(|layer| matches!(layer.operation, Operation::Conv2d { .. }));
        assert_eq!(leaves, convolutions.map(|layer| layer.name.as_str()).collect::<Vec<_>>());
        // A shortcut's batch norm is part of the stage that adds it, whose own convolution has the other one.
        let normalized = network.stages.iter().filter(|stage| stage.is_normalized);
        let names: Vec<&str> = normalized.map(|stage| network.layers[stage.layers[0]].name.as_str()).collect();
        assert_eq!(names, leaves.iter().copied().filter(|name| !name.contains("downsample")).collect::<Vec<_>>());
        // All but those that are residuals, and the last one of the last block, behind which comes a pool.
        let blocks = ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1", "layer2.0.bn2", "layer3.0.bn1"];
        assert_eq!(meets, blocks);
    }

    #[test]
    fn a_batch_norm_meets_the_dgrad_of_its_first_reader() {
        let build = |second: bool| {
            let mut b = NetworkBuilder::new(8);
            let x = b.input();
            let x = b.batch_norm("bn", x);
            let y = b.conv2d("conv", x, 8, 1, Conv2d::new(1, 0));
            if second {
                b.plain("concat", Operation::Concat, &[y, x]);
            }
            b.finish()
        };
        assert_eq!(neighbours(&build(false)), [vec![], vec!["bn"]]);
        assert_eq!(neighbours(&build(true)), [vec![], vec!["bn"]]);
        let mut b = NetworkBuilder::new(8);
        let x = b.input();
        let x = b.batch_norm("bn", x);
        let y = relu(&mut b, "relu", x);
        let z = b.conv2d("conv", x, 8, 1, Conv2d::new(1, 0));
        add(&mut b, "add", y, z);
        assert_eq!(neighbours(&b.finish()), [Vec::<&str>::new(), vec![]]);
    }

    #[test]
    fn what_is_not_fused_runs_layer_by_layer() {
        let mut b = NetworkBuilder::new(3);
        let x = b.batch_norm("bn", b.input());
        relu(&mut b, "relu", x);
        let network = b.finish();
        assert_eq!((network.stages.len(), network.planned(false).stages.len()), (1, 2));
        assert_eq!(network.planned(false).planned(true).stages, network.stages);
    }
}
