//! Convolution on a GPU: `kernels/conv2d.cu`, and which convolutions are left to the kernels for tensor cores.

use super::layout::{Operands, is_packed, on_tensor_cores};
use super::{Besides, Contribution, Epilogue, Geometry, Pass, hopper, tensor};
use crate::gpu::{Address, Cost, Gpu, Handle};
use crate::ops::batch_norm::Tiles;
use crate::parameters;
use crate::tensor::{DType, Device, Tensor, TensorMut};

parameters! {
    pub(in crate::ops) struct Sizes: 80 bytes {
        n: i32, h: i32, w: i32, c: i32,
        k: i32, r: i32, s: i32,
        p: i32, q: i32,
        stride_h: i32, stride_w: i32, padding_h: i32, padding_w: i32, dilation_h: i32, dilation_w: i32,
        groups: i32, group_c: i32, group_k: i32,
        pitch: i32,
        pub(super) packed: u32,
    }
}

parameters! {
    pub(super) struct Finish: 16 bytes { bias: Address, relu: u32, padding: u32 }
}

impl Finish {
    /// For no epilogue: nothing follows.
    pub(super) fn of(epilogue: Option<Epilogue>) -> Finish {
        let bias = epilogue.map_or(Address::NULL, |epilogue| {
            assert_eq!(epilogue.bias.dtype(), DType::F32, "a bias");
            epilogue.bias.address()
        });
        Finish { bias, relu: epilogue.is_some_and(|epilogue| epilogue.relu).into(), padding: 0 }
    }
}

parameters! {
    struct Fprop: 120 bytes { x: Address, w: Address, y: Address, g: Sizes, finish: Finish }
}

parameters! {
    struct Dgrad: 104 bytes { dy: Address, w: Address, dx: Address, g: Sizes }
}

parameters! {
    struct Wgrad: 120 bytes {
        x: Address,
        dy: Address,
        partial: Address,
        g: Sizes,
        splits: i32,
        split: i32,
        partial_pitch: i32,
        padding: i32,
    }
}

parameters! {
    struct WgradSum: 32 bytes { partial: Address, dw: Address, k: i32, columns: i32, pitch: i32, splits: i32 }
}

pub(super) const PACKED_X: u32 = 1;
pub(super) const PACKED_Y: u32 = 2;
pub(super) const PACKED_W: u32 = 4;
pub(super) const PACKED_DW: u32 = 8;

/// Rows of a tile, and the most summands that a step takes: those of 16-bit storage.
const ROWS: usize = 64;
const DEPTH: usize = 16;
const DIRECT_THREADS: usize = 128;
/// Filters that a block of the depthwise wgrad takes.
const LANES: usize = 32;

/// wgrad sums over splits of output pixels no shorter than this, as many as it takes to have so many blocks. Both
/// depend on the shapes alone, so the bits of a result are the same on every device.
const STRETCH: usize = 512;
const BLOCKS: usize = 1024;

