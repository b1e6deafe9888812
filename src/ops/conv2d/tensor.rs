//! Convolution on a GPU's tensor cores: `kernels/conv2d_tensor.cu`. For a batch norm behind it fprop leaves the statistics of
//! each tile of rows, and for one before it dgrad the sums that its backward begins with.

use super::division::{Divider, MOST_RESIDUES, Residue, residues};
use super::gpu::{Finish, PACKED_DW, Sizes, direct_grid, sizes};
use super::layout::{is_packed, pack, padded, plain};
use super::tiles::{self, Tile, Tiling};
use super::{Besides, Geometry, Pass};
use crate::gpu::{self, Address, Blocks, Cost, Gpu, Handle};
use crate::ops::batch_norm::{Normalized, Parts, Passing, Places, Tiles};
use crate::parameters;
use crate::tensor::{DType, Device, Tensor};

parameters! {
    pub(super) struct Product: 176 bytes {
        pub from: Address,
        pub by: Address,
        pub to: Address,
        pub g: Sizes,
        pub split: i32,
        pub to_pitch: i32,
        pub tiles_down: i32,
        pub by_tiles: Divider,
        pub by_rows: Divider,
        pub by_columns: Divider,
        pub by_channels: Divider,
        pub by_taps: Divider,
    }
}

impl Product {
    /// `g` as the kernels see it; `size` is that of the result, in rows and columns.
    pub fn new(
        (g, sizes): (&Geometry, Sizes),
        pass: Pass,
        [from, by, to]: [Address; 3],
        (tile, size): (Tile, [usize; 2]),
    ) -> Product {
        let [down, across] = tiles(tile, size);
        let channels = if pass == Pass::Dgrad { g.k } else { g.c };
        Product {
            from,
            by,
            to,
            g: sizes,
            split: 0,
            to_pitch: 0,
            tiles_down: int(down),
            by_tiles: Divider::new(across),
            by_rows: Divider::new(g.p),
            by_columns: Divider::new(g.q),
            by_channels: Divider::new(channels),
            by_taps: Divider::new(g.s),
        }
    }
}

parameters! {
    pub(super) struct BackwardProduct: 600 bytes {
        pub product: Product,
        pub h: [Residue; MOST_RESIDUES],
        pub w: [Residue; MOST_RESIDUES],
        pub adds: u32,
        pub padding: u32,
    }
}

/// Tiles of rows and of columns.
pub(super) fn tiles(tile: Tile, [rows, columns]: [usize; 2]) -> [usize; 2] {
    [rows.div_ceil(tile.rows()), columns.div_ceil(tile.columns())]
}

parameters! {
    pub(super) struct ProductStatistics: 184 bytes { pub product: Product, pub partial: Address }
}

parameters! {
    pub(super) struct FinishedProduct: 192 bytes { pub product: Product, pub finish: Finish }
}

parameters! {
    pub(super) struct ProductGradient: 688 bytes {
        backward: BackwardProduct,
        x: Address,
        mean: Address,
        rstd: Address,
        gamma: Address,
        beta: Address,
        signs: Address,
        partial: Address,
        cut: u32,
        padding: u32,
        places: Places,
    }
}

parameters! {
    struct Padding: 48 bytes {
        x: Address,
        y: Address,
        all_lines: i64,
        lines: i32,
        padded_lines: i32,
        channels: i32,
        padded_channels: i32,
        pitch: i32,
        padding: i32,
    }
}

parameters! {
    struct StretchSum: 40 bytes {
        partial: Address,
        dw: Address,
        filters: i32,
        taps: i32,
        channels: i32,
        padded: i32,
        pitch: i32,
        splits: i32,
    }
}

const DIRECT_THREADS: u32 = 128;

/// The tiles of the kernels for a padded stem.
const STEM_FPROP: Tile = Tile::Medium;
pub(super) const STEM_WGRAD: Tile = Tile::Small;

