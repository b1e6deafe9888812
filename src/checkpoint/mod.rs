//! Networks in safetensors files, in PyTorch's order and with torchvision's names.
//!
//! The header carries `format: pt`, which other readers ask for, and under `medmerge.…` where the file comes from. Files
//! are written byte by byte the same for the same content.

mod provenance;
mod safetensors_file;

use std::collections::BTreeMap;
use std::path::Path;

pub use provenance::{DataRecord, Phase, Provenance, agreed_normalisation};
pub use safetensors_file::{Numbers, StoredTensor, TensorFile, write};

use crate::error::{Error, Result};
use crate::nn::{Architecture, Kind, Model, Network, Parameter, Region, Stem};
use crate::output::OutputPath;
use crate::tensor::{DType, Device};

pub type Metadata = BTreeMap<String, String>;

/// A network read from a file.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub model: Model,
    pub architecture: Architecture,
    /// `false` where the file had no classifier; its parameters are then zero.
    pub has_head: bool,
    /// Whether the file leaves its stem open, and the usual one was taken.
    pub stem_is_assumed: bool,
    /// What the header says of the stem.
    pub stem_in_header: Option<Stem>,
    pub metadata: Metadata,
    pub provenance: Provenance,
    /// Of the whole file, in hexadecimal.
    pub sha256: String,
}

/// The running statistics of a batch norm in a file: suffix of the name.
const MEAN: &str = "running_mean";
const VARIANCE: &str = "running_var";
const COUNTER: &str = "num_batches_tracked";

impl Checkpoint {
    /// Reads a network and checks every name, shape and number in it.
    pub fn load(path: &Path) -> Result<Checkpoint> {
        Checkpoint::load_with(path, None)
    }

    /// The same where the stem is known from elsewhere: a file's tensors tell only how large its filters are.
    pub fn load_with(path: &Path, stem: Option<Stem>) -> Result<Checkpoint> {
        Checkpoint::from_file(TensorFile::read(path)?, stem)
    }

    /// `stem` is what the caller knows; it goes before what the header says.
    pub fn from_file(file: TensorFile, stem: Option<Stem>) -> Result<Checkpoint> {
        let path = file.path.clone();
        if file.is_merge_weights() {
            let hint = "give it as --weights to `medmerge merge`, which makes a network of it and its sources";
            return Err(Error::checkpoint(&path, "these are merge weights, not a network", hint));
        }
        file.check_understood()?;
        let shape = |name: &str| file.tensors.get(name).map(|tensor| tensor.shape.clone());
        let (of_shapes, input_channels, classes) = Architecture::infer(&shape).map_err(|reason| {
            let hint = "networks are residual networks with torchvision's names; `medmerge inspect FILE` lists what a file holds";
            Error::checkpoint(&path, format!("this is no network that medmerge knows: {reason}"), hint)
        })?;
        let of_header = architecture_in_header(&file, &of_shapes)?;
        let stem_in_header = of_header.map(|architecture| architecture.stem);
        let known = stem.or(stem_in_header);
        let stem_is_assumed = known.is_none() && of_shapes.stem.is_ambiguous();
        let architecture = with_stem(&path, of_shapes, known)?;
        let network = architecture.build(input_channels, classes.unwrap_or(1));
        check_shapes(&file, &network, classes.is_some())?;
        let provenance = Provenance::read(&path, &file.metadata)?;
        provenance.check(&path, &network, classes.is_some())?;

        let mut model = Model::zeros(network.clone(), DType::F32, Device::Cpu);
        for parameter in &network.parameters {
            if let Some(stored) = file.tensors.get(&parameter.name) {
                model.set_parameter(parameter, &to_our_order(parameter, &stored.floats(&path, &parameter.name)?));
            }
        }
        for (index, norm) in network.batch_norms.iter().enumerate() {
            let floats = |suffix: &str| {
                let name = format!("{}.{suffix}", norm.name);
                file.tensors[&name].floats(&path, &name)
            };
            model.set_running(index, &floats(MEAN)?, &floats(VARIANCE)?);
            // Old files lack the counter.
            if let Some(Numbers::Integers(counter)) =
                file.tensors.get(&format!("{}.{COUNTER}", norm.name)).map(|t| &t.numbers)
            {
                let &[counter] = counter.as_slice() else {
                    let message = format!("{}.{COUNTER} holds {} numbers, not one", norm.name, counter.len());
                    return Err(Error::checkpoint(&path, message, "the file is broken; export it again"));
                };
                model.batches_tracked[index] = counter;
            }
        }
        check_numbers(&path, &model)?;
        Ok(Checkpoint {
            model,
            architecture,
            has_head: classes.is_some(),
            stem_is_assumed,
            stem_in_header,
            metadata: file.metadata,
            provenance,
            sha256: file.sha256,
        })
    }
}

