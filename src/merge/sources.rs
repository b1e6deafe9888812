//! The networks that are merged, read and found alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SourceRecord;
use crate::checkpoint::{Checkpoint, Reading, agreed_normalisation, first_few};
use crate::data::Normalisation;
use crate::error::{Error, Result};
use crate::nn::{Architecture, Model, Network, Region};
use crate::tensor::Tensor;

#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    pub checkpoint: Checkpoint,
}

/// At least two networks with the same trunk.
#[derive(Clone, Debug)]
pub struct Sources {
    all: Vec<Source>,
}

impl Source {
    pub fn load(path: &Path, reading: &Reading) -> Result<Source> {
        Ok(Source { path: path.to_path_buf(), checkpoint: Checkpoint::load_with(path, reading)? })
    }
}

impl Sources {
    pub fn load(paths: &[PathBuf]) -> Result<Sources> {
        Sources::load_with(paths, &Reading::default())
    }

    /// The same where more is known than the files say; see [`Checkpoint::load_with`].
    pub fn load_with(paths: &[PathBuf], reading: &Reading) -> Result<Sources> {
        if paths.len() < 2 {
            let hint = "name them after one --models: --models a.safetensors b.safetensors";
            return Err(Error::usage(format!("merging needs at least two sources, not {}", paths.len()), hint));
        }
        Sources::load_any(paths, reading)
    }

    /// The same, also of a single source, whose kernels may be given numbers too.
    ///
    /// # Panics
    /// If there is none.
    pub fn load_any(paths: &[PathBuf], reading: &Reading) -> Result<Sources> {
        let load = |path: &PathBuf| Source::load(path, reading);
        let sources = Sources { all: paths.iter().map(load).collect::<Result<Vec<_>>>()? };
        let first = &sources.all[0];
        for other in &sources.all[1..] {
            check_alike(first, other)?;
        }
        Ok(sources)
    }

    /// Sources that never were files.
    pub fn from_models(models: Vec<(String, Architecture, Model)>) -> Sources {
        let all = models
            .into_iter()
            .map(|(name, architecture, model)| Source {
                path: PathBuf::from(name),
                checkpoint: Checkpoint {
                    model,
                    architecture,
                    has_head: true,
                    stem_is_assumed: false,
                    stem_in_header: None,
                    notes: Vec::new(),
                    exporter: None,
                    origin: Default::default(),
                    metadata: Default::default(),
                    provenance: Default::default(),
                    sha256: String::new(),
                },
            })
            .collect();
        Sources { all }
    }

    /// The same files with other numbers.
    pub(super) fn with_models(&self, model: impl Fn(usize, &Model) -> Model) -> Sources {
        self.with_checkpoints(|index, old| Checkpoint { model: model(index, &old.model), ..old.clone() })
    }

    /// The same files with other networks, alike.
    pub(super) fn with_checkpoints(&self, checkpoint: impl Fn(usize, &Checkpoint) -> Checkpoint) -> Sources {
        let of = |(index, source): (usize, &Source)| Source {
            path: source.path.clone(),
            checkpoint: checkpoint(index, &source.checkpoint),
        };
        Sources { all: self.all.iter().enumerate().map(of).collect() }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.all.iter()
    }

    pub fn get(&self, index: usize) -> &Source {
        &self.all[index]
    }

    pub fn architecture(&self) -> &Architecture {
        &self.all[0].checkpoint.architecture
    }

    pub fn input_channels(&self) -> usize {
        self.all[0].checkpoint.model.network.input_channels
    }

    /// The normalisation on which the sources' files agree; an error where they do not.
    pub fn normalisation(&self) -> Result<Option<Normalisation>> {
        let files = self.all.iter().map(|source| (source.path.as_path(), &source.checkpoint.provenance));
        agreed_normalisation(files, self.input_channels())
    }

    /// The sources' network with a classifier for `classes`.
    pub fn network(&self, classes: usize) -> Arc<Network> {
        self.architecture().build(self.input_channels(), classes)
    }

    /// One arena per source, of the layout they share.
    pub fn trunks(&self) -> Vec<Tensor> {
        self.all.iter().map(|source| source.checkpoint.model.trunk.clone()).collect()
    }

