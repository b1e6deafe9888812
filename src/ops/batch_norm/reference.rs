//! The definition of batch normalisation. `x`, `y`, `dx`, `dy` are pixels × C; everything else has C elements.

use crate::tensor::Element;

pub fn statistics<T: Element>(x: &[T], mean: &mut [T], variance: &mut [T]) {
    let channels = mean.len();
    let count = T::from_f64((x.len() / channels) as f64);
    for c in 0..channels {
        let values = || x.iter().skip(c).step_by(channels).copied();
        mean[c] = values().sum::<T>() / count;
        variance[c] = values().map(|v| (v - mean[c]) * (v - mean[c])).sum::<T>() / count;
    }
}

pub fn reciprocal_deviation<T: Element>(variance: &[T], epsilon: f64, rstd: &mut [T]) {
    for (rstd, &variance) in rstd.iter_mut().zip(variance) {
        *rstd = T::from_f64(1.0) / (variance + T::from_f64(epsilon)).sqrt();
    }
}

pub fn normalize<T: Element>(x: &[T], mean: &[T], rstd: &[T], gamma: &[T], beta: &[T], y: &mut [T]) {
    for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
        let c = i % mean.len();
        *y = gamma[c] * (x - mean[c]) * rstd[c] + beta[c];
    }
}

pub fn parameter_gradients<T: Element>(x: &[T], dy: &[T], mean: &[T], rstd: &[T], dgamma: &mut [T], dbeta: &mut [T]) {
    dgamma.fill(T::default());
    dbeta.fill(T::default());
    for (i, (&x, &dy)) in x.iter().zip(dy).enumerate() {
        let c = i % mean.len();
        dgamma[c] += dy * (x - mean[c]) * rstd[c];
        dbeta[c] += dy;
    }
}

/// `dy` becomes `dx`.
#[allow(clippy::too_many_arguments)]
pub fn input_gradient_assign<T: Element>(
    dy: &mut [T],
    x: &[T],
    mean: &[T],
    rstd: &[T],
    gamma: &[T],
    dgamma: &[T],
    dbeta: &[T],
    training: bool,
) {
    let count = T::from_f64((x.len() / mean.len()) as f64);
    for (i, (dy, &x)) in dy.iter_mut().zip(x).enumerate() {
        let c = i % mean.len();
        let scale = gamma[c] * rstd[c];
        *dy = if training {
            scale * (*dy - dbeta[c] / count - (x - mean[c]) * rstd[c] * dgamma[c] / count)
        } else {
            scale * *dy
        };
    }
}

/// `running += momentum·(factor·of_batch − running)`, in `f64` whatever the statistics are stored as.
pub fn move_running<T: Element>(running: &mut [T], of_batch: &[T], factor: f64, momentum: f64) {
    for (running, of_batch) in running.iter_mut().zip(of_batch) {
        *running = T::from_f64((1.0 - momentum) * running.to_f64() + momentum * factor * of_batch.to_f64());
    }
}
