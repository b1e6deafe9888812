//! Two-dimensional convolution (a cross-correlation, as everywhere in the field).
//!
//! ```text
//! fprop   y[n,p,q,k]  = Σ_{r,s,c} x[n, p·stride_h − pad_h + r·dilation_h, q·stride_w − pad_w + s·dilation_w, c] · w[k,r,s,c]
//! dgrad   dx = the transpose of fprop in x, applied to dy
//! wgrad   dw = the transpose of fprop in w, applied to dy
//! ```
//!
//! With G groups, filter k sees only the C/G channels of group k / (K/G). Activations are NHWC, filters KRSC; the rows
//! of `w` and `dw` (one filter each) may be padded. In fprop and wgrad, `x` may have channels of zeros behind those that the filters
//! see, up to the four that tensor cores want of images: [`channels_of_images`].

pub mod cpu;
pub mod division;
#[cfg(all(test, feature = "emulator"))]
mod example;
mod gpu;
pub mod hopper;
mod layout;
mod products;
pub mod reference;
mod tensor;
pub mod tiles;

pub(super) use gpu::{Sizes, sizes};
pub use layout::{OnTensorCores, Operands, channels_of_images, on_tensor_cores};

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use super::Cost;
use super::batch_norm::{self, Finish, Handoff, Normalized, Parts, PerChannel, Residual, Tiles, normalize_then};
use super::bias::Added;
use super::simd::Isa;
use super::{concat, pointwise};
use crate::error::Error;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Implementation, Shape, Tensor, TensorMut};

pub use products::{product_parts, wgrad_products};

/// The settings that a convolution layer fixes: height first, then width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
    pub groups: usize,
}

impl Conv2d {
    pub const fn new(stride: usize, padding: usize) -> Conv2d {
        Conv2d { stride: [stride; 2], padding: [padding; 2], dilation: [1; 2], groups: 1 }
    }
}

/// One of the three directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Fprop,
    Dgrad,
    Wgrad,
}

impl Pass {
    pub const ALL: [Pass; 3] = [Pass::Fprop, Pass::Dgrad, Pass::Wgrad];
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pass::Fprop => "fprop",
            Pass::Dgrad => "dgrad",
            Pass::Wgrad => "wgrad",
        })
    }
}

impl FromStr for Pass {
    type Err = Error;
    fn from_str(name: &str) -> Result<Pass, Error> {
        let known = || Pass::ALL.map(|pass| pass.to_string());
        Pass::ALL.into_iter().find(|pass| pass.to_string() == name).ok_or_else(|| Error::unknown("pass", name, known()))
    }
}

/// All sizes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub p: usize,
    pub q: usize,
    pub conv: Conv2d,
    /// Elements from filter to filter.
    pub pitch: usize,
    /// Channels of zeros that x has behind its `c`.
    pub zeros: usize,
}

impl Geometry {
    /// # Panics
    /// If the shapes do not belong together, or the input is smaller than the filter.
    pub fn new(conv: Conv2d, x: Shape, filters: Shape, pitch: usize) -> Geometry {
        let [n, h, w, channels] = x.four();
        let [k, r, s, group_channels] = filters.four();
        let c = group_channels * conv.groups;
        let zeros = if conv.groups == 1 && channels == layout::STEM { channels.saturating_sub(c) } else { 0 };
        let fits = channels == c + zeros && k.is_multiple_of(conv.groups);
        assert!(fits, "convolution of {x} by {filters} in {} groups", conv.groups);
        let [p, q] = [(h, r, 0), (w, s, 1)].map(|(size, taps, axis)| {
            output_size(size, taps, conv.stride[axis], conv.padding[axis], conv.dilation[axis]).unwrap_or_else(|| {
                panic!("convolution of {x} by {filters}: the padded input is smaller than the filter")
            })
        });
        Geometry { n, h, w, c, k, r, s, p, q, conv, pitch, zeros }
    }

