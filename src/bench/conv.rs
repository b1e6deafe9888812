//! Convolutions, pass by pass: each distinct one of a network.

use super::measure::Clock;
use super::report::Row;
use super::shapes::{self, Convolution, Scale};
use super::{Measured, Settings, numbers};
use crate::error::{Error, Result};
use crate::ops::conv2d::{Pass, dgrad, fprop, wgrad};
use crate::tensor::{DType, Device, Shape, Tensor};

pub(super) struct Case {
    network: String,
    image_size: usize,
    batch_size: usize,
    precision: DType,
    convolution: Convolution,
    pass: Pass,
}

pub(super) fn cases(settings: &Settings, networks: &[String], scale: Scale) -> Result<Vec<Case>> {
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
                cases.extend(passes.map(|&pass| Case {
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

/// Filters as they lie in an arena: rows padded to 16 bytes of f32.
fn filters(shape: Shape, pitch: usize, seed: u64, device: Device, dtype: DType) -> Tensor {
    numbers::random_tensor([shape.rows() * pitch], seed, device, dtype).window(0, shape, pitch)
}

impl Case {
    pub fn name(&self) -> String {
        let Case { network, image_size, batch_size, precision, convolution, pass } = self;
        format!("conv/{network}/{image_size}px/{batch_size}/{}/{pass}/{precision}", convolution.name)
    }

    pub fn measure(&self, clock: &Clock) -> Result<Measured> {
        let (g, pass, dtype) = (&self.convolution.geometry, self.pass, self.precision);
        let cost = g.cost(pass, dtype);
        let shape = Shape::from([g.k, g.r, g.s, g.group_channels()]);
        let activations = |shape, seed| numbers::random_tensor(shape, seed, clock.device, dtype);
        let mut seed = 0;
        // x or dx, y or dy, w or dw; what a pass writes is overwritten.
        let mut sets: Vec<(Tensor, Tensor, Tensor)> = (0..clock.sets(cost.bytes()))
            .map(|_| {
                seed += 3;
                let dtype = if pass == Pass::Wgrad { DType::F32 } else { dtype };
                let w = filters(shape, g.pitch, seed + 2, clock.device, dtype);
                (activations(g.x(), seed), activations(g.y(), seed + 1), w)
            })
            .collect();
        let timing = clock.time(sets.len(), &mut |set| {
            let (x, y, w) = &mut sets[set];
            match pass {
                Pass::Fprop => fprop(g.conv, x, w, y.view_mut()),
                Pass::Dgrad => dgrad(g.conv, y, w, x.view_mut()),
                Pass::Wgrad => wgrad(g.conv, x, y, w.view_mut()),
            }
        })?;
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
        Ok(Measured { row, timing, costs: vec![cost] })
    }

    /// `128×28×28×64 → 64, 3×3 / 2`
    fn shape(&self) -> String {
        let g = &self.convolution.geometry;
        let stride = if g.conv.stride[0] > 1 { format!(" / {}", g.conv.stride[0]) } else { String::new() };
        format!("{}×{}×{}×{} → {}, {}×{}{stride}", g.n, g.h, g.w, g.c, g.k, g.r, g.s)
    }
}
