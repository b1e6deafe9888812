//! From images in bytes to batches of normalised numbers.
//!
//! The order of an epoch depends on the seed and the epoch, an image's augmentation on the seed, the epoch and the
//! image's index, and nothing on the number of threads: the same options give the same bits anywhere.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{Augmentation, Normalisation, Split};
use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// The channels of the batches; grey images are repeated to fill them.
    pub network_channels: usize,
    pub normalisation: Normalisation,
    pub batch_size: usize,
    /// A new random order each epoch (training); otherwise the order of the file (evaluation).
    pub shuffle: bool,
    pub augmentation: Option<Augmentation>,
    pub seed: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// N×H×W×C.
    pub images: Vec<f32>,
    pub shape: [usize; 4],
    pub labels: Vec<u32>,
    /// Where the images stand in the split.
    pub indices: Vec<usize>,
}

/// Whether images of `data_channels` can feed a network of `network_channels`.
pub fn check_channels(data_channels: usize, network_channels: usize) -> Result<()> {
    if data_channels == network_channels || data_channels == 1 {
        return Ok(());
    }
    Err(Error::usage(
        format!("images of {data_channels} channels cannot feed a network of {network_channels}"),
        format!("use a network of {data_channels} channels, or convert the images to grey"),
    ))
}

pub struct Loader<'a> {
    split: &'a Split,
    /// Height, width and channels of the images in bytes.
    shape: [usize; 3],
    options: LoaderOptions,
    /// The normalised value of every byte, per channel of the network.
    tables: Vec<[f32; 256]>,
    seeded: ChaCha8Rng,
}

/// The stream that orders an epoch; the ones below it in the same epoch belong to its images.
const ORDER: u64 = u32::MAX as u64;

/// A thread gets at least this many bytes at a time: fewer would take less time than waking it.
const BYTES_PER_JOB: usize = 32 << 10;

impl<'a> Loader<'a> {
    /// # Panics
    /// If [`check_channels`] or [`Normalisation::check`] would refuse the options, the batch size is 0, or the images do
    /// not have the shape given.
    pub fn new(split: &'a Split, height: usize, width: usize, channels: usize, options: LoaderOptions) -> Loader<'a> {
        check_channels(channels, options.network_channels).expect("channels that fit the network");
        options.normalisation.check(options.network_channels).expect("a normalisation for the network's channels");
        assert!(options.batch_size > 0, "a batch needs an image");
        assert_eq!(
            split.images.len(),
            split.len() * height * width * channels,
            "images of {height}×{width}×{channels}"
        );
        assert!((split.len() as u64) < ORDER, "too many images to give each a stream of its own");
        let table = |channel| {
            let (mean, std) = options.normalisation.of_channel(channel);
            std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std)
        };
        Loader {
            split,
            shape: [height, width, channels],
            tables: (0..options.network_channels).map(table).collect(),
            seeded: ChaCha8Rng::seed_from_u64(options.seed),
            options,
        }
    }

    /// The images that an epoch shows. A shuffled epoch leaves a last image over if it would be a batch of its own:
    /// batch statistics of one image are degenerate. Another epoch's order shows it.
    fn images_per_epoch(&self) -> usize {
        let (images, batch) = (self.split.len(), self.options.batch_size);
        let left_over = self.options.shuffle && batch > 1 && images > batch && images % batch == 1;
        images - usize::from(left_over)
    }

    pub fn batches_per_epoch(&self) -> usize {
        self.images_per_epoch().div_ceil(self.options.batch_size)
    }

    /// The batches of an epoch, each made when it is asked for.
    pub fn epoch(&self, epoch: usize) -> impl Iterator<Item = Batch> {
        let mut order: Vec<usize> = (0..self.split.len()).collect();
        if self.options.shuffle {
            order.shuffle(&mut self.stream(epoch, ORDER));
        }
        (0..self.batches_per_epoch()).map(move |batch| {
            let start = batch * self.options.batch_size;
            let end = (start + self.options.batch_size).min(self.images_per_epoch());
            self.batch(epoch, order[start..end].to_vec())
        })
    }

    fn batch(&self, epoch: usize, indices: Vec<usize>) -> Batch {
        let [height, width, channels] = self.shape;
        let shape = [indices.len(), height, width, self.options.network_channels];
        let bytes = height * width * channels;
        let mut images = vec![0.0; shape.iter().product()];
        images
            .par_chunks_exact_mut(height * width * self.options.network_channels)
            .zip(&indices)
            .with_min_len(BYTES_PER_JOB.div_ceil(bytes))
            .for_each_init(
                || vec![0; bytes],
                |scratch, (out, &index)| {
                    let image = &self.split.images[index * bytes..][..bytes];
                    match &self.options.augmentation {
                        None => self.normalise(image, out),
                        Some(augmentation) => {
                            let placement = augmentation.draw(&mut self.stream(epoch, index as u64));
                            placement.apply(image, self.shape, scratch);
                            self.normalise(scratch, out);
                        }
                    }
                },
            );
        let labels = indices.iter().map(|&index| self.split.labels[index]).collect();
        Batch { images, shape, labels, indices }
    }

    fn normalise(&self, image: &[u8], out: &mut [f32]) {
        match (self.shape[2], &self.tables[..]) {
            (1, [table]) => image.iter().zip(out).for_each(|(&byte, out)| *out = table[byte as usize]),
            (1, tables) => {
                for (&byte, out) in image.iter().zip(out.chunks_exact_mut(tables.len())) {
                    tables.iter().zip(out).for_each(|(table, out)| *out = table[byte as usize]);
                }
            }
            (channels, tables) => {
                for (pixel, out) in image.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
                    for ((&byte, table), out) in pixel.iter().zip(tables).zip(out) {
                        *out = table[byte as usize];
                    }
                }
            }
        }
    }

    fn stream(&self, epoch: usize, stream: u64) -> ChaCha8Rng {
        let mut rng = self.seeded.clone();
        rng.set_stream((epoch as u64) << 32 | stream);
        rng
    }
}
