//! Pooling over a sliding window, and over the whole image.
//!
//! | op | forward | backward |
//! |---|---|---|
//! | max | `y = max over the window of x`; padding never wins | `dy` goes to the first element that attained the maximum |
//! | average | `y = Σ x / divisor` | `dy / divisor` to every element of the window |
//! | adaptive average | mean of P×Q windows that cover x, whatever its size; N×P×Q×C | `dy / pixels` of each window |
//! | global average | mean over H·W, N×C | `dy / (H·W)` |
//!
//! The divisor is the window's size, or, with `count_padding: false`, the number of elements inside the image. Max
//! pooling keeps one byte per output, which tap won. A NaN in a window wins.

pub mod cpu;
mod gpu;
pub mod reference;

use std::ops::Range;

use crate::ops::conv2d::output_size;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Device, Implementation, Integers, Shape, Tensor, TensorMut};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub window: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    /// Whether the zeros of the padding count in an average. Max pooling ignores it.
    pub count_padding: bool,
}

impl Pool {
    pub const fn new(window: usize, stride: usize, padding: usize) -> Pool {
        Pool { window: [window; 2], stride: [stride; 2], padding: [padding; 2], count_padding: true }
    }
}

/// All sizes of one call.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub p: usize,
    pub q: usize,
    pub pool: Pool,
}

impl Geometry {
    /// # Panics
    /// If the window does not fit, has more than 256 taps, or padding exceeds half of it.
    pub fn new(pool: Pool, x: Shape) -> Geometry {
        let [n, h, w, c] = x.four();
        assert!(pool.window[0] * pool.window[1] <= 256, "a pooling window has at most 256 taps");
        let half = [0, 1].iter().all(|&axis| pool.padding[axis] <= pool.window[axis] / 2);
        assert!(half, "pooling is padded by at most half its window");
        let [p, q] = [(h, 0), (w, 1)].map(|(size, axis)| {
            output_size(size, pool.window[axis], pool.stride[axis], pool.padding[axis], 1)
                .unwrap_or_else(|| panic!("pooling of {x}: the padded input is smaller than the window"))
        });
        Geometry { n, h, w, c, p, q, pool }
    }

    pub fn y(&self) -> Shape {
        [self.n, self.p, self.q, self.c].into()
    }

    /// Calls `visit(tap, pixel)` for every input pixel of image `n` that output pixel (`p`, `q`) sees.
    #[inline(always)]
    pub fn for_each_tap(&self, n: usize, p: usize, q: usize, mut visit: impl FnMut(usize, usize)) {
        let Pool { window, stride, padding, .. } = self.pool;
        for r in 0..window[0] {
            let h = (p * stride[0] + r).wrapping_sub(padding[0]);
            if h >= self.h {
                continue;
            }
            for s in 0..window[1] {
                let w = (q * stride[1] + s).wrapping_sub(padding[1]);
                if w < self.w {
                    visit(r * window[1] + s, (n * self.h + h) * self.w + w);
                }
            }
        }
    }

    /// The divisor of the average at (`p`, `q`).
    pub fn divisor(&self, p: usize, q: usize) -> f64 {
        let mut seen = 0;
        self.for_each_tap(0, p, q, |_, _| seen += 1);
        if self.pool.count_padding { (self.pool.window[0] * self.pool.window[1]) as f64 } else { f64::from(seen) }
    }
}

/// All sizes of one call of adaptive average pooling, as PyTorch has it: output p averages the rows from ⌊p·H/P⌋ to
/// ⌈(p + 1)·H/P⌉, likewise columns. Windows overlap where P does not divide H; where P exceeds H, pixels repeat.
#[derive(Clone, Copy, Debug)]
pub struct Adaptive {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub p: usize,
    pub q: usize,
}

impl Adaptive {
    pub fn new([p, q]: [usize; 2], x: Shape) -> Adaptive {
        let [n, h, w, c] = x.four();
        assert!(p > 0 && q > 0 && h > 0 && w > 0, "adaptive pooling of {x} to {p}×{q}");
        Adaptive { n, h, w, c, p, q }
    }

