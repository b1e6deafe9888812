//! The result of learning, in a file of its own: the merge weights of every layer, the new head and the running
//! statistics of the merged network. With the sources, that is all [`Learned::fold`] needs, so that folding again gives
//! the same bytes.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::{Method, Plan, WeightGroup};
use super::{Alignment, Constraint, ProbeStatistics, Sources, Start, Statistics};
use crate::checkpoint::{self, Checkpoint, Hidden, Metadata, Numbers, Provenance, Reading, StoredTensor, TensorFile};
use crate::error::{Error, Result};
use crate::file_kind::Wanted;
use crate::nn::{Architecture, Model, Network, Permutation, Region, UnitGroup, Units};
use crate::output::OutputPath;
use crate::tensor::Tensor;

/// The identity of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The file's name without its folder.
    pub name: String,
    pub sha256: String,
}

/// Everything learned on the target.
#[derive(Clone, Debug)]
pub struct Learned {
    pub architecture: Architecture,
    pub method: Method,
    pub start: Start,
    /// λ of the pull towards the start; 0 without.
    pub regularise: f64,
    /// Where the running statistics come from; `None` of files that did not say it yet.
    pub statistics: Option<Statistics>,
    pub probe_statistics: ProbeStatistics,
    pub seed: u64,
    pub sources: Vec<SourceRecord>,
    /// The order of the sources' units in which they were merged; `None` where they were merged as they stand.
    pub alignment: Option<Alignment>,
    /// Learned rows × merge weights in each.
    pub merge_weights: Tensor,
    /// The head and the running statistics; its trunk is not used.
    pub model: Model,
    pub provenance: Provenance,
}

/// How much of each source a layer keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSummary {
    pub name: String,
    /// Shape of a source's α: none, K, or K×C.
    pub shape: Vec<usize>,
    /// The smallest α, their mean and the largest, source by source.
    pub of_sources: Vec<[f32; 3]>,
}

/// The suffix of a layer's merge weights in a file.
const SUFFIX: &str = "merge_weight";

/// The entry of a header that says what sources were aligned by.
pub(crate) const ALIGN: &str = "medmerge.align";

/// The entry of a header that says where running statistics come from.
pub(crate) const STATISTICS: &str = "medmerge.statistics";

/// The entry of a header that says what batch norms normalised by while weights were learned, if not by the batch.
const PROBE_STATISTICS: &str = "medmerge.probe_statistics";

/// The entry of a header that says how strongly merge weights were pulled to their start, if they were.
const REGULARISE: &str = "medmerge.regularise";

impl Learned {
    /// # Errors
    /// If the network has a parameter that the method does not say how to merge.
    pub fn plan(&self) -> Result<Plan> {
        Plan::new(&self.model.network, self.method)
    }

    /// How far the merge weights went from where they started, on average: mean |w − w₀|.
    pub fn moved(&self) -> Result<f64> {
        let start = self.plan()?.start(self.start)?.to_vec::<f32>();
        let now = self.merge_weights.to_vec::<f32>();
        let moved = now.iter().zip(&start).map(|(now, start)| f64::from((now - start).abs())).sum::<f64>();
        Ok(moved / start.len().max(1) as f64)
    }

    /// The spread of α, layer by layer.
    pub fn summary(&self) -> Result<Vec<LayerSummary>> {
        let plan = self.plan()?;
        let spread = |alpha: &Vec<f32>| {
            let smallest = alpha.iter().copied().fold(f32::INFINITY, f32::min);
            let largest = alpha.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            [smallest, alpha.iter().sum::<f32>() / alpha.len() as f32, largest]
        };
        let of_entry = |entry: &WeightGroup| LayerSummary {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            of_sources: plan.alphas_of(entry, &self.merge_weights).iter().map(spread).collect(),
        };
        Ok(plan.entries.iter().map(of_entry).collect())
    }

