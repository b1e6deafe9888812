//! Batch normalisation per channel (Ioffe and Szegedy, 2015), with what follows it in a network: the sum with a residual,
//! and a ReLU. All of it is bound by memory, so that one pass over it is worth more than anything done within.
//!
//! ```text
//! training    μ, σ² = mean and biased variance over N·H·W      rstd = 1/√(σ² + ε)
//! inference   the running statistics in place of μ and σ²
//! both        out = relu?(γ·x̂ + β [+ residual])                x̂ = (x − μ)·rstd
//! backward    dz = dy where the ReLU let `out` pass, else 0    dβ = Σ dz      dγ = Σ dz·x̂      residual's gradient = dz
//!             dx = γ·rstd·(dz − dβ/n − x̂·dγ/n)  in training    dx = γ·rstd·dz  in inference
//! ```
//!
//! Where the ReLU let a number pass is read off `out` where there is a residual. Without one it is computed again from x,
//! so that backward reads no third tensor; [`Cut`] says which.
//!
//! x may be a concatenation that nobody wrote: [`Parts`], each where the op that made it put it. Every channel is normalised by
//! itself, so it does not matter here in which tensor it lies.
//!
//! Statistics, and the two sums of backward, come from x itself or from sums over tiles of its pixels, which a convolution
//! can leave behind. The op on the tape is pure: whoever keeps running statistics gets the batch's and updates them
//! ([`update_running`]). As in PyTorch those take the *unbiased* variance, `σ²·n/(n − 1)`.

pub mod cpu;
mod gpu;
mod parts;
pub mod reference;

use std::cell::RefCell;
use std::rc::Rc;

use crate::gpu::Address;
use crate::ops::pointwise;
use crate::tape::{Gradients, Id, Tape, Var};
use crate::tensor::{DType, Device, Element, Implementation, Integers, Shape, Tensor, TensorMut};

pub use gpu::Places;
pub use parts::{Parts, PartsMut};

/// The vectors of one number per channel: the statistics, and the parameters.
#[derive(Clone, Copy)]
pub struct PerChannel<'a> {
    pub mean: &'a Tensor,
    pub rstd: &'a Tensor,
    pub gamma: &'a Tensor,
    pub beta: &'a Tensor,
}

impl<'a> PerChannel<'a> {
    fn all(self) -> [&'a Tensor; 4] {
        [self.mean, self.rstd, self.gamma, self.beta]
    }

    pub(super) fn data<T: Element>(self) -> reference::PerChannel<'a, T> {
        let [mean, rstd, gamma, beta] = self.all().map(Tensor::data);
        reference::PerChannel { mean, rstd, gamma, beta }
    }
}

/// Where the statistics of a batch go, C numbers each.
pub struct Moments<'a> {
    pub mean: TensorMut<'a>,
    pub rstd: TensorMut<'a>,
    /// For running statistics: the mean once more, and the unbiased variance.
    pub running: Option<[TensorMut<'a>; 2]>,
}

impl<'a> Moments<'a> {
    fn data<T: Element>(self) -> reference::Moments<'a, T> {
        let running = self.running.map(|running| running.map(TensorMut::data));
        reference::Moments { mean: self.mean.data(), rstd: self.rstd.data(), running }
    }

    fn check(&self, channels: usize) {
        let running = self.running.iter().flatten();
        for shape in [&self.mean, &self.rstd].into_iter().chain(running).map(TensorMut::shape) {
            assert_eq!(shape.dims(), [channels], "the statistics of a batch");
        }
    }
}

/// The mean of each tile of the pixels, and the sum of squared distances from it.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// Tiles × 2 × C.
    pub sums: Tensor,
    /// Pixels of a tile; the last one may have fewer.
    pub span: usize,
    /// Pixels of all tiles.
    pub pixels: usize,
}

