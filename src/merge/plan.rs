//! From a granularity to a table: which α every parameter of a network takes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Kind, Network, Region};
use crate::ops::merge::constraint::{Constraint, Mean, Parametrization};
use crate::ops::merge::{Choice, Segment, Table};
use crate::tensor::{DType, Device, Tensor};

/// How many weights share one merge weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// What becomes of γ and β.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNormPolicy {
    /// Merged by the α of the filter that feeds the channel.
    Merge,
    /// The anchor's.
    Anchor,
}

/// The weight that every source but the anchor starts with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// 1/M for each of M sources.
    Uniform,
    Weight(f64),
}

impl Start {
    pub fn weight(self, sources: usize) -> f64 {
        match self {
            Start::Uniform => 1.0 / sources as f64,
            Start::Weight(weight) => weight,
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
names!(BatchNormPolicy, "batch norm policy", Merge = "merge", Anchor = "anchor");
names!(Constraint, "constraint", Affine = "affine", Clamp = "clamp", Simplex = "simplex", Free = "free");

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Uniform => f.write_str("uniform"),
            Start::Weight(weight) => write!(f, "{weight}"),
        }
    }
}

impl FromStr for Start {
    type Err = Error;
    fn from_str(text: &str) -> Result<Start> {
        match text.parse::<f64>() {
            _ if text == "uniform" => Ok(Start::Uniform),
            Ok(weight) if weight.is_finite() => Ok(Start::Weight(weight)),
            _ => Err(Error::usage(format!("--start {text}"), "give a number, such as 0 or 0.5, or 'uniform'")),
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

/// The merge weights of one convolution, or of the whole network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The convolution's name, or "model".
    pub name: String,
    /// Where its numbers begin in each learned row.
    pub first: usize,
    /// Shape of its numbers in each learned row: none, K, or K×C.
    pub shape: Vec<usize>,
}

impl Entry {
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
    pub entries: Vec<Entry>,
}

impl Plan {
    pub fn new(network: &Network, method: Method) -> Plan {
        let mut entries = Vec::new();
        // Per parameter: how its α lie, once its convolution has been seen.
        let mut choices: Vec<Option<Choice>> = vec![None; network.parameters.len()];
        let mut learned = 0;
        for (index, parameter) in network.parameters.iter().enumerate() {
            let (Kind::Filters, &[filters, _, _, channels]) = (parameter.kind, parameter.shape.dims()) else {
                continue;
            };
            let (shape, row_step, period) = match method.granularity {
                Granularity::Model | Granularity::Layer => (vec![], 0, 1),
                Granularity::Filter => (vec![filters], 1, 1),
                Granularity::Kernel => (vec![filters, channels], channels, channels),
            };
            if method.granularity == Granularity::Model {
                learned = 1;
                choices[index] = Some(Choice::Alpha { first: 0, row_step, period });
                continue;
            }
            let name = parameter.name.trim_end_matches(".weight").to_string();
            let entry = Entry { name, first: learned, shape };
            choices[index] = Some(Choice::Alpha { first: learned, row_step, period });
            learned += entry.count();
            entries.push(entry);
        }
        if method.granularity == Granularity::Model {
            entries.push(Entry { name: "model".into(), first: 0, shape: vec![] });
        }

        let mut means = Vec::new();
        let mut alphas = learned;
        for norm in &network.batch_norms {
            let of_convolution = norm.fed_by.and_then(|weight| choices[weight]);
            let choice = match (method.batch_norm, of_convolution) {
                (BatchNormPolicy::Merge, Some(Choice::Alpha { first, row_step, period })) => match method.granularity {
                    Granularity::Model | Granularity::Layer => Choice::Alpha { first, row_step, period },
                    Granularity::Filter => Choice::Alpha { first, row_step: 0, period: norm.channels },
                    Granularity::Kernel => {
                        means.push(Mean { first, rows: norm.channels, period });
                        let first = alphas;
                        alphas += norm.channels;
                        Choice::Alpha { first, row_step: 0, period: norm.channels }
                    }
                },
                _ => Choice::Source(method.anchor),
            };
            choices[norm.gamma] = Some(choice);
            choices[norm.beta] = Some(choice);
        }

        let mut segments: Vec<Segment> = network
            .parameters
            .iter()
            .zip(choices)
            .filter(|(parameter, _)| parameter.region == Region::Trunk)
            .map(|(parameter, choice)| {
                let (rows, row_len, pitch) = match parameter.shape.rank() {
                    1 => (1, parameter.shape.len(), parameter.shape.len()),
                    _ => (parameter.shape.rows(), parameter.shape.row_len(), parameter.pitch),
                };
                let choice = choice.unwrap_or(Choice::Source(method.anchor));
                Segment { offset: parameter.offset, rows, row_len, pitch, choice }
            })
            .collect();
        segments.sort_by_key(|segment| segment.offset);
        let Method { sources, anchor, constraint, .. } = method;
        Plan {
            method,
            table: Arc::new(Table::new(segments, alphas, network.trunk_len).with_filters(network.filters_len)),
            parametrization: Arc::new(Parametrization::new(constraint, sources, anchor, learned, means)),
            entries,
        }
    }

    /// What learning begins with, learned rows × learned numbers.
    pub fn start(&self, start: Start) -> Result<Tensor> {
        let Method { sources, anchor, constraint, .. } = self.method;
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

    /// The blended trunk for what has been learned.
    pub fn blend(&self, trunks: &[Tensor], learned: &Tensor) -> Tensor {
        self.blend_by(&self.parametrization.alpha(learned), trunks)
    }

    /// [`Plan::blend`], computed on `device` from what is on the CPU, with the same bits: α comes from the CPU, and every
    /// device blends in the reference's order.
    pub fn blend_on(&self, device: Device, trunks: &[Tensor], learned: &Tensor) -> Result<Tensor> {
        let alpha = self.parametrization.alpha(learned).to_device(device);
        let trunks: Vec<Tensor> = trunks.iter().map(|trunk| trunk.to_device(device)).collect();
        let blend = self.blend_by(&alpha, &trunks).to_device(Device::Cpu);
        device.check()?;
        Ok(blend)
    }

    /// On the device where all of them are.
    fn blend_by(&self, alpha: &Tensor, trunks: &[Tensor]) -> Tensor {
        let mut blend = Tensor::uninit([self.table.arena_len()], DType::F32, alpha.device());
        crate::ops::merge::blend(&self.table, &trunks.iter().collect::<Vec<_>>(), alpha, blend.view_mut());
        blend
    }

    /// α of a layer: for each source, its numbers.
    pub fn alphas_of(&self, entry: &Entry, learned: &Tensor) -> Vec<Vec<f32>> {
        let alpha = self.parametrization.alpha(learned).to_vec::<f32>();
        alpha.chunks(self.parametrization.alphas()).map(|row| row[entry.first..][..entry.count()].to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Architecture;

    fn method(granularity: Granularity, constraint: Constraint) -> Method {
        Method { sources: 2, anchor: 0, granularity, constraint, batch_norm: BatchNormPolicy::Merge }
    }

    /// Learned numbers per source, counted by hand from torchvision's layers.
    #[test]
    fn counts_of_learned_numbers() {
        for (name, per_filter, per_kernel) in [("resnet18", 4_800, 1_392_832), ("resnet50", 26_560, 13_424_832)] {
            let network = Architecture::named(name, None, None).unwrap().build(3, 10);
            let count =
                |granularity| Plan::new(&network, method(granularity, Constraint::Affine)).parametrization.learned;
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

    #[test]
    fn a_start_of_zero_gives_the_anchor_itself() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let trunks: Vec<Tensor> =
            (0..2).map(|seed| crate::nn::Model::initialized(network.clone(), seed).trunk).collect();
        for granularity in [Granularity::Model, Granularity::Layer, Granularity::Filter, Granularity::Kernel] {
            let plan = Plan::new(&network, method(granularity, Constraint::Affine));
            let learned = plan.start(Start::Weight(0.0)).unwrap();
            assert_eq!(plan.blend(&trunks, &learned).to_vec::<f32>(), trunks[0].to_vec::<f32>(), "{granularity}");
        }
    }

    #[test]
    fn the_simplex_refuses_to_start_at_a_corner() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let plan = Plan::new(&network, method(Granularity::Filter, Constraint::Simplex));
        assert!(plan.start(Start::Weight(0.0)).is_err());
        let alpha = plan.parametrization.alpha(&plan.start(Start::Weight(0.25)).unwrap()).to_f64();
        let (anchor, other) = alpha.split_at(alpha.len() / 2);
        assert!(anchor.iter().all(|a| (a - 0.75).abs() < 1e-6) && other.iter().all(|a| (a - 0.25).abs() < 1e-6));
    }
}
