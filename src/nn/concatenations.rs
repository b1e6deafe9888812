//! Concatenations that nobody writes.
//!
//! A batch norm reads the parts of a concatenation wherever they lie ([`Parts`]). So where only batch norms
//! read it, nothing is copied: the ops that make the parts put them one behind the other into one buffer, and their gradients
//! lie the same way. A concatenation of such a concatenation and more, as each layer of a DenseNet's block makes one, is the same
//! buffer with more parts; the last one of a block has them all.
//!
//! [`Parts`]: crate::ops::batch_norm::Parts

use std::collections::BTreeSet;

use super::fuse::Stage;
use super::graph::{Layer, Node, Operation};

/// A part: of which of the concatenations that have all their parts, and which of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub whole: usize,
    pub part: usize,
}

/// Finds them and marks the stages that have to do with them. Returns the parts of each that is no part of another one, in their
/// order. `channels` are those of every node.
pub(super) fn leave_unwritten(layers: &[Layer], stages: &mut [Stage], channels: &[usize]) -> Vec<Vec<Node>> {
    let graph = Graph { layers, stages };
    let mut wholes: Vec<Vec<Node>> = Vec::new();
    let (mut unwritten, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for last in (0..stages.len()).filter(|&index| graph.is_readable(index) && graph.concatenation_of(index).is_none()) {
        let (mut members, mut parts) = (Vec::new(), Vec::new());
        graph.expand(last, &mut members, &mut parts);
        // Each lies in one place: it is a part once, and of no other whole.
        let own: BTreeSet<usize> = parts.iter().map(|&Node(part)| part).collect();
        if own.len() == parts.len() && own.is_disjoint(&taken) && graph.fit(&parts, channels) {
            taken.extend(own);
            wholes.push(parts);
            unwritten.extend(members);
        }
    }
    for index in unwritten {
        stages[index].is_unwritten = true;
    }
    for (whole, parts) in wholes.iter().enumerate() {
        for stage in stages.iter_mut() {
            let part = parts.iter().position(|&part| part == stage.output);
            stage.place = stage.place.or(part.map(|part| Place { whole, part }));
        }
    }
    wholes
}

struct Graph<'a> {
    layers: &'a [Layer],
    stages: &'a [Stage],
}