/// A gradient on its way back through the ReLU behind a normalisation.
pub enum Cut<'a> {
    /// There is no ReLU, or this has passed it.
    Whole(&'a Tensor),
    /// Counts where x, normalised, is above zero.
    ByInput(&'a Tensor),
    /// The gradient, which becomes `dz`, and the output: it counts where that is above zero.
    ByOutput(TensorMut<'a>, &'a Tensor),
}

/// Where the sums of backward go; `None` where nobody wants them.
pub struct ParameterGradients<'a> {
    pub dgamma: Option<TensorMut<'a>>,
    pub dbeta: Option<TensorMut<'a>>,
    /// The means that [`input_gradient`] takes off in training, 2 × C: `dβ/n` and `rstd·dγ/n`.
    pub means: Option<TensorMut<'a>>,
}

impl<'a> ParameterGradients<'a> {
    fn data<T: Element>(self) -> reference::ParameterGradients<'a, T> {
        let [dgamma, dbeta, means] = [self.dgamma, self.dbeta, self.means].map(|out| out.map(TensorMut::data));
        reference::ParameterGradients { dgamma, dbeta, means }
    }

    fn check(&self, channels: usize) {
        for shape in self.dgamma.iter().chain(&self.dbeta).map(TensorMut::shape) {
            assert_eq!(shape.dims(), [channels], "the gradients of γ and β");
        }
        let means = self.means.as_ref().map(TensorMut::shape);
        assert!(means.is_none_or(|shape| shape.dims() == [2, channels]), "means of a gradient: {means:?}");
    }
}

/// The type that the statistics of `x`, and everything else that there is one of per channel, are stored as.
fn statistics_dtype(x: Parts) -> DType {
    match x.device() {
        Device::Cpu => x.dtype(),
        Device::Gpu(_) => DType::F32,
    }
}

/// Statistics of the batch `x`, which has at least one pixel.
pub fn statistics<'a>(x: impl Into<Parts<'a>>, epsilon: f64, to: Moments) {
    let x = x.into();
    to.check(x.shape().channels());
    match x.implementation() {
        Implementation::Cpu => cpu::statistics(x, epsilon, to.data()),
        Implementation::Reference => reference::statistics::<f64>(&x.gather(), epsilon, to.data()),
        Implementation::Gpu(gpu) => gpu::statistics(gpu, x, epsilon, to),
    }
}

/// The same from what is known of its tiles.
pub fn statistics_of_tiles(tiles: &Tiles, epsilon: f64, to: Moments) {
    let Tiles { ref sums, span, pixels } = *tiles;
    check_tiles(sums.shape(), pixels.div_ceil(span));
    to.check(sums.shape().channels());
    match sums.implementation() {
        Implementation::Cpu => reference::statistics_of_tiles::<f32>(sums.data(), span, pixels, epsilon, to.data()),
        Implementation::Reference => {
            reference::statistics_of_tiles::<f64>(sums.data(), span, pixels, epsilon, to.data());
        }
        Implementation::Gpu(gpu) => gpu::statistics_of_tiles(gpu, tiles, epsilon, to),
    }
}

/// `rstd = 1/√(variance + ε)`, for the variances of one layer or of many.
pub fn reciprocal_deviation(variance: &Tensor, epsilon: f64, rstd: TensorMut) {
    assert_eq!(variance.shape(), rstd.shape(), "reciprocal deviation");
    match variance.implementation() {
        Implementation::Cpu => reference::reciprocal_deviation::<f32>(variance.data(), epsilon, rstd.data()),
        Implementation::Reference => reference::reciprocal_deviation::<f64>(variance.data(), epsilon, rstd.data()),
        Implementation::Gpu(gpu) => gpu::reciprocal_deviation(gpu, variance, epsilon, rstd),
    }
}

/// `out = relu?(γ·(x − mean)·rstd + β [+ residual])`.
pub fn normalize<'a>(x: impl Into<Parts<'a>>, by: PerChannel, residual: Option<&Tensor>, relu: bool, out: TensorMut) {
    let residual = residual.map(Residual::Of);
    normalize_then(x.into(), by, Finish { residual, relu, leaves_signs: false }, out);
}

