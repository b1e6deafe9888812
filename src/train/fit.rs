//! Networks merged unit by unit on images: which units have partners, and the weights that say best what the sources said.
//!
//! After units are paired ([`Zip`]), the merged network's weights are means of its sources'. They are then fitted, layer by layer, by
//! least squares (Nasery et al., "PLeaS", 2025): with x̄ the mean of what the members of each unit before a layer say, and ȳ of what
//! those behind it make of it,
//!
//! ```text
//! min_W  Σ ‖W·x̄ − ȳ‖² + λ·‖W − W₀‖²      →      W = W₀ + (Ȳᵀ − W₀·G)·(G + λI)⁻¹,   G = X̄ᵀX̄ over all patches
//! ```
//!
//! for convolutions x̄ are patches. λ is a thousandth of G's mean diagonal: what no image shows stays as it was.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::align::correlations;
use super::fisher::fisher;
use super::watch::Watch;
use super::{Observer, Target, evaluate, reestimate_statistics};
use crate::data::SplitName;
use crate::error::{Error, Result};
use crate::merge::align::Similarities;
use crate::merge::methods::Images;
use crate::merge::solve::solve;
use crate::merge::{Sources, Zip};
use crate::nn::{Layer, Model, Network, Node, Operation, Parameter, Region, Units};
use crate::ops::concat;
use crate::ops::conv2d::{Conv2d, fprop};
use crate::ops::gram::{self, Samples};
use crate::tensor::{DType, Device, Tensor};

/// Images that the sources see at a time.
const BATCH: usize = 16;
/// Images at a time that a network is measured with.
const MEASURED: usize = 128;
/// Layers whose patches are longer keep the mean of their sources: their normal equations would take gigabytes.
const LONGEST: usize = 8192;
/// λ, as a share of the mean diagonal of G.
const PULL: f64 = 1e-3;

/// The training images of a target, for methods that learn from images.
pub struct TargetImages<'a, 'b> {
    pub target: Target<'a>,
    pub observer: RefCell<&'b mut dyn Observer>,
}

impl Images for TargetImages<'_, '_> {
    fn correlations(&self, sources: &Sources, pair: [usize; 2]) -> Result<Vec<Similarities>> {
        let models = pair.map(|index| &sources.get(index).checkpoint.model);
        correlations(&Units::of(&models[0].network), models, self.target, &mut **self.observer.borrow_mut())
    }

    fn fit(&self, merged: &mut Model, sources: &Sources, units: &Units, zip: &Zip) -> Result<Vec<String>> {
        fit(merged, sources, units, zip, self.target, &mut **self.observer.borrow_mut())
    }

    fn grams(&self, sources: &Sources, source: usize) -> Result<Vec<(usize, Vec<f64>)>> {
        grams(
            &sources.get(source).checkpoint.model,
            sources.len() - source,
            self.target,
            &mut **self.observer.borrow_mut(),
        )
    }

    fn fisher(&self, sources: &Sources, source: usize, seed: u64) -> Result<Tensor> {
        let source = sources.get(source);
        self.observer.borrow_mut().phase(&format!("how much {} depends on its numbers", source.path.display()));
        fisher(
            (&source.checkpoint.model, source.checkpoint.provenance.task().unwrap_or_default()),
            seed,
            self.target,
            &mut **self.observer.borrow_mut(),
        )
    }

    fn score(&self, model: &Model) -> Result<f64> {
        let (classes, data) = (model.network.classes, self.target.data);
        if classes != data.classes {
            let message = format!("it has {} classes, and the sources tell {classes} apart", data.classes);
            return Err(Error::data(&data.path, message, "fine-tune each source on it first: medmerge train --from"));
        }
        let mut model = model.copy();
        reestimate_statistics(&mut model, self.target, MEASURED)?;
        Ok(evaluate(&model, self.target, SplitName::Val, MEASURED)?.macro_f1)
    }
}

/// Σ x·xᵀ over all patches x that the convolutions of a network read, by their parameters; of so many networks, this and others to
/// come, all are kept.
///
/// # Errors
/// If the images need more memory than there is, or an activation is not finite.
fn grams(model: &Model, to_come: usize, target: Target, observer: &mut dyn Observer) -> Result<Vec<(usize, Vec<f64>)>> {
    let network = model.network.clone();
    let of_layer = |layer: &Layer| {
        let Operation::Conv2d { conv, weight } = layer.operation else { return None };
        let parameter = &network.parameters[weight];
        let length = parameter.shape.row_len();
        let is_read = conv.groups == 1 && length <= LONGEST && parameter.region == Region::Trunk;
        is_read.then(|| (weight, layer.inputs[0], conv, window(parameter), length))
    };
    let layers: Vec<_> = network.layers.iter().filter_map(of_layer).collect();
    let nodes: BTreeSet<Node> = layers.iter().map(|(_, node, ..)| *node).collect();
    let nodes: Vec<Node> = nodes.into_iter().collect();
    let watch = Watch { models: &[model], nodes: &nodes, batch: BATCH, target };
    // A sum in f32, and one in f64 for each source that is still to come.
    let one: usize = layers.iter().map(|(.., length)| length * length).sum();
    watch.check_memory(one * (1 + 2 * to_come))?;
    let zeros = |length: usize| Tensor::zeros([length, length], DType::F32, target.place.device);
    let mut sums: Vec<Tensor> = layers.iter().map(|&(.., length)| zeros(length)).collect();
    watch.each_batch(observer, |seen| {
        for ((_, node, conv, window, _), sum) in layers.iter().zip(&mut sums) {
            let patches = Samples::patches(&seen[0][node], *conv, *window);
            gram::accumulate(patches, patches, sum.view_mut());
        }
    })?;
    let finite = |(&(weight, ..), sum): (&(usize, _, _, _, _), Tensor)| {
        let sum = sum.to_device(Device::Cpu).to_f64();
        match sum.iter().all(|value| value.is_finite()) {
            true => Ok((weight, sum)),
            false => Err(not_finite(&network.parameters[weight].name)),
        }
    };
    layers.iter().zip(sums).map(finite).collect()
}

