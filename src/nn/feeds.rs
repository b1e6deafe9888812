//! Which filters feed which channels, followed through the graph.
//!
//! A convolution or a linear layer makes its output channels from its filters, one each. What has a number per channel of
//! another's output (a batch norm's γ and β, a bias) belongs to those filters, however many layers lie between: a concatenation
//! lines channels up, a sum has several filters for each, and pooling, ReLU and batch norms leave them where they are.

/// A run of channels, and the filters that feed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    pub channels: usize,
    /// In the order of their layers: one, or several behind a sum. None for the channels of the images themselves.
    pub filters: Vec<Rows>,
}

/// Rows of a parameter that holds filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rows {
    pub parameter: usize,
    /// The row that feeds the first of the channels; the next one feeds the next.
    pub first: usize,
}

impl Feed {
    pub(super) fn of_nobody(channels: usize) -> Feed {
        Feed { channels, filters: Vec::new() }
    }

    /// All `rows` filters of a parameter.
    pub(super) fn of_filters(parameter: usize, rows: usize) -> Feed {
        Feed { channels: rows, filters: vec![Rows { parameter, first: 0 }] }
    }

    /// `count` of its channels, from `first` on.
    fn part(&self, first: usize, count: usize) -> Feed {
        let filters = self.filters.iter().map(|rows| Rows { first: rows.first + first, ..*rows }).collect();
        Feed { channels: count, filters }
    }
}

/// The feeds of the sum of two nodes with as many channels each.
pub(super) fn of_sum(a: &[Feed], b: &[Feed]) -> Vec<Feed> {
    let mut sum = Vec::new();
    let (mut a, mut b) = (a.iter().cloned(), b.iter().cloned());
    let (mut of_a, mut of_b) = (a.next(), b.next());
    while let (Some(x), Some(y)) = (&of_a, &of_b) {
        let count = x.channels.min(y.channels);
        let mut filters = [x.part(0, count).filters, y.part(0, count).filters].concat();
        filters.sort();
        filters.dedup();
        sum.push(Feed { channels: count, filters });
        let rest = |feed: &Feed| (feed.channels > count).then(|| feed.part(count, feed.channels - count));
        (of_a, of_b) = (rest(x).or_else(|| a.next()), rest(y).or_else(|| b.next()));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Network, NetworkBuilder, Node, Operation};
    use crate::ops::conv2d::Conv2d;
    use crate::ops::pool::Pool;

    fn one_by_one(b: &mut NetworkBuilder, name: &str, x: Node, filters: usize) -> Node {
        b.conv2d(name, x, filters, 1, Conv2d::new(1, 0))
    }

    /// Channels and filters of a parameter's feeds, filters as `name[first]`.
    fn feeds(network: &Network, name: &str) -> Vec<(usize, Vec<String>)> {
        let of = |rows: &Rows| format!("{}[{}]", network.parameters[rows.parameter].name, rows.first);
        let feeds = &network.parameter(name).unwrap().feeds;
        feeds.iter().map(|feed| (feed.channels, feed.filters.iter().map(of).collect())).collect()
    }

    fn owned(feeds: &[(usize, &[&str])]) -> Vec<(usize, Vec<String>)> {
        feeds.iter().map(|(count, names)| (*count, names.iter().map(|name| name.to_string()).collect())).collect()
    }

    #[test]
    fn a_concatenation_lines_channels_up_and_pooling_leaves_them() {
        let mut b = NetworkBuilder::new(2);
        let x = one_by_one(&mut b, "a", Node::INPUT, 5);
        let y = one_by_one(&mut b, "b", x, 3);
        let y = b.plain("pool", Operation::MaxPool(Pool::new(1, 1, 0)), &[y]);
        let both = b.plain("concat", Operation::Concat, &[x, y, b.input()]);
        let z = b.batch_norm("bn", both);
        let z = b.plain("relu", Operation::Relu, &[z]);
        b.batch_norm("again", z);
        let network = b.finish();
        let expected = owned(&[(5, &["a.weight[0]"]), (3, &["b.weight[0]"]), (2, &[])]);
        for name in ["bn.weight", "bn.bias", "again.weight", "again.bias"] {
            assert_eq!(feeds(&network, name), expected, "{name}");
        }
        assert_eq!(feeds(&network, "b.weight"), owned(&[(3, &["b.weight[0]"])]));
    }

    /// Runs of 5 + 3 channels against 2 + 6.
    #[test]
    fn a_sum_has_several_filters_for_each_channel() {
        let mut b = NetworkBuilder::new(2);
        let [a, c, d, e] =
            [("a", 5), ("c", 3), ("d", 2), ("e", 6)].map(|(name, count)| one_by_one(&mut b, name, Node::INPUT, count));
        let left = b.plain("left", Operation::Concat, &[a, c]);
        let right = b.plain("right", Operation::Concat, &[d, e]);
        // In the order of layers, not of operands.
        let sum = b.plain("sum", Operation::Add, &[right, left]);
        let twice = b.plain("twice", Operation::Add, &[sum, left]);
        b.batch_norm("bn", twice);
        let expected = owned(&[
            (2, &["a.weight[0]", "d.weight[0]"]),
            (3, &["a.weight[2]", "e.weight[0]"]),
            (3, &["c.weight[0]", "e.weight[3]"]),
        ]);
        assert_eq!(feeds(&b.finish(), "bn.bias"), expected);
    }

    #[test]
    fn biases_and_linear_layers() {
        let mut b = NetworkBuilder::new(2);
        let x = b.conv2d_with_bias("conv", b.input(), 4, 1, Conv2d::new(1, 0));
        let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
        let x = b.hidden_linear("hidden", x, 6);
        b.linear("head", x, 3);
        let network = b.finish();
        assert_eq!(feeds(&network, "conv.bias"), owned(&[(4, &["conv.weight[0]"])]));
        assert_eq!(feeds(&network, "hidden.bias"), owned(&[(6, &["hidden.weight[0]"])]));
        assert_eq!(feeds(&network, "head.bias"), owned(&[(3, &["head.weight[0]"])]));
    }
}