/// Which numbers of an activation are not zero, a bit of each: byte i has those of its i-th 16 bytes, the first number in the lowest bit. On
/// a GPU, as the device's kernels alone read them.
pub type Signs = Integers<u8>;

/// What is added to a normalisation.
#[derive(Clone, Copy)]
pub enum Residual<'a> {
    Of(&'a Tensor),
    /// The output of another batch norm, which nobody wrote: what that one reads, and what it normalises it by.
    Normalized(&'a Tensor, PerChannel<'a>),
}

impl<'a> Residual<'a> {
    fn tensor(self) -> &'a Tensor {
        match self {
            Residual::Of(tensor) | Residual::Normalized(tensor, _) => tensor,
        }
    }

    fn by(self) -> Option<PerChannel<'a>> {
        match self {
            Residual::Of(_) => None,
            Residual::Normalized(_, by) => Some(by),
        }
    }

    pub(super) fn data<T: Element>(self) -> reference::Residual<'a, T> {
        reference::Residual { numbers: self.tensor().data(), by: self.by().map(PerChannel::data) }
    }
}

/// What follows a normalisation in the same pass.
#[derive(Clone, Copy, Default)]
pub struct Finish<'a> {
    pub residual: Option<Residual<'a>>,
    pub relu: bool,
    /// Whether the signs of `out` are wanted, where they cost no pass: on a GPU, of a sum with a residual whose channels are taken 16 bytes at
    /// a time.
    pub leaves_signs: bool,
}

/// [`normalize`], and what may follow. Returns the signs of `out` if they were asked for and are there.
pub fn normalize_then(x: Parts, by: PerChannel, then: Finish, out: TensorMut) -> Option<Signs> {
    assert_eq!(x.shape(), out.shape(), "batch norm");
    let of_residual = then.residual.map(|residual| residual.tensor().shape());
    assert!(of_residual.is_none_or(|shape| shape == x.shape()), "the residual beside {}", x.shape());
    for by in [Some(by), then.residual.and_then(Residual::by)].into_iter().flatten() {
        check_channels(x.shape(), by.all());
    }
    let Finish { residual, relu, .. } = then;
    match x.implementation() {
        Implementation::Cpu => cpu::normalize(x, by.data(), residual.map(Residual::data), relu, out.data()),
        Implementation::Reference => {
            reference::normalize::<f64>(&x.gather(), by.data(), residual.map(Residual::data), relu, out.data());
        }
        Implementation::Gpu(gpu) => return gpu::normalize(gpu, x, by, then, out),
    }
    None
}

/// `dβ = Σ dz` and `dγ = Σ dz·x̂`.
pub fn gradients<'a>(x: impl Into<Parts<'a>>, dy: Cut, by: PerChannel, to: ParameterGradients) {
    let x = x.into();
    let matching = match &dy {
        Cut::Whole(dy) | Cut::ByInput(dy) => dy.shape() == x.shape(),
        Cut::ByOutput(dy, out) => [dy.shape(), out.shape()] == [x.shape(); 2],
    };
    assert!(matching, "batch norm's gradient");
    check_channels(x.shape(), by.all());
    to.check(x.shape().channels());
    match (x.implementation(), dy) {
        (Implementation::Cpu, Cut::Whole(dy)) => cpu::gradients(x, dy.data(), by.data(), to.data()),
        (Implementation::Cpu, Cut::ByInput(dy)) => {
            cpu::gradients_cut_by_input(x, dy.data(), by.data(), to.data());
        }
        (Implementation::Cpu, Cut::ByOutput(dy, out)) => {
            cpu::gradients_cut_by_output(x, dy.data(), out.data(), by.data(), to.data());
        }
        (Implementation::Reference, dy) => reference_gradients(&x.gather(), dy, by.data(), to.data()),
        (Implementation::Gpu(gpu), dy) => gpu::gradients(gpu, x, dy, by, to),
    }
}