/// Rows and columns of a convolution's filters.
fn window(parameter: &Parameter) -> [usize; 2] {
    let [_, rows, columns, _] = parameter.shape.four();
    [rows, columns]
}

fn not_finite(name: &str) -> Error {
    Error::NotFinite {
        message: format!("what {name} reads is NaN or infinite"),
        hint: "check the sources, and that --mean and --std are those of their training".into(),
    }
}

/// A layer whose weights are fitted: its parameter, the nodes that it reads and makes, and what of the sources stands for each of
/// the merged network's channels there.
struct Fitted<'a> {
    layer: &'a Layer,
    conv: Conv2d,
    parameter: usize,
    nodes: [Node; 2],
    window: [usize; 2],
    means: [Tensor; 2],
}

/// Fits the weights of a merged network to what its aligned sources say to the training images. Returns the names of layers that
/// stay the mean of their sources.
///
/// # Errors
/// If the images need more memory than there is, or an activation is not finite.
fn fit(
    merged: &mut Model,
    sources: &Sources,
    units: &Units,
    zip: &Zip,
    target: Target,
    observer: &mut dyn Observer,
) -> Result<Vec<String>> {
    let models: Vec<&Model> = sources.iter().map(|source| &source.checkpoint.model).collect();
    let network = models[0].network.clone();
    let (layers, left) = fitted(&network, units, zip, models.len(), target.place.device);
    let nodes: BTreeSet<Node> = layers.iter().flat_map(|layer| layer.nodes).collect();
    let nodes: Vec<Node> = nodes.into_iter().collect();
    let watch = Watch { models: &models, nodes: &nodes, batch: BATCH, target };
    watch.check_memory(layers.iter().flat_map(Fitted::shapes).map(|[rows, columns]| rows * columns).sum())?;
    let zeros = |shape: [usize; 2]| Tensor::zeros(shape, DType::F32, target.place.device);
    let mut sums: Vec<[Tensor; 2]> = layers.iter().map(|layer| layer.shapes().map(zeros)).collect();
    watch.each_batch(observer, |seen| {
        layers.iter().zip(&mut sums).for_each(|(layer, sums)| layer.add(seen, sums));
    })?;
    layers.iter().zip(sums).try_for_each(|(layer, sums)| layer.solve(sums, merged))?;
    Ok(left)
}

/// The layers that can be fitted, and the names of those that cannot.
fn fitted<'a>(
    network: &'a Network,
    units: &Units,
    zip: &Zip,
    sources: usize,
    device: Device,
) -> (Vec<Fitted<'a>>, Vec<String>) {
    let (mut layers, mut left) = (Vec::new(), Vec::new());
    for (index, layer) in network.layers.iter().enumerate() {
        let Operation::Conv2d { conv, weight } = layer.operation else { continue };
        let parameter = &network.parameters[weight];
        let [rows, columns] = zip.members_of(units, network, weight, sources);
        let length = columns.len() * parameter.shape.row_len() / parameter.shape.channels();
        if parameter.region == Region::Head {
            continue;
        }
        if conv.groups > 1 || length > LONGEST {
            left.push(layer.name.clone());
            continue;
        }
        let channels = [parameter.shape.channels(), parameter.shape.rows()];
        let means = [(&columns, channels[0]), (&rows, channels[1])]
            .map(|(members, channels)| mean_filters(members, channels, sources).to_device(device));
        let (nodes, window) = ([layer.inputs[0], Node::of_layer(index)], window(parameter));
        layers.push(Fitted { layer, conv, parameter: weight, nodes, window, means });
    }
    (layers, left)
}

/// 1×1 filters that take the mean of each unit's members from the channels of all sources side by side.
fn mean_filters(members: &[Vec<[usize; 2]>], channels: usize, sources: usize) -> Tensor {
    let mut filters = vec![0f32; members.len() * channels * sources];
    for (members, filter) in members.iter().zip(filters.chunks_mut(channels * sources)) {
        members.iter().for_each(|[source, at]| filter[source * channels + at] += 1.0 / members.len() as f32);
    }
    Tensor::from_vec(filters, [members.len(), 1, 1, channels * sources])
}

