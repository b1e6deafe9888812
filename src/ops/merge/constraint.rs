//! How the merge weights α come from the numbers that are learned.
//!
//! | constraint | learned, per α | α |
//! |---|---|---|
//! | affine | w, one for each source but the anchor | `α_anchor = 1 − Σ w`, the others w |
//! | clamp | the same, kept in [0, 1] after every update | the same |
//! | simplex | l, one for each source | `softmax(l)` over the sources |
//! | free | one for each source | what is learned |
//!
//! Behind the α that are learned come those of batch norms that follow a convolution with one α per kernel: a channel of
//! such a batch norm takes the [`Mean`] of its filter's α.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::gpu;
use crate::tape::{Tape, Var};
use crate::tensor::{Element, Implementation, Tensor, TensorMut};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Constraint {
    Affine,
    Clamp,
    Simplex,
    Free,
}

/// `rows` further α, the i-th the mean of the `period` α from `first + i·period` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mean {
    pub first: usize,
    pub rows: usize,
    pub period: usize,
}

/// How many α there are and what they are made of.
#[derive(Clone, Debug)]
pub struct Parametrization {
    pub constraint: Constraint,
    pub sources: usize,
    pub anchor: usize,
    /// Learned numbers per learned row.
    pub learned: usize,
    pub means: Vec<Mean>,
    pub(super) on_gpus: Arc<gpu::Means>,
}

impl Parametrization {
    pub fn new(constraint: Constraint, sources: usize, anchor: usize, learned: usize, means: Vec<Mean>) -> Self {
        Parametrization { constraint, sources, anchor, learned, means, on_gpus: Arc::default() }
    }

    /// Rows of the tensor that is learned.
    pub fn rows(&self) -> usize {
        match self.constraint {
            Constraint::Affine | Constraint::Clamp => self.sources - 1,
            Constraint::Simplex | Constraint::Free => self.sources,
        }
    }

    /// α per source.
    pub fn alphas(&self) -> usize {
        self.learned + self.means.iter().map(|mean| mean.rows).sum::<usize>()
    }

    /// The sources in the order of the learned rows.
    pub fn row_sources(&self) -> Vec<usize> {
        let all = 0..self.sources;
        if self.rows() == self.sources { all.collect() } else { all.filter(|&m| m != self.anchor).collect() }
    }

    /// α, sources × alphas, from what is learned, rows × learned.
    pub fn alpha(&self, learned: &Tensor) -> Tensor {
        let mut alpha = Tensor::uninit([self.sources, self.alphas()], learned.dtype(), learned.device());
        self.forward_into(learned, alpha.view_mut());
        alpha
    }

    /// Overwrites `alpha`, sources × alphas.
    pub fn forward_into(&self, learned: &Tensor, alpha: TensorMut) {
        assert_eq!(learned.dims(), [self.rows(), self.learned], "learned merge weights");
        assert_eq!(alpha.shape().dims(), [self.sources, self.alphas()], "α");
        match learned.implementation() {
            Implementation::Cpu => alpha.data().copy_from_slice(&self.forward::<f32>(learned.data())),
            Implementation::Reference => alpha.data().copy_from_slice(&self.forward::<f64>(learned.data())),
            Implementation::Gpu(gpu) => gpu::constrain(gpu, self, learned, alpha),
        }
    }

    /// Overwrites `dlearned`, the gradient of what is learned, from that of α.
    pub fn backward_into(&self, alpha: &Tensor, dalpha: &Tensor, dlearned: TensorMut) {
        assert_eq!(alpha.dims(), [self.sources, self.alphas()], "α");
        assert_eq!(alpha.shape(), dalpha.shape(), "the gradient of α");
        assert_eq!(dlearned.shape().dims(), [self.rows(), self.learned], "the gradient of learned merge weights");
        match alpha.implementation() {
            Implementation::Cpu => {
                dlearned.data().copy_from_slice(&self.backward::<f32>(alpha.data(), dalpha.data()));
            }
            Implementation::Reference => {
                dlearned.data().copy_from_slice(&self.backward::<f64>(alpha.data(), dalpha.data()));
            }
            Implementation::Gpu(gpu) => gpu::constrain_backward(gpu, self, alpha, dalpha, dlearned),
        }
    }

