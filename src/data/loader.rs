//! From images as they are stored to batches of normalised numbers of one size.
//!
//! The order of an epoch depends on the seed and the epoch, an image's augmentation on the seed, the epoch and the
//! image's index, and nothing on the number of threads: the same options give the same bits anywhere.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::augment::Placement;
use super::source::{Depth, Image, Samples};
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
    pub key: Key,
}

/// Two words of the batch's own, from which dropout draws: others for every epoch and seed.
pub type Key = [u32; 2];

/// The same as stored, for a device that augments and normalises by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct RawBatch {
    /// N×H×W×C.
    pub bytes: Vec<u8>,
    /// N, H, W, C.
    pub shape: [usize; 4],
    /// For each image: flip (0 or 1), rows down, columns to the right; `None` without augmentation.
    pub placements: Option<Vec<i32>>,
    pub labels: Vec<u32>,
    pub key: Key,
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
    /// Height, width and channels to which images are brought.
    shape: [usize; 3],
    options: LoaderOptions,
    /// The normalised value of every byte, per channel of the network.
    tables: Vec<[f32; 256]>,
    seeded: ChaCha8Rng,
}

/// The stream that orders an epoch; the ones below it in the same epoch belong to its images.
const ORDER: u64 = u32::MAX as u64;
/// The streams of batches, beyond those of images in any epoch.
const KEYS: u64 = 1 << 63;

/// A thread gets at least this many bytes at a time: fewer would take less time than waking it.
const BYTES_PER_JOB: usize = 32 << 10;

