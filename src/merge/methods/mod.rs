//! Ways to merge without learning merge weights, one file each behind one trait. `medmerge merge --method list` prints them.
//!
//! A method makes one trunk of the trunks of M sources, which are aligned already if that was asked for. What it reads besides is
//! in its [`Task`]: coefficients, numbers, a base that the sources were trained from, images. Heads and running statistics are not
//! its matter.

mod changes;
mod dare;
mod fisher;
mod greedy_soup;
mod linear;
mod pleas;
mod regmean;
mod slerp;
mod task_arithmetic;
mod ties;
mod zipit;

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::align::Similarities;
use super::plan::{BatchNormPolicy, Plan};
use super::{Sources, Zip};
use crate::error::{Error, Result};
use crate::nn::{Model, Network, Parameter, Region, Role, Units};
use crate::tensor::Tensor;

/// A way to make one trunk of several.
pub trait MergeMethod: Sync {
    fn name(&self) -> &'static str;

    /// What it does, in two lines.
    fn about(&self) -> [&'static str; 2];

    /// Who proposed it, when, and where.
    fn citation(&self) -> &'static str;

    /// The numbers that it reads beside coefficients.
    fn reads(&self) -> &'static [Number] {
        &[]
    }

    /// Whether it needs the network that the sources were trained from.
    fn needs_base(&self) -> bool {
        false
    }

    /// Whether it needs images of the target, without labels.
    fn needs_images(&self) -> bool {
        false
    }

    /// Whether it goes by the answers of the sources' own classifiers.
    fn needs_heads(&self) -> bool {
        false
    }

    /// Whether it measures networks on the way, whose running statistics are re-estimated.
    fn measures(&self) -> bool {
        false
    }

    /// The only number of sources that it takes, if there is one.
    fn only_sources(&self) -> Option<usize> {
        None
    }

    /// Whether it finds partners of units itself, in whatever order these are.
    fn pairs_units(&self) -> bool {
        false
    }

    /// Whether it goes by coefficients.
    fn reads_coefficients(&self) -> bool {
        true
    }

    /// Whether a coefficient by name has a say in this parameter, in a method that reads them.
    fn reads_coefficient_of(&self, parameter: &Parameter) -> bool {
        parameter.region == Region::Trunk
    }

    /// The coefficient of each source where none is given.
    fn usual_coefficient(&self, sources: usize) -> f64 {
        1.0 / sources as f64
    }

    /// By what heads are averaged.
    fn of_heads(&self, inputs: &Inputs) -> Vec<f64> {
        inputs.coefficients.to_vec()
    }

    /// Whether the merged network may have other widths than its sources.
    fn widens(&self, numbers: &Numbers) -> bool {
        let _ = numbers;
        false
    }

    fn merge(&self, task: &Task) -> Result<Merged>;
}

/// A merged trunk, in the arena of its network.
pub struct Merged {
    pub trunk: Tensor,
    /// The sources as they were merged, where that is not as they were given: in the widths of the merged network.
    pub lifted: Option<Sources>,
    /// The share of each source, where the method chose it: heads are averaged by it.
    pub shares: Option<Vec<f64>>,
    /// What a user ought to know.
    pub remarks: Vec<String>,
}

impl From<Tensor> for Merged {
    fn from(trunk: Tensor) -> Merged {
        Merged { trunk, lifted: None, shares: None, remarks: Vec::new() }
    }
}

/// A number that some methods read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Number {
    Scale,
    Density,
    T,
    Seed,
    Threshold,
    Budget,
}

