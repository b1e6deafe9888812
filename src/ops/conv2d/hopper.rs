//! Convolution on the tensor cores of sm_90a by products of whole warpgroups: `kernels/conv2d_hopper.cuh`. Which passes they take, which
//! tile each gets, and its tensor maps; all other passes are left to `tensor`.
//!
//! Results have the bits of those kernels as far as sums are exact: tensor cores add more products at once here, dgrad's taps come from the
//! last one on, and wgrad's splits are of another length.

use std::cell::Cell;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::division::{Divider, MOST_RESIDUES, Residue, residues};
use super::gpu::{Finish, sizes};
use super::layout::plain;
use super::products::Products;
use super::tensor::{
    self, BackwardProduct, FinishedProduct, Product, ProductGradient, ProductStatistics, Sums, dim, int,
};
use super::tiles::{self, Choice, Gemm};
use super::{Besides, Conv2d, Geometry, Pass};
use crate::gpu::tensor_map::{self, Images, Matrix};
use crate::gpu::{self, Address, Blocks, Cost, Gpu, Handle, TensorMap};
use crate::ops::batch_norm::{Normalized, Tiles};
use crate::parameters;
use crate::tensor::{DType, Tensor};

parameters! {
    struct WideFprop: 448 bytes { from: TensorMap, by: TensorMap, finished: FinishedProduct }
}

parameters! {
    struct WideStatistics: 448 bytes { from: TensorMap, by: TensorMap, statistics: ProductStatistics, padding: u64 }
}

parameters! {
    struct WideDgrad: 1280 bytes {
        by: TensorMap,
        from: [TensorMap; MOST_PAIRS],
        backward: BackwardProduct,
        padding: [u64; 5],
    }
}

parameters! {
    struct WideGradient: 1344 bytes {
        by: TensorMap,
        from: [TensorMap; MOST_PAIRS],
        gradient: ProductGradient,
        padding: [u64; 2],
    }
}

parameters! {
    struct WideWgrad: 448 bytes { from: TensorMap, by: TensorMap, product: Product, padding: [u64; 2] }
}

parameters! {
    struct WideProducts: 512 bytes { from: TensorMap, by: TensorMap, products: Products, padding: [u64; 7] }
}

/// Numbers of 16 bits in a line of an operand in shared memory: what a step sums, and the columns of a copy.
pub(super) const LINE: usize = 64;
/// Bytes of it.
const LINE_BYTES: usize = 128;

/// Rows and columns of a block's tile: the names in `kernels/conv2d_hopper.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WideTile {
    #[serde(rename = "128x256")]
    Wide,
    #[serde(rename = "128x128")]
    Square,
    #[serde(rename = "256x64")]
    Tall,
}

impl WideTile {
    pub const ALL: [WideTile; 3] = [WideTile::Wide, WideTile::Square, WideTile::Tall];

    pub const fn rows(self) -> usize {
        if matches!(self, WideTile::Tall) { 256 } else { 128 }
    }

    pub const fn columns(self) -> usize {
        match self {
            WideTile::Wide => 256,
            WideTile::Square => 128,
            WideTile::Tall => 64,
        }
    }

    /// Stages of the ring of operands.
    const fn ring(self) -> usize {
        if matches!(self, WideTile::Square) { 6 } else { 4 }
    }

    /// Bytes of dynamic shared memory: the ring, and for a batch norm two sums for each column of each warp that multiplies, and three of its
    /// numbers.
    fn shared(self, is_for_norm: bool) -> usize {
        let stage = (self.rows() + self.columns()) * LINE_BYTES;
        let sums = if is_for_norm { (2 * MULTIPLYING_WARPS + 3) * self.columns() * size_of::<f32>() } else { 0 };
        self.ring() * stage + sums
    }
}

/// How a pass is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WideTiling {
    pub tile: WideTile,
    /// Blocks of a cluster, whose tiles lie one below the other: 1 or 2.
    pub cluster: usize,
    /// Splits of wgrad's summands; 1 in the other passes.
    pub splits: usize,
}

impl WideTiling {
    /// Every tile and cluster that there are kernels for, without splits.
    pub fn all() -> impl Iterator<Item = WideTiling> {
        let clusters = |tile| match tile {
            // As `WideTile::IN_CLUSTERS`.
            WideTile::Tall => 1..2,
            _ => 1..3,
        };
        let of = move |tile| clusters(tile).map(move |cluster| WideTiling { tile, cluster, splits: 1 });
        WideTile::ALL.into_iter().flat_map(of)
    }

    /// Tiles one below the other, with those that fill up the last cluster.
    fn tiles_down(self, rows: usize) -> usize {
        rows.div_ceil(self.tile.rows()).next_multiple_of(self.cluster)
    }

    fn tiles(self, [rows, columns]: [usize; 2]) -> usize {
        self.tiles_down(rows) * columns.div_ceil(self.tile.columns())
    }
}

impl fmt::Display for WideTiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        tiles::tell(f, [self.tile.rows(), self.tile.columns()], self.splits)?;
        if self.cluster > 1 { write!(f, ", in clusters of {}", self.cluster) } else { Ok(()) }
    }
}

const THREADS: u32 = 384;
const MULTIPLYING_WARPS: usize = 8;

// ---- which passes ------------------------------------------------------------------------------------------------------

