//! From images as bytes to a batch of activations on a GPU: shift, flip, normalise. The CPU's definition is the loader's
//! (`data::Loader`), which gives the same bits.

mod gpu;

use crate::tensor::{Integers, TensorMut};

/// A batch of images as they are stored, and how they are shown.
#[derive(Debug)]
pub struct Images {
    /// N×H×W×C.
    pub bytes: Integers<u8>,
    /// N, H, W, C.
    pub shape: [usize; 4],
    /// For each image: flip (0 or 1), rows down, columns to the right.
    pub placements: Option<Integers<i32>>,
}

/// Writes `y`, N×H×W×K in f32, bf16 or f16, with K = C, or any K from C = 1; behind the K channels `y` may have others, which become zeros.
/// `tables` holds the normalised values of all bytes, 256 for each of the K channels.
///
/// # Panics
/// If the images are not on a GPU, or shapes do not fit.
pub fn prepare(images: &Images, tables: &[[f32; 256]], y: TensorMut) {
    let [n, h, w, c] = images.shape;
    let ([.., stored], k) = (y.shape().four(), tables.len());
    assert_eq!(y.shape().dims(), [n, h, w, stored], "a batch of images {:?}", images.shape);
    assert!(k <= stored && (c == 1 || c == k), "{c} channels for a network of {k}, stored as {stored}");
    assert_eq!(images.bytes.len(), n * h * w * c, "images of {:?}", images.shape);
    assert!(images.placements.as_ref().is_none_or(|placements| placements.len() == 3 * n), "a placement per image");
    gpu::images(images, tables, y);
}