impl Number {
    pub fn name(self) -> &'static str {
        match self {
            Number::Scale => "scale",
            Number::Density => "density",
            Number::T => "t",
            Number::Seed => "seed",
            Number::Threshold => "threshold",
            Number::Budget => "budget",
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The numbers that methods read; what is not given is as usual.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Numbers {
    /// λ, by which the sum of what the sources learned is multiplied. Usually 1.
    pub scale: Option<f64>,
    /// The share of each tensor's changes that is kept, above 0 and up to 1. Usually 0.2 of TIES, 0.5 of DARE.
    pub density: Option<f64>,
    /// How far the way from the first source to the second is gone, 0 to 1. Usually 0.5.
    pub t: Option<f64>,
    /// Of what is drawn. Usually 0.
    pub seed: Option<u64>,
    /// Partners that correlate less stay two units. Usually 1: any may.
    pub threshold: Option<f64>,
    /// The most parameters that the merged network may have, in multiples of a source's. Usually 1.
    pub budget: Option<f64>,
}

impl Numbers {
    /// Those that are given.
    pub fn given(&self) -> Vec<(Number, f64)> {
        let Numbers { scale, density, t, seed, threshold, budget } = *self;
        let all = [
            (Number::Scale, scale),
            (Number::Density, density),
            (Number::T, t),
            (Number::Seed, seed.map(|seed| seed as f64)),
            (Number::Threshold, threshold),
            (Number::Budget, budget),
        ];
        all.into_iter().filter_map(|(number, value)| Some((number, value?))).collect()
    }

    /// Those that are given, as a header has them.
    pub fn texts(&self) -> Vec<(Number, String)> {
        // All 64 bits of a seed.
        let text = |number: Number, value: f64| match (number, self.seed) {
            (Number::Seed, Some(seed)) => seed.to_string(),
            _ => value.to_string(),
        };
        self.given().into_iter().map(|(number, value)| (number, text(number, value))).collect()
    }

    /// Refuses numbers that the method does not read, and those that no method can work with.
    pub fn check(&self, method: &dyn MergeMethod) -> Result<()> {
        for (number, value) in self.given() {
            if !method.reads().contains(&number) {
                let message = format!("--method {} does not read --{number}", method.name());
                return Err(Error::usage(message, "leave it out; --method list says what each reads"));
            }
            let (is_good, hint) = match number {
                Number::Density => (value > 0.0 && value <= 1.0, "give a share above 0 and up to 1, such as 0.2"),
                Number::T => ((0.0..=1.0).contains(&value), "give a number from 0, the first source, to 1, the second"),
                Number::Budget => {
                    ((1.0..=4.0).contains(&value), "give a multiple of a source's parameters from 1 to 4")
                }
                Number::Threshold => ((-1.0..=1.0).contains(&value), "give a correlation, from -1 to 1"),
                Number::Scale | Number::Seed => (value.is_finite(), "give a number"),
            };
            if !is_good {
                return Err(Error::usage(format!("--{number} {value}"), hint));
            }
        }
        Ok(())
    }
}

/// Coefficients of parameters whose names contain a text, as mergekit has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filtered {
    /// A part of a parameter's name, such as `layer3`.
    pub filter: String,
    /// For each source a number, or several, which the trunk's depth goes through from the first to the last.
    pub values: Vec<Vec<f64>>,
}

/// What is to be merged, and by which numbers.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub sources: &'a Sources,
    pub anchor: usize,
    pub batch_norm: BatchNormPolicy,
    /// One per source.
    pub coefficients: &'a [f64],
    /// The first that a parameter's name contains goes before `coefficients`.
    pub filtered: &'a [Filtered],
    pub numbers: &'a Numbers,
    pub base: Option<&'a Model>,
}

/// The trunk that a plan makes of trunks and merge weights.
pub type Blend<'a> = dyn Fn(&Plan, &[Tensor], &Tensor) -> Result<Tensor> + 'a;

/// [`Inputs`], and what else a method may use.
pub struct Task<'a> {
    pub inputs: Inputs<'a>,
    pub images: Option<&'a dyn Images>,
    /// [`Plan::blend`], wherever it is computed.
    pub blend: &'a Blend<'a>,
}

/// What methods learn from images of the target; all but a score goes without labels.
pub trait Images {
    /// For each group, strand by strand, the correlations of the units of two of the sources.
    fn correlations(&self, sources: &Sources, pair: [usize; 2]) -> Result<Vec<Similarities>>;

    /// Fits the weights of a network that was merged unit by unit; the names of layers that it left as they were.
    fn fit(&self, merged: &mut Model, sources: &Sources, units: &Units, zip: &Zip) -> Result<Vec<String>>;

    /// Σ x·xᵀ over all patches that a source's convolutions read, by their parameters; those too long are left out.
    fn grams(&self, sources: &Sources, source: usize) -> Result<Vec<(usize, Vec<f64>)>>;

    /// The diagonal of the Fisher information of a source, laid out as its trunk's arena, by a class drawn for each image.
    fn fisher(&self, sources: &Sources, source: usize, seed: u64) -> Result<Tensor>;

    /// Macro F1 on the validation split of a network whose running statistics are re-estimated.
    fn score(&self, model: &Model) -> Result<f64>;
}

const ALL: [&dyn MergeMethod; 11] = [
    &linear::Linear,
    &task_arithmetic::TaskArithmetic,
    &ties::Ties,
    &dare::DARE_LINEAR,
    &dare::DARE_TIES,
    &slerp::Slerp,
    &greedy_soup::GreedySoup,
    &fisher::Fisher,
    &regmean::RegMean,
    &zipit::ZipIt,
    &pleas::Pleas,
];