fn reference_gradients(x: &[f64], dy: Cut, by: reference::PerChannel<f64>, to: reference::ParameterGradients<f64>) {
    let mut cut = Vec::new();
    let dz = match dy {
        Cut::Whole(dy) => dy.data(),
        Cut::ByInput(dy) => {
            cut.extend_from_slice(dy.data());
            reference::cut_by_input(x, &mut cut, by);
            &cut
        }
        Cut::ByOutput(dy, out) => {
            let dz = dy.data();
            pointwise::reference::relu_backward_assign(dz, out.data());
            dz
        }
    };
    let sums = reference::gradient_sums(x, dz, by.mean);
    reference::finish_gradients(&sums, x.len() / by.mean.len(), by.rstd, to);
}

/// The same from `Σ dz` and `Σ dz·(x − μ)` of tiles of `pixels`: tiles × 2 × C.
pub fn gradients_of_tiles(sums: &Tensor, pixels: usize, rstd: &Tensor, to: ParameterGradients) {
    check_tiles(sums.shape(), sums.shape().rows());
    check_channels(sums.shape(), [rstd]);
    to.check(rstd.shape().len());
    match sums.implementation() {
        Implementation::Cpu => reference::finish_gradients::<f32>(sums.data(), pixels, rstd.data(), to.data()),
        Implementation::Reference => reference::finish_gradients::<f64>(sums.data(), pixels, rstd.data(), to.data()),
        Implementation::Gpu(gpu) => gpu::gradients_of_tiles(gpu, sums, pixels, rstd, to),
    }
}

/// Overwrites `dx`, or adds to it, from `dy` or, where that is `None`, from what `dx` holds, which is one tensor then. With a
/// `relu`, that counts where x, normalised, is above zero. `means` is what [`gradients`] made where the statistics came from
/// `x`, so that the gradient flows through them.
pub fn input_gradient<'a>(
    dy: Option<&Tensor>,
    dx: impl Into<PartsMut<'a>>,
    x: impl Into<Parts<'a>>,
    by: PerChannel,
    relu: bool,
    means: Option<&Tensor>,
) {
    let (dx, x) = (dx.into(), x.into());
    assert!(dy.is_some() || !dx.is_added && dx.tensors.len() == 1, "a gradient over another one");
    let matching = dx.shapes() == x.shapes() && dy.is_none_or(|dy| dy.shape() == x.shape());
    assert!(matching, "batch norm's gradient");
    check_channels(x.shape(), by.all());
    let [channels, of_means] = [x.shape().channels(), means.map_or(0, |means| means.shape().len())];
    assert!(means.is_none() || of_means == 2 * channels, "means of a gradient: {of_means}");
    match x.implementation() {
        Implementation::Cpu => {
            let (dy, means) = (dy.map(Tensor::data), means.map(Tensor::data));
            cpu::input_gradient(dy, dx, x, by.data(), relu, means);
        }
        Implementation::Reference => {
            reference_input_gradient(dy, dx, x, by.data(), relu, means.map(Tensor::data));
        }
        Implementation::Gpu(gpu) => gpu::input_gradient(gpu, dy, dx, x, by, relu, means),
    }
}

fn reference_input_gradient(
    dy: Option<&Tensor>,
    mut dx: PartsMut,
    x: Parts,
    by: reference::PerChannel<f64>,
    relu: bool,
    means: Option<&[f64]>,
) {
    let mut dz = match dy {
        Some(dy) => dy.to_vec(),
        None => dx.tensors[0].reborrow().data().to_vec(),
    };
    let numbers = x.gather();
    if relu {
        reference::cut_by_input(&numbers, &mut dz, by);
    }
    reference::input_gradient_assign(&mut dz, &numbers, by, means);
    dx.scatter(&dz, x.shape().channels());
}

