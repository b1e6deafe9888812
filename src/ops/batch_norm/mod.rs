//! Batch normalisation per channel (Ioffe and Szegedy, 2015).
//!
//! ```text
//! training    μ, σ² = mean and biased variance over N·H·W      y = γ·(x − μ)·rstd + β,   rstd = 1/√(σ² + ε)
//! inference   the same with the running statistics in place of μ and σ²
//! backward    dβ = Σ dy      dγ = Σ dy·x̂      dx = γ·rstd·(dy − dβ/n − x̂·dγ/n)        (training)
//!                                             dx = γ·rstd·dy                            (inference)
//! ```
//!
//! The op is pure: it returns the batch's statistics, and whoever keeps running ones updates them. As in PyTorch those
//! take the *unbiased* variance, `σ²·n/(n − 1)`.

pub mod cpu;
pub mod reference;

use crate::tape::{Tape, Var};
use crate::tensor::{Element, Implementation, Tensor, TensorMut};

/// Mean and biased variance of each channel, and over how many numbers they were taken.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub mean: Tensor,
    pub variance: Tensor,
    pub count: usize,
}

/// The statistics of the batch `x`, which has at least one pixel.
pub fn statistics(x: &Tensor) -> Statistics {
    let (count, channels) = (x.shape().pixels(), x.shape().channels());
    let mut mean = Tensor::uninit([channels], x.dtype(), x.device());
    let mut variance = mean.clone();
    variance.make_unique();
    let (m, v) = (mean.view_mut(), variance.view_mut());
    match x.implementation() {
        Implementation::Cpu => cpu::statistics(x.data(), m.data(), v.data()),
        Implementation::Reference => reference::statistics::<f64>(x.data(), m.data(), v.data()),
        Implementation::Gpu(_) => todo!(),
    }
    Statistics { mean, variance, count }
}

/// `1/√(variance + ε)`.
pub fn reciprocal_deviation(variance: &Tensor, epsilon: f64) -> Tensor {
    fn compute<T: Element>(variance: &[T], epsilon: f64) -> Vec<T> {
        let one = T::from_f64(1.0);
        variance.iter().map(|&v| one / (v + T::from_f64(epsilon)).sqrt()).collect()
    }
    match variance.implementation() {
        Implementation::Cpu => Tensor::from_vec(compute::<f32>(variance.data(), epsilon), variance.shape()),
        Implementation::Reference => Tensor::from_vec(compute::<f64>(variance.data(), epsilon), variance.shape()),
        Implementation::Gpu(_) => todo!(),
    }
}

/// `y = γ·(x − mean)·rstd + β`.
pub fn normalize(x: &Tensor, mean: &Tensor, rstd: &Tensor, gamma: &Tensor, beta: &Tensor) -> Tensor {
    let mut y = Tensor::uninit(x.shape(), x.dtype(), x.device());
    match x.implementation() {
        Implementation::Cpu => {
            cpu::normalize(x.data(), mean.data(), rstd.data(), gamma.data(), beta.data(), y.view_mut().data())
        }
        Implementation::Reference => reference::normalize::<f64>(
            x.data(),
            mean.data(),
            rstd.data(),
            gamma.data(),
            beta.data(),
            y.view_mut().data(),
        ),
        Implementation::Gpu(_) => todo!(),
    }
    y
}

/// `dβ = Σ dy` and `dγ = Σ dy·x̂`.
pub fn parameter_gradients(x: &Tensor, dy: &Tensor, mean: &Tensor, rstd: &Tensor, dgamma: TensorMut, dbeta: TensorMut) {
    match x.implementation() {
        Implementation::Cpu => {
            cpu::parameter_gradients(x.data(), dy.data(), mean.data(), rstd.data(), dgamma.data(), dbeta.data())
        }
        Implementation::Reference => reference::parameter_gradients::<f64>(
            x.data(),
            dy.data(),
            mean.data(),
            rstd.data(),
            dgamma.data(),
            dbeta.data(),
        ),
        Implementation::Gpu(_) => todo!(),
    }
}

