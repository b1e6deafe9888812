//! Which kernels and tiles each convolution gets: what is known without running it.

use serde::Serialize;

use super::conv::ConvCase;
use crate::ops::conv2d::{Operands, hopper, on_tensor_cores, tiles};
use crate::report::Table;

/// How a pass of a convolution is divided between blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Division {
    pub name: String,
    pub shape: String,
    /// The tile on tensor cores by instructions of a warp; `None` where it does not run on them.
    pub tile: Option<String>,
    /// The tile on sm_90a by instructions of a warpgroup; `None` where it is left to the others.
    pub tile_of_warpgroups: Option<String>,
}

pub(super) fn of(case: &ConvCase) -> Division {
    let (g, pass, dtype) = case.what();
    let seen = on_tensor_cores(g, pass, dtype, Operands::ALIGNED);
    let tile = seen.map(|seen| match seen.has_tiles {
        true => tiles::choose(&seen.g, pass, dtype).to_string(),
        false => "stem".into(),
    });
    let tile_of_warpgroups = hopper::choice(g, pass, dtype).map(|choice| choice.to_string());
    Division { name: case.name(), shape: case.shape(), tile, tile_of_warpgroups }
}

/// A line for each convolution.
pub fn table(all: &[Division]) -> Table {
    let mut table = Table::new(["convolution", "shape", "tile", "on sm_90a"]);
    for Division { name, shape, tile, tile_of_warpgroups } in all {
        let tile = tile.as_deref().unwrap_or("no tensor cores");
        table.row([name, shape, tile, tile_of_warpgroups.as_deref().unwrap_or(tile)].map(str::to_string));
    }
    table
}