/// Pairs of residues that dgrad's kernels have patches for.
const MOST_PAIRS: usize = 4;

/// How a pass reads the images that it walks through: x, or dgrad dy, once for each pair of residues.
struct Reading {
    strides: [usize; 2],
    /// The first pixel of the box, the last one counted from that of the image, and the farthest tap: H, W.
    lower: [i64; 2],
    upper: [i64; 2],
    reach: [usize; 2],
}

impl Reading {
    fn forward(g: &Geometry) -> Reading {
        let Conv2d { stride, padding, dilation, .. } = g.conv;
        let reach = [dilation[0] * (g.r - 1), dilation[1] * (g.s - 1)];
        let lower = padding.map(|padding| -(padding as i64));
        let upper = [0, 1].map(|axis| padding[axis] as i64 - reach[axis] as i64);
        Reading { strides: stride, lower, upper, reach }
    }

    /// `None` where a pair of residues has no taps, and so reads nothing.
    fn backward(g: &Geometry, of: [&Residue; 2]) -> Option<Reading> {
        if of.iter().any(|residue| residue.taps == 0) {
            return None;
        }
        let reach = of.map(|residue| (residue.taps - 1) as i64 * -i64::from(residue.step));
        let lower = [0, 1].map(|axis| i64::from(of[axis].from) - reach[axis]);
        // As many pixels as the residue has.
        let sizes = [g.p, g.q].map(|size| size as i64);
        let upper = [0, 1].map(|axis| lower[axis] + i64::from(of[axis].count) - sizes[axis]);
        Some(Reading { strides: [1; 2], lower, upper, reach: reach.map(|reach| reach as usize) })
    }

    fn is_within_limits(&self) -> bool {
        self.reach.iter().all(|&reach| reach <= tensor_map::MOST_OFFSET)
            && self.lower.iter().chain(&self.upper).all(|corner| tensor_map::CORNERS.contains(corner))
            && self.strides.iter().all(|&stride| stride <= tensor_map::MOST_STRIDE as usize)
    }

    /// Copies of so many pixels of images of this shape.
    fn map(&self, gpu: Handle, address: Address, dtype: DType, shape: [usize; 4], pixels: usize) -> TensorMap {
        let corner = |corner: [i64; 2]| corner.map(|at| at as i32);
        let dense = Images::dense(address, dtype, shape, dim(pixels));
        let strides = self.strides.map(dim);
        gpu.encode(Images { lower: corner(self.lower), upper: corner(self.upper), strides, ..dense })
    }
}

/// What dgrad reads for each pair of residues, in the order of the kernels.
fn readings(g: &Geometry, [h, w]: &[[Residue; MOST_RESIDUES]; 2]) -> Vec<Option<Reading>> {
    let [down, right] = g.conv.stride;
    let pairs = (0..down).flat_map(|row| (0..right).map(move |column| (row, column)));
    pairs.map(|(row, column)| Reading::backward(g, [&h[row], &w[column]])).collect()
}

/// The convolution as the kernels see it. `None` if they do not take it. `g` is one that tensor cores take, of `layout`.
pub fn seen(g: &Geometry, pass: Pass, dtype: DType) -> Option<Geometry> {
    let seen = plain(g);
    let [down, right] = seen.conv.stride;
    let walks = || match pass {
        // Every residue has pixels.
        Pass::Dgrad => {
            let is_divided = down * right <= MOST_PAIRS && down <= seen.h && right <= seen.w;
            is_divided && readings(&seen, &residues(&seen)).iter().flatten().all(Reading::is_within_limits)
        }
        _ => Reading::forward(&seen).is_within_limits(),
    };
    // A step's summands are of one tap: channels, or dgrad's filters, or wgrad's pixels, of which a line's weights are.
    let channels = if pass == Pass::Dgrad { seen.k } else { seen.c };
    let has_kernel = match dtype {
        DType::BF16 | DType::F16 => true,
        // Products take numbers of 32 bits only where they lie along the summands.
        DType::TF32 => pass == Pass::Fprop,
        _ => false,
    };
    let takes = has_kernel
        && seen.conv.groups == 1
        && channels.is_multiple_of(tensor_map::line(dtype))
        && g.pitch.is_multiple_of(super::layout::pack(dtype))
        && walks();
    takes.then_some(seen)
}

/// How a device with these tensor cores does a pass over tensors that are no windows: `None` where it is left to the other kernels.
pub fn choice(g: &Geometry, pass: Pass, dtype: DType) -> Option<WideTiling> {
    use super::layout::{Operands, on_tensor_cores};
    on_tensor_cores(g, pass, dtype, Operands::ALIGNED)?;
    let seen = seen(g, pass, dtype)?;
    (!is_left_to_others(&seen, pass, dtype)).then(|| choose(&seen, pass, dtype))
}

/// Whether the others were measured to be faster.
fn is_left_to_others(seen: &Geometry, pass: Pass, dtype: DType) -> bool {
    matches!(tiles::measured(seen, pass, dtype), Some(Choice::OfWarps(_)))
}

