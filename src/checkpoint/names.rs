//! The names that exporters give to a network's tensors, and what network they tell of.
//!
//! A file that names its architecture in the header is read by that; of others, the names and shapes of the tensors have to
//! say it. Names of parameters are the network's own, which are torchvision's.

use crate::nn::families::resnet::{self, ResNet};
use crate::nn::{Architecture, Family, Layer, Node, Operation, Stem};

/// The running statistics of a batch norm in a file: suffix of the name.
pub(super) const MEAN: &str = "running_mean";
pub(super) const VARIANCE: &str = "running_var";
pub(super) const COUNTER: &str = "num_batches_tracked";

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
    torchvision_resnet(shapes)
}

/// Whether networks of a family can be read off their tensors.
pub(super) fn can_be_read_off(architecture: &Architecture) -> bool {
    architecture.family() == ResNet::NAME
}

/// Completes a network whose architecture is known by what a file's tensors say: its input channels are those of the
/// filters that read the images, its classes those of the classifier.
pub(super) fn complete(architecture: Architecture, shapes: Shapes) -> Result<Found, String> {
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

/// ResNets of torchvision, and whatever is named like them.
fn torchvision_resnet(shape: Shapes) -> Result<Found, String> {
    let four = |name: &str| match shape(name).as_deref() {
        Some(&[k, c, r, s]) => Ok([k, c, r, s]),
        Some(other) => Err(format!("{name} has shape {other:?}, not that of a convolution")),
        None => Err(format!("it has no tensor '{name}'")),
    };
    let [_, input_channels, r, s] = four("conv1.weight")?;
    let Some(stem) = Stem::usual([r, s]) else {
        return Err(format!("conv1.weight is {r}×{s}; stems are 3×3 or 7×7"));
    };
    let bottleneck = shape("layer1.0.conv3.weight").is_some();
    let (mut blocks, mut widths) = (Vec::new(), Vec::new());
    for stage in 1.. {
        let is_block = |i: &usize| shape(&format!("layer{stage}.{i}.conv1.weight")).is_some();
        let count = (0..=resnet::MAX_BLOCKS).take_while(is_block).count();
        if count == 0 {
            break;
        }
        if count > resnet::MAX_BLOCKS || stage > resnet::MAX_STAGES {
            return Err(format!(
                "it has more than {} stages, or {} blocks in one",
                resnet::MAX_STAGES,
                resnet::MAX_BLOCKS
            ));
        }
        blocks.push(count);
        widths.push(four(&format!("layer{stage}.0.conv1.weight"))?[0]);
    }
    if blocks.is_empty() {
        return Err("it has no tensor 'layer1.0.conv1.weight'".into());
    }
    let classes = match shape("fc.weight").as_deref() {
        Some(&[0, _]) => return Err("fc.weight tells 0 classes apart".into()),
        Some(&[classes, _]) => Some(classes),
        Some(other) => return Err(format!("fc.weight has shape {other:?}, not that of a matrix")),
        None => None,
    };
    let architecture = Architecture::from(ResNet { bottleneck, blocks, widths, stem });
    architecture.check(input_channels)?;
    Ok(Found { architecture, input_channels, classes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::order::file_shape;

    #[test]
    fn an_architecture_is_read_off_its_own_shapes() {
        for (name, stem) in [("resnet20", Stem::Small), ("resnet50", Stem::Large), ("resnet18", Stem::Small)] {
            let architecture = Architecture::named(name, Some(stem), Some(8)).unwrap();
            let network = architecture.build(2, 7);
            let shapes = |name: &str| network.parameter(name).map(file_shape);
            let expected = Found { architecture: architecture.clone(), input_channels: 2, classes: Some(7) };
            assert_eq!(read_off(&shapes).as_ref(), Ok(&expected));
            assert_eq!(complete(architecture.clone(), &shapes).as_ref(), Ok(&expected));
            let headless = |name: &str| shapes(name).filter(|_| !name.starts_with("fc"));
            assert_eq!(complete(architecture, &headless).unwrap().classes, None);
        }
    }
}
