//! Convolutions, pass by pass: each distinct one of a network.

use super::measure::{Clock, Timing};
use super::report::Row;
use super::shapes::{self, Convolution, Scale};
use super::{Measured, Settings, random_tensor};
use crate::error::{Error, Result};
use crate::ops::conv2d::{Geometry, Pass, dgrad, fprop, wgrad};
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
        clock.time(sets, &mut |set| match pass {
            Pass::Fprop => {
                fprop(g.conv, &x.read(set, g.x(), x_pitch), &w.read(set, shape, g.pitch), y.write(set, g.y(), y_pitch));
            }
            Pass::Dgrad => {
                dgrad(g.conv, &y.read(set, g.y(), y_pitch), &w.read(set, shape, g.pitch), x.write(set, g.x(), x_pitch));
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
    fn shape(&self) -> String {
        let g = &self.convolution.geometry;
        let stride = if g.conv.stride[0] > 1 { format!(" / {}", g.conv.stride[0]) } else { String::new() };
        format!("{}×{}×{}×{} → {}, {}×{}{stride}", g.n, g.h, g.w, g.c, g.k, g.r, g.s)
    }
}
