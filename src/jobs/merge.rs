//! Merging by learned weights, or by coefficients that nobody learned.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::card::{self, CardFiles, Told};
use super::{Compute, Images, Normalise, networks};
use crate::checkpoint::{self, Described, Metadata, Provenance, Reading, Writing};
use crate::data::{Collecting, Dataset, Normalisation};
use crate::error::{Error, Result};
use crate::merge::methods::{self, Filtered, Inputs, MergeMethod, Numbers, Task};
use crate::merge::{
    ALIGN, Align, Alignment, BatchNormPolicy, Fixed, Heads, Learned, Plan, STATISTICS, Source, Sources, Statistics,
    check_alike, fold_by, rescale,
};
use crate::nn::families::widened::Widened;
use crate::nn::{Architecture, Model, Parameter, Region};
use crate::output::{Named, OutputPath};
use crate::tensor::Tensor;
use crate::train::{Observer, Place, SelectBy, Target, TargetImages, align as align_sources, reestimate_statistics};

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
    /// A method that learns no merge weights.
    Coefficients(Box<ByMethod>),
}

/// A merge by coefficients, or by another method that learns no merge weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByMethod {
    /// One per source; none where all are as the method usually has them.
    pub values: Vec<f64>,
    /// The source whose head and running statistics are kept: its path, its name or its number from 0.
    pub anchor: String,
    pub batch_norm: BatchNormPolicy,
    #[serde(default)]
    pub heads: Heads,
    /// What the sources' units are brought into the order of the anchor's by, first.
    #[serde(default)]
    pub align: Align,
    /// How the sources become one, by its name; `linear` if left out.
    #[serde(default = "linear")]
    pub method: String,
    /// Coefficients of parameters by their names, which go before `values`.
    #[serde(default)]
    pub filtered: Vec<Filtered>,
    /// What the method reads besides.
    #[serde(default)]
    pub numbers: Numbers,
    /// The network that the sources were trained from.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Where running statistics come from; re-estimated where there are images, else the anchor's.
    #[serde(default)]
    pub statistics: Option<Statistics>,
    /// A data set on whose training split running statistics are estimated again.
    pub data: Option<PathBuf>,
    pub normalise: Normalise,
    /// How images in a folder or an archive become a data set.
    #[serde(default)]
    pub collecting: Collecting,
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
    architecture: Architecture,
}

