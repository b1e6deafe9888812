//! Merging by learned weights, or by coefficients that nobody learned.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::card::{self, CardFiles, Told};
use super::{Compute, Normalise, networks};
use crate::checkpoint::{self, Described, Metadata, Provenance, Reading, Writing};
use crate::data::{Dataset, Normalisation};
use crate::error::{Error, Result};
use crate::merge::{ALIGN, Align, Alignment, BatchNormPolicy, Fixed, Heads, Learned, Sources, fold_fixed};
use crate::nn::{Architecture, Model};
use crate::output::{Named, OutputPath};
use crate::train::{Observer, Place, Target, align as align_sources, reestimate_statistics};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// The sources, two or more, in the order in which the weights were learned.
    pub models: Vec<PathBuf>,
    #[serde(default)]
    pub reading: Reading,
    pub by: By,
    pub compute: Compute,
    /// The merged network.
    pub out: PathBuf,
    /// Names and types of the numbers in `out`; the source that may give them is the anchor.
    #[serde(default)]
    pub writing: Writing,
    /// Writes a card and a configuration beside `out`; the card tells this command.
    #[serde(default)]
    pub card: Option<String>,
    /// Overwrites what exists.
    #[serde(default)]
    pub force: bool,
}

/// How much of each source is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum By {
    /// A file of merge weights that [`Learn`](super::Learn) wrote.
    Weights { path: PathBuf },
    Coefficients {
        /// One per source.
        values: Vec<f64>,
        /// The source whose head and running statistics are kept: its path, its name or its number from 0.
        anchor: String,
        batch_norm: BatchNormPolicy,
        #[serde(default)]
        heads: Heads,
        /// What the sources' units are brought into the order of the anchor's by, first.
        #[serde(default)]
        align: Align,
        /// A data set on whose training split running statistics are estimated again.
        data: Option<PathBuf>,
        normalise: Normalise,
    },
}

/// The result of a run of [`Merge`].
#[derive(Clone, Debug)]
pub struct Merged {
    pub architecture: Architecture,
    /// `None` where the network has no classifier.
    pub classes: Option<usize>,
}

/// A merged network and its header.
struct Whole {
    model: Model,
    has_head: bool,
    anchor: usize,
    metadata: Metadata,
    provenance: Provenance,
}

