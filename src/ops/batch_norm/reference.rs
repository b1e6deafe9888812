//! The definition of batch normalisation. `x`, `out`, `residual`, `dy`, `dz`, `dx` are pixels × C; sums of tiles are
//! tiles × 2 × C, `means` 2 × C; everything else has C elements.

use crate::tensor::Element;

/// The vectors of one number per channel.
#[derive(Clone, Copy)]
pub struct PerChannel<'a, T> {
    pub mean: &'a [T],
    pub rstd: &'a [T],
    pub gamma: &'a [T],
    pub beta: &'a [T],
}

impl<T: Element> PerChannel<'_, T> {
    fn normalized(&self, c: usize, x: T) -> T {
        self.gamma[c] * (x - self.mean[c]) * self.rstd[c] + self.beta[c]
    }
}

/// Where the statistics of a batch go, as in the contract.
pub struct Moments<'a, T> {
    pub mean: &'a mut [T],
    pub rstd: &'a mut [T],
    pub running: Option<[&'a mut [T]; 2]>,
}

impl<T: Element> Moments<'_, T> {
    /// `squares` is the sum of squared distances from the mean of `count` numbers.
    pub fn set(&mut self, c: usize, mean: f64, squares: f64, count: f64, epsilon: f64) {
        self.mean[c] = T::from_f64(mean);
        self.rstd[c] = T::from_f64(1.0 / (squares / count + epsilon).sqrt());
        if let Some([mean_again, variance]) = &mut self.running {
            mean_again[c] = T::from_f64(mean);
            variance[c] = T::from_f64(squares / (count - 1.0).max(1.0));
        }
    }
}

pub fn statistics<T: Element>(x: &[T], epsilon: f64, mut to: Moments<T>) {
    let channels = to.mean.len();
    let count = (x.len() / channels) as f64;
    for c in 0..channels {
        let values = || x.iter().skip(c).step_by(channels).map(|v| v.to_f64());
        let mean = values().sum::<f64>() / count;
        let squares = values().map(|v| (v - mean) * (v - mean)).sum();
        to.set(c, mean, squares, count, epsilon);
    }
}

/// Every tile has `span` pixels, the last one what is left of `pixels`.
pub fn statistics_of_tiles<T: Element>(sums: &[T], span: usize, pixels: usize, epsilon: f64, mut to: Moments<T>) {
    let channels = to.mean.len();
    for c in 0..channels {
        let tiles = || {
            let of_tile = |(i, tile): (usize, &[T])| {
                let count = (pixels - i * span).min(span) as f64;
                (count, tile[c].to_f64(), tile[channels + c].to_f64())
            };
            sums.chunks_exact(2 * channels).enumerate().map(of_tile)
        };
        let mean = tiles().map(|(count, mean, _)| count * mean).sum::<f64>() / pixels as f64;
        let apart = |(count, of_tile, squares): (f64, f64, f64)| squares + count * (of_tile - mean).powi(2);
        to.set(c, mean, tiles().map(apart).sum(), pixels as f64, epsilon);
    }
}

pub fn reciprocal_deviation<T: Element>(variance: &[T], epsilon: f64, rstd: &mut [T]) {
    for (rstd, &variance) in rstd.iter_mut().zip(variance) {
        *rstd = T::from_f64(1.0) / (variance + T::from_f64(epsilon)).sqrt();
    }
}

/// What is added to a normalisation, and what it is normalised by itself first, if it is.
#[derive(Clone, Copy)]
pub struct Residual<'a, T> {
    pub numbers: &'a [T],
    pub by: Option<PerChannel<'a, T>>,
}

pub fn normalize<T: Element>(x: &[T], by: PerChannel<T>, residual: Option<Residual<T>>, relu: bool, out: &mut [T]) {
    let (channels, zero) = (by.mean.len(), T::default());
    for (i, (out, &x)) in out.iter_mut().zip(x).enumerate() {
        *out = by.normalized(i % channels, x);
        if let Some(Residual { numbers, by }) = residual {
            *out += by.map_or(numbers[i], |by| by.normalized(i % channels, numbers[i]));
        }
        // Not `max`, which would turn NaN into 0.
        if relu && *out <= zero {
            *out = zero;
        }
    }
}

/// `dz`: `dy` where x, normalised, is above zero.
pub fn cut_by_input<T: Element>(x: &[T], dy: &mut [T], by: PerChannel<T>) {
    let (channels, zero) = (by.mean.len(), T::default());
    for (i, (dy, &x)) in dy.iter_mut().zip(x).enumerate() {
        if by.normalized(i % channels, x) <= zero {
            *dy = zero;
        }
    }
}

/// `Σ dz` and `Σ dz·(x − μ)`.
pub fn gradient_sums<T: Element>(x: &[T], dz: &[T], mean: &[T]) -> Vec<T> {
    let channels = mean.len();
    let mut sums = vec![T::default(); 2 * channels];
    for (i, (&x, &dz)) in x.iter().zip(dz).enumerate() {
        let c = i % channels;
        sums[c] += dz;
        sums[channels + c] += dz * (x - mean[c]);
    }
    sums
}

/// Where the gradients of γ and β go, as in the contract.
pub struct ParameterGradients<'a, T> {
    pub dgamma: Option<&'a mut [T]>,
    pub dbeta: Option<&'a mut [T]>,
    pub means: Option<&'a mut [T]>,
}

/// From the sums of tiles, which are added in their order in `f64`.
pub fn finish_gradients<T: Element>(sums: &[T], pixels: usize, rstd: &[T], mut to: ParameterGradients<T>) {
    let (channels, count) = (rstd.len(), pixels as f64);
    for c in 0..channels {
        let total = |c: usize| sums.chunks_exact(2 * channels).map(|tile| tile[c].to_f64()).sum::<f64>();
        let (beta, rstd) = (total(c), rstd[c].to_f64());
        let gamma = rstd * total(channels + c);
        if let Some(dgamma) = &mut to.dgamma {
            dgamma[c] = T::from_f64(gamma);
        }
        if let Some(dbeta) = &mut to.dbeta {
            dbeta[c] = T::from_f64(beta);
        }
        if let Some(means) = &mut to.means {
            means[c] = T::from_f64(beta / count);
            means[channels + c] = T::from_f64(rstd * gamma / count);
        }
    }
}

/// `dz` becomes `dx`.
pub fn input_gradient_assign<T: Element>(dz: &mut [T], x: &[T], by: PerChannel<T>, means: Option<&[T]>) {
    let channels = by.mean.len();
    for (i, (dz, &x)) in dz.iter_mut().zip(x).enumerate() {
        let c = i % channels;
        if let Some(means) = means {
            *dz = *dz - means[c] - (x - by.mean[c]) * means[channels + c];
        }
        *dz = by.gamma[c] * by.rstd[c] * *dz;
    }
}

/// `running += momentum·(of_batch − running)`, in `f64` whatever the statistics are stored as.
pub fn move_running<T: Element>(running: &mut [T], of_batch: &[T], momentum: f64) {
    for (running, of_batch) in running.iter_mut().zip(of_batch) {
        *running = T::from_f64((1.0 - momentum) * running.to_f64() + momentum * of_batch.to_f64());
    }
}