/// Whether a GPU does a pass by these kernels, on operands that tensor cores take: then the convolution as they see it.
pub(super) fn serves(gpu: &Gpu, g: &Geometry, pass: Pass, dtype: DType, operands: [Address; 2]) -> Option<Geometry> {
    let is_aligned = operands.iter().all(|address| address.0.is_multiple_of(16));
    let is_asked = gpu.description().warpgroups && is_aligned && !tiles::is_forced();
    let seen = if is_asked { seen(g, pass, dtype)? } else { return None };
    (FORCED.get().is_some() || !is_left_to_others(&seen, pass, dtype)).then_some(seen)
}

// ---- which tile --------------------------------------------------------------------------------------------------------

/// The GPU of the rule: an H100 as published, rates per processor and clock. wgmma has 2048 products of 16 bits at the clock of 1.83 GHz, of
/// which 80 % are left for the clock that its power allows; the bytes of tiles are what a 5.5 TB/s L2 cache gives each processor, those of
/// results its share of 3.35 TB/s of memory. Predictions: none of these was measured here.
const PROCESSORS: usize = 132;
const PRODUCTS: usize = 1640;
const TILE_BYTES: usize = 24;
const RESULT_BYTES: usize = 14;
/// Clocks between the last product of a tile and the first of the next, beside those that its results take.
const TURN: usize = 500;
/// Clocks of a second launch.
const LAUNCH: usize = 4000;
/// A split has at least so many summands.
const SHORTEST: usize = 512;
const MOST_SPLITS: usize = 256;

/// Clocks that the rule expects: waves of tiles on all processors, each as long as its steps and its results take.
fn cost(gemm: Gemm, pass: Pass, choice: WideTiling) -> usize {
    let WideTiling { tile, splits, .. } = choice;
    let bytes_of_result = if pass == Pass::Wgrad { size_of::<f32>() } else { DType::BF16.size() };
    let sums = match splits {
        1 => 0,
        // Written, which is counted above, and read by a second launch.
        splits => LAUNCH + size_of::<f32>() * splits * gemm.m * gemm.n / (RESULT_BYTES * PROCESSORS),
    };
    waves(gemm, choice, tile.rows() * tile.columns() * bytes_of_result / RESULT_BYTES) + sums
}

/// Clocks of all waves, where a tile takes `end` behind its last step.
fn waves(Gemm { m, n, k, grids }: Gemm, choice: WideTiling, end: usize) -> usize {
    let WideTiling { tile, cluster, splits } = choice;
    // What the cache gives a block of a cluster; the rest comes from its partner.
    let copies = (tile.rows() + tile.columns() / cluster) * LINE_BYTES / TILE_BYTES;
    let step = (tile.rows() * tile.columns() * LINE / PRODUCTS).max(copies);
    let of_tile = k.div_ceil(splits).div_ceil(LINE) * step + TURN + end;
    (choice.tiles([m, n]) * grids * splits).div_ceil(PROCESSORS) * of_tile
}

thread_local! {
    static FORCED: Cell<Option<WideTiling>> = const { Cell::new(None) };
}

/// Runs `work` with one choice for every pass that this thread starts and these kernels take.
pub fn with_choice<R>(choice: WideTiling, work: impl FnOnce() -> R) -> R {
    tiles::choosing(&FORCED, choice, work)
}

/// The tiling of what [`seen`] sees: as it was measured, or by a rule that knows the shapes alone.
fn choose(seen: &Geometry, pass: Pass, dtype: DType) -> WideTiling {
    match tiles::measured(seen, pass, dtype) {
        Some(Choice::OfWarpgroups(tiling)) if FORCED.get().is_none() => tiling,
        _ => {
            let gemm = work(seen, pass, dtype);
            choose_by(gemm, pass, |choice| cost(gemm, pass, choice))
        }
    }
}

/// The product as the rule sees it: tf32 takes twice as many steps, of as many clocks and bytes.
fn work(seen: &Geometry, pass: Pass, dtype: DType) -> Gemm {
    let gemm = Gemm::of(seen, pass);
    Gemm { k: gemm.k * dtype.size() / DType::BF16.size(), ..gemm }
}

/// The tilings worth timing for what [`seen`] sees: each tile and cluster with the splits that the rule would give it, and wgrad also with half
/// and twice as many.
pub fn candidates(seen: &Geometry, pass: Pass, dtype: DType) -> Vec<WideTiling> {
    let gemm = work(seen, pass, dtype);
    let ruled = WideTiling::all().map(|of| with_splits(gemm, pass, of, |choice| cost(gemm, pass, choice)));
    let around = |choice: WideTiling| {
        let splits = [choice.splits, choice.splits / 2, choice.splits * 2];
        let possible =
            move |&n: &usize| n == choice.splits || (pass == Pass::Wgrad && (1..=most_splits(gemm)).contains(&n));
        splits.into_iter().filter(possible).map(move |splits| WideTiling { splits, ..choice })
    };
    ruled.flat_map(around).collect()
}

/// wgrad's: a split has some summands.
fn most_splits(gemm: Gemm) -> usize {
    (gemm.k / SHORTEST).clamp(1, MOST_SPLITS)
}

/// A tile and cluster with the splits that cost least.
fn with_splits(gemm: Gemm, pass: Pass, of: WideTiling, cost: impl Fn(WideTiling) -> usize) -> WideTiling {
    let most = if pass == Pass::Wgrad { most_splits(gemm) } else { 1 };
    let all = (1..=most).map(|splits| WideTiling { splits, ..of });
    all.min_by_key(|&choice| cost(choice)).expect("one split at least")
}

