//! Augmentation of training images: a mirror image, and a shift by a few pixels.
//!
//! It works on bytes, before normalisation, so that an augmented image takes the same path as any other.

use rand::{Rng, RngExt};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Augmentation {
    /// Mirror every second image, left to right.
    pub flip: bool,
    /// Move by up to this many pixels along each axis; the edge's pixels fill what is left open.
    pub shift: usize,
}

impl Augmentation {
    pub fn draw(&self, rng: &mut impl Rng) -> Placement {
        let reach = self.shift as i64;
        let flip = self.flip && rng.random_bool(0.5);
        let mut offset = || rng.random_range(-reach..=reach) as isize;
        Placement { flip, down: offset(), right: offset() }
    }
}

/// One image's augmentation: first the shift, then the flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub flip: bool,
    pub down: isize,
    pub right: isize,
}

impl Placement {
    /// Writes the augmented `image` (H×W×C) to `out`.
    pub fn apply(&self, image: &[u8], [height, width, channels]: [usize; 3], out: &mut [u8]) {
        let row_bytes = width * channels;
        // Further than this there is only the edge.
        let right = self.right.clamp(1 - width as isize, width as isize - 1);
        let moved = right.unsigned_abs() * channels;
        for (y, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            let source = (y as isize - self.down).clamp(0, height as isize - 1) as usize;
            let row = &image[source * row_bytes..][..row_bytes];
            let (kept, open, edge) = match right {
                0.. => (moved..row_bytes, 0..moved, &row[..channels]),
                _ => (0..row_bytes - moved, row_bytes - moved..row_bytes, &row[row_bytes - channels..]),
            };
            let from = if right >= 0 { &row[..row_bytes - moved] } else { &row[moved..] };
            out[kept].copy_from_slice(from);
            out[open].chunks_exact_mut(channels).for_each(|pixel| pixel.copy_from_slice(edge));
            if self.flip {
                // Reversing the bytes mirrors the row and the channels; a second reversal puts the channels right.
                out.reverse();
                if channels > 1 {
                    out.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
                }
            }
        }
    }
}