    pub fn y(&self) -> Shape {
        [self.n, self.p, self.q, self.c].into()
    }

    /// The inputs of output `i` along an axis.
    pub fn window(i: usize, inputs: usize, outputs: usize) -> Range<usize> {
        i * inputs / outputs..((i + 1) * inputs).div_ceil(outputs)
    }

    /// The outputs that see input `i` along an axis.
    pub fn outputs_over(i: usize, inputs: usize, outputs: usize) -> Range<usize> {
        i * outputs / inputs..((i + 1) * outputs).div_ceil(inputs)
    }
}

/// The maxima, and for each the tap that attained it.
pub fn max_pool(pool: Pool, x: &Tensor, y: TensorMut, taps: &mut Integers<u8>) {
    let g = Geometry::new(pool, x.shape());
    assert_eq!(y.shape(), g.y(), "max pooling of {}", x.shape());
    assert_eq!(taps.len(), g.y().len(), "winners of max pooling");
    match x.implementation() {
        Implementation::Cpu => cpu::max_pool(&g, x.data(), y.data(), taps.data_mut()),
        Implementation::Reference => reference::max_pool::<f64>(&g, x.data(), y.data(), taps.data_mut()),
        Implementation::Gpu(gpu) => gpu::max_pool(gpu, &g, x, y, taps),
    }
}

pub fn max_pool_backward(pool: Pool, dy: &Tensor, taps: &Integers<u8>, dx: TensorMut) {
    let g = Geometry::new(pool, dx.shape());
    assert_eq!(dy.shape(), g.y(), "max pooling of {}", dx.shape());
    assert_eq!(taps.len(), g.y().len(), "winners of max pooling");
    match dy.implementation() {
        Implementation::Cpu => cpu::max_pool_backward(&g, dy.data(), taps.data(), dx.data()),
        Implementation::Reference => reference::max_pool_backward::<f64>(&g, dy.data(), taps.data(), dx.data()),
        Implementation::Gpu(gpu) => gpu::max_pool_backward(gpu, &g, dy, taps, dx),
    }
}

pub fn average_pool(pool: Pool, x: &Tensor, y: TensorMut) {
    let g = Geometry::new(pool, x.shape());
    assert_eq!(y.shape(), g.y(), "average pooling of {}", x.shape());
    match x.implementation() {
        Implementation::Cpu => cpu::average_pool(&g, x.data(), y.data()),
        Implementation::Reference => reference::average_pool::<f64>(&g, x.data(), y.data()),
        Implementation::Gpu(gpu) => gpu::average_pool(gpu, &g, x, y),
    }
}

pub fn average_pool_backward(pool: Pool, dy: &Tensor, dx: TensorMut) {
    let g = Geometry::new(pool, dx.shape());
    assert_eq!(dy.shape(), g.y(), "average pooling of {}", dx.shape());
    match dy.implementation() {
        Implementation::Cpu => cpu::average_pool_backward(&g, dy.data(), dx.data()),
        Implementation::Reference => reference::average_pool_backward::<f64>(&g, dy.data(), dx.data()),
        Implementation::Gpu(gpu) => gpu::average_pool_backward(gpu, &g, dy, dx),
    }
}

pub fn adaptive_average_pool(x: &Tensor, y: TensorMut) {
    let [_, p, q, _] = y.shape().four();
    let g = Adaptive::new([p, q], x.shape());
    assert_eq!(y.shape(), g.y(), "adaptive average pooling of {}", x.shape());
    match x.implementation() {
        Implementation::Cpu => cpu::adaptive_average_pool(&g, x.data(), y.data()),
        Implementation::Reference => reference::adaptive_average_pool::<f64>(&g, x.data(), y.data()),
        Implementation::Gpu(gpu) => gpu::adaptive_average_pool(gpu, &g, x, y),
    }
}