/// The same of wgrad with products in place of dW: each tile reads those of so many sources from the L2 cache, and what it writes is not
/// worth counting.
pub(super) fn choose_products(seen: &Geometry, sources: usize) -> WideTiling {
    let gemm = Gemm::of(seen, Pass::Wgrad);
    choose_by(gemm, Pass::Wgrad, |choice| {
        let size = choice.tile.rows() * choice.tile.columns();
        waves(gemm, choice, size * size_of::<f32>() * sources / TILE_BYTES)
    })
}

fn choose_by(gemm: Gemm, pass: Pass, cost: impl Fn(WideTiling) -> usize) -> WideTiling {
    if let Some(forced) = FORCED.get() {
        return WideTiling { splits: if pass == Pass::Wgrad { forced.splits } else { 1 }, ..forced };
    }
    let all = WideTiling::all().map(|of| with_splits(gemm, pass, of, &cost));
    all.min_by_key(|&choice| cost(choice)).expect("tiles")
}

// ---- launches ----------------------------------------------------------------------------------------------------------

/// The kernel, and its file; those that also work for a batch norm, the one behind fprop or before dgrad, have their own.
fn kernel(pass: Pass, is_for_norm: bool, tile: WideTile) -> [&'static str; 2] {
    use WideTile::{Square, Tall, Wide};
    let name = match (pass, is_for_norm, tile) {
        (Pass::Fprop, false, Wide) => "conv2d_hopper_fprop_128x256",
        (Pass::Fprop, false, Square) => "conv2d_hopper_fprop_128x128",
        (Pass::Fprop, false, Tall) => "conv2d_hopper_fprop_256x64",
        (Pass::Fprop, true, Wide) => "conv2d_hopper_fprop_statistics_128x256",
        (Pass::Fprop, true, Square) => "conv2d_hopper_fprop_statistics_128x128",
        (Pass::Fprop, true, Tall) => "conv2d_hopper_fprop_statistics_256x64",
        (Pass::Dgrad, false, Wide) => "conv2d_hopper_dgrad_128x256",
        (Pass::Dgrad, false, Square) => "conv2d_hopper_dgrad_128x128",
        (Pass::Dgrad, false, Tall) => "conv2d_hopper_dgrad_256x64",
        (Pass::Dgrad, true, Wide) => "conv2d_hopper_dgrad_sums_128x256",
        (Pass::Dgrad, true, Square) => "conv2d_hopper_dgrad_sums_128x128",
        (Pass::Dgrad, true, Tall) => "conv2d_hopper_dgrad_sums_256x64",
        (Pass::Wgrad, _, Wide) => "conv2d_hopper_wgrad_128x256",
        (Pass::Wgrad, _, Square) => "conv2d_hopper_wgrad_128x128",
        (Pass::Wgrad, _, Tall) => "conv2d_hopper_wgrad_256x64",
    };
    [tensor::file_of(name), name]
}

/// The product of tiles that the kernels are told of; `size` is that of the result, of one pair of residues.
fn product(
    seen: &Geometry,
    sizes: super::Sizes,
    [from, by, to]: [Address; 3],
    tile: WideTile,
    size: [usize; 2],
) -> Product {
    Product {
        from,
        by,
        to,
        g: sizes,
        split: 0,
        to_pitch: 0,
        tiles_down: int(size[0].div_ceil(tile.rows())),
        by_tiles: Divider::new(size[1].div_ceil(tile.columns())),
        by_rows: Divider::new(seen.p),
        by_columns: Divider::new(seen.q),
        by_channels: Divider::new(seen.c),
        by_taps: Divider::new(seen.s),
    }
}

/// The patches of x, so many pixels at a time.
fn patches(gpu: Handle, seen: &Geometry, dtype: DType, x: Address, pixels: usize) -> TensorMap {
    Reading::forward(seen).map(gpu, x, dtype, [seen.n, seen.h, seen.w, seen.c], pixels)
}

/// Filters, so many at a time.
fn filters(gpu: Handle, g: &Geometry, dtype: DType, address: Address, lines: usize) -> TensorMap {
    let [rows, columns, pitch] = [g.k, g.filter_len(), g.pitch * dtype.size()].map(|size| size as u64);
    gpu.encode(Matrix { address, dtype, rows, columns, pitch, box_rows: dim(lines) })
}

fn name_of_products(tile: WideTile) -> &'static str {
    match tile {
        WideTile::Wide => "conv2d_hopper_products_128x256",
        WideTile::Square => "conv2d_hopper_products_128x128",
        WideTile::Tall => "conv2d_hopper_products_256x64",
    }
}

fn launch<P: gpu::Parameters>(
    gpu: Handle,
    pass: Pass,
    is_for_norm: bool,
    dtype: DType,
    choice: WideTiling,
    size: [usize; 3],
    parameters: &P,
) {
    let kernel = kernel(pass, is_for_norm, choice.tile);
    launch_kernel(gpu, kernel, is_for_norm, dtype, choice, size, parameters);
}

