//! How a network is written: under whose names, and in which type of numbers.
//!
//! | | names of | |
//! |---|---|---|
//! | `torchvision` | the network itself | always |
//! | `timm` | timm, which are the same but for VGGs: their hidden layers are convolutions there | no shortcuts without parameters |
//! | `transformers` | `ResNetForImageClassification` | ResNets without groups, with the 7×7 stem |
//! | `source` | the file that the network comes from | whatever could be read |
//!
//! Sums are in f32 wherever they are computed; numbers are rounded to the nearest where they are written, to even ones in
//! between. A header that holds `medmerge.names` says that names are not the network's own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::names::{self, COUNTER, Exporter, MEAN, Origin};
use super::tensors::{Numbers, StoredTensor, TensorFile};
use super::{ALTERED, Metadata};
use crate::error::{Error, Result};
use crate::nn::{Architecture, Network};

/// Whose names a network is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Names {
    /// The network's own.
    #[default]
    Torchvision,
    Timm,
    Transformers,
    /// Those of the file that the network comes from, without what wrappers of training put before them.
    Source,
}

/// The type of a file's parameters and statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FloatType {
    #[default]
    F32,
    Bf16,
    F16,
    /// Tensor by tensor that of the file that the network comes from; f32 for f64.
    Source,
}

impl Names {
    pub const ALL: [(Names, &'static str); 4] = [
        (Names::Torchvision, "torchvision"),
        (Names::Timm, "timm"),
        (Names::Transformers, "transformers"),
        (Names::Source, "source"),
    ];
}

impl FloatType {
    pub const ALL: [(FloatType, &'static str); 4] =
        [(FloatType::F32, "f32"), (FloatType::Bf16, "bf16"), (FloatType::F16, "f16"), (FloatType::Source, "source")];
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Names::ALL[*self as usize].1)
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FloatType::ALL[*self as usize].1)
    }
}

impl FromStr for Names {
    type Err = Error;
    fn from_str(name: &str) -> Result<Names> {
        let found = Names::ALL.into_iter().find(|(_, known)| *known == name);
        found
            .map(|(names, _)| names)
            .ok_or_else(|| Error::unknown("set of names", name, Names::ALL.map(|(_, name)| name)))
    }
}

impl FromStr for FloatType {
    type Err = Error;
    fn from_str(name: &str) -> Result<FloatType> {
        let found = FloatType::ALL.into_iter().find(|(_, known)| *known == name);
        found
            .map(|(dtype, _)| dtype)
            .ok_or_else(|| Error::unknown("type of numbers", name, FloatType::ALL.map(|(_, name)| name)))
    }
}

/// How a network is to be written. By default, under its own names in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Writing {
    pub names: Names,
    pub dtype: FloatType,
}

impl Writing {
    /// Whether it goes by the file that the network comes from.
    pub fn needs_source(&self) -> bool {
        self.names == Names::Source || self.dtype == FloatType::Source
    }

    /// Refuses what cannot be written: a network that nobody names like this, or a source where there is none.
    pub fn check(&self, architecture: &Architecture, has_source: bool) -> Result<()> {
        if self.needs_source() && !has_source {
            let option = if self.names == Names::Source { "--names" } else { "--dtype" };
            let message = format!("{option} source asks for what a file has, and the network is new");
            return Err(Error::usage(message, "name it, or start from a file: --from FILE"));
        }
        names::writer(self.names, architecture).map(drop)
    }

    /// The form for a network of this architecture; `origin` is that of the file that it comes from.
    pub fn form(&self, architecture: &Architecture, origin: Option<&Origin>) -> Result<Form> {
        self.check(architecture, origin.is_some())?;
        let exporter = names::writer(self.names, architecture)?;
        let origin = origin.filter(|_| self.needs_source()).cloned().unwrap_or_default();
        Ok(Form { writing: *self, exporter, origin })
    }
}

/// A way of writing that is known to exist for a network.
#[derive(Clone, Debug, Default)]
pub struct Form {
    writing: Writing,
    exporter: Option<&'static Exporter>,
    origin: Origin,
}

/// The entry of a header whose file has other names than the network's own: whose they are.
pub(super) const NAMES: &str = "medmerge.names";

impl Form {
    /// Brings a network's tensors to this form. `windows` are the shapes of fully connected layers as convolutions.
    pub(super) fn apply(
        &self,
        path: &Path,
        tensors: Vec<StoredTensor>,
        windows: &BTreeMap<String, Vec<usize>>,
        metadata: &mut Metadata,
    ) -> Result<Vec<StoredTensor>> {
        let mut is_own = true;
        let mut written = Vec::new();
        for tensor in tensors {
            let name = self.name_of(&tensor.name);
            let shape = self.shape(&tensor, windows);
            is_own &= name == tensor.name && shape == tensor.shape;
            let dtype = self.dtype(&tensor);
            written.push(rounded(path, StoredTensor { name, shape, dtype, ..tensor })?);
        }
        match is_own {
            true => metadata.remove(NAMES),
            false => metadata.insert(NAMES.into(), self.writing.names.to_string()),
        };
        Ok(written)
    }