    /// The sources as they were merged: aligned, if they were.
    pub fn aligned<'a>(&self, sources: &'a Sources) -> Cow<'a, Sources> {
        match &self.alignment {
            Some(alignment) => Cow::Owned(sources.aligned(alignment)),
            None => Cow::Borrowed(sources),
        }
    }

    /// The merged network: an ordinary one. Trunks are those of [`Learned::aligned`] sources.
    pub fn fold(&self, trunks: &[Tensor]) -> Result<Model> {
        Ok(self.with_trunk(self.plan()?.blend(trunks, &self.merge_weights)))
    }

    /// The merged network with a trunk that was blended elsewhere.
    pub fn with_trunk(&self, trunk: Tensor) -> Model {
        Model { trunk, ..self.model.clone() }
    }

    /// The metadata in the header of the merged network.
    pub fn metadata(&self) -> Metadata {
        let Method { granularity, constraint, batch_norm, anchor, .. } = self.method;
        let text = |value: &dyn std::fmt::Display| value.to_string();
        let json = |value: serde_json::Result<String>| value.expect("plain data is JSON");
        let mut metadata = Metadata::from(
            [
                ("method", "medmerge".to_string()),
                ("granularity", text(&granularity)),
                ("constraint", text(&constraint)),
                ("batch_norm", text(&batch_norm)),
                ("anchor", text(&anchor)),
                ("start", text(&self.start)),
                ("seed", text(&self.seed)),
                ("sources", json(serde_json::to_string(&self.sources))),
                ("architecture", self.architecture.to_json()),
                ("input_channels", text(&self.model.network.input_channels)),
                ("classes", text(&self.model.network.classes)),
            ]
            .map(|(key, value)| (format!("medmerge.{key}"), value)),
        );
        if let Some(statistics) = self.statistics {
            metadata.insert(STATISTICS.into(), text(&statistics));
        }
        if self.probe_statistics != ProbeStatistics::Batch {
            metadata.insert(PROBE_STATISTICS.into(), text(&self.probe_statistics));
        }
        if self.regularise != 0.0 {
            metadata.insert(REGULARISE.into(), text(&self.regularise));
        }
        if let Some(Alignment { by, .. }) = &self.alignment {
            metadata.insert(ALIGN.into(), text(by));
        }
        self.provenance.write(&mut metadata);
        metadata
    }

    /// Writes what was learned, if it can be read again.
    pub fn save(&self, output: &mut OutputPath) -> Result<()> {
        let plan = self.plan()?;
        let merge_weights = self.merge_weights.to_vec::<f32>();
        checkpoint::refuse_to_write(output.path(), &self.model)?;
        if merge_weights.iter().any(|weight| !weight.is_finite()) {
            let message = format!("{} was not written: a merge weight is NaN or infinity", output.path().display());
            return Err(Error::NotFinite { message, hint: "use a smaller --merge-learning-rate".into() });
        }
        let mut tensors: Vec<StoredTensor> = plan
            .entries
            .iter()
            .map(|entry| {
                let rows = merge_weights.chunks(plan.parametrization.learned);
                let values = rows.flat_map(|row| &row[entry.first..][..entry.count()]).copied().collect();
                StoredTensor::floats_named(format!("{}.{SUFFIX}", entry.name), stored_shape(&plan, entry), values)
            })
            .collect();
        for parameter in self.model.network.region(Region::Head) {
            let values = self.model.parameter(parameter).to_vec();
            tensors.push(StoredTensor::floats_named(parameter.name.clone(), parameter.shape.dims().to_vec(), values));
        }
        tensors.extend(checkpoint::stored_statistics(&self.model));
        tensors.extend(self.alignment.iter().flat_map(stored_orders));
        let mut metadata = self.metadata();
        metadata.insert("medmerge.content".into(), "merge weights".into());
        checkpoint::write(output, &tensors, &metadata)
    }

    pub fn load(path: &Path) -> Result<Learned> {
        Learned::from_file(&TensorFile::read_as(path, Wanted::MergeWeights)?)
    }

    pub fn from_file(file: &TensorFile) -> Result<Learned> {
        let header = Header { file };
        if header.field("content")? != "merge weights" {
            return Err(header.makes_no_sense("content"));
        }
        let sources: Vec<SourceRecord> = header.json("sources")?;
        let method = header.method(sources.len())?;
        let (architecture, network) = header.network()?;
        // What the header claims is believed, and memory taken for it, only if the statistics say the same.
        checkpoint::check_statistics(&network, file)?;
        let plan = Plan::new(&network, method)?;
        let mut model = Model::blank(network.clone());
        for parameter in network.region(Region::Head) {
            model.set_parameter(parameter, &file.floats(&parameter.name, parameter.shape.dims())?);
        }
        checkpoint::restore_statistics(&mut model, file)?;
        let (rows, count) = (plan.parametrization.rows(), plan.parametrization.learned);
        let mut merge_weights = vec![0f32; rows * count];
        for entry in &plan.entries {
            let values = file.floats(&format!("{}.{SUFFIX}", entry.name), &stored_shape(&plan, entry))?;
            for (row, values) in values.chunks(entry.count()).enumerate() {
                merge_weights[row * count + entry.first..][..entry.count()].copy_from_slice(values);
            }
        }
        if merge_weights.iter().any(|weight| !weight.is_finite()) {
            return Err(Error::checkpoint(&file.path, "a merge weight is NaN or infinity", Header::HINT));
        }
        checkpoint::check_numbers(&file.path, &model)?;
        let merge_weights = Tensor::from_vec(merge_weights, [rows, count]);
        let provenance = Provenance::read(&file.path, &file.metadata)?;
        provenance.check(&file.path, &network, true)?;
        let (start, seed) = (header.field("start")?.parse()?, header.number("seed")?);
        let regularise = header.regularise()?;
        let alignment = header.alignment(&network, sources.len())?;
        Ok(Learned {
            architecture,
            method,
            start,
            regularise,
            statistics: file.metadata.get(STATISTICS).map(|text| text.parse()).transpose()?,
            probe_statistics: match file.metadata.get(PROBE_STATISTICS) {
                Some(text) => text.parse()?,
                None => ProbeStatistics::Batch,
            },
            seed,
            sources,
            alignment,
            merge_weights,
            model,
            provenance,
        })
    }

    /// How the sources are to be read: the weights were learned for one network. What is asked for goes first.
    pub fn reading(&self, asked: &Reading) -> Reading {
        let is_new = self.architecture.with_new_hidden().as_ref() == Some(&self.architecture);
        Reading {
            stem: asked.stem.or(self.architecture.stem()),
            input_channels: asked.input_channels,
            hidden: if is_new { Hidden::New } else { asked.hidden },
        }
    }

    /// Checks that these are the very sources the weights were learned for, in their order.
    pub fn check_sources(&self, path: &Path, sources: &Sources) -> Result<()> {
        let given = sources.records();
        if given.len() != self.sources.len() {
            let message = format!("it holds merge weights for {} sources, not for {}", self.sources.len(), given.len());
            let names: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
            return Err(Error::checkpoint(path, message, format!("they are {}, in this order", names.join(", "))));
        }
        for (learned, given) in self.sources.iter().zip(&given) {
            if learned.sha256 != given.sha256 {
                let message = format!("its merge weights were learned for another file than {}", given.name);
                let hint = format!("that place belongs to {} with SHA-256 {}", learned.name, learned.sha256);
                return Err(Error::checkpoint(path, message, hint));
            }
        }
        let (here, there) = (&self.architecture, sources.architecture());
        let channels = [self.model.network.input_channels, sources.input_channels()];
        if here != there || channels[0] != channels[1] {
            let message = format!(
                "its header is that of {here} with {} input channels, and the sources are {there} with {}",
                channels[0], channels[1]
            );
            return Err(Error::checkpoint(
                path,
                message,
                "give the --stem, --input-channels and --hidden that the weights were learned with, and no others",
            ));
        }
        Ok(())
    }
}