impl<'a> Loader<'a> {
    /// # Panics
    /// If [`check_channels`] or [`Normalisation::check`] would refuse the options, the batch size is 0, or images without
    /// labels are to be shuffled, as for training.
    pub fn new(split: &'a Split, height: usize, width: usize, channels: usize, options: LoaderOptions) -> Loader<'a> {
        check_channels(channels, options.network_channels).expect("channels that fit the network");
        options.normalisation.check(options.network_channels).expect("a normalisation for the network's channels");
        assert!(options.batch_size > 0, "a batch needs an image");
        assert!(split.is_labelled() || !options.shuffle, "nothing can be learned from images without labels");
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

    /// Images of a batch of an epoch, counted from 0.
    pub fn images_of_batch(&self, batch: usize) -> usize {
        self.options.batch_size.min(self.images_per_epoch() - batch * self.options.batch_size)
    }

    /// Images of the largest batch of an epoch.
    pub fn largest_batch(&self) -> usize {
        self.options.batch_size.min(self.images_per_epoch())
    }

    /// Images of the smallest batch of an epoch.
    pub fn smallest_batch(&self) -> usize {
        match self.images_per_epoch() % self.options.batch_size {
            0 => self.options.batch_size.min(self.images_per_epoch()),
            rest => rest,
        }
    }

    /// Bits of the samples. Batches [as stored](Loader::raw_epoch) have eight.
    pub fn depth(&self) -> Depth {
        self.split.images().depth()
    }

    /// The batches of an epoch, each made when it is asked for.
    pub fn epoch(&self, epoch: usize) -> impl Iterator<Item = Result<Batch>> {
        self.indices(epoch).map(move |indices| self.batch(epoch, indices))
    }

    /// The same batches as stored, with how each image is to be shown.
    ///
    /// # Panics
    /// If samples have more than eight bits.
    pub fn raw_epoch(&self, epoch: usize) -> impl Iterator<Item = Result<RawBatch>> {
        self.indices(epoch).map(move |indices| self.raw(epoch, &indices))
    }

    /// The normalised value of every byte, per channel of the network.
    pub fn tables(&self) -> &[[f32; 256]] {
        &self.tables
    }

    /// The images of each batch of an epoch.
    fn indices(&self, epoch: usize) -> impl Iterator<Item = Vec<usize>> {
        let mut order: Vec<usize> = (0..self.split.len()).collect();
        if self.options.shuffle {
            order.shuffle(&mut self.stream(epoch, ORDER));
        }
        (0..self.batches_per_epoch()).map(move |batch| {
            let start = batch * self.options.batch_size;
            let end = (start + self.options.batch_size).min(self.images_per_epoch());
            order[start..end].to_vec()
        })
    }

    /// The images of a batch, of one size.
    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
        let images = self.split.images().read(indices)?;
        assert_eq!(images.len(), indices.len(), "as many images as were asked for");
        // Nothing to share out among threads.
        if images.iter().all(|image| image.shape == self.shape) {
            return Ok(images);
        }
        images.into_par_iter().map(|image| image.resized(self.shape)).collect()
    }

    /// Zeros where there are no labels: who scores images reads none.
    fn labels(&self, indices: &[usize]) -> Vec<u32> {
        match self.split.is_labelled() {
            true => indices.iter().map(|&index| self.split.labels[index]).collect(),
            false => vec![0; indices.len()],
        }
    }

    fn raw(&self, epoch: usize, indices: &[usize]) -> Result<RawBatch> {
        let [height, width, channels] = self.shape;
        let placement = |augmentation: &Augmentation, index: usize| {
            let Placement { flip, down, right } = augmentation.draw(&mut self.stream(epoch, index as u64));
            // Further than the image reaches there is only its edge.
            let within = |offset: isize, size: usize| offset.clamp(-(size as isize), size as isize) as i32;
            [flip.into(), within(down, height), within(right, width)]
        };
        let mut bytes = Vec::with_capacity(indices.len() * height * width * channels);
        for image in self.read(indices)? {
            let Samples::Eight(image) = &image.samples else { panic!("samples of sixteen bits as bytes") };
            bytes.extend_from_slice(image);
        }
        Ok(RawBatch {
            bytes,
            shape: [indices.len(), height, width, channels],
            placements: self
                .options
                .augmentation
                .as_ref()
                .map(|augmentation| indices.iter().flat_map(|&index| placement(augmentation, index)).collect()),
            labels: self.labels(indices),
            key: self.key(epoch, indices),
        })
    }

    /// A batch is known by its first image, which no other batch of the epoch has.
    fn key(&self, epoch: usize, indices: &[usize]) -> Key {
        let mut stream = self.stream(epoch, KEYS | indices[0] as u64);
        [stream.next_u32(), stream.next_u32()]
    }

    fn batch(&self, epoch: usize, indices: Vec<usize>) -> Result<Batch> {
        let [height, width, channels] = self.shape;
        let shape = [indices.len(), height, width, self.options.network_channels];
        let samples = height * width * channels;
        let mut images = vec![0.0; shape.iter().product()];
        images
            .par_chunks_exact_mut(height * width * self.options.network_channels)
            .zip(self.read(&indices)?.into_par_iter().zip(&indices))
            .with_min_len(BYTES_PER_JOB.div_ceil(samples))
            .for_each_init(
                || (Vec::new(), Vec::new()),
                |(eight, sixteen), (out, (image, &index))| {
                    let placement = self.options.augmentation.as_ref();
                    let placement =
                        placement.map(|augmentation| augmentation.draw(&mut self.stream(epoch, index as u64)));
                    match &image.samples {
                        Samples::Eight(image) => {
                            self.normalise(placed(placement, image, self.shape, eight), out);
                        }
                        Samples::Sixteen(image) => {
                            self.normalise_sixteen(placed(placement, image, self.shape, sixteen), out);
                        }
                    }
                },
            );
        let labels = self.labels(&indices);
        let key = self.key(epoch, &indices);
        Ok(Batch { images, shape, labels, indices, key })
    }

    /// (v / 65535 − mean) / std.
    fn normalise_sixteen(&self, image: &[u16], out: &mut [f32]) {
        let (channels, networks) = (self.shape[2], self.options.network_channels);
        let by: Vec<(f32, f32)> = (0..networks).map(|channel| self.options.normalisation.of_channel(channel)).collect();
        for (pixel, out) in image.chunks_exact(channels).zip(out.chunks_exact_mut(networks)) {
            for (channel, (out, (mean, std))) in out.iter_mut().zip(&by).enumerate() {
                // Grey is repeated.
                let sample = pixel[channel.min(channels - 1)];
                *out = (f32::from(sample) / 65535.0 - mean) / std;
            }
        }
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

/// An image as it is shown: itself, or augmented in `scratch`.
fn placed<'a, T: Copy + Default>(
    placement: Option<Placement>,
    image: &'a [T],
    shape: [usize; 3],
    scratch: &'a mut Vec<T>,
) -> &'a [T] {
    let Some(placement) = placement else { return image };
    scratch.resize(image.len(), T::default());
    placement.apply(image, shape, scratch);
    scratch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LoaderOptions {
        LoaderOptions {
            network_channels: 1,
            normalisation: Normalisation::default(),
            batch_size: 4,
            shuffle: true,
            augmentation: Some(Augmentation { flip: true, shift: 2 }),
            seed: 7,
        }
    }

    /// Grey images of 5×6 with the index as the label.
    fn split(count: usize) -> Split {
        let images = (0..count * 30).map(|at| (at * 37 % 251) as u8).collect();
        Split::in_memory(images, [5, 6, 1], (0..count as u32).collect())
    }

    fn epoch(split: &Split, options: LoaderOptions, epoch: usize) -> Vec<Batch> {
        let loader = Loader::new(split, 5, 6, 1, options);
        let batches: Vec<Batch> = loader.epoch(epoch).collect::<Result<_>>().unwrap();
        assert_eq!(batches.len(), loader.batches_per_epoch());
        batches
    }

    fn indices(batches: &[Batch]) -> Vec<usize> {
        batches.iter().flat_map(|batch| batch.indices.clone()).collect()
    }

    #[test]
    fn images_without_labels_make_the_same_batches() {
        let (labelled, in_order) = (split(9), LoaderOptions { shuffle: false, augmentation: None, ..options() });
        let unlabelled = Split::unlabelled(labelled.images.clone());
        let (with, without) = (epoch(&labelled, in_order.clone(), 0), epoch(&unlabelled, in_order, 0));
        assert_eq!((with.len(), without.len()), (3, 3));
        for (with, without) in with.iter().zip(&without) {
            assert_eq!((&with.images, &with.indices), (&without.images, &without.indices));
            assert_eq!(without.labels, vec![0; with.labels.len()]);
        }
    }

    #[test]
    #[should_panic(expected = "nothing can be learned")]
    fn images_without_labels_are_not_shuffled() {
        Loader::new(&Split::unlabelled(split(9).images), 5, 6, 1, options());
    }

    #[test]
    fn evaluation_is_in_the_order_of_the_file_and_complete() {
        let split = split(9);
        let batches = epoch(&split, LoaderOptions { shuffle: false, augmentation: None, ..options() }, 3);
        assert_eq!(indices(&batches), (0..9).collect::<Vec<_>>());
        assert_eq!(batches[2].shape, [1, 5, 6, 1]);
        assert_eq!(batches[1].labels, [4, 5, 6, 7]);
        let expected: Vec<f32> =
            split.bytes().unwrap()[120..240].iter().map(|&byte| (f32::from(byte) / 255.0 - 0.5) / 0.5).collect();
        assert_eq!(batches[1].images, expected);
    }

    #[test]
    fn training_shows_every_image_once_in_a_new_order() {
        let split = split(11);
        let (first, second) = (indices(&epoch(&split, options(), 0)), indices(&epoch(&split, options(), 1)));
        assert_ne!(first, second);
        assert_ne!(first, indices(&epoch(&split, LoaderOptions { seed: 8, ..options() }, 0)));
        for mut order in [first, second] {
            order.sort();
            assert_eq!(order, (0..11).collect::<Vec<_>>());
        }
    }

    #[test]
    fn training_drops_a_last_batch_of_one() {
        let lengths = |count, batch_size| -> Vec<usize> {
            let options = LoaderOptions { batch_size, ..options() };
            let split = split(count);
            let lengths: Vec<usize> =
                epoch(&split, options.clone(), 0).iter().map(|batch| batch.labels.len()).collect();
            let loader = Loader::new(&split, 5, 6, 1, options);
            let (largest, smallest) = (loader.largest_batch(), loader.smallest_batch());
            assert_eq!(largest, lengths.iter().copied().max().unwrap_or(0), "{count} in batches of {batch_size}");
            assert_eq!(smallest, lengths.iter().copied().min().unwrap_or(0), "{count} in batches of {batch_size}");
            lengths
        };
        assert_eq!(lengths(9, 4), [4, 4]);
        assert_eq!(lengths(10, 4), [4, 4, 2]);
        assert_eq!(lengths(1, 4), [1]);
        assert_eq!(lengths(3, 1), [1, 1, 1]);
        assert_eq!(lengths(0, 4), [0; 0]);
    }

    #[test]
    fn an_image_looks_the_same_in_any_batch_and_on_any_thread() {
        // Enough bytes that the work is shared out.
        let split = split(4000);
        let by_index = |threads, batch_size| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let batches = pool.install(|| epoch(&split, LoaderOptions { batch_size, ..options() }, 2));
            let mut images = vec![Vec::new(); 4000];
            for batch in &batches {
                for (image, &index) in batch.images.chunks_exact(30).zip(&batch.indices) {
                    images[index] = image.to_vec();
                }
            }
            (images, indices(&batches))
        };
        let one = by_index(1, 4000);
        assert!(one == by_index(3, 4000));
        assert!(one == by_index(2, 400));
        let later = epoch(&split, LoaderOptions { batch_size: 4000, ..options() }, 3);
        let same =
            later[0].images.chunks_exact(30).zip(&later[0].indices).filter(|(image, index)| one.0[**index] == *image);
        assert!(same.count() < 400, "another epoch augments as this one did");
    }

