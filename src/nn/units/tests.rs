//! A network with its units in another order computes the same.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::nn::{Architecture, NetworkBuilder, Operation, Role};
use crate::ops::conv2d::Conv2d;
use crate::ops::pool::Pool;

fn conv(window: usize, stride: usize, groups: usize) -> Conv2d {
    Conv2d { groups, ..Conv2d::new(stride, window / 2) }
}

/// Names, units, and pieces of each strand.
fn shape(units: &Units) -> Vec<(&str, usize, Vec<usize>)> {
    let pieces = |group: &UnitGroup| group.strands.iter().map(|strand| strand.pieces).collect();
    units.groups.iter().map(|group| (group.name.as_str(), group.units, pieces(group))).collect()
}

fn holders(network: &Network, strand: &Strand) -> Vec<String> {
    let name = |place: &Place| match (place.holder, place.axis) {
        (Holder::Parameter(index), Axis::Rows) => network.parameters[index].name.clone(),
        (Holder::Parameter(index), _) => format!("columns of {}", network.parameters[index].name),
        (Holder::Statistics(index), _) => format!("statistics of {}", network.batch_norms[index].name),
    };
    strand.places.iter().map(name).collect()
}

#[test]
fn a_residual_stream_is_one_group() {
    let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 3);
    let units = Units::of(&network);
    let expected = [
        ("conv1", 4),
        ("layer1.0.conv1", 4),
        ("layer2.0.conv1", 8),
        ("layer2.0.conv2", 8),
        ("layer3.0.conv1", 16),
        ("layer3.0.conv2", 16),
    ];
    assert_eq!(shape(&units), expected.map(|(name, count)| (name, count, vec![1])));
    let stream = holders(&network, &units.groups[3].strands[0]);
    for held in [
        "layer2.0.conv2.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.bias",
        "statistics of layer2.0.bn2",
        "columns of layer3.0.conv1.weight",
        "columns of layer3.0.downsample.0.weight",
    ] {
        assert!(stream.iter().any(|name| name == held), "{held} in {stream:?}");
    }
    assert_eq!(stream.len(), 10);
    let last = holders(&network, &units.groups[5].strands[0]);
    assert_eq!(last.last().unwrap(), "columns of fc.weight");
}

/// What shortcuts without parameters add zeros to is tied to nothing.
#[test]
fn zeros_beside_a_stream_tie_nothing() {
    let network = Architecture::named("resnet20-option-a", None, Some(4)).unwrap().build(1, 3);
    let of_streams: Vec<(&str, usize)> = Units::of(&network)
        .groups
        .iter()
        .filter(|group| !group.name.ends_with("conv1") || group.name == "conv1")
        .map(|group| (group.name.clone(), group.units))
        .map(|(name, units)| (&*name.leak(), units))
        .collect();
    assert_eq!(of_streams, [("conv1", 4), ("layer2.0.conv2", 4), ("layer3.0.conv2", 8)]);
}

#[test]
fn groups_of_a_convolution_move_as_wholes() {
    let mut b = NetworkBuilder::new(2);
    let x = b.conv2d("a", b.input(), 12, 1, conv(1, 1, 1));
    let x = b.conv2d("grouped", x, 6, 3, conv(3, 1, 3));
    let x = b.conv2d("depthwise", x, 12, 3, conv(3, 1, 6));
    let x = b.conv2d("last", x, 5, 1, conv(1, 1, 1));
    let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
    b.linear("head", x, 3);
    let network = b.finish();
    let units = Units::of(&network);
    assert_eq!(shape(&units), [("a", 3, vec![4, 2]), ("last", 5, vec![1])]);
    // Two filters of the depthwise convolution move with each channel that it reads.
    let made = holders(&network, &units.groups[0].strands[1]);
    let expected =
        ["grouped.weight", "depthwise.weight", "depthwise.weight", "columns of last.weight", "columns of last.weight"];
    assert_eq!(made, expected);
}

/// Groups of 2 and of 3 over the same six channels: neither is whole.
#[test]
fn groups_that_cross_stay_where_they_are() {
    let mut b = NetworkBuilder::new(2);
    let x = b.conv2d("a", b.input(), 12, 1, conv(1, 1, 1));
    let y = b.conv2d("two", x, 12, 1, conv(1, 1, 2));
    let z = b.conv2d("three", x, 12, 1, conv(1, 1, 3));
    let x = b.plain("concat", Operation::Concat, &[y, z]);
    b.conv2d("free", x, 4, 1, conv(1, 1, 1));
    let x = b.conv2d("last", x, 4, 1, conv(1, 1, 1));
    let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
    b.linear("head", x, 3);
    let names: Vec<_> = Units::of(&b.finish()).groups.into_iter().map(|group| group.name).collect();
    assert_eq!(names, ["free", "last"]);
}