/// Moves running statistics, of one layer or of many, towards a batch's: `running += momentum·(of_batch − running)`.
///
/// `gate` is where a `u32` lies on the GPU: if it is 0 when this runs, nothing changes. The CPU takes none.
pub fn update_running(running: TensorMut, of_batch: &Tensor, momentum: f64, gate: Option<Address>) {
    assert_eq!(running.shape(), of_batch.shape(), "running statistics");
    let implementation = of_batch.implementation();
    assert!(gate.is_none() || matches!(implementation, Implementation::Gpu(_)), "a gate lies on a GPU");
    match implementation {
        Implementation::Cpu => reference::move_running::<f32>(running.data(), of_batch.data(), momentum),
        Implementation::Reference => reference::move_running::<f64>(running.data(), of_batch.data(), momentum),
        Implementation::Gpu(gpu) => gpu::update_running(gpu, running, of_batch, momentum, gate),
    }
}

/// Everything per channel of `x` is C long.
fn check_channels<const N: usize>(x: Shape, per_channel: [&Tensor; N]) {
    for tensor in per_channel {
        assert_eq!(tensor.dims(), [x.channels()], "batch norm of {x}");
    }
}

fn check_tiles(sums: Shape, tiles: usize) {
    assert!(matches!(*sums.dims(), [rows, 2, _] if rows == tiles && tiles > 0), "sums of {tiles} tiles: {sums}");
}

/// The operands of a batch norm that the convolution behind it has to know to do the first pass of that one's backward.
#[derive(Clone, Debug)]
pub struct Normalized {
    /// In its [`Parts`].
    pub x: Vec<Tensor>,
    pub mean: Tensor,
    pub rstd: Tensor,
    pub gamma: Tensor,
    pub beta: Tensor,
    pub passing: Passing,
}

/// What passes of a gradient between a convolution and the batch norm before it.
#[derive(Clone, Debug)]
pub enum Passing {
    /// All of it: there is no ReLU.
    All,
    /// What x, normalised, is above zero for.
    ByInput,
    /// What the output is above zero for, which a residual was added to.
    BySigns(Rc<Signs>),
}

/// Where a batch norm and the first convolution that reads it meet: backward, the convolution's dgrad comes last of what contributes to the
/// gradient, and may leave dz and its sums instead of dy.
#[derive(Debug, Default)]
pub struct Handoff {
    norm: RefCell<Option<Normalized>>,
    /// Tiles × 2 × C.
    sums: RefCell<Option<Tensor>>,
}

impl Handoff {
    /// Calls `dgrad` with the batch norm, if its first pass can be done from what there is, and keeps the sums that it returns if what it
    /// wrote is dz.
    pub fn pass_back(&self, dgrad: impl FnOnce(Option<&Normalized>) -> Option<Tensor>) {
        let norm = self.norm.take();
        *self.sums.borrow_mut() = dgrad(norm.as_ref());
    }
}

