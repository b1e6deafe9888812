//! From images as they are stored to batches of normalised numbers of one size.
//!
//! The order of an epoch depends on the seed and the epoch, an image's augmentation on the seed, the epoch and the
//! image's index, and nothing on the number of threads: the same options give the same bits anywhere.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::augment::{Mix, Placement, View};
use super::source::{Depth, Image, Sample, Samples};
use super::{Augmentation, Normalisation, Split, Task};
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
    /// Where it shuffles, draws as many images as there are, each of a class that is drawn first: all come equally often. Of several
    /// labels at once the rarest is an image's class.
    pub balance: Option<(Task, usize)>,
    /// Labels as shares of so many classes too, which soft labels and mixed images need; never where there are no labels.
    pub shares: Option<(Task, usize)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// N×H×W×C.
    pub images: Vec<f32>,
    pub shape: [usize; 4],
    pub labels: Vec<u32>,
    /// N×K: how much of each class every image is, where that is asked for.
    pub shares: Option<Vec<f32>>,
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
    pub shares: Option<Vec<f32>>,
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

/// An image in an epoch, and the stream that says how it is shown.
#[derive(Clone, Copy, Debug)]
struct Slot {
    image: usize,
    stream: u64,
}

fn images(slots: &[Slot]) -> Vec<usize> {
    slots.iter().map(|slot| slot.image).collect()
}