    /// Whether a network's parameters have the names of another form.
    pub(super) fn is_like(&self, names: Names, architecture: &Architecture, network: &Network) -> bool {
        let other = Writing { names, ..Writing::default() }.form(architecture, None);
        let is_same = |other: Form| network.parameters.iter().all(|p| self.name_of(&p.name) == other.name_of(&p.name));
        other.is_ok_and(is_same)
    }

    /// The name in a file of what has this name in the network.
    pub(super) fn name_of(&self, own: &str) -> String {
        if self.writing.names != Names::Source {
            return self.exporter.map_or_else(|| own.to_string(), |exporter| exporter.in_files(own));
        }
        if let Some(stored) = self.origin.tensors.get(own) {
            return stored.name.clone();
        }
        // Old files lack the counter, which stands beside the mean.
        let mean = own.strip_suffix(COUNTER).and_then(|norm| self.origin.tensors.get(&format!("{norm}{MEAN}")));
        if let Some(norm) = mean.and_then(|mean| mean.name.strip_suffix(MEAN)) {
            return format!("{norm}{COUNTER}");
        }
        // What is new beside the file is called as its exporter would.
        self.origin.exporter.map_or_else(|| own.to_string(), |exporter| exporter.theirs(own))
    }

    fn shape(&self, tensor: &StoredTensor, windows: &BTreeMap<String, Vec<usize>>) -> Vec<usize> {
        let window = windows.get(&tensor.name);
        let is_window = match self.writing.names {
            Names::Torchvision | Names::Transformers => false,
            Names::Timm => true,
            Names::Source => self.origin.tensors.get(&tensor.name).is_some_and(|stored| stored.shape.len() == 4),
        };
        window.filter(|_| is_window).unwrap_or(&tensor.shape).clone()
    }

    fn dtype(&self, tensor: &StoredTensor) -> String {
        let of_source = || {
            let stored = self.origin.tensors.get(&tensor.name).map(|stored| stored.dtype.as_str());
            // What is new follows the most of the file.
            match stored.unwrap_or(&self.origin.usual_dtype) {
                half @ ("F16" | "BF16") => half,
                _ => "F32",
            }
        };
        let of_floats = match self.writing.dtype {
            FloatType::F32 => "F32",
            FloatType::Bf16 => "BF16",
            FloatType::F16 => "F16",
            FloatType::Source => of_source(),
        };
        if matches!(tensor.numbers, Numbers::Floats(_)) { of_floats.into() } else { tensor.dtype.clone() }
    }
}

/// Rounds numbers to what their type holds, so that they are what is read again; one beyond it is an error.
fn rounded(path: &Path, mut tensor: StoredTensor) -> Result<StoredTensor> {
    let (round, largest): (fn(f32) -> f32, f32) = match tensor.dtype.as_str() {
        "F16" => (|value| f16::from_f32(value).to_f32(), f16::MAX.to_f32()),
        "BF16" => (|value| bf16::from_f32(value).to_f32(), bf16::MAX.to_f32()),
        _ => return Ok(tensor),
    };
    let Numbers::Floats(values) = &mut tensor.numbers else { return Ok(tensor) };
    if let Some(value) = values.iter().find(|value| value.is_finite() && value.abs() > largest) {
        let dtype = tensor.dtype.to_lowercase();
        let message =
            format!("{} was not written: {} holds {value}, and {dtype} ends at {largest}", path.display(), tensor.name);
        return Err(Error::NotFinite { message, hint: "use --dtype f32; bf16 holds larger numbers than f16".into() });
    }
    values.iter_mut().for_each(|value| *value = round(*value));
    Ok(tensor)
}