/// The statistics that a batch norm normalises by.
pub enum Source<'a> {
    /// The statistics of the batch, from x or its tiles, which also go where running ones are made of them.
    Batch { epsilon: f64, tiles: Option<Tiles>, running: Option<[TensorMut<'a>; 2]> },
    /// Statistics that do not depend on the batch: C numbers each.
    Given { mean: Tensor, rstd: Tensor },
}

/// The epilogue of the pass that normalises.
#[derive(Clone, Debug, Default)]
pub struct Then {
    pub residual: Option<Var>,
    /// What the residual is normalised by first, if it is what [`Tape::batch_norm_unwritten`] gave.
    pub of_residual: Option<Normalized>,
    pub relu: bool,
    /// Where it meets the first convolution that reads what it puts out.
    pub handoff: Option<Rc<Handoff>>,
}

/// The part of forward that backward needs.
struct Saved {
    /// Ids of the parts of x.
    x_ids: Vec<Option<Id>>,
    /// Ids of γ, β and the residual.
    ids: [Option<Id>; 3],
    /// In its [`Parts`].
    x: Vec<Tensor>,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
    relu: bool,
    /// Where there is a ReLU behind a residual.
    out: Option<Tensor>,
    /// Whether the statistics came from `x`, so that the gradient flows through them.
    training: bool,
    handoff: Option<Rc<Handoff>>,
}

impl Tape {
    pub fn batch_norm(&mut self, x: &Var, gamma: &Var, beta: &Var, source: Source, then: Then) -> Var {
        self.batch_norm_of_parts(std::slice::from_ref(x), gamma, beta, source, then)
    }

    /// [`Tape::batch_norm`] of the concatenation of `x`, as [`Parts`].
    pub fn batch_norm_of_parts(&mut self, x: &[Var], gamma: &Var, beta: &Var, source: Source, then: Then) -> Var {
        let x_ids: Vec<Option<Id>> = x.iter().map(Var::id).collect();
        let x: Vec<Tensor> = x.iter().map(|part| part.value().clone()).collect();
        let parts = Parts::from(&x[..]);
        let training = matches!(source, Source::Batch { .. });
        let [mean, rstd] = source.statistics(parts);
        let by = PerChannel { mean: &mean, rstd: &rstd, gamma: gamma.value(), beta: beta.value() };
        let mut out = self.uninit(parts.shape(), parts.dtype(), parts.device());
        // Where nothing is recorded, nobody asks for signs.
        let is_recorded = [gamma.id(), beta.id()].iter().chain(&x_ids).any(Option::is_some);
        let residual = then.residual.as_ref().map(|residual| match &then.of_residual {
            Some(norm) => Residual::Normalized(residual.value(), norm.by()),
            None => Residual::Of(residual.value()),
        });
        let leaves_signs = then.handoff.is_some() && then.relu && is_recorded;
        let signs = normalize_then(parts, by, Finish { residual, relu: then.relu, leaves_signs }, out.view_mut());
        let ids = [gamma.id(), beta.id(), then.residual.as_ref().and_then(Var::id)];
        let kept = (then.relu && then.residual.is_some()).then(|| out.clone());
        self.record(out, &[&x_ids[..], &ids].concat(), || {
            let [gamma, beta] = [gamma, beta].map(|var| var.value().clone());
            let Then { relu, handoff, residual, .. } = then;
            let passing = match (relu, residual) {
                (false, _) => Some(Passing::All),
                (true, None) => Some(Passing::ByInput),
                (true, Some(_)) => signs.map(|signs| Passing::BySigns(Rc::new(signs))),
            };
            if let (Some(handoff), Some(passing)) = (&handoff, passing) {
                let [mean, rstd, gamma, beta] = [&mean, &rstd, &gamma, &beta].map(Tensor::clone);
                let x = x.clone();
                *handoff.norm.borrow_mut() = Some(Normalized { x, mean, rstd, gamma, beta, passing });
            }
            let saved = Saved { x_ids, ids, x, gamma, beta, mean, rstd, relu, out: kept, training, handoff };
            Box::new(move |dy, gradients| saved.backward(dy, gradients))
        })
    }

    /// A batch norm that alone another one adds to its own output, as [`Then::of_residual`]: nothing is written, and what stands for its output
    /// here is x.
    pub fn batch_norm_unwritten(&mut self, x: &Var, gamma: &Var, beta: &Var, source: Source) -> (Var, Normalized) {
        let training = matches!(source, Source::Batch { .. });
        let [mean, rstd] = source.statistics(x.value().into());
        let [gamma_value, beta_value] = [gamma, beta].map(|var| var.value().clone());
        let ids = [gamma.id(), beta.id(), None];
        let passing = Passing::All;
        let x_values = vec![x.value().clone()];
        let norm = Normalized { x: x_values, mean, rstd, gamma: gamma_value, beta: beta_value, passing };
        let y = self.record(x.value().clone(), &[x.id(), gamma.id(), beta.id()], || {
            let Normalized { x: x_values, mean, rstd, gamma, beta, .. } = norm.clone();
            let (x, x_ids) = (x_values, vec![x.id()]);
            let saved =
                Saved { x_ids, ids, x, gamma, beta, mean, rstd, relu: false, out: None, training, handoff: None };
            Box::new(move |dy, gradients| saved.backward(dy, gradients))
        });
        (y, norm)
    }
}

impl Source<'_> {
    /// Mean and rstd to normalise `x` by.
    fn statistics(self, x: Parts) -> [Tensor; 2] {
        let (epsilon, tiles, running) = match self {
            Source::Given { mean, rstd } => return [mean, rstd],
            Source::Batch { epsilon, tiles, running } => (epsilon, tiles, running),
        };
        let [mut mean, mut rstd] =
            [0; 2].map(|_| Tensor::uninit([x.shape().channels()], statistics_dtype(x), x.device()));
        let to = Moments { mean: mean.view_mut(), rstd: rstd.view_mut(), running };
        match tiles {
            Some(tiles) => {
                assert_eq!(tiles.pixels, x.shape().pixels(), "tiles of {}", x.shape());
                statistics_of_tiles(&tiles, epsilon, to);
            }
            None => statistics(x, epsilon, to),
        }
        [mean, rstd]
    }
}