/// What backward needs of forward.
#[derive(Clone)]
struct Saved {
    x: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
    /// Whether the statistics came from `x`, so that the gradient flows through them.
    training: bool,
}

impl Saved {
    /// Turns `dy` into dx in its own buffer; `dgamma` and `dbeta` are the sums over the batch.
    fn input_gradient(&self, mut dy: Tensor, dgamma: &Tensor, dbeta: &Tensor) -> Tensor {
        dy.make_unique();
        let Saved { x, gamma, mean, rstd, training } = self;
        match x.implementation() {
            Implementation::Cpu => cpu::input_gradient_assign(
                dy.view_mut().data(),
                x.data(),
                mean.data(),
                rstd.data(),
                gamma.data(),
                dgamma.data(),
                dbeta.data(),
                *training,
            ),
            Implementation::Reference => reference::input_gradient_assign::<f64>(
                dy.view_mut().data(),
                x.data(),
                mean.data(),
                rstd.data(),
                gamma.data(),
                dgamma.data(),
                dbeta.data(),
                *training,
            ),
            Implementation::Gpu(_) => todo!(),
        }
        dy
    }
}

impl Tape {
    /// Normalises by the statistics of the batch, which it also returns.
    pub fn batch_norm_training(&mut self, x: &Var, gamma: &Var, beta: &Var, epsilon: f64) -> (Var, Statistics) {
        let statistics = statistics(x.value());
        let y = self.batch_norm(x, gamma, beta, &statistics.mean, &statistics.variance, epsilon, true);
        (y, statistics)
    }

    /// Normalises by running statistics.
    pub fn batch_norm_inference(
        &mut self,
        x: &Var,
        gamma: &Var,
        beta: &Var,
        running_mean: &Tensor,
        running_variance: &Tensor,
        epsilon: f64,
    ) -> Var {
        self.batch_norm(x, gamma, beta, running_mean, running_variance, epsilon, false)
    }

    #[allow(clippy::too_many_arguments)]
    fn batch_norm(
        &mut self,
        x: &Var,
        gamma: &Var,
        beta: &Var,
        mean: &Tensor,
        variance: &Tensor,
        epsilon: f64,
        training: bool,
    ) -> Var {
        let channels = x.shape().channels();
        for parameter in [gamma.shape(), beta.shape(), mean.shape(), variance.shape()] {
            assert_eq!(parameter.dims(), [channels], "batch norm of {}", x.shape());
        }
        let rstd = reciprocal_deviation(variance, epsilon);
        let y = normalize(x.value(), mean, &rstd, gamma.value(), beta.value());
        let ids = [x.id(), gamma.id(), beta.id()];
        self.record(y, &ids, || {
            let saved =
                Saved { x: x.value().clone(), gamma: gamma.value().clone(), mean: mean.clone(), rstd, training };
            Box::new(move |dy, gradients| {
                let mut dgamma = Tensor::uninit([channels], dy.dtype(), dy.device());
                let mut dbeta = Tensor::uninit([channels], dy.dtype(), dy.device());
                // dx needs the two sums only where the statistics are the batch's own.
                if training || ids[1].is_some() || ids[2].is_some() {
                    let (g, b) = (dgamma.view_mut(), dbeta.view_mut());
                    parameter_gradients(&saved.x, &dy, &saved.mean, &saved.rstd, g, b);
                }
                if let Some(id) = ids[0] {
                    gradients.give(id, saved.input_gradient(dy, &dgamma, &dbeta));
                }
                for (id, sum) in [(ids[1], dgamma), (ids[2], dbeta)] {
                    if let Some(id) = id {
                        gradients.contribute(id, |out| out.copy_from(&sum));
                    }
                }
            })
        })
    }
}