impl Graph<'_> {
    fn operation(&self, index: usize) -> &Operation {
        &self.layers[self.stages[index].layers[0]].operation
    }

    /// The stages that read what another one puts out.
    fn readers(&self, index: usize) -> impl Iterator<Item = usize> {
        let output = self.stages[index].output;
        (index + 1..self.stages.len()).filter(move |&reader| self.stages[reader].inputs.contains(&output))
    }

    fn is_concatenation(&self, index: usize) -> bool {
        *self.operation(index) == Operation::Concat
    }

    /// Whether it is a concatenation that can be read in parts: by batch norms, each as what it normalises, and as a part of one
    /// other concatenation at most.
    fn is_readable(&self, index: usize) -> bool {
        let output = self.stages[index].output;
        let reads_parts = |reader: usize| match self.operation(reader) {
            Operation::BatchNorm { .. } => !self.stages[reader].inputs[1..].contains(&output),
            operation => *operation == Operation::Concat,
        };
        let is_last = index + 1 == self.stages.len();
        self.is_concatenation(index)
            && !is_last
            && self.readers(index).all(reads_parts)
            && self.readers(index).filter(|&reader| self.is_concatenation(reader)).count() <= 1
    }

    /// The concatenation that reads it.
    fn concatenation_of(&self, index: usize) -> Option<usize> {
        self.readers(index).find(|&reader| self.is_concatenation(reader))
    }

    /// Lists the concatenations that a concatenation is made of, itself too, and its parts.
    fn expand(&self, index: usize, members: &mut Vec<usize>, parts: &mut Vec<Node>) {
        members.push(index);
        for &input in &self.stages[index].inputs {
            match self.stages.iter().position(|stage| stage.output == input) {
                Some(inner) if self.is_readable(inner) => self.expand(inner, members, parts),
                _ => parts.push(input),
            }
        }
    }

    /// Whether the ops that make these parts can put them side by side, and batch norms find them there.
    fn fit(&self, parts: &[Node], channels: &[usize]) -> bool {
        let is_placed = |&part: &Node| {
            self.stages.iter().position(|stage| stage.output == part).is_some_and(|index| {
                matches!(
                    self.operation(index),
                    Operation::Conv2d { .. }
                        | Operation::BatchNorm { .. }
                        | Operation::Bias { .. }
                        | Operation::MaxPool(_)
                        | Operation::AveragePool(_)
                )
            })
        };
        let alike = |pair: &[Node]| channels[pair[0].0] == channels[pair[1].0];
        parts.iter().all(is_placed) && parts[1..].windows(2).all(alike)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, Network, NetworkBuilder};
    use crate::ops::conv2d::Conv2d;

    /// The names of the layers that make the parts of each.
    fn parts(network: &Network) -> Vec<Vec<&str>> {
        let name = |part: &Node| network.layers[part.layer().expect("no image is a part")].name.as_str();
        network.wholes.iter().map(|parts| parts.iter().map(name).collect()).collect()
    }

    fn unwritten(network: &Network) -> usize {
        network.stages.iter().filter(|stage| stage.is_unwritten).count()
    }

    fn convolution(b: &mut NetworkBuilder, name: &str, filters: usize) -> Node {
        b.conv2d(name, b.input(), filters, 1, Conv2d::new(1, 0))
    }

    fn concat(b: &mut NetworkBuilder, name: &str, inputs: &[Node]) -> Node {
        b.plain(name, Operation::Concat, inputs)
    }

    /// What is found in a graph whose end is read by a batch norm.
    fn of(build: impl Fn(&mut NetworkBuilder) -> Node) -> (Vec<Vec<String>>, usize) {
        let mut b = NetworkBuilder::new(4);
        let x = build(&mut b);
        b.batch_norm("norm", x);
        let network = b.finish();
        let parts = parts(&network).into_iter().map(|parts| parts.into_iter().map(String::from).collect());
        (parts.collect(), unwritten(&network))
    }

    #[test]
    fn each_block_of_a_densenet_is_one() {
        let network = Architecture::named("densenet121", None, None).unwrap().build(3, 10);
        let parts = parts(&network);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [7, 13, 25, 17]);
        assert_eq!(parts[1][..2], ["features.transition1.pool", "features.denseblock2.denselayer1.conv2"]);
        assert_eq!(unwritten(&network), 6 + 12 + 24 + 16);
        assert_eq!((unwritten(&network.planned(false)), network.planned(false).wholes.len()), (0, 0));
    }

    #[test]
    fn parts_stand_in_their_order() {
        let (parts, unwritten) = of(|b| {
            let [x, y, z] = ["x", "y", "z"].map(|name| convolution(b, name, 8));
            let inner = concat(b, "inner", &[y, z]);
            concat(b, "outer", &[x, inner])
        });
        assert_eq!(parts, [["x", "y", "z"]]);
        assert_eq!(unwritten, 2);
    }

    #[test]
    fn what_no_batch_norm_can_read_is_written() {
        let nothing = (Vec::<Vec<String>>::new(), 0);
        // The images, which no op of the network makes.
        let of_images = of(|b| {
            let x = convolution(b, "x", 8);
            concat(b, "concat", &[b.input(), x])
        });
        assert_eq!(of_images, nothing);
        // Parts of two sizes behind the first one.
        let uneven = of(|b| {
            let parts = [8, 8, 4].map(|filters| convolution(b, &format!("x{filters}"), filters));
            concat(b, "concat", &parts)
        });
        assert_eq!(uneven, nothing);
        // One part twice.
        let twice = of(|b| {
            let x = convolution(b, "x", 8);
            concat(b, "concat", &[x, x])
        });
        assert_eq!(twice, nothing);
        // Another reader.
        let read = of(|b| {
            let [x, y] = ["x", "y"].map(|name| convolution(b, name, 8));
            let whole = concat(b, "concat", &[x, y]);
            b.conv2d("reader", whole, 8, 1, Conv2d::new(1, 0));
            whole
        });
        assert_eq!(read, nothing);
    }

    /// A part lies in one place: the second concatenation of it is written.
    #[test]
    fn a_part_is_that_of_one_concatenation() {
        let (parts, unwritten) = of(|b| {
            let [x, y, z] = ["x", "y", "z"].map(|name| convolution(b, name, 8));
            let first = concat(b, "first", &[x, y]);
            let second = concat(b, "second", &[y, z]);
            b.batch_norm("other norm", first);
            second
        });
        assert_eq!(parts, [["x", "y"]]);
        assert_eq!(unwritten, 1);
    }
}
