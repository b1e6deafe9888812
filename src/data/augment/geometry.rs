//! Where the samples of an image come from.

use std::ops::RangeInclusive;

use rand::{Rng, RngExt};

use crate::data::source::Sample;

/// Some of the pixels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

impl Window {
    /// Of a share of the area and a ratio of width to height (its logarithm is uniform) within these; where ten draws do not fit,
    /// the largest in the middle whose ratio does.
    pub fn of_share(
        [height, width]: [usize; 2],
        shares: RangeInclusive<f64>,
        ratios: RangeInclusive<f64>,
        rng: &mut impl Rng,
    ) -> Window {
        let area = (height * width) as f64;
        for _ in 0..10 {
            let share = area * rng.random_range(shares.clone());
            let ratio = rng.random_range(ratios.start().ln()..=ratios.end().ln()).exp();
            let [w, h] = [share * ratio, share / ratio].map(|square| square.sqrt().round() as usize);
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let (top, left) = (rng.random_range(0..=height - h), rng.random_range(0..=width - w));
                return Window { top, left, height: h, width: w };
            }
        }
        let whole = width as f64 / height as f64;
        let (h, w) = if whole < *ratios.start() {
            ((width as f64 / ratios.start()).round() as usize, width)
        } else if whole > *ratios.end() {
            (height, (height as f64 * ratios.end()).round() as usize)
        } else {
            (height, width)
        };
        let (h, w) = (h.clamp(1, height), w.clamp(1, width));
        Window { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
    }

    pub fn size(&self) -> [usize; 2] {
        [self.height, self.width]
    }

    /// Its samples of an H×W×C image.
    pub fn of<T: Copy>(&self, image: &[T], [_, width, channels]: [usize; 3]) -> Vec<T> {
        let rows = image.chunks_exact(width * channels).skip(self.top).take(self.height);
        rows.flat_map(|row| &row[self.left * channels..][..self.width * channels]).copied().collect()
    }

    /// Every pixel of it becomes `pixel`; one value holds for all channels.
    pub fn fill<T: Copy>(&self, image: &mut [T], [_, width, channels]: [usize; 3], pixel: &[T]) {
        for row in image.chunks_exact_mut(width * channels).skip(self.top).take(self.height) {
            let pixels = row[self.left * channels..][..self.width * channels].chunks_exact_mut(channels);
            pixels
                .for_each(|of_image| of_image.iter_mut().zip(pixel.iter().cycle()).for_each(|(to, from)| *to = *from));
        }
    }
}

/// By so many quarter turns, counterclockwise; odd ones of square images.
pub(super) fn turned<T: Copy>(image: &[T], [height, width, channels]: [usize; 3], turns: u32) -> Vec<T> {
    let mut out = Vec::with_capacity(image.len());
    for y in 0..height {
        for x in 0..width {
            let [y, x] = match turns % 4 {
                0 => [y, x],
                1 => [x, width - 1 - y],
                2 => [height - 1 - y, width - 1 - x],
                _ => [height - 1 - x, y],
            };
            out.extend_from_slice(&image[(y * width + x) * channels..][..channels]);
        }
    }
    out
}

/// By an angle, counterclockwise about the middle: each sample by bilinear interpolation, of black where there is no image.
#[inline(always)]
pub(super) fn rotated<T: Sample>(image: &[T], [height, width, channels]: [usize; 3], degrees: f64) -> Vec<T> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (sin, cos) = (sin as f32, cos as f32);
    let [down, across] = [height, width].map(|side| (side as f32 - 1.0) / 2.0);
    let mut out = Vec::with_capacity(image.len());
    for y in 0..height {
        for x in 0..width {
            let (dy, dx) = (y as f32 - down, x as f32 - across);
            let (from_x, from_y) = (cos * dx - sin * dy + across, sin * dx + cos * dy + down);
            let (left, top) = (from_x.floor(), from_y.floor());
            let (right_share, lower_share) = (from_x - left, from_y - top);
            let (left, top) = (left as isize, top as isize);
            let is_inside = (0..height as isize - 1).contains(&top) && (0..width as isize - 1).contains(&left);
            let blend = |[a, b, c, d]: [f32; 4]| {
                let (upper, lower) =
                    (a * (1.0 - right_share) + b * right_share, c * (1.0 - right_share) + d * right_share);
                T::rounded(upper * (1.0 - lower_share) + lower * lower_share)
            };
            if is_inside {
                let upper = &image[(top as usize * width + left as usize) * channels..][..(width + 2) * channels];
                let of = |channel: usize| {
                    let next = channel + channels;
                    [channel, next, channel + width * channels, next + width * channels].map(|at| upper[at].to_f32())
                };
                (0..channels).for_each(|channel| out.push(blend(of(channel))));
                continue;
            }
            for channel in 0..channels {
                let at = |y: isize, x: isize| {
                    let is_there = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
                    if is_there { image[(y as usize * width + x as usize) * channels + channel].to_f32() } else { 0.0 }
                };
                out.push(blend([at(top, left), at(top, left + 1), at(top + 1, left), at(top + 1, left + 1)]));
            }
        }
    }
    out
}