/// Whether the tensors of a file have the network's own names by what its header says.
pub(super) fn has_own_names(file: &TensorFile) -> Result<bool> {
    match file.metadata.get(NAMES).map(|names| names.parse::<Names>()) {
        None => Ok(file.metadata.contains_key(super::ARCHITECTURE)),
        Some(Ok(_)) => Ok(false),
        Some(Err(error)) => {
            let message = format!("its header's {NAMES} makes no sense: {error}");
            Err(Error::checkpoint(&file.path, message, ALTERED))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Checkpoint, save_as, stored_tensors, write};
    use super::*;
    use crate::nn::{Model, Stem};
    use crate::output::OutputPath;

    /// A narrow network of each kind: its name, stem and width, and which of timm's and transformers' names it has.
    const NETWORKS: [(&str, Option<Stem>, usize, [bool; 2]); 10] = [
        ("resnet8", None, 4, [true, false]),
        ("resnet18", None, 4, [true, true]),
        ("resnet18", Some(Stem::Small), 4, [true, false]),
        ("resnet50", None, 4, [true, true]),
        ("resnext50_32x4d", None, 16, [true, false]),
        ("wide_resnet50_2", None, 4, [true, false]),
        ("resnet20-option-a", None, 4, [false, false]),
        ("densenet121", None, 4, [true, false]),
        ("vgg11", None, 1, [true, false]),
        ("vgg16_bn", None, 2, [true, false]),
    ];

    fn model((name, stem, width, _): (&str, Option<Stem>, usize, [bool; 2])) -> (Architecture, Model) {
        let architecture = Architecture::named(name, stem, Some(width)).unwrap();
        let mut model = Model::initialized(architecture.build(3, 5), 7);
        for index in 0..model.network.batch_norms.len() {
            let channels = model.network.batch_norms[index].channels;
            let values = |scale: f32| (0..channels).map(|i| 0.3 + scale * i as f32).collect::<Vec<f32>>();
            model.set_running(index, &values(-0.7), &values(0.01));
            model.batches_tracked[index] = 40 + index as i64;
        }
        (architecture, model)
    }

    fn written(path: &Path, model: &Model, form: &Form, architecture: &Architecture) -> Checkpoint {
        let metadata = Metadata::from([(super::super::ARCHITECTURE.to_string(), architecture.to_json())]);
        save_as(&mut OutputPath::check(path, true, 0).unwrap(), model, true, form, &metadata).unwrap();
        Checkpoint::load(path).unwrap()
    }

    fn numbers(model: &Model) -> Vec<f32> {
        [&model.trunk, &model.head, &model.statistics].into_iter().flat_map(|arena| arena.to_vec::<f32>()).collect()
    }

    /// Each name set and type, read back: f32 bit for bit, 16 bits to their rounding, and written again the same bytes.
    #[test]
    fn every_form_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let [path, again] = ["a", "b"].map(|name| folder.path().join(name));
        for network in NETWORKS {
            let (architecture, model) = model(network);
            for (names, dtype) in Names::ALL.into_iter().flat_map(|n| FloatType::ALL.map(|d| (n.0, d.0))) {
                let writing = Writing { names, dtype };
                let exists = match names {
                    Names::Timm => network.3[0],
                    Names::Transformers => network.3[1],
                    _ => true,
                };
                let form = writing.form(&architecture, Some(&Origin::default()));
                assert_eq!(form.is_ok(), exists, "{architecture} {writing:?}");
                let Ok(form) = form else { continue };
                let back = written(&path, &model, &form, &architecture);
                let round: fn(f32) -> f32 = match dtype {
                    FloatType::Bf16 => |value| bf16::from_f32(value).to_f32(),
                    FloatType::F16 => |value| f16::from_f32(value).to_f32(),
                    FloatType::F32 | FloatType::Source => |value| value,
                };
                let expected: Vec<f32> = numbers(&model).into_iter().map(round).collect();
                assert_eq!(numbers(&back.model), expected, "{architecture} {writing:?}");
                assert_eq!(back.model.batches_tracked, model.batches_tracked);
                assert_eq!((&back.architecture, &back.notes), (&architecture, &Vec::new()));
                written(&again, &back.model, &form, &architecture);
                assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
                // And as the file just read has it, by its own account.
                let source = Writing { names: Names::Source, dtype: FloatType::Source };
                let form = source.form(&architecture, Some(&back.origin)).unwrap();
                written(&again, &back.model, &form, &architecture);
                let [a, b] = [&path, &again].map(|path| TensorFile::read(path).unwrap().tensors);
                let of = |tensors: BTreeMap<String, StoredTensor>| {
                    tensors.into_values().map(|t| (t.name, t.dtype, t.shape, t.numbers)).collect::<Vec<_>>()
                };
                assert_eq!(of(a), of(b));
            }
        }
    }

    /// A foreign file of a network, without its counters and with `head` as its classifier.
    fn foreign(path: &Path, model: &Model, rename: impl Fn(&str) -> String, dtype: &str) {
        let tensors: Vec<StoredTensor> = stored_tensors(model, true)
            .into_iter()
            .filter(|tensor| !tensor.name.ends_with(COUNTER))
            .map(|tensor| StoredTensor { name: rename(&tensor.name), dtype: dtype.into(), ..tensor })
            .collect();
        write(&mut OutputPath::check(path, true, 0).unwrap(), &tensors, &Metadata::new()).unwrap();
    }

    #[test]
    fn a_source_gives_its_names_and_types() {
        let (densenet, of_densenet) = model(NETWORKS[7]);
        let monai = |own: &str| {
            let own = own.replace("classifier", "class_layers.out");
            if own.contains("denselayer") {
                own.replace(".norm", ".layers.norm").replace(".conv", ".layers.conv")
            } else {
                own
            }
        };
        let (resnet, of_resnet) = model(NETWORKS[1]);
        let encoder = |own: &str| match own.strip_prefix("fc") {
            Some(rest) => format!("module.linear{rest}"),
            None => format!("module.encoder.{own}"),
        };
        assert_source_is_kept(&densenet, &of_densenet, monai, "BF16", "");
        assert_source_is_kept(&resnet, &of_resnet, encoder, "F16", "module.");
    }

    /// Checks that a foreign file keeps its names, but for what is `dropped` before them, and its type.
    fn assert_source_is_kept(
        architecture: &Architecture,
        model: &Model,
        rename: impl Fn(&str) -> String,
        dtype: &str,
        dropped: &str,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let [path, copy] = ["a", "b"].map(|name| folder.path().join(name));
        foreign(&path, model, rename, dtype);
        let source = Checkpoint::load_with(&path, &super::super::Reading::of_stem(architecture.stem())).unwrap();
        let writing = Writing { names: Names::Source, dtype: FloatType::Source };
        let form = writing.form(architecture, Some(&source.origin)).unwrap();
        let back = written(&copy, &source.model, &form, architecture);
        assert_eq!(numbers(&back.model), numbers(&source.model));
        let [theirs, ours] = [&path, &copy].map(|path| TensorFile::read(path).unwrap());
        for (name, tensor) in &theirs.tensors {
            let own = &ours.tensors[name.strip_prefix(dropped).unwrap()];
            assert_eq!((&own.dtype, &own.shape, &own.numbers), (&tensor.dtype, &tensor.shape, &tensor.numbers));
        }
        let counters = ours.tensors.keys().filter(|name| name.ends_with(COUNTER)).count();
        assert_eq!(ours.tensors.len(), theirs.tensors.len() + counters);
        assert_eq!(counters, model.network.batch_norms.len());
        assert_eq!(ours.metadata[NAMES], "source");
    }

    type Shapes = &'static [(&'static str, &'static [usize])];

    #[test]
    fn names_are_those_of_the_exporters_own_networks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let cases: [(usize, Names, Shapes); 2] = [
            (
                3,
                Names::Transformers,
                &[
                    ("resnet.embedder.embedder.convolution.weight", &[4, 3, 7, 7]),
                    ("resnet.embedder.embedder.normalization.running_mean", &[4]),
                    ("resnet.encoder.stages.3.layers.2.layer.2.convolution.weight", &[128, 32, 1, 1]),
                    ("resnet.encoder.stages.0.layers.0.shortcut.normalization.num_batches_tracked", &[]),
                    ("classifier.1.bias", &[5]),
                ],
            ),
            (
                9,
                Names::Timm,
                &[
                    ("features.0.weight", &[2, 3, 3, 3]),
                    ("pre_logits.fc1.weight", &[128, 16, 7, 7]),
                    ("pre_logits.fc2.weight", &[128, 128, 1, 1]),
                    ("pre_logits.fc2.bias", &[128]),
                    ("head.fc.weight", &[5, 128]),
                ],
            ),
        ];
        for (network, names, expected) in cases {
            let (architecture, model) = model(NETWORKS[network]);
            let form = Writing { names, dtype: FloatType::F32 }.form(&architecture, None).unwrap();
            written(&path, &model, &form, &architecture);
            let tensors = TensorFile::read(&path).unwrap().tensors;
            for (name, shape) in expected {
                assert_eq!(tensors[*name].shape, *shape, "{name}");
            }
        }
    }

    #[test]
    fn a_number_beyond_its_type_is_an_error_that_names_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = OutputPath::check(&folder.path().join("x"), false, 0).unwrap();
        let (architecture, mut model) = model(NETWORKS[0]);
        let mut refusal = |largest: f32, dtype| {
            model.set_running(2, &[0.0, -largest, 0.0, 0.0], &[1.0; 4]);
            let form = Writing { dtype, ..Writing::default() }.form(&architecture, None).unwrap();
            save_as(&mut output, &model, true, &form, &Metadata::new()).err().map(|error| error.to_string())
        };
        assert_eq!(refusal(65_504.0, FloatType::F16), None);
        let error = refusal(65_505.0, FloatType::F16).unwrap();
        assert!(error.ends_with("layer1.0.bn2.running_mean holds -65505, and f16 ends at 65504"), "{error}");
        assert_eq!(refusal(65_505.0, FloatType::Bf16), None);
        assert!(refusal(f32::MAX, FloatType::Bf16).unwrap().contains("bf16 ends at"));
    }
}