    /// Without zeros behind x's channels.
    pub fn x(&self) -> Shape {
        [self.n, self.h, self.w, self.c].into()
    }

    pub fn y(&self) -> Shape {
        [self.n, self.p, self.q, self.k].into()
    }

    /// Channels that one filter sees.
    pub fn group_channels(&self) -> usize {
        self.c / self.conv.groups
    }

    /// Weights of one filter.
    pub fn filter_len(&self) -> usize {
        self.r * self.s * self.group_channels()
    }

    /// The input row that output row `p` reads through filter row `r`; `None` in the padding.
    pub fn input_row(&self, p: usize, r: usize) -> Option<usize> {
        let h = (p * self.conv.stride[0] + r * self.conv.dilation[0]).checked_sub(self.conv.padding[0])?;
        (h < self.h).then_some(h)
    }

    /// The input column that output column `q` reads through filter column `s`; `None` in the padding.
    pub fn input_column(&self, q: usize, s: usize) -> Option<usize> {
        let w = (q * self.conv.stride[1] + s * self.conv.dilation[1]).checked_sub(self.conv.padding[1])?;
        (w < self.w).then_some(w)
    }

    /// Multiplications and additions of one pass.
    pub fn flops(&self) -> u64 {
        2 * (self.n * self.p * self.q * self.k * self.filter_len()) as u64
    }

    /// The least cost of a pass with activations and filters of `dtype`; the filters' gradient is f32. Operations count
    /// padding. Of `x`, only what some output sees has to be read: a 1×1 convolution of stride 2 skips three quarters.
    pub fn cost(&self, pass: Pass, dtype: DType) -> Cost {
        let seen = |outputs: usize, taps: usize, input: &dyn Fn(usize, usize) -> Option<usize>| {
            let all = (0..outputs).flat_map(|output| (0..taps).filter_map(move |tap| input(output, tap)));
            all.collect::<BTreeSet<usize>>().len()
        };
        let (rows, columns) =
            (seen(self.p, self.r, &|p, r| self.input_row(p, r)), seen(self.q, self.s, &|q, s| self.input_column(q, s)));
        let bytes = |count: usize, dtype: DType| (count * dtype.size()) as u64;
        let x = bytes(self.n * rows * columns * self.c, dtype);
        let (dx, y) = (bytes(self.x().len(), dtype), bytes(self.y().len(), dtype));
        let filters = self.k * self.filter_len();
        let (read, written) = match pass {
            Pass::Fprop => (x + bytes(filters, dtype), y),
            Pass::Dgrad => (y + bytes(filters, dtype), dx),
            Pass::Wgrad => (x + y, bytes(filters, DType::F32)),
        };
        Cost { flops: self.flops(), read, written }
    }
}

/// Size of the output along one axis; `None` if the padded input is smaller than the filter's reach.
pub fn output_size(input: usize, taps: usize, stride: usize, padding: usize, dilation: usize) -> Option<usize> {
    Some((input + 2 * padding).checked_sub(dilation * (taps - 1) + 1)? / stride + 1)
}

/// What follows a convolution before its output is written.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// K numbers, on a GPU f32, each added to the output of its filter.
    pub bias: &'a Tensor,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// What fprop does besides the convolution.
#[derive(Clone, Copy)]
pub enum Besides<'a> {
    Nothing,
    /// Leaves the statistics of `y`'s tiles where the kernel that serves has them at hand.
    Statistics,
    Epilogue(Epilogue<'a>),
}

impl<'a> Besides<'a> {
    fn epilogue(self) -> Option<Epilogue<'a>> {
        match self {
            Besides::Epilogue(epilogue) => Some(epilogue),
            Besides::Nothing | Besides::Statistics => None,
        }
    }
}

/// The first `channels` of x.
pub fn without_zeros(x: &Tensor, channels: usize) -> Tensor {
    let [n, h, w, _] = x.shape().four();
    let mut cut = Tensor::uninit([n, h, w, channels], x.dtype(), x.device());
    concat::backward(x, 0, cut.view_mut());
    cut
}

