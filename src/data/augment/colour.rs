//! What changes samples where they are.

use crate::data::source::Sample;

/// One of the steps of colour jitter. A grey image has neither saturation nor hue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Adjustment {
    Brightness(f64),
    Contrast(f64),
    Saturation(f64),
    /// By so much of the circle.
    Hue(f64),
}

impl Adjustment {
    #[inline(always)]
    pub fn apply<T: Sample>(self, image: &mut [T], channels: usize) {
        let blend = |sample: T, other: f32, factor: f64| {
            let (own, others) = (factor as f32, (1.0 - factor) as f32);
            T::truncated(sample.to_f32() * own + other * others)
        };
        match self {
            Adjustment::Brightness(factor) => {
                image.iter_mut().for_each(|sample| *sample = blend(*sample, 0.0, factor));
            }
            Adjustment::Contrast(factor) => {
                let sum: f64 = match channels {
                    1 => image.iter().map(|sample| f64::from(sample.to_f32())).sum(),
                    _ => image.chunks_exact(channels).map(|pixel| f64::from(luma(pixel))).sum(),
                };
                let mean = (sum / (image.len() / channels) as f64) as f32;
                image.iter_mut().for_each(|sample| *sample = blend(*sample, mean, factor));
            }
            Adjustment::Saturation(_) | Adjustment::Hue(_) if channels == 1 => {}
            Adjustment::Saturation(factor) => {
                for pixel in image.chunks_exact_mut(channels) {
                    let grey = luma(pixel);
                    pixel.iter_mut().for_each(|sample| *sample = blend(*sample, grey, factor));
                }
            }
            Adjustment::Hue(turn) => {
                for pixel in image.chunks_exact_mut(channels) {
                    let rgb = [0, 1, 2].map(|channel| pixel[channel].to_f32() / T::MAX);
                    let turned = hue_turned(rgb, turn as f32);
                    // Each sample has as much of 0 to 1 as any other.
                    let scale = T::MAX + 1.0 - 1e-3;
                    pixel.iter_mut().zip(turned).for_each(|(sample, value)| *sample = T::truncated(value * scale));
                }
            }
        }
    }
}

/// Whole, as bytes are.
#[inline(always)]
fn luma<T: Sample>(pixel: &[T]) -> f32 {
    let [r, g, b] = [0, 1, 2].map(|channel| pixel[channel].to_f32());
    (r * 0.2989 + g * 0.587 + b * 0.114).floor()
}

