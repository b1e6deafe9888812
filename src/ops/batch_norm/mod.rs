//! Batch normalisation per channel (Ioffe and Szegedy, 2015).
//!
//! ```text
//! training    μ, σ² = mean and biased variance over N·H·W      y = γ·(x − μ)·rstd + β,   rstd = 1/√(σ² + ε)
//! inference   the same with the running statistics in place of μ and σ²
//! backward    dβ = Σ dy      dγ = Σ dy·x̂      dx = γ·rstd·(dy − dβ/n − x̂·dγ/n)        (training)
//!                                             dx = γ·rstd·dy                            (inference)
//! ```
//!
//! The op on the tape is pure: it returns the batch's statistics, and whoever keeps running ones updates them
//! ([`update_running`]). As in PyTorch those
//! take the *unbiased* variance, `σ²·n/(n − 1)`.

pub mod cpu;
mod gpu;
pub mod reference;

use crate::gpu::Address;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Device, Implementation, Shape, Tensor, TensorMut};

/// Mean and biased variance of each channel, and over how many numbers they were taken.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub mean: Tensor,
    pub variance: Tensor,
    pub count: usize,
}

impl Statistics {
    /// Of a batch like `x`, to be overwritten.
    fn uninit(x: &Tensor) -> Statistics {
        let per_channel = || Tensor::uninit([x.shape().channels()], statistics_dtype(x), x.device());
        Statistics { mean: per_channel(), variance: per_channel(), count: x.shape().pixels() }
    }
}

/// What the statistics of `x`, and everything else that there is one of per channel, are stored as.
fn statistics_dtype(x: &Tensor) -> DType {
    match x.device() {
        Device::Cpu => x.dtype(),
        Device::Gpu(_) => DType::F32,
    }
}

/// Mean and biased variance of the batch `x`, which has at least one pixel.
pub fn statistics(x: &Tensor, mean: TensorMut, variance: TensorMut) {
    check_channels(x.shape(), [mean.shape(), variance.shape()]);
    match x.implementation() {
        Implementation::Cpu => cpu::statistics(x.data(), mean.data(), variance.data()),
        Implementation::Reference => reference::statistics::<f64>(x.data(), mean.data(), variance.data()),
        Implementation::Gpu(gpu) => gpu::statistics(gpu, x, mean, variance),
    }
}

/// `rstd = 1/√(variance + ε)`.
pub fn reciprocal_deviation(variance: &Tensor, epsilon: f64, rstd: TensorMut) {
    assert_eq!(variance.shape(), rstd.shape(), "reciprocal deviation");
    match variance.implementation() {
        Implementation::Cpu => reference::reciprocal_deviation::<f32>(variance.data(), epsilon, rstd.data()),
        Implementation::Reference => reference::reciprocal_deviation::<f64>(variance.data(), epsilon, rstd.data()),
        Implementation::Gpu(gpu) => gpu::reciprocal_deviation(gpu, variance, epsilon, rstd),
    }
}

/// `y = γ·(x − mean)·rstd + β`.
pub fn normalize(x: &Tensor, mean: &Tensor, rstd: &Tensor, gamma: &Tensor, beta: &Tensor, y: TensorMut) {
    assert_eq!(x.shape(), y.shape(), "batch norm");
    check_channels(x.shape(), [mean, rstd, gamma, beta].map(Tensor::shape));
    match x.implementation() {
        Implementation::Cpu => cpu::normalize(x.data(), mean.data(), rstd.data(), gamma.data(), beta.data(), y.data()),
        Implementation::Reference => {
            reference::normalize::<f64>(x.data(), mean.data(), rstd.data(), gamma.data(), beta.data(), y.data())
        }
        Implementation::Gpu(gpu) => gpu::normalize(gpu, x, mean, rstd, gamma, beta, y),
    }
}

/// `dβ = Σ dy` and `dγ = Σ dy·x̂`.
pub fn parameter_gradients(x: &Tensor, dy: &Tensor, mean: &Tensor, rstd: &Tensor, dgamma: TensorMut, dbeta: TensorMut) {
    assert_eq!(x.shape(), dy.shape(), "batch norm's gradient");
    check_channels(x.shape(), [mean.shape(), rstd.shape(), dgamma.shape(), dbeta.shape()]);
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
        Implementation::Gpu(gpu) => gpu::parameter_gradients(gpu, x, dy, mean, rstd, dgamma, dbeta),
    }
}

