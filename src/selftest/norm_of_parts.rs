//! Passes of a batch norm over a concatenation that nobody writes.

use super::operand::{Input, Layout};
use super::pass::Pass;
use super::passes::{FEW, LONG_SUM, by, moments, parameter_gradients};
use crate::ops::batch_norm::{self, Cut, Parts, PartsMut};
use crate::ops::concat;
use crate::tensor::{Shape, Tensor, TensorMut};

/// How a whole is cut.
#[derive(Clone)]
struct Cuts {
    pixels: [usize; 3],
    channels: Vec<usize>,
}

impl Cuts {
    fn shapes(&self) -> Vec<Shape> {
        let [n, h, w] = self.pixels;
        self.channels.iter().map(|&channels| [n, h, w, channels].into()).collect()
    }

    /// Each part with the first of its channels.
    fn firsts(&self) -> impl Iterator<Item = usize> {
        self.channels.iter().scan(0, |end, &channels| {
            *end += channels;
            Some(*end - channels)
        })
    }

    fn uninit(&self, like: &Tensor) -> Vec<Tensor> {
        Tensor::parts(&self.shapes(), like.dtype(), like.device())
    }

    fn parts(&self, whole: &Tensor) -> Vec<Tensor> {
        let mut parts = self.uninit(whole);
        for (part, first) in parts.iter_mut().zip(self.firsts()) {
            concat::backward(whole, first, part.view_mut());
        }
        parts
    }

    fn join(&self, parts: &[Tensor], mut whole: TensorMut) {
        for (part, first) in parts.iter().zip(self.firsts()) {
            concat::insert(part, first, whole.reborrow());
        }
    }
}

pub(super) fn norms_of_parts(pixels: [usize; 3], channels: &[usize]) -> Vec<Pass> {
    let cuts = Cuts { pixels, channels: channels.to_vec() };
    let [n, h, w] = pixels;
    let total = channels.iter().sum();
    let (image, per_channel) = (Layout::dense([n, h, w, total]), Layout::dense([total]).in_arena().in_f32());
    let x = Input::around(image.clone(), 0.3, 1.0);
    // As for a whole: sums that do not cancel.
    let dy = Input::around(image.clone(), 0.5, 1.0);
    let numbers =
        [(0.3, 0.1), (1.0, 0.1), (1.0, 0.5), (0.0, 1.0)].map(|(c, s)| Input::around(per_channel.clone(), c, s));
    let means = Input::around(Layout::dense([2, total]).in_f32(), 0.2, 0.1);
    let with = |more: &[&Input]| -> Vec<Input> { more.iter().copied().chain(&numbers).cloned().collect() };
    let four = vec![per_channel.clone().into(); 4];
    let cut = || cuts.clone();

    let mut passes = vec![
        {
            let cuts = cut();
            Pass::with_many("statistics of parts", vec![x.clone()], four, move |inputs, outputs| {
                let parts = cuts.parts(&inputs[0]);
                let to = moments(outputs.try_into().unwrap_or_else(|_| panic!("four outputs")));
                batch_norm::statistics(Parts::from(&parts[..]), 1e-5, to);
            })
            .within(LONG_SUM)
        },
        {
            let (cuts, out) = (cut(), vec![image.clone().into()]);
            Pass::with_many("normalisation of parts and ReLU", with(&[&x]), out, move |inputs, mut outputs| {
                let [x, mean, rstd, gamma, beta] = inputs else { unreachable!() };
                let parts = cuts.parts(x);
                let out = outputs.remove(0);
                batch_norm::normalize(Parts::from(&parts[..]), by([mean, rstd, gamma, beta]), None, true, out);
            })
            .within(FEW)
            .exact()
        },
        {
            let (cuts, two) = (cut(), vec![per_channel.into(); 2]);
            Pass::with_many("dγ and dβ of parts through a ReLU", with(&[&x, &dy]), two, move |inputs, outputs| {
                let [x, dy, mean, rstd, gamma, beta] = inputs else { unreachable!() };
                let (parts, by) = (cuts.parts(x), by([mean, rstd, gamma, beta]));
                batch_norm::gradients(Parts::from(&parts[..]), Cut::ByInput(dy), by, parameter_gradients(outputs));
            })
            .within(LONG_SUM)
            .exact()
        },
    ];
    for (name, is_added) in [("dx of parts", false), ("dx of parts, added", true)] {
        let (cuts, inputs) = (cut(), with(&[&x, &dy, &means, &x]));
        let pass = Pass::with_many(name, inputs, vec![image.clone().into()], move |inputs, mut outputs| {
            let [x, dy, means, before, mean, rstd, gamma, beta] = inputs else { unreachable!() };
            let (x, mut sum) = (cuts.parts(x), if is_added { cuts.parts(before) } else { cuts.uninit(before) });
            let dx = PartsMut { tensors: sum.iter_mut().map(Tensor::view_mut).collect(), is_added };
            let by = by([mean, rstd, gamma, beta]);
            batch_norm::input_gradient(Some(dy), dx, Parts::from(&x[..]), by, true, Some(means));
            cuts.join(&sum, outputs.remove(0));
        });
        passes.push(pass.within(FEW).exact());
    }
    let case = format!("{pixels:?} × {channels:?}");
    passes.into_iter().map(|pass| pass.of(&case)).collect()
}
