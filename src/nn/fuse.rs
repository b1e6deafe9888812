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
//!
//! A sum of two batch norms goes with the first of them; the other one is its residual. Everything else stays a stage of its
//! own. Fused or not, the numbers are the same in f32, bit for bit; in half precision a fused stage rounds once instead of
//! two or three times.

use super::network::{Layer, Network, Node, Operation};

/// Layers that run as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Indices of the layers, in their order. The first one's operation is what the stage does.
    pub layers: Vec<usize>,
    /// What the first layer reads; behind it the residual, if there is one.
    pub inputs: Vec<Node>,
    /// The last layer's.
    pub output: Node,
    /// Whether a residual is added to a batch norm's output.
    pub residual: bool,
    /// Whether a ReLU follows a batch norm.
    pub relu: bool,
}

impl Stage {
    fn alone(index: usize, layer: &Layer) -> Stage {
        let output = Node::of_layer(index);
        Stage { layers: vec![index], inputs: layer.inputs.clone(), output, residual: false, relu: false }
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
        if !matches!(layer.operation, Operation::BatchNorm { .. }) {
            continue;
        }
        let mut stage = Stage::alone(index, layer);
        let next = |stage: &Stage| only_reader(layers, stage.output);
        if let Some(add) = next(&stage).filter(|&add| layers[add].operation == Operation::Add && !is_absorbed[add]) {
            stage.residual = true;
            stage.inputs.extend(layers[add].inputs.iter().filter(|&&input| input != stage.output));
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
    ending_at.into_iter().enumerate().filter_map(|(index, stage)| stage.or_else(|| alone(index))).collect()
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
    /// At most: a convolution's wgrad takes a second one only where it is cut into stretches.
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
    /// What a stage does, in words.
    pub fn describe(&self, stage: &Stage) -> String {
        let first = match self.operation(stage) {
            Operation::Conv2d { .. } => "convolution",
            Operation::BatchNorm { .. } => "batch norm",
            Operation::Relu => "ReLU",
            Operation::Add => "sum",
            Operation::MaxPool(_) => "max pool",
            Operation::AveragePool(_) => "average pool",
            Operation::GlobalAveragePool => "global average pool",
            Operation::Concat => "concatenation",
            Operation::Linear { .. } => "linear",
        };
        let more = [(stage.residual, "sum"), (stage.relu, "ReLU")];
        let more = more.into_iter().filter_map(|(is_there, word)| is_there.then_some(word));
        [first].into_iter().chain(more).collect::<Vec<_>>().join(", ")
    }

    /// What a stage launches in a training step in which everything learns.
    pub fn launches(&self, index: usize) -> Launches {
        let stage = &self.stages[index];
        let is_image = |&Node(node): &Node| node == 0;
        let (forward, backward) = match self.operation(stage) {
            // The images need no gradient.
            Operation::Conv2d { .. } => (1, if stage.inputs.iter().any(is_image) { 2 } else { 3 }),
            // The sums, what is per channel, the elements.
            Operation::BatchNorm { .. } => (3, 3),
            Operation::Relu | Operation::MaxPool(_) | Operation::AveragePool(_) | Operation::GlobalAveragePool => {
                (1, 1)
            }
            Operation::Add => (1, 0),
            Operation::Concat => (stage.inputs.len(), stage.inputs.len()),
            Operation::Linear { .. } => (1, 3),
        };
        // A gradient that somebody has contributed to already, later in the network, is added to.
        let sums = stage.inputs.iter().enumerate().filter(|&(i, input)| {
            let is_again = stage.inputs[i + 1..].contains(input);
            !is_image(input) && (is_again || self.last_use(*input) > index)
        });
        Launches { forward, backward: backward + sums.count() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::NetworkBuilder;
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
        // Of the batch norm.
        let of_norm = |b: &mut NetworkBuilder, x: Node| {
            let y = relu(b, "relu", x);
            add(b, "add", x, y)
        };
        assert_eq!(joined(of_norm), ["conv", "bn", "relu", "add"]);
        assert_eq!(joined(|b, x| add(b, "add", x, x)), ["conv", "bn", "add"]);
        // Of the sum.
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
    fn a_sum_of_two_batch_norms_goes_with_the_first() {
        let two = |b: &mut NetworkBuilder, x: Node| {
            let y = b.conv2d("other", b.input(), 4, 1, Conv2d::new(1, 0));
            let y = b.batch_norm("other bn", y);
            add(b, "add", y, x)
        };
        assert_eq!(joined(two), ["conv", "other", "other bn", "bn+add"]);
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