/// The stream that orders an epoch; the ones below it in the same epoch belong to its images.
const ORDER: u64 = u32::MAX as u64;
/// The streams of batches, beyond those of images in any epoch: for dropout, and for how images are mixed.
const KEYS: u64 = 1 << 63;
const MIXES: u64 = 1 << 62;

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
        let mixes = options.augmentation.is_some_and(|augmentation| augmentation.mixes());
        assert!(!mixes || options.shares.is_some(), "labels of mixed images are shares");
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

    /// Height, width and channels of each image as it is stored.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
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

    /// Whether batches can be had as bytes: samples of eight bits, none of which are mixed.
    pub fn has_bytes(&self) -> bool {
        self.depth() == Depth::Eight && !self.options.augmentation.is_some_and(|augmentation| augmentation.mixes())
    }

    /// The batches of an epoch, each made when it is asked for.
    pub fn epoch(&self, epoch: usize) -> impl Iterator<Item = Result<Batch>> {
        self.slots(epoch).map(move |slots| self.batch(epoch, &slots))
    }

    /// The same batches as bytes, with how each image is still to be shown: what computes with samples has been done to them.
    ///
    /// # Panics
    /// Unless [`Loader::has_bytes`].
    pub fn raw_epoch(&self, epoch: usize) -> impl Iterator<Item = Result<RawBatch>> {
        self.slots(epoch).map(move |slots| self.raw(epoch, &slots))
    }

    /// The normalised value of every byte, per channel of the network.
    pub fn tables(&self) -> &[[f32; 256]] {
        &self.tables
    }

    /// The images of each batch of an epoch.
    fn slots(&self, epoch: usize) -> impl Iterator<Item = Vec<Slot>> {
        let order = self.order(epoch);
        (0..self.batches_per_epoch()).map(move |batch| {
            let start = batch * self.options.batch_size;
            let end = (start + self.options.batch_size).min(self.images_per_epoch());
            order[start..end].to_vec()
        })
    }

    fn order(&self, epoch: usize) -> Vec<Slot> {
        let once = |image: usize| Slot { image, stream: image as u64 };
        let mut order: Vec<Slot> = (0..self.split.len()).map(once).collect();
        if !self.options.shuffle {
            return order;
        }
        let mut stream = self.stream(epoch, ORDER);
        let Some((task, classes)) = self.options.balance else {
            order.shuffle(&mut stream);
            return order;
        };
        let mut members = vec![Vec::new(); classes + 1];
        let strata = task.strata(&self.split.labels, classes);
        strata.iter().enumerate().for_each(|(image, &class)| members[class as usize].push(image));
        members.retain(|images| !images.is_empty());
        for (place, slot) in order.iter_mut().enumerate() {
            let of_class = members.choose(&mut stream).expect("a split has images");
            let image = *of_class.choose(&mut stream).expect("of each class there are some");
            // An image that comes twice is not shown alike.
            *slot = Slot { image, stream: place as u64 };
        }
        order
    }

    /// The images of a batch, of one size.
    fn read(&self, slots: &[Slot]) -> Result<Vec<Image<'_>>> {
        let images = self.split.images().read(&images(slots))?;
        assert_eq!(images.len(), slots.len(), "as many images as were asked for");
        // Nothing to share out among threads.
        if images.iter().all(|image| image.shape == self.shape) {
            return Ok(images);
        }
        images.into_par_iter().map(|image| image.resized(self.shape)).collect()
    }

    /// Zeros where there are no labels: who scores images reads none.
    fn labels(&self, slots: &[Slot]) -> Vec<u32> {
        match self.split.is_labelled() {
            true => slots.iter().map(|slot| self.split.labels[slot.image]).collect(),
            false => vec![0; slots.len()],
        }
    }

    fn shares(&self, slots: &[Slot]) -> Option<Vec<f32>> {
        let (task, classes) = self.options.shares?;
        let mut shares = vec![0.0; slots.len() * classes];
        for (row, slot) in shares.chunks_exact_mut(classes).zip(slots) {
            match self.split.shares_of(slot.image, classes) {
                Some(soft) => row.copy_from_slice(soft),
                None => task.classes_of(self.split.labels[slot.image]).for_each(|class| row[class] = 1.0),
            }
        }
        Some(shares)
    }

    /// How an image is shown.
    fn view(&self, augmentation: &Augmentation, epoch: usize, slot: Slot) -> View {
        augmentation.draw(&mut self.stream(epoch, slot.stream), [self.shape[0], self.shape[1]])
    }

    /// What is erased becomes the mean, for one channel or for each.
    fn means<T: Sample>(&self) -> Vec<T> {
        let of_channel = |channel| T::rounded(self.options.normalisation.of_channel(channel).0 * T::MAX);
        (0..self.shape[2]).map(of_channel).collect()
    }

    /// All of them augmented, as far as that is not left to who takes the bytes.
    fn bytes(&self, epoch: usize, slots: &[Slot]) -> Result<Vec<u8>> {
        let stride = self.shape.iter().product();
        let images = self.read(slots)?;
        fn eight<'a>(image: &'a Image<'_>) -> &'a [u8] {
            match &image.samples {
                Samples::Eight(image) => image,
                Samples::Sixteen(_) => panic!("samples of sixteen bits as bytes"),
            }
        }
        let computes = self.options.augmentation.filter(|augmentation| !augmentation.is_placement());
        let Some(augmentation) = computes else {
            let mut bytes = Vec::with_capacity(slots.len() * stride);
            images.iter().for_each(|image| bytes.extend_from_slice(eight(image)));
            return Ok(bytes);
        };
        let (mut bytes, means) = (vec![0; slots.len() * stride], self.means());
        let all = bytes.par_chunks_exact_mut(stride).zip(images.par_iter().zip(slots));
        all.with_min_len(BYTES_PER_JOB.div_ceil(stride)).for_each(|(out, (image, &slot))| {
            self.view(&augmentation, epoch, slot).apply_eight(eight(image), self.shape, &means, out);
        });
        Ok(bytes)
    }

    fn raw(&self, epoch: usize, slots: &[Slot]) -> Result<RawBatch> {
        let [height, width, channels] = self.shape;
        assert!(self.has_bytes(), "batches as bytes");
        let left = self.options.augmentation.filter(|augmentation| augmentation.is_placement());
        let placement = |augmentation: &Augmentation, slot: Slot| {
            let Placement { flip, down, right } = self.view(augmentation, epoch, slot).placement();
            // Further than the image reaches there is only its edge.
            let within = |offset: isize, size: usize| offset.clamp(-(size as isize), size as isize) as i32;
            [flip.into(), within(down, height), within(right, width)]
        };
        Ok(RawBatch {
            bytes: self.bytes(epoch, slots)?,
            shape: [slots.len(), height, width, channels],
            placements: left
                .as_ref()
                .map(|augmentation| slots.iter().flat_map(|&slot| placement(augmentation, slot)).collect()),
            shares: self.shares(slots),
            labels: self.labels(slots),
            key: self.key(epoch, slots),
        })
    }

    /// A batch is known by the stream of its first image, which no other batch of the epoch has.
    fn key(&self, epoch: usize, slots: &[Slot]) -> Key {
        let mut stream = self.stream(epoch, KEYS | slots[0].stream);
        [stream.next_u32(), stream.next_u32()]
    }

    fn batch(&self, epoch: usize, slots: &[Slot]) -> Result<Batch> {
        let [height, width, channels] = self.shape;
        let shape = [slots.len(), height, width, self.options.network_channels];
        let samples = height * width * channels;
        let mut images = vec![0.0; shape.iter().product()];
        let (means, deep_means) = (self.means(), self.means());
        images
            .par_chunks_exact_mut(height * width * self.options.network_channels)
            .zip(self.read(slots)?.into_par_iter().zip(slots))
            .with_min_len(BYTES_PER_JOB.div_ceil(samples))
            .for_each_init(
                || (Vec::new(), Vec::new()),
                |(eight, sixteen), (out, (image, &slot))| {
                    let view = self.options.augmentation.as_ref();
                    let view = view.map(|augmentation| self.view(augmentation, epoch, slot));
                    match &image.samples {
                        Samples::Eight(image) => {
                            self.normalise(shown(view, image, self.shape, (&means, View::apply_eight), eight), out);
                        }
                        Samples::Sixteen(image) => {
                            self.normalise_sixteen(
                                shown(view, image, self.shape, (&deep_means, View::apply), sixteen),
                                out,
                            );
                        }
                    }
                },
            );
        let labels = self.labels(slots);
        let key = self.key(epoch, slots);
        let mut shares = self.shares(slots);
        let mixes = self.options.augmentation.filter(|augmentation| augmentation.mixes());
        let mut stream = self.stream(epoch, MIXES | slots[0].stream);
        let mix = mixes.and_then(|augmentation| Mix::draw(&augmentation, &mut stream, [height, width]));
        if let (Some(mix), Some(shares), Some((_, classes))) = (mix, &mut shares, self.options.shares) {
            mix.images(&mut images, shape);
            mix.shares(shares, classes);
        }
        Ok(Batch { images, shape, labels, shares, indices: self::images(slots), key })
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

/// How an image is shown in another place, with what is erased.
type Apply<T> = fn(&View, &[T], [usize; 3], &[T], &mut [T]);

/// An image as it is shown: itself, or augmented in `scratch`.
fn shown<'a, T: Sample>(
    view: Option<View>,
    image: &'a [T],
    shape: [usize; 3],
    (means, apply): (&[T], Apply<T>),
    scratch: &'a mut Vec<T>,
) -> &'a [T] {
    let Some(view) = view else { return image };
    scratch.resize(image.len(), T::default());
    apply(&view, image, shape, means, scratch);
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
            augmentation: Some(Augmentation { flip: true, shift: 2, ..Augmentation::default() }),
            seed: 7,
            balance: None,
            shares: None,
        }
    }

    /// Bytes are those of the numbers, whoever computes them, whatever is done to images.
    #[test]
    fn augmented_bytes_are_those_of_the_numbers() {
        let split = split(13);
        let augmentation = Augmentation {
            flip: true,
            shift: 1,
            crop: 0.3,
            rotate: 15.0,
            jitter: [0.3, 0.3, 0.0, 0.0],
            erase: 0.5,
            ..Augmentation::default()
        };
        let of = |augmentation| LoaderOptions { augmentation: Some(augmentation), ..options() };
        let loader = Loader::new(&split, 5, 6, 1, of(augmentation));
        let plain = Loader::new(&split, 5, 6, 1, LoaderOptions { augmentation: None, ..options() });
        for (batch, raw) in loader.epoch(2).zip(loader.raw_epoch(2)) {
            let (batch, raw) = (batch.unwrap(), raw.unwrap());
            assert_eq!(raw.placements, None);
            let numbers: Vec<f32> = raw.bytes.iter().map(|&byte| loader.tables()[0][byte as usize]).collect();
            assert_eq!(numbers, batch.images);
        }
        let images = |loader: &Loader, epoch| -> Vec<f32> {
            loader.epoch(epoch).flat_map(|batch| batch.unwrap().images).collect()
        };
        assert_ne!(images(&loader, 2), images(&plain, 2));
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one_thread.install(|| images(&loader, 3)), images(&loader, 3));
    }

    #[test]
    fn classes_come_equally_often() {
        // 90 of class 0, 9 of class 1, one of class 2.
        let labels: Vec<u32> = (0..100).map(|index| if index < 90 { 0 } else { 1 + u32::from(index == 99) }).collect();
        let split = Split::in_memory(vec![7; 3000], [5, 6, 1], labels);
        let balance = Some((Task::MultiClass, 3));
        let of = |seed| LoaderOptions { balance, seed, batch_size: 10, ..options() };
        let mut counts = [0; 3];
        for number in 0..6 {
            let batches = epoch(&split, of(1), number);
            assert_eq!(indices(&batches).len(), 100);
            batches.iter().flat_map(|batch| &batch.labels).for_each(|&label| counts[label as usize] += 1);
            let keys: std::collections::BTreeSet<Key> = batches.iter().map(|batch| batch.key).collect();
            assert_eq!(keys.len(), 10, "each batch has a key of its own");
        }
        // Four standard deviations of 600 draws are 46.
        assert!(counts.iter().all(|&count: &i32| (count - 200).abs() < 46), "{counts:?}");
        assert_eq!(indices(&epoch(&split, of(1), 0)), indices(&epoch(&split, of(1), 0)));
        assert_ne!(indices(&epoch(&split, of(2), 0)), indices(&epoch(&split, of(1), 0)));
        let in_order = LoaderOptions { shuffle: false, augmentation: None, ..of(1) };
        assert_eq!(indices(&epoch(&split, in_order, 0)), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn mixed_batches_have_mixed_labels() {
        let split = split(12);
        let augmentation = Augmentation { mixup: 1.0, cutmix: 1.0, ..Augmentation::default() };
        let mixed =
            LoaderOptions { augmentation: Some(augmentation), shares: Some((Task::MultiClass, 12)), ..options() };
        let loader = Loader::new(&split, 5, 6, 1, mixed);
        assert!(!loader.has_bytes());
        for batch in loader.epoch(1).map(Result::unwrap) {
            let shares = batch.shares.unwrap();
            for (row, (image, &label)) in shares.chunks(12).zip(batch.labels.iter().enumerate()) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                let before = batch.labels[(image + 3) % 4];
                let others = (0..12).filter(|&class| class != label as usize && class != before as usize);
                assert!(others.into_iter().all(|class| row[class] == 0.0), "{row:?}");
            }
        }
    }

    #[test]
    fn soft_labels_are_what_batches_have() {
        let rows: Vec<f32> =
            (0..6).flat_map(|image| [0.25, 0.25 + image as f32 / 16.0, 0.5 - image as f32 / 16.0]).collect();
        let labels = vec![2, 2, 1, 1, 1, 1];
        let soft = Split::in_memory((0..180).collect(), [5, 6, 1], labels).with_shares(Some(rows.clone().into()));
        let options = LoaderOptions { augmentation: None, shares: Some((Task::MultiClass, 3)), ..options() };
        let loader = Loader::new(&soft, 5, 6, 1, options);
        assert!(loader.has_bytes());
        let raw = loader.raw_epoch(1).map(Result::unwrap).map(|batch| batch.shares.unwrap());
        for (batch, raw) in loader.epoch(1).map(Result::unwrap).zip(raw) {
            let expected: Vec<f32> = batch.indices.iter().flat_map(|&i| rows[3 * i..3 * i + 3].to_vec()).collect();
            assert_eq!(batch.shares.unwrap(), expected);
            assert_eq!(raw, expected);
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
