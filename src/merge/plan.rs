//! From a granularity to a table: which α every parameter of a network takes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Feed, Network, Parameter, Region, Role, Rows};
use crate::ops::merge::constraint::{Constraint, Mean, Parametrization};
use crate::ops::merge::{Choice, Segment, Table};
use crate::tensor::{DType, Tensor};

/// How many weights share one merge weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Granularity {
    /// All of the network.
    Model,
    /// A convolution and the batch norm behind it.
    Layer,
    /// The C·R·S weights of one output channel.
    Filter,
    /// The R·S weights between one input and one output channel.
    Kernel,
}

/// The treatment of γ and β.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BatchNormPolicy {
    /// Merged by the α of the filter that feeds the channel.
    Merge,
    /// The anchor's.
    Anchor,
    /// Merged by merge weights of their own, one for each γ and one for each β; one for all of a norm's γ where a layer, or the whole
    /// network, shares one merge weight.
    Own,
}

/// The weight that every source but the anchor starts with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Start {
    /// 1/M for each of M sources.
    Uniform,
    Weight(f64),
    /// What is learned first with one weight for each layer, from 1/M; learning goes on from there with more.
    Layer,
    /// The same with one for each filter. With `regularise` each kernel's weight is pulled towards its filter's.
    Filter,
}

impl Start {
    pub fn weight(self, sources: usize) -> f64 {
        match self {
            Start::Uniform | Start::Layer | Start::Filter => 1.0 / sources as f64,
            Start::Weight(weight) => weight,
        }
    }

    /// What is learned first.
    pub fn coarser(self) -> Option<Granularity> {
        match self {
            Start::Layer => Some(Granularity::Layer),
            Start::Filter => Some(Granularity::Filter),
            Start::Uniform | Start::Weight(_) => None,
        }
    }
}

macro_rules! names {
    ($type:ty, $kind:literal, $($variant:ident = $name:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(name: &str) -> Result<Self> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(Error::unknown($kind, name, [$($name),+])),
                }
            }
        }
    };
}

names!(Granularity, "granularity", Model = "model", Layer = "layer", Filter = "filter", Kernel = "kernel");
names!(BatchNormPolicy, "batch norm policy", Merge = "merge", Anchor = "anchor", Own = "own");
names!(Constraint, "constraint", Affine = "affine", Clamp = "clamp", Simplex = "simplex", Free = "free");

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Uniform => f.write_str("uniform"),
            Start::Layer => f.write_str("layer"),
            Start::Filter => f.write_str("filter"),
            Start::Weight(weight) => write!(f, "{weight}"),
        }
    }
}

impl FromStr for Start {
    type Err = Error;
    fn from_str(text: &str) -> Result<Start> {
        match text.parse::<f64>() {
            _ if text == "uniform" => Ok(Start::Uniform),
            _ if text == "layer" => Ok(Start::Layer),
            _ if text == "filter" => Ok(Start::Filter),
            Ok(weight) if weight.is_finite() => Ok(Start::Weight(weight)),
            _ => Err(Error::usage(
                format!("--start {text}"),
                "give a number, such as 0 or 0.5, or 'uniform', 'layer' or 'filter'",
            )),
        }
    }
}

/// Everything that decides what is learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Method {
    pub sources: usize,
    pub anchor: usize,
    pub granularity: Granularity,
    pub constraint: Constraint,
    pub batch_norm: BatchNormPolicy,
}

/// The merge weights of one convolution, of one parameter of a batch norm, or of the whole network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightGroup {
    /// The convolution's name, the whole name of the norm's parameter, or "model".
    pub name: String,
    /// Where its numbers begin in each learned row.
    pub first: usize,
    /// Shape of its numbers in each learned row: none, K, or K×C.
    pub shape: Vec<usize>,
}

impl WeightGroup {
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A method applied to a network.
#[derive(Clone, Debug)]
pub struct Plan {
    pub method: Method,
    pub table: Arc<Table>,
    pub parametrization: Arc<Parametrization>,
    pub entries: Vec<WeightGroup>,
}

impl Plan {
    /// # Errors
    /// If a parameter of the trunk has no α: nothing that is merged feeds it.
    pub fn new(network: &Network, method: Method) -> Result<Plan> {
        let mut rows = RowsOfAlpha::new(network, &method);
        let mut segments = Vec::new();
        for parameter in network.region(Region::Trunk) {
            rows.add_segments(parameter, &method, &mut segments)?;
        }
        segments.sort_by_key(|segment| segment.offset);
        let RowsOfAlpha { entries, learned, means, alphas, .. } = rows;
        let Method { sources, anchor, constraint, .. } = method;
        Ok(Plan {
            method,
            table: Arc::new(Table::new(segments, alphas, network.trunk_len).with_filters(network.filters_len)),
            parametrization: Arc::new(Parametrization::new(constraint, sources, anchor, learned, means)),
            entries,
        })
    }