/// Integers so small that no sum rounds: filters with a single ±1, or two, and norms that divide by 1.
fn fill_with_integers(model: &mut Model, entries: usize, rng: &mut ChaCha8Rng) {
    let network = model.network.clone();
    for parameter in &network.parameters {
        let mut values = vec![0f32; parameter.shape.len()];
        match parameter.role {
            Role::Filters => {
                for row in values.chunks_mut(parameter.shape.row_len()) {
                    for _ in 0..entries {
                        let at = rng.random_range(0..row.len());
                        row[at] = if rng.random() { 1.0 } else { -1.0 };
                    }
                }
            }
            Role::Scale => values.iter_mut().for_each(|v| *v = if rng.random_range(0..4) > 0 { 1.0 } else { -1.0 }),
            _ => values.iter_mut().for_each(|v| *v = rng.random_range(-1..=2) as f32),
        }
        model.set_parameter(parameter, &values);
    }
    for index in 0..network.batch_norms.len() {
        let channels = network.batch_norms[index].channels;
        let mean: Vec<f32> = (0..channels).map(|_| rng.random_range(-1..=1) as f32).collect();
        model.set_running(index, &mean, &vec![1.0 - 1e-5; channels]);
    }
}

fn fill_with_fractions(model: &mut Model, rng: &mut ChaCha8Rng) {
    let network = model.network.clone();
    for parameter in network.parameters.iter().filter(|parameter| parameter.role != Role::Filters) {
        let values: Vec<f32> = (0..parameter.shape.len()).map(|_| rng.random_range(0.5..1.5)).collect();
        model.set_parameter(parameter, &values);
    }
    for index in 0..network.batch_norms.len() {
        let mut draw = |low: f32, high: f32| -> Vec<f32> {
            (0..network.batch_norms[index].channels).map(|_| rng.random_range(low..high)).collect()
        };
        let (mean, variance) = (draw(-0.1, 0.1), draw(0.5, 2.0));
        model.set_running(index, &mean, &variance);
    }
}

fn draw(rng: &mut ChaCha8Rng) -> impl FnMut(usize) -> Vec<usize> + '_ {
    |count| {
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(rng);
        order
    }
}

/// The logits of a network, and of the same one with its channels in a drawn order.
fn logits(network: &std::sync::Arc<Network>, pixels: usize, is_exact: bool, seed: u64) -> [Vec<f32>; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut model = Model::initialized(network.clone(), seed);
    match is_exact {
        true => fill_with_integers(&mut model, 1, &mut rng),
        false => fill_with_fractions(&mut model, &mut rng),
    }
    let units = Units::of(network);
    let permutation = Permutation::drawn(&units, draw(&mut rng));
    assert!(permutation.moved() > units.count() / 3);
    let permuted = units.permuted(&model, &permutation);
    let shape = [2, pixels, pixels, network.input_channels];
    let images: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(0..4) as f32).collect();
    let back = units.permuted(&permuted, &permutation.inverse());
    for parameter in &network.parameters {
        let [old, new] = [&model, &back].map(|model| model.parameter(parameter).to_vec::<f32>());
        assert!(old == new, "{} is not as it was, of {:?}", parameter.name, units);
    }
    assert!(back.statistics.to_vec::<f32>() == model.statistics.to_vec::<f32>());
    assert_ne!(permuted.trunk.to_vec::<f32>(), model.trunk.to_vec::<f32>());
    [&model, &permuted].map(|model| model.logits(Tensor::from_vec(images.clone(), shape)).to_vec())
}

/// Every architecture computes the same with its channels in another order: to the bit where nothing rounds.
#[test]
fn a_permuted_network_computes_the_same_function() {
    for name in Architecture::names() {
        // Groups of two filters each, and of one where that is narrow enough.
        let width = if name.starts_with("resnext50") {
            32
        } else if name.starts_with("resnext") {
            16
        } else {
            8
        };
        let network = Architecture::named(name, None, Some(width)).unwrap().build(3, 5);
        let [before, after] = logits(&network, 32, true, 1);
        let (least, most) = (before.iter().copied().reduce(f32::min), before.iter().copied().reduce(f32::max));
        assert!(least < most, "{name} says the same of every class: {before:?}");
        assert_eq!(before, after, "{name}");
    }
    for name in ["resnet20", "resnet20-option-a", "resnet50", "resnext50_32x4d", "densenet121", "vgg16", "vgg11_bn"] {
        let network = Architecture::named(name, None, Some(16)).unwrap().build(3, 5);
        let [before, after] = logits(&network, 32, false, 2);
        let scale = before.iter().fold(0f32, |most, x| most.max(x.abs()));
        let close = before.iter().zip(&after).all(|(x, y)| (x - y).abs() <= 1e-3 * scale);
        assert!(close && scale > 0.0, "{name}: {before:?} {after:?}");
    }
}