#[cfg(test)]
pub mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn windows_are_parts() {
        let window = Window { top: 1, left: 1, height: 1, width: 2 };
        let image: Vec<u8> = (0..18).collect();
        assert_eq!(window.of(&image, [3, 3, 2]), [8, 9, 10, 11]);
        let mut filled = image.clone();
        window.fill(&mut filled, [3, 3, 2], &[70, 71]);
        assert_eq!(filled[8..12], [70, 71, 70, 71]);
        assert_eq!((&filled[..8], &filled[12..]), (&image[..8], &image[12..]));
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        // No window of such a share is as wide as that.
        let fallback = Window::of_share([100, 10], 1.0..=1.0, 0.75..=1.25, &mut rng);
        assert_eq!(fallback, Window { top: 43, left: 0, height: 13, width: 10 });
        for _ in 0..200 {
            let Window { top, left, height, width } = Window::of_share([9, 7], 0.1..=1.0, 0.75..=1.25, &mut rng);
            assert!(top + height <= 9 && left + width <= 7 && height > 0 && width > 0);
        }
    }

    #[test]
    fn quarter_turns_are_counterclockwise() {
        let image: Vec<u8> = (0..9).collect();
        assert_eq!(turned(&image, [3, 3, 1], 1), [2, 5, 8, 1, 4, 7, 0, 3, 6]);
        assert_eq!(turned(&image, [3, 3, 1], 2), [8, 7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(turned(&image, [3, 3, 1], 3), turned(&turned(&image, [3, 3, 1], 2), [3, 3, 1], 1));
        assert_eq!(turned(&[1, 2, 3, 4, 5, 6], [1, 3, 2], 2), [5, 6, 3, 4, 1, 2]);
        // A rotation by as much comes to the same.
        assert_eq!(rotated(&image, [3, 3, 1], 90.0), turned(&image, [3, 3, 1], 1));
    }

    /// The samples of the goldens here and in `colour`.
    pub fn sample(y: usize, x: usize, channel: usize) -> u8 {
        ((37 * y * y + 11 * x * 3 + 53 * channel + x * y * 7 * (channel + 1)) % 256) as u8
    }

    pub fn image(height: usize, width: usize, channels: usize) -> Vec<u8> {
        (0..height * width * channels)
            .map(|at| sample(at / channels / width, at / channels % width, at % channels))
            .collect()
    }

    /// torchvision 0.28: `rotate(image, 20.0, InterpolationMode.BILINEAR)` of a tensor; `resized_crop(image, 1, 2, 4, 5, [7, 8])` of
    /// Pillow's image.
    #[test]
    fn geometry_is_that_of_torchvision() {
        let expected: [u8; 30] = [
            7, 36, 85, 139, 195, 110, 25, 73, 126, 141, 141, 110, 59, 138, 216, 73, 65, 88, 115, 155, 182, 203, 87, 92,
            36, 101, 158, 139, 13, 21,
        ];
        assert_eq!(rotated(&image(5, 6, 1), [5, 6, 1], 20.0), expected);
        let window = Window { top: 1, left: 2, height: 4, width: 5 };
        let expected: [u8; 56] = [
            117, 135, 160, 185, 210, 235, 116, 21, 162, 141, 116, 142, 169, 195, 129, 76, 233, 150, 45, 74, 103, 132,
            150, 163, 214, 180, 131, 83, 75, 106, 137, 160, 186, 202, 211, 96, 56, 91, 124, 148, 196, 150, 88, 67, 75,
            112, 148, 174, 202, 117, 11, 49, 87, 125, 163, 190,
        ];
        let cropped = window.of(&image(7, 8, 1), [7, 8, 1]);
        assert_eq!(u8::resize(&cropped, window.size(), [7, 8], 1), expected);
    }
}
