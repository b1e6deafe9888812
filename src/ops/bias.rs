//! The bias of a convolution: `out = relu?(x + b [+ residual])`, with x N×H×W×K and b K.
//!
//! Without a residual the convolution adds it before it writes its output ([`Neighbours`](super::conv2d::Neighbours)); what
//! is left is backward, [`Added`]. By itself it is composed of a batch norm with mean 0, deviation 1 and γ = 1, which
//! computes just that: `(x − 0)·1 + b`. Backward: `dx = dz`, `db = Σ dz` over the pixels.

use super::batch_norm::{self, Cut, ParameterGradients, PerChannel, Source, Then};
use super::pointwise;
use crate::tape::{Gradients, Id, Tape, Var};
use crate::tensor::Tensor;

/// A bias that a convolution has added: the part of forward that backward needs.
pub struct Added {
    id: Option<Id>,
    bias: Tensor,
    /// The output, where a ReLU made it.
    out: Option<Tensor>,
}

impl Added {
    pub fn new(bias: &Var, out: Option<Tensor>) -> Added {
        Added { id: bias.id(), bias: bias.value().clone(), out }
    }

    /// `dz`, the gradient in front of the ReLU, of `dy`. Contributes `db = Σ dz`.
    pub fn backward(self, mut dy: Tensor, to: &mut Gradients) -> Tensor {
        let Added { id, bias, out } = self;
        if out.is_some() {
            dy.make_unique();
        }
        match (id, &out) {
            // dβ of a batch norm. Nobody asks for its dγ, for which any numbers would do.
            (Some(id), _) => to.contribute(id, |db| {
                let by = PerChannel { mean: &bias, rstd: &bias, gamma: &bias, beta: &bias };
                let sums = ParameterGradients { dgamma: None, dbeta: Some(db), means: None };
                match &out {
                    Some(out) => batch_norm::gradients(out, Cut::ByOutput(dy.view_mut(), out), by, sums),
                    None => batch_norm::gradients(&dy, Cut::Whole(&dy), by, sums),
                }
            }),
            (None, Some(out)) => pointwise::relu_backward_assign(dy.view_mut(), out),
            (None, None) => {}
        }
        dy
    }
}

impl Tape {
    /// Adds `b` to every pixel of `x`, then `residual`, and cuts by a ReLU if `relu`.
    pub fn bias(&mut self, x: &Var, b: &Var, residual: Option<Var>, relu: bool) -> Var {
        let (shape, dtype, device) = (b.shape(), b.value().dtype(), b.value().device());
        let mean = Tensor::zeros(shape, dtype, device);
        let mut one = Tensor::uninit(shape, dtype, device);
        one.view_mut().fill(1.0);
        let gamma = Var::constant(one.clone());
        self.batch_norm(x, &gamma, b, Source::Given { mean, rstd: one }, Then { residual, relu, ..Then::default() })
    }
}
