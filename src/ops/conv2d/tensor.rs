//! Convolution on a GPU's tensor cores: `kernels/conv2d_tensor.cu`.

use super::gpu::{PACKED_DW, Sizes, direct_grid, is_packed, sizes};
use super::tiles::{self, Choice, Tile};
use super::{Conv2d, Geometry, Pass};
use crate::gpu::{Address, Cost, Gpu, Handle};
use crate::parameters;
use crate::tensor::{DType, Device, Tensor};

parameters! {
    pub(super) struct Product: 112 bytes {
        pub from: Address,
        pub by: Address,
        pub to: Address,
        pub g: Sizes,
        pub stretch: i32,
        pub to_pitch: i32,
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
        stretches: i32,
    }
}

const DIRECT_THREADS: u32 = 128;
/// The channels that a stem is padded to.
const STEM: usize = 4;

/// The tiles of the kernels for a padded stem.
const STEM_FPROP: Tile = Tile::Medium;
pub(super) const STEM_WGRAD: Tile = Tile::Small;

fn kernel(pass: Pass, tile: Tile) -> &'static str {
    match (pass, tile) {
        (Pass::Fprop, Tile::Large) => "conv2d_tensor_fprop_128x128",
        (Pass::Fprop, Tile::Medium) => "conv2d_tensor_fprop_128x64",
        (Pass::Fprop, Tile::Small) => "conv2d_tensor_fprop_64x64",
        (Pass::Fprop, Tile::Narrow) => "conv2d_tensor_fprop_128x32",
        (Pass::Dgrad, Tile::Large) => "conv2d_tensor_dgrad_128x128",
        (Pass::Dgrad, Tile::Medium) => "conv2d_tensor_dgrad_128x64",
        (Pass::Dgrad, Tile::Small) => "conv2d_tensor_dgrad_64x64",
        (Pass::Dgrad, Tile::Narrow) => "conv2d_tensor_dgrad_128x32",
        (Pass::Wgrad, Tile::Large) => "conv2d_tensor_wgrad_128x128",
        (Pass::Wgrad, Tile::Medium) => "conv2d_tensor_wgrad_128x64",
        (Pass::Wgrad, Tile::Small) => "conv2d_tensor_wgrad_64x64",
        (Pass::Wgrad, Tile::Narrow) => unreachable!("no such kernel"),
    }
}

/// Elements of 16 bytes.
pub(super) fn pack(dtype: DType) -> usize {
    16 / dtype.size()
}

pub(super) fn dim(size: usize) -> u32 {
    u32::try_from(size).expect("fewer than 2³² blocks")
}

pub(super) fn int(size: usize) -> i32 {
    i32::try_from(size).expect("sizes below 2³¹")
}

/// Whether a pass over operands at these addresses runs on tensor cores; the filters' is absent in wgrad. What has to come
/// in packs are the numbers that are read one after the other: channels, and in dgrad and wgrad filters. Channels that do
/// not are padded in fprop and wgrad.
pub fn serves(g: &Geometry, pass: Pass, dtype: DType, x: Address, y: Address, w: Option<Address>) -> bool {
    let runs = matches!(dtype, DType::BF16 | DType::F16 | DType::TF32) && g.conv.groups == 1;
    // The kernels count elements in 32 bits, and beyond the last ones: those of padded channels, and of rows out of sight.
    let pixels = g.n * (g.h + 2 * g.conv.padding[0]) * (g.w + 2 * g.conv.padding[1]);
    let most = [pixels * g.c.next_multiple_of(pack(dtype)), g.y().len() + 256 * g.k, g.k * g.pitch];
    let runs = runs && most.into_iter().all(|elements| elements < 1 << 31);
    let x = is_packed(x, dtype, g.c, g.c) || g.c < pack(dtype);
    let y = is_packed(y, dtype, g.k, g.k);
    let w = w.is_none_or(|w| is_packed(w, dtype, g.c, g.pitch) || g.c < pack(dtype));
    runs && x
        && w
        && match pass {
            Pass::Fprop => true,
            Pass::Dgrad => y && g.c >= pack(dtype),
            Pass::Wgrad => y,
        }
}

/// The sizes that a 1×1 convolution of stride 1 has as a plain matrix product: one image of one line.
pub(super) fn plain(g: &Geometry) -> Geometry {
    let is_plain = (g.r, g.s) == (1, 1) && g.conv.stride == [1, 1] && g.conv.padding == [0, 0];
    if !is_plain {
        return *g;
    }
    let pixels = g.n * g.h * g.w;
    Geometry { n: 1, h: 1, w: pixels, p: 1, q: pixels, conv: Conv2d::new(1, 0), ..*g }
}

/// The geometry with padded channels, where they are padded.
pub(super) fn padded(g: &Geometry, dtype: DType) -> Option<Geometry> {
    let c = match g.c {
        c if c.is_multiple_of(pack(dtype)) => return None,
        c if c <= STEM => STEM,
        c => c.next_multiple_of(pack(dtype)),
    };
    Some(Geometry { c, pitch: (g.r * g.s * c).next_multiple_of(pack(dtype)), ..*g })
}