/// Graphs that no family has: sums of concatenations, a part read twice, convolutions in groups behind each other.
#[test]
fn drawn_graphs_compute_the_same_function() {
    for seed in 0..400 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut b = NetworkBuilder::new(3);
        let mut nodes = vec![b.conv2d("stem", Node::INPUT, 12, 3, conv(3, 1, 1))];
        for index in 0..rng.random_range(4..12) {
            let x = nodes[rng.random_range(0..nodes.len())];
            let channels = b.channels(x);
            let name = format!("layer{index}");
            let alike: Vec<Node> = nodes.iter().copied().filter(|&node| b.channels(node) == channels).collect();
            let other = alike[rng.random_range(0..alike.len())];
            let any = nodes[rng.random_range(0..nodes.len())];
            let node = match rng.random_range(0..9) {
                0 => b.plain(&name, Operation::Add, &[x, other]),
                1 => b.plain(&name, Operation::Concat, &[x, any]),
                2 => b.batch_norm(&name, x),
                3 => b.plain(&name, Operation::Relu, &[x]),
                4 => b.conv2d(&name, x, channels, 3, conv(3, 1, channels)),
                5 => b.conv2d(&name, x, 12, 3, conv(3, 1, if channels.is_multiple_of(3) { 3 } else { 1 })),
                6 => b.plain(&name, Operation::PadChannels([1, 2]), &[x]),
                7 => b.conv2d_with_bias(&name, x, 24, 1, conv(1, 1, if channels.is_multiple_of(2) { 2 } else { 1 })),
                _ => b.conv2d(&name, x, 12, 3, conv(3, 1, 1)),
            };
            nodes.push(node);
        }
        let all = b.plain("all", Operation::Concat, &nodes);
        let x = b.conv2d("last", all, 9, 1, conv(1, 1, 1));
        let x = b.plain("max", Operation::MaxPool(Pool::new(2, 2, 0)), &[x]);
        let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
        b.linear("head", x, 4);
        let network = b.finish();
        let [before, after] = logits(&network, 8, true, seed);
        assert_eq!(before, after, "seed {seed}: {:?}", network.layers);
    }
}

#[test]
fn an_order_that_tears_units_apart_is_none() {
    let mut b = NetworkBuilder::new(2);
    let x = b.conv2d("a", b.input(), 4, 1, conv(1, 1, 1));
    let x = b.conv2d("grouped", x, 4, 1, conv(1, 1, 2));
    let x = b.conv2d("last", x, 2, 1, conv(1, 1, 1));
    b.plain("pool", Operation::GlobalAveragePool, &[x]);
    let units = Units::of(&b.finish());
    assert_eq!(shape(&units), [("a", 2, vec![2, 2])]);
    let fits = |orders: &[&[usize]]| {
        Permutation { orders: vec![orders.iter().map(|order| order.to_vec()).collect()] }.fits(&units)
    };
    assert!(fits(&[&[0, 1, 2, 3], &[1, 0, 2, 3]]) && fits(&[&[3, 2, 0, 1], &[2, 3, 0, 1]]));
    for wrong in [
        &[&[0, 2, 1, 3][..], &[0, 1, 2, 3]][..],
        &[&[2, 3, 0, 1], &[0, 1, 2, 3]],
        &[&[0, 1, 2, 2], &[0, 1, 2, 3]],
        &[&[0, 1, 2, 4], &[0, 1, 2, 3]],
        &[&[0, 1, 2], &[0, 1, 2, 3]],
        &[&[0, 1, 2, 3]],
        &[],
    ] {
        assert!(!fits(wrong), "{wrong:?}");
    }
}

#[test]
fn every_group_can_be_seen() {
    for (name, node) in [("resnet50", "layer1.2.relu"), ("densenet121", "features.denseblock1.denselayer1.relu1")] {
        let network = Architecture::named(name, None, None).unwrap().build(3, 5);
        let units = Units::of(&network);
        let name_of = |node: Node| network.layers[node.layer().unwrap()].name.as_str();
        let first: Vec<_> = units.groups[0].strands[0].seen.iter().map(|(node, _)| name_of(*node)).collect();
        let all = units.groups.iter().flat_map(|group| &group.strands).all(|strand| strand.seen.is_some());
        assert!(all);
        if name == "densenet121" {
            assert_eq!(first, [node]);
        }
    }
    let network = Architecture::named("resnet50", None, None).unwrap().build(3, 5);
    let units = Units::of(&network);
    let stream = units.groups.iter().find(|group| group.units == 256).unwrap();
    let (seen, positions) = stream.strands[0].seen.clone().unwrap();
    assert_eq!(network.layers[seen.layer().unwrap()].name, "layer1.2.relu");
    assert_eq!(positions, (0..256).collect::<Vec<_>>());
}
