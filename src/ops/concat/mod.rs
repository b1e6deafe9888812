//! Concatenation along the channels: N×H×W×C₁, N×H×W×C₂, … to N×H×W×(C₁ + C₂ + …). Backward cuts `dy` apart again.
//!
//! It moves numbers and computes none, so one form serves every dtype: `reference` copies pixel by pixel, `cpu` the
//! same with pixels in parallel.

pub mod cpu;
mod gpu;
pub mod reference;

use crate::tape::{Tape, Var};
use crate::tensor::{Implementation, Shape, Tensor, TensorMut};

/// Shape of the concatenation.
///
/// # Panics
/// If the inputs differ in anything but their channels.
pub fn output(inputs: &[Shape]) -> Shape {
    let [n, h, w, _] = inputs[0].four();
    assert!(inputs.iter().all(|input| input.four()[..3] == [n, h, w]), "concatenation of {inputs:?}");
    [n, h, w, inputs.iter().map(Shape::channels).sum()].into()
}

pub fn forward(inputs: &[&Tensor]) -> Tensor {
    let shapes: Vec<Shape> = inputs.iter().map(|x| x.shape()).collect();
    let mut y = Tensor::uninit(output(&shapes), inputs[0].dtype(), inputs[0].device());
    let mut first = 0;
    for x in inputs {
        insert(x, first, y.view_mut());
        first += x.shape().channels();
    }
    y
}

/// Writes `x` into the channels of `y` that begin at `first`; the others stay as they are.
pub fn insert(x: &Tensor, first: usize, y: TensorMut) {
    let (channels, total) = check_part(x.shape(), first, y.shape());
    match x.implementation() {
        Implementation::Cpu => cpu::insert(x.data(), channels, y.data(), total, first),
        Implementation::Reference => reference::insert::<f64>(x.data(), channels, y.data(), total, first),
        Implementation::Gpu(gpu) => gpu::insert(gpu, x, [channels, total, first], y),
    }
}

/// The part of `dy` that belongs to the input whose channels begin at `first`.
pub fn backward(dy: &Tensor, first: usize, dx: TensorMut) {
    let (channels, total) = check_part(dx.shape(), first, dy.shape());
    match dy.implementation() {
        Implementation::Cpu => cpu::extract(dy.data(), total, first, dx.data(), channels),
        Implementation::Reference => reference::extract::<f64>(dy.data(), total, first, dx.data(), channels),
        Implementation::Gpu(gpu) => gpu::extract(gpu, dy, [channels, total, first], dx),
    }
}

/// The channels of a part and of the whole.
fn check_part(part: Shape, first: usize, whole: Shape) -> (usize, usize) {
    let (channels, total) = (part.channels(), whole.channels());
    assert!(part.pixels() == whole.pixels() && first + channels <= total, "{part} as channels {first}.. of {whole}");
    (channels, total)
}

impl Tape {
    pub fn concat(&mut self, inputs: &[Var]) -> Var {
        let y = forward(&inputs.iter().map(Var::value).collect::<Vec<_>>());
        let ids: Vec<_> = inputs.iter().map(Var::id).collect();
        let channels: Vec<usize> = inputs.iter().map(|input| input.shape().channels()).collect();
        self.record(y, &ids.clone(), || {
            Box::new(move |dy, gradients| {
                let mut first = 0;
                for (id, channels) in ids.into_iter().zip(channels) {
                    if let Some(id) = id {
                        gradients.contribute(id, |dx| backward(&dy, first, dx));
                    }
                    first += channels;
                }
            })
        })
    }
}
