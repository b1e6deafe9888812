//! The network that the names and shapes of a file's tensors tell of.

use crate::nn::families::densenet::DenseNet;
use crate::nn::families::resnet::{self, ResNet, Shortcut};
use crate::nn::families::vgg::Vgg;
use crate::nn::{Architecture, Family, Layer, Node, Operation, Stem};

/// A file's tensors by name: their shapes in PyTorch's order, `None` for what it does not have.
pub type Shapes<'a> = &'a dyn Fn(&str) -> Option<Vec<usize>>;

/// A network that a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub architecture: Architecture,
    pub input_channels: usize,
    /// `None` where there is no classifier.
    pub classes: Option<usize>,
}

/// Reads the network off the names and shapes of a file's tensors. Of a stem the shapes tell the window alone; the usual one
/// is taken. An error says which tensor is missing or odd.
pub fn read_off(shapes: Shapes) -> Result<Found, String> {
    match marked_family(shapes) {
        Some(Marked::DenseNet) => densenet(shapes),
        Some(Marked::Vgg) => vgg(shapes),
        // Its errors say what is missing.
        Some(Marked::ResNet) | None => resnet(shapes),
    }
}

/// A family that a file's tensors tell of.
#[derive(Clone, Copy)]
enum Marked {
    ResNet,
    DenseNet,
    Vgg,
}

fn marked_family(shapes: Shapes) -> Option<Marked> {
    let markers = [
        ("layer1.0.conv1.weight", Marked::ResNet),
        ("features.denseblock1.denselayer1.conv1.weight", Marked::DenseNet),
        ("features.0.weight", Marked::Vgg),
    ];
    markers.into_iter().find(|(marker, _)| shapes(marker).is_some()).map(|(_, family)| family)
}

/// The name of the classifier in the family that a file's tensors tell of.
pub(super) fn head(shapes: Shapes) -> Option<String> {
    Some(match marked_family(shapes)? {
        Marked::ResNet => "fc".into(),
        Marked::DenseNet => "classifier".into(),
        Marked::Vgg => "classifier.6".into(),
    })
}

/// Whether networks of a family can be read off their tensors.
pub(crate) fn can_be_read_off(architecture: &Architecture) -> bool {
    [ResNet::NAME, DenseNet::NAME, Vgg::NAME].contains(&architecture.family())
}

/// Completes a network whose architecture is known by what a file's tensors say: its input channels are those of the
/// filters that read the images, its classes those of the classifier.
pub(crate) fn complete(architecture: Architecture, shapes: Shapes) -> Result<Found, String> {
    architecture.check(1)?;
    let network = architecture.build(1, 1);
    let reads_images = |layer: &&Layer| layer.inputs.contains(&Node::INPUT);
    let first = network.layers.iter().filter(reads_images).find_map(|layer| match layer.operation {
        Operation::Conv2d { weight, .. } => Some(&network.parameters[weight]),
        _ => None,
    });
    let first = first.ok_or("no convolution of it reads the images")?;
    let input_channels = match shapes(&first.name).as_deref() {
        Some(&[_, channels, _, _]) => channels,
        Some(other) => return Err(format!("{} has shape {other:?}, not that of a convolution", first.name)),
        None => return Err(format!("it has no tensor '{}'", first.name)),
    };
    architecture.check(input_channels)?;
    let classes = match network.classifier() {
        None => None,
        Some([weight, _]) => match shapes(&weight.name).as_deref() {
            Some(&[0, _]) => return Err(format!("{} tells 0 classes apart", weight.name)),
            Some(&[classes, _]) => Some(classes),
            Some(other) => return Err(format!("{} has shape {other:?}, not that of a matrix", weight.name)),
            None => None,
        },
    };
    Ok(Found { architecture, input_channels, classes })
}

/// The shape of a convolution's filters, K×C×R×S.
fn filters(shapes: Shapes, name: &str) -> Result<[usize; 4], String> {
    match shapes(name).as_deref() {
        Some(&[k, c, r, s]) => Ok([k, c, r, s]),
        Some(other) => Err(format!("{name} has shape {other:?}, not that of a convolution")),
        None => Err(format!("it has no tensor '{name}'")),
    }
}