    #[test]
    fn channels_are_repeated_and_normalised_each_by_its_own() {
        let normalisation = Normalisation { mean: vec![0.0, 1.0, 0.0], std: vec![1.0, 1.0, 0.5] };
        let options =
            LoaderOptions { network_channels: 3, normalisation, shuffle: false, augmentation: None, ..options() };
        let grey = Split::in_memory(vec![0, 255], [1, 1, 1], vec![0, 1]);
        let batch = Loader::new(&grey, 1, 1, 1, options.clone()).epoch(0).next().unwrap().unwrap();
        assert_eq!((batch.shape, &batch.images[..]), ([2, 1, 1, 3], &[0.0, -1.0, 0.0, 1.0, 0.0, 2.0][..]));
        let colour = Split::in_memory(vec![255, 0, 255], [1, 1, 3], vec![0]);
        let batch = Loader::new(&colour, 1, 1, 3, options).epoch(0).next().unwrap().unwrap();
        assert_eq!(batch.images, [1.0, -1.0, 2.0]);
        assert!(check_channels(3, 1).is_err() && check_channels(1, 3).is_ok() && check_channels(3, 3).is_ok());
    }

    /// Images of any size and of sixteen bits, of which one cannot be read.
    #[derive(Debug)]
    struct Odd {
        broken: Option<usize>,
    }