    /// The merge weights that learning begins with: learned rows × merge weights in each. Those of a start that is learned first are
    /// what that begins with in its turn; see [`Plan::spread`].
    pub fn start(&self, start: Start) -> Result<Tensor> {
        let Method { sources, anchor, constraint, granularity, .. } = self.method;
        if let Some(first) = start.coarser()
            && first >= granularity
        {
            let message = format!("--start {start} with --granularity {granularity}");
            return Err(Error::usage(
                message,
                "what is learned first shares a merge weight among more than what follows",
            ));
        }
        let weight = start.weight(sources);
        let of_anchor = 1.0 - weight * (sources - 1) as f64;
        let outside = !(0.0..=1.0).contains(&weight) && constraint == Constraint::Clamp;
        if outside || (constraint == Constraint::Simplex && (weight <= 0.0 || of_anchor <= 0.0)) {
            return Err(Error::usage(
                format!("--start {start} with --constraint {constraint} and {sources} sources"),
                match constraint {
                    Constraint::Simplex => "on the simplex every source starts above 0; try --start uniform or 0.1",
                    _ => "clamped weights start between 0 and 1",
                },
            ));
        }
        let rows = self.parametrization.row_sources().into_iter().flat_map(|source| {
            let alpha = if source == anchor { of_anchor } else { weight };
            let value = if constraint == Constraint::Simplex { alpha.ln() } else { alpha };
            std::iter::repeat_n(value as f32, self.parametrization.learned)
        });
        Ok(Tensor::from_vec(rows.collect::<Vec<f32>>(), [self.parametrization.rows(), self.parametrization.learned]))
    }

    /// What was learned by `coarser`, a plan for the same network whose merge weights are shared by more, for each merge weight here.
    pub fn spread(&self, coarser: &Plan, learned: &Tensor) -> Tensor {
        let (count, coarse) = (self.parametrization.learned, coarser.parametrization.learned);
        let mut spread = vec![0f32; self.parametrization.rows() * count];
        for (entry, shared) in self.entries.iter().zip(&coarser.entries) {
            assert!(entry.name == shared.name && entry.count().is_multiple_of(shared.count()), "{}", entry.name);
            // Kernels lie filter by filter.
            let of_each = entry.count() / shared.count();
            for (row, learned) in spread.chunks_mut(count).zip(learned.to_vec::<f32>().chunks(coarse)) {
                let of_entry = row[entry.first..][..entry.count()].chunks_mut(of_each);
                of_entry.zip(&learned[shared.first..]).for_each(|(of_one, &weight)| of_one.fill(weight));
            }
        }
        Tensor::from_vec(spread, [self.parametrization.rows(), count])
    }

    /// The blended trunk for what has been learned.
    pub fn blend(&self, trunks: &[Tensor], learned: &Tensor) -> Tensor {
        self.blend_by(&self.parametrization.alpha(learned), trunks)
    }

    /// The blended trunk for α, sources × α, with the same bits wherever all of them are.
    pub fn blend_by(&self, alpha: &Tensor, trunks: &[Tensor]) -> Tensor {
        let mut blend = Tensor::uninit([self.table.arena_len()], DType::F32, alpha.device());
        crate::ops::merge::blend(&self.table, &trunks.iter().collect::<Vec<_>>(), alpha, blend.view_mut());
        blend
    }

    /// α of a layer, source by source.
    pub fn alphas_of(&self, entry: &WeightGroup, learned: &Tensor) -> Vec<Vec<f32>> {
        let alpha = self.parametrization.alpha(learned).to_vec::<f32>();
        alpha.chunks(self.parametrization.alphas()).map(|row| row[entry.first..][..entry.count()].to_vec()).collect()
    }
}

/// Which α the filters of a network take, and with them whatever they feed.
struct RowsOfAlpha<'a> {
    network: &'a Network,
    granularity: Granularity,
    entries: Vec<WeightGroup>,
    /// α that are learned.
    learned: usize,
    /// The first α of each parameter that holds filters.
    first: BTreeMap<usize, usize>,
    /// The first α of each γ and β that has its own, by where they lie.
    first_of_norms: BTreeMap<usize, usize>,
    /// Means of the α of kernels, one per channel that filters feed, and where those begin: behind all that is learned.
    means: Vec<Mean>,
    means_of: BTreeMap<(Rows, usize), usize>,
    /// All α: learned ones and means.
    alphas: usize,
}