/// x without zeros, where it has some and the kernel that serves does not read them. `dy` is there in wgrad.
fn readable(g: &Geometry, pass: Pass, x: &Tensor, dy: Option<&Tensor>) -> Option<Tensor> {
    let is_read = || match x.implementation() {
        Implementation::Gpu(_) => {
            let y = dy.map_or(Operands::ALIGNED.y, Tensor::address);
            on_tensor_cores(g, pass, x.dtype(), Operands { x: x.address(), y, ..Operands::ALIGNED }).is_some()
        }
        Implementation::Cpu | Implementation::Reference => false,
    };
    (g.zeros > 0 && !is_read()).then(|| without_zeros(x, g.c))
}

/// Overwrites `y`. On a GPU all three tensors are of one dtype, f32, bf16 or f16.
pub fn fprop(conv: Conv2d, x: &Tensor, w: &Tensor, y: TensorMut) {
    fprop_besides(conv, x, w, y, Besides::Nothing);
}

/// [`fprop`], and more. Returns the statistics of `y`'s tiles if they were asked for and are there.
pub fn fprop_besides(conv: Conv2d, x: &Tensor, w: &Tensor, y: TensorMut, besides: Besides) -> Option<Tiles> {
    let g = Geometry::new(conv, x.shape(), w.shape(), w.pitch());
    assert_eq!(y.shape(), g.y(), "the output of a convolution");
    if let Some(x) = readable(&g, Pass::Fprop, x, None) {
        return fprop_besides(conv, &x, w, y, besides);
    }
    let epilogue = besides.epilogue();
    assert!(epilogue.is_none_or(|epilogue| epilogue.bias.dims() == [g.k]), "the bias of {} filters", g.k);
    match x.implementation() {
        Implementation::Cpu => {
            let finish = epilogue.map(|Epilogue { bias, relu }| {
                let affine = cpu::Affine { normal: None, shift: bias.data() };
                cpu::Finish { affine, residual: None, relu }
            });
            cpu::fprop(Isa::chosen(), &g, x.data(), w.data(), finish, y.data());
        }
        Implementation::Reference => {
            let y = y.data();
            reference::fprop::<f64>(&g, x.data(), w.data(), y);
            if let Some(Epilogue { bias, relu }) = epilogue {
                reference::finish::<f64>(bias.data(), relu, y);
            }
        }
        Implementation::Gpu(gpu) => return gpu::fprop(gpu, &g, x, w, y, besides),
    }
    None
}

/// [`fprop`], normalised by statistics that do not depend on it, and what follows: what [`normalize_then`] makes of a convolution's output, bit
/// for bit, which on the CPU is not written before.
pub fn fprop_normalized(conv: Conv2d, x: &Tensor, w: &Tensor, by: PerChannel, then: Finish, out: TensorMut) {
    let g = Geometry::new(conv, x.shape(), w.shape(), w.pitch());
    if !matches!(x.implementation(), Implementation::Cpu) {
        let mut y = Tensor::uninit(g.y(), out.dtype(), x.device());
        fprop(conv, x, w, y.view_mut());
        normalize_then((&y).into(), by, then, out);
        return;
    }
    let x = if g.zeros > 0 { &without_zeros(x, g.c) } else { x };
    let by = by.data::<f32>();
    let residual = then.residual.map(Residual::data::<f32>);
    let scale = batch_norm::cpu::scale(by);
    let of_residual = residual.and_then(|residual| residual.by).map(|by| (by, batch_norm::cpu::scale(by)));
    let finish = cpu::Finish {
        affine: affine(by, &scale),
        residual: residual
            .map(|residual| (residual.numbers, of_residual.as_ref().map(|(by, scale)| affine(*by, scale)))),
        relu: then.relu,
    };
    cpu::fprop(Isa::chosen(), &g, x.data(), w.data(), Some(finish), out.data());
}