    impl crate::data::Images for Odd {
        fn len(&self) -> usize {
            6
        }

        fn depth(&self) -> Depth {
            Depth::Sixteen
        }

        fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
            let image = |&index: &usize| {
                if self.broken == Some(index) {
                    return Err(Error::usage("image 3 is torn", "mend it"));
                }
                let shape = [4 + index, 6, 1];
                let samples = vec![1000 * index as u16; shape.iter().product()];
                Ok(Image { shape, samples: Samples::Sixteen(samples.into()) })
            };
            indices.iter().map(image).collect()
        }
    }

    #[test]
    fn images_of_any_size_and_depth_come_in_one_size() {
        let split = |broken| Split::new(std::sync::Arc::new(Odd { broken }), (0..6).collect());
        let options = LoaderOptions { shuffle: false, ..options() };
        let batches = epoch(&split(None), options.clone(), 0);
        assert_eq!((batches[0].shape, batches[1].shape), ([4, 5, 6, 1], [2, 5, 6, 1]));
        for (index, image) in batches.iter().flat_map(|batch| batch.images.chunks_exact(30)).enumerate() {
            let expected = ((1000 * index) as f32 / 65535.0 - 0.5) / 0.5;
            assert!(image.iter().all(|value| (value - expected).abs() < 1e-6), "{index}: {image:?}");
        }
        let torn = split(Some(3));
        let error = Loader::new(&torn, 5, 6, 1, options).epoch(0).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("torn"), "{error}");
    }
}
