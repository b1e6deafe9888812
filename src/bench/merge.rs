//! Whole-network merges, one α per filter: the blend, and dα.

use std::sync::Arc;

use super::measure::Clock;
use super::report::Row;
use super::{Measured, random_tensor, shapes};
use crate::error::Result;
use crate::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan};
use crate::nn::{Architecture, Stem};
use crate::ops::Cost;
use crate::ops::merge::{Table, alpha_gradient, blend};
use crate::tensor::{DType, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Blend,
    Gradient,
}

pub(super) struct MergeCase {
    network: String,
    sources: usize,
    direction: Direction,
    table: Arc<Table>,
}

/// How a benchmark merges: a table of one α per filter.
pub fn plan(network: &crate::nn::Network, sources: usize) -> Plan {
    let (granularity, batch_norm) = (Granularity::Filter, BatchNormPolicy::Merge);
    let method = Method { sources, anchor: 0, granularity, constraint: Constraint::Affine, batch_norm };
    Plan::new(network, method).expect("filters feed every parameter of these networks")
}

pub(super) fn cases(networks: &[String], sources: &[usize]) -> Result<Vec<MergeCase>> {
    let mut cases = Vec::new();
    for name in networks {
        // The stem that the architecture usually has: merging is about parameters.
        let stem = Architecture::named(name, None, None).ok().and_then(|known| known.stem()).unwrap_or(Stem::Large);
        let network = shapes::network(name, stem, 1000)?;
        for &sources in sources {
            let table = plan(&network, sources).table;
            let case = |direction| MergeCase { network: name.clone(), sources, direction, table: table.clone() };
            cases.extend([Direction::Blend, Direction::Gradient].map(case));
        }
    }
    Ok(cases)
}

impl MergeCase {
    fn what(&self) -> &'static str {
        match self.direction {
            Direction::Blend => "blend",
            Direction::Gradient => "dalpha",
        }
    }

    pub fn name(&self) -> String {
        format!("merge/{}/{} sources/{}", self.network, self.sources, self.what())
    }

    fn cost(&self) -> Cost {
        match self.direction {
            Direction::Blend => self.table.blend_cost(self.sources),
            Direction::Gradient => self.table.gradient_cost(self.sources),
        }
    }

    pub fn measure(&self, clock: &Clock) -> Result<Measured> {
        let (table, cost) = (&*self.table, self.cost());
        let arena = |seed| random_tensor([table.arena_len()], seed, clock.device, DType::F32);
        let alphas = [self.sources, table.alphas()];
        let mut seed = 0;
        let mut next = || {
            seed += 1;
            seed
        };
        let mut sets: Vec<(Vec<Tensor>, Tensor, Tensor)> = (0..clock.sets(cost.bytes()))
            .map(|_| {
                let sources = (0..self.sources).map(|_| arena(next())).collect();
                (sources, arena(next()), random_tensor(alphas, next(), clock.device, DType::F32))
            })
            .collect();
        let timing = clock.time(sets.len(), &mut |set| {
            let (sources, merged, alpha) = &mut sets[set];
            let sources: Vec<&Tensor> = sources.iter().collect();
            match self.direction {
                Direction::Blend => blend(table, &sources, alpha, merged.view_mut()),
                Direction::Gradient => alpha_gradient(table, &sources, merged, alpha.view_mut()),
            }
        })?;
        let row = Row {
            network: self.network.clone(),
            what: self.what().into(),
            precision: DType::F32.to_string(),
            sources: Some(self.sources),
            ..Row::default()
        };
        Ok(Measured { row, timing, costs: vec![cost], precision: DType::F32 })
    }
}
