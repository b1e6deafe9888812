//! Which tile of the kernels for tensor cores a convolution gets, and into how many splits its wgrad is cut.
//!
//! A rule compares what each choice should cost. It knows the shapes alone and one imagined GPU, never the device: so a
//! convolution has the same bits everywhere. What was measured goes before the rule: `bench conv --tune` writes a file
//! of choices, and `MEDMERGE_TILES` names the one to follow. There a choice may also be one of the kernels of warpgroups, which have
//! a rule of their own ([`hopper`]).

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;
use std::thread::LocalKey;

use serde::{Deserialize, Serialize};

use super::hopper::{self, WideTiling};
use super::layout::{self, Operands};
use super::{Geometry, Pass};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Rows and columns that a block computes: the names in `kernels/conv2d_tensor.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tile {
    #[serde(rename = "128x256")]
    Wide,
    #[serde(rename = "128x128")]
    Large,
    #[serde(rename = "128x64")]
    Medium,
    #[serde(rename = "64x64")]
    Small,
    #[serde(rename = "128x32")]
    Narrow,
}

impl Tile {
    pub const ALL: [Tile; 5] = [Tile::Wide, Tile::Large, Tile::Medium, Tile::Small, Tile::Narrow];

    pub const fn rows(self) -> usize {
        if matches!(self, Tile::Small) { 64 } else { 128 }
    }

    pub const fn columns(self) -> usize {
        match self {
            Tile::Wide => 256,
            Tile::Large => 128,
            Tile::Medium | Tile::Small => 64,
            Tile::Narrow => 32,
        }
    }

    pub const fn threads(self) -> u32 {
        if matches!(self, Tile::Wide | Tile::Large) { 256 } else { 128 }
    }

    /// Bytes of shared memory that a launch asks for: those of the operands' stages, where a kernel cannot declare them.
    pub const fn dynamic_shared(self) -> usize {
        if matches!(self, Tile::Wide) { STAGES * (self.rows() + self.columns()) * LINE } else { 0 }
    }

    /// Blocks that reside on a processor at a time, of any pass in 16 bits on Hopper.
    pub const fn resident(self) -> usize {
        match self {
            Tile::Wide => 1,
            Tile::Large => 2,
            Tile::Medium => 4,
            Tile::Small | Tile::Narrow => 5,
        }
    }

    /// Whether there are kernels of this pass.
    pub fn serves(self, pass: Pass) -> bool {
        pass != Pass::Wgrad || self != Tile::Narrow
    }

    /// Whether there are kernels of wgrad with products in place of dW.
    pub fn serves_products(self) -> bool {
        !matches!(self, Tile::Wide | Tile::Narrow)
    }
}

/// How a product is divided between blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiling {
    pub tile: Tile,
    /// Splits of wgrad's summands (split-K); 1 in the other passes.
    pub splits: usize,
}

/// A matrix product as BLAS names it: `grids` times M × N sums of K summands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub grids: usize,
}

impl Gemm {
    pub fn of(g: &Geometry, pass: Pass) -> Gemm {
        let taps = g.r * g.s;
        match pass {
            Pass::Fprop => Gemm { m: g.n * g.p * g.q, n: g.k, k: taps * g.c, grids: 1 },
            Pass::Dgrad => {
                let [down, right] = g.conv.stride;
                // The rows of the largest residue; the taps are shared out among all.
                let m = g.n * g.h.div_ceil(down) * g.w.div_ceil(right);
                Gemm { m, n: g.c, k: (taps * g.k).div_ceil(down * right), grids: down * right }
            }
            Pass::Wgrad => Gemm { m: g.k, n: taps * g.c, k: g.n * g.p * g.q, grids: 1 },
        }
    }
}

/// The GPU of the rule: an H100 as published, rates per processor and clock. The products are those that `mma.sync` was
/// reported to reach there (400 TFLOP/s in 16 bits), the bytes of tiles what a 5.5 TB/s L2 cache gives each processor,
/// those of partial sums its share of 4 TB/s of memory. Predictions: none of these was measured here.
const PROCESSORS: usize = 132;
const PRODUCTS: usize = 890;
const TILE_BYTES: usize = 24;
const SUM_BYTES: usize = 17;
/// Clocks that pass in a block beside its steps: until the first copies are there, and until the last result is written.
const BLOCK: usize = 2000;
/// Clocks of a step in which a block alone on its processor waits: for the tile, for its matrices and for the other warps.
const STALL: usize = 120;
/// Clocks of a second launch.
const LAUNCH: usize = 4000;

/// Bytes of a line of a tile in shared memory.
const LINE: usize = 64;
/// Steps whose tiles are in shared memory at a time.
const STAGES: usize = 3;
/// A split has at least this many summands.
const SHORTEST: usize = 256;
const MOST_SPLITS: usize = 256;

/// Summands of a step.
pub fn depth(dtype: DType) -> usize {
    LINE / dtype.size()
}

/// Sums that a processor's schedulers issue the epilogue of in a clock, counted from the instructions of the kernels of 128×128: with statistics
/// 1,700 of 8 warps, with a batch norm's sums 3,200, of wgrad 700.
fn epilogue_rate(pass: Pass) -> usize {
    match pass {
        Pass::Fprop => 5,
        Pass::Dgrad => 3,
        Pass::Wgrad => 12,
    }
}

/// The clocks of a product's blocks: the busiest processor is through with them when its units have done all of their work, and not before each
/// has had its steps, as many at a time as reside there.
fn clocks(gemm: Gemm, dtype: DType, choice: Tiling, epilogue: usize) -> usize {
    let Tiling { tile, splits } = choice;
    let step = depth(dtype);
    // tf32 has half the rate.
    let rate = if dtype.size() == 2 { PRODUCTS } else { PRODUCTS / 2 };
    let products = tile.rows() * tile.columns() * step / rate;
    let copies = (tile.rows() + tile.columns()) * LINE / TILE_BYTES;
    let blocks = gemm.m.div_ceil(tile.rows()) * gemm.n.div_ceil(tile.columns()) * gemm.grids * splits;
    let steps = gemm.k.div_ceil(splits).div_ceil(step);
    let each = blocks.div_ceil(PROCESSORS);
    let busy = each * (steps * products.max(copies) + epilogue) + BLOCK;
    let waiting = each.div_ceil(tile.resident()) * (steps * (products.max(copies) + STALL) + epilogue + BLOCK);
    busy.max(waiting)
}

/// Clocks that the rule expects.
pub fn cost(gemm: Gemm, pass: Pass, dtype: DType, choice: Tiling) -> usize {
    let sums = match choice.splits {
        1 => 0,
        // Written, and read by a second launch.
        splits => LAUNCH + 2 * 4 * splits * gemm.m * gemm.n / (SUM_BYTES * PROCESSORS),
    };
    clocks(gemm, dtype, choice, choice.tile.rows() * choice.tile.columns() / epilogue_rate(pass)) + sums
}

/// The same of wgrad with products in place of dW: each block reads the tiles of so many sources, which the L2 cache holds
/// but for the first split, and what it writes is not worth counting.
fn cost_of_products(gemm: Gemm, dtype: DType, sources: usize, choice: Tiling) -> usize {
    let of_sources = choice.tile.rows() * choice.tile.columns() * 4 * sources / TILE_BYTES;
    clocks(gemm, dtype, choice, of_sources)
}

/// The choices there are, each tile with the splits that cost least.
pub fn choices(gemm: Gemm, pass: Pass, dtype: DType) -> impl Iterator<Item = Tiling> {
    with_best_splits(gemm, pass, move |choice| cost(gemm, pass, dtype, choice))
}

fn with_best_splits(gemm: Gemm, pass: Pass, cost: impl Fn(Tiling) -> usize) -> impl Iterator<Item = Tiling> {
    let most = match pass {
        Pass::Wgrad => (gemm.k / SHORTEST).clamp(1, MOST_SPLITS),
        _ => 1,
    };
    Tile::ALL.into_iter().filter(move |tile| tile.serves(pass)).map(move |tile| {
        let all = (1..=most).map(|splits| Tiling { tile, splits });
        all.min_by_key(|&choice| cost(choice)).expect("one split at least")
    })
}

/// Tiling of wgrad with products of so many sources in place of dW; of `tile` alone, where there is but one kernel.
pub fn choose_products(g: &Geometry, dtype: DType, sources: usize, tile: Option<Tile>) -> Tiling {
    let fits = |choice: &Tiling| tile.is_none_or(|tile| tile == choice.tile) && choice.tile.serves_products();
    let gemm = Gemm::of(g, Pass::Wgrad);
    let cost = |choice| cost_of_products(gemm, dtype, sources, choice);
    let all = || with_best_splits(gemm, Pass::Wgrad, cost).filter(fits);
    FORCED.get().filter(fits).unwrap_or_else(|| all().min_by_key(|&choice| cost(choice)).expect("tiles"))
}

thread_local! {
    static FORCED: Cell<Option<Tiling>> = const { Cell::new(None) };
}

/// Runs `work` with one choice for every convolution that this thread starts and for which there is such a kernel.
pub fn with_choice<R>(choice: Tiling, work: impl FnOnce() -> R) -> R {
    choosing(&FORCED, choice, work)
}

/// Runs `work` with `choice` where this thread looks for one.
pub(super) fn choosing<T: Copy + 'static, R>(
    at: &'static LocalKey<Cell<Option<T>>>,
    choice: T,
    work: impl FnOnce() -> R,
) -> R {
    struct Restore<T: Copy + 'static>(&'static LocalKey<Cell<Option<T>>>, Option<T>);
    impl<T: Copy> Drop for Restore<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(at, at.replace(Some(choice)));
    work()
}

/// Whether this thread chooses for all convolutions.
pub(super) fn is_forced() -> bool {
    FORCED.get().is_some()
}

/// The tiling that a convolution gets. `g` is as the kernels see it.
pub fn choose(g: &Geometry, pass: Pass, dtype: DType) -> Tiling {
    if let Some(forced) = FORCED.get().filter(|choice| choice.tile.serves(pass)) {
        return forced;
    }
    let measured = match measured(g, pass, dtype) {
        Some(Choice::OfWarps(tiling)) => Some(tiling),
        _ => None,
    };
    measured.unwrap_or_else(|| {
        let gemm = Gemm::of(g, pass);
        choices(gemm, pass, dtype).min_by_key(|&choice| cost(gemm, pass, dtype, choice)).expect("tiles")
    })
}

/// The sizes by which the kernels for tensor cores see a convolution, and which [`choose`] is asked about; `None` if the
/// pass does not run on them, or has one tile alone.
pub fn on_tensor_cores(g: &Geometry, pass: Pass, dtype: DType) -> Option<Geometry> {
    let seen = layout::on_tensor_cores(g, pass, dtype, Operands::ALIGNED)?;
    seen.has_tiles.then_some(seen.g)
}

/// The tilings worth timing: each tile as the rule would use it, and wgrad also with half and twice the splits.
pub fn candidates(g: &Geometry, pass: Pass, dtype: DType) -> Vec<Tiling> {
    let of_tile = |choice: Tiling| {
        let splits = [choice.splits, choice.splits / 2, choice.splits * 2];
        let possible = splits.into_iter().filter(move |&n| n == choice.splits || is_cut(g, pass, n));
        possible.map(move |splits| Tiling { splits, ..choice })
    };
    choices(Gemm::of(g, pass), pass, dtype).flat_map(of_tile).collect()
}

fn is_cut(g: &Geometry, pass: Pass, splits: usize) -> bool {
    pass == Pass::Wgrad && (1..=MOST_SPLITS).contains(&splits) && splits <= g.n * g.p * g.q / depth(DType::BF16)
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        tell(f, [self.tile.rows(), self.tile.columns()], self.splits)
    }
}

pub(super) fn tell(f: &mut fmt::Formatter<'_>, [rows, columns]: [usize; 2], splits: usize) -> fmt::Result {
    write!(f, "{rows}×{columns}")?;
    if splits > 1 { write!(f, ", {splits} splits") } else { Ok(()) }
}

/// A shape, pass and precision: what a choice was measured for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    pub pass: String,
    pub precision: String,
    /// N, H, W, C.
    pub x: [usize; 4],
    /// K, R, S.
    pub filters: [usize; 3],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
}

impl Key {
    pub fn new(g: &Geometry, pass: Pass, dtype: DType) -> Key {
        Key {
            pass: pass.to_string(),
            precision: dtype.to_string(),
            x: [g.n, g.h, g.w, g.c],
            filters: [g.k, g.r, g.s],
            stride: g.conv.stride,
            padding: g.conv.padding,
            dilation: g.conv.dilation,
        }
    }
}

/// Whose kernels do a pass, and how it is divided between their blocks. In a file those of warpgroups have a `cluster`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Choice {
    OfWarpgroups(WideTiling),
    OfWarps(Tiling),
}

impl Choice {
    /// Runs `work` with this choice for every convolution that this thread starts and for which there is such a kernel.
    pub fn force<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            Choice::OfWarpgroups(tiling) => hopper::with_choice(tiling, work),
            Choice::OfWarps(tiling) => with_choice(tiling, work),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::OfWarpgroups(tiling) => write!(f, "{tiling}, warpgroups"),
            Choice::OfWarps(tiling) => tiling.fmt(f),
        }
    }
}

/// A line of the file that `bench conv --tune` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredTiling {
    #[serde(flatten)]
    pub key: Key,
    #[serde(flatten)]
    pub choice: Choice,
}

static MEASURED: OnceLock<HashMap<Key, Choice>> = OnceLock::new();

/// The choice of the file that is followed, if it has one.
pub(super) fn measured(g: &Geometry, pass: Pass, dtype: DType) -> Option<Choice> {
    MEASURED.get().and_then(|measured| measured.get(&Key::new(g, pass, dtype)).copied())
}

/// Follows the choices in a file from now on; at most once in a program.
pub fn follow(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let entries: Vec<MeasuredTiling> = serde_json::from_str(&text).map_err(|error| {
        let hint = "it should be what 'medmerge bench conv --tune FILE' writes";
        Error::usage(format!("'{}' is no table of tiles: {error}", path.display()), hint)
    })?;
    if let Some(entry) = entries.iter().find(|entry| !entry.is_possible()) {
        let hint = "it should be what 'medmerge bench conv --tune FILE' writes";
        return Err(Error::usage(format!("'{}': impossible choice {entry:?}", path.display()), hint));
    }
    let table = entries.into_iter().map(|entry| (entry.key, entry.choice)).collect();
    assert!(MEASURED.set(table).is_ok(), "a table of tiles is followed already");
    Ok(())
}

impl MeasuredTiling {
    fn is_possible(&self) -> bool {
        let Ok(pass) = self.key.pass.parse::<Pass>() else { return false };
        let most = if pass == Pass::Wgrad { MOST_SPLITS } else { 1 };
        match self.choice {
            Choice::OfWarpgroups(tiling @ WideTiling { splits, .. }) => {
                WideTiling::all().any(|known| known == WideTiling { splits: 1, ..tiling })
                    && (1..=most).contains(&splits)
            }
            Choice::OfWarps(Tiling { tile, splits }) => tile.serves(pass) && (1..=most).contains(&splits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hopper::WideTile;
    use super::*;
    use crate::ops::conv2d::Conv2d;

    fn gemm(x: [usize; 4], filters: [usize; 3], conv: Conv2d, pass: Pass) -> Gemm {
        let [k, r, s] = filters;
        Gemm::of(&Geometry::new(conv, x.into(), [k, r, s, x[3]].into(), r * s * x[3]), pass)
    }

    fn best(gemm: Gemm, pass: Pass) -> Tiling {
        choices(gemm, pass, DType::BF16).min_by_key(|&choice| cost(gemm, pass, DType::BF16, choice)).unwrap()
    }

    /// The tiles of ResNet-50's layers with 128 images of 224 pixels.
    #[test]
    fn large_products_get_large_tiles_and_few_columns_narrow_ones() {
        let same = Conv2d::new(1, 1);
        let wide = gemm([128, 14, 14, 256], [256, 3, 3], same, Pass::Fprop);
        assert_eq!(best(wide, Pass::Fprop), Tiling { tile: Tile::Large, splits: 1 });
        let narrow = gemm([128, 56, 56, 64], [64, 3, 3], same, Pass::Fprop);
        assert_eq!(best(narrow, Pass::Fprop), Tiling { tile: Tile::Medium, splits: 1 });
        let growth = gemm([128, 56, 56, 128], [32, 3, 3], same, Pass::Fprop);
        assert_eq!(best(growth, Pass::Fprop), Tiling { tile: Tile::Narrow, splits: 1 });
    }

    /// No kernel on record holds fewer blocks than the rule counts on.
    #[test]
    fn so_many_blocks_reside() {
        let record = std::fs::read_to_string("benches/results/kernels-sm_90a.csv").unwrap();
        for tile in Tile::ALL {
            let name = format!("_{}x{}_bf16", tile.rows(), tile.columns());
            let of_tile =
                |row: &&str| row.starts_with("conv2d_tensor_") && row.split(',').next().unwrap().ends_with(&name);
            let blocks = record.lines().filter(of_tile).map(|row| row.rsplit(',').next().unwrap().parse().unwrap());
            assert_eq!(blocks.min(), Some(tile.resident()), "{tile:?}");
        }
    }

    #[test]
    fn a_long_sum_over_few_tiles_is_cut() {
        let first = gemm([128, 56, 56, 64], [64, 3, 3], Conv2d::new(1, 1), Pass::Wgrad);
        let cut = best(first, Pass::Wgrad);
        let tiles = first.m.div_ceil(cut.tile.rows()) * first.n.div_ceil(cut.tile.columns());
        assert!((PROCESSORS..4 * PROCESSORS).contains(&(tiles * cut.splits)), "{cut:?}");
        // A split below the shortest is none.
        let short = gemm([2, 8, 8, 64], [64, 3, 3], Conv2d::new(1, 1), Pass::Wgrad);
        assert_eq!(best(short, Pass::Wgrad).splits, 1);
    }

    /// dgrad with a stride sums as many products as fprop, not stride² times as many.
    #[test]
    fn residues_share_the_taps() {
        let forward = gemm([8, 28, 28, 64], [128, 3, 3], Conv2d::new(2, 1), Pass::Fprop);
        let backward = gemm([8, 28, 28, 64], [128, 3, 3], Conv2d::new(2, 1), Pass::Dgrad);
        assert_eq!(backward, Gemm { m: 8 * 14 * 14, n: 64, k: 288, grids: 4 });
        let products = |p: Gemm| p.m * p.n * p.k * p.grids;
        assert_eq!(products(backward), products(forward));
    }

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let g = Geometry::new(Conv2d::new(2, 1), [8, 28, 28, 64].into(), [128, 3, 3, 64].into(), 576);
        let entry = |pass, tile, splits| MeasuredTiling {
            key: Key::new(&g, pass, DType::BF16),
            choice: Choice::OfWarps(Tiling { tile, splits }),
        };
        let wide = |pass, tile, cluster| MeasuredTiling {
            choice: Choice::OfWarpgroups(WideTiling { tile, cluster, splits: 1 }),
            ..entry(pass, Tile::Large, 1)
        };
        let entries = vec![
            entry(Pass::Fprop, Tile::Large, 1),
            entry(Pass::Wgrad, Tile::Small, 7),
            wide(Pass::Dgrad, WideTile::Square, 2),
        ];
        let text = serde_json::to_string(&entries).unwrap();
        assert!(text.contains("\"tile\":\"128x128\",\"splits\":1}"), "{text}");
        assert!(text.contains("\"tile\":\"128x128\",\"cluster\":2,\"splits\":1}"), "{text}");
        assert_eq!(serde_json::from_str::<Vec<MeasuredTiling>>(&text).unwrap(), entries);
        assert!(entries.iter().all(MeasuredTiling::is_possible));
        for (pass, tile, splits) in
            [(Pass::Fprop, Tile::Small, 2), (Pass::Wgrad, Tile::Narrow, 1), (Pass::Wgrad, Tile::Large, 0)]
        {
            assert!(!entry(pass, tile, splits).is_possible());
        }
        // No two of these share their columns, and no cluster has three.
        for (tile, cluster) in [(WideTile::Tall, 2), (WideTile::Wide, 3)] {
            assert!(!wide(Pass::Fprop, tile, cluster).is_possible());
        }
    }
}
