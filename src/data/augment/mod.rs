//! Augmentation of training images.
//!
//! It works on samples, before normalisation, so that an augmented image takes the same path as any other; batches are mixed behind
//! it. What an image is shown as is drawn by a stream of its own. With their parameters given, the operations are those of
//! torchvision's `transforms.v2.functional` (0.28) on tensors of bytes; what is drawn is named as there.
//!
//! | in this order | drawn | as torchvision's |
//! |---|---|---|
//! | crop | a window of a share of the area and of 3:4 to 4:3, brought back to the size | `RandomResizedCrop` |
//! | quarter turns | 0 to 3 of them, of square images | |
//! | upside down | half of the images | `RandomVerticalFlip` |
//! | rotation | an angle; bilinear, black outside | `RandomRotation` |
//! | shift, mirror image | pixels along each axis, the edge repeated; half of the images | `RandomHorizontalFlip` |
//! | brightness, contrast, saturation, hue | a factor each, in an order that is drawn | `ColorJitter` |
//! | blur | half of the images, by a Gaussian as wide as is drawn | `GaussianBlur` |
//! | erasing | a window, which becomes the mean | `RandomErasing` |
//! | mixup, cutmix | batches: shares of an image and of the one before it | `MixUp`, `CutMix` |

mod colour;
mod geometry;
mod mix;
mod placement;

use multiversion::multiversion;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::source::Sample;
use crate::error::{Error, Result};
use colour::Adjustment;
use geometry::Window;
pub use mix::Mix;
pub use placement::Placement;

/// What may happen to a training image. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// Mirror every second image, left to right.
    pub flip: bool,
    /// Move by up to this many pixels along each axis; the edge's pixels fill what is left open.
    pub shift: usize,
    /// Turn every second image upside down.
    #[serde(skip_serializing_if = "is_off")]
    pub flip_vertical: bool,
    /// Turn by 0, 90, 180 or 270 degrees.
    #[serde(skip_serializing_if = "is_off")]
    pub quarter_turns: bool,
    /// Turn by up to so many degrees either way.
    #[serde(skip_serializing_if = "is_zero")]
    pub rotate: f64,
    /// The least share of the area that is shown; 0 shows all of it.
    #[serde(skip_serializing_if = "is_zero")]
    pub crop: f64,
    /// Brightness, contrast and saturation by factors of 1 − j to 1 + j, hue by up to j of the circle.
    #[serde(skip_serializing_if = "is_all_zero")]
    pub jitter: [f64; 4],
    /// Blur every second image by a Gaussian of a standard deviation from 0.1 to so many pixels.
    #[serde(skip_serializing_if = "is_zero")]
    pub blur: f64,
    /// How probably a window of 2 to 33 % of the area is erased.
    #[serde(skip_serializing_if = "is_zero")]
    pub erase: f64,
    /// α of the Beta distribution of the shares in which images are mixed.
    #[serde(skip_serializing_if = "is_zero")]
    pub mixup: f64,
    /// α of the Beta distribution of the area that a window of another image takes. With mixup too, each batch is mixed in one way.
    #[serde(skip_serializing_if = "is_zero")]
    pub cutmix: f64,
}

