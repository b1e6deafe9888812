//! Convolutions, pass by pass: each distinct one of a network.

use super::measure::{Clock, Timing};
use super::report::Row;
use super::shapes::{self, Convolution, Scale};
use super::{Measured, Settings, random_tensor};
use crate::error::{Error, Result};
use crate::ops::batch_norm::{Normalized, Passing};
use crate::ops::conv2d::{Besides, Contribution, Geometry, Pass, dgrad_to, fprop_besides, wgrad};
use crate::tensor::{DType, Device, Shape, Tensor, TensorMut};

pub(super) struct ConvCase {
    network: String,
    image_size: usize,
    batch_size: usize,
    precision: DType,
    convolution: Convolution,
    pass: Pass,
}

pub(super) fn cases(settings: &Settings, networks: &[String], scale: Scale) -> Result<Vec<ConvCase>> {
    let mut cases = Vec::new();
    for network in networks {
        for &image_size in settings.image_sizes(scale) {
            let graph = shapes::network(network, shapes::stem(image_size), shapes::classes(image_size))?;
            let batch_size = settings.batch_size.unwrap_or(scale.batch_size(image_size));
            let convolutions =
                shapes::convolutions(&graph, image_size, batch_size).ok_or_else(|| too_small(network, image_size))?;
            for convolution in convolutions {
                // Nobody needs the gradient of the images.
                let passes = settings.passes.iter().filter(|&&pass| pass != Pass::Dgrad || !convolution.is_first);
                cases.extend(passes.map(|&pass| ConvCase {
                    network: network.clone(),
                    image_size,
                    batch_size,
                    precision: settings.precision,
                    convolution: convolution.clone(),
                    pass,
                }));
            }
        }
    }
    Ok(cases)
}

pub(super) fn too_small(network: &str, image_size: usize) -> Error {
    Error::usage(format!("{network} takes no images of {image_size} pixels"), "give a larger --image-size, such as 28")
}

/// One operand, once for each set.
struct Stack {
    all: Tensor,
    /// Elements from one set's to the next.
    distance: usize,
}

impl Stack {
    /// Buffers of `len` elements, each aligned to 16 bytes whatever the dtype.
    fn new(sets: usize, len: usize, seed: u64, device: Device, dtype: DType) -> Stack {
        let distance = len.next_multiple_of(8);
        Stack { all: random_tensor([sets * distance], seed, device, dtype), distance }
    }

    fn read(&self, set: usize, shape: Shape, pitch: usize) -> Tensor {
        self.all.window(set * self.distance, shape, pitch)
    }

    fn write(&mut self, set: usize, shape: Shape, pitch: usize) -> TensorMut<'_> {
        self.all.view_mut().window(set * self.distance, shape, pitch)
    }
}

impl ConvCase {
    pub fn name(&self) -> String {
        let ConvCase { network, image_size, batch_size, precision, convolution, pass } = self;
        format!("conv/{network}/{image_size}px/{batch_size}/{}/{pass}/{precision}", convolution.name)
    }

    /// The convolution, and what is done of it.
    pub fn what(&self) -> (&Geometry, Pass, DType) {
        (&self.convolution.geometry, self.pass, self.precision)
    }

    pub fn time(&self, clock: &Clock) -> Result<Timing> {
        self.time_with(clock, false)
    }

    /// The time that it takes as a training step runs it, between batch norms: fprop leaves statistics, and dgrad does the first pass of the
    /// backward of the batch norm before it.
    pub fn time_in_step(&self, clock: &Clock) -> Result<Timing> {
        self.time_with(clock, true)
    }

    fn time_with(&self, clock: &Clock, is_in_step: bool) -> Result<Timing> {
        let (g, pass, dtype) = self.what();
        let cost = g.cost(pass, dtype);
        let shape = Shape::from([g.k, g.r, g.s, g.group_channels()]);
        // Each operand's buffers lie side by side: thousands of small ones would take seconds to allocate.
        let sets = clock.sets(cost.bytes());
        let stack = |len: usize, seed, dtype| Stack::new(sets, len, seed, clock.device, dtype);
        let filters_dtype = if pass == Pass::Wgrad { DType::F32 } else { dtype };
        let (mut x, mut y) = (stack(g.x().len(), 1, dtype), stack(g.y().len(), 2, dtype));
        let mut w = stack(g.k * g.pitch, 3, filters_dtype);
        let [x_pitch, y_pitch] = [g.x().row_len(), g.y().row_len()];
        let is_of_norm = is_in_step && pass == Pass::Dgrad;
        let read_by_norm = stack(if is_of_norm { g.x().len() } else { 0 }, 4, dtype);
        let per_channel = random_tensor([if is_of_norm { g.c } else { 0 }], 5, clock.device, DType::F32);
        let besides = if is_in_step { Besides::Statistics } else { Besides::Nothing };
        clock.time(sets, &mut |set| match pass {
            Pass::Fprop => {
                let (x, w) = (x.read(set, g.x(), x_pitch), w.read(set, shape, g.pitch));
                fprop_besides(g.conv, &x, &w, y.write(set, g.y(), y_pitch), besides);
            }
            Pass::Dgrad => {
                let norm = is_of_norm.then(|| {
                    let [mean, rstd, gamma, beta] = [0; 4].map(|_| per_channel.clone());
                    let x = vec![read_by_norm.read(set, g.x(), x_pitch)];
                    Normalized { x, mean, rstd, gamma, beta, passing: Passing::ByInput }
                });
                let (dy, w) = (y.read(set, g.y(), y_pitch), w.read(set, shape, g.pitch));
                let dx = x.write(set, g.x(), x_pitch);
                dgrad_to(g.conv, &dy, &w, Contribution { dx, is_added: false, norm: norm.as_ref() });
            }
            Pass::Wgrad => {
                wgrad(g.conv, &x.read(set, g.x(), x_pitch), &y.read(set, g.y(), y_pitch), w.write(set, shape, g.pitch));
            }
        })
    }

    pub fn measure(&self, clock: &Clock) -> Result<Measured> {
        let (g, pass, dtype) = self.what();
        let timing = self.time(clock)?;
        let row = Row {
            network: self.network.clone(),
            what: pass.to_string(),
            layer: Some(self.convolution.name.clone()),
            shape: Some(self.shape()),
            count: Some(self.convolution.count),
            batch_size: Some(self.batch_size),
            image_size: Some(self.image_size),
            precision: dtype.to_string(),
            ..Row::default()
        };
        Ok(Measured { row, timing, costs: vec![g.cost(pass, dtype)], precision: dtype })
    }

    /// `128×28×28×64 → 64, 3×3 / 2`
    pub fn shape(&self) -> String {
        let g = &self.convolution.geometry;
        let stride = if g.conv.stride[0] > 1 { format!(" / {}", g.conv.stride[0]) } else { String::new() };
        format!("{}×{}×{}×{} → {}, {}×{}{stride}", g.n, g.h, g.w, g.c, g.k, g.r, g.s)
    }
}
