//! How fast images come: from their files to batches, stage by stage, beside what a training step takes.

use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::measure::Timing;
use super::{Bench, Settings, Suite};
use crate::data::{Augmentation, Dataset, Loader, LoaderOptions, Normalisation, Split, decode};
use crate::error::{Error, Result};
use crate::interrupt::{Listener, interrupted};
use crate::tensor::{DType, Device};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Loading {
    /// Of the training split, the first so many images.
    pub images: usize,
    pub batch_size: usize,
    pub rounds: usize,
    pub augmentation: Option<Augmentation>,
    /// The network whose step consumes them.
    pub network: String,
    pub device: Device,
    pub precision: DType,
    pub is_fused: bool,
}

/// A stage and all before it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    pub name: &'static str,
    pub seconds: Timing,
    pub images_per_second: f64,
}

/// The result of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loaded {
    pub images: usize,
    /// What images are brought to: height, width, channels.
    pub shape: [usize; 3],
    pub threads: usize,
    pub batch_size: usize,
    pub stages: Vec<Stage>,
    /// Of a training step of the network, whose batch is there.
    pub step_images_per_second: f64,
}

impl Loading {
    /// Measures what `open` opens, anew for each round: nothing of it has been decoded then. What the system keeps of the files
    /// themselves it has from the first round.
    ///
    /// # Errors
    /// If an image cannot be read, the network does not take them, or after Ctrl-C.
    pub fn measure(&self, open: &mut dyn FnMut() -> Result<Dataset>) -> Result<Loaded> {
        let _listener = Listener::new();
        if self.images == 0 || self.batch_size == 0 || self.rounds == 0 {
            return Err(Error::usage("0 images, batches or rounds", "give at least 1 of each"));
        }
        let mut seconds: Vec<(&'static str, Vec<f64>)> = Vec::new();
        let mut known = None;
        for round in 0..=self.rounds {
            let mut data = open()?;
            data.truncate_train(self.images.min(data.train.len()));
            let Dataset { height, width, channels, .. } = data;
            if known.is_none() {
                // What is wrong with the network is said before anything is timed.
                known = Some(([height, width, channels], data.train.len(), self.steps(height)?));
            }
            let stages = self.round(&data)?;
            // The first one brings files into memory.
            if round > 0 {
                for (index, (name, taken)) in stages.into_iter().enumerate() {
                    if seconds.len() == index {
                        seconds.push((name, Vec::new()));
                    }
                    seconds[index].1.push(taken);
                }
            }
        }
        let (shape, images, steps) = known.expect("there is a round");
        let stage = |(name, taken): (&'static str, Vec<f64>)| {
            let seconds = Timing::of(taken, 1, 1);
            Stage { name, images_per_second: images as f64 / seconds.median, seconds }
        };
        Ok(Loaded {
            images,
            shape,
            threads: rayon::current_num_threads(),
            batch_size: self.batch_size,
            stages: seconds.into_iter().map(stage).collect(),
            step_images_per_second: steps.images_per_second()?,
        })
    }

    /// Seconds of each stage.
    fn round(&self, data: &Dataset) -> Result<Vec<(&'static str, f64)>> {
        let mut stages = Vec::new();
        let mut time = |name, work: &mut dyn FnMut() -> Result<()>| {
            if interrupted() {
                return Err(Error::Interrupted { last_checkpoint: None });
            }
            let start = Instant::now();
            work()?;
            stages.push((name, start.elapsed().as_secs_f64()));
            Ok(())
        };
        let (split, images) = (&data.train, data.train.images());
        if split.is_empty() {
            return Err(Error::data(&data.path, "the train split is empty", "give images to learn from"));
        }
        if images.file(0).is_some() {
            let file = |index: usize| images.file(index).expect("each is a file");
            time("read", &mut || (0..split.len()).into_par_iter().try_for_each(|index| file(index).map(drop)))?;
            time("read, decode", &mut || {
                let depth = images.depth();
                let decoded = |index: usize| decode(&file(index)?, data.channels, depth).map(drop);
                (0..split.len()).into_par_iter().try_for_each(decoded)
            })?;
        }
        let loader = self.loader(split, data, None);
        time("batches of the first epoch", &mut || loader.epoch(0).try_for_each(|batch| batch.map(drop)))?;
        time("batches of later epochs", &mut || loader.epoch(1).try_for_each(|batch| batch.map(drop)))?;
        if self.augmentation.is_some() {
            let loader = self.loader(split, data, self.augmentation);
            time("those, augmented", &mut || loader.epoch(1).try_for_each(|batch| batch.map(drop)))?;
        }
        Ok(stages)
    }

    fn loader<'a>(&self, split: &'a Split, data: &Dataset, augmentation: Option<Augmentation>) -> Loader<'a> {
        let options = LoaderOptions {
            network_channels: 3,
            normalisation: Normalisation::default(),
            batch_size: self.batch_size,
            shuffle: true,
            augmentation,
            seed: 0,
            balance: None,
            shares: Some((data.task, data.classes)),
        };
        Loader::new(split, data.height, data.width, data.channels, options)
    }

    /// Training steps on images of this height.
    fn steps(&self, height: usize) -> Result<Bench> {
        let settings = Settings {
            device: self.device,
            precision: self.precision,
            is_fused: self.is_fused,
            networks: vec![self.network.clone()],
            image_sizes: vec![height],
            batch_size: Some(self.batch_size),
            sources: Vec::new(),
            passes: Vec::new(),
            filter: Some("/training/".into()),
            rounds: Some(self.rounds),
            cache: None,
        };
        Bench::new(Suite::Step, &settings)
    }
}