fn kernel(pass: Pass, tile: Tile) -> &'static str {
    match (pass, tile) {
        (Pass::Fprop, Tile::Wide) => "conv2d_tensor_fprop_128x256",
        (Pass::Fprop, Tile::Large) => "conv2d_tensor_fprop_128x128",
        (Pass::Fprop, Tile::Medium) => "conv2d_tensor_fprop_128x64",
        (Pass::Fprop, Tile::Small) => "conv2d_tensor_fprop_64x64",
        (Pass::Fprop, Tile::Narrow) => "conv2d_tensor_fprop_128x32",
        (Pass::Dgrad, Tile::Wide) => "conv2d_tensor_dgrad_128x256",
        (Pass::Dgrad, Tile::Large) => "conv2d_tensor_dgrad_128x128",
        (Pass::Dgrad, Tile::Medium) => "conv2d_tensor_dgrad_128x64",
        (Pass::Dgrad, Tile::Small) => "conv2d_tensor_dgrad_64x64",
        (Pass::Dgrad, Tile::Narrow) => "conv2d_tensor_dgrad_128x32",
        (Pass::Wgrad, Tile::Wide) => "conv2d_tensor_wgrad_128x256",
        (Pass::Wgrad, Tile::Large) => "conv2d_tensor_wgrad_128x128",
        (Pass::Wgrad, Tile::Medium) => "conv2d_tensor_wgrad_128x64",
        (Pass::Wgrad, Tile::Small) => "conv2d_tensor_wgrad_64x64",
        (Pass::Wgrad, Tile::Narrow) => unreachable!("no such kernel"),
    }
}

/// The kernels that also work for a batch norm: fprop for the one behind it, dgrad for the one before it.
fn kernel_for_norm(pass: Pass, tile: Tile) -> &'static str {
    match (pass, tile) {
        (Pass::Fprop, Tile::Wide) => "conv2d_tensor_fprop_statistics_128x256",
        (Pass::Fprop, Tile::Large) => "conv2d_tensor_fprop_statistics_128x128",
        (Pass::Fprop, Tile::Medium) => "conv2d_tensor_fprop_statistics_128x64",
        (Pass::Fprop, Tile::Small) => "conv2d_tensor_fprop_statistics_64x64",
        (Pass::Fprop, Tile::Narrow) => "conv2d_tensor_fprop_statistics_128x32",
        (Pass::Dgrad, Tile::Wide) => "conv2d_tensor_dgrad_sums_128x256",
        (Pass::Dgrad, Tile::Large) => "conv2d_tensor_dgrad_sums_128x128",
        (Pass::Dgrad, Tile::Medium) => "conv2d_tensor_dgrad_sums_128x64",
        (Pass::Dgrad, Tile::Small) => "conv2d_tensor_dgrad_sums_64x64",
        (Pass::Dgrad, Tile::Narrow) => "conv2d_tensor_dgrad_sums_128x32",
        (Pass::Wgrad, _) => unreachable!("no such kernel"),
    }
}

