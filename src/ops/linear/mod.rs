//! A fully connected layer: `y = x·wᵀ + b`, with x N×C, w K×C (rows may be padded), b K and y N×K.
//!
//! Backward: `dx = dy·w`, `dw = dyᵀ·x`, `db = Σ_n dy`.

pub mod cpu;
mod gpu;
pub mod reference;

use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Shape, Tensor, TensorMut};

#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub n: usize,
    pub c: usize,
    pub k: usize,
    /// Elements from row to row of `w`.
    pub pitch: usize,
}

impl Geometry {
    /// # Panics
    /// If the shapes do not belong together.
    pub fn new(x: Shape, w: Shape, pitch: usize) -> Geometry {
        let (&[n, c], &[k, columns]) = (x.dims(), w.dims()) else { panic!("linear layer of {x} by {w}") };
        assert_eq!(c, columns, "linear layer of {x} by {w}");
        Geometry { n, c, k, pitch }
    }
}

pub fn forward(x: &Tensor, w: &Tensor, b: &Tensor, y: TensorMut) {
    let g = Geometry::new(x.shape(), w.shape(), w.pitch());
    assert_eq!(b.dims(), [g.k], "bias of a linear layer");
    assert_eq!(y.shape().dims(), [g.n, g.k], "output of a linear layer");
    match x.implementation() {
        Implementation::Cpu => cpu::forward(&g, x.data(), w.data(), b.data(), y.data()),
        Implementation::Reference => reference::forward::<f64>(&g, x.data(), w.data(), b.data(), y.data()),
        Implementation::Gpu(gpu) => gpu::forward(gpu, &g, x, w, b, y),
    }
}

pub fn input_gradient(dy: &Tensor, w: &Tensor, dx: TensorMut) {
    let g = Geometry::new(dx.shape(), w.shape(), w.pitch());
    assert_eq!(dy.dims(), [g.n, g.k], "the gradient of a linear layer's output");
    match dy.implementation() {
        Implementation::Cpu => cpu::input_gradient(&g, dy.data(), w.data(), dx.data()),
        Implementation::Reference => reference::input_gradient::<f64>(&g, dy.data(), w.data(), dx.data()),
        Implementation::Gpu(gpu) => gpu::input_gradient(gpu, &g, dy, w, dx),
    }
}

/// Overwrites `dw`, but not the padding between its rows.
pub fn weight_gradient(x: &Tensor, dy: &Tensor, dw: TensorMut) {
    let g = Geometry::new(x.shape(), dw.shape(), dw.pitch());
    assert_eq!(dy.dims(), [g.n, g.k], "the gradient of a linear layer's output");
    match dy.implementation() {
        Implementation::Cpu => cpu::weight_gradient(&g, x.data(), dy.data(), dw.data()),
        Implementation::Reference => reference::weight_gradient::<f64>(&g, x.data(), dy.data(), dw.data()),
        Implementation::Gpu(gpu) => gpu::weight_gradient(gpu, &g, x, dy, dw),
    }
}

pub fn bias_gradient(dy: &Tensor, db: TensorMut) {
    assert!(dy.dims().len() == 2 && dy.dims()[1] == db.shape().len(), "the gradient of a bias");
    // One row per image and one column per class: nothing worth a fast form.
    match dy.implementation() {
        Implementation::Cpu => reference::bias_gradient::<f32>(dy.data(), db.data()),
        Implementation::Reference => reference::bias_gradient::<f64>(dy.data(), db.data()),
        Implementation::Gpu(gpu) => gpu::bias_gradient(gpu, dy, db),
    }
}

impl Tape {
    pub fn linear(&mut self, x: &Var, w: &Var, b: &Var) -> Var {
        let [n, k] = [x.value().dims()[0], w.value().dims()[0]];
        let mut y = Tensor::uninit([n, k], x.value().dtype(), x.value().device());
        forward(x.value(), w.value(), b.value(), y.view_mut());
        let ids @ [x_id, w_id, b_id] = [x.id(), w.id(), b.id()];
        self.record(y, &ids, || {
            let kept_x = w_id.map(|_| x.value().clone());
            let kept_w = x_id.map(|_| w.value().clone());
            Box::new(move |dy, gradients| {
                if let (Some(id), Some(x)) = (w_id, kept_x) {
                    gradients.contribute(id, |dw| weight_gradient(&x, &dy, dw));
                }
                if let Some(id) = b_id {
                    gradients.contribute(id, |db| bias_gradient(&dy, db));
                }
                if let (Some(id), Some(w)) = (x_id, kept_w) {
                    gradients.contribute(id, |dx| input_gradient(&dy, &w, dx));
                }
            })
        })
    }
}
