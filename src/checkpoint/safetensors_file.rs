//! Reading and writing safetensors files.
//!
//! Reading is the crate's, whose checks refuse headers that lie about offsets, overlap or leave holes. Writing is ours:
//! the crate keeps metadata in a hash map, whose order, and with it the file's bytes, changes from run to run.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::Metadata;
use crate::error::{Error, Result};
use crate::output::OutputPath;

// Numbers are written as they lie in memory, and the format is little-endian.
#[cfg(target_endian = "big")]
compile_error!("writing safetensors files on a big-endian machine is not implemented");

/// The most a header may take, as everywhere for this format.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// A tensor as it stands in a file.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub numbers: Numbers,
}

impl StoredTensor {
    pub fn floats_named(name: String, shape: Vec<usize>, values: Vec<f32>) -> StoredTensor {
        StoredTensor { name, shape, numbers: Numbers::Floats(values) }
    }

    /// The numbers of a tensor that must be floating-point ones.
    pub fn floats(&self, path: &Path, name: &str) -> Result<Vec<f32>> {
        match &self.numbers {
            Numbers::Floats(values) => Ok(values.clone()),
            Numbers::Integers(_) => {
                let hint = "parameters are f32, f16, bf16 or f64; quantised networks cannot be merged";
                Err(Error::checkpoint(path, format!("{name} holds integers"), hint))
            }
        }
    }
}

/// Everything in a file, numbers widened or narrowed to `f32` and `i64`.
#[derive(Clone, Debug)]
pub struct TensorFile {
    pub path: PathBuf,
    pub tensors: BTreeMap<String, StoredTensor>,
    pub metadata: Metadata,
    pub sha256: String,
}

impl TensorFile {
    pub fn read(path: &Path) -> Result<TensorFile> {
        let bytes = read_checked(path)?;
        let broken = |error: safetensors::SafeTensorError| {
            Error::checkpoint(
                path,
                format!("the safetensors header is broken: {error}"),
                "download or export the file again",
            )
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes).map_err(broken)?.iter() {
            let numbers = decode(view.dtype(), view.data()).ok_or_else(|| {
                let hint = "f32, f16, bf16, f64 and integers are understood";
                Error::checkpoint(path, format!("{name} is of type {:?}", view.dtype()), hint)
            })?;
            let shape = view.shape().to_vec();
            tensors.insert(name.to_string(), StoredTensor { name: name.to_string(), shape, numbers });
        }
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(TensorFile { path: path.to_path_buf(), tensors, metadata, sha256 })
    }

    /// The numbers of a tensor that must be there in this shape.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let hint = "the file belongs to another network, or is incomplete";
        match self.tensors.get(name) {
            None => Err(Error::checkpoint(&self.path, format!("it has no tensor '{name}'"), hint)),
            Some(stored) if stored.shape != shape => {
                let message = format!("{name} has shape {:?} where {shape:?} belongs", stored.shape);
                Err(Error::checkpoint(&self.path, message, hint))
            }
            Some(stored) => stored.floats(&self.path, name),
        }
    }

    pub fn integer(&self, name: &str) -> Result<i64> {
        match self.tensors.get(name).map(|stored| &stored.numbers) {
            Some(Numbers::Integers(values)) if values.len() == 1 => Ok(values[0]),
            _ => {
                let hint = "the file belongs to another network, or is incomplete";
                Err(Error::checkpoint(&self.path, format!("'{name}' is missing or no integer"), hint))
            }
        }
    }
}