fn is_off(option: &bool) -> bool {
    !option
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

fn is_all_zero(numbers: &[f64; 4]) -> bool {
    *numbers == [0.0; 4]
}

impl Augmentation {
    /// Whether nothing happens.
    pub fn is_none(&self) -> bool {
        *self == Augmentation::default()
    }

    /// Whether there is no more than mirror images and shifts.
    pub fn is_placement(&self) -> bool {
        let Augmentation { flip, shift, .. } = *self;
        *self == Augmentation { flip, shift, ..Augmentation::default() }
    }

    /// Whether images of a batch are mixed, so that labels become shares.
    pub fn mixes(&self) -> bool {
        self.mixup > 0.0 || self.cutmix > 0.0
    }

    /// Refuses what cannot be drawn.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String, hint: &str| Err(Error::usage(message, hint));
        if self.shift > super::MAX_SIZE {
            return refuse(format!("--shift {}", self.shift), "give a few pixels; images have at most 1024 a side");
        }
        if !(0.0..=1.0).contains(&self.crop) {
            return refuse(format!("--crop {}", self.crop), "give the least share of the area, up to 1: 0.08, 0.5");
        }
        if !(0.0..=180.0).contains(&self.rotate) {
            return refuse(format!("--rotate {}", self.rotate), "give degrees from 0 to 180");
        }
        let [rest @ .., hue] = self.jitter;
        if rest.iter().any(|j| !(0.0..=1.0).contains(j)) || !(0.0..=0.5).contains(&hue) {
            let list = self.jitter.map(|j| j.to_string()).join(",");
            let hint = "give brightness, contrast and saturation from 0 to 1 and hue from 0 to 0.5: 0.2,0.2,0.2,0.05";
            return refuse(format!("--jitter {list}"), hint);
        }
        if !(self.blur == 0.0 || (0.1..=16.0).contains(&self.blur)) {
            return refuse(format!("--blur {}", self.blur), "give the largest standard deviation, 0.1 to 16 pixels");
        }
        if !(0.0..=1.0).contains(&self.erase) {
            return refuse(format!("--erase {}", self.erase), "give a probability from 0 to 1");
        }
        for (name, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if !(0.0..=100.0).contains(&alpha) {
                return refuse(format!("--{name} {alpha}"), "give α of its Beta distribution, such as 0.2 or 1");
            }
        }
        Ok(())
    }

    /// How an image of so many pixels down and across is shown.
    pub fn draw(&self, rng: &mut impl Rng, [height, width]: [usize; 2]) -> View {
        let reach = self.shift as i64;
        let flip = self.flip && rng.random_bool(0.5);
        let mut offset = || rng.random_range(-reach..=reach) as isize;
        let mut view = View { placement: Placement { flip, down: offset(), right: offset() }, ..View::default() };
        if self.is_placement() {
            return view;
        }
        view.flip_vertical = self.flip_vertical && rng.random_bool(0.5);
        if self.quarter_turns {
            // Another size would have to be another batch.
            let turns = rng.random_range(0..4);
            view.turns = if height == width { turns } else { turns & 2 };
        }
        if self.rotate > 0.0 {
            view.degrees = rng.random_range(-self.rotate..=self.rotate);
        }
        if self.crop > 0.0 {
            view.crop = Some(Window::of_share([height, width], self.crop..=1.0, 3.0 / 4.0..=4.0 / 3.0, rng));
        }
        let [brightness, contrast, saturation, hue] = self.jitter;
        let mut around = |j: f64| rng.random_range((1.0 - j).max(0.0)..=1.0 + j);
        let factors = [
            (brightness > 0.0).then(|| Adjustment::Brightness(around(brightness))),
            (contrast > 0.0).then(|| Adjustment::Contrast(around(contrast))),
            (saturation > 0.0).then(|| Adjustment::Saturation(around(saturation))),
            (hue > 0.0).then(|| Adjustment::Hue(around(hue) - 1.0)),
        ];
        view.adjustments = factors.into_iter().flatten().collect();
        view.adjustments.shuffle(rng);
        if self.blur > 0.0 && rng.random_bool(0.5) {
            view.blur = Some(rng.random_range(0.1..=self.blur));
        }
        if self.erase > 0.0 && rng.random_bool(self.erase) {
            view.erased = Some(Window::of_share([height, width], 0.02..=0.33, 0.3..=3.3, rng));
        }
        view
    }
}

/// Mirror images: left to right, and upside down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flips {
    pub across: bool,
    pub down: bool,
}

