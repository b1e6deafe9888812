//! Alignment of sources where it takes images: what units of two networks say to the same ones, and how alike that is.
//!
//! One pass over the training split runs both networks on each batch, and adds up, for each group of units and where its
//! channels can be seen, Σx, Σy, Σx², Σy² and the products Σx·y of all pairs of channels (the op [`gram`]). From these come the
//! correlations.

use std::collections::{BTreeMap, BTreeSet};

use super::watch::Watch;
use super::{Observer, Target};
use crate::error::{Error, Result};
use crate::merge::align::{Similarities, by_correlation, mean_similarity};
use crate::merge::{Align, Alignment, Sources};
use crate::nn::{Model, Node, Strand, UnitGroup, Units};
use crate::ops::gram::{self, Samples};
use crate::tensor::{DType, Tensor};

/// Images that both networks see at a time.
const BATCH: usize = 32;

/// The alignment of sources to the anchor; `None` where none is asked for.
pub fn align(
    by: Align,
    sources: &Sources,
    anchor: usize,
    target: Target,
    observer: &mut dyn Observer,
) -> Result<Option<Alignment>> {
    match by {
        Align::None => Ok(None),
        Align::Weights => {
            observer.phase("aligning by weights");
            Alignment::by_weights(sources, anchor).map(Some)
        }
        Align::Activations => {
            tell_of_few_images(&sources.get(anchor).checkpoint.model, target, observer);
            let to = sources.get(anchor);
            let order = |units: &Units, index: usize| {
                let other = sources.get(index);
                observer.phase(&format!("aligning {} by activations", other.path.display()));
                let models = [&to.checkpoint.model, &other.checkpoint.model];
                let similarities = correlations(units, models, target, observer)?;
                let order = by_correlation(units, &similarities);
                let means = mean_similarity(units, &similarities, &order);
                for (group, mean) in units.groups.iter().zip(means) {
                    observer.detail(&format!("{}: partners correlate {mean:.3} on average", group.name));
                }
                Ok(order)
            };
            Alignment::new(by, sources, anchor, order).map(Some)
        }
    }
}

fn tell_of_few_images(model: &Model, target: Target, observer: &mut dyn Observer) {
    let images = target.data.train.len();
    let units = Units::of(&model.network);
    if let Some(group) = units.groups.iter().filter(|group| group.units > images).max_by_key(|group| group.units) {
        observer.remark(&format!(
            "{images} training images for {} units of {}: their correlations are rank-deficient, and some partners chance",
            group.units, group.name
        ));
    }
}

/// Sums over all images of what two networks say in one node.
#[derive(Default)]
struct Sums {
    /// Of x·y, channels × channels.
    products: Vec<f64>,
    /// Of x and x², of y and y²; 2 × channels each.
    moments: [Vec<f64>; 2],
    rows: usize,
}

/// For each strand of each group, the correlations of its channels in the first network with those in the second, over all pixels
/// of the training split; 0 where a channel is the same everywhere.
///
/// # Errors
/// If the images need more memory than there is, or an activation is not finite.
pub fn correlations(
    units: &Units,
    models: [&Model; 2],
    target: Target,
    observer: &mut dyn Observer,
) -> Result<Vec<Similarities>> {
    let strands = || units.groups.iter().flat_map(|group| &group.strands);
    let nodes: Vec<Node> = strands().filter_map(|strand| strand.seen.as_ref().map(|(node, _)| *node)).collect();
    let watch = Watch { models: &models, nodes: &nodes, batch: BATCH, target };
    watch.check_memory(0)?;
    let mut sums: BTreeMap<Node, Sums> = BTreeMap::new();
    let nodes: BTreeSet<Node> = nodes.iter().copied().collect();
    watch.each_batch(observer, |seen| {
        nodes.iter().for_each(|node| add(sums.entry(*node).or_default(), &seen[0][node], &seen[1][node]));
    })?;
    let of_strand = |(group, strand): (&UnitGroup, &Strand)| match &strand.seen {
        Some((node, positions)) => sums[node].correlations(positions, &group.name),
        // Nobody sees it: it stays as it is.
        None => Ok(identity(strand.channels())),
    };
    let of_group = |group: &UnitGroup| group.strands.iter().map(|strand| of_strand((group, strand))).collect();
    units.groups.iter().map(of_group).collect()
}

fn identity(count: usize) -> Vec<f32> {
    (0..count * count).map(|at| if at % (count + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

fn add(sums: &mut Sums, a: &Tensor, b: &Tensor) {
    let channels = a.shape().channels();
    let zeros = |rows: usize| Tensor::zeros([rows, channels], DType::F32, a.device());
    let [x, y] = [a, b].map(Samples::of);
    let mut products = zeros(channels);
    gram::accumulate(x, y, products.view_mut());
    let moments = [x, y].map(|samples| {
        let mut moments = zeros(2);
        gram::moments(samples, moments.view_mut());
        moments
    });
    sums.rows += x.rows();
    let add = |to: &mut Vec<f64>, from: &Tensor| {
        to.resize(from.shape().len(), 0.0);
        to.iter_mut().zip(from.to_vec::<f32>()).for_each(|(sum, value)| *sum += f64::from(value));
    };
    add(&mut sums.products, &products);
    sums.moments.iter_mut().zip(&moments).for_each(|(to, from)| add(to, from));
}

impl Sums {
    /// Of the channels in some positions: (Σxy − ΣxΣy/n) / √((Σx² − (Σx)²/n)(Σy² − (Σy)²/n)).
    fn correlations(&self, positions: &[usize], group: &str) -> Result<Vec<f32>> {
        let (rows, channels) = (self.rows as f64, self.moments[0].len() / 2);
        if !self.moments.iter().flatten().all(|sum| sum.is_finite()) {
            let message = format!("an activation of {group} is NaN or infinite");
            let hint = "check the network, and that --mean and --std are those of its training".to_string();
            return Err(Error::NotFinite { message, hint });
        }
        let spread = |of: &Vec<f64>, at: usize| of[channels + at] - of[at] * of[at] / rows;
        let correlation = |&i: &usize, &j: &usize| {
            let [x, y] = &self.moments;
            let covariance = self.products[i * channels + j] - x[i] * y[j] / rows;
            let scale = (spread(x, i).max(0.0) * spread(y, j).max(0.0)).sqrt();
            // What is left of a constant is rounding.
            let is_flat = |of: &Vec<f64>, at: usize| spread(of, at) <= 1e-6 * of[channels + at];
            if is_flat(x, i) || is_flat(y, j) { 0.0 } else { (covariance / scale) as f32 }
        };
        Ok(positions.iter().flat_map(|i| positions.iter().map(move |j| correlation(i, j))).collect())
    }
}