    /// A source's trunk and running statistics under a new network's head, which is zero.
    pub fn transfer(&self, index: usize, network: &Arc<Network>) -> Model {
        let source = &self.all[index].checkpoint.model;
        let mut model = Model::zeros(network.clone(), source.dtype(), source.device());
        model.trunk = source.trunk.clone();
        model.statistics = source.statistics.clone();
        model.batches_tracked = source.batches_tracked.clone();
        model
    }

    /// The source that `name` means: its path, its file's name, its file's stem, or its number from 0.
    pub fn find(&self, name: &str) -> Result<usize> {
        let matches = |source: &Source| {
            source.path == Path::new(name)
                || source.path.file_name().is_some_and(|file| file == name)
                || source.path.file_stem().is_some_and(|stem| stem == name)
        };
        let found: Vec<usize> = (0..self.len()).filter(|&index| matches(&self.all[index])).collect();
        match (found.as_slice(), name.parse::<usize>()) {
            (&[index], _) => Ok(index),
            (&[], Ok(index)) if index < self.len() => Ok(index),
            (&[], Ok(index)) => Err(Error::usage(
                format!("unknown anchor '{index}' of {} sources", self.len()),
                format!("sources are numbered from 0 to {}, in the order of --models", self.len() - 1),
            )),
            (&[], _) => {
                let stems = self.all.iter().filter_map(|source| source.path.file_stem());
                Err(Error::unknown("anchor", name, stems.map(|stem| stem.to_string_lossy().into_owned())))
            }
            _ => Err(Error::usage(
                format!("'{name}' means several sources"),
                "give the anchor's path, or its number from 0",
            )),
        }
    }

    pub fn records(&self) -> Vec<SourceRecord> {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        self.all
            .iter()
            .map(|source| SourceRecord { name: name(&source.path), sha256: source.checkpoint.sha256.clone() })
            .collect()
    }
}

/// Refuses networks that cannot be merged, by the first parameters in which they differ.
pub fn check_alike(first: &Source, other: &Source) -> Result<()> {
    let (a, b) = (&first.checkpoint.model.network, &other.checkpoint.model.network);
    let mut differences: Vec<String> = a
        .region(Region::Trunk)
        .filter_map(|p| match b.parameter(&p.name) {
            None => Some(format!("{} is only in {}", p.name, first.path.display())),
            Some(q) if q.shape != p.shape => {
                Some(format!("{} is {} there and {} here (K, R, S, C)", p.name, p.shape, q.shape))
            }
            Some(_) => None,
        })
        .collect();
    let extra = b.region(Region::Trunk).filter(|p| a.parameter(&p.name).is_none());
    differences.extend(extra.map(|p| format!("{} is only here", p.name)));
    let [of_first, of_other] = [first, other].map(|source| &source.checkpoint.architecture);
    if differences.is_empty() && of_first == of_other {
        return Ok(());
    }
    if differences.is_empty() {
        let path = first.path.display();
        let (message, hint) = match (of_first.stem(), of_other.stem()) {
            (Some(a), Some(b)) if a != b => (
                format!("its stem is {b}, and that of {path} is {a}"),
                "sources have one architecture; --stem names it for all",
            ),
            _ => (format!("it is {of_other}, and {path} is {of_first}"), "sources have one architecture"),
        };
        return Err(Error::checkpoint(&other.path, message, hint));
    }
    let message = format!("it differs from {}: {}", first.path.display(), first_few(&differences));
    let colours = |network: &Network| match network.input_channels {
        1 => "grey images (1 channel)".to_string(),
        3 => "colour images (3 channels)".to_string(),
        more => format!("images of {more} channels"),
    };
    let hint = if a.input_channels != b.input_channels && differences.len() == 1 {
        let seen = format!("{} sees {}, {} {}", first.path.display(), colours(a), other.path.display(), colours(b));
        format!("{seen}; train both with the same --input-channels")
    } else {
        let (first, other) = (&first.checkpoint.architecture, &other.checkpoint.architecture);
        format!("sources have one architecture; these are {first} and {other}")
    };
    Err(Error::checkpoint(&other.path, message, hint))
}
