//! The same image in two splits: figures on such images tell what was learned by heart.
//!
//! Images are compared by what is left of them at 16×16 grey pixels. A perceptual hash (the signs of the differences between neighbours of
//! 9×8 and of 8×9 pixels, 128 bits) finds candidates; a pair is *near* where few bits differ and the mean difference of the pixels is
//! small, and *exact* where all samples are the same.

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Dataset, Image, Samples, SplitName};
use crate::error::Result;

/// Bits of 128 in which hashes may differ.
const BITS: u32 = 6;
/// The mean difference of two pixels, of 255.
const DIFFERENCE: f32 = 5.0;

/// Two images in different splits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// A split, and where the image stands in it.
    pub first: (SplitName, usize),
    pub second: (SplitName, usize),
    pub is_exact: bool,
}

struct Print {
    split: SplitName,
    index: usize,
    content: [u8; 32],
    hash: u128,
    pixels: Vec<u8>,
}

/// Every pair of images in different splits that look the same, in order.
///
/// # Errors
/// If an image cannot be read.
pub fn duplicates(data: &Dataset) -> Result<Vec<Pair>> {
    const AT_A_TIME: usize = 256;
    let mut prints = Vec::new();
    for split in SplitName::ALL {
        let images: Vec<usize> = (0..data.split(split).len()).collect();
        for images in images.chunks(AT_A_TIME) {
            let read = data.split(split).images().read(images)?;
            let of = read.into_par_iter().zip(images).map(|(image, &index)| print(image, split, index));
            prints.extend(of.collect::<Result<Vec<Print>>>()?);
        }
    }
    let of_first = |at: usize| {
        let a = &prints[at];
        let others = prints[at + 1..].iter().filter(move |b| b.split != a.split);
        let alike = others.filter(move |b| a.content == b.content || is_near(a, b));
        alike.map(move |b| Pair {
            first: (a.split, a.index),
            second: (b.split, b.index),
            is_exact: a.content == b.content,
        })
    };
    Ok((0..prints.len()).into_par_iter().flat_map_iter(of_first).collect())
}

fn is_near(a: &Print, b: &Print) -> bool {
    (a.hash ^ b.hash).count_ones() <= BITS && {
        let sum: u32 = a.pixels.iter().zip(&b.pixels).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        sum as f32 <= DIFFERENCE * a.pixels.len() as f32
    }
}

fn print(image: Image, split: SplitName, index: usize) -> Result<Print> {
    let content = Sha256::digest(image.samples.to_bytes()).into();
    let grey = grey(&image);
    let at = |height: usize, width: usize| -> Result<Vec<u8>> {
        match grey.clone().resized([height, width, 1])?.samples {
            Samples::Eight(samples) => Ok(samples.into_owned()),
            Samples::Sixteen(_) => unreachable!("made of eight bits"),
        }
    };
    let (wide, tall) = (at(8, 9)?, at(9, 8)?);
    let across = (0..64).map(|i| wide[i / 8 * 9 + i % 8] < wide[i / 8 * 9 + i % 8 + 1]);
    let down = (0..64).map(|i| tall[i] < tall[i + 8]);
    let hash = across.chain(down).fold(0u128, |hash, bit| hash << 1 | u128::from(bit));
    Ok(Print { split, index, content, hash, pixels: at(16, 16)? })
}

/// In eight bits; of colours the mean.
fn grey(image: &Image) -> Image<'static> {
    let [height, width, channels] = image.shape;
    let mean = |pixel: &[u8]| (pixel.iter().map(|&sample| u32::from(sample)).sum::<u32>() / channels as u32) as u8;
    let samples: Vec<u8> = match &image.samples {
        Samples::Eight(samples) => samples.chunks_exact(channels).map(mean).collect(),
        Samples::Sixteen(samples) => {
            let upper: Vec<u8> = samples.iter().map(|sample| (sample >> 8) as u8).collect();
            upper.chunks_exact(channels).map(mean).collect()
        }
    };
    Image { shape: [height, width, 1], samples: Samples::Eight(samples.into()) }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::data::Split;

    #[test]
    fn pairs_are_found_across_splits_alone() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        // Smooth images: noise of 4×4 pixels, eight times as large.
        let mut drawn = || {
            let coarse: Vec<u8> = (0..16).map(|_| rng.random_range(0..255)).collect();
            let image = Image { shape: [4, 4, 1], samples: Samples::Eight(coarse.into()) };
            let Samples::Eight(samples) = image.resized([32, 32, 1]).unwrap().samples else { panic!("of eight bits") };
            samples.into_owned()
        };
        let images: Vec<Vec<u8>> = (0..30).map(|_| drawn()).collect();
        let split = |images: &[Vec<u8>]| Split::in_memory(images.concat(), [32, 32, 1], vec![0; images.len()]);
        // A copy, one as after another compression, and one within its own split.
        let brighter: Vec<u8> =
            images[4].iter().enumerate().map(|(i, sample)| sample.saturating_add(2 + (i * 7 % 3) as u8)).collect();
        let mut test = images[20..].to_vec();
        test.extend([images[7].clone(), brighter, images[20].clone()]);
        let data = Dataset {
            path: "drawn".into(),
            train: split(&images[..20]),
            val: Split::empty(),
            test: split(&test),
            height: 32,
            width: 32,
            channels: 1,
            classes: 1,
            class_names: None,
            task: Default::default(),
            drawn: None,
        };
        let pair = |train, test, is_exact| Pair {
            first: (SplitName::Train, train),
            second: (SplitName::Test, test),
            is_exact,
        };
        assert_eq!(duplicates(&data).unwrap(), [pair(4, 11, false), pair(7, 10, true)]);
    }
}