/// The architecture that the header names, if it does. It may say more about the stem than the tensors do, and nothing else.
fn architecture_in_header(file: &TensorFile, of_shapes: &Architecture) -> Result<Option<Architecture>> {
    let Some(text) = file.metadata.get("medmerge.architecture") else { return Ok(None) };
    let hint = "the header was altered; write the file again, or remove the entry";
    let refuse = |reason: String| {
        Err(Error::checkpoint(&file.path, format!("its header's medmerge.architecture {reason}"), hint))
    };
    match serde_json::from_str::<Architecture>(text).map_err(|error| error.to_string()).and_then(|named| {
        named.check(1)?;
        Ok(named)
    }) {
        Err(reason) => refuse(format!("makes no sense: {reason}")),
        Ok(named) if named.stem.window() != of_shapes.stem.window() => {
            let window = of_shapes.stem.window();
            refuse(format!("tells a stem of {}, and conv1.weight is {window}×{window}", named.stem))
        }
        Ok(named) if (Architecture { stem: of_shapes.stem, ..named.clone() }) != *of_shapes => {
            let ours = serde_json::to_string(of_shapes).expect("plain data is JSON");
            refuse(format!("is {text}, and its tensors are those of {ours}"))
        }
        Ok(named) => Ok(Some(named)),
    }
}

fn with_stem(path: &Path, of_shapes: Architecture, known: Option<Stem>) -> Result<Architecture> {
    match known {
        Some(stem) if stem.window() != of_shapes.stem.window() => {
            let window = of_shapes.stem.window();
            let message = format!("a stem of {stem} was asked for, and conv1.weight is {window}×{window}");
            Err(Error::checkpoint(path, message, "leave --stem out, or name one of the file's window"))
        }
        Some(stem) => Ok(Architecture { stem, ..of_shapes }),
        None => Ok(of_shapes),
    }
}

/// Refuses the numbers of a file that no network may hold.
pub fn check_numbers(path: &Path, model: &Model) -> Result<()> {
    let Some(fault) = model.first_fault() else { return Ok(()) };
    let hint = match fault.value.is_finite() {
        true => "statistics were averaged with negative weights, or the file is broken; export it again",
        false => "the training that wrote it diverged; use an earlier checkpoint",
    };
    Err(Error::checkpoint(path, fault.to_string(), hint))
}

