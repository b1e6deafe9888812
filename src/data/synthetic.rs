//! Three related tasks on small images that look like skin lesions, for demonstrations, tests and benchmarks.
//!
//! An image is a background (a base tone, an illumination gradient, noise) with one darker blob on it. The blob's
//! outline has one of four shapes and its inside one of four textures. `Task::Texture` asks for the texture,
//! `Task::Shape` for the shape and `Task::Both` for the pair, so that networks trained on the first two each know half
//! of what the third needs: the setting in which merging ought to beat training from scratch.
//!
//! Brightness and size say nothing about a label: depth, contrast and area are drawn from the same ranges for every
//! class, an outline is scaled to the area drawn, and a texture is brought to mean 0 and variance 1 over its own blob.
//! Positions, rotations and phases are random too, which leaves no single pixel to learn from.

use std::{f32::consts::TAU, path::PathBuf};

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;

use super::{Dataset, Split, SplitName};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Texture,
    Shape,
    Both,
}

impl Task {
    pub const NAMES: [&'static str; 3] = ["texture", "shape", "both"];

    pub fn name(self) -> &'static str {
        Task::NAMES[self as usize]
    }
}

/// Which task becomes which file, where all of them lie in one folder: two for sources, and the target.
pub const FILES: [(Task, &str); 3] =
    [(Task::Texture, "texture.npz"), (Task::Shape, "shape.npz"), (Task::Both, "target.npz")];

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Task> {
        [Task::Texture, Task::Shape, Task::Both]
            .into_iter()
            .find(|task| task.name() == name)
            .ok_or_else(|| Error::unknown("task", name, Task::NAMES))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticOptions {
    /// Height and width in pixels; every feature scales with it.
    pub size: usize,
    /// 1 (grey) or 3 (skin tones).
    pub channels: usize,
    /// Images per split.
    pub train: usize,
    pub val: usize,
    pub test: usize,
    pub seed: u64,
    /// How many of the four textures and shapes occur.
    pub textures: usize,
    pub shapes: usize,
    /// Standard deviation of the pixel noise, as a share of the full range.
    pub noise: f32,
    /// Dark and light are exchanged, as in the images of another instrument.
    pub negative: bool,
}

impl Default for SyntheticOptions {
    fn default() -> Self {
        SyntheticOptions {
            size: 28,
            channels: 1,
            train: 4000,
            val: 500,
            test: 1000,
            seed: 0,
            textures: TEXTURES.len(),
            shapes: SHAPES.len(),
            noise: 0.045,
            negative: false,
        }
    }
}

impl SyntheticOptions {
    pub fn classes(&self, task: Task) -> usize {
        match task {
            Task::Texture => self.textures,
            Task::Shape => self.shapes,
            Task::Both => self.textures * self.shapes,
        }
    }

    /// What the labels mean, in their order.
    pub fn class_names(&self, task: Task) -> Vec<String> {
        let lower = |kind: &dyn std::fmt::Debug| format!("{kind:?}").to_lowercase();
        let textures: Vec<String> = TEXTURES[..self.textures].iter().map(|texture| lower(texture)).collect();
        let shapes: Vec<String> = SHAPES[..self.shapes].iter().map(|shape| lower(shape)).collect();
        match task {
            Task::Texture => textures,
            Task::Shape => shapes,
            Task::Both => textures.iter().flat_map(|t| shapes.iter().map(move |s| format!("{s}, {t}"))).collect(),
        }
    }

    /// Checks what `generate` asserts, with an error for a user who typed the numbers.
    pub fn check(&self, task: Task) -> Result<()> {
        let refuse = |message: String, hint: &str| Err(Error::usage(message, hint));
        if !(MIN_SIZE..=super::MAX_SIZE).contains(&self.size) {
            return refuse(
                format!("images of {} pixels cannot be drawn", self.size),
                &format!("give a size from {MIN_SIZE} to {}", super::MAX_SIZE),
            );
        }
        if ![1, 3].contains(&self.channels) {
            return refuse(format!("images cannot have {} channels", self.channels), "1 is grey, 3 is colour");
        }
        for (kind, count, most) in [("textures", self.textures, TEXTURES.len()), ("shapes", self.shapes, SHAPES.len())]
        {
            if !(2..=most).contains(&count) {
                return refuse(format!("{count} {kind} are not possible"), &format!("give 2 to {most} {kind}"));
            }
        }
        if self.train < self.classes(task) {
            return refuse(
                format!("{} training images cannot show {} classes", self.train, self.classes(task)),
                "every class needs at least one training image",
            );
        }
        if !(0.0..=1.0).contains(&self.noise) {
            return refuse(format!("noise of {} makes no sense", self.noise), "give a share of the range, from 0 to 1");
        }
        Ok(())
    }
}

/// Draws the data set. The same task and options give the same bytes, with any number of threads.
///
/// # Panics
/// If [`SyntheticOptions::check`] would refuse the options.
pub fn generate(task: Task, options: &SyntheticOptions) -> Dataset {
    if let Err(error) = options.check(task) {
        panic!("{error}");
    }
    Dataset {
        task: Default::default(),
        path: PathBuf::from(format!("synthetic-{task}.npz")),
        train: split(task, SplitName::Train, options.train, options),
        val: split(task, SplitName::Val, options.val, options),
        test: split(task, SplitName::Test, options.test, options),
        height: options.size,
        width: options.size,
        channels: options.channels,
        classes: options.classes(task),
        class_names: None,
        drawn: None,
    }
}

fn split(task: Task, name: SplitName, count: usize, options: &SyntheticOptions) -> Split {
    // The low 48 bits count images, so that no two images of any task and split share a stream.
    const ORDER: u64 = (1 << 48) - 1;
    let first = (task as u64) << 56 | (name as u64) << 48;
    let seeded = ChaCha8Rng::seed_from_u64(options.seed);
    let stream = |index: u64| {
        let mut rng = seeded.clone();
        rng.set_stream(first | index);
        rng
    };

    let classes = options.classes(task);
    let mut labels: Vec<u32> = (0..count).map(|index| (index % classes) as u32).collect();
    labels.shuffle(&mut stream(ORDER));

    let pixels = options.size * options.size * options.channels;
    let mut images = vec![0; count * pixels];
    images.par_chunks_exact_mut(pixels).zip(&labels).enumerate().for_each(|(index, (image, &label))| {
        let mut rng = stream(index as u64);
        let label = label as usize;
        let (texture, shape) = match task {
            Task::Texture => (label, rng.random_range(0..options.shapes)),
            Task::Shape => (rng.random_range(0..options.textures), label),
            Task::Both => (label / options.shapes, label % options.shapes),
        };
        draw(image, TEXTURES[texture], SHAPES[shape], options, &mut rng);
    });
    Split::in_memory(images, [options.size, options.size, options.channels], labels)
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Round,
    Elongated,
    Lobed,
    Spiky,
}

#[derive(Debug, Clone, Copy)]
enum Texture {
    Stripes,
    Dots,
    Checker,
    Speckle,
}

const SHAPES: [Shape; 4] = [Shape::Round, Shape::Elongated, Shape::Lobed, Shape::Spiky];
const TEXTURES: [Texture; 4] = [Texture::Stripes, Texture::Dots, Texture::Checker, Texture::Speckle];

/// Below this the finest texture has less than two pixels per period.
const MIN_SIZE: usize = 16;

/// The lengths in this file are pixels of an image of this size.
const REFERENCE_SIZE: f32 = 28.0;

/// Reflectance of the background and absorption of the lesion in red, green and blue.
const SKIN: [f32; 3] = [1.0, 0.84, 0.74];
const PIGMENT: [f32; 3] = [0.8, 1.0, 1.0];

fn draw(image: &mut [u8], texture: Texture, shape: Shape, options: &SyntheticOptions, rng: &mut ChaCha8Rng) {
    let size = options.size;
    let scale = size as f32 / REFERENCE_SIZE;
    let middle = (size as f32 - 1.0) / 2.0;

    let tone = rng.random_range(0.62..0.80);
    let slope = rng.random_range(0.0..0.12) / middle;
    let (slope_y, slope_x) = angle(rng).sin_cos();
    let [centre_y, centre_x] = [(); 2].map(|()| middle + scale * rng.random_range(-2.0f32..2.0));
    let depth = rng.random_range(0.16..0.30);
    let contrast = rng.random_range(0.05..0.11);
    let outline = Outline::new(shape, scale * rng.random_range(6.6..8.0), rng);
    let pattern = Pattern::new(texture, scale, rng);

    let inside: Vec<[f32; 2]> = (0..size * size)
        .map(|pixel| {
            let (y, x) = ((pixel / size) as f32 - centre_y, (pixel % size) as f32 - centre_x);
            let edge = (0.5 + (outline.radius(y.atan2(x)) - y.hypot(x)) / (1.2 * scale)).clamp(0.0, 1.0);
            [edge, if edge > 0.0 { pattern.at(y, x) } else { 0.0 }]
        })
        .collect();
    let (mean, deviation) = weighted_moments(&inside);

    for (pixel, (out, [edge, pattern])) in image.chunks_exact_mut(options.channels).zip(inside).enumerate() {
        let (y, x) = ((pixel / size) as f32 - middle, (pixel % size) as f32 - middle);
        let background = tone + slope * (slope_y * y + slope_x * x);
        let lesion = edge * (contrast * (pattern - mean) / deviation - depth);
        for (channel, value) in out.iter_mut().enumerate() {
            let (skin, pigment) = if options.channels == 1 { (1.0, 1.0) } else { (SKIN[channel], PIGMENT[channel]) };
            let noise: f32 = rng.sample(StandardNormal);
            *value = (255.0 * (skin * background + pigment * lesion + options.noise * noise)).round() as u8;
            if options.negative {
                *value = 255 - *value;
            }
        }
    }
}

/// Mean and standard deviation of `[weight, value]` pairs.
fn weighted_moments(pairs: &[[f32; 2]]) -> (f32, f32) {
    let total: f32 = pairs.iter().map(|[weight, _]| weight).sum();
    let mean = pairs.iter().map(|[weight, value]| weight * value).sum::<f32>() / total;
    let variance = pairs.iter().map(|[weight, value]| weight * (value - mean).powi(2)).sum::<f32>() / total;
    (mean, variance.sqrt().max(1e-3))
}

fn angle(rng: &mut ChaCha8Rng) -> f32 {
    rng.random_range(0.0..TAU)
}

/// A closed curve around the origin, in polar coordinates.
struct Outline {
    shape: Shape,
    /// How far the shape is from a circle.
    strength: f32,
    lobes: f32,
    rotation: f32,
    wobble: f32,
    wobble_phase: f32,
    /// Pixels per unit of `profile`.
    scale: f32,
}

impl Outline {
    /// `radius` is that of the circle of the same area.
    fn new(shape: Shape, radius: f32, rng: &mut ChaCha8Rng) -> Outline {
        let (strength, lobes) = match shape {
            Shape::Round => (0.0, 0.0),
            Shape::Elongated => (rng.random_range(1.6..2.1), 0.0),
            Shape::Lobed => (rng.random_range(0.20..0.28), 3.0),
            Shape::Spiky => (rng.random_range(0.65..0.85), f32::from(rng.random_range(6..=7u8))),
        };
        let mut outline = Outline {
            shape,
            strength,
            lobes,
            rotation: angle(rng),
            wobble: rng.random_range(0.02..0.05),
            wobble_phase: angle(rng),
            scale: 1.0,
        };
        const STEPS: usize = 256;
        let square: f32 = (0..STEPS).map(|step| outline.profile(TAU * step as f32 / STEPS as f32).powi(2)).sum();
        outline.scale = radius / (square / STEPS as f32).sqrt();
        outline
    }

    fn radius(&self, angle: f32) -> f32 {
        self.scale * self.profile(angle)
    }

    fn profile(&self, angle: f32) -> f32 {
        let turned = angle - self.rotation;
        let shape = match self.shape {
            Shape::Round => 1.0,
            // An ellipse whose axes are in the ratio `strength`.
            Shape::Elongated => {
                (turned.cos().powi(2) / self.strength + turned.sin().powi(2) * self.strength).sqrt().recip()
            }
            Shape::Lobed => 1.0 + self.strength * (self.lobes * turned).cos(),
            // The cusps of a rectified sine point outwards.
            Shape::Spiky => 1.0 + self.strength * (1.0 - (0.5 * self.lobes * turned).sin().abs()),
        };
        shape + self.wobble * (2.0 * angle + self.wobble_phase).cos()
    }
}

/// A texture over the plane, of arbitrary mean and variance.
struct Pattern {
    texture: Texture,
    rotation: [f32; 2],
    phase: [f32; 2],
    /// Radians per pixel.
    frequency: f32,
    /// The plane waves of `Speckle`: wave vector and phase of each.
    waves: Vec<[f32; 3]>,
}

impl Pattern {
    fn new(texture: Texture, scale: f32, rng: &mut ChaCha8Rng) -> Pattern {
        let pitch = match texture {
            Texture::Stripes => 3.6,
            Texture::Dots | Texture::Checker => 4.6,
            Texture::Speckle => 5.0,
        };
        let frequency = TAU / (scale * pitch * rng.random_range(0.9..1.1));
        let (sin, cos) = angle(rng).sin_cos();
        let phase = [angle(rng), angle(rng)];
        let waves = match texture {
            Texture::Speckle => (0..12)
                .map(|_| {
                    let (sin, cos) = angle(rng).sin_cos();
                    let frequency = frequency * rng.random_range(0.6..1.2);
                    [frequency * cos, frequency * sin, angle(rng)]
                })
                .collect(),
            _ => Vec::new(),
        };
        Pattern { texture, rotation: [cos, sin], phase, frequency, waves }
    }

    fn at(&self, y: f32, x: f32) -> f32 {
        let [cos, sin] = self.rotation;
        let u = self.frequency * (cos * x + sin * y) + self.phase[0];
        let v = self.frequency * (cos * y - sin * x) + self.phase[1];
        match self.texture {
            Texture::Stripes => u.sin(),
            // Bright where both waves crest, flat elsewhere.
            Texture::Dots => (1.5 * (u.cos() + v.cos())).exp(),
            // A soft step in place of the square wave, which would alias at this pitch.
            Texture::Checker => (3.0 * u.sin() * v.sin()).tanh(),
            Texture::Speckle => self.waves.iter().map(|[kx, ky, phase]| (kx * x + ky * y + phase).sin()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(task: Task) -> Dataset {
        generate(task, &SyntheticOptions { train: 800, val: 16, test: 400, ..Default::default() })
    }

    fn images(split: &Split, pixels: usize) -> Vec<(Vec<u8>, usize)> {
        let bytes = split.bytes().unwrap();
        let labels = split.labels.iter().map(|&label| label as usize);
        bytes.chunks_exact(pixels).map(<[u8]>::to_vec).zip(labels).collect()
    }

    #[test]
    fn splits_are_balanced_and_shuffled() {
        for (task, classes) in [(Task::Texture, 4), (Task::Shape, 4), (Task::Both, 16)] {
            let dataset = small(task);
            assert_eq!(dataset.class_counts(SplitName::Train), vec![800 / classes; classes]);
            assert_eq!(dataset.class_counts(SplitName::Val), vec![16 / classes; classes]);
            assert!(dataset.train.labels.iter().enumerate().any(|(index, &label)| label as usize != index % classes));
        }
    }

    #[test]
    fn the_same_options_give_the_same_bytes_on_any_thread() {
        let options = SyntheticOptions { train: 40, val: 40, test: 40, channels: 3, ..Default::default() };
        let on = |threads, options: &SyntheticOptions| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| generate(Task::Texture, options))
        };
        let dataset = on(1, &options);
        let train = |dataset: &Dataset| dataset.train.bytes().unwrap();
        assert_eq!(dataset.sha256().unwrap(), on(3, &options).sha256().unwrap());
        assert!(train(&dataset) != dataset.val.bytes().unwrap(), "splits share their images");
        assert!(train(&dataset) != train(&generate(Task::Shape, &options)), "tasks share their images");
        assert!(train(&dataset) != train(&on(1, &SyntheticOptions { seed: 1, ..options })));
    }

    #[test]
    fn brightness_says_nothing_about_the_label() {
        for task in [Task::Texture, Task::Shape] {
            let dataset = small(task);
            let mut sums = [[0.0; 3]; 4];
            for (image, label) in images(&dataset.train, 28 * 28) {
                let mean = image.iter().map(|&byte| f64::from(byte)).sum::<f64>() / image.len() as f64;
                sums[label].iter_mut().zip([1.0, mean, mean * mean]).for_each(|(sum, term)| *sum += term);
            }
            for [count, sum, squares] in sums {
                let all: f64 = sums.iter().map(|sums| sums[1]).sum::<f64>() / 800.0;
                let deviation = (squares / count - (sum / count).powi(2)).sqrt();
                // Five standard errors.
                assert!((sum / count - all).abs() < 5.0 * deviation / count.sqrt(), "{task}: {sums:?}");
            }
        }
    }

    #[test]
    fn single_pixels_do_not_give_the_label_away() {
        for task in [Task::Texture, Task::Shape] {
            let dataset = small(task);
            let mut centroids = vec![vec![0.0; 28 * 28]; 4];
            for (image, label) in images(&dataset.train, 28 * 28) {
                centroids[label].iter_mut().zip(&image).for_each(|(sum, &byte)| *sum += f64::from(byte) / 200.0);
            }
            let distance = |image: &[u8], class: usize| -> f64 {
                image.iter().zip(&centroids[class]).map(|(&byte, centre)| (f64::from(byte) - centre).powi(2)).sum()
            };
            let nearest = |image: &[u8]| (0..4).min_by(|&a, &b| distance(image, a).total_cmp(&distance(image, b)));
            let correct =
                images(&dataset.test, 28 * 28).iter().filter(|(image, label)| nearest(image) == Some(*label)).count();
            assert!(correct < 180, "{task}: a nearest-centroid classifier has {correct} of 400");
        }
    }

    /// How much longer than wide the dark blob is, and how rough its inside.
    fn features(image: &[u8]) -> [f64; 2] {
        let border: f64 = (0..28).map(|at| f64::from(image[at]) + f64::from(image[27 * 28 + at])).sum::<f64>() / 56.0;
        let dark = |pixel: usize| (border - f64::from(image[pixel]) - 22.0).max(0.0);
        let moment = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            (0..28 * 28).map(|pixel| dark(pixel) * of((pixel / 28) as f64, (pixel % 28) as f64)).sum()
        };
        let total = moment(&|_, _| 1.0);
        let (y, x) = (moment(&|y, _| y) / total, moment(&|_, x| x) / total);
        let [yy, xx, yx] =
            [moment(&|v, _| (v - y).powi(2)), moment(&|_, u| (u - x).powi(2)), moment(&|v, u| (v - y) * (u - x))]
                .map(|moment| moment / total);
        let spread = ((yy - xx).powi(2) + 4.0 * yx * yx).sqrt();
        // Within three pixels of the centre, to keep the outline out.
        let inside = (0..28 * 28).filter(|pixel| ((pixel / 28) as f64 - y).hypot((pixel % 28) as f64 - x) < 3.0);
        let roughness: f64 = inside
            .map(|pixel| {
                let step = |other: usize| (f64::from(image[pixel]) - f64::from(image[other])).powi(2);
                step(pixel + 1) + step(pixel + 28)
            })
            .sum();
        [(yy + xx + spread) / (yy + xx - spread), roughness]
    }

    #[test]
    fn labels_of_both_are_texture_times_shapes_plus_shape() {
        let options = SyntheticOptions { train: 640, noise: 0.0, ..Default::default() };
        let dataset = generate(Task::Both, &options);
        let (mut elongation, mut roughness) = ([0.0; 4], [0.0; 4]);
        for (image, label) in images(&dataset.train, 28 * 28) {
            let [long, rough] = features(&image);
            elongation[label % 4] += long / 160.0;
            roughness[label / 4] += rough / 160.0;
        }
        let (elongated, speckle) = (Shape::Elongated as usize, Texture::Speckle as usize);
        for other in 0..4 {
            assert!(other == elongated || elongation[elongated] > 1.5 * elongation[other], "{elongation:?}");
            assert!(other == speckle || roughness[speckle] < 0.75 * roughness[other], "{roughness:?}");
        }
    }

    #[test]
    fn other_sizes_and_numbers_of_classes_work() {
        let options =
            SyntheticOptions { size: 56, channels: 3, train: 12, textures: 2, shapes: 3, ..Default::default() };
        let dataset = generate(Task::Both, &options);
        assert_eq!((dataset.classes, dataset.train.bytes().unwrap().len()), (6, 12 * 56 * 56 * 3));
        assert!(dataset.check_classes().is_ok());
        let default = SyntheticOptions::default();
        for bad in [
            SyntheticOptions { size: 8, ..default.clone() },
            SyntheticOptions { channels: 2, ..default.clone() },
            SyntheticOptions { textures: 5, ..default.clone() },
            SyntheticOptions { shapes: 1, ..default.clone() },
            SyntheticOptions { train: 15, ..default.clone() },
            SyntheticOptions { noise: f32::NAN, ..default },
        ] {
            assert!(bad.check(Task::Both).is_err(), "{bad:?}");
        }
    }
}
