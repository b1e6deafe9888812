//! What the kernels for tensor cores are tested with: operands on a device, and the reference's results from what is stored there.

use std::rc::Rc;

use super::{Contribution, Geometry, Pass, dgrad, fprop, reference, wgrad};
use crate::gpu::Handle;
use crate::numbers::{Numbers, normalized_error};
use crate::ops::batch_norm::{Finish, Normalized, Passing, PerChannel, Residual, Tiles, normalize_then};
use crate::tensor::{DType, Device, Shape, Tensor};

/// Operands of a convolution on a device, as stored there, and the reference's results from what is stored.
pub struct Example {
    pub g: Geometry,
    pub dtype: DType,
    pub x: Tensor,
    pub w: Tensor,
    pub dy: Tensor,
    pub expected: [Vec<f64>; 3],
}

impl Example {
    pub fn new(device: Device, dtype: DType, g: &Geometry, draw: &mut dyn FnMut(usize) -> Vec<f64>) -> Example {
        let g = Geometry { pitch: g.filter_len(), ..*g };
        let filters: Shape = [g.k, g.r, g.s, g.c].into();
        let mut tensor = |shape: Shape| {
            let numbers = draw(shape.len()).into_iter().map(|v| v as f32).collect();
            Tensor::from_vec(numbers, shape).to_device(device).cast(dtype)
        };
        let (x, w, dy) = (tensor(g.x()), tensor(filters), tensor(g.y()));
        let [host_x, host_w, host_dy] = [&x, &w, &dy].map(|t| seen(&t.to_f64(), dtype));
        let mut expected = [g.y().len(), g.x().len(), filters.len()].map(|len| vec![0.0; len]);
        let [y, dx, dw] = &mut expected;
        reference::fprop::<f64>(&g, &host_x, &host_w, y);
        reference::dgrad::<f64>(&g, &host_dy, &host_w, dx);
        reference::wgrad::<f64>(&g, &host_x, &host_dy, dw);
        Example { g, dtype, x, w, dy, expected }
    }

    pub fn run(&self, pass: Pass) -> (Vec<f64>, &[f64]) {
        let Example { g, dtype, x, w, dy, expected } = self;
        let like = |tensor: &Tensor, dtype| Tensor::uninit(tensor.shape(), dtype, tensor.device());
        let mut result = match pass {
            Pass::Fprop => like(dy, *dtype),
            Pass::Dgrad => like(x, *dtype),
            Pass::Wgrad => like(w, DType::F32),
        };
        match pass {
            Pass::Fprop => fprop(g.conv, x, w, result.view_mut()),
            Pass::Dgrad => dgrad(g.conv, dy, w, result.view_mut()),
            Pass::Wgrad => wgrad(g.conv, x, dy, result.view_mut()),
        }
        (result.to_f64(), &expected[pass as usize])
    }
}

/// An operand as tensor cores see it.
pub fn seen(stored: &[f64], dtype: DType) -> Vec<f64> {
    stored.iter().map(|&v| crate::numbers::stored(v, dtype)).collect()
}

/// Checks that `tiles` are the statistics, tile by tile, of an output that is `plain` too, of so many channels.
pub fn check_statistics(name: &str, channels: usize, tiles: &Tiles, [y, plain]: [&Tensor; 2]) {
    let (y, sums) = (y.to_f64(), tiles.sums.to_f64());
    assert!(y == plain.to_f64(), "{name}");
    let count = 2 * channels * tiles.pixels.div_ceil(tiles.span);
    assert_eq!((tiles.pixels, sums.len()), (y.len() / channels, count), "{name}");
    for (tile, sums) in y.chunks(tiles.span * channels).zip(sums.chunks(2 * channels)) {
        let mut expected = vec![0.0; 2 * channels];
        let count = (tile.len() / channels) as f64;
        for channel in 0..channels {
            let column = || tile.iter().skip(channel).step_by(channels);
            let mean = column().sum::<f64>() / count;
            expected[channel] = mean;
            expected[channels + channel] = column().map(|v| (v - mean).powi(2)).sum();
        }
        let ((means, squares), (of_means, of_squares)) = (sums.split_at(channels), expected.split_at(channels));
        assert!(normalized_error(means, of_means) < 1e-6, "{name}: {}", normalized_error(means, of_means));
        assert!(normalized_error(squares, of_squares) < 1e-6, "{name}: {squares:?}, not {of_squares:?}");
    }
}

/// Integers that every dtype holds, and sums of them: those on which a result depends alone.
pub fn signs(numbers: &mut Numbers, len: usize) -> Vec<f64> {
    numbers.integers(len).into_iter().map(f64::signum).collect()
}

