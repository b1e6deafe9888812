//! The same target by every method, with the same epochs, batches and seeds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Compute, Images, networks};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::nn::Stem;
use crate::train::{Baseline, Observer, Outcome, Protocol, Target};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The sources, two or more.
    pub models: Vec<PathBuf>,
    /// The stem of files that leave it open.
    #[serde(default)]
    pub stem: Option<Stem>,
    pub images: Images,
    pub protocol: Protocol,
    /// Methods in the order of the table; all of them if left out.
    #[serde(default)]
    pub baselines: Vec<Baseline>,
    /// Every method runs with each of them.
    pub seeds: Vec<u64>,
    pub compute: Compute,
}

impl Compare {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        self.protocol.check()?;
        if self.seeds.is_empty() {
            return Err(Error::usage("a comparison without seeds", "give one at least; three show the spread"));
        }
        let beyond = |baseline: &&Baseline| baseline.source().is_some_and(|source| source >= self.models.len());
        match self.baselines.iter().find(beyond) {
            Some(baseline) => {
                let message = format!("{baseline:?} of {} sources", self.models.len());
                Err(Error::usage(message, "sources are numbered from 0, in the order of the models"))
            }
            None => Ok(()),
        }
    }

    /// Seed by seed, and method by method; each outcome is handed to `done` with its seed.
    pub fn run(&self, observer: &mut dyn Observer, done: &mut dyn FnMut(u64, Outcome) -> Result<()>) -> Result<()> {
        self.check()?;
        let place = self.compute.open(observer)?;
        let sources = networks::load_sources(&self.models, self.stem, observer)?;
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        let channels = sources.input_channels();
        let normalisation = networks::normalisation(&self.images.normalise, &files, channels, observer)?;
        let data = Dataset::load(&self.images.data)?;
        networks::check_fit(&data, &sources.network(data.classes))?;
        networks::tell_image_size(&files, &data, observer);
        let target = Target { data: &data, normalisation: &normalisation, place };
        let all = Baseline::all(sources.len());
        let baselines = if self.baselines.is_empty() { &all } else { &self.baselines };
        let names: Vec<String> =
            sources.iter().map(|s| s.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for &seed in &self.seeds {
            let protocol = self.protocol.with_seed(seed);
            for &baseline in baselines {
                observer.phase(&format!("seed {seed}, {}", baseline.label(&names)));
                done(seed, protocol.run(baseline, &sources, target, observer)?)?;
            }
        }
        Ok(())
    }
}