/// Every method, in the order of a list.
pub fn all() -> &'static [&'static dyn MergeMethod] {
    &ALL
}

pub fn named(name: &str) -> Result<&'static dyn MergeMethod> {
    let found = ALL.iter().find(|method| method.name() == name);
    found.copied().ok_or_else(|| Error::unknown("merging method", name, ALL.iter().map(|method| method.name())))
}

impl<'a> Inputs<'a> {
    /// Anchored at the first source, all norms merged, nothing by name, and no base.
    pub fn new(sources: &'a Sources, coefficients: &'a [f64], numbers: &'a Numbers) -> Inputs<'a> {
        let batch_norm = BatchNormPolicy::Merge;
        Inputs { sources, anchor: 0, batch_norm, coefficients, filtered: &[], numbers, base: None }
    }
}

impl Inputs<'_> {
    pub fn network(&self) -> &Network {
        &self.sources.get(0).checkpoint.model.network
    }

    pub fn model(&self, source: usize) -> &Model {
        &self.sources.get(source).checkpoint.model
    }

    /// The coefficient of a source for a parameter.
    pub fn coefficient(&self, source: usize, parameter: &Parameter) -> f64 {
        let Some(Filtered { values, .. }) = self.filtered.iter().find(|f| parameter.name.contains(&f.filter)) else {
            return self.coefficients[source];
        };
        let trunk: Vec<&str> = self.network().region(Region::Trunk).map(|p| p.name.as_str()).collect();
        let at = trunk.iter().position(|name| *name == parameter.name).unwrap_or(0);
        along(&values[source], at as f64 / (trunk.len() - 1).max(1) as f64)
    }

    /// The base; methods that need one are given one.
    fn base(&self) -> &Model {
        self.base.expect("a method that needs a base has one")
    }

    /// The trunk whose parameters are what `of` makes of each, row by row without padding; batch norms are the anchor's where
    /// that is asked for.
    fn each_parameter(&self, of: impl Fn(usize, &Parameter) -> Vec<f32> + Sync) -> Merged {
        let mut merged = self.model(self.anchor).copy();
        let network = merged.network.clone();
        let is_merged = |p: &Parameter| {
            let is_of_norm = matches!(p.role, Role::Scale | Role::Shift);
            p.region == Region::Trunk && !(is_of_norm && self.batch_norm == BatchNormPolicy::Anchor)
        };
        let parameters: Vec<(usize, &Parameter)> =
            network.parameters.iter().enumerate().filter(|(_, parameter)| is_merged(parameter)).collect();
        let values: Vec<Vec<f32>> = parameters.par_iter().map(|&(index, parameter)| of(index, parameter)).collect();
        parameters.iter().zip(&values).for_each(|((_, parameter), values)| merged.set_parameter(parameter, values));
        merged.trunk.into()
    }
}

/// Refuses sources without classifiers where a method goes by their answers.
pub fn check_heads(method: &dyn MergeMethod, sources: &Sources) -> Result<()> {
    match sources.iter().find(|source| method.needs_heads() && !source.checkpoint.has_head) {
        None => Ok(()),
        Some(source) => {
            let (path, name) = (source.path.display(), method.name());
            let message = format!("{path} has no classifier, by whose answers --method {name} goes");
            Err(Error::usage(message, "train one (medmerge train --from), or use another method"))
        }
    }
}

impl Task<'_> {
    fn images(&self) -> &dyn Images {
        self.images.expect("a method that needs images has some")
    }

    /// The mean of sources that were lifted to the merged network's widths.
    fn mean_of(&self, lifted: Sources) -> Result<Merged> {
        let share = vec![1.0 / lifted.len() as f64; lifted.len()];
        let inputs = Inputs { sources: &lifted, coefficients: &share, filtered: &[], ..self.inputs };
        let Merged { trunk, .. } = linear::Linear.merge(&Task { inputs, ..*self })?;
        Ok(Merged { lifted: Some(lifted), ..trunk.into() })
    }
}

/// The number at a place from 0 to 1 of a way that goes straight from each of the values to the next.
fn along(values: &[f64], place: f64) -> f64 {
    let at = place * (values.len() - 1) as f64;
    let (first, share) = (at.floor() as usize, at.fract());
    match values.get(first + 1) {
        Some(next) if share > 0.0 => values[first] * (1.0 - share) + next * share,
        _ => values[first],
    }
}

#[cfg(test)]
mod tests;