/// A dgrad: of these sizes, with dy and the filters.
pub type Dgrad<'a> = &'a dyn Fn(&Geometry, &Tensor, &Tensor, Contribution) -> Option<Tensor>;

/// Checks the results of dgrad for the batch norm before it, added to what is there or not, with integers: the reference's bits.
pub fn check_gradient(name: &str, gpu: Handle, dtype: DType, g: &Geometry, run: Dgrad) {
    let (mut numbers, device) = (Numbers::named(name), Device::Gpu(gpu));
    let Example { g, x, w, dy, expected: [_, dx, _], .. } =
        Example::new(device, dtype, g, &mut |len| signs(&mut numbers, len));
    let vector = |values: Vec<f64>, shape: Shape| {
        Tensor::from_vec(values.into_iter().map(|v| v as f32).collect(), shape).to_device(device)
    };
    let [mean, rstd, gamma, beta] = [0; 4].map(|_| vector(signs(&mut numbers, g.c), [g.c].into()));
    let [there, residual] = [0; 2].map(|_| vector(signs(&mut numbers, x.shape().len()), x.shape()).cast(dtype));
    let by = PerChannel { mean: &mean, rstd: &rstd, gamma: &gamma, beta: &beta };
    let mut out = Tensor::uninit(x.shape(), dtype, device);
    let sum = Finish { residual: Some(Residual::Of(&residual)), relu: true, leaves_signs: true };
    let of_sum = normalize_then((&x).into(), by, sum, out.view_mut());
    let of_sum = Rc::new(of_sum.expect("channels in packs"));
    let per_channel = [&mean, &rstd, &gamma, &beta].map(Tensor::to_f64);
    let (x_values, residual_values) = (x.to_f64(), residual.to_f64());
    let normalized = |i: usize| {
        let [mean, rstd, gamma, beta] = [0, 1, 2, 3].map(|k| per_channel[k][i % g.c]);
        (x_values[i] - mean) * gamma * rstd + beta
    };
    let cases = [Passing::All, Passing::ByInput, Passing::BySigns(of_sum)];
    for (passing, is_added) in cases.into_iter().flat_map(|passing| [false, true].map(|adds| (passing.clone(), adds))) {
        let name = format!("{name}, {passing:?}, added: {is_added}");
        let [mean, rstd, gamma, beta] = [&mean, &rstd, &gamma, &beta].map(Tensor::clone);
        let norm = Normalized { x: vec![x.clone()], mean, rstd, gamma, beta, passing };
        let mut dz = Tensor::uninit(x.shape(), dtype, device);
        if is_added {
            dz.view_mut().copy_from(&there);
        }
        let to = Contribution { dx: dz.view_mut(), is_added, norm: Some(&norm) };
        let sums = run(&g, &dy, &w, to).expect("on tensor cores");
        gpu.check().unwrap();
        let there = there.to_f64();
        let mut expected = vec![0.0; 2 * g.c];
        let mut expected_dz: Vec<f64> = (0..dx.len()).map(|i| dx[i] + if is_added { there[i] } else { 0.0 }).collect();
        expected_dz = seen(&expected_dz, dtype);
        for (i, dz) in expected_dz.iter_mut().enumerate() {
            let passes = match norm.passing {
                Passing::All => true,
                Passing::ByInput => normalized(i) > 0.0,
                Passing::BySigns(_) => normalized(i) + residual_values[i] > 0.0,
            };
            if !passes {
                *dz = 0.0;
            }
            expected[i % g.c] += *dz;
            expected[g.c + i % g.c] += *dz * (x_values[i] - per_channel[0][i % g.c]);
        }
        assert!(dz.to_f64() == expected_dz, "{name}");
        let mut found = vec![0.0; 2 * g.c];
        for tile in sums.to_f64().chunks(2 * g.c) {
            found.iter_mut().zip(tile).for_each(|(found, sum)| *found += sum);
        }
        assert!(found == expected, "{name}");
    }
    // Without a batch norm it adds all the same.
    let mut sum = Tensor::uninit(x.shape(), dtype, device);
    sum.view_mut().copy_from(&there);
    assert!(run(&g, &dy, &w, Contribution { dx: sum.view_mut(), is_added: true, norm: None }).is_none());
    let expected: Vec<f64> = dx.iter().zip(there.to_f64()).map(|(dx, there)| dx + there).collect();
    assert!(sum.to_f64() == seen(&expected, dtype), "{name}, added");
}