/// The classes that a layer's weights tell apart; `None` where it is not there.
fn classes(shapes: Shapes, head: &str) -> Result<Option<usize>, String> {
    let name = format!("{head}.weight");
    match shapes(&name).as_deref() {
        Some(&[0, _]) => Err(format!("{name} tells 0 classes apart")),
        Some(&[classes, _]) => Ok(Some(classes)),
        Some(other) => Err(format!("{name} has shape {other:?}, not that of a matrix")),
        None => Ok(None),
    }
}

/// The usual stem of a convolution's window, and the channels that it reads.
fn stem(shapes: Shapes, name: &str) -> Result<(Stem, usize), String> {
    let [_, channels, r, s] = filters(shapes, name)?;
    let stem = Stem::usual([r, s]).ok_or_else(|| format!("{name} is {r}×{s}; stems are 3×3 or 7×7"))?;
    Ok((stem, channels))
}

/// Members of a stage, numbered from `first`, that a file has; an error if there are more than any network has.
fn count(first: usize, is_there: impl Fn(usize) -> bool) -> Result<usize, String> {
    let count = (first..=first + resnet::MAX_BLOCKS).take_while(|&i| is_there(i)).count();
    match count > resnet::MAX_BLOCKS {
        true => Err(format!("it has more than {} blocks in one stage", resnet::MAX_BLOCKS)),
        false => Ok(count),
    }
}

fn resnet(shapes: Shapes) -> Result<Found, String> {
    let (stem, input_channels) = stem(shapes, "conv1.weight")?;
    let bottleneck = shapes("layer1.0.conv3.weight").is_some();
    let (mut blocks, mut widths) = (Vec::new(), Vec::new());
    for stage in 1.. {
        let count = count(0, |i| shapes(&format!("layer{stage}.{i}.conv1.weight")).is_some())?;
        if count == 0 {
            break;
        }
        if stage > resnet::MAX_STAGES {
            return Err(format!("it has more than {} stages", resnet::MAX_STAGES));
        }
        blocks.push(count);
        widths.push(match bottleneck {
            true => filters(shapes, &format!("layer{stage}.0.conv3.weight"))?[0] / resnet::EXPANSION,
            false => filters(shapes, &format!("layer{stage}.0.conv1.weight"))?[0],
        });
    }
    if blocks.is_empty() {
        return Err("it has no tensor 'layer1.0.conv1.weight'".into());
    }
    let (groups, group_width) = if bottleneck { groups(shapes, widths[0])? } else { (1, resnet::USUAL_GROUP_WIDTH) };
    let is_projected = blocks.len() == 1 || shapes("layer2.0.downsample.0.weight").is_some();
    let shortcut = if is_projected || bottleneck { Shortcut::Projection } else { Shortcut::OptionA };
    let classes = classes(shapes, "fc")?;
    let network = ResNet { bottleneck, blocks, widths, stem, groups, group_width, shortcut };
    found(network, input_channels, classes)
}

/// Groups of the first bottleneck's 3×3 convolution, and filters in each for every 64 of its stage's width.
fn groups(shapes: Shapes, width: usize) -> Result<(usize, usize), String> {
    let name = "layer1.0.conv2.weight";
    let [inner, channels, ..] = filters(shapes, name)?;
    if width == 0 || channels == 0 || !inner.is_multiple_of(channels) {
        return Err(format!("{name} has {inner} filters of {channels} channels, which are no groups"));
    }
    let group_width = channels * resnet::USUAL_GROUP_WIDTH;
    match group_width.is_multiple_of(width) {
        true => Ok((inner / channels, group_width / width)),
        false => Err(format!("{name} has groups of {channels} channels in a stage of {width}")),
    }
}

