//! Sums and rectification, element by element.
//!
//! | op | forward | backward |
//! |---|---|---|
//! | add | `y = a + b` | `da = dy`, `db = dy` |
//! | ReLU | `y = max(x, 0)` | `dx = dy` where `y > 0`, else 0 |
//!
//! Both write over an input that nobody else reads, since they are bound by memory alone. ReLU keeps its output for
//! backward, not its input: the next convolution keeps the same tensor anyway. NaN passes through both.

pub mod cpu;
mod gpu;
pub mod reference;

use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Tensor, TensorMut};

impl Tape {
    /// An empty one.
    pub fn new() -> Tape {
        Tape::summing_by(add_assign)
    }
}

impl Default for Tape {
    fn default() -> Tape {
        Tape::new()
    }
}

/// `sum += term`. Rows of `sum` may be padded, those of `term` not.
pub fn add_assign(sum: TensorMut, term: &Tensor) {
    assert_eq!(sum.shape(), term.shape(), "add");
    let (row, pitch) = (sum.shape().row_len().max(1), sum.pitch().max(1));
    match sum.implementation() {
        Implementation::Cpu if row == pitch => cpu::add_assign(sum.data(), term.data()),
        Implementation::Cpu => reference::add_assign::<f32>(sum.data(), term.data(), row, pitch),
        Implementation::Reference => reference::add_assign::<f64>(sum.data(), term.data(), row, pitch),
        Implementation::Gpu(gpu) => gpu::add_assign(gpu, sum, term),
    }
}

/// `x = max(x, 0)`.
pub fn relu_assign(x: TensorMut) {
    match x.implementation() {
        Implementation::Cpu => cpu::relu_assign(x.data()),
        Implementation::Reference => reference::relu_assign::<f64>(x.data()),
        Implementation::Gpu(gpu) => gpu::relu_assign(gpu, x),
    }
}

/// `dy = dy` where `y > 0`, else 0.
pub fn relu_backward_assign(dy: TensorMut, y: &Tensor) {
    assert_eq!(dy.shape(), y.shape(), "ReLU backward");
    match dy.implementation() {
        Implementation::Cpu => cpu::relu_backward_assign(dy.data(), y.data()),
        Implementation::Reference => reference::relu_backward_assign::<f64>(dy.data(), y.data()),
        Implementation::Gpu(gpu) => gpu::relu_backward_assign(gpu, dy, y),
    }
}

impl Tape {
    pub fn add(&mut self, a: Var, b: Var) -> Var {
        let ids = [a.id(), b.id()];
        let (mut sum, mut term) = (a.into_value(), b.into_value());
        // Addition commutes to the last bit, so it may run in whichever buffer is free.
        if !sum.is_unique() && term.is_unique() {
            std::mem::swap(&mut sum, &mut term);
        }
        sum.make_unique();
        add_assign(sum.view_mut(), &term);
        self.record(sum, &ids, || {
            Box::new(move |dy, gradients| {
                for id in ids.into_iter().flatten() {
                    gradients.give(id, dy.clone());
                }
            })
        })
    }

    pub fn relu(&mut self, x: Var) -> Var {
        let id = x.id();
        let mut y = x.into_value();
        y.make_unique();
        relu_assign(y.view_mut());
        let kept = y.clone();
        self.record(y, &[id], || {
            Box::new(move |mut dy, gradients| {
                dy.make_unique();
                relu_backward_assign(dy.view_mut(), &kept);
                gradients.give(id.expect("recorded because its input wants a gradient"), dy);
            })
        })
    }
}