/// The bytes of a file that may be a safetensors file: its header's length is believed only if the file is that long.
fn read_checked(path: &Path) -> Result<Vec<u8>> {
    let failed = || Error::io("read", path);
    let mut file = std::fs::File::open(path).map_err(failed())?;
    let details = file.metadata().map_err(failed())?;
    if details.is_dir() {
        return Err(failed()(std::io::ErrorKind::IsADirectory.into()));
    }
    let mut start = Vec::new();
    file.by_ref().take(9).read_to_end(&mut start).map_err(failed())?;
    let Some((length, json)) = start.split_first_chunk() else {
        return Err(Error::checkpoint(path, "the file is shorter than 8 bytes", "download or export it again"));
    };
    // One length of a header in 32 begins with a pickle's first byte; what follows it is JSON all the same.
    if (length.starts_with(b"PK") || length[0] == 0x80) && json != b"{" {
        let hint = "convert it with safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")";
        return Err(Error::checkpoint(path, "this is a PyTorch pickle or a zip archive, not a safetensors file", hint));
    }
    let header = u64::from_le_bytes(*length);
    if header > MAX_HEADER {
        let hint = "it is not a safetensors file, or it is broken";
        return Err(Error::checkpoint(path, format!("it claims a header of {header} bytes; 100 MB is the most"), hint));
    }
    if header + 8 > details.len() {
        let message = format!("it claims a header of {header} bytes and has {} in all", details.len());
        return Err(Error::checkpoint(path, message, "the file is cut off, or not a safetensors file"));
    }
    let mut bytes = Vec::with_capacity(details.len() as usize);
    bytes.extend(start);
    file.read_to_end(&mut bytes).map_err(failed())?;
    Ok(bytes)
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Numbers> {
    macro_rules! each {
        ($type:ty, $convert:expr) => {
            bytes.as_chunks().0.iter().map(|&chunk| $convert(<$type>::from_le_bytes(chunk))).collect()
        };
    }
    Some(match dtype {
        Dtype::F32 => Numbers::Floats(each!(f32, |v| v)),
        Dtype::F64 => Numbers::Floats(each!(f64, |v| v as f32)),
        Dtype::F16 => Numbers::Floats(each!(half::f16, f32::from)),
        Dtype::BF16 => Numbers::Floats(each!(half::bf16, f32::from)),
        Dtype::I64 => Numbers::Integers(each!(i64, |v| v)),
        Dtype::I32 => Numbers::Integers(each!(i32, i64::from)),
        Dtype::I16 => Numbers::Integers(each!(i16, i64::from)),
        Dtype::I8 => Numbers::Integers(each!(i8, i64::from)),
        Dtype::U8 | Dtype::BOOL => Numbers::Integers(each!(u8, i64::from)),
        _ => return None,
    })
}

/// Writes `tensors`, integers first so that everything stays aligned, in the order given otherwise.
pub fn write(output: &mut OutputPath, tensors: &[StoredTensor], metadata: &Metadata) -> Result<()> {
    let (integers, floats): (Vec<_>, Vec<_>) =
        tensors.iter().partition(|tensor| matches!(tensor.numbers, Numbers::Integers(_)));
    let ordered = || integers.iter().chain(&floats);

    let mut metadata = metadata.clone();
    metadata.insert("format".into(), "pt".into());
    metadata.insert("medmerge.version".into(), env!("CARGO_PKG_VERSION").into());
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::to_value(metadata).expect("strings are JSON"));
    let mut end = 0;
    for tensor in ordered() {
        let (dtype, size) = match &tensor.numbers {
            Numbers::Integers(values) => ("I64", values.len() * size_of::<i64>()),
            Numbers::Floats(values) => ("F32", values.len() * size_of::<f32>()),
        };
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [end, end + size]});
        header.insert(tensor.name.clone(), entry);
        end += size;
    }
    let mut header = serde_json::to_vec(&header).expect("a map of strings is JSON");
    header.resize(header.len().next_multiple_of(8), b' ');

    output.write(|file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in ordered() {
            match &tensor.numbers {
                Numbers::Integers(values) => file.write_all(bytemuck::cast_slice(values))?,
                Numbers::Floats(values) => file.write_all(bytemuck::cast_slice(values))?,
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_may_be_of_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensor = StoredTensor::floats_named("x".into(), vec![1], vec![1.5]);
        // Among them those that begin like a pickle: 128, and like a zip archive: 19,280.
        for length in (0..2048).chain(19_000..19_280).step_by(8) {
            let mut output = OutputPath::check(&path, true, 0).unwrap();
            let metadata = Metadata::from([("text".into(), "x".repeat(length))]);
            write(&mut output, std::slice::from_ref(&tensor), &metadata).unwrap();
            let file = TensorFile::read(&path).unwrap_or_else(|error| panic!("{length} characters: {error}"));
            assert_eq!(file.metadata["text"].len(), length);
            assert_eq!(file.floats("x", &[1]).unwrap(), [1.5]);
        }
    }
}