/// The sizes that the kernels see, of operands that lie well; `None` if there is no choice of tiles for them.
pub fn seen(g: &Geometry, pass: Pass, dtype: DType) -> Option<Geometry> {
    let [x, y, w] = [Address::NULL; 3];
    let w = (pass != Pass::Wgrad).then_some(w);
    let seen = plain(padded(g, dtype).as_ref().unwrap_or(g));
    (serves(g, pass, dtype, x, y, w) && seen.c.is_multiple_of(pack(dtype))).then_some(seen)
}

/// How a pass is divided, and which kernel does it.
fn division(g: &Geometry, pass: Pass, dtype: DType) -> (Choice, &'static str) {
    let choice = tiles::choose(g, pass, dtype);
    // Packs of 16 bits that span two taps have kernels of their own.
    let is_split = !g.c.is_multiple_of(pack(dtype));
    match pass {
        Pass::Fprop if is_split => (Choice { tile: STEM_FPROP, stretches: 1 }, "conv2d_tensor_fprop_stem"),
        Pass::Wgrad if is_split => {
            let product = tiles::Product::of(g, pass);
            let mut choices = tiles::choices(product, pass, dtype);
            (choices.find(|choice| choice.tile == STEM_WGRAD).expect("a tile of wgrad"), "conv2d_tensor_wgrad_stem")
        }
        _ => (choice, kernel(pass, choice.tile)),
    }
}

fn launch(gpu: &Gpu, name: &'static str, dtype: DType, product: &Product, tile: Tile, size: [usize; 2], grids: usize) {
    let grid = [size[0].div_ceil(tile.rows()), size[1].div_ceil(tile.columns()), grids].map(dim);
    // SAFETY: `serves` was asked whether operands come in packs; the contract checked their shapes, and the callers below
    // give a result of the size that the grid covers.
    unsafe { gpu.launch("conv2d_tensor", name, dtype, grid, tile.threads(), product) }
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
    gpu.account(Cost::moving(rows * lines * channels * dtype.size(), y.bytes()));
    // SAFETY: the callers below give the layout of x or w, which the contract checked.
    unsafe { gpu.launch("conv2d_tensor", "conv2d_tensor_pad", dtype, grid, DIRECT_THREADS, &parameters) }
    y
}

pub(super) fn pad_x(gpu: Handle, dtype: DType, x: Address, g: &Geometry, padded: &Geometry) -> Tensor {
    let pixels = g.n * g.h * g.w;
    pad(gpu, dtype, x, [1, 0], [pixels, pixels], [g.c, padded.c])
}

pub fn fprop(gpu: Handle, g: &Geometry, dtype: DType, x: Address, w: Address, y: Address) {
    if let Some(padded) = padded(g, dtype) {
        let x = pad_x(gpu, dtype, x, g, &padded);
        let w = pad(gpu, dtype, w, [g.k, g.pitch], [g.r * g.s, padded.pitch / padded.c], [g.c, padded.c]);
        return fprop_packed(gpu, &padded, dtype, x.address(), w.address(), y);
    }
    fprop_packed(gpu, g, dtype, x, w, y);
}

fn fprop_packed(gpu: Handle, g: &Geometry, dtype: DType, x: Address, w: Address, y: Address) {
    gpu.account(g.cost(Pass::Fprop, dtype));
    let g = &plain(g);
    let (choice, name) = division(g, Pass::Fprop, dtype);
    let product = Product { from: x, by: w, to: y, g: sizes(g, dtype, x, y, Some(w)), stretch: 0, to_pitch: 0 };
    launch(gpu, name, dtype, &product, choice.tile, [g.n * g.p * g.q, g.k], 1);
}

pub fn dgrad(gpu: Handle, g: &Geometry, dtype: DType, dy: Address, w: Address, dx: Address) {
    gpu.account(g.cost(Pass::Dgrad, dtype));
    let g = &plain(g);
    let (choice, name) = division(g, Pass::Dgrad, dtype);
    let product = Product { from: dy, by: w, to: dx, g: sizes(g, dtype, dx, dy, Some(w)), stretch: 0, to_pitch: 0 };
    let tiles::Product { rows, columns, grids, .. } = tiles::Product::of(g, Pass::Dgrad);
    launch(gpu, name, dtype, &product, choice.tile, [rows, columns], grids);
}

