//! How a convolution's operands lie for tensor cores, and whether a pass runs on them.
//!
//! The kernels take numbers 16 bytes at a time, *packs*, of those that are read one after the other: channels, and in dgrad and
//! wgrad filters. Fewer channels than a pack are padded first, in fprop and wgrad; those of a stem to four, unless x has zeros behind
//! them already. A 1×1 convolution of stride 1 is seen as a plain matrix product: one image of one line.

use super::division::MOST_RESIDUES;
use super::{Conv2d, Geometry, Pass};
use crate::gpu::Address;
use crate::tensor::{DType, Device};

/// The channels that a stem is padded to.
pub(super) const STEM: usize = 4;

/// How many channels a convolution of images of so many reads best on this device, those beyond being zeros.
pub fn channels_of_images(device: Device, dtype: DType, channels: usize) -> usize {
    match device {
        Device::Gpu(_) if is_of_tensor_cores(dtype) => channels.max(STEM),
        _ => channels,
    }
}

fn is_of_tensor_cores(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16 | DType::TF32)
}

/// Elements of 16 bytes.
pub(super) fn pack(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Whether lines of `len` elements, `pitch` apart, can be taken 16 bytes at a time.
pub(super) fn is_packed(address: Address, dtype: DType, len: usize, pitch: usize) -> bool {
    let pack = pack(dtype);
    address.0.is_multiple_of(16) && len.is_multiple_of(pack) && pitch.is_multiple_of(pack)
}

/// Where a pass's operands lie: those of the shapes of x, y and w, whichever direction they go.
#[derive(Clone, Copy)]
pub struct Operands {
    pub x: Address,
    pub y: Address,
    /// Absent in wgrad, which writes sums of its own.
    pub w: Option<Address>,
}

impl Operands {
    /// As tensors lie that are no windows.
    pub const ALIGNED: Operands = Operands { x: Address::NULL, y: Address::NULL, w: Some(Address::NULL) };
}

/// A pass as the kernels for tensor cores see it.
#[derive(Clone, Copy, Debug)]
pub struct OnTensorCores {
    /// Its sizes: channels padded, and as a plain product where it is one.
    pub g: Geometry,
    /// Whether a pack of channels belongs to one tap, so that there is a choice of tiles.
    pub has_tiles: bool,
}

/// Whether a pass over these operands runs on tensor cores, and how it is seen there.
pub fn on_tensor_cores(g: &Geometry, pass: Pass, dtype: DType, operands: Operands) -> Option<OnTensorCores> {
    let Operands { x, y, w } = operands;
    let w = w.filter(|_| pass != Pass::Wgrad);
    // The kernels count elements in 32 bits, and beyond the last ones: those of padded channels, and of rows out of sight.
    let pixels = g.n * (g.h + 2 * g.conv.padding[0]) * (g.w + 2 * g.conv.padding[1]);
    let most = [pixels * g.c.next_multiple_of(pack(dtype)), g.y().len() + 256 * g.k, g.k * g.pitch];
    let is_padded = g.c < pack(dtype);
    let runs = is_of_tensor_cores(dtype)
        && g.conv.groups == 1
        && !(is_padded && pass == Pass::Dgrad)
        && (pass != Pass::Dgrad || g.conv.stride.into_iter().all(|stride| stride <= MOST_RESIDUES))
        && most.into_iter().all(|elements| elements < 1 << 31)
        && (is_padded || is_packed(x, dtype, g.c, g.c))
        && (g.zeros == 0 || (g.c + g.zeros == STEM && x.0.is_multiple_of(16)))
        && (is_padded || w.is_none_or(|w| is_packed(w, dtype, g.c, g.pitch)))
        && (pass == Pass::Fprop || is_packed(y, dtype, g.k, g.k));
    runs.then(|| {
        let g = plain(padded(g, dtype).as_ref().unwrap_or(g));
        OnTensorCores { g, has_tiles: g.c.is_multiple_of(pack(dtype)) }
    })
}

/// The sizes that a 1×1 convolution of stride 1 has as a plain matrix product.
pub(super) fn plain(g: &Geometry) -> Geometry {
    let is_plain = (g.r, g.s) == (1, 1) && g.conv.stride == [1, 1] && g.conv.padding == [0, 0];
    if !is_plain {
        return *g;
    }
    let pixels = g.n * g.h * g.w;
    Geometry { n: 1, h: 1, w: pixels, p: 1, q: pixels, conv: Conv2d::new(1, 0), ..*g }
}

/// The geometry with padded channels, where they are padded.
pub(super) fn padded(g: &Geometry, dtype: DType) -> Option<Geometry> {
    let c = match g.c {
        c if c.is_multiple_of(pack(dtype)) => return None,
        c if c <= STEM => STEM,
        c => c.next_multiple_of(pack(dtype)),
    };
    Some(Geometry { c, pitch: (g.r * g.s * c).next_multiple_of(pack(dtype)), zeros: 0, ..*g })
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::{Besides, fprop_besides, product_parts, wgrad, wgrad_products};
    use super::*;
    use crate::gpu::Gpu;
    use crate::numbers::Numbers;
    use crate::tensor::{Shape, Tensor};

    /// Channels of zeros change no bit of what a stem computes, and where tensor cores serve they take the place of padding.
    #[test]
    fn zeros_behind_channels_change_nothing() {
        let gpu = Gpu::emulator(3).unwrap();
        let gpu_device = Device::Gpu(gpu);
        let mut numbers = Numbers(7);
        let places = [
            (Device::Cpu, DType::F32),
            (gpu_device, DType::F32),
            (gpu_device, DType::BF16),
            (gpu_device, DType::F16),
            (gpu_device, DType::TF32),
        ];
        for ((device, dtype), channels) in places.into_iter().flat_map(|place| [1, 3].map(|channels| (place, channels)))
        {
            let (conv, shape, [k, r, s]) = (Conv2d::new(2, 3), [2, 11, 9, channels], [24, 7, 7]);
            let g = Geometry::new(conv, shape.into(), [k, r, s, channels].into(), r * s * channels);
            let mut tensor = |shape: Shape, dtype| {
                let reals = numbers.reals(shape.len()).into_iter().map(|v| v as f32).collect();
                Tensor::from_vec(reals, shape).to_device(device).cast(dtype)
            };
            let (x, w, dy) = (tensor(g.x(), dtype), tensor([k, r, s, channels].into(), dtype), tensor(g.y(), dtype));
            let sources = [0; 2].map(|_| tensor(w.shape(), DType::F32));
            let (host, mut with_zeros) = (x.to_f64(), vec![0.0; g.x().pixels() * STEM]);
            for (to, from) in with_zeros.chunks_mut(STEM).zip(host.chunks(channels)) {
                to[..channels].iter_mut().zip(from).for_each(|(to, &from)| *to = from as f32);
            }
            let with_zeros = Tensor::from_vec(with_zeros, [2, 11, 9, STEM]).to_device(device).cast(dtype);

            let all = |x: &Tensor| {
                let before = gpu.launches();
                let mut y = Tensor::uninit(g.y(), dtype, device);
                let tiles = fprop_besides(conv, x, &w, y.view_mut(), Besides::Statistics);
                let mut dw = Tensor::uninit(w.shape(), DType::F32, device);
                wgrad(conv, x, &dy, dw.view_mut());
                let parts = product_parts(device, &g, dtype, 2);
                let mut products = Tensor::uninit([parts, 2, k], DType::F32, device);
                wgrad_products(conv, x, &dy, &sources, products.view_mut());
                let launches = gpu.launches() - before;
                let statistics = tiles.map(|tiles| tiles.sums.to_f64());
                ([y.to_f64(), dw.to_f64(), products.to_f64()], statistics, launches)
            };
            let ((plain, plain_statistics, launches), (found, statistics, with_zeros)) = (all(&x), all(&with_zeros));
            let name = format!("{device:?}, {dtype}, {channels} channels");
            assert!(found == plain && statistics == plain_statistics, "{name}");
            let saved = match (device, channels_of_images(device, dtype, channels)) {
                (Device::Gpu(_), STEM) => 3,
                // Zeros are cut off first, in each pass.
                (Device::Gpu(_), _) => -3,
                _ => 0,
            };
            assert_eq!(launches as i64 - with_zeros as i64, saved, "{name}");
        }
    }
}
