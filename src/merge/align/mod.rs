//! Alignment: a source's units brought into the order of the anchor's, so that what is merged has to do with each other.
//!
//! Filter k of one network has nothing to do with filter k of another that was initialised otherwise, and permuting its units
//! (see [`Units`]) does not change what it computes. So each unit of the anchor gets the partner that is most
//! like it, by an assignment that makes the sum of similarities as large as it can be:
//!
//! | by | similarity of two units | how |
//! |---|---|---|
//! | `weights` | the inner product of everything that they own | [`by_weights`]: all groups in turn, until none gains |
//! | `activations` | the correlation of what they say to the same images | [`by_correlation`]: each group on its own |
//!
//! Units keep their signs: behind a ReLU, a unit and its negative are two different ones.

mod assignment;
mod matching;
mod weights;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use matching::{Similarities, by_correlation, mean_similarity};
pub use weights::by_weights;

use super::Sources;
use crate::error::{Error, Result};
use crate::nn::{Permutation, Units};

/// What the units of sources are aligned by before they are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Align {
    /// They are merged as they stand.
    #[default]
    None,
    Weights,
    /// What they say to the training images of the target.
    Activations,
}

impl fmt::Display for Align {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Align::None => "none",
            Align::Weights => "weights",
            Align::Activations => "activations",
        })
    }
}

impl FromStr for Align {
    type Err = Error;
    fn from_str(name: &str) -> Result<Align> {
        match name {
            "none" => Ok(Align::None),
            "weights" => Ok(Align::Weights),
            "activations" => Ok(Align::Activations),
            _ => Err(Error::unknown("alignment", name, ["none", "weights", "activations"])),
        }
    }
}

/// The orders in which the units of sources stand for those of the anchor.
#[derive(Clone, Debug, PartialEq)]
pub struct Alignment {
    pub by: Align,
    /// One per source; the anchor's leaves everything where it is.
    pub permutations: Vec<Permutation>,
}

impl Alignment {
    /// The alignment of every source to the anchor; `order` finds that of one.
    pub fn new(
        by: Align,
        sources: &Sources,
        anchor: usize,
        mut order: impl FnMut(&Units, usize) -> Result<Permutation>,
    ) -> Result<Alignment> {
        let units = Units::of(&sources.get(anchor).checkpoint.model.network);
        let of_source = |index: usize| match index == anchor {
            true => Ok(Permutation::identity(&units)),
            false => order(&units, index),
        };
        Ok(Alignment { by, permutations: (0..sources.len()).map(of_source).collect::<Result<_>>()? })
    }

    /// The alignment by weights alone, which needs no images.
    pub fn by_weights(sources: &Sources, anchor: usize) -> Result<Alignment> {
        let model = |index: usize| &sources.get(index).checkpoint.model;
        Alignment::new(Align::Weights, sources, anchor, |units, index| by_weights(units, model(anchor), model(index)))
    }

    /// How many channels of each source are not where they were.
    pub fn moved(&self) -> Vec<usize> {
        self.permutations.iter().map(Permutation::moved).collect()
    }
}

impl Sources {
    /// The same networks with their units in the order of the anchor's.
    pub fn aligned(&self, alignment: &Alignment) -> Sources {
        self.with_models(|index, model| Units::of(&model.network).permuted(model, &alignment.permutations[index]))
    }
}