pub fn adaptive_average_pool_backward(dy: &Tensor, dx: TensorMut) {
    let [_, p, q, _] = dy.shape().four();
    let g = Adaptive::new([p, q], dx.shape());
    assert_eq!(dy.shape(), g.y(), "adaptive average pooling of {}", dx.shape());
    match dy.implementation() {
        Implementation::Cpu => cpu::adaptive_average_pool_backward(&g, dy.data(), dx.data()),
        Implementation::Reference => reference::adaptive_average_pool_backward::<f64>(&g, dy.data(), dx.data()),
        Implementation::Gpu(gpu) => gpu::adaptive_average_pool_backward(gpu, &g, dy, dx),
    }
}

/// N×H×W×C to N×C, which on a GPU is `f32` whatever `x` is stored as: what follows are logits.
pub fn global_average_pool(x: &Tensor, y: TensorMut) {
    let [n, h, w, c] = x.shape().four();
    assert_eq!(y.shape().dims(), [n, c], "global average pooling of {}", x.shape());
    match x.implementation() {
        Implementation::Cpu => cpu::global_average_pool(h * w, x.data(), c, y.data()),
        Implementation::Reference => reference::global_average_pool::<f64>(h * w, x.data(), c, y.data()),
        Implementation::Gpu(gpu) => gpu::global_average_pool(gpu, h * w, x, y),
    }
}

/// `dy` is N×C, on a GPU `f32`.
pub fn global_average_pool_backward(dy: &Tensor, dx: TensorMut) {
    let [n, h, w, c] = dx.shape().four();
    assert_eq!(dy.shape().dims(), [n, c], "global average pooling of {}", dx.shape());
    match dy.implementation() {
        Implementation::Cpu => cpu::global_average_pool_backward(h * w, dy.data(), c, dx.data()),
        Implementation::Reference => reference::global_average_pool_backward::<f64>(h * w, dy.data(), c, dx.data()),
        Implementation::Gpu(gpu) => gpu::global_average_pool_backward(gpu, h * w, dy, dx),
    }
}

impl Tape {
    pub fn max_pool(&mut self, pool: Pool, x: &Var) -> Var {
        let mut y = self.uninit(Geometry::new(pool, x.shape()).y(), x.value().dtype(), x.value().device());
        let mut taps = Integers::uninit(y.shape().len(), y.device());
        max_pool(pool, x.value(), y.view_mut(), &mut taps);
        self.pooled(y, x, move |dy, dx| max_pool_backward(pool, dy, &taps, dx))
    }

    pub fn average_pool(&mut self, pool: Pool, x: &Var) -> Var {
        let mut y = self.uninit(Geometry::new(pool, x.shape()).y(), x.value().dtype(), x.value().device());
        average_pool(pool, x.value(), y.view_mut());
        self.pooled(y, x, move |dy, dx| average_pool_backward(pool, dy, dx))
    }

    /// To P×Q pixels. Images that have as many stay as they are: then this is no work.
    pub fn adaptive_average_pool(&mut self, [p, q]: [usize; 2], x: Var) -> Var {
        let [n, h, w, c] = x.shape().four();
        if [h, w] == [p, q] {
            return x;
        }
        let mut y = Tensor::uninit([n, p, q, c], x.value().dtype(), x.value().device());
        adaptive_average_pool(x.value(), y.view_mut());
        self.pooled(y, &x, adaptive_average_pool_backward)
    }

    pub fn global_average_pool(&mut self, x: &Var) -> Var {
        let (value, [n, _, _, c]) = (x.value(), x.shape().four());
        let dtype = match value.device() {
            Device::Cpu => value.dtype(),
            Device::Gpu(_) => DType::F32,
        };
        let mut y = Tensor::uninit([n, c], dtype, value.device());
        global_average_pool(value, y.view_mut());
        self.pooled(y, x, global_average_pool_backward)
    }

    /// The record of a pooling whose `backward` writes the gradient of `x`, given that of `y`.
    fn pooled(&mut self, y: Tensor, x: &Var, backward: impl FnOnce(&Tensor, TensorMut) + 'static) -> Var {
        let id = x.id();
        self.record(y, &[id], || {
            Box::new(move |dy, gradients| {
                let id = id.expect("recorded because its input wants a gradient");
                gradients.contribute(id, |dx| backward(&dy, dx));
            })
        })
    }
}