    fn forward<T: Element>(&self, learned: &[T]) -> Vec<T> {
        let (n, stride) = (self.learned, self.alphas());
        let mut alpha = vec![T::default(); self.sources * stride];
        for (row, m) in self.row_sources().into_iter().enumerate() {
            alpha[m * stride..][..n].copy_from_slice(&learned[row * n..][..n]);
        }
        for j in 0..n {
            match self.constraint {
                Constraint::Affine | Constraint::Clamp => {
                    let others: T =
                        (0..self.sources).filter(|&m| m != self.anchor).map(|m| alpha[m * stride + j]).sum();
                    alpha[self.anchor * stride + j] = T::from_f64(1.0) - others;
                }
                Constraint::Simplex => {
                    let logits: Vec<T> = (0..self.sources).map(|m| alpha[m * stride + j]).collect();
                    let largest = logits.iter().copied().fold(logits[0], |a, b| if b > a { b } else { a });
                    let sum: T = logits.iter().map(|&l| (l - largest).exp()).sum();
                    for (m, &logit) in logits.iter().enumerate() {
                        alpha[m * stride + j] = (logit - largest).exp() / sum;
                    }
                }
                Constraint::Free => {}
            }
        }
        for alpha in alpha.chunks_mut(stride.max(1)) {
            let (learned, means) = alpha.split_at_mut(n);
            let mut means = means.iter_mut();
            for mean in &self.means {
                let rows = learned[mean.first..][..mean.rows * mean.period].chunks(mean.period);
                for (row, out) in rows.zip(&mut means) {
                    *out = row.iter().copied().sum::<T>() / T::from_f64(mean.period as f64);
                }
            }
        }
        alpha
    }

    /// The gradient of what is learned, from that of α.
    fn backward<T: Element>(&self, alpha: &[T], dalpha: &[T]) -> Vec<T> {
        let (n, stride) = (self.learned, self.alphas());
        let mut gathered = vec![T::default(); self.sources * n];
        for (gathered, dalpha) in gathered.chunks_mut(n.max(1)).zip(dalpha.chunks(stride.max(1))) {
            gathered.copy_from_slice(&dalpha[..n]);
            let mut of_means = dalpha[n..].iter();
            for mean in &self.means {
                let rows = gathered[mean.first..][..mean.rows * mean.period].chunks_mut(mean.period);
                for (row, &gradient) in rows.zip(&mut of_means) {
                    row.iter_mut().for_each(|g| *g += gradient / T::from_f64(mean.period as f64));
                }
            }
        }
        let mut gradient = vec![T::default(); self.rows() * n];
        for (row, m) in self.row_sources().into_iter().enumerate() {
            for j in 0..n {
                gradient[row * n + j] = match self.constraint {
                    Constraint::Affine | Constraint::Clamp => gathered[m * n + j] - gathered[self.anchor * n + j],
                    Constraint::Simplex => {
                        let mean: T = (0..self.sources).map(|i| alpha[i * stride + j] * gathered[i * n + j]).sum();
                        alpha[m * stride + j] * (gathered[m * n + j] - mean)
                    }
                    Constraint::Free => gathered[m * n + j],
                };
            }
        }
        gradient
    }
}

impl Tape {
    pub fn constrain(&mut self, parametrization: &Arc<Parametrization>, learned: &Var) -> Var {
        let alpha = parametrization.alpha(learned.value());
        let id = learned.id();
        let kept = alpha.clone();
        self.record(alpha, &[id], || {
            let parametrization = parametrization.clone();
            Box::new(move |dalpha, gradients| {
                let id = id.expect("recorded because its input wants a gradient");
                gradients.contribute(id, |dlearned| parametrization.backward_into(&kept, &dalpha, dlearned));
            })
        })
    }
}