/// Each pass has a file of its own, but for its tiles.
pub(super) fn file_of(kernel: &'static str) -> &'static str {
    kernel.rsplit_once('_').expect("a name ends with its tile").0
}

pub(super) fn dim(size: usize) -> u32 {
    u32::try_from(size).expect("fewer than 2³² blocks")
}

pub(super) fn int(size: usize) -> i32 {
    i32::try_from(size).expect("sizes below 2³¹")
}

/// How a pass is divided, and which kernel does it.
fn division(g: &Geometry, pass: Pass, dtype: DType) -> (Tiling, &'static str) {
    let choice = tiles::choose(g, pass, dtype);
    // Packs of 16 bits that span two taps have kernels of their own.
    let is_stem = !g.c.is_multiple_of(pack(dtype));
    match pass {
        Pass::Fprop if is_stem => (Tiling { tile: STEM_FPROP, splits: 1 }, "conv2d_tensor_fprop_stem"),
        Pass::Wgrad if is_stem => {
            let gemm = tiles::Gemm::of(g, pass);
            let mut choices = tiles::choices(gemm, pass, dtype);
            (choices.find(|choice| choice.tile == STEM_WGRAD).expect("a tile of wgrad"), "conv2d_tensor_wgrad_stem")
        }
        _ => (choice, kernel(pass, choice.tile)),
    }
}

fn launch<P: gpu::Parameters>(
    gpu: &Gpu,
    name: &'static str,
    dtype: DType,
    product: &P,
    tile: Tile,
    size: [usize; 2],
    grids: usize,
) {
    let [down, across] = tiles(tile, size);
    let grid = [down * across, 1, grids].map(dim);
    let blocks = Blocks::from(tile.threads()).with_dynamic_shared(dim(tile.dynamic_shared()));
    // SAFETY: `layout` was asked whether operands come in packs; the contract checked their shapes, and the callers below
    // give a result, and sums of its tiles, of the size that the grid covers.
    unsafe { gpu.launch(file_of(name), name, dtype, grid, blocks, product) }
}

/// Two sums per column and tile of `span` rows, of each of `grids`.
pub(super) fn sums_of_tiles(gpu: Handle, rows: usize, span: usize, grids: usize, columns: usize) -> Tensor {
    Tensor::uninit([grids * rows.div_ceil(span), 2, columns], DType::F32, Device::Gpu(gpu))
}

/// `rows` × `lines` × `channels` at `x`, rows `pitch` apart, with zeros up to padded lines and channels.
fn pad(
    gpu: Handle,
    dtype: DType,
    x: Address,
    [rows, pitch]: [usize; 2],
    [lines, padded_lines]: [usize; 2],
    [channels, padded_channels]: [usize; 2],
) -> Tensor {
    let mut y = Tensor::uninit([rows, padded_lines, padded_channels], dtype, Device::Gpu(gpu));
    let all_lines = rows * padded_lines;
    let parameters = Padding {
        x,
        y: y.view_mut().address(),
        all_lines: all_lines as i64,
        lines: int(lines),
        padded_lines: int(padded_lines),
        channels: int(channels),
        padded_channels: int(padded_channels),
        pitch: int(pitch),
        padding: 0,
    };
    let grid = direct_grid(all_lines);
    gpu.account(|| Cost::moving(rows * lines * channels * dtype.size(), y.bytes()));
    // SAFETY: the callers below give the layout of x or w, which the contract checked.
    unsafe { gpu.launch("conv2d_tensor", "conv2d_tensor_pad", dtype, grid, DIRECT_THREADS, &parameters) }
    y
}

/// x with the channels of `padded`; nothing, where it has them.
pub(super) fn pad_x(gpu: Handle, dtype: DType, x: Address, g: &Geometry, padded: &Geometry) -> Option<Tensor> {
    let pixels = g.n * g.h * g.w;
    (g.c + g.zeros != padded.c).then(|| pad(gpu, dtype, x, [1, 0], [pixels, pixels], [g.c, padded.c]))
}

/// Returns the statistics of y's tiles, if they are what is to be done besides.
pub fn fprop(gpu: Handle, g: &Geometry, dtype: DType, [x, w, y]: [Address; 3], besides: Besides) -> Option<Tiles> {
    if let Some(padded) = padded(g, dtype) {
        let padded_x = pad_x(gpu, dtype, x, g, &padded);
        let x = padded_x.as_ref().map_or(x, Tensor::address);
        let w = pad(gpu, dtype, w, [g.k, g.pitch], [g.r * g.s, padded.pitch / padded.c], [g.c, padded.c]);
        return fprop_packed(gpu, &padded, dtype, [x, w.address(), y], besides);
    }
    fprop_packed(gpu, g, dtype, [x, w, y], besides)
}

fn fprop_packed(gpu: Handle, g: &Geometry, dtype: DType, [x, w, y]: [Address; 3], besides: Besides) -> Option<Tiles> {
    gpu.account(|| g.cost(Pass::Fprop, dtype));
    let g = &plain(g);
    let (Tiling { tile, .. }, name) = division(g, Pass::Fprop, dtype);
    let pixels = g.n * g.p * g.q;
    let sizes = sizes(g, dtype, x, y, Some(w));
    let product = Product::new((g, sizes), Pass::Fprop, [x, w, y], (tile, [pixels, g.k]));
    if !matches!(besides, Besides::Statistics) {
        let parameters = FinishedProduct { product, finish: Finish::of(besides.epilogue()) };
        launch(gpu, name, dtype, &parameters, tile, [pixels, g.k], 1);
        return None;
    }
    let is_stem = !g.c.is_multiple_of(pack(dtype));
    let name = if is_stem { "conv2d_tensor_fprop_statistics_stem" } else { kernel_for_norm(Pass::Fprop, tile) };
    let sums = sums_of_tiles(gpu, pixels, tile.rows(), 1, g.k);
    gpu.account(|| Cost::moving(0, sums.bytes()));
    let parameters = ProductStatistics { product, partial: sums.address() };
    launch(gpu, name, dtype, &parameters, tile, [pixels, g.k], 1);
    Some(Tiles { sums, span: tile.rows(), pixels })
}

/// Whether dgrad can work for this batch norm, beside what [`on_tensor_cores`](super::layout::on_tensor_cores) asks.
pub fn serves_norm(dtype: DType, norm: &Normalized) -> bool {
    let x = Parts::from(&norm.x[..]);
    // No pack of channels lies in two parts, and the kernel finds every number by 32 bits.
    let whole = x.tensors().iter().all(|part| part.shape().channels().is_multiple_of(pack(dtype)));
    let aligned = x.tensors().iter().all(|part| part.is_contiguous() && part.address().0.is_multiple_of(16));
    x.dtype() == dtype && whole && aligned && x.bytes() / dtype.size() < (1 << 31) - (1 << 16)
}

/// Where a gradient passes, as the kernels have it, and the signs it passes by.
fn cut(passing: &Passing) -> (u32, Address) {
    match passing {
        Passing::All => (0, Address::NULL),
        Passing::ByInput => (1, Address::NULL),
        Passing::BySigns(signs) => (2, signs.address()),
    }
}

/// A product whose result is a batch norm's dz, and the sums of its tiles of `span` rows, of each of `grids`.
pub(super) fn gradient(
    gpu: Handle,
    backward: BackwardProduct,
    norm: &Normalized,
    channels: usize,
    [rows, span, grids]: [usize; 3],
) -> (ProductGradient, Tensor) {
    let sums = sums_of_tiles(gpu, rows, span, grids, channels);
    let [mean, rstd, gamma, beta] = [&norm.mean, &norm.rstd, &norm.gamma, &norm.beta].map(|per_channel| {
        assert_eq!((per_channel.dtype(), per_channel.dims()), (DType::F32, &[channels][..]), "a batch norm's numbers");
        per_channel.address()
    });
    let x = Parts::from(&norm.x[..]);
    let of_signs = if let Passing::BySigns(signs) = &norm.passing { signs.bytes() } else { 0 };
    gpu.account(|| Cost::moving(x.bytes() + 4 * norm.mean.bytes() + of_signs, sums.bytes()));
    let (places, x) = (Places::of(x), norm.x[0].address());
    let (partial, (cut, signs)) = (sums.address(), cut(&norm.passing));
    (ProductGradient { backward, x, mean, rstd, gamma, beta, signs, partial, cut, padding: 0, places }, sums)
}

/// With a batch norm before it, `dx` becomes dz, and its sums are returned.
pub fn dgrad(
    gpu: Handle,
    g: &Geometry,
    dtype: DType,
    [dy, w, dx]: [Address; 3],
    is_added: bool,
    norm: Option<&Normalized>,
) -> Option<Tensor> {
    let g = &plain(g);
    let (choice, name) = division(g, Pass::Dgrad, dtype);
    let tiles::Gemm { m, n, grids, .. } = tiles::Gemm::of(g, Pass::Dgrad);
    let sizes = sizes(g, dtype, dx, dy, Some(w));
    let product = Product::new((g, sizes), Pass::Dgrad, [dy, w, dx], (choice.tile, [m, n]));
    let [h, w] = residues(g);
    let backward = BackwardProduct { product, h, w, adds: is_added.into(), padding: 0 };
    let Some(norm) = norm else {
        launch(gpu, name, dtype, &backward, choice.tile, [m, n], grids);
        return None;
    };
    let (parameters, sums) = gradient(gpu, backward, norm, g.c, [m, choice.tile.rows(), grids]);
    let name = kernel_for_norm(Pass::Dgrad, choice.tile);
    launch(gpu, name, dtype, &parameters, choice.tile, [m, n], grids);
    Some(sums)
}

pub fn wgrad(gpu: Handle, g: &Geometry, dtype: DType, x: Address, dy: Address, dw: Address) {
    let padded = padded(g, dtype);
    let padded_x = padded.as_ref().and_then(|padded| pad_x(gpu, dtype, x, g, padded));
    let x = padded_x.as_ref().map_or(x, Tensor::address);
    let seen = plain(padded.as_ref().unwrap_or(g));
    let (Tiling { tile, splits }, name) = division(&seen, Pass::Wgrad, dtype);
    let pixels = g.n * g.p * g.q;
    let split = pixels.div_ceil(splits).next_multiple_of(tiles::depth(dtype));
    let splits = pixels.div_ceil(split);
    let sums = Sums::of(gpu, g, &seen, splits, dw);
    let sizes = sums.sizes(sizes(&seen, dtype, x, dy, None));
    let size = [seen.k, seen.filter_len()];
    let product = Product::new((&seen, sizes), Pass::Wgrad, [dy, x, sums.partial], (tile, size));
    let product = Product { split: int(split), to_pitch: int(sums.pitch), ..product };
    sums.account(gpu, padded.as_ref().unwrap_or(g).cost(Pass::Wgrad, dtype));
    launch(gpu, name, dtype, &product, tile, size, splits);
    sums.add_up(gpu, g, &seen, dtype, dw);
}

/// Where wgrad's splits leave their sums, rows `pitch` apart: in dw itself, or in a workspace that a second launch adds up.
pub(super) struct Sums {
    pub partial: Address,
    pub pitch: usize,
    splits: usize,
    workspace: Option<Tensor>,
}

impl Sums {
    /// `seen` is `g` as the kernels see it.
    pub fn of(gpu: Handle, g: &Geometry, seen: &Geometry, splits: usize, dw: Address) -> Sums {
        // One split needs no second launch: it writes dw itself.
        if splits == 1 && g.c == seen.c {
            return Sums { partial: dw, pitch: g.pitch, splits, workspace: None };
        }
        let mut sums = Tensor::uninit([splits, seen.k, seen.filter_len()], DType::F32, Device::Gpu(gpu));
        Sums { partial: sums.view_mut().address(), pitch: seen.filter_len(), splits, workspace: Some(sums) }
    }

    pub fn sizes(&self, mut sizes: Sizes) -> Sizes {
        // Whether a row's length fills packs does not matter here: what is left over is written one by one.
        if is_packed(self.partial, DType::F32, 0, self.pitch) {
            sizes.packed |= PACKED_DW;
        }
        sizes
    }

    /// Accounts for a pass that costs so much where it writes dw itself.
    pub fn account(&self, gpu: Handle, cost: Cost) {
        let written = self.workspace.as_ref().map_or(cost.written, |sums| sums.bytes() as u64);
        gpu.account(|| Cost { written, ..cost });
    }

    /// Behind the pass: dw from the splits.
    pub fn add_up(self, gpu: Handle, g: &Geometry, seen: &Geometry, dtype: DType, dw: Address) {
        let Some(workspace) = &self.workspace else { return };
        let sum = StretchSum {
            partial: self.partial,
            dw,
            filters: int(g.k),
            taps: int(g.r * g.s),
            channels: int(g.c),
            padded: int(seen.c),
            pitch: int(g.pitch),
            splits: int(self.splits),
        };
        gpu.account(|| Cost::moving(workspace.bytes(), size_of::<f32>() * g.k * g.filter_len()));
        let grid = direct_grid(g.k * g.filter_len());
        // SAFETY: `partial` holds the splits' K × R·S·C sums, with padded channels, and `dw` has rows `pitch` apart.
        unsafe { gpu.launch("conv2d_tensor", "conv2d_tensor_wgrad_sum", dtype, grid, DIRECT_THREADS, &sum) }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::example::{Example, check_gradient, check_statistics, seen};
    use super::super::{dgrad_to, fprop, fprop_besides};
    use super::*;
    use crate::numbers::{Numbers, normalized_error};
    use crate::ops::cases;
    use crate::ops::conv2d::Conv2d;
    use crate::ops::conv2d::layout::{Operands, on_tensor_cores};

    /// Integers that every dtype holds, results included, so that each tile must give the reference's bits.
    #[test]
    fn every_tile_computes_every_case() {
        let gpu = Gpu::emulator(5).unwrap();
        for (dtype, case) in [DType::BF16, DType::F16, DType::TF32]
            .into_iter()
            .flat_map(|dtype| cases::CONV2D.iter().map(move |case| (dtype, case)))
            .filter(|(_, case)| case.conv.groups == 1)
            .enumerate()
            // Every dtype sees every third case: index arithmetic differs between packs of 8 and of 4 alone.
            .filter(|(i, (dtype, _))| *dtype == DType::TF32 || i % 2 == usize::from(*dtype == DType::F16))
            .map(|(_, pair)| pair)
        {
            let mut numbers = Numbers::named(case.name);
            let mut draw = |len: usize| numbers.integers(len).into_iter().map(|v| v.signum()).collect();
            let example = Example::new(Device::Gpu(gpu), dtype, &case.geometry(), &mut draw);
            for (pass, tile) in Pass::ALL.into_iter().flat_map(|pass| Tile::ALL.map(|tile| (pass, tile))) {
                if !tile.serves(pass) {
                    continue;
                }
                let splits = if pass == Pass::Wgrad { 3 } else { 1 };
                let (actual, expected) = tiles::with_choice(Tiling { tile, splits }, || example.run(pass));
                let expected: Vec<f64> = match pass {
                    Pass::Wgrad => expected.to_vec(),
                    _ => seen(expected, dtype),
                };
                let wrong = (0..actual.len()).find(|&i| actual[i] != expected[i]).map(|i| (i, actual[i], expected[i]));
                gpu.check().unwrap();
                assert!(wrong.is_none(), "{dtype} {pass} of {}, {tile:?}: {wrong:?}", case.name);
            }
        }
        gpu.check().unwrap();
    }

    /// The cases that suit tensor cores, each with a tile: every tile meets every kind of case.
    fn for_each_tile(pass: Pass, mut check: impl FnMut(&cases::ConvCase, DType, Tile)) {
        let suits = |case: &&cases::ConvCase, dtype| {
            on_tensor_cores(&case.geometry(), pass, dtype, Operands::ALIGNED).is_some()
        };
        for dtype in [DType::BF16, DType::F16, DType::TF32] {
            for (i, case) in cases::CONV2D.iter().filter(|case| suits(case, dtype)).enumerate() {
                // Address arithmetic is tested with all tiles above.
                for tile in [Tile::ALL[i % 5], Tile::ALL[(i + 1) % 5]] {
                    check(case, dtype, tile);
                }
            }
        }
    }

    /// The statistics that fprop leaves for a batch norm are the stored output's, tile by tile; the output is fprop's.
    #[test]
    fn statistics_are_those_of_what_was_stored() {
        let gpu = Gpu::emulator(6).unwrap();
        for_each_tile(Pass::Fprop, |case, dtype, tile| {
            let mut numbers = Numbers::named(case.name);
            // A mean that is not zero, so that its relative error says something.
            let mut draw = |len: usize| numbers.reals(len).into_iter().map(|v| 0.3 + v).collect();
            let Example { g, x, w, dy, .. } = Example::new(Device::Gpu(gpu), dtype, &case.geometry(), &mut draw);
            let like_y = || Tensor::uninit(dy.shape(), dtype, dy.device());
            let (mut y, mut plain) = (like_y(), like_y());
            let tiles = tiles::with_choice(Tiling { tile, splits: 1 }, || {
                fprop(g.conv, &x, &w, plain.view_mut());
                fprop_besides(g.conv, &x, &w, y.view_mut(), Besides::Statistics).expect("on tensor cores")
            });
            gpu.check().unwrap();
            check_statistics(&format!("{dtype} {}, {tile:?}", case.name), g.k, &tiles, [&y, &plain]);
        });
    }

    #[test]
    fn dgrad_does_the_first_pass_of_a_batch_norm() {
        let gpu = Gpu::emulator(6).unwrap();
        for_each_tile(Pass::Dgrad, |case, dtype, tile| {
            let name = format!("{dtype} {}, {tile:?}", case.name);
            check_gradient(&name, gpu, dtype, &case.geometry(), &|g, dy, w, to| {
                tiles::with_choice(Tiling { tile, splits: 1 }, || dgrad_to(g.conv, dy, w, to))
            });
        });
    }

    /// Bits beyond those of tf32 are rounded to nearest: cut off, they would leave errors four times as large.
    #[test]
    fn tf32_is_rounded_to_nearest() {
        let gpu = Gpu::emulator(5).unwrap();
        let g = Geometry::new(Conv2d::new(1, 1), [2, 9, 8, 16].into(), [24, 3, 3, 16].into(), 144);
        let mut numbers = Numbers(3);
        let example = Example::new(Device::Gpu(gpu), DType::TF32, &g, &mut |len| numbers.reals(len));
        for pass in Pass::ALL {
            let (actual, expected) = example.run(pass);
            let error = normalized_error(&actual, expected);
            assert!(error < 1e-6, "{pass}: {error:.1e}");
        }
        gpu.check().unwrap();
    }
}
