//! ZipIt-style merging of two sources: the units that correlate most are paired, whichever source they are of, and each pair becomes
//! one unit.

use super::{MergeMethod, Merged, Task};
use crate::error::Result;
use crate::merge::Zip;
use crate::nn::Units;

pub struct ZipIt;

impl MergeMethod for ZipIt {
    fn name(&self) -> &'static str {
        "zipit"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "Pairs the units of both sources that correlate most on the images of --data, greedily, also two of one",
            "source; each pair becomes one unit. All layers are zipped; coefficients are 1/2 each.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Stoica et al., ZipIt! Merging models from different tasks without training, ICLR 2024"
    }

    fn needs_images(&self) -> bool {
        true
    }

    fn only_sources(&self) -> Option<usize> {
        Some(2)
    }

    fn pairs_units(&self) -> bool {
        true
    }

    fn reads_coefficients(&self) -> bool {
        false
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let units = Units::of(task.inputs.network());
        let of_pair = |pair: [usize; 2]| -> Result<Vec<Vec<f32>>> {
            let all = task.images().correlations(task.inputs.sources, pair)?;
            Ok(all.into_iter().map(|mut strands| strands.swap_remove(0)).collect())
        };
        let likeness = [of_pair([0, 0])?, of_pair([0, 1])?, of_pair([1, 1])?];
        let zip = Zip::greedy(&units, likeness.each_ref().map(Vec::as_slice));
        task.mean_of(zip.lift(task.inputs.sources, &units)?)
    }
}