impl Flips {
    /// An H×W×C image in this mirror.
    pub fn of<T: Copy>(self, image: &[T], [height, width, channels]: [usize; 3]) -> Vec<T> {
        let mut out = Vec::with_capacity(image.len());
        for y in 0..height {
            let y = if self.down { height - 1 - y } else { y };
            for x in 0..width {
                let x = if self.across { width - 1 - x } else { x };
                out.extend_from_slice(&image[(y * width + x) * channels..][..channels]);
            }
        }
        out
    }
}

/// One image's augmentation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    placement: Placement,
    flip_vertical: bool,
    /// Quarter turns, counterclockwise.
    turns: u32,
    /// Counterclockwise.
    degrees: f64,
    crop: Option<Window>,
    adjustments: Vec<Adjustment>,
    /// The standard deviation in pixels.
    blur: Option<f64>,
    erased: Option<Window>,
}

impl View {
    /// What of it moves samples alone.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// [`View::apply`] to bytes, by whichever instructions there are: the same bits by all of them.
    pub(super) fn apply_eight(&self, image: &[u8], shape: [usize; 3], means: &[u8], out: &mut [u8]) {
        applied(self, image, shape, means, out);
    }

    /// Writes an image (H×W×C) as it is shown to `out`; `means` are what is erased becomes, channel by channel.
    #[inline(always)]
    pub(super) fn apply<T: Sample>(&self, image: &[T], shape: [usize; 3], means: &[T], out: &mut [T]) {
        let [height, width, channels] = shape;
        let mut made: Option<Vec<T>> = None;
        fn now<'a, T>(made: &'a Option<Vec<T>>, image: &'a [T]) -> &'a [T] {
            made.as_deref().unwrap_or(image)
        }
        if let Some(window) = self.crop.filter(|window| window.size() != [height, width]) {
            let cropped = window.of(now(&made, image), shape);
            made = Some(T::resize(&cropped, window.size(), [height, width], channels));
        }
        if self.turns > 0 {
            made = Some(geometry::turned(now(&made, image), shape, self.turns));
        }
        if self.flip_vertical {
            made = Some(Flips { across: false, down: true }.of(now(&made, image), shape));
        }
        if self.degrees != 0.0 {
            made = Some(geometry::rotated(now(&made, image), shape, self.degrees));
        }
        self.placement.apply(now(&made, image), shape, out);
        self.adjustments.iter().for_each(|adjustment| adjustment.apply(out, channels));
        if let Some(sigma) = self.blur {
            colour::blur(out, shape, sigma);
        }
        if let Some(window) = self.erased {
            window.fill(out, shape, means);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
fn applied(view: &View, image: &[u8], shape: [usize; 3], means: &[u8], out: &mut [u8]) {
    view.apply(image, shape, means, out);
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn draws_cover_the_range_and_nothing_else() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let some = Augmentation { flip: true, shift: 2, ..Augmentation::default() };
        let draws: Vec<Placement> = (0..400).map(|_| some.draw(&mut rng, [8, 8]).placement()).collect();
        for offset in -2..=2 {
            assert!(draws.iter().any(|draw| draw.down == offset) && draws.iter().any(|draw| draw.right == offset));
        }
        assert!(draws.iter().all(|draw| draw.down.abs() <= 2 && draw.right.abs() <= 2));
        assert!((150..250).contains(&draws.iter().filter(|draw| draw.flip).count()));
        let none = Augmentation::default();
        assert!((0..9).all(|_| none.draw(&mut rng, [8, 8]) == View::default()));
    }

    fn all() -> Augmentation {
        Augmentation {
            flip: true,
            shift: 1,
            flip_vertical: true,
            quarter_turns: true,
            rotate: 20.0,
            crop: 0.25,
            jitter: [0.4, 0.3, 0.2, 0.1],
            blur: 2.0,
            erase: 0.5,
            mixup: 0.0,
            cutmix: 0.0,
        }
    }

    #[test]
    fn everything_is_drawn_within_its_range() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let views: Vec<View> = (0..400).map(|_| all().draw(&mut rng, [40, 40])).collect();
        let share = |is: fn(&View) -> bool| views.iter().filter(|view| is(view)).count() as f64 / 400.0;
        for half in [share(|v| v.flip_vertical), share(|v| v.blur.is_some()), share(|v| v.erased.is_some())] {
            // Four standard deviations.
            assert!((half - 0.5).abs() < 0.1, "{half}");
        }
        assert!((0..4).all(|turns| views.iter().any(|view| view.turns == turns)));
        assert!(views.iter().all(|view| view.degrees.abs() <= 20.0) && views.iter().any(|view| view.degrees < -15.0));
        let areas: Vec<usize> = views.iter().map(|view| view.crop.unwrap().size().iter().product()).collect();
        assert!(areas.iter().all(|&area| (380..=1600).contains(&area)), "{areas:?}");
        assert!(areas.iter().any(|&area| area < 600) && areas.iter().any(|&area| area > 1400));
        let is_in_range = |adjustment: &Adjustment| match *adjustment {
            Adjustment::Brightness(factor) => (0.6..=1.4).contains(&factor),
            Adjustment::Contrast(factor) => (0.7..=1.3).contains(&factor),
            Adjustment::Saturation(factor) => (0.8..=1.2).contains(&factor),
            Adjustment::Hue(turn) => (-0.1..=0.1).contains(&turn),
        };
        assert!(views.iter().all(|view| view.adjustments.len() == 4 && view.adjustments.iter().all(is_in_range)));
        assert!(views.iter().any(|view| matches!(view.adjustments[0], Adjustment::Hue(_))));
        // No quarter turn of what is not square.
        assert!((0..50).all(|_| all().draw(&mut rng, [40, 30]).turns.is_multiple_of(2)));
    }

    #[test]
    fn mirrors_keep_a_pixels_channels_in_order() {
        let of = |across, down| Flips { across, down }.of(&[1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 2]);
        assert_eq!(of(false, false), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(of(true, false), [3, 4, 1, 2, 7, 8, 5, 6]);
        assert_eq!(of(false, true), [5, 6, 7, 8, 1, 2, 3, 4]);
        assert_eq!(of(true, true), [7, 8, 5, 6, 3, 4, 1, 2]);
    }

    #[test]
    fn sixteen_bits_are_shown_as_eight_are() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let eight: Vec<u8> = (0..12 * 12).map(|at| (at * 37 % 251) as u8).collect();
        let sixteen: Vec<u16> = eight.iter().map(|&sample| 257 * u16::from(sample)).collect();
        for _ in 0..40 {
            let view = all().draw(&mut rng, [12, 12]);
            let (mut of_eight, mut of_sixteen) = (vec![0u8; 144], vec![0u16; 144]);
            view.apply(&eight, [12, 12, 1], &[100], &mut of_eight);
            view.apply(&sixteen, [12, 12, 1], &[25700], &mut of_sixteen);
            let mut apart =
                of_eight.iter().zip(&of_sixteen).map(|(&a, &b)| (f64::from(a) - f64::from(b) / 257.0).abs());
            // Each of four steps rounds bytes, some of them down.
            assert!(apart.all(|apart| apart < 4.0), "{view:?}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let refused = |augmentation: Augmentation, says: &str| {
            let error = augmentation.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        all().check().unwrap();
        refused(Augmentation { crop: 1.5, ..all() }, "--crop 1.5");
        refused(Augmentation { rotate: f64::NAN, ..all() }, "--rotate NaN");
        refused(Augmentation { jitter: [0.0, 0.0, 0.0, 0.6], ..all() }, "--jitter 0,0,0,0.6");
        refused(Augmentation { blur: 0.01, ..all() }, "--blur 0.01");
        refused(Augmentation { erase: -0.1, ..all() }, "--erase -0.1");
        refused(Augmentation { mixup: f64::INFINITY, ..all() }, "--mixup inf");
    }
}
