//! Tensors as they stand in files of any format, and the conversion of their numbers to `f32` and `i64`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::{Metadata, pickle, safetensors_file, shards};
use crate::error::{Error, Result};
use crate::file_kind::{self, Opened, Wanted};
use crate::memory;

#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
    /// The bytes of a type that is listed and copied, but not computed with: float8, float4, complex, or an unknown one.
    NotUnderstood(Vec<u8>),
}

/// A tensor as it stands in a file.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    pub name: String,
    /// The type's name in the file that was read, such as `BF16`; floats are written as `F32` unless it is `F16` or `BF16`,
    /// integers as `I64`.
    pub dtype: String,
    pub shape: Vec<usize>,
    pub numbers: Numbers,
}

impl StoredTensor {
    pub fn floats_named(name: String, shape: Vec<usize>, values: Vec<f32>) -> StoredTensor {
        StoredTensor { name, dtype: "F32".into(), shape, numbers: Numbers::Floats(values) }
    }

    pub fn integers_named(name: String, shape: Vec<usize>, values: Vec<i64>) -> StoredTensor {
        StoredTensor { name, dtype: "I64".into(), shape, numbers: Numbers::Integers(values) }
    }

    /// The numbers of a tensor that must be floating-point ones.
    pub fn floats(&self, path: &Path, name: &str) -> Result<Vec<f32>> {
        let hint = "parameters are f32, f16, bf16 or f64; quantised networks cannot be merged";
        match &self.numbers {
            Numbers::Floats(values) => Ok(values.clone()),
            Numbers::Integers(_) => Err(Error::checkpoint(path, format!("{name} holds integers"), hint)),
            Numbers::NotUnderstood(_) => {
                Err(Error::checkpoint(path, format!("{name} is of type {}", self.dtype.escape_debug()), hint))
            }
        }
    }
}

/// Everything in a file, or in the shards of an index, numbers widened or narrowed to `f32` and `i64`.
#[derive(Clone, Debug)]
pub struct TensorFile {
    pub path: PathBuf,
    pub tensors: BTreeMap<String, StoredTensor>,
    pub metadata: Metadata,
    pub sha256: String,
}

impl TensorFile {
    pub fn read(path: &Path) -> Result<TensorFile> {
        TensorFile::read_as(path, Wanted::Network)
    }

    /// [`TensorFile::read`], with errors that say what was wanted where the file is something else.
    pub fn read_as(path: &Path, wanted: Wanted) -> Result<TensorFile> {
        TensorFile::read_within(path, wanted, memory::available())
    }

    /// Reads a file that takes no more than `memory` bytes.
    pub(super) fn read_within(path: &Path, wanted: Wanted, memory: u64) -> Result<TensorFile> {
        let opened = file_kind::open(path, "read", wanted)?.expect(path, wanted)?;
        match opened.kind == Some(file_kind::INDEX) {
            true => shards::read(path, opened, memory),
            false => TensorFile::of_one(path, opened, memory),
        }
    }

    /// Reads what is in one file.
    pub(super) fn of_one(path: &Path, opened: Opened, memory: u64) -> Result<TensorFile> {
        match opened.kind == Some(file_kind::PYTORCH) {
            true => pickle::read(path, opened, memory),
            false => safetensors_file::read(path, opened, memory),
        }
    }

    /// Whether this is what `medmerge learn` writes beside a network.
    pub fn is_merge_weights(&self) -> bool {
        self.metadata.get("medmerge.content").is_some_and(|content| content == "merge weights")
    }

    /// Refuses a file with numbers that cannot be computed with.
    pub fn check_understood(&self) -> Result<()> {
        let unknown = |tensor: &&StoredTensor| matches!(tensor.numbers, Numbers::NotUnderstood(_));
        match self.tensors.values().find(unknown) {
            Some(tensor) => tensor.floats(&self.path, &tensor.name).map(drop),
            None => Ok(()),
        }
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

/// The bytes of a tensor's numbers, in the order of its shape.
pub(super) trait Elements {
    /// The numbers, each of `N` bytes, the least significant one first.
    fn each<const N: usize>(&self) -> impl Iterator<Item = [u8; N]>;
}

impl Elements for [u8] {
    fn each<const N: usize>(&self) -> impl Iterator<Item = [u8; N]> {
        self.as_chunks().0.iter().copied()
    }
}

/// Bytes that one number takes once it is decoded; None for a type that is not understood.
pub(super) fn decoded_size(dtype: Dtype) -> Option<u64> {
    use Dtype::*;
    match dtype {
        F64 | F32 | F16 | BF16 => Some(size_of::<f32>() as u64),
        I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | BOOL => Some(size_of::<i64>() as u64),
        _ => None,
    }
}

impl Numbers {
    /// The numbers of a tensor's bytes; as an error, one that no `i64` can be.
    pub(super) fn decode(dtype: Option<Dtype>, elements: &(impl Elements + ?Sized)) -> Result<Numbers, u64> {
        macro_rules! each {
            ($type:ty, $convert:expr) => {
                elements.each().map(|bytes| $convert(<$type>::from_le_bytes(bytes))).collect()
            };
        }
        Ok(match dtype {
            Some(Dtype::F32) => Numbers::Floats(each!(f32, |v| v)),
            Some(Dtype::F64) => Numbers::Floats(each!(f64, |v| v as f32)),
            Some(Dtype::F16) => Numbers::Floats(each!(half::f16, f32::from)),
            Some(Dtype::BF16) => Numbers::Floats(each!(half::bf16, f32::from)),
            Some(Dtype::I64) => Numbers::Integers(each!(i64, |v| v)),
            Some(Dtype::I32) => Numbers::Integers(each!(i32, i64::from)),
            Some(Dtype::I16) => Numbers::Integers(each!(i16, i64::from)),
            Some(Dtype::I8) => Numbers::Integers(each!(i8, i64::from)),
            Some(Dtype::U64) => Numbers::Integers({
                let numbers: Result<Vec<i64>, u64> = each!(u64, |v| i64::try_from(v).map_err(|_| v));
                numbers?
            }),
            Some(Dtype::U32) => Numbers::Integers(each!(u32, i64::from)),
            Some(Dtype::U16) => Numbers::Integers(each!(u16, i64::from)),
            Some(Dtype::U8 | Dtype::BOOL) => Numbers::Integers(each!(u8, i64::from)),
            _ => Numbers::NotUnderstood(elements.each().map(|[byte]| byte).collect()),
        })
    }
}

/// The error about an integer that no `i64` can be.
pub(super) fn beyond_i64(path: &Path, name: &str, value: u64) -> Error {
    let hint = "integers are read up to 9223372036854775807, the largest i64";
    Error::checkpoint(path, format!("{name} holds {value}"), hint)
}

/// Refuses a file whose reading takes more than `memory` bytes.
pub(super) fn check_memory(path: &Path, needed: u64, memory: u64) -> Result<()> {
    if needed <= memory {
        return Ok(());
    }
    let (needed, free) = (needed.div_ceil(1 << 20), memory >> 20);
    let message = format!("reading it takes {needed} MiB of memory, of which {free} MiB are free");
    Err(Error::checkpoint(path, message, "end other programs, allow more memory, or use a larger machine"))
}