/// Names missing from the file, names it has too many, and shapes that contradict the architecture.
fn check_shapes(file: &TensorFile, network: &Network, has_head: bool) -> Result<()> {
    let mut expected: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for parameter in network.parameters.iter().filter(|p| has_head || p.region == Region::Trunk) {
        expected.insert(parameter.name.clone(), file_shape(parameter));
    }
    for norm in &network.batch_norms {
        expected.insert(format!("{}.{MEAN}", norm.name), vec![norm.channels]);
        expected.insert(format!("{}.{VARIANCE}", norm.name), vec![norm.channels]);
    }
    let mut wrong: Vec<String> = expected
        .iter()
        .filter_map(|(name, shape)| match file.tensors.get(name) {
            None => Some(format!("{name} is missing")),
            Some(stored) if stored.shape != *shape => {
                Some(format!("{name} has shape {:?} where {shape:?} belongs", stored.shape))
            }
            Some(_) => None,
        })
        .collect();
    let known = |name: &String| expected.contains_key(name) || name.ends_with(COUNTER);
    wrong.extend(file.tensors.keys().filter(|name| !known(name)).map(|name| format!("{name} belongs to no layer")));
    if wrong.is_empty() {
        return Ok(());
    }
    let hint =
        "names and shapes must be those of a torchvision ResNet; `medmerge inspect FILE` lists what a file holds";
    Err(Error::checkpoint(&file.path, first_few(&wrong), hint))
}

/// The first three of a list of complaints, and how many more there are.
pub fn first_few(complaints: &[String]) -> String {
    let shown = complaints.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    match complaints.len() {
        0..=3 => shown,
        more => format!("{shown}; and {} more", more - 3),
    }
}

fn file_shape(parameter: &Parameter) -> Vec<usize> {
    match (parameter.kind, parameter.shape.dims()) {
        (Kind::Filters, &[k, r, s, c]) => vec![k, c, r, s],
        (_, dims) => dims.to_vec(),
    }
}

/// KCRS, as in files, to KRSC; other parameters stay as they are.
pub fn to_our_order<T: Copy>(parameter: &Parameter, values: &[T]) -> Vec<T> {
    let (Kind::Filters, &[k, r, s, c]) = (parameter.kind, parameter.shape.dims()) else { return values.to_vec() };
    let index = |k: usize, tap: usize, c_: usize| (k * c + c_) * r * s + tap;
    (0..k)
        .flat_map(|k| (0..r * s).flat_map(move |tap| (0..c).map(move |c| index(k, tap, c))))
        .map(|i| values[i])
        .collect()
}

/// KRSC to KCRS, as in files; other parameters stay as they are.
pub fn to_file_order<T: Copy>(parameter: &Parameter, values: &[T]) -> Vec<T> {
    let (Kind::Filters, &[k, r, s, c]) = (parameter.kind, parameter.shape.dims()) else { return values.to_vec() };
    let index = |k: usize, c_: usize, tap: usize| (k * r * s + tap) * c + c_;
    (0..k)
        .flat_map(|k| (0..c).flat_map(move |c| (0..r * s).map(move |tap| index(k, c, tap))))
        .map(|i| values[i])
        .collect()
}

/// The tensors of a model as they stand in a file, with or without the classifier.
pub fn stored_tensors(model: &Model, has_head: bool) -> Vec<StoredTensor> {
    let mut tensors: Vec<StoredTensor> = model
        .network
        .parameters
        .iter()
        .filter(|p| has_head || p.region == Region::Trunk)
        .map(|p| {
            let values = to_file_order(p, &model.parameter(p).to_vec::<f32>());
            StoredTensor::floats_named(p.name.clone(), file_shape(p), values)
        })
        .collect();
    tensors.extend(stored_statistics(model));
    tensors
}

/// The running statistics and counters of a model as they stand in a file.
pub fn stored_statistics(model: &Model) -> Vec<StoredTensor> {
    let mut tensors = Vec::new();
    for (index, norm) in model.network.batch_norms.iter().enumerate() {
        let (mean, variance) = model.running(index);
        for (suffix, values) in [(MEAN, mean), (VARIANCE, variance)] {
            let name = format!("{}.{suffix}", norm.name);
            tensors.push(StoredTensor::floats_named(name, vec![norm.channels], values.to_vec()));
        }
        let counter = vec![model.batches_tracked[index]];
        tensors.push(StoredTensor::integers_named(format!("{}.{COUNTER}", norm.name), Vec::new(), counter));
    }
    tensors
}

