//! Networks in files, in PyTorch's order and with the names of whoever exported them (`names`). What PyTorch writes itself is read
//! (`pickle`); what is written is safetensors.
//!
//! The header carries `format: pt`, which other readers ask for, and under `medmerge.…` where the file comes from. Files
//! are written byte by byte the same for the same content.

mod configuration;
mod heads;
mod names;
pub mod onnx;
mod order;
mod pickle;
mod provenance;
mod reading;
mod safetensors_file;
mod shards;
mod tensors;
mod writing;

use std::collections::BTreeMap;
use std::path::Path;

pub use configuration::{Configuration, Described};
pub use heads::HeadRecord;
pub use names::{Found, Origin, Shapes, read_off};
pub use order::{to_file_order, to_our_order};
pub use provenance::{DataRecord, Phase, Provenance, agreed_normalisation};
pub use reading::{Hidden, Reading};
pub use safetensors_file::write;
pub use tensors::{Numbers, StoredTensor, TensorFile};
pub use writing::{FloatType, Form, Names, Writing};

use names::{COUNTER, MEAN, VARIANCE};
use order::file_shape;

use crate::error::{Error, Result};
use crate::nn::{Architecture, Model, Network, Order, Parameter, Region, Stem};
use crate::output::OutputPath;

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
    /// The stem that the header names.
    pub stem_in_header: Option<Stem>,
    /// Names in the file that were undone or replaced, in words.
    pub notes: Vec<String>,
    /// The exporter who names layers as the file does; `None` where they have the network's own names.
    pub exporter: Option<&'static str>,
    /// The names and types of the file's tensors.
    pub origin: Origin,
    pub metadata: Metadata,
    pub provenance: Provenance,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
}

impl Checkpoint {
    /// Reads a network and checks every name, shape and number in it.
    pub fn load(path: &Path) -> Result<Checkpoint> {
        Checkpoint::load_with(path, &Reading::default())
    }

    /// The same where more is known than the file says, or where it is to be read differently.
    pub fn load_with(path: &Path, reading: &Reading) -> Result<Checkpoint> {
        Checkpoint::from_file(TensorFile::read(path)?, reading)
    }

    /// `reading` goes before what the header says.
    pub fn from_file(file: TensorFile, reading: &Reading) -> Result<Checkpoint> {
        let path = file.path.clone();
        reading.apply(Checkpoint::as_it_is(file, reading.stem)?, &path)
    }

    fn as_it_is(mut file: TensorFile, stem: Option<Stem>) -> Result<Checkpoint> {
        let path = file.path.clone();
        if file.is_merge_weights() {
            let hint = "give it as --weights to `medmerge merge`, which makes a network of it and its sources";
            return Err(Error::checkpoint(&path, "these are merge weights, not a network", hint));
        }
        let (notes, origin) = bring_to_own_names(&mut file)?;
        file.check_understood()?;
        let Identified { found, stem_is_assumed, stem_in_header } = identify(&file, stem)?;
        let Found { architecture, input_channels, classes } = found;
        let network = architecture.build(input_channels, classes.unwrap_or(1));
        check_shapes(&file, &network, classes.is_some())?;
        let provenance = Provenance::read(&path, &file.metadata)?;
        provenance.check(&path, &network, classes.is_some())?;

        let mut model = Model::blank(network.clone());
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
            notes,
            exporter: origin.exporter.map(|exporter| exporter.name),
            origin,
            metadata: file.metadata,
            provenance,
            sha256: file.sha256,
        })
    }
}

/// Brings a file's tensors to the network's own names. What was done for it is told in words, unless the header tells it.
fn bring_to_own_names(file: &mut TensorFile) -> Result<(Vec<String>, Origin)> {
    if writing::has_own_names(file)? {
        return Ok((Vec::new(), Origin::of(&file.tensors)));
    }
    let names::Translated { tensors, notes, origin } = names::translate(std::mem::take(&mut file.tensors));
    file.tensors = tensors;
    Ok((if file.metadata.contains_key(ARCHITECTURE) { Vec::new() } else { notes }, origin))
}

/// The network of a file, by what the file says of it or by what was taken for it.
struct Identified {
    found: Found,
    stem_is_assumed: bool,
    stem_in_header: Option<Stem>,
}

/// The network of a file: what its tensors tell, and what its header says of it beyond that. `stem` is what the caller
/// knows.
fn identify(file: &TensorFile, stem: Option<Stem>) -> Result<Identified> {
    let shapes = |name: &str| file.tensors.get(name).map(|tensor| tensor.shape.clone());
    let in_header = architecture_in_header(file)?;
    let found = match &in_header {
        Some(named) if !names::can_be_read_off(named) => names::complete(named.clone(), &shapes),
        _ => names::read_off(&shapes),
    };
    let found = found.map_err(|reason| {
        let hint =
            "networks are ResNets, DenseNets and VGGs, as common exporters name them; `medmerge inspect FILE` lists what a file holds";
        Error::checkpoint(&file.path, format!("this is no network that medmerge knows: {reason}"), hint)
    })?;
    let mut found = found;
    if let Some(named) = &in_header {
        // Tensors do not tell whose the hidden layers are.
        if named.with_new_hidden().as_ref() == Some(named) {
            found.architecture = found.architecture.with_new_hidden().unwrap_or(found.architecture);
        }
        check_header(&file.path, named, &found.architecture)?;
    }
    let stem_in_header = in_header.and_then(|architecture| architecture.stem());
    let known = stem.or(stem_in_header);
    let stem_is_assumed = known.is_none() && found.architecture.stem().is_some_and(Stem::is_ambiguous);
    let architecture = match known {
        Some(stem) => with_stem(&file.path, &found.architecture, stem)?,
        None => found.architecture,
    };
    Ok(Identified { found: Found { architecture, ..found }, stem_is_assumed, stem_in_header })
}