fn densenet(shapes: Shapes) -> Result<Found, String> {
    let (stem, input_channels) = stem(shapes, "features.conv0.weight")?;
    let of_layer =
        |block: usize, layer: usize, part: &str| format!("features.denseblock{block}.denselayer{layer}.{part}.weight");
    let mut blocks = Vec::new();
    while blocks.len() <= resnet::MAX_STAGES {
        let block = blocks.len() + 1;
        match count(1, |layer| shapes(&of_layer(block, layer, "conv1")).is_some())? {
            0 => break,
            layers => blocks.push(layers),
        }
    }
    let [inner, ..] = filters(shapes, &of_layer(1, 1, "conv1"))?;
    let [growth, ..] = filters(shapes, &of_layer(1, 1, "conv2"))?;
    if growth == 0 || !inner.is_multiple_of(growth) {
        return Err(format!("a layer has {inner} filters and then {growth}, of which the first are no multiple"));
    }
    let [features, ..] = filters(shapes, "features.conv0.weight")?;
    let classes = classes(shapes, "classifier")?;
    found(DenseNet { blocks, growth, bottleneck: inner / growth, features, stem }, input_channels, classes)
}

/// Convolutions are numbered with all layers between them: a ReLU, perhaps a batch norm, and a pool at the end of a block.
fn vgg(shapes: Shapes) -> Result<Found, String> {
    let of = |number: usize| format!("features.{number}.weight");
    let [_, input_channels, ..] = filters(shapes, &of(0))?;
    let batch_norm = shapes(&of(1)).is_some();
    let step = if batch_norm { 3 } else { 2 };
    let (mut blocks, mut widths, mut number) = (Vec::<usize>::new(), Vec::new(), 0);
    loop {
        let [width, ..] = filters(shapes, &of(number))?;
        let layers = count(0, |i| shapes(&of(number + i * step)).is_some_and(|shape| shape.len() == 4))?;
        blocks.push(layers);
        widths.push(width);
        number += layers * step + 1;
        if shapes(&of(number)).is_none() {
            break;
        }
        if blocks.len() > resnet::MAX_STAGES {
            return Err(format!("it has more than {} blocks", resnet::MAX_STAGES));
        }
    }
    let matrix = |layer: usize| shapes(&format!("classifier.{}.weight", 3 * layer)).filter(|shape| shape.len() == 2);
    let matrices: Vec<Vec<usize>> = (0..resnet::MAX_STAGES).map_while(matrix).collect();
    if matrices.is_empty() {
        return Err("it has no tensor 'classifier.0.weight': the features of a VGG without its hidden layers".into());
    }
    // The last one is the classifier, unless it is as square as only hidden layers are.
    let is_headless = matrices.last().is_some_and(|last| matrices.len() == 2 && last[0] == last[1]);
    let hidden = matrices.len() - usize::from(!is_headless);
    let classes = classes(shapes, &format!("classifier.{}", 3 * hidden))?;
    let hidden = matrices[..hidden].iter().map(|shape| shape[0]).collect();
    found(Vgg { blocks, widths, hidden, batch_norm, new_hidden: false }, input_channels, classes)
}

fn found<F: Family>(network: F, input_channels: usize, classes: Option<usize>) -> Result<Found, String> {
    let architecture = Architecture::from(network);
    architecture.check(input_channels)?;
    Ok(Found { architecture, input_channels, classes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::order::file_shape;

    #[test]
    fn an_architecture_is_read_off_its_own_shapes() {
        for (name, stem) in [
            ("resnet20", Some(Stem::Small)),
            ("resnet50", Some(Stem::Large)),
            ("resnet18", Some(Stem::Small)),
            ("resnet20-option-a", None),
            ("wide_resnet50_2", None),
            ("resnext50_32x4d", None),
            ("densenet121", None),
            ("densenet161", Some(Stem::Small)),
            ("vgg11", None),
            ("vgg16_bn", None),
            ("vgg19", None),
        ] {
            let width = if name.starts_with("resnext") { 16 } else { 8 };
            let architecture = Architecture::named(name, stem, Some(width)).unwrap();
            let network = architecture.build(2, 7);
            let shapes = |name: &str| network.parameter(name).map(file_shape);
            let expected = Found { architecture: architecture.clone(), input_channels: 2, classes: Some(7) };
            assert_eq!(read_off(&shapes).as_ref(), Ok(&expected));
            assert_eq!(complete(architecture.clone(), &shapes).as_ref(), Ok(&expected));
            let head = network.classifier().unwrap()[0].name.clone();
            let headless = |name: &str| shapes(name).filter(|_| *name != head);
            assert_eq!(complete(architecture.clone(), &headless).unwrap().classes, None);
            assert_eq!(read_off(&headless), Ok(Found { classes: None, ..expected }), "{name}");
        }
    }
}
