//! The flags that say where to compute, and in which precision.

use std::path::PathBuf;

use medmerge::error::Result;
use medmerge::jobs::Compute;
use medmerge::tensor::DType;
use medmerge::train::{Observer, Place};

use super::note;
use crate::cli::Global;

/// The environment's name of a table of tiles, as `bench conv --tune` writes it.
const TILES: &str = "MEDMERGE_TILES";

pub fn compute(global: &Global) -> Compute {
    Compute {
        device: global.device.clone(),
        precision: global.precision.clone(),
        is_fused: !global.no_fusion,
        seed: global.seed,
        tiles: std::env::var_os(TILES).map(PathBuf::from),
    }
}

/// Refuses names that mean nothing, before anything is read.
pub fn check(global: &Global) -> Result<()> {
    compute(global).check()
}

/// Opens the device, for verbs that are no jobs.
pub fn open(global: &Global) -> Result<Place> {
    compute(global).open(&mut Notes(global))
}

/// No device, for what is known without one.
pub fn dry(global: &Global) -> Result<Place> {
    compute(global).dry()
}

pub(super) fn precision(global: &Global, is_cpu: bool) -> Result<DType> {
    compute(global).precision_on(is_cpu)
}

struct Notes<'a>(&'a Global);

impl Observer for Notes<'_> {
    fn remark(&mut self, text: &str) {
        note(self.0, format_args!("note: {text}"));
    }
}