/// The order of each source's units, strand by strand.
fn stored_orders(alignment: &Alignment) -> Vec<StoredTensor> {
    let mut tensors = Vec::new();
    for (source, permutation) in alignment.permutations.iter().enumerate() {
        for (group, orders) in permutation.orders.iter().enumerate() {
            for (strand, order) in orders.iter().enumerate() {
                let values: Vec<i64> = order.iter().map(|&channel| channel as i64).collect();
                let name = order_name([source, group, strand]);
                tensors.push(StoredTensor::integers_named(name, vec![values.len()], values));
            }
        }
    }
    tensors
}

fn order_name([source, group, strand]: [usize; 3]) -> String {
    format!("order.{source}.{group}.{strand}")
}

/// The header of a file of merge weights.
struct Header<'a> {
    file: &'a TensorFile,
}

impl Header<'_> {
    const HINT: &'static str = "give the file that `medmerge learn --weights` wrote";

    fn field(&self, key: &str) -> Result<&str> {
        let missing = || self.refuse(format!("it is no file of merge weights: its header lacks {key}"));
        self.file.metadata.get(&format!("medmerge.{key}")).map(String::as_str).ok_or_else(missing)
    }

    fn number(&self, key: &str) -> Result<u64> {
        self.field(key)?.parse().map_err(|_| self.makes_no_sense(key))
    }

    fn regularise(&self) -> Result<f64> {
        let Some(text) = self.file.metadata.get(REGULARISE) else { return Ok(0.0) };
        let parsed = text.parse().ok().filter(|strength: &f64| strength.is_finite() && *strength > 0.0);
        parsed.ok_or_else(|| self.makes_no_sense("regularise"))
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, key: &str) -> Result<T> {
        serde_json::from_str(self.field(key)?).map_err(|_| self.makes_no_sense(key))
    }

    fn method(&self, sources: usize) -> Result<Method> {
        let method = Method {
            sources,
            anchor: self.number("anchor")? as usize,
            granularity: self.field("granularity")?.parse()?,
            constraint: self.field("constraint")?.parse()?,
            batch_norm: self.field("batch_norm")?.parse()?,
        };
        let is_enough = sources >= 2 || (sources == 1 && method.constraint == Constraint::Free);
        match method.anchor < sources && is_enough {
            true => Ok(method),
            false => Err(self.makes_no_sense("anchor")),
        }
    }

    /// The network that was learned for: its classes are those of the classifier's bias.
    fn network(&self) -> Result<(Architecture, Arc<Network>)> {
        let architecture: Architecture = self.json("architecture")?;
        let input_channels =
            usize::try_from(self.number("input_channels")?).map_err(|_| self.makes_no_sense("input_channels"))?;
        architecture.check(input_channels).map_err(|reason| {
            self.refuse(format!("its header's architecture or input_channels makes no sense: {reason}"))
        })?;
        let one_class = architecture.build(input_channels, 1);
        let bias = one_class.classifier().and_then(|[_, bias]| self.file.tensors.get(&bias.name));
        let classes = bias.and_then(|bias| bias.shape.first()).ok_or_else(|| self.makes_no_sense("classes"))?;
        let network = architecture.build(input_channels, *classes);
        Ok((architecture, network))
    }

    /// The order of the sources' units in which the weights were learned.
    fn alignment(&self, network: &Network, sources: usize) -> Result<Option<Alignment>> {
        let Some(by) = self.file.metadata.get(ALIGN) else { return Ok(None) };
        let units = Units::of(network);
        let order = |at: [usize; 3]| -> Result<Vec<usize>> {
            let name = order_name(at);
            match self.file.tensors.get(&name).map(|tensor| &tensor.numbers) {
                Some(Numbers::Integers(order)) => Ok(order.iter().map(|&old| old as usize).collect()),
                _ => Err(self.refuse(format!("it has no tensor '{name}' of integers"))),
            }
        };
        let of_source = |source: usize| -> Result<Permutation> {
            let of_group = |(group, strands): (usize, &UnitGroup)| {
                (0..strands.strands.len()).map(|strand| order([source, group, strand])).collect::<Result<Vec<_>>>()
            };
            let permutation =
                Permutation { orders: units.groups.iter().enumerate().map(of_group).collect::<Result<_>>()? };
            match permutation.fits(&units) {
                true => Ok(permutation),
                false => Err(self.refuse(format!("the order of source {source} is none of its units"))),
            }
        };
        let permutations = (0..sources).map(of_source).collect::<Result<_>>()?;
        Ok(Some(Alignment { by: by.parse()?, permutations }))
    }

    fn makes_no_sense(&self, key: &str) -> Error {
        self.refuse(format!("its header's {key} makes no sense"))
    }

    fn refuse(&self, message: String) -> Error {
        Error::checkpoint(&self.file.path, message, Header::HINT)
    }
}

/// Learned rows first, then the entry's own shape.
fn stored_shape(plan: &Plan, entry: &WeightGroup) -> Vec<usize> {
    [&[plan.parametrization.rows()], entry.shape.as_slice()].concat()
}

/// The metadata of a network that was not learned by merging.
pub fn training_metadata(architecture: &Architecture, seed: u64, from: Option<&Checkpoint>) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("medmerge.method".into(), if from.is_some() { "fine-tune" } else { "train" }.into());
    metadata.insert("medmerge.architecture".into(), architecture.to_json());
    metadata.insert("medmerge.seed".into(), seed.to_string());
    if let Some(from) = from {
        metadata.insert("medmerge.from".into(), from.sha256.clone());
        let handed_on =
            ["sources", "granularity", "constraint", "batch_norm", "anchor", "start", "regularise", "probe_statistics"];
        for key in handed_on.map(|key| format!("medmerge.{key}")) {
            if let Some(value) = from.metadata.get(&key) {
                metadata.insert(key, value.clone());
            }
        }
    }
    metadata
}
