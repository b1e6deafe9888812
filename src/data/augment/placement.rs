//! Mirror images, and shifts by a few pixels: what moves samples and computes nothing, which a GPU does by itself.

/// First the shift, then the flip.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placement {
    pub flip: bool,
    pub down: isize,
    pub right: isize,
}

impl Placement {
    /// Writes the augmented `image` (H×W×C) to `out`.
    pub fn apply<T: Copy>(&self, image: &[T], [height, width, channels]: [usize; 3], out: &mut [T]) {
        let row_len = width * channels;
        // Further than this there is only the edge.
        let right = self.right.clamp(1 - width as isize, width as isize - 1);
        let moved = right.unsigned_abs() * channels;
        for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
            let source = (y as isize - self.down).clamp(0, height as isize - 1) as usize;
            let row = &image[source * row_len..][..row_len];
            let (kept, open, edge) = match right {
                0.. => (moved..row_len, 0..moved, &row[..channels]),
                _ => (0..row_len - moved, row_len - moved..row_len, &row[row_len - channels..]),
            };
            let from = if right >= 0 { &row[..row_len - moved] } else { &row[moved..] };
            out[kept].copy_from_slice(from);
            out[open].chunks_exact_mut(channels).for_each(|pixel| pixel.copy_from_slice(edge));
            if self.flip {
                // Reversing the samples mirrors the row and the channels; a second reversal puts the channels right.
                out.reverse();
                if channels > 1 {
                    out.chunks_exact_mut(channels).for_each(<[T]>::reverse);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: [u8; 6] = [1, 2, 3, 4, 5, 6];

    fn placed(flip: bool, down: isize, right: isize, shape: [usize; 3]) -> Vec<u8> {
        let mut out = vec![0; IMAGE.len()];
        Placement { flip, down, right }.apply(&IMAGE, shape, &mut out);
        out
    }

    #[test]
    fn shifts_replicate_the_edge() {
        let shape = [2, 3, 1];
        assert_eq!(placed(false, 0, 0, shape), IMAGE);
        assert_eq!(placed(false, 0, 1, shape), [1, 1, 2, 4, 4, 5]);
        assert_eq!(placed(false, 0, -1, shape), [2, 3, 3, 5, 6, 6]);
        assert_eq!(placed(false, 1, 0, shape), [1, 2, 3, 1, 2, 3]);
        assert_eq!(placed(false, -1, 0, shape), [4, 5, 6, 4, 5, 6]);
        assert_eq!(placed(false, 9, -9, shape), [3, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn flips_keep_a_pixels_channels_in_order() {
        assert_eq!(placed(true, 0, 0, [2, 3, 1]), [3, 2, 1, 6, 5, 4]);
        assert_eq!(placed(true, 0, 0, [1, 2, 3]), [4, 5, 6, 1, 2, 3]);
        assert_eq!(placed(true, 0, 1, [1, 2, 3]), [1, 2, 3, 1, 2, 3]);
    }
}
