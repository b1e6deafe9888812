//! How a convolution's operands lie for tensor cores, and whether a pass runs on them.
//!
//! The kernels take numbers 16 bytes at a time, *packs*, of those that are read one after the other: channels, and in dgrad and
//! wgrad filters. Fewer channels than a pack are padded first, in fprop and wgrad; those of a stem to four. A 1×1 convolution of
//! stride 1 is seen as a plain matrix product: one image of one line.

use super::division::MOST_RESIDUES;
use super::{Conv2d, Geometry, Pass};
use crate::gpu::Address;
use crate::tensor::DType;

/// The channels that a stem is padded to.
const STEM: usize = 4;

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
    let is_stored = matches!(dtype, DType::BF16 | DType::F16 | DType::TF32);
    // The kernels count elements in 32 bits, and beyond the last ones: those of padded channels, and of rows out of sight.
    let pixels = g.n * (g.h + 2 * g.conv.padding[0]) * (g.w + 2 * g.conv.padding[1]);
    let most = [pixels * g.c.next_multiple_of(pack(dtype)), g.y().len() + 256 * g.k, g.k * g.pitch];
    let is_padded = g.c < pack(dtype);
    let runs = is_stored
        && g.conv.groups == 1
        && !(is_padded && pass == Pass::Dgrad)
        && (pass != Pass::Dgrad || g.conv.stride.into_iter().all(|stride| stride <= MOST_RESIDUES))
        && most.into_iter().all(|elements| elements < 1 << 31)
        && (is_padded || is_packed(x, dtype, g.c, g.c))
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
    Some(Geometry { c, pitch: (g.r * g.s * c).next_multiple_of(pack(dtype)), ..*g })
}