pub fn wgrad(gpu: Handle, g: &Geometry, dtype: DType, x: Address, dy: Address, dw: Address) {
    let padded = padded(g, dtype);
    let padded_x = padded.as_ref().map(|padded| pad_x(gpu, dtype, x, g, padded));
    let x = padded_x.as_ref().map_or(x, Tensor::address);
    let seen = plain(padded.as_ref().unwrap_or(g));
    let (Choice { tile, stretches }, name) = division(&seen, Pass::Wgrad, dtype);
    let pixels = g.n * g.p * g.q;
    let stretch = pixels.div_ceil(stretches).next_multiple_of(tiles::depth(dtype));
    let stretches = pixels.div_ceil(stretch);

    // One stretch needs no second launch: it writes dw itself.
    let writes_dw = stretches == 1 && padded.is_none();
    let mut workspace = None;
    let (partial, pitch) = if writes_dw {
        (dw, g.pitch)
    } else {
        let shape = [stretches, seen.k, seen.filter_len()];
        let sums = workspace.insert(Tensor::uninit(shape, DType::F32, Device::Gpu(gpu)));
        (sums.view_mut().address(), seen.filter_len())
    };
    let mut sizes = sizes(&seen, dtype, x, dy, None);
    // Whether a row's length fills packs does not matter here: what is left over is written one by one.
    if is_packed(partial, DType::F32, 0, pitch) {
        sizes.packed |= PACKED_DW;
    }
    let product = Product { from: dy, by: x, to: partial, g: sizes, stretch: int(stretch), to_pitch: int(pitch) };
    let cost = padded.as_ref().unwrap_or(g).cost(Pass::Wgrad, dtype);
    let sums = workspace.as_ref().map_or(0, Tensor::bytes);
    gpu.account(if writes_dw { cost } else { Cost { written: sums as u64, ..cost } });
    launch(gpu, name, dtype, &product, tile, [seen.k, seen.filter_len()], stretches);
    if writes_dw {
        return;
    }
    let sum = StretchSum {
        partial,
        dw,
        filters: int(g.k),
        taps: int(g.r * g.s),
        channels: int(g.c),
        padded: int(seen.c),
        pitch: int(g.pitch),
        stretches: int(stretches),
    };
    // SAFETY: `partial` holds the stretches' K × R·S·C sums, with padded channels, and `dw` has rows `pitch` apart.
    unsafe {
        gpu.account(Cost::moving(sums, size_of::<f32>() * g.k * g.filter_len()));
        let grid = direct_grid(g.k * g.filter_len());
        gpu.launch("conv2d_tensor", "conv2d_tensor_wgrad_sum", dtype, grid, DIRECT_THREADS, &sum);
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::{dgrad, fprop, reference, wgrad};
    use super::*;
    use crate::ops::cases;
    use crate::selftest::numbers::{Numbers, normalized_error};
    use crate::tensor::Shape;

    /// Operands of a convolution on a device, as stored there, and the reference's results from what is stored.
    struct Example {
        g: Geometry,
        dtype: DType,
        x: Tensor,
        w: Tensor,
        dy: Tensor,
        expected: [Vec<f64>; 3],
    }

    impl Example {
        fn new(device: Device, dtype: DType, g: &Geometry, draw: &mut dyn FnMut(usize) -> Vec<f64>) -> Example {
            let g = Geometry { pitch: g.filter_len(), ..*g };
            let filters: Shape = [g.k, g.r, g.s, g.c].into();
            let mut tensor = |shape: Shape| {
                let numbers = draw(shape.len()).into_iter().map(|v| v as f32).collect();
                Tensor::from_vec(numbers, shape).to_device(device).cast(dtype)
            };
            let (x, w, dy) = (tensor(g.x()), tensor(filters), tensor(g.y()));
            let [host_x, host_w, host_dy] = [&x, &w, &dy].map(|t| seen(&t.to_f64(), dtype));
            let mut expected = [g.y().len(), g.x().len(), filters.len()].map(|len| vec![0.0; len]);
            let [y, dx, dw] = &mut expected;
            reference::fprop::<f64>(&g, &host_x, &host_w, y);
            reference::dgrad::<f64>(&g, &host_dy, &host_w, dx);
            reference::wgrad::<f64>(&g, &host_x, &host_dy, dw);
            Example { g, dtype, x, w, dy, expected }
        }

        fn run(&self, pass: Pass) -> (Vec<f64>, &[f64]) {
            let Example { g, dtype, x, w, dy, expected } = self;
            let like = |tensor: &Tensor, dtype| Tensor::uninit(tensor.shape(), dtype, tensor.device());
            let mut result = match pass {
                Pass::Fprop => like(dy, *dtype),
                Pass::Dgrad => like(x, *dtype),
                Pass::Wgrad => like(w, DType::F32),
            };
            match pass {
                Pass::Fprop => fprop(g.conv, x, w, result.view_mut()),
                Pass::Dgrad => dgrad(g.conv, dy, w, result.view_mut()),
                Pass::Wgrad => wgrad(g.conv, x, dy, result.view_mut()),
            }
            (result.to_f64(), &expected[pass as usize])
        }
    }

    /// What tensor cores make of an operand.
    fn seen(stored: &[f64], dtype: DType) -> Vec<f64> {
        stored.iter().map(|&v| crate::selftest::numbers::stored(v, dtype)).collect()
    }

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
                let stretches = if pass == Pass::Wgrad { 3 } else { 1 };
                let (actual, expected) = tiles::with_choice(Choice { tile, stretches }, || example.run(pass));
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
