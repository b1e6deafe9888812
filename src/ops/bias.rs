//! The bias of a convolution: `out = relu?(x + b [+ residual])`, with x N×H×W×K and b K.
//!
//! Composed of a batch norm with mean 0, deviation 1 and γ = 1, which computes just that: `(x − 0)·1 + b`. Backward:
//! `dx = dz`, `db = Σ dz` over the pixels.

use super::batch_norm::{Source, Then};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

impl Tape {
    /// Adds `b` to every pixel of `x`, then `residual`, and cuts by a ReLU if `relu`.
    pub fn bias(&mut self, x: &Var, b: &Var, residual: Option<Var>, relu: bool) -> Var {
        let (shape, dtype, device) = (b.shape(), b.value().dtype(), b.value().device());
        let mean = Tensor::zeros(shape, dtype, device);
        let mut one = Tensor::uninit(shape, dtype, device);
        one.view_mut().fill(1.0);
        let gamma = Var::constant(one.clone());
        self.batch_norm(x, &gamma, b, Source::Given { mean, rstd: one }, Then { residual, relu, handoff: None })
    }
}