fn launch_kernel<P: gpu::Parameters>(
    gpu: Handle,
    [file, name]: [&'static str; 2],
    is_for_norm: bool,
    dtype: DType,
    choice: WideTiling,
    [rows, columns, parts]: [usize; 3],
    parameters: &P,
) {
    let WideTiling { tile, cluster, .. } = choice;
    let blocks =
        Blocks::from(THREADS).with_dynamic_shared(dim(tile.shared(is_for_norm))).in_clusters([dim(cluster), 1, 1]);
    let at_once = gpu.description().multiprocessors / cluster * cluster;
    let grid = [dim((choice.tiles([rows, columns]) * parts).min(at_once.max(cluster))), 1, 1];
    // SAFETY: `layout` and `seen` were asked whether the kernels take the operands, the tensor maps describe them as the contract
    // checked them, and the callers below give a result, and sums of its tiles, of this size in so many
    // parts.
    unsafe { gpu.launch(file, name, dtype, grid, blocks, parameters) }
}

/// `seen` is what [`serves`] gave for `g`. Returns the statistics of y's tiles, if they are what is to be done besides.
pub(super) fn fprop(
    gpu: Handle,
    seen: &Geometry,
    dtype: DType,
    [x, w, y]: [Address; 3],
    besides: Besides,
) -> Option<Tiles> {
    gpu.account(|| seen.cost(Pass::Fprop, dtype));
    let choice @ WideTiling { tile, cluster, .. } = choose(seen, Pass::Fprop, dtype);
    let size = [seen.n * seen.p * seen.q, seen.k];
    let product = product(seen, sizes(seen, dtype, x, y, Some(w)), [x, w, y], tile, size);
    let (from, by) =
        (patches(gpu, seen, dtype, x, tile.rows()), filters(gpu, seen, dtype, w, tile.columns() / cluster));
    if !matches!(besides, Besides::Statistics) {
        let finished = FinishedProduct { product, finish: Finish::of(besides.epilogue()) };
        launch(gpu, Pass::Fprop, false, dtype, choice, [size[0], size[1], 1], &WideFprop { from, by, finished });
        return None;
    }
    let sums = tensor::sums_of_tiles(gpu, size[0], tile.rows(), 1, seen.k);
    gpu.account(|| Cost::moving(0, sums.bytes()));
    let statistics = ProductStatistics { product, partial: sums.address() };
    launch(
        gpu,
        Pass::Fprop,
        true,
        dtype,
        choice,
        [size[0], size[1], 1],
        &WideStatistics { from, by, statistics, padding: 0 },
    );
    Some(Tiles { sums, span: tile.rows(), pixels: size[0] })
}

/// With a batch norm before it, `dx` becomes dz, and its sums are returned.
pub(super) fn dgrad(
    gpu: Handle,
    seen: &Geometry,
    dtype: DType,
    [dy, w, dx]: [Address; 3],
    is_added: bool,
    norm: Option<&Normalized>,
) -> Option<Tensor> {
    let choice @ WideTiling { tile, .. } = choose(seen, Pass::Dgrad, dtype);
    let Gemm { m, n, grids, .. } = Gemm::of(seen, Pass::Dgrad);
    let product = product(seen, sizes(seen, dtype, dx, dy, Some(w)), [dy, w, dx], tile, [m, n]);
    let residues = residues(seen);
    let mut from = [TensorMap([0; 16]); MOST_PAIRS];
    for (map, reading) in from.iter_mut().zip(readings(seen, &residues)) {
        if let Some(reading) = reading {
            *map = reading.map(gpu, dy, dtype, [seen.n, seen.p, seen.q, seen.k], tile.rows());
        }
    }
    // Filters as they lie: a line for each, with 64 of its weights.
    let by = filters(gpu, seen, dtype, w, LINE);
    let [h, w] = residues;
    let backward = BackwardProduct { product, h, w, adds: is_added.into(), padding: 0 };
    let size = [m, n, grids];
    let Some(norm) = norm else {
        let parameters = WideDgrad { by, from, backward, padding: [0; 5] };
        launch(gpu, Pass::Dgrad, false, dtype, choice, size, &parameters);
        return None;
    };
    let (gradient, sums) = tensor::gradient(gpu, backward, norm, seen.c, [m, tile.rows(), grids]);
    launch(gpu, Pass::Dgrad, true, dtype, choice, size, &WideGradient { by, from, gradient, padding: [0; 2] });
    Some(sums)
}

pub(super) fn wgrad(gpu: Handle, [g, seen]: [&Geometry; 2], dtype: DType, [x, dy, dw]: [Address; 3]) {
    let choice = choose(seen, Pass::Wgrad, dtype);
    let pixels = seen.n * seen.p * seen.q;
    let split = pixels.div_ceil(choice.splits).next_multiple_of(LINE);
    let splits = pixels.div_ceil(split);
    let sums = Sums::of(gpu, g, seen, splits, dw);
    let sizes = sums.sizes(sizes(seen, dtype, x, dy, None));
    let size = [seen.k, seen.filter_len()];
    let product = product(seen, sizes, [dy, x, sums.partial], choice.tile, size);
    let product = Product { split: int(split), to_pitch: int(sums.pitch), ..product };
    let from = gpu.encode(Matrix::dense(dy, dtype, [pixels, seen.k], dim(LINE)));
    let by = patches(gpu, seen, dtype, x, LINE);
    sums.account(gpu, g.cost(Pass::Wgrad, dtype));
    let size = [size[0], size[1], splits];
    launch(gpu, Pass::Wgrad, false, dtype, choice, size, &WideWgrad { from, by, product, padding: [0; 2] });
    sums.add_up(gpu, g, seen, dtype, dw);
}

/// wgrad with products in place of dW, which `products` describes but for its product: that of splits of `split` pixels.
pub(super) fn wgrad_products(
    gpu: Handle,
    seen: &Geometry,
    dtype: DType,
    [x, dy, to]: [Address; 3],
    (choice, split): (WideTiling, usize),
    products: impl FnOnce(Product) -> Products,
) {
    let size = [seen.k, seen.filter_len()];
    let product = product(seen, sizes(seen, dtype, x, dy, None), [dy, x, to], choice.tile, size);
    let products = products(Product { split: int(split), ..product });
    let from = gpu.encode(Matrix::dense(dy, dtype, [seen.n * seen.p * seen.q, seen.k], dim(LINE)));
    let by = patches(gpu, seen, dtype, x, LINE);
    let kernel = ["conv2d_hopper_products", name_of_products(choice.tile)];
    let parameters = WideProducts { from, by, products, padding: [0; 7] };
    launch_kernel(gpu, kernel, false, dtype, choice, [size[0], size[1], choice.splits], &parameters);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(x: [usize; 4], filters: [usize; 3], conv: Conv2d) -> Geometry {
        let [k, r, s] = filters;
        Geometry::new(conv, x.into(), [k, r, s, x[3]].into(), r * s * x[3])
    }

    #[test]
    fn what_a_step_does_not_fill_is_left_to_others() {
        let takes = |x, filters, conv, pass| seen(&geometry(x, filters, conv), pass, DType::BF16).is_some();
        let same = Conv2d::new(1, 1);
        for pass in Pass::ALL {
            assert!(takes([2, 8, 8, 64], [128, 3, 3], same, pass), "{pass}");
            // Summed are channels, and in dgrad filters.
            assert_eq!(takes([2, 8, 8, 96], [128, 3, 3], same, pass), pass == Pass::Dgrad);
            assert_eq!(takes([2, 8, 8, 64], [96, 3, 3], same, pass), pass != Pass::Dgrad);
            assert!(takes([2, 8, 8, 64], [64, 3, 3], Conv2d::new(2, 1), pass), "{pass}");
            assert!(takes([2, 8, 8, 64], [64, 1, 1], same, pass), "{pass}");
            // More pairs of residues than there are patches for, and residues without pixels.
            assert_eq!(takes([2, 8, 8, 64], [64, 3, 3], Conv2d::new(3, 1), pass), pass != Pass::Dgrad);
            assert_eq!(takes([2, 1, 8, 64], [64, 1, 1], Conv2d::new(2, 0), pass), pass != Pass::Dgrad);
            assert!(seen(&geometry([2, 8, 8, 64], [64, 3, 3], same), pass, DType::F16).is_some());
            let of_tf32 =
                |channels| seen(&geometry([2, 8, 8, channels], [64, 3, 3], same), pass, DType::TF32).is_some();
            assert_eq!([32, 64, 48].map(of_tf32), if pass == Pass::Fprop { [true, true, false] } else { [false; 3] });
        }
    }

    #[test]
    fn the_limits_of_copies_are_kept() {
        let takes = |stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2]| {
            let conv = Conv2d { stride, padding, dilation, groups: 1 };
            seen(&geometry([1, 300, 300, 64], [64, 2, 2], conv), Pass::Fprop, DType::BF16).is_some()
        };
        assert!(takes([8, 8], [0, 0], [1, 1]));
        assert!(!takes([1, 9], [0, 0], [1, 1]));
        assert!(takes([1, 1], [128, 128], [1, 1]));
        assert!(!takes([1, 1], [129, 0], [1, 1]));
        assert!(takes([1, 1], [0, 0], [128, 128]));
        assert!(!takes([1, 1], [0, 0], [129, 1]));
        assert!(takes([1, 1], [127, 127], [255, 255]));
        assert!(!takes([1, 1], [0, 128], [1, 256]));
    }

    /// The rows of dy that a walk through a residue's box meets, moved by each tap's offset, are those that the residue's rows read.
    #[test]
    fn residues_walk_through_what_they_read() {
        for ([h, r], stride, padding, dilation) in
            [([9, 3], 1, 1, 1), ([8, 3], 2, 1, 1), ([9, 4], 2, 1, 3), ([7, 1], 1, 1, 1), ([10, 5], 4, 2, 1)]
        {
            let conv = Conv2d { stride: [stride, 1], padding: [padding, 0], dilation: [dilation, 1], groups: 1 };
            let g = geometry([2, h, 6, 64], [64, r, 1], conv);
            let residues = residues(&g);
            for (of, reading) in residues[0].iter().zip(readings(&g, &residues)) {
                let Some(reading) = reading else {
                    assert_eq!(of.taps, 0);
                    continue;
                };
                let met: Vec<i64> = (reading.lower[0]..=g.p as i64 - 1 + reading.upper[0]).collect();
                assert_eq!(met.len(), of.count as usize, "residue {} of {g:?}", of.residue);
                for (i, met) in met.into_iter().enumerate() {
                    for j in 0..of.taps {
                        let offset = i64::from((j + 1 - of.taps) * of.step);
                        assert!((0..=reading.reach[0] as i64).contains(&offset));
                        assert_eq!(
                            met + offset,
                            i64::from(of.from) + i as i64 + i64::from(j * of.step),
                            "residue {} of {g:?}",
                            of.residue
                        );
                    }
                }
            }
        }
    }

    /// The tiles of ResNet-50's layers with 128 images of 224 pixels.
    #[test]
    fn many_filters_get_wide_tiles_in_clusters_and_64_of_them_tall_ones() {
        let tile = |x, filters, conv, pass| {
            let choice = choice(&geometry(x, filters, conv), pass, DType::BF16);
            choice.map(|choice| (choice.tile, choice.cluster, choice.splits))
        };
        let same = Conv2d::new(1, 1);
        assert_eq!(tile([128, 7, 7, 512], [512, 3, 3], same, Pass::Fprop), Some((WideTile::Wide, 2, 1)));
        assert_eq!(tile([128, 56, 56, 64], [64, 3, 3], same, Pass::Fprop), Some((WideTile::Tall, 1, 1)));
        assert_eq!(tile([128, 28, 28, 128], [128, 3, 3], same, Pass::Dgrad), Some((WideTile::Square, 2, 1)));
        let (_, _, splits) = tile([128, 56, 56, 64], [64, 3, 3], same, Pass::Wgrad).unwrap();
        assert!(splits > 8, "{splits}");
        // A product for each pair of residues.
        let strided = tile([128, 56, 56, 128], [128, 3, 3], Conv2d::new(2, 1), Pass::Dgrad);
        assert_eq!(strided, Some((WideTile::Square, 2, 1)));
    }

    #[test]
    fn clusters_are_filled_up() {
        let tiling = WideTiling { tile: WideTile::Square, cluster: 2, splits: 1 };
        assert_eq!((tiling.tiles([384, 129]), tiling.tiles([512, 128])), (8, 4));
        assert_eq!(tiling.to_string(), "128×128, in clusters of 2");
        let alone = WideTiling { cluster: 1, ..tiling };
        assert_eq!((alone.tiles([384, 129]), alone.to_string()), (6, "128×128".into()));
        assert!(WideTiling::all().all(|tiling| tiling.cluster == 1 || tiling.tile.columns() > LINE));
    }

    #[test]
    fn shared_memory_suffices() {
        for tile in WideTile::ALL {
            // Beside it stand two barriers of 8 bytes for each stage, and what aligns the ring to 1024 bytes.
            assert!(tile.shared(true) + 1024 <= Blocks::SHARED, "{tile:?}");
        }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod emulated {
    use super::super::example::{Example, check_gradient, check_statistics, seen as as_stored, signs};
    use super::super::{Epilogue, dgrad_to, fprop, fprop_besides};
    use super::*;
    use crate::gpu::WorkOf;
    use crate::gpu::emulator::Emulator;
    use crate::numbers::{Numbers, normalized_error};
    use crate::ops::cases;
    use crate::tensor::Device;

    /// One whose tensor cores round each sum: integers come out the same, and sooner.
    fn gpu(seed: u64) -> Handle {
        Gpu::on_emulator(Emulator::new(seed).with_warpgroups(true))
    }

    /// Calls `check` with every case that these kernels take in a pass, and every tile and cluster, each pair with one dtype.
    fn for_each_tile(pass: Pass, mut check: impl FnMut(&cases::ConvCase, DType, WideTiling)) {
        let dtypes = [DType::BF16, DType::F16, DType::TF32];
        let mut count = 0;
        for case in cases::CONV2D {
            let takes = |dtype: &DType| choice(&case.geometry(), pass, *dtype).is_some();
            let dtypes: Vec<DType> = dtypes.into_iter().filter(takes).collect();
            for tiling in WideTiling::all().filter(|_| !dtypes.is_empty()) {
                check(case, dtypes[count % dtypes.len()], tiling);
                count += 1;
            }
        }
        assert!(count >= 5 * 5, "{count} cases and tiles of {pass}");
    }

    /// The kernels that `work` launches.
    fn kernels(gpu: Handle, work: impl FnOnce()) -> Vec<&'static str> {
        let of = |of| match of {
            WorkOf::Launch(kernel) => kernel.name,
            _ => "a copy",
        };
        gpu.trace(work).work.into_iter().map(|work| of(work.of)).collect()
    }

    /// Integers that every dtype holds, results included, so that each tile must give the reference's bits.
    #[test]
    fn every_tile_computes_every_case() {
        let gpu = gpu(5);
        for pass in Pass::ALL {
            for_each_tile(pass, |case, dtype, tiling| {
                let mut numbers = Numbers::named(case.name);
                let example =
                    Example::new(Device::Gpu(gpu), dtype, &case.geometry(), &mut |len| signs(&mut numbers, len));
                let splits = if pass == Pass::Wgrad { 3 } else { 1 };
                let mut result = None;
                let launched = kernels(gpu, || {
                    result = Some(with_choice(WideTiling { splits, ..tiling }, || example.run(pass)));
                });
                gpu.check().unwrap();
                assert_eq!(launched[0], kernel(pass, false, tiling.tile)[1], "{}", case.name);
                let (actual, expected) = result.expect("it ran");
                let expected: Vec<f64> = match pass {
                    Pass::Wgrad => expected.to_vec(),
                    _ => as_stored(expected, dtype),
                };
                let wrong = (0..actual.len()).find(|&i| actual[i] != expected[i]).map(|i| (i, actual[i], expected[i]));
                assert!(wrong.is_none(), "{dtype} {pass} of {}, {tiling}: {wrong:?}", case.name);
            });
        }
    }

    #[test]
    fn statistics_are_those_of_what_was_stored() {
        let gpu = gpu(6);
        for_each_tile(Pass::Fprop, |case, dtype, tiling| {
            let mut numbers = Numbers::named(case.name);
            // A mean that is not zero, so that its relative error says something.
            let mut draw = |len: usize| numbers.reals(len).into_iter().map(|v| 0.3 + v).collect();
            let Example { g, x, w, dy, .. } = Example::new(Device::Gpu(gpu), dtype, &case.geometry(), &mut draw);
            let like_y = || Tensor::uninit(dy.shape(), dtype, dy.device());
            let (mut y, mut plain) = (like_y(), like_y());
            let tiles = with_choice(tiling, || {
                fprop(g.conv, &x, &w, plain.view_mut());
                fprop_besides(g.conv, &x, &w, y.view_mut(), Besides::Statistics).expect("on tensor cores")
            });
            gpu.check().unwrap();
            assert_eq!(tiles.span, tiling.tile.rows());
            check_statistics(&format!("{dtype} {}, {tiling}", case.name), g.k, &tiles, [&y, &plain]);
        });
    }

    #[test]
    fn dgrad_does_the_first_pass_of_a_batch_norm() {
        let gpu = gpu(8);
        for_each_tile(Pass::Dgrad, |case, dtype, tiling| {
            let name = format!("{dtype} {}, {tiling}", case.name);
            check_gradient(&name, gpu, dtype, &case.geometry(), &|g, dy, w, to| {
                let is_for_norm = to.norm.is_some();
                let mut sums = None;
                let launched = kernels(gpu, || {
                    sums = with_choice(tiling, || dgrad_to(g.conv, dy, w, to));
                });
                assert_eq!(launched, [kernel(Pass::Dgrad, is_for_norm, tiling.tile)[1]], "{name}");
                sums
            });
        });
    }

    #[test]
    fn a_bias_and_a_relu_follow() {
        let gpu = gpu(7);
        for_each_tile(Pass::Fprop, |case, dtype, tiling| {
            let mut numbers = Numbers::named(case.name);
            let Example { g, x, w, dy, expected: [y, ..], .. } =
                Example::new(Device::Gpu(gpu), dtype, &case.geometry(), &mut |len| signs(&mut numbers, len));
            let bias = numbers.integers(g.k);
            let mut actual = Tensor::uninit(dy.shape(), dtype, dy.device());
            let on_device = Tensor::from_vec(bias.iter().map(|&v| v as f32).collect(), [g.k]).to_device(dy.device());
            with_choice(tiling, || {
                let epilogue = Epilogue { bias: &on_device, relu: true };
                fprop_besides(g.conv, &x, &w, actual.view_mut(), Besides::Epilogue(epilogue))
            });
            gpu.check().unwrap();
            let expected: Vec<f64> = y.iter().enumerate().map(|(i, v)| (v + bias[i % g.k]).max(0.0)).collect();
            assert!(actual.to_f64() == as_stored(&expected, dtype), "{dtype} {}, {tiling}", case.name);
        });
    }

    /// Bits beyond those of tf32 are rounded to nearest as they are copied: cut off, they would leave errors four times as large.
    #[test]
    fn tf32_is_rounded_to_nearest() {
        let gpu = gpu(9);
        let g = Geometry::new(Conv2d::new(1, 1), [2, 9, 8, 32].into(), [24, 3, 3, 32].into(), 288);
        let mut numbers = Numbers(3);
        let example = Example::new(Device::Gpu(gpu), DType::TF32, &g, &mut |len| numbers.reals(len));
        let mut result = None;
        let launched = kernels(gpu, || result = Some(example.run(Pass::Fprop)));
        gpu.check().unwrap();
        assert!(launched[0].starts_with("conv2d_hopper_fprop"), "{launched:?}");
        let (actual, expected) = result.expect("it ran");
        let error = normalized_error(&actual, expected);
        assert!(error < 1e-6, "{error:.1e}");
    }

    /// The emulator of sm_90a takes a layer to these kernels, others do not.
    #[test]
    fn only_sm_90a_has_them() {
        let case = cases::CONV2D.iter().find(|case| case.name == "in 64s, 1×1").expect("a case");
        let emulators =
            [("sm_90a", true), ("sm_80", false)].map(|(name, has)| (Gpu::emulator_of(name, 3).unwrap(), has));
        for (gpu, has_them) in emulators {
            let mut numbers = Numbers(1);
            let example =
                Example::new(Device::Gpu(gpu), DType::BF16, &case.geometry(), &mut |len| signs(&mut numbers, len));
            let launched = kernels(gpu, || drop(example.run(Pass::Fprop)));
            gpu.check().unwrap();
            assert_eq!(launched[0].starts_with("conv2d_hopper"), has_them, "{launched:?}");
        }
    }
}