/// Checks that `file` has running statistics of the right shapes for every batch norm.
pub fn check_statistics(network: &Network, file: &TensorFile) -> Result<()> {
    for norm in &network.batch_norms {
        file.floats(&format!("{}.{MEAN}", norm.name), &[norm.channels])?;
        file.floats(&format!("{}.{VARIANCE}", norm.name), &[norm.channels])?;
    }
    Ok(())
}

/// Overwrites running statistics and counters by those in `file`, which has all of them.
pub fn restore_statistics(model: &mut Model, file: &TensorFile) -> Result<()> {
    let network = model.network.clone();
    for (index, norm) in network.batch_norms.iter().enumerate() {
        let mean = file.floats(&format!("{}.{MEAN}", norm.name), &[norm.channels])?;
        let variance = file.floats(&format!("{}.{VARIANCE}", norm.name), &[norm.channels])?;
        model.set_running(index, &mean, &variance);
        model.batches_tracked[index] = file.integer(&format!("{}.{COUNTER}", norm.name))?;
    }
    Ok(())
}

/// Writes a network, if it is one that can be read again. `metadata` says where it comes from; the program's version and
/// the format are added.
pub fn save(output: &mut OutputPath, model: &Model, metadata: &Metadata) -> Result<()> {
    save_with(output, model, true, metadata)
}

/// The same for a network that may have no classifier.
pub fn save_with(output: &mut OutputPath, model: &Model, has_head: bool, metadata: &Metadata) -> Result<()> {
    refuse_to_write(output.path(), model)?;
    write(output, &stored_tensors(model, has_head), metadata)
}

/// What would be refused when it is read is not written.
pub fn refuse_to_write(path: &Path, model: &Model) -> Result<()> {
    let Some(fault) = model.first_fault() else { return Ok(()) };
    let message = format!("{} was not written: {fault}", path.display());
    Err(Error::NotFinite { message, hint: "numbers became too large on the way; check what went in".into() })
}

/// Bytes that a model takes in a file, to within its header.
pub fn file_size(network: &Network) -> u64 {
    ((network.parameter_count() + network.statistics_len) * size_of::<f32>() + (1 << 16)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_orders_undo_each_other() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(3, 2);
        let filters = network.parameter("layer2.0.conv1.weight").unwrap();
        let values: Vec<f32> = (0..filters.shape.len()).map(|i| i as f32).collect();
        let ours = to_our_order(filters, &values);
        assert_ne!(ours, values);
        // K=8, C=4, 3×3: element (k, r, s, c) = (1, 0, 2, 3) stands in a file at ((1·4 + 3)·3 + 0)·3 + 2.
        assert_eq!(ours[((3) + 2) * 4 + 3 + 9 * 4 - 3 * 4], 65.0);
        assert_eq!(to_file_order(filters, &ours), values);
    }

    #[test]
    fn a_saved_network_reads_back_bit_for_bit_and_writes_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 3);
        let mut model = Model::initialized(network, 7);
        model.set_running(2, &[0.5f32; 4], &[2.0; 4]);
        model.batches_tracked[2] = 41;
        let metadata = Metadata::from([("medmerge.seed".to_string(), "7".to_string()), ("z".into(), "é".into())]);
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        for path in &paths {
            save(&mut OutputPath::check(path, false, 0).unwrap(), &model, &metadata).unwrap();
        }
        assert_eq!(std::fs::read(&paths[0]).unwrap(), std::fs::read(&paths[1]).unwrap());
        let back = Checkpoint::load(&paths[0]).unwrap();
        assert_eq!(back.model.trunk.to_vec::<f32>(), model.trunk.to_vec::<f32>());
        assert_eq!(back.model.head.to_vec::<f32>(), model.head.to_vec::<f32>());
        assert_eq!(back.model.statistics.to_vec::<f32>(), model.statistics.to_vec::<f32>());
        assert_eq!(back.model.batches_tracked, model.batches_tracked);
        assert_eq!(back.metadata["format"], "pt");
        assert_eq!(back.metadata["medmerge.seed"], "7");
    }
}
