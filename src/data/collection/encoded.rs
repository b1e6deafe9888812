//! Images that are decoded when they are asked for, and brought to one size.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::decode::decode;
use super::files::Files;
use crate::data::{Depth, Image, Images, Samples};
use crate::error::{Error, Result};

/// Files of images, and the size that each is brought to.
pub(super) struct Encoded {
    pub files: Arc<Files>,
    /// Which of the files, image by image.
    pub chosen: Vec<usize>,
    /// Height, width, channels.
    pub shape: [usize; 3],
    pub depth: Depth,
    /// What was decoded, where all of it fits into memory.
    pub kept: Option<Vec<OnceLock<Samples<'static>>>>,
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images of {:?}", self.chosen.len(), self.files)
    }
}

impl Encoded {
    /// Bytes of all images, decoded.
    pub fn bytes(count: usize, shape: [usize; 3], depth: Depth) -> u64 {
        let of_sample = if depth == Depth::Eight { 1 } else { 2 };
        count as u64 * shape.iter().product::<usize>() as u64 * of_sample
    }

    fn decoded(&self, index: usize) -> Result<Image<'static>> {
        let file = self.chosen[index];
        let bytes = self.files.read(file)?;
        let broken = |message: String| {
            Error::data(self.files.path(file), message, "mend or remove it, or leave broken images out: --skip-broken")
        };
        decode(&bytes, self.shape[2], self.depth).map_err(broken)?.resized(self.shape)
    }

    fn image(&self, index: usize) -> Result<Image<'_>> {
        let Some(kept) = &self.kept else { return self.decoded(index) };
        let samples = match kept[index].get() {
            Some(samples) => samples,
            // Two threads that decode the same image come to the same bytes.
            None => {
                let decoded = self.decoded(index)?.samples;
                kept[index].get_or_init(|| decoded)
            }
        };
        Ok(Image { shape: self.shape, samples: samples.borrowed() })
    }
}

impl Images for Encoded {
    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn depth(&self) -> Depth {
        self.depth
    }

    fn name(&self, index: usize) -> Option<&str> {
        Some(&self.files.names()[self.chosen[index]])
    }

    fn file(&self, index: usize) -> Option<Result<Vec<u8>>> {
        Some(self.files.read(self.chosen[index]))
    }

    fn read(&self, indices: &[usize]) -> Result<Vec<Image<'_>>> {
        let is_kept = |&index: &usize| self.kept.as_ref().is_some_and(|kept| kept[index].get().is_some());
        match indices.iter().all(is_kept) {
            true => indices.iter().map(|&index| self.image(index)).collect(),
            false => indices.par_iter().map(|&index| self.image(index)).collect(),
        }
    }
}