/// A normalisation as the CPU's kernels take it.
fn affine<'a>(by: batch_norm::reference::PerChannel<'a, f32>, scale: &'a [f32]) -> cpu::Affine<'a> {
    cpu::Affine { normal: Some([by.mean, scale]), shift: by.beta }
}

/// Overwrites `dx`. On a GPU all three tensors are of one dtype.
pub fn dgrad(conv: Conv2d, dy: &Tensor, w: &Tensor, dx: TensorMut) {
    dgrad_to(conv, dy, w, Contribution { dx, is_added: false, norm: None });
}

/// The multiplications of each task that the CPU does a pass in, with so many threads: a list for each product, one after the other.
pub fn tasks(g: &Geometry, pass: Pass, threads: usize) -> Vec<Vec<usize>> {
    cpu::tasks(Isa::chosen(), g, pass, threads)
}

/// Where dgrad's result goes.
pub struct Contribution<'a> {
    pub dx: TensorMut<'a>,
    /// Whether it is added to what is there: the gradient as far as it is known.
    pub is_added: bool,
    /// The batch norm whose output this is the gradient of, where nobody contributes to it any more.
    pub norm: Option<&'a Normalized>,
}

/// [`dgrad`], which may add to what is there. Of a batch norm before it does the first pass of the backward too where the kernel that
/// serves has the numbers at hand: then `dx` becomes dz, cut by the ReLU between the two, and its sums are returned, for
/// [`gradients_of_tiles`](super::batch_norm::gradients_of_tiles).
pub fn dgrad_to(conv: Conv2d, dy: &Tensor, w: &Tensor, to: Contribution) -> Option<Tensor> {
    let Contribution { mut dx, is_added, norm } = to;
    let g = Geometry::new(conv, dx.shape(), w.shape(), w.pitch());
    assert_eq!(dy.shape(), g.y(), "the gradient of a convolution's output");
    assert_eq!(g.zeros, 0, "zeros have no gradient");
    let of_norm = norm.map(|norm| Parts::from(&norm.x[..]).shape());
    assert!(of_norm.is_none_or(|shape| shape == g.x()), "the batch norm before a convolution: {of_norm:?}");
    if is_added && !adds(&g, dy, w, &dx) {
        let mut term = Tensor::uninit(dx.shape(), dx.dtype(), dy.device());
        dgrad(conv, dy, w, term.view_mut());
        pointwise::add_assign(dx.reborrow(), &term);
        return None;
    }
    match dy.implementation() {
        Implementation::Cpu => cpu::dgrad(Isa::chosen(), &g, dy.data(), w.data(), is_added, dx.data()),
        Implementation::Reference => reference::dgrad::<f64>(&g, dy.data(), w.data(), dx.data()),
        Implementation::Gpu(gpu) => return gpu::dgrad(gpu, &g, dy, w, Contribution { dx, is_added, norm }),
    }
    None
}

/// Whether the kernel that serves can add to what is there.
fn adds(g: &Geometry, dy: &Tensor, w: &Tensor, dx: &TensorMut) -> bool {
    match dy.implementation() {
        Implementation::Cpu => return cpu::adds(g),
        Implementation::Reference => return false,
        Implementation::Gpu(_) => {}
    }
    let operands = Operands { x: dx.address(), y: dy.address(), w: Some(w.address()) };
    on_tensor_cores(g, Pass::Dgrad, dy.dtype(), operands).is_some()
}

/// Overwrites `dw`, but not the padding between its rows. On a GPU `x` and `dy` are of one dtype and `dw` is f32.
pub fn wgrad(conv: Conv2d, x: &Tensor, dy: &Tensor, dw: TensorMut) {
    let g = Geometry::new(conv, x.shape(), dw.shape(), dw.pitch());
    assert_eq!(dy.shape(), g.y(), "the gradient of a convolution's output");
    if let Some(x) = readable(&g, Pass::Wgrad, x, Some(dy)) {
        return wgrad(conv, &x, dy, dw);
    }
    match dy.implementation() {
        Implementation::Cpu => cpu::wgrad(Isa::chosen(), &g, x.data(), dy.data(), dw.data()),
        Implementation::Reference => reference::wgrad::<f64>(&g, x.data(), dy.data(), dw.data()),
        Implementation::Gpu(gpu) => gpu::wgrad(gpu, &g, x, dy, dw),
    }
}

