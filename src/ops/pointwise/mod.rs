//! Sums, rectification and pulls, element by element.
//!
//! | op | forward | backward |
//! |---|---|---|
//! | add | `y = a + b` | `da = dy`, `db = dy` |
//! | ReLU | `y = max(x, 0)` | `dx = dy` where `y > 0`, else 0 |
//! | pull | `y = x` | `dx = dy + c·(x − s·t)`: of a loss with the term `c/2·‖x − s·t‖²`, which its value leaves out |
//!
//! Both write over an input that nobody else reads, since they are bound by memory alone. ReLU keeps its output for
//! backward, not its input: the next convolution keeps the same tensor anyway. NaN passes through both.

pub mod cpu;
mod gpu;
pub mod reference;

use crate::gpu::Address;
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

/// What a value is pulled to, and how strongly: c and s·t of the table.
#[derive(Clone, Copy)]
pub struct Pull<'a> {
    pub towards: &'a Tensor,
    /// s.
    pub share: f64,
    /// c.
    pub strength: f64,
    /// Where on a GPU the control block is, whose scale the loss has.
    pub control: Option<Address>,
}

/// `dx += c·(x − s·t)`, times the scale of the loss.
pub fn pull_assign(pull: &Pull, dx: TensorMut, x: &Tensor) {
    assert!(dx.shape() == x.shape() && x.shape() == pull.towards.shape(), "pull");
    match dx.implementation() {
        Implementation::Cpu => cpu::pull_assign(pull, dx.data(), x.data(), pull.towards.data()),
        Implementation::Reference => reference::pull_assign::<f64>(pull, dx.data(), x.data(), pull.towards.data()),
        Implementation::Gpu(gpu) => gpu::pull_assign(gpu, pull, dx, x),
    }
}

impl Tape {
    /// The value itself, which the loss pulls.
    pub fn pull(&mut self, x: Var, pull: &Pull) -> Var {
        let id = x.id();
        let x = x.into_value();
        let (kept, towards) = (x.clone(), pull.towards.clone());
        let Pull { share, strength, control, .. } = *pull;
        self.record(x, &[id], || {
            Box::new(move |mut dx, gradients| {
                let pull = Pull { towards: &towards, share, strength, control };
                dx.make_unique();
                pull_assign(&pull, dx.view_mut(), &kept);
                gradients.give(id.expect("recorded because its input wants a gradient"), dx);
            })
        })
    }

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
