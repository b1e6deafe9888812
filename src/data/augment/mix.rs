//! Batches of mixtures: of each image and the one before it, and of their labels.

use rand::{Rng, RngExt};
use rand_distr::{Beta, Distribution};

use super::Augmentation;
use super::geometry::Window;

/// How the images of a batch are mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// How much of an image is its own.
    share: f32,
    /// Where the image before it is seen instead; if there is none, it is seen everywhere, faintly.
    window: Option<Window>,
}

impl Mix {
    /// For a batch of images of this height and width, if any are mixed.
    pub fn draw(augmentation: &Augmentation, rng: &mut impl Rng, [height, width]: [usize; 2]) -> Option<Mix> {
        let Augmentation { mixup, cutmix, .. } = *augmentation;
        let cuts = match (mixup > 0.0, cutmix > 0.0) {
            (false, false) => return None,
            (true, true) => rng.random_bool(0.5),
            (_, cuts) => cuts,
        };
        let alpha = if cuts { cutmix } else { mixup };
        let share: f64 = Beta::new(alpha, alpha).expect("above 0").sample(rng);
        if !cuts {
            return Some(Mix { share: share as f32, window: None });
        }
        // Half of the window's sides, about a middle that may be at the edge.
        let half = 0.5 * (1.0 - share).sqrt();
        let mut span = |side: usize| {
            let (middle, reach) = (rng.random_range(0..side), (half * side as f64) as usize);
            (middle.saturating_sub(reach), (middle + reach).min(side))
        };
        let ((top, bottom), (left, right)) = (span(height), span(width));
        let window = Window { top, left, height: bottom - top, width: right - left };
        let share = 1.0 - (window.height * window.width) as f64 / (height * width) as f64;
        Some(Mix { share: share as f32, window: Some(window) })
    }

    /// Mixes images, N×H×W×C.
    pub fn images(&self, images: &mut [f32], [_, height, width, channels]: [usize; 4]) {
        let stride = height * width * channels;
        match self.window {
            None => self.rows(images, stride),
            Some(window) => each_with_the_one_before(images, stride, |image, before| {
                let rows = window.top..window.top + window.height;
                for row in rows {
                    let at = (row * width + window.left) * channels;
                    let end = at + window.width * channels;
                    image[at..end].copy_from_slice(&before[at..end]);
                }
            }),
        }
    }

    /// Mixes what each class has of every image, N×K.
    pub fn shares(&self, shares: &mut [f32], classes: usize) {
        self.rows(shares, classes);
    }

    fn rows(&self, rows: &mut [f32], stride: usize) {
        let Mix { share, .. } = *self;
        each_with_the_one_before(rows, stride, |row, before| {
            row.iter_mut().zip(before).for_each(|(own, other)| *own = other * (1.0 - share) + *own * share);
        });
    }
}

/// The one before the first is the last.
fn each_with_the_one_before(rows: &mut [f32], stride: usize, mut work: impl FnMut(&mut [f32], &[f32])) {
    let last = rows[rows.len() - stride..].to_vec();
    // From the end, so that the one before is as it was.
    for start in (stride..rows.len()).step_by(stride).collect::<Vec<_>>().into_iter().rev() {
        let (before, own) = rows.split_at_mut(start);
        work(&mut own[..stride], &before[start - stride..]);
    }
    work(&mut rows[..stride], &last);
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// torchvision 0.28: `MixUp` with λ = 0.75, and `CutMix` with the box (1, 0, 3, 2), of three images of 2×3.
    #[test]
    fn batches_are_mixed_as_by_torchvision() {
        let images: Vec<f32> = (0..18).map(|at| at as f32).collect();
        let mut mixed = images.clone();
        Mix { share: 0.75, window: None }.images(&mut mixed, [3, 2, 3, 1]);
        let expected = |at: usize| 0.25 * images[(at + 12) % 18] + 0.75 * images[at];
        assert_eq!(mixed, (0..18).map(expected).collect::<Vec<_>>());
        let window = Window { top: 0, left: 1, height: 2, width: 2 };
        let cut = Mix { share: 1.0 / 3.0, window: Some(window) };
        let mut mixed = images.clone();
        cut.images(&mut mixed, [3, 2, 3, 1]);
        assert_eq!(mixed[..6], [0.0, 13.0, 14.0, 3.0, 16.0, 17.0]);
        assert_eq!(mixed[6..12], [6.0, 1.0, 2.0, 9.0, 4.0, 5.0]);
        let mut shares = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        Mix { share: 0.75, window: None }.shares(&mut shares, 2);
        assert_eq!(shares, [1.0, 0.0, 0.25, 0.75, 0.75, 0.25]);
    }

    #[test]
    fn shares_are_those_of_the_area() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let both = Augmentation { mixup: 0.4, cutmix: 1.0, ..Augmentation::default() };
        let drawn: Vec<Mix> = (0..400).map(|_| Mix::draw(&both, &mut rng, [10, 20]).unwrap()).collect();
        let cut: Vec<&Mix> = drawn.iter().filter(|mix| mix.window.is_some()).collect();
        assert!((150..250).contains(&cut.len()));
        for mix in &cut {
            let Window { top, left, height, width } = mix.window.unwrap();
            assert!(top + height <= 10 && left + width <= 20);
            assert!((mix.share - (1.0 - (height * width) as f32 / 200.0)).abs() < 1e-6);
        }
        assert!(drawn.iter().all(|mix| (0.0..=1.0).contains(&mix.share)));
        // Beta(0.4, 0.4) is mostly near its ends.
        let up: Vec<f32> = drawn.iter().filter(|mix| mix.window.is_none()).map(|mix| mix.share).collect();
        assert!(up.iter().filter(|&&share| !(0.1..=0.9).contains(&share)).count() * 2 > up.len());
        assert_eq!(Mix::draw(&Augmentation::default(), &mut rng, [10, 20]), None);
    }
}