/// The ops around a convolution, of whose work it does some.
#[derive(Default)]
pub struct Neighbours {
    /// Whether the batch norm behind it wants the statistics of its output, where they cost nothing.
    pub leaves_statistics: bool,
    /// The batch norm before it, whose first reader it is: it does the first pass of that one's backward.
    pub before: Option<Rc<Handoff>>,
    /// The bias behind it, K numbers, and whether a ReLU follows.
    pub bias: Option<(Var, bool)>,
}

impl Tape {
    pub fn conv2d(&mut self, conv: Conv2d, x: &Var, w: &Var) -> Var {
        self.conv2d_among(conv, x, w, Neighbours::default()).0
    }

    /// A convolution and the batch norm behind it, by given statistics, of which nobody learns anything.
    pub fn conv2d_normalized(&mut self, conv: Conv2d, x: &Tensor, w: &Tensor, by: PerChannel, then: Finish) -> Var {
        let g = Geometry::new(conv, x.shape(), w.shape(), w.pitch());
        let mut out = self.uninit(g.y(), x.dtype(), x.device());
        fprop_normalized(conv, x, w, by, then, out.view_mut());
        Var::constant(out)
    }

    /// A convolution that does some of the work of the ops around it. Returns the statistics of its output too, if they were
    /// asked for and cost nothing.
    pub fn conv2d_among(&mut self, conv: Conv2d, x: &Var, w: &Var, around: Neighbours) -> (Var, Option<Tiles>) {
        let Neighbours { leaves_statistics, before, bias } = around;
        assert!(!leaves_statistics || bias.is_none(), "statistics in front of a bias");
        let g = Geometry::new(conv, x.shape(), w.shape(), w.value().pitch());
        let mut y = self.uninit(g.y(), x.value().dtype(), x.value().device());
        let besides = match &bias {
            Some((bias, relu)) => Besides::Epilogue(Epilogue { bias: bias.value(), relu: *relu }),
            None if leaves_statistics => Besides::Statistics,
            None => Besides::Nothing,
        };
        let tiles = fprop_besides(conv, x.value(), w.value(), y.view_mut(), besides);
        let (x_id, w_id) = (x.id(), w.id());
        let bias_id = bias.as_ref().and_then(|(bias, _)| bias.id());
        let added = bias.map(|(bias, relu)| Added::new(&bias, relu.then(|| y.clone())));
        let place =
            self.reserve_products(w, |sources| product_parts(x.value().device(), &g, x.value().dtype(), sources));
        let y = self.record(y, &[x_id, w_id, bias_id], || {
            // Each operand is kept only for the gradient of the other.
            let kept_x = w_id.map(|_| x.value().clone());
            let kept_w = x_id.map(|_| w.value().clone());
            Box::new(move |dy, gradients| {
                let dy = match added {
                    Some(added) => added.backward(dy, gradients),
                    None => dy,
                };
                match (w_id, kept_x, place) {
                    (Some(_), Some(x), Some(place)) => gradients.contribute_products(place, |sources, products| {
                        wgrad_products(conv, &x, &dy, sources, products);
                    }),
                    (Some(id), Some(x), None) => gradients.contribute(id, |dw| wgrad(conv, &x, &dy, dw)),
                    _ => {}
                }
                if let (Some(id), Some(w)) = (x_id, kept_w) {
                    gradients.contribute_over(id, |dx, is_added| match &before {
                        Some(before) => {
                            before.pass_back(|norm| dgrad_to(conv, &dy, &w, Contribution { dx, is_added, norm }))
                        }
                        None => drop(dgrad_to(conv, &dy, &w, Contribution { dx, is_added, norm: None })),
                    });
                }
            })
        });
        (y, tiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Numbers;
    use crate::ops::cases::CONV2D;
    use crate::tensor::Device;

    fn cost(conv: Conv2d, x: [usize; 4], w: [usize; 4], pass: Pass, dtype: DType) -> Cost {
        Geometry::new(conv, x.into(), w.into(), w[1] * w[2] * w[3]).cost(pass, dtype)
    }

    /// Numbers between −1 and 1, on the CPU.
    fn tensor(numbers: &mut Numbers, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        Tensor::from_vec(numbers.reals(shape.len()).into_iter().map(|number| number as f32).collect(), shape)
    }

    #[test]
    fn a_normalized_convolution_has_the_bits_of_one_that_is_normalized_afterwards() {
        for case in CONV2D {
            let (g, mut numbers) = (case.geometry(), Numbers::named(case.name));
            let (x, w) = (tensor(&mut numbers, g.x()), tensor(&mut numbers, [g.k, g.pitch]));
            let w = w.window(0, [g.k, g.r, g.s, g.group_channels()], g.pitch);
            let [mean, rstd, gamma, beta, second] = std::array::from_fn(|_| tensor(&mut numbers, [g.k]));
            let by = PerChannel { mean: &mean, rstd: &rstd, gamma: &gamma, beta: &beta };
            let other = PerChannel { mean: &second, ..by };
            let residual = tensor(&mut numbers, g.y());
            let residuals = [None, Some(Residual::Of(&residual)), Some(Residual::Normalized(&residual, other))];
            for (residual, relu) in
                residuals.into_iter().flat_map(|residual| [false, true].map(|relu| (residual, relu)))
            {
                let then = Finish { residual, relu, leaves_signs: false };
                let [mut y, mut expected, mut found] = [0; 3].map(|_| Tensor::uninit(g.y(), DType::F32, Device::Cpu));
                fprop(g.conv, &x, &w, y.view_mut());
                normalize_then((&y).into(), by, then, expected.view_mut());
                fprop_normalized(g.conv, &x, &w, by, then, found.view_mut());
                let bits = |y: &Tensor| y.data::<f32>().iter().map(|y| y.to_bits()).collect::<Vec<u32>>();
                assert!(bits(&found) == bits(&expected), "{}, {relu}", case.name);
            }
        }
    }

    /// ResNet-18's first layers on one image of 28 pixels, by hand.
    #[test]
    fn what_a_convolution_costs() {
        let (x, w, y) = (28 * 28 * 64, 64 * 9 * 64, 28 * 28 * 64);
        let of = |pass, dtype| cost(Conv2d::new(1, 1), [1, 28, 28, 64], [64, 3, 3, 64], pass, dtype);
        let flops = 2 * 28 * 28 * 64 * 576;
        assert_eq!(of(Pass::Fprop, DType::F32), Cost { flops, read: 4 * (x + w), written: 4 * y });
        assert_eq!(of(Pass::Dgrad, DType::BF16), Cost { flops, read: 2 * (y + w), written: 2 * x });
        assert_eq!(of(Pass::Wgrad, DType::BF16), Cost { flops, read: 2 * (x + y), written: 4 * w });
    }

    /// Every second row and column; where a gradient of zero belongs is written all the same.
    #[test]
    fn a_stride_skips_what_no_output_sees() {
        let of = |pass| cost(Conv2d::new(2, 0), [2, 9, 8, 4], [8, 1, 1, 4], pass, DType::F32);
        let (seen, x, w, y) = (2 * 5 * 4 * 4, 2 * 9 * 8 * 4, 8 * 4, 2 * 5 * 4 * 8);
        let flops = 2 * y * 4;
        assert_eq!(of(Pass::Fprop), Cost { flops, read: 4 * (seen + w), written: 4 * y });
        assert_eq!(of(Pass::Dgrad), Cost { flops, read: 4 * (y + w), written: 4 * x });
        assert_eq!(of(Pass::Wgrad), Cost { flops, read: 4 * (seen + y), written: 4 * w });
    }
}