impl Merge {
    /// Refuses what is wrong in itself, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.compute.check()?;
        self.reading.check()?;
        super::align::check_images(self.align(), self.data_path())?;
        self.check_method()?;
        let (weights, data) = match &self.by {
            By::Weights { path } => (Some(path), None),
            By::Coefficients(by) => {
                let ByMethod { data, values, batch_norm, .. } = &**by;
                if *batch_norm == BatchNormPolicy::Own {
                    let message = "--batch-norm own: fixed coefficients have no weights of their own for batch norms";
                    return Err(Error::usage(message, "give merge or anchor; `learn` has own"));
                }
                if let Some(odd) = values.iter().find(|&&coefficient| !(coefficient as f32).is_finite()) {
                    let hint = "give numbers that f32 can hold, up to 3.4e38: --coefficients 0.5,0.5";
                    return Err(Error::usage(format!("a coefficient of {odd:e}"), hint));
                }
                (None, data.as_ref())
            }
        };
        let base = if let By::Coefficients(by) = &self.by { by.base.as_ref() } else { None };
        let mut inputs: Vec<Named> = self.models.iter().map(|path| ("--models", path.as_path())).collect();
        let others = [("--weights", weights), ("--data", data), ("--base", base)];
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
                let architecture = sources.architecture().clone();
                (sources, Whole { model, has_head: true, anchor, metadata, provenance, architecture })
            }
            By::Coefficients(by) => {
                let sources = self.sources(&self.reading, observer)?;
                let whole = self.by_coefficients(by, &sources, place, observer)?;
                (sources, whole)
            }
        };
        let Whole { model, has_head, anchor, metadata, provenance, architecture } = whole;
        let form = self.writing.form(&architecture, Some(&sources.get(anchor).checkpoint.origin))?;
        let mut output = OutputPath::check(&self.out, self.force, checkpoint::file_size(&model.network))?;
        let described =
            Described { architecture: &architecture, model: &model, has_head, form: &form, provenance: &provenance };
        let told =
            Told { described, metadata: &metadata, history: &[], select_by: SelectBy::default(), sources: Vec::new() };
        card::save(&mut output, &told, card, observer)?;
        Ok(Merged { architecture, classes: has_head.then_some(model.network.classes) })
    }

    /// The sources, whose network can be written as it is asked for.
    fn sources(&self, reading: &Reading, observer: &mut dyn Observer) -> Result<Sources> {
        let sources = match &self.by {
            By::Weights { .. } => networks::load_any_sources(&self.models, reading, observer)?,
            By::Coefficients(_) => networks::load_sources(&self.models, reading, observer)?,
        };
        self.writing.check(sources.architecture(), true)?;
        Ok(sources)
    }

    fn by_coefficients(
        &self,
        by: &ByMethod,
        sources: &Sources,
        place: Place,
        observer: &mut dyn Observer,
    ) -> Result<Whole> {
        let ByMethod {
            values, anchor, batch_norm, heads, align, method, filtered, numbers, base, data, normalise, ..
        } = by;
        let method = methods::named(method)?;
        let values = coefficients(method, values, filtered, sources)?;
        let base = match base {
            Some(path) => Some(self.base(path, sources, observer)?),
            None => None,
        };
        if method.widens(numbers) {
            self.writing.check(&Widened::around(sources.architecture()).into(), true)?;
        }
        let architecture = sources.architecture();
        if by.statistics == Some(Statistics::Rescale) && sources.get(0).checkpoint.model.batches_tracked.is_empty() {
            let message = format!("{architecture} has no batch norms, whose running statistics could be rescaled");
            return Err(Error::usage(message, "leave --statistics out"));
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
        let inputs = Inputs {
            sources: &aligned,
            anchor,
            batch_norm: *batch_norm,
            coefficients: &values,
            filtered,
            numbers,
            base: base.as_ref(),
        };
        let blend = |plan: &Plan, trunks: &[Tensor], merge_weights: &Tensor| place.blend(plan, trunks, merge_weights);
        let fixed = {
            let images = for_statistics.as_ref().map(|(data, normalisation)| TargetImages {
                target: Target { data, normalisation, place },
                observer: RefCell::new(observer),
            });
            let images = images.as_ref().map(|images| images as &dyn methods::Images);
            fold_by(method, &Task { inputs, images, blend: &blend }, *heads)?
        };
        let Fixed { mut model, head, mut metadata, mut provenance, architecture, remarks } = fixed;
        remarks.iter().for_each(|remark| observer.remark(remark));
        if let Some(remark) = head.remark(sources.get(anchor)) {
            observer.remark(&remark);
        }
        let statistics = by.statistics();
        match (statistics, &for_statistics) {
            (Statistics::Rescale, _) => rescale(&mut model, &inputs),
            (Statistics::Reestimate, Some((data, normalisation))) => {
                reestimate_statistics(&mut model, Target { data, normalisation, place }, 128)?;
            }
            _ => observer.remark("running statistics are the anchor's; --data re-estimates them, which a blend needs"),
        }
        match &for_statistics {
            Some((data, normalisation)) => {
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
            }
        }
        metadata.insert(STATISTICS.into(), statistics.to_string());
        if *align != Align::None {
            metadata.insert(ALIGN.into(), align.to_string());
        }
        provenance.write(&mut metadata);
        Ok(Whole { model, has_head: head.is_there(), anchor, metadata, provenance, architecture })
    }

    /// Refuses a method without what it needs, and what it has no use for.
    fn check_method(&self) -> Result<()> {
        let By::Coefficients(by) = &self.by else { return Ok(()) };
        let ByMethod { method, numbers, base, filtered, .. } = &**by;
        let method = methods::named(method)?;
        numbers.check(method)?;
        let name = method.name();
        if let Some(count) = method.only_sources().filter(|&count| count != self.models.len()) {
            let message = format!("--method {name} takes {count} sources, not {}", self.models.len());
            return Err(Error::usage(message, "merge the first two, and the result with the next"));
        }
        if !(method.reads_coefficients() || by.values.is_empty() && filtered.is_empty()) {
            let message = format!("--method {name} does not go by coefficients");
            return Err(Error::usage(message, "leave them out; --method list says what each method reads"));
        }
        by.check_statistics(method)?;
        by.check_images(method)?;
        match (method.needs_base(), base) {
            (true, None) => {
                let message = format!("--method {name} needs the network that the sources were trained from");
                return Err(Error::usage(message, "give --base CKPT"));
            }
            (false, Some(_)) => {
                return Err(Error::usage(format!("--method {name} has no use for --base"), "leave it out"));
            }
            _ => {}
        }
        let odd = |filtered: &&Filtered| {
            let is_good = |values: &Vec<f64>| !values.is_empty() && values.iter().all(|v| (*v as f32).is_finite());
            filtered.values.len() != self.models.len() || !filtered.values.iter().all(is_good)
        };
        match filtered.iter().find(odd) {
            Some(Filtered { filter, values }) => {
                let message = format!("{} coefficients of {filter} for {} sources", values.len(), self.models.len());
                Err(Error::usage(message, "give one number per source: --coefficients-for layer3=0.2,0.8"))
            }
            None => Ok(()),
        }
    }

    /// The network that the sources were trained from.
    fn base(&self, path: &Path, sources: &Sources, observer: &mut dyn Observer) -> Result<Model> {
        let checkpoint = networks::load(path, &self.reading, observer)?;
        let base = Source { path: path.to_path_buf(), checkpoint };
        check_alike(sources.get(0), &base)?;
        Ok(base.checkpoint.model)
    }

    fn align(&self) -> Align {
        match &self.by {
            By::Weights { .. } => Align::None,
            By::Coefficients(by) => by.align,
        }
    }

    fn data_path(&self) -> Option<&PathBuf> {
        match &self.by {
            By::Weights { .. } => None,
            By::Coefficients(by) => by.data.as_ref(),
        }
    }

    fn normalisation(&self, sources: &Sources, observer: &mut dyn Observer) -> Result<Normalisation> {
        let By::Coefficients(by) = &self.by else { unreachable!("asked before") };
        let normalise = &by.normalise;
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
        let files: Vec<_> = sources.iter().map(|s| (s.path.as_path(), &s.checkpoint.provenance)).collect();
        let By::Coefficients(by) = &self.by else { unreachable!("asked before") };
        let (normalise, collecting) = (by.normalise.clone(), by.collecting.clone());
        let images = Images { data: path.to_path_buf(), normalise, collecting };
        let (data, normalisation) = (images.load(&files, observer)?, self.normalisation(sources, observer)?);
        networks::check_fit(&data, &sources.get(anchor).checkpoint.model.network)?;
        networks::tell_image_size(&files, &data, observer);
        Ok((data, normalisation))
    }
}