impl Fitted<'_> {
    /// Of X̄ᵀX̄ and X̄ᵀȲ.
    fn shapes(&self) -> [[usize; 2]; 2] {
        let [read, made] = self.means.each_ref().map(|means| means.shape().rows());
        let length = read * self.window[0] * self.window[1];
        [[length, length], [length, made]]
    }

    fn add(&self, seen: &[BTreeMap<Node, Tensor>], sums: &mut [Tensor; 2]) {
        let of = |node: Node, means: &Tensor| {
            let all: Vec<&Tensor> = seen.iter().map(|seen| &seen[&node]).collect();
            let side_by_side = concat::forward(&all);
            let [n, h, w, _] = side_by_side.shape().four();
            let means = means.cast(side_by_side.dtype());
            let mut mean = Tensor::uninit([n, h, w, means.shape().rows()], side_by_side.dtype(), side_by_side.device());
            fprop(Conv2d::new(1, 0), &side_by_side, &means, mean.view_mut());
            mean
        };
        let [x, y] = [0, 1].map(|end| of(self.nodes[end], &self.means[end]));
        let patches = Samples::patches(&x, self.conv, self.window);
        let [gram, products] = sums;
        gram::accumulate(patches, patches, gram.view_mut());
        gram::accumulate(patches, Samples::of(&y), products.view_mut());
    }

    fn solve(&self, sums: [Tensor; 2], merged: &mut Model) -> Result<()> {
        let network = merged.network.clone();
        let parameter = &network.parameters[self.parameter];
        let before = merged.parameter(parameter).to_vec::<f32>();
        let [gram, products] = sums.map(|sum| sum.to_device(Device::Cpu).to_f64());
        let (rows, d) = (parameter.shape.rows(), parameter.shape.row_len());
        assert_eq!((gram.len(), products.len()), (d * d, d * rows), "normal equations of {}", self.layer.name);
        let lambda = PULL * (0..d).map(|i| gram[i * d + i]).sum::<f64>() / d as f64;
        if lambda == 0.0 {
            // It reads nothing but zeros.
            return Ok(());
        }
        let mut change = vec![0f64; before.len()];
        change.par_chunks_mut(d).zip(before.par_chunks(d)).enumerate().for_each(|(row, (change, old))| {
            for (i, change) in change.iter_mut().enumerate() {
                let said: f64 = gram[i * d..][..d].iter().zip(old).map(|(g, &w)| g * f64::from(w)).sum();
                *change = products[i * rows + row] - said;
            }
        });
        solve(&gram, d, lambda, &mut change).map_err(|_| not_finite(&self.layer.name))?;
        let after: Vec<f32> =
            before.iter().zip(&change).map(|(&old, change)| (f64::from(old) + change) as f32).collect();
        if after.iter().any(|weight| !weight.is_finite()) {
            return Err(not_finite(&self.layer.name));
        }
        merged.set_parameter(parameter, &after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Normalisation;
    use crate::data::synthetic::{SyntheticOptions, Task, generate};
    use crate::nn::Architecture;
    use crate::train::{Place, Silent};

    /// Two sources that are one, and weights that were lost: what both say determines them.
    #[test]
    fn weights_are_found_from_what_they_say() {
        let data =
            generate(Task::Shape, &SyntheticOptions { size: 32, train: 48, val: 4, test: 4, ..Default::default() });
        for name in ["resnet8", "vgg11"] {
            let architecture = Architecture::named(name, None, Some(4)).unwrap();
            let model = Model::initialized(architecture.build(data.channels, data.classes), 1);
            let named = |path: &str| (path.to_string(), architecture.clone(), model.clone());
            let sources = Sources::from_models(vec![named("a"), named("b")]);
            let units = Units::of(&model.network);
            let zip = Zip::in_order(&units, 2);
            let mut merged = model.copy();
            let first = model.network.parameters.iter().position(|p| p.shape.rank() == 4).unwrap();
            let second =
                first + 1 + model.network.parameters[first + 1..].iter().position(|p| p.shape.rank() == 4).unwrap();
            for index in [first, second] {
                let parameter = &model.network.parameters[index];
                merged.set_parameter(parameter, &vec![0f32; parameter.shape.len()]);
            }
            let target = Target { data: &data, normalisation: &Normalisation::default(), place: Place::default() };
            let left = fit(&mut merged, &sources, &units, &zip, target, &mut Silent).unwrap();
            assert!(left.is_empty(), "{left:?}");
            for (index, parameter) in model.network.parameters.iter().enumerate().filter(|(_, p)| p.shape.rank() == 4) {
                let [before, after] = [&model, &merged].map(|model| model.parameter(parameter).to_f64());
                let scale = before.iter().fold(0f64, |most, x| most.max(x.abs()));
                let worst = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
                // Those that were right stay, but for sums that f32 rounds, divided by λ, a thousandth of them; of those that
                // were lost, what images hardly show is pulled to zero.
                let allowed = if [first, second].contains(&index) { 0.25 } else { 1e-2 };
                assert!(worst <= allowed * scale, "{name}, {}: {worst} of {scale}", parameter.name);
            }
        }
    }
}