impl Merge {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        self.reading.check()?;
        super::align::check_images(self.align(), self.data_path())?;
        let (weights, data) = match &self.by {
            By::Weights { path } => (Some(path), None),
            By::Coefficients { data, values, .. } => {
                if let Some(odd) = values.iter().find(|&&coefficient| !(coefficient as f32).is_finite()) {
                    let hint = "give numbers that f32 can hold, up to 3.4e38: --coefficients 0.5,0.5";
                    return Err(Error::usage(format!("a coefficient of {odd:e}"), hint));
                }
                (None, data.as_ref())
            }
        };
        let mut inputs: Vec<Named> = self.models.iter().map(|path| ("--models", path.as_path())).collect();
        let others = [("--weights", weights), ("--data", data)];
        inputs.extend(others.into_iter().filter_map(|(name, path)| Some((name, path?.as_path()))));
        card::check_apart(&inputs, vec![("--out", &self.out)], &self.card, &self.out)
    }

    pub fn run(&self, observer: &mut dyn Observer) -> Result<Merged> {
        self.check()?;
        let _claim = OutputPath::check(&self.out, self.force, 0)?;
        let card = CardFiles::check(&self.card, &self.out, self.force)?;
        let place = self.compute.open(observer)?;
        let (sources, whole) = match &self.by {
            By::Weights { path } => {
                let learned = Learned::load(path)?;
                let reading = learned.reading(&self.reading);
                let sources = self.sources(&reading, observer)?;
                learned.check_sources(path, &sources)?;
                let trunk =
                    place.blend(&learned.plan()?, &learned.aligned(&sources).trunks(), &learned.merge_weights)?;
                let model = learned.with_trunk(trunk);
                let anchor = learned.method.anchor;
                let (metadata, provenance) = (learned.metadata(), learned.provenance);
                (sources, Whole { model, has_head: true, anchor, metadata, provenance })
            }
            By::Coefficients { .. } => {
                let sources = self.sources(&self.reading, observer)?;
                let whole = self.by_coefficients(&sources, place, observer)?;
                (sources, whole)
            }
        };
        let Whole { model, has_head, anchor, metadata, provenance } = whole;
        let form = self.writing.form(sources.architecture(), Some(&sources.get(anchor).checkpoint.origin))?;
        let mut output = OutputPath::check(&self.out, self.force, checkpoint::file_size(&model.network))?;
        let architecture = sources.architecture();
        let described = Described { architecture, model: &model, has_head, form: &form, provenance: &provenance };
        let told = Told { described, metadata: &metadata, history: &[], sources: Vec::new() };
        card::save(&mut output, &told, card, observer)?;
        Ok(Merged { architecture: architecture.clone(), classes: has_head.then_some(model.network.classes) })
    }

    /// The sources, whose network can be written as it is asked for.
    fn sources(&self, reading: &Reading, observer: &mut dyn Observer) -> Result<Sources> {
        let sources = networks::load_sources(&self.models, reading, observer)?;
        self.writing.check(sources.architecture(), true)?;
        Ok(sources)
    }

    fn by_coefficients(&self, sources: &Sources, place: Place, observer: &mut dyn Observer) -> Result<Whole> {
        let By::Coefficients { values, anchor, batch_norm, heads, align, data, normalise } = &self.by else {
            unreachable!("asked before")
        };
        if values.len() != sources.len() {
            let message = format!("{} coefficients for {} sources", values.len(), sources.len());
            return Err(Error::usage(message, "give one number per source: --coefficients 0.5,0.5"));
        }
        let anchor = sources.find(anchor)?;
        let for_statistics = match data {
            Some(path) => Some(self.data(path, sources, anchor, observer)?),
            None => None,
        };
        let alignment = match (align, &for_statistics) {
            (Align::None, _) => None,
            (_, Some((data, normalisation))) => {
                align_sources(*align, sources, anchor, Target { data, normalisation, place }, observer)?
            }
            (_, None) => Some(Alignment::by_weights(sources, anchor)?),
        };
        let aligned =
            alignment.as_ref().map_or(Cow::Borrowed(sources), |alignment| Cow::Owned(sources.aligned(alignment)));
        let Fixed { mut model, head, mut metadata, mut provenance } =
            fold_fixed(&aligned, values, anchor, *batch_norm, *heads, |plan, trunks, merge_weights| {
                place.blend(plan, trunks, merge_weights)
            })?;
        if let Some(remark) = head.remark(sources.get(anchor)) {
            observer.remark(&remark);
        }
        match &for_statistics {
            Some((data, normalisation)) => {
                reestimate_statistics(&mut model, Target { data, normalisation, place }, 128)?;
                let Provenance { normalisation, image_size, data, .. } = Provenance::of_data(data, normalisation)?;
                provenance = Provenance { normalisation, image_size, data, ..provenance };
            }
            None => {
                // Nothing here depends on it, but whoever uses the network will.
                let is_asked = normalise.mean.is_some() || normalise.std.is_some();
                provenance.normalisation = match (is_asked, sources.normalisation()) {
                    (true, _) => Some(self.normalisation(sources, observer)?),
                    (false, Ok(normalisation)) => normalisation,
                    (false, Err(error)) => {
                        observer.remark(&format!("the header says no --mean and --std, for {error}"));
                        None
                    }
                };
                observer.remark("running statistics are the anchor's; --data re-estimates them, which a blend needs");
            }
        }
        if *align != Align::None {
            metadata.insert(ALIGN.into(), align.to_string());
        }
        provenance.write(&mut metadata);
        Ok(Whole { model, has_head: head.is_there(), anchor, metadata, provenance })
    }

    fn align(&self) -> Align {
        match &self.by {
            By::Weights { .. } => Align::None,
            By::Coefficients { align, .. } => *align,
        }
    }

    fn data_path(&self) -> Option<&PathBuf> {
        match &self.by {
            By::Weights { .. } => None,
            By::Coefficients { data, .. } => data.as_ref(),
        }
    }

    fn normalisation(&self, sources: &Sources, observer: &mut dyn Observer) -> Result<Normalisation> {
        let By::Coefficients { normalise, .. } = &self.by else { unreachable!("asked before") };
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        networks::normalisation(normalise, &files, sources.input_channels(), observer)
    }

    /// The images for running statistics.
    fn data(
        &self,
        path: &Path,
        sources: &Sources,
        anchor: usize,
        observer: &mut dyn Observer,
    ) -> Result<(Dataset, Normalisation)> {
        let (data, normalisation) = (Dataset::load(path)?, self.normalisation(sources, observer)?);
        networks::check_fit(&data, &sources.get(anchor).checkpoint.model.network)?;
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        networks::tell_image_size(&files, &data, observer);
        Ok((data, normalisation))
    }
}