impl RowsOfAlpha<'_> {
    fn new<'a>(network: &'a Network, method: &Method) -> RowsOfAlpha<'a> {
        let Method { granularity, batch_norm, .. } = *method;
        let (mut entries, mut first, mut learned) = (Vec::new(), BTreeMap::new(), 0);
        if granularity == Granularity::Model {
            entries.push(WeightGroup { name: "model".into(), first: 0, shape: vec![] });
            learned = 1;
        }
        let holds_filters = |p: &Parameter| p.region == Region::Trunk && p.role == Role::Filters;
        for (index, parameter) in network.parameters.iter().enumerate().filter(|(_, p)| holds_filters(p)) {
            let (filters, channels) = (parameter.shape.rows(), parameter.shape.channels());
            let shape = match granularity {
                Granularity::Model => {
                    first.insert(index, 0);
                    continue;
                }
                Granularity::Layer => vec![],
                Granularity::Filter => vec![filters],
                Granularity::Kernel => vec![filters, channels],
            };
            let entry =
                WeightGroup { name: parameter.name.trim_end_matches(".weight").to_string(), first: learned, shape };
            first.insert(index, learned);
            learned += entry.count();
            entries.push(entry);
        }
        let mut first_of_norms = BTreeMap::new();
        let has_own =
            |p: &&Parameter| batch_norm == BatchNormPolicy::Own && matches!(p.role, Role::Scale | Role::Shift);
        for parameter in network.region(Region::Trunk).filter(has_own) {
            let shape = match granularity {
                Granularity::Model | Granularity::Layer => vec![],
                Granularity::Filter | Granularity::Kernel => vec![parameter.shape.len()],
            };
            let entry = WeightGroup { name: parameter.name.clone(), first: learned, shape };
            first_of_norms.insert(parameter.offset, learned);
            learned += entry.count();
            entries.push(entry);
        }
        let (means, means_of) = (Vec::new(), BTreeMap::new());
        RowsOfAlpha { network, granularity, entries, learned, first, first_of_norms, means, means_of, alphas: learned }
    }

    /// The α of every number of a parameter.
    fn add_segments(&mut self, parameter: &Parameter, method: &Method, to: &mut Vec<Segment>) -> Result<()> {
        let Parameter { shape, offset, pitch, role, .. } = *parameter;
        let vector = |first: usize, row_len: usize, choice: Choice| Segment {
            offset: offset + first,
            rows: 1,
            row_len,
            pitch: row_len,
            choice,
        };
        if role == Role::Filters {
            let [Feed { filters, .. }] = parameter.feeds.as_slice() else { panic!("filters feed themselves") };
            let choice = self.of_rows(filters[0], shape.channels());
            to.push(Segment { offset, rows: shape.rows(), row_len: shape.row_len(), pitch, choice });
            return Ok(());
        }
        if matches!(role, Role::Scale | Role::Shift) && method.batch_norm == BatchNormPolicy::Anchor {
            to.push(vector(0, shape.len(), Choice::Source(method.anchor)));
            return Ok(());
        }
        if let Some(&first) = self.first_of_norms.get(&offset) {
            let period = match self.granularity {
                Granularity::Model | Granularity::Layer => 1,
                Granularity::Filter | Granularity::Kernel => shape.len(),
            };
            to.push(vector(0, shape.len(), Choice::Alpha { first, row_step: 0, period }));
            return Ok(());
        }
        let mut channel = 0;
        for feed in &parameter.feeds {
            let choice = self.of_feed(feed).ok_or_else(|| {
                let message = format!(
                    "no filter feeds channel {channel} of {}, so that no merge weight is its own per {}",
                    parameter.name, self.granularity
                );
                Error::usage(message, "use --granularity model; or, for a batch norm, --batch-norm anchor or own")
            })?;
            to.push(vector(channel, feed.channels, choice));
            channel += feed.channels;
        }
        Ok(())
    }

    /// A bank of filters of `channels` channels each.
    fn of_rows(&self, rows: Rows, channels: usize) -> Choice {
        let first = self.first[&rows.parameter];
        let (row_step, period) = match self.granularity {
            Granularity::Model | Granularity::Layer => (0, 1),
            Granularity::Filter => (1, 1),
            Granularity::Kernel => (channels, channels),
        };
        Choice::Alpha { first, row_step, period }
    }

    /// A number for each channel of a feed. Of several filters that a sum lets feed a channel, the last one counts: that of
    /// the branch, where the others came along the shortcut.
    fn of_feed(&mut self, feed: &Feed) -> Option<Choice> {
        let one_for_all = |first: usize| Choice::Alpha { first, row_step: 0, period: 1 };
        if self.granularity == Granularity::Model {
            return Some(one_for_all(0));
        }
        let rows = *feed.filters.last()?;
        let first = self.first[&rows.parameter];
        let first = match self.granularity {
            Granularity::Model | Granularity::Layer => return Some(one_for_all(first)),
            Granularity::Filter => first + rows.first,
            Granularity::Kernel => self.mean_of(rows, feed.channels),
        };
        Some(Choice::Alpha { first, row_step: 0, period: feed.channels })
    }

    /// Where the means over the kernels of `count` filters begin, made when they are first asked for.
    fn mean_of(&mut self, rows: Rows, count: usize) -> usize {
        *self.means_of.entry((rows, count)).or_insert_with(|| {
            let period = self.network.parameters[rows.parameter].shape.channels();
            self.means.push(Mean { first: self.first[&rows.parameter] + rows.first * period, rows: count, period });
            self.alphas += count;
            self.alphas - count
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::network;
    use crate::nn::{Architecture, NetworkBuilder, Operation, Stem};
    use crate::ops::conv2d::Conv2d;

    const GRANULARITIES: [Granularity; 4] =
        [Granularity::Model, Granularity::Layer, Granularity::Filter, Granularity::Kernel];

    fn method(granularity: Granularity, constraint: Constraint) -> Method {
        Method { sources: 2, anchor: 0, granularity, constraint, batch_norm: BatchNormPolicy::Merge }
    }

    fn plan(network: &Network, granularity: Granularity, constraint: Constraint) -> Plan {
        Plan::new(network, method(granularity, constraint)).unwrap()
    }

    /// Two convolutions side by side, and a batch norm over both, the image between them or not.
    fn concatenated(with_image: bool) -> Arc<Network> {
        let mut b = NetworkBuilder::new(2);
        let [x, y] = [("a", 3), ("c", 5)].map(|(name, count)| b.conv2d(name, b.input(), count, 3, Conv2d::new(1, 1)));
        let inputs = if with_image { vec![x, b.input(), y] } else { vec![x, y] };
        let x = b.plain("concat", Operation::Concat, &inputs);
        b.batch_norm("bn", x);
        b.finish()
    }

    /// The blend of a trunk of ones and one of zeros: what each of its numbers makes of α = 1, 2, 3 …
    fn alphas(network: &Network, plan: &Plan, name: &str) -> Vec<f32> {
        let alphas = plan.table.alphas();
        let alpha = (1..=alphas).map(|i| i as f32).chain(std::iter::repeat_n(0.0, alphas)).collect();
        let alpha = Tensor::from_vec(alpha, [2, alphas]);
        let trunk = |value: f32| Tensor::from_vec(vec![value; network.trunk_len], [network.trunk_len]);
        let blend = plan.blend_by(&alpha, &[trunk(1.0), trunk(0.0)]);
        let p = network.parameter(name).unwrap();
        blend.window(p.offset, p.shape, p.pitch).to_vec()
    }

    #[test]
    fn a_norm_over_a_concatenation_takes_the_weights_of_all_that_feed_it() {
        let network = concatenated(false);
        let of = |granularity, name: &str| alphas(&network, &plan(&network, granularity, Constraint::Free), name);
        assert_eq!(of(Granularity::Model, "bn.weight"), [1.0; 8]);
        assert_eq!(of(Granularity::Layer, "bn.bias"), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(of(Granularity::Filter, "bn.weight"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        // Two α for each of eight filters, then the means of each filter's, which γ and β share.
        let means: Vec<f32> = (17..=24).map(|i| i as f32).collect();
        assert_eq!(of(Granularity::Kernel, "bn.weight"), means);
        assert_eq!(of(Granularity::Kernel, "bn.bias"), means);
        let per_kernel = plan(&network, Granularity::Kernel, Constraint::Free);
        assert_eq!(per_kernel.table.alphas(), 24);
        let learned = (0..16).map(|i| i as f32).chain([0.0; 16]).collect();
        let alpha = per_kernel.parametrization.alpha(&Tensor::from_vec(learned, [2, 16])).to_vec::<f32>();
        assert_eq!(alpha[16..24], [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]);
    }

    #[test]
    fn a_parameter_that_nothing_feeds_is_an_error_and_never_the_anchors() {
        let network = concatenated(true);
        for granularity in [Granularity::Layer, Granularity::Filter, Granularity::Kernel] {
            let error = Plan::new(&network, method(granularity, Constraint::Affine)).unwrap_err().to_string();
            assert!(error.contains("no filter feeds channel 3 of bn.weight"), "{error}");
            let by_anchor = Method { batch_norm: BatchNormPolicy::Anchor, ..method(granularity, Constraint::Affine) };
            assert!(Plan::new(&network, by_anchor).is_ok());
        }
        let whole = plan(&network, Granularity::Model, Constraint::Free);
        assert_eq!(alphas(&network, &whole, "bn.weight"), [1.0; 10]);
    }

    #[test]
    fn batch_norms_with_weights_of_their_own_take_those() {
        let network = concatenated(true);
        let own = |granularity| {
            let method = Method { batch_norm: BatchNormPolicy::Own, ..method(granularity, Constraint::Free) };
            Plan::new(&network, method).unwrap()
        };
        // Of the two convolutions first, then γ and β of the norm over ten channels, two of which no filter feeds.
        for (granularity, learned) in
            [(Granularity::Model, 1), (Granularity::Layer, 2), (Granularity::Filter, 8), (Granularity::Kernel, 16)]
        {
            let plan = own(granularity);
            let of_norm = if matches!(granularity, Granularity::Model | Granularity::Layer) { 1 } else { 10 };
            assert_eq!(plan.parametrization.learned, learned + 2 * of_norm, "{granularity}");
            let numbers = |first: usize| (0..10).map(|i| (first + i % of_norm + 1) as f32).collect::<Vec<f32>>();
            assert_eq!(alphas(&network, &plan, "bn.weight"), numbers(learned), "{granularity}");
            assert_eq!(alphas(&network, &plan, "bn.bias"), numbers(learned + of_norm), "{granularity}");
            let names: Vec<&str> = plan.entries.iter().map(|entry| entry.name.as_str()).collect();
            assert_eq!(names[names.len() - 2..], ["bn.weight", "bn.bias"]);
        }
        let (kernels, layers) = (own(Granularity::Kernel), own(Granularity::Layer));
        let spread = kernels.spread(&layers, &Tensor::from_vec((1..=8).map(|i| i as f32).collect(), [2, 4]));
        let row =
            |first: f32| [[first; 6].to_vec(), vec![first + 1.0; 10], vec![first + 2.0; 10], vec![first + 3.0; 10]];
        assert_eq!(spread.to_vec::<f32>(), [row(1.0).concat(), row(5.0).concat()].concat());
        let filters = own(Granularity::Filter);
        let by_filter: Vec<f32> = (0..2 * filters.parametrization.learned).map(|i| i as f32).collect();
        let spread = kernels.spread(&filters, &Tensor::from_vec(by_filter, [2, filters.parametrization.learned]));
        let spread = spread.to_vec::<f32>();
        for (entry, of_filters) in kernels.entries.iter().zip(&filters.entries) {
            for index in 0..entry.count() {
                let filter = index * of_filters.count() / entry.count();
                assert_eq!(spread[entry.first + index], (of_filters.first + filter) as f32, "{} {index}", entry.name);
            }
        }
        for (plan, allowed) in [(&layers, [false, false]), (&filters, [true, false]), (&kernels, [true, true])] {
            assert_eq!([Start::Layer, Start::Filter].map(|start| plan.start(start).is_ok()), allowed);
        }
    }

    /// DenseNet-121, most of whose norms read what many convolutions made, and a norm behind a shortcut.
    #[test]
    fn every_number_of_a_trunk_is_merged() {
        let mut networks =
            vec![network("densenet121", Stem::Small, 2).unwrap(), network("resnet18", Stem::Large, 2).unwrap()];
        let mut b = NetworkBuilder::new(2);
        let x = b.conv2d("a", b.input(), 4, 1, Conv2d::new(1, 0));
        let y = b.conv2d("c", x, 4, 1, Conv2d::new(1, 0));
        let sum = b.plain("sum", Operation::Add, &[y, x]);
        b.batch_norm("bn", sum);
        networks.push(b.finish());
        for network in &networks {
            for granularity in GRANULARITIES {
                let plan = plan(network, granularity, Constraint::Affine);
                let merged: usize = plan.table.segments().iter().map(|segment| segment.rows * segment.row_len).sum();
                let is_merged = |segment: &Segment| matches!(segment.choice, Choice::Alpha { .. });
                assert!(plan.table.segments().iter().all(is_merged));
                let numbers: usize = network.region(Region::Trunk).map(|p| p.shape.len()).sum();
                assert_eq!(merged, numbers, "{granularity}");
            }
        }
        let behind_shortcut = plan(&networks[2], Granularity::Layer, Constraint::Free);
        assert_eq!(alphas(&networks[2], &behind_shortcut, "bn.weight"), [2.0; 4], "of the branch");
    }

    /// Merge weights per source, counted by hand from torchvision's layers.
    #[test]
    fn counts_of_merge_weights() {
        for (name, per_filter, per_kernel) in [("resnet18", 4_800, 1_392_832), ("resnet50", 26_560, 13_424_832)] {
            let network = Architecture::named(name, None, None).unwrap().build(3, 10);
            let count = |granularity| plan(&network, granularity, Constraint::Affine).parametrization.learned;
            assert_eq!(count(Granularity::Model), 1);
            assert_eq!(count(Granularity::Filter), per_filter, "{name}");
            let kernels: usize = network
                .parameters
                .iter()
                .filter(|p| p.shape.rank() == 4)
                .map(|p| p.shape.dims()[0] * p.shape.dims()[3])
                .sum();
            assert_eq!(count(Granularity::Kernel), kernels);
            assert!(kernels.abs_diff(per_kernel) < per_kernel / 50, "{name}: {kernels}");
        }
    }

    /// The published counts are of convolutions alone; a VGG's hidden layers have a merge weight for each row, or are the head's.
    #[test]
    fn counts_of_merge_weights_of_other_families() {
        let count = |architecture: &Architecture, granularity| {
            let network = architecture.build(3, 10);
            plan(&network, granularity, Constraint::Affine).parametrization.learned
        };
        let densenet = Architecture::named("densenet121", None, None).unwrap();
        assert_eq!(count(&densenet, Granularity::Filter), 10_240);
        assert!(count(&densenet, Granularity::Kernel).abs_diff(4_960_000) < 50_000);
        let vgg = Architecture::named("vgg16", None, None).unwrap();
        assert_eq!(count(&vgg, Granularity::Filter), 4_224 + 2 * 4_096);
        let without = vgg.with_new_hidden().unwrap();
        assert_eq!(count(&without, Granularity::Filter), 4_224);
        assert!(count(&without, Granularity::Kernel).abs_diff(1_630_000) < 10_000);
        assert_eq!(without.with_new_hidden().unwrap(), without);
    }

    /// Every parameter of every family takes the α of a filter that feeds it: nothing is left to the anchor.
    #[test]
    fn every_network_has_a_rule_for_each_of_its_parameters() {
        for name in Architecture::names() {
            let network = Architecture::named(name, None, Some(16)).unwrap().build(3, 4);
            for granularity in GRANULARITIES {
                plan(&network, granularity, Constraint::Affine);
            }
        }
    }

    #[test]
    fn a_start_of_zero_gives_the_anchor_itself() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let trunks: Vec<Tensor> =
            (0..2).map(|seed| crate::nn::Model::initialized(network.clone(), seed).trunk).collect();
        for granularity in GRANULARITIES {
            let plan = plan(&network, granularity, Constraint::Affine);
            let learned = plan.start(Start::Weight(0.0)).unwrap();
            assert_eq!(plan.blend(&trunks, &learned).to_vec::<f32>(), trunks[0].to_vec::<f32>(), "{granularity}");
        }
    }

    #[test]
    fn the_simplex_refuses_to_start_at_a_corner() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let plan = plan(&network, Granularity::Filter, Constraint::Simplex);
        assert!(plan.start(Start::Weight(0.0)).is_err());
        let alpha = plan.parametrization.alpha(&plan.start(Start::Weight(0.25)).unwrap()).to_f64();
        let (anchor, other) = alpha.split_at(alpha.len() / 2);
        assert!(anchor.iter().all(|a| (a - 0.75).abs() < 1e-6) && other.iter().all(|a| (a - 0.25).abs() < 1e-6));
    }
}