/// Through hue, saturation and value: hue 0 is red, 1/3 green, 2/3 blue.
#[inline(always)]
fn hue_turned([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let (value, least) = (r.max(g).max(b), r.min(g).min(b));
    let range = value - least;
    if range == 0.0 {
        return [r, g, b];
    }
    let saturation = range / value;
    let [to_r, to_g, to_b] = [r, g, b].map(|channel| (value - channel) / range);
    let sixths = if value == r {
        to_b - to_g
    } else if value == g {
        2.0 + to_r - to_b
    } else {
        4.0 + to_g - to_r
    };
    let hue = ((sixths / 6.0 + 1.0).fract() + turn).rem_euclid(1.0) * 6.0;
    let (sector, rest) = (hue.floor(), hue.fract());
    let p = (value * (1.0 - saturation)).clamp(0.0, 1.0);
    let q = (value * (1.0 - saturation * rest)).clamp(0.0, 1.0);
    let t = (value * (1.0 - saturation + saturation * rest)).clamp(0.0, 1.0);
    match sector as u32 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

/// The pixels on either side that a Gaussian of this standard deviation reaches: three of it, and within the image's mirror.
fn reach(sigma: f64, side: usize) -> usize {
    ((3.0 * sigma).ceil() as usize).min(side.saturating_sub(1))
}

/// By a Gaussian of this standard deviation in pixels, beyond the edge by the image's mirror.
#[inline(always)]
pub(super) fn blur<T: Sample>(image: &mut [T], [height, width, channels]: [usize; 3], sigma: f64) {
    let kernel = |side: usize| {
        let reach = reach(sigma, side) as isize;
        let power = |offset: isize| (-0.5 * (offset as f64 / sigma).powi(2)).exp();
        let sum: f64 = (-reach..=reach).map(power).sum();
        (-reach..=reach).map(|offset| (power(offset) / sum) as f32).collect::<Vec<f32>>()
    };
    let mirrored = |at: isize, side: usize| {
        let last = side as isize - 1;
        let at = at.abs();
        (if at > last { 2 * last - at } else { at }) as usize
    };
    let (across, down) = (kernel(width), kernel(height));
    let mut wide = vec![0f32; image.len()];
    for (row, out) in image.chunks_exact(width * channels).zip(wide.chunks_exact_mut(width * channels)) {
        for x in 0..width {
            for (tap, &share) in across.iter().enumerate() {
                let from = mirrored(x as isize + tap as isize - (across.len() / 2) as isize, width);
                for channel in 0..channels {
                    out[x * channels + channel] += share * row[from * channels + channel].to_f32();
                }
            }
        }
    }
    let mut sums = vec![0f32; width * channels];
    for (y, out) in image.chunks_exact_mut(width * channels).enumerate() {
        sums.fill(0.0);
        for (tap, &share) in down.iter().enumerate() {
            let from = mirrored(y as isize + tap as isize - (down.len() / 2) as isize, height);
            let row = &wide[from * width * channels..][..width * channels];
            sums.iter_mut().zip(row).for_each(|(sum, sample)| *sum += share * sample);
        }
        out.iter_mut().zip(&sums).for_each(|(sample, &sum)| *sample = T::rounded(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::geometry::tests::image;

    /// torchvision 0.28: `adjust_brightness` and so on of a tensor of bytes.
    #[test]
    fn adjustments_are_those_of_torchvision() {
        let cases: [(Adjustment, [u8; 36]); 7] = [
            (
                Adjustment::Brightness(1.3),
                [
                    0, 68, 137, 42, 111, 180, 85, 154, 223, 128, 197, 255, 48, 116, 185, 100, 178, 255, 152, 239, 255,
                    204, 255, 63, 192, 255, 255, 253, 7, 94, 255, 87, 192, 42, 166, 255,
                ],
            ),
            (
                Adjustment::Brightness(0.6),
                [
                    0, 31, 63, 19, 51, 83, 39, 71, 103, 59, 91, 123, 22, 54, 85, 46, 82, 118, 70, 110, 150, 94, 138,
                    29, 88, 120, 152, 117, 3, 43, 145, 40, 88, 19, 76, 133,
                ],
            ),
            (
                Adjustment::Contrast(1.4),
                [
                    0, 26, 100, 0, 72, 146, 44, 118, 193, 90, 165, 239, 4, 78, 152, 60, 144, 228, 116, 209, 255, 172,
                    255, 20, 159, 233, 255, 225, 0, 54, 255, 46, 159, 0, 131, 255,
                ],
            ),
            (
                Adjustment::Saturation(0.5),
                [
                    21, 48, 74, 54, 81, 107, 87, 114, 140, 120, 147, 173, 58, 85, 111, 101, 131, 161, 144, 177, 211,
                    172, 209, 118, 169, 196, 222, 132, 38, 71, 185, 97, 138, 71, 119, 166,
                ],
            ),
            (
                Adjustment::Saturation(1.8),
                [
                    0, 60, 156, 0, 94, 189, 31, 126, 222, 64, 160, 255, 2, 98, 193, 38, 146, 254, 73, 194, 255, 132,
                    255, 0, 113, 208, 255, 255, 0, 75, 255, 18, 164, 0, 142, 255,
                ],
            ),
            (
                Adjustment::Hue(0.1),
                [
                    10, 0, 106, 43, 33, 139, 76, 66, 172, 110, 99, 205, 47, 37, 143, 89, 77, 197, 130, 117, 251, 49,
                    231, 50, 159, 148, 254, 195, 52, 6, 242, 91, 67, 52, 33, 223,
                ],
            ),
            (
                Adjustment::Hue(-0.4),
                [
                    95, 106, 0, 128, 139, 33, 162, 172, 66, 195, 205, 99, 132, 143, 37, 185, 197, 77, 238, 251, 117,
                    231, 49, 230, 244, 254, 148, 6, 149, 195, 67, 218, 242, 204, 223, 33,
                ],
            ),
        ];
        for (adjustment, expected) in cases {
            let mut adjusted = image(3, 4, 3);
            adjustment.apply(&mut adjusted, 3);
            assert_eq!(adjusted, expected, "{adjustment:?}");
        }
        let mut grey = image(5, 6, 1);
        Adjustment::Contrast(0.5).apply(&mut grey, 1);
        let expected: [u8; 30] = [
            58, 75, 91, 108, 124, 141, 77, 97, 117, 137, 157, 177, 132, 156, 179, 75, 98, 122, 97, 124, 151, 178, 77,
            104, 98, 129, 159, 62, 92, 123,
        ];
        assert_eq!(grey, expected);
        Adjustment::Hue(0.3).apply(&mut grey, 1);
        Adjustment::Saturation(0.3).apply(&mut grey, 1);
        assert_eq!(grey, expected);
        let mut dark = [10u8, 10, 10, 0, 0, 0];
        Adjustment::Hue(0.5).apply(&mut dark, 3);
        assert_eq!(dark, [10, 10, 10, 0, 0, 0]);
    }

    /// torchvision 0.28: `gaussian_blur(image, [7, 7], [1.0, 1.0])`.
    #[test]
    fn a_blur_is_that_of_torchvision() {
        let mut blurred = image(7, 8, 1);
        blur(&mut blurred, [7, 8, 1], 1.0);
        let expected: [u8; 56] = [
            62, 76, 103, 128, 152, 158, 142, 134, 87, 100, 120, 131, 144, 150, 139, 134, 125, 137, 147, 132, 123, 132,
            145, 151, 133, 145, 152, 127, 108, 123, 154, 169, 136, 142, 136, 114, 112, 134, 156, 165, 142, 141, 123,
            107, 126, 150, 151, 146, 141, 139, 121, 107, 131, 157, 150, 138,
        ];
        assert_eq!(blurred, expected);
        let mut flat = [9u8; 6];
        blur(&mut flat, [1, 2, 3], 5.0);
        assert_eq!(flat, [9; 6]);
    }
}