/// The tile that suits a product of so many columns: its columns, its threads and which of the kernels has it.
fn tile(columns: usize, [wide, narrow]: [&'static str; 2]) -> (usize, u32, &'static str) {
    if columns > 32 { (64, 128, wide) } else { (16, 32, narrow) }
}

fn dim(size: usize) -> u32 {
    u32::try_from(size).expect("fewer than 2³² blocks")
}

pub(super) fn direct_grid(outputs: usize) -> [u32; 3] {
    [dim(outputs.div_ceil(DIRECT_THREADS)), 1, 1]
}

fn is_depthwise(g: &Geometry) -> bool {
    g.group_channels() == 1 && g.conv.groups > 1
}

/// The sizes for the kernels. `x` and `y` are the tensors of these shapes, whichever direction they go; `w` is absent
/// in wgrad.
pub(in crate::ops) fn sizes(g: &Geometry, dtype: DType, x: Address, y: Address, w: Option<Address>) -> Sizes {
    let int = |size: usize| i32::try_from(size).expect("sizes below 2³¹");
    // The kernels count pixels, up to a tile beyond the last one, in 32 bits.
    int(g.n * g.h * g.w + ROWS);
    int(g.n * g.p * g.q + ROWS);
    int(g.filter_len() + ROWS);
    int(g.r * g.s * (g.k / g.conv.groups) + DEPTH);
    let mut packed = 0;
    if is_packed(x, dtype, g.group_channels(), g.c) {
        packed |= PACKED_X;
    }
    if is_packed(y, dtype, g.k / g.conv.groups, g.k) {
        packed |= PACKED_Y;
    }
    if w.is_some_and(|w| is_packed(w, dtype, g.group_channels(), g.pitch)) {
        packed |= PACKED_W;
    }
    let [stride_h, stride_w] = g.conv.stride.map(int);
    let [padding_h, padding_w] = g.conv.padding.map(int);
    let [dilation_h, dilation_w] = g.conv.dilation.map(int);
    let [n, h, w, c, k, r, s, p, q] = [g.n, g.h, g.w, g.c, g.k, g.r, g.s, g.p, g.q].map(int);
    let [groups, group_c, group_k, pitch] = [g.conv.groups, g.group_channels(), g.k / g.conv.groups, g.pitch].map(int);
    Sizes {
        n,
        h,
        w,
        c,
        k,
        r,
        s,
        p,
        q,
        stride_h,
        stride_w,
        padding_h,
        padding_w,
        dilation_h,
        dilation_w,
        groups,
        group_c,
        group_k,
        pitch,
        packed,
    }
}

/// Returns the statistics of y's tiles, if they are what is to be done besides and where tensor cores serve.
pub fn fprop(gpu: Handle, g: &Geometry, x: &Tensor, w: &Tensor, y: TensorMut, besides: Besides) -> Option<Tiles> {
    let dtype = x.dtype();
    assert!(w.dtype() == dtype && y.dtype() == dtype, "convolution of {dtype} by {} to {}", w.dtype(), y.dtype());
    let (x, w, y) = (x.address(), w.address(), y.address());
    if on_tensor_cores(g, Pass::Fprop, dtype, Operands { x, y, w: Some(w) }).is_some() {
        if let Some(seen) = hopper::serves(gpu, g, Pass::Fprop, dtype, [x, w]) {
            return hopper::fprop(gpu, &seen, dtype, [x, w, y], besides);
        }
        return tensor::fprop(gpu, g, dtype, [x, w, y], besides);
    }
    let parameters = Fprop { x, w, y, g: sizes(g, dtype, x, y, Some(w)), finish: Finish::of(besides.epilogue()) };
    let pixels = g.n * g.p * g.q;
    let (name, grid, threads) = if is_depthwise(g) {
        ("conv2d_fprop_depthwise", direct_grid(pixels * g.k), DIRECT_THREADS as u32)
    } else {
        let columns = g.k / g.conv.groups;
        let (width, threads, name) = tile(columns, ["conv2d_fprop_wide", "conv2d_fprop_narrow"]);
        (name, [pixels.div_ceil(ROWS), columns.div_ceil(width), g.conv.groups].map(dim), threads)
    };
    gpu.account(|| g.cost(Pass::Fprop, dtype));
    // SAFETY: the shapes of all three tensors were checked against `g`, their dtypes above.
    unsafe { gpu.launch("conv2d", name, dtype, grid, threads, &parameters) }
    None
}

/// Where tensor cores serve, adds to what is there if it is to, and does the first pass of the backward of the batch norm before it, if there
/// is one: then `dx` becomes dz, and its sums are returned.
pub fn dgrad(gpu: Handle, g: &Geometry, dy: &Tensor, w: &Tensor, to: Contribution) -> Option<Tensor> {
    let Contribution { dx, is_added, norm } = to;
    let dtype = dy.dtype();
    assert!(w.dtype() == dtype && dx.dtype() == dtype, "dgrad of {dtype} by {} to {}", w.dtype(), dx.dtype());
    gpu.account(|| g.cost(Pass::Dgrad, dtype));
    if is_added {
        gpu.account(|| Cost::moving(g.x().len() * dtype.size(), 0));
    }
    let (dy, w, dx) = (dy.address(), w.address(), dx.address());
    if on_tensor_cores(g, Pass::Dgrad, dtype, Operands { x: dx, y: dy, w: Some(w) }).is_some() {
        let norm = norm.filter(|norm| tensor::serves_norm(dtype, norm));
        if let Some(seen) = hopper::serves(gpu, g, Pass::Dgrad, dtype, [dy, w]) {
            return hopper::dgrad(gpu, &seen, dtype, [dy, w, dx], is_added, norm);
        }
        return tensor::dgrad(gpu, g, dtype, [dy, w, dx], is_added, norm);
    }
    assert!(!is_added, "this kernel adds to nothing");
    let parameters = Dgrad { dy, w, dx, g: sizes(g, dtype, dx, dy, Some(w)) };
    let pixels = g.n * g.h * g.w;
    let (name, grid, threads) = if is_depthwise(g) {
        ("conv2d_dgrad_depthwise", direct_grid(pixels * g.c), DIRECT_THREADS as u32)
    } else {
        let columns = g.group_channels();
        let (width, threads, name) = tile(columns, ["conv2d_dgrad_wide", "conv2d_dgrad_narrow"]);
        (name, [pixels.div_ceil(ROWS), columns.div_ceil(width), g.conv.groups].map(dim), threads)
    };
    // SAFETY: the shapes of all three tensors were checked against `g`, their dtypes above.
    unsafe { gpu.launch("conv2d", name, dtype, grid, threads, &parameters) }
    None
}

pub fn wgrad(gpu: Handle, g: &Geometry, x: &Tensor, dy: &Tensor, dw: TensorMut) {
    let dtype = dy.dtype();
    assert!(x.dtype() == dtype && dw.dtype() == DType::F32, "wgrad of {} by {dtype} to {}", x.dtype(), dw.dtype());
    let (x, dy, dw) = (x.address(), dy.address(), dw.address());
    if on_tensor_cores(g, Pass::Wgrad, dtype, Operands { x, y: dy, w: None }).is_some() {
        if let Some(seen) = hopper::serves(gpu, g, Pass::Wgrad, dtype, [x, dy]) {
            return hopper::wgrad(gpu, [g, &seen], dtype, [x, dy, dw]);
        }
        return tensor::wgrad(gpu, g, dtype, x, dy, dw);
    }
    let columns = g.k / g.conv.groups;
    let (name, [rows, columns], threads) = if is_depthwise(g) {
        ("conv2d_wgrad_depthwise", [g.k.div_ceil(LANES), g.filter_len()], DIRECT_THREADS as u32)
    } else {
        let (width, threads, name) = tile(columns, ["conv2d_wgrad_wide", "conv2d_wgrad_narrow"]);
        (name, [g.filter_len().div_ceil(ROWS), columns.div_ceil(width)], threads)
    };
    let groups = if is_depthwise(g) { 1 } else { g.conv.groups };
    let split = split(g.n * g.p * g.q, rows * columns * groups);
    let splits = (g.n * g.p * g.q).div_ceil(split);

    // One split needs no second launch: it writes dw itself.
    let mut workspace = None;
    let (partial, pitch) = if splits == 1 {
        (dw, g.pitch)
    } else {
        let sums = workspace.insert(Tensor::uninit([splits, g.k, g.filter_len()], DType::F32, Device::Gpu(gpu)));
        (sums.view_mut().address(), g.filter_len())
    };
    let mut sizes = sizes(g, dtype, x, dy, None);
    // Whether a row's length fills packs does not matter here: what is left over is written one by one.
    if is_packed(partial, DType::F32, 0, pitch) {
        sizes.packed |= PACKED_DW;
    }
    let parameters = Wgrad {
        x,
        dy,
        partial,
        g: sizes,
        splits: splits as i32,
        split: split as i32,
        partial_pitch: pitch as i32,
        padding: 0,
    };
    let cost = g.cost(Pass::Wgrad, dtype);
    let written = workspace.as_ref().map_or(cost.written, |sums| sums.bytes() as u64);
    gpu.account(|| Cost { written, ..cost });
    let grid = [rows, columns, groups * splits].map(dim);
    // SAFETY: the shapes of x, dy and dw were checked against `g`, their dtypes above; `partial` is dw or as large as
    // all splits.
    unsafe { gpu.launch("conv2d", name, dtype, grid, threads, &parameters) }
    if splits > 1 {
        sum_splits(gpu, g, dtype, partial, dw, splits);
    }
}

/// How many output pixels one sum of wgrad takes, whose tiles make `blocks` blocks.
fn split(pixels: usize, blocks: usize) -> usize {
    let most = pixels.div_ceil(STRETCH);
    let splits = (BLOCKS / blocks).clamp(1, most);
    pixels.div_ceil(splits).next_multiple_of(DEPTH)
}

fn sum_splits(gpu: &Gpu, g: &Geometry, dtype: DType, partial: Address, dw: Address, splits: usize) {
    let columns = g.filter_len();
    let parameters =
        WgradSum { partial, dw, k: g.k as i32, columns: columns as i32, pitch: g.pitch as i32, splits: splits as i32 };
    let bytes = size_of::<f32>() * g.k * columns;
    gpu.account(|| Cost::moving(splits * bytes, bytes));
    // SAFETY: `partial` holds `splits` dense K × R·S·C/G, `dw` one with rows `pitch` apart.
    unsafe {
        gpu.launch("conv2d", "conv2d_wgrad_sum", dtype, direct_grid(g.k * columns), DIRECT_THREADS as u32, &parameters);
    }
}
