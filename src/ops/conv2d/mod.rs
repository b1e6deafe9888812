//! Two-dimensional convolution (a cross-correlation, as everywhere in the field).
//!
//! ```text
//! fprop   y[n,p,q,k]  = Σ_{r,s,c} x[n, p·stride_h − pad_h + r·dilation_h, q·stride_w − pad_w + s·dilation_w, c] · w[k,r,s,c]
//! dgrad   dx = the transpose of fprop in x, applied to dy
//! wgrad   dw = the transpose of fprop in w, applied to dy
//! ```
//!
//! With G groups, filter k sees only the C/G channels of group k / (K/G). Activations are NHWC, filters KRSC; the rows
//! of `w` and `dw` (one filter each) may be padded.

pub mod cpu;
mod gpu;
pub mod reference;

use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Shape, Tensor, TensorMut};

/// What a convolution layer fixes: height first, then width.
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
}

impl Geometry {
    /// # Panics
    /// If the shapes do not belong together, or the input is smaller than the filter.
    pub fn new(conv: Conv2d, x: Shape, filters: Shape, pitch: usize) -> Geometry {
        let [n, h, w, c] = x.four();
        let [k, r, s, group_channels] = filters.four();
        let fits = c == group_channels * conv.groups && k.is_multiple_of(conv.groups);
        assert!(fits, "convolution of {x} by {filters} in {} groups", conv.groups);
        let [p, q] = [(h, r, 0), (w, s, 1)].map(|(size, taps, axis)| {
            output_size(size, taps, conv.stride[axis], conv.padding[axis], conv.dilation[axis]).unwrap_or_else(|| {
                panic!("convolution of {x} by {filters}: the padded input is smaller than the filter")
            })
        });
        Geometry { n, h, w, c, k, r, s, p, q, conv, pitch }
    }

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
}

/// Size of the output along one axis; `None` if the padded input is smaller than the filter's reach.
pub fn output_size(input: usize, taps: usize, stride: usize, padding: usize, dilation: usize) -> Option<usize> {
    Some((input + 2 * padding).checked_sub(dilation * (taps - 1) + 1)? / stride + 1)
}

/// Overwrites `y`. On a GPU all three tensors are of one dtype, f32, bf16 or f16.
pub fn fprop(conv: Conv2d, x: &Tensor, w: &Tensor, y: TensorMut) {
    let g = Geometry::new(conv, x.shape(), w.shape(), w.pitch());
    assert_eq!(y.shape(), g.y(), "the output of a convolution");
    match x.implementation() {
        Implementation::Cpu => cpu::fprop(&g, x.data(), w.data(), y.data()),
        Implementation::Reference => reference::fprop::<f64>(&g, x.data(), w.data(), y.data()),
        Implementation::Gpu(gpu) => gpu::fprop(gpu, &g, x, w, y),
    }
}

/// Overwrites `dx`. On a GPU all three tensors are of one dtype.
pub fn dgrad(conv: Conv2d, dy: &Tensor, w: &Tensor, dx: TensorMut) {
    let g = Geometry::new(conv, dx.shape(), w.shape(), w.pitch());
    assert_eq!(dy.shape(), g.y(), "the gradient of a convolution's output");
    match dy.implementation() {
        Implementation::Cpu => cpu::dgrad(&g, dy.data(), w.data(), dx.data()),
        Implementation::Reference => reference::dgrad::<f64>(&g, dy.data(), w.data(), dx.data()),
        Implementation::Gpu(gpu) => gpu::dgrad(gpu, &g, dy, w, dx),
    }
}

/// Overwrites `dw`, but not the padding between its rows. On a GPU `x` and `dy` are of one dtype and `dw` is f32.
pub fn wgrad(conv: Conv2d, x: &Tensor, dy: &Tensor, dw: TensorMut) {
    let g = Geometry::new(conv, x.shape(), dw.shape(), dw.pitch());
    assert_eq!(dy.shape(), g.y(), "the gradient of a convolution's output");
    match dy.implementation() {
        Implementation::Cpu => cpu::wgrad(&g, x.data(), dy.data(), dw.data()),
        Implementation::Reference => reference::wgrad::<f64>(&g, x.data(), dy.data(), dw.data()),
        Implementation::Gpu(gpu) => gpu::wgrad(gpu, &g, x, dy, dw),
    }
}

impl Tape {
    pub fn conv2d(&mut self, conv: Conv2d, x: &Var, w: &Var) -> Var {
        let g = Geometry::new(conv, x.shape(), w.shape(), w.value().pitch());
        let mut y = Tensor::uninit(g.y(), x.value().dtype(), x.value().device());
        fprop(conv, x.value(), w.value(), y.view_mut());
        let (x_id, w_id) = (x.id(), w.id());
        self.record(y, &[x_id, w_id], || {
            // Each operand is kept only for the gradient of the other.
            let kept_x = w_id.map(|_| x.value().clone());
            let kept_w = x_id.map(|_| w.value().clone());
            Box::new(move |dy, gradients| {
                if let (Some(id), Some(x)) = (w_id, kept_x) {
                    gradients.contribute(id, |dw| wgrad(conv, &x, &dy, dw));
                }
                if let (Some(id), Some(w)) = (x_id, kept_w) {
                    gradients.contribute(id, |dx| dgrad(conv, &dy, &w, dx));
                }
            })
        })
    }
}