/// `dy` becomes dx. `dgamma` and `dbeta` are the sums over the batch; they are read only where `training`, that is where
/// the statistics came from `x`, so that the gradient flows through them.
#[allow(clippy::too_many_arguments)]
pub fn input_gradient(
    dy: TensorMut,
    x: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    gamma: &Tensor,
    dgamma: &Tensor,
    dbeta: &Tensor,
    training: bool,
) {
    assert_eq!(x.shape(), dy.shape(), "batch norm's gradient");
    check_channels(x.shape(), [mean, rstd, gamma, dgamma, dbeta].map(Tensor::shape));
    match x.implementation() {
        Implementation::Cpu => cpu::input_gradient_assign(
            dy.data(),
            x.data(),
            mean.data(),
            rstd.data(),
            gamma.data(),
            dgamma.data(),
            dbeta.data(),
            training,
        ),
        Implementation::Reference => reference::input_gradient_assign::<f64>(
            dy.data(),
            x.data(),
            mean.data(),
            rstd.data(),
            gamma.data(),
            dgamma.data(),
            dbeta.data(),
            training,
        ),
        Implementation::Gpu(gpu) => {
            gpu::input_gradient(gpu, dy, x, mean, rstd, gamma, dgamma, dbeta, training);
        }
    }
}

/// Moves running statistics towards a batch's: `running += momentum·(batch − running)`, with the unbiased variance.
///
/// `gate` is where a `u32` lies on the GPU: if it is 0 when this runs, nothing changes. The CPU takes none.
pub fn update_running(
    running_mean: TensorMut,
    running_variance: TensorMut,
    batch: &Statistics,
    momentum: f64,
    gate: Option<Address>,
) {
    assert_eq!(running_mean.shape(), batch.mean.shape(), "running means");
    assert_eq!(running_variance.shape(), batch.variance.shape(), "running variances");
    let unbiased = batch.count as f64 / (batch.count as f64 - 1.0).max(1.0);
    let implementation = batch.mean.implementation();
    assert!(gate.is_none() || matches!(implementation, Implementation::Gpu(_)), "a gate lies on a GPU");
    match implementation {
        Implementation::Cpu => {
            reference::move_running::<f32>(running_mean.data(), batch.mean.data(), 1.0, momentum);
            reference::move_running::<f32>(running_variance.data(), batch.variance.data(), unbiased, momentum);
        }
        Implementation::Reference => {
            reference::move_running::<f64>(running_mean.data(), batch.mean.data(), 1.0, momentum);
            reference::move_running::<f64>(running_variance.data(), batch.variance.data(), unbiased, momentum);
        }
        Implementation::Gpu(gpu) => {
            gpu::update_running(gpu, [running_mean, running_variance], batch, momentum, unbiased, gate);
        }
    }
}

/// Everything per channel of `x` is C long.
fn check_channels<const N: usize>(x: Shape, per_channel: [Shape; N]) {
    for shape in per_channel {
        assert_eq!(shape.dims(), [x.channels()], "batch norm of {x}");
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

impl Tape {
    /// Normalises by the statistics of the batch, which it also returns.
    pub fn batch_norm_training(&mut self, x: &Var, gamma: &Var, beta: &Var, epsilon: f64) -> (Var, Statistics) {
        let mut batch = Statistics::uninit(x.value());
        statistics(x.value(), batch.mean.view_mut(), batch.variance.view_mut());
        let y = self.batch_norm(x, gamma, beta, &batch.mean, &batch.variance, epsilon, true);
        (y, batch)
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
        let (dtype, device) = (statistics_dtype(x.value()), x.value().device());
        let mut rstd = Tensor::uninit(variance.shape(), dtype, device);
        reciprocal_deviation(variance, epsilon, rstd.view_mut());
        let mut y = Tensor::uninit(x.shape(), x.value().dtype(), device);
        normalize(x.value(), mean, &rstd, gamma.value(), beta.value(), y.view_mut());
        let ids = [x.id(), gamma.id(), beta.id()];
        self.record(y, &ids, || {
            let saved =
                Saved { x: x.value().clone(), gamma: gamma.value().clone(), mean: mean.clone(), rstd, training };
            Box::new(move |mut dy, gradients| {
                let Saved { x, gamma, mean, rstd, training } = saved;
                let mut dgamma = Tensor::uninit(gamma.shape(), dtype, device);
                let mut dbeta = Tensor::uninit(gamma.shape(), dtype, device);
                // dx needs the two sums only where the statistics are the batch's own.
                if training || ids[1].is_some() || ids[2].is_some() {
                    parameter_gradients(&x, &dy, &mean, &rstd, dgamma.view_mut(), dbeta.view_mut());
                }
                if let Some(id) = ids[0] {
                    dy.make_unique();
                    input_gradient(dy.view_mut(), &x, &mean, &rstd, &gamma, &dgamma, &dbeta, training);
                    gradients.give(id, dy);
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