/// The architecture's entry in a header.
const ARCHITECTURE: &str = "medmerge.architecture";

const ALTERED: &str = "the header was altered; write the file again, or remove the entry";

/// The architecture that the header names, if it does.
fn architecture_in_header(file: &TensorFile) -> Result<Option<Architecture>> {
    let Some(text) = file.metadata.get(ARCHITECTURE) else { return Ok(None) };
    let named = serde_json::from_str::<Architecture>(text).map_err(|error| error.to_string());
    match named.and_then(|named| named.check(1).map(|()| named)) {
        Ok(named) => Ok(Some(named)),
        Err(reason) => {
            let message = format!("its header's medmerge.architecture makes no sense: {reason}");
            let hint =
                "a newer medmerge wrote it, or the header was altered; write the file again, or remove the entry";
            Err(Error::checkpoint(&file.path, message, hint))
        }
    }
}

/// A header may say more about the stem than the tensors do, and nothing else.
fn check_header(path: &Path, named: &Architecture, of_tensors: &Architecture) -> Result<()> {
    let refuse =
        |reason: String| Err(Error::checkpoint(path, format!("its header's medmerge.architecture {reason}"), ALTERED));
    let unlike = match (named.stem(), of_tensors.stem()) {
        (Some(stem), Some(other)) if stem.window() != other.window() => {
            let window = other.window();
            return refuse(format!("tells a stem of {stem}, and conv1.weight is {window}×{window}"));
        }
        (_, Some(other)) => named.with_stem(other).as_ref() != Some(of_tensors),
        (_, None) => named != of_tensors,
    };
    match unlike {
        true => refuse(format!("is {}, and its tensors are those of {}", named.to_json(), of_tensors.to_json())),
        false => Ok(()),
    }
}

fn with_stem(path: &Path, of_tensors: &Architecture, stem: Stem) -> Result<Architecture> {
    match of_tensors.stem() {
        Some(other) if stem.window() != other.window() => {
            let window = other.window();
            let message = format!("a stem of {stem} was asked for, and conv1.weight is {window}×{window}");
            Err(Error::checkpoint(path, message, "leave --stem out, or name one of the file's window"))
        }
        _ => of_tensors.with_stem(stem).ok_or_else(|| {
            let message = format!("a stem of {stem} was asked for, and {of_tensors} has no choice of stems");
            Error::checkpoint(path, message, "leave --stem out")
        }),
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
    let surplus: Vec<&String> = file.tensors.keys().filter(|name| !known(name)).collect();
    let missing: Vec<&String> = expected.keys().filter(|name| !file.tensors.contains_key(*name)).collect();
    wrong.extend(surplus.into_iter().map(|name| match nearest(name, &missing) {
        Some(other) => format!("{name} belongs to no layer; {other} is the nearest that is missing"),
        None => format!("{name} belongs to no layer"),
    }));
    if wrong.is_empty() {
        return Ok(());
    }
    let hint =
        "every layer needs its tensors, and no other may be there; `medmerge inspect FILE` lists what a file holds";
    Err(Error::checkpoint(&file.path, first_few(&wrong), hint))
}

/// The name that is spelt most like another one, if it is much like it.
fn nearest<'a>(name: &str, among: &[&'a String]) -> Option<&'a String> {
    let distances = among.iter().map(|other| (strsim::damerau_levenshtein(name, other), *other));
    distances.min().filter(|(distance, _)| 3 * distance <= name.len()).map(|(_, other)| other)
}

/// The first three of a list of complaints, and how many more there are.
pub fn first_few(complaints: &[String]) -> String {
    let shown = complaints.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    match complaints.len() {
        0..=3 => shown,
        more => format!("{shown}; and {} more", more - 3),
    }
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
    save_as(output, model, true, &Form::default(), metadata)
}

/// The same for a network that may have no classifier, in the form that is asked for.
pub fn save_as(output: &mut OutputPath, model: &Model, has_head: bool, form: &Form, metadata: &Metadata) -> Result<()> {
    refuse_to_write(output.path(), model)?;
    let mut metadata = metadata.clone();
    let tensors =
        form.apply(output.path(), stored_tensors(model, has_head), &windows(&model.network), &mut metadata)?;
    write(output, &tensors, &metadata)
}

/// The shapes in files of fully connected layers that run as convolutions, if they stand there as such.
fn windows(network: &Network) -> BTreeMap<String, Vec<usize>> {
    let of_matrix = |parameter: &Parameter| match (parameter.order, parameter.shape.dims()) {
        (Order::Matrix, &[k, r, s, c]) => Some((parameter.name.clone(), vec![k, c, r, s])),
        _ => None,
    };
    network.parameters.iter().filter_map(of_matrix).collect()
}

/// Refuses to write what would be refused when it is read.
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