impl ByMethod {
    /// Where the running statistics come from.
    fn statistics(&self) -> Statistics {
        let usual = if self.data.is_some() { Statistics::Reestimate } else { Statistics::Anchor };
        self.statistics.unwrap_or(usual)
    }

    /// Refuses a method without the images that it needs, and images that nothing reads.
    fn check_images(&self, method: &dyn MergeMethod) -> Result<()> {
        let name = method.name();
        let reads =
            method.needs_images() || self.align == Align::Activations || self.statistics() == Statistics::Reestimate;
        match &self.data {
            None if method.needs_images() => {
                let message = format!("--method {name} needs images of the target");
                Err(Error::usage(message, "give --data FILE.npz, whose labels are not used"))
            }
            Some(_) if !reads => {
                let message = format!("--statistics {} and --method {name} do not look at images", self.statistics());
                Err(Error::usage(message, "leave --data out, or --statistics, which are then re-estimated"))
            }
            _ => Ok(()),
        }
    }

    fn check_statistics(&self, method: &dyn MergeMethod) -> Result<()> {
        match self.statistics() {
            Statistics::Reestimate if self.data.is_none() => {
                Err(Error::usage("--statistics reestimate needs images of the target", "give --data FILE.npz"))
            }
            other if method.measures() && other != Statistics::Reestimate => {
                let message = format!("--method {} measures networks whose statistics are re-estimated", method.name());
                Err(Error::usage(message, "leave --statistics out"))
            }
            Statistics::Rescale if method.name() != "linear" => {
                let message = format!("--statistics rescale knows what a linear merge does, not {}", method.name());
                Err(Error::usage(message, "give --data, by which statistics are re-estimated"))
            }
            _ => Ok(()),
        }
    }
}

fn linear() -> String {
    "linear".into()
}

/// The coefficient of each source; filters that no parameter has are refused.
fn coefficients(
    method: &dyn MergeMethod,
    values: &[f64],
    filtered: &[Filtered],
    sources: &Sources,
) -> Result<Vec<f64>> {
    let trunk: Vec<&Parameter> = sources.get(0).checkpoint.model.network.region(Region::Trunk).collect();
    for Filtered { filter, .. } in filtered {
        let mut named = trunk.iter().filter(|parameter| parameter.name.contains(filter)).peekable();
        if named.peek().is_none() {
            return Err(Error::unknown("part of a parameter's name", filter, trunk.iter().map(|p| p.name.as_str())));
        }
        if !named.any(|parameter| method.reads_coefficient_of(parameter)) {
            let message = format!("--coefficients-for {filter} names no filters of --method {}", method.name());
            let hint = "name the convolution: its norm and bias go with the filters that feed them";
            return Err(Error::usage(message, hint));
        }
    }
    match values.len() {
        0 => Ok(vec![method.usual_coefficient(sources.len()); sources.len()]),
        count if count == sources.len() => Ok(values.to_vec()),
        count => {
            let message = format!("{count} coefficients for {} sources", sources.len());
            Err(Error::usage(message, "give one number per source: --coefficients 0.5,0.5"))
        }
    }
}