impl Normalized {
    pub fn by(&self) -> PerChannel<'_> {
        PerChannel { mean: &self.mean, rstd: &self.rstd, gamma: &self.gamma, beta: &self.beta }
    }
}

impl Saved {
    fn backward(self, mut dy: Tensor, to: &mut Gradients) {
        let Saved { x_ids, ids: [gamma_id, beta_id, residual_id], .. } = &self;
        let x = Parts::from(&self.x[..]);
        let wants_dx = x_ids.iter().any(Option::is_some);
        let by = PerChannel { mean: &self.mean, rstd: &self.rstd, gamma: &self.gamma, beta: &self.beta };
        let per_channel = |rows| Tensor::uninit([rows, self.gamma.shape().len()], self.gamma.dtype(), x.device());
        // Where the convolution behind has made them, dy is dz.
        let sums = self.handoff.as_ref().and_then(|handoff| handoff.sums.take());
        // dx needs the sums only where the statistics are the batch's own.
        let mut means = (self.training && wants_dx).then(|| per_channel(2));
        // The output, where it is still to cut by.
        let out = self.out.as_ref().filter(|_| sums.is_none());
        if out.is_some() {
            dy.make_unique();
        }
        if means.is_some() || gamma_id.is_some() || beta_id.is_some() {
            to.contribute_both([*gamma_id, *beta_id], |[dgamma, dbeta]| {
                let means = means.as_mut().map(Tensor::view_mut);
                let to = ParameterGradients { dgamma, dbeta, means };
                if let Some(sums) = &sums {
                    return gradients_of_tiles(sums, x.shape().pixels(), &self.rstd, to);
                }
                let dy = match out {
                    Some(out) => Cut::ByOutput(dy.view_mut(), out),
                    None if self.relu => Cut::ByInput(&dy),
                    None => Cut::Whole(&dy),
                };
                gradients(x, dy, by, to);
            });
        } else if let Some(out) = out {
            pointwise::relu_backward_assign(dy.view_mut(), out);
        }
        let still_to_cut = self.relu && self.out.is_none() && sums.is_none();
        match x_ids[..] {
            // Over dy, unless somebody else reads it.
            [Some(id)] if residual_id.is_none() && dy.is_unique() => {
                input_gradient(None, dy.view_mut(), x, by, still_to_cut, means.as_ref());
                to.give(id, dy.clone());
            }
            [Some(id)] => {
                let mut dx = Tensor::uninit(x.shape(), x.dtype(), x.device());
                input_gradient(Some(&dy), dx.view_mut(), x, by, still_to_cut, means.as_ref());
                to.give(id, dx);
            }
            _ => to.contribute_parts(x_ids, &x.shapes(), |tensors, is_added| {
                let dx = PartsMut { tensors, is_added };
                input_gradient(Some(&dy), dx, x, by, still_to_cut, means.as_ref());
            }),
        }
        if let Some(id) = *residual_id {
            to.give(id, dy);
        }
    }
}
