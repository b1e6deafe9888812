//! Reading and writing safetensors files.
//!
//! Headers are the crate's to check: it refuses those that lie about offsets, overlap or leave holes. Their JSON is parsed
//! here, since the crate refuses a file for a single type of numbers that it does not know, and such a file can be listed
//! all the same. Writing is ours: the crate keeps metadata in a hash map, whose order, and with it the file's bytes, changes
//! from run to run.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Metadata as Layout, TensorInfo};
use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as UnknownName, StrDeserializer};
use sha2::{Digest, Sha256};

use super::Metadata;
use super::tensors::{Numbers, StoredTensor, TensorFile, beyond_i64, check_memory, decoded_size};
use crate::error::{Error, Result};
use crate::file_kind::{MAX_HEADER, Opened};
use crate::hex::hex;
use crate::output::OutputPath;

// Numbers are written as they lie in memory, and the format is little-endian.
#[cfg(target_endian = "big")]
compile_error!("writing safetensors files on a big-endian machine is not implemented");

/// Reads a file, which is open at its beginning, into no more than `memory` bytes.
pub(super) fn read(path: &Path, opened: Opened, memory: u64) -> Result<TensorFile> {
    let (bytes, header) = read_checked(path, opened, memory)?;
    let mut tensors = BTreeMap::new();
    for (name, Entry { dtype, shape, data_offsets: (from, to) }) in header.tensors {
        let numbers = Numbers::decode(known(&dtype), &bytes[header.end + from..header.end + to])
            .map_err(|value| beyond_i64(path, &name, value))?;
        tensors.insert(name.clone(), StoredTensor { name, dtype, shape, numbers });
    }
    let sha256 = hex(Sha256::digest(&bytes));
    Ok(TensorFile { path: path.to_path_buf(), tensors, metadata: header.metadata.unwrap_or_default(), sha256 })
}

/// The JSON at the beginning of a file.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: Option<Metadata>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
    /// Where the header ends and the numbers begin.
    #[serde(skip)]
    end: usize,
}

/// A tensor, as the header has it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    /// Counted from the header's end.
    data_offsets: (usize, usize),
}

impl Header {
    /// Parses the header of a file of `length` bytes, which reaches beyond the header, and checks that its tensors fill the file.
    fn parse(json: &[u8], length: u64) -> Result<Header, SafeTensorError> {
        let text = str::from_utf8(json).map_err(SafeTensorError::InvalidHeader)?;
        let mut header: Header = serde_json::from_str(text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        header.end = size_of::<u64>() + json.len();
        let mut layout = Vec::new();
        for (name, entry) in &header.tensors {
            layout.push((name.clone(), entry.layout()?));
        }
        layout.sort_by_key(|(_, info)| info.data_offsets);
        let layout = Layout::new(None, layout)?;
        match layout.data_len() as u64 == length - header.end as u64 {
            true => Ok(header),
            false => Err(SafeTensorError::MetadataIncompleteBuffer),
        }
    }

    /// Bytes that the numbers take once they are decoded.
    fn decoded(&self) -> u64 {
        let bytes = |entry: &Entry| {
            let stored = (entry.data_offsets.1 - entry.data_offsets.0) as u64;
            let numbers = entry.shape.iter().product::<usize>() as u64;
            known(&entry.dtype).and_then(decoded_size).map_or(stored, |size| numbers * size)
        };
        self.tensors.values().map(bytes).sum()
    }
}

impl Entry {
    /// The layout that the crate checks. How many bytes a number of a type takes that it does not know, nobody knows,
    /// but no number takes less than a bit.
    fn layout(&self) -> Result<TensorInfo, SafeTensorError> {
        let data_offsets = self.data_offsets;
        if let Some(dtype) = known(&self.dtype) {
            return Ok(TensorInfo { dtype, shape: self.shape.clone(), data_offsets });
        }
        let numbers = self.shape.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension));
        let numbers = numbers.ok_or(SafeTensorError::ValidationOverflow)?;
        let bytes = data_offsets.1.checked_sub(data_offsets.0).ok_or(SafeTensorError::TensorInvalidInfo)?;
        if numbers > bytes.saturating_mul(8) {
            return Err(SafeTensorError::TensorInvalidInfo);
        }
        Ok(TensorInfo { dtype: Dtype::U8, shape: vec![bytes], data_offsets })
    }
}

/// The crate's type of this name.
fn known(dtype: &str) -> Option<Dtype> {
    let name: StrDeserializer<UnknownName> = dtype.into_deserializer();
    Dtype::deserialize(name).ok()
}

/// The bytes of a file that may be a safetensors file, and its header. The header's length is believed only if the file is
/// that long, and the rest is read only if it fits into `memory`, decoded beside its bytes.
fn read_checked(path: &Path, mut opened: Opened, memory: u64) -> Result<(Vec<u8>, Header)> {
    let failed = || Error::io("read", path);
    let (mut bytes, header) = read_header(path, &mut opened)?;
    let Opened { mut file, length, .. } = opened;
    check_memory(path, length.saturating_add(header.decoded()), memory)?;
    bytes.reserve_exact(length as usize - bytes.len());
    file.read_to_end(&mut bytes).map_err(failed())?;
    if bytes.len() as u64 != length {
        let message = format!("it had {length} bytes, and {} when they were read", bytes.len());
        return Err(Error::checkpoint(path, message, "wait until it is written to its end"));
    }
    Ok((bytes, header))
}

/// The names of a file's tensors, and the bytes that their numbers take once they are decoded.
pub(super) struct Outline {
    pub names: Vec<String>,
    pub decoded: u64,
}

/// Reads no more than the header of a file, which is open at its beginning.
pub(super) fn outline(path: &Path, mut opened: Opened) -> Result<Outline> {
    let (_, header) = read_header(path, &mut opened)?;
    Ok(Outline { decoded: header.decoded(), names: header.tensors.into_keys().collect() })
}

/// The header of a file, and the bytes up to its end.
fn read_header(path: &Path, opened: &mut Opened) -> Result<(Vec<u8>, Header)> {
    let failed = || Error::io("read", path);
    let Opened { file, length, start, .. } = opened;
    let length = *length;
    let Some(header) = start.first_chunk() else {
        return Err(Error::checkpoint(path, "the file is shorter than 8 bytes", "download or export it again"));
    };
    let header = u64::from_le_bytes(*header);
    if header > MAX_HEADER {
        let hint = "it is not a safetensors file, or it is broken";
        return Err(Error::checkpoint(path, format!("it claims a header of {header} bytes; 100 MB is the most"), hint));
    }
    if header + 8 > length {
        let message = format!("it claims a header of {header} bytes and has {length} in all");
        return Err(Error::checkpoint(path, message, "the file is cut off, or not a safetensors file"));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(header + 8).read_to_end(&mut bytes).map_err(failed())?;
    let header = Header::parse(&bytes[8..], length).map_err(|error| {
        let hint = "download or export the file again";
        Error::checkpoint(path, format!("the safetensors header is broken: {error}"), hint)
    })?;
    Ok((bytes, header))
}

/// Writes `tensors`, integers first so that everything stays aligned, in the order given otherwise.
pub fn write(output: &mut OutputPath, tensors: &[StoredTensor], metadata: &Metadata) -> Result<()> {
    let mut ordered: Vec<&StoredTensor> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| match tensor.numbers {
        Numbers::Integers(_) => 0,
        Numbers::Floats(_) if half(tensor).is_none() => 1,
        Numbers::Floats(_) => 2,
        Numbers::NotUnderstood(_) => 3,
    });

    let mut metadata = metadata.clone();
    metadata.insert("format".into(), "pt".into());
    metadata.insert("medmerge.version".into(), env!("CARGO_PKG_VERSION").into());
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::to_value(metadata).expect("strings are JSON"));
    let mut end = 0;
    for tensor in &ordered {
        let (dtype, size) = match &tensor.numbers {
            Numbers::Integers(values) => ("I64", values.len() * size_of::<i64>()),
            Numbers::Floats(values) => match half(tensor) {
                Some((dtype, _)) => (dtype, values.len() * size_of::<u16>()),
                None => ("F32", values.len() * size_of::<f32>()),
            },
            Numbers::NotUnderstood(bytes) => (tensor.dtype.as_str(), bytes.len()),
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
        for tensor in &ordered {
            match &tensor.numbers {
                Numbers::Integers(values) => file.write_all(bytemuck::cast_slice(values))?,
                Numbers::Floats(values) => match half(tensor) {
                    Some((_, bits)) => {
                        let bits: Vec<u16> = values.iter().copied().map(bits).collect();
                        file.write_all(bytemuck::cast_slice(&bits))?;
                    }
                    None => file.write_all(bytemuck::cast_slice(values))?,
                },
                Numbers::NotUnderstood(bytes) => file.write_all(bytes)?,
            }
        }
        Ok(())
    })
}

type ToBits = fn(f32) -> u16;

/// The type of two bytes that a tensor's floats are written as, and its bits of the nearest number; `None` where they are
/// written as f32.
fn half(tensor: &StoredTensor) -> Option<(&'static str, ToBits)> {
    match tensor.dtype.as_str() {
        "F16" => Some(("F16", |value| half::f16::from_f32(value).to_bits())),
        "BF16" => Some(("BF16", |value| half::bf16::from_f32(value).to_bits())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_kind::Wanted;

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

    /// A file of one tensor `x`.
    fn file_of(dtype: &str, shape: &[usize], data: &[u8]) -> tempfile::TempPath {
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [0, data.len()]});
        let header = serde_json::json!({ "x": entry }).to_string();
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
        path
    }

    #[test]
    fn integers_of_every_width_are_read() {
        let seven: &[(&str, &[u8])] = &[
            ("U8", &[7]),
            ("I8", &[7]),
            ("U16", &[7, 0]),
            ("I16", &[7, 0]),
            ("U32", &[7, 0, 0, 0]),
            ("I32", &[7, 0, 0, 0]),
            ("U64", &[7, 0, 0, 0, 0, 0, 0, 0]),
            ("I64", &[7, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (dtype, bytes) in seven {
            let file = TensorFile::read(&file_of(dtype, &[], bytes)).unwrap();
            assert_eq!(file.integer("x").unwrap(), 7, "{dtype}");
            assert_eq!(file.tensors["x"].dtype, *dtype);
        }
        let largest =
            |dtype, bytes: &[u8]| TensorFile::read(&file_of(dtype, &[], bytes)).unwrap().integer("x").unwrap();
        assert_eq!(largest("U16", &[0xff; 2]), 65_535);
        assert_eq!(largest("U32", &[0xff; 4]), 4_294_967_295);
        assert_eq!(largest("U64", &i64::MAX.to_le_bytes()), i64::MAX);
    }

    #[test]
    fn an_integer_beyond_i64_is_an_error_that_names_its_tensor() {
        let error = TensorFile::read(&file_of("U64", &[1], &(1u64 << 63).to_le_bytes())).unwrap_err();
        assert!(error.to_string().ends_with("x holds 9223372036854775808"), "{error}");
    }

    /// Types that the crate knows, and ones that it does not.
    #[test]
    fn a_type_that_is_not_understood_is_kept_as_it_stands() {
        let eight_bits = ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E4M3B11FNUZ", "F8_E3M4"];
        let others = [("F4", 16), ("F6_E2M3", 4), ("C64", 1), ("C128", 1), ("U1", 64), ("NEW TYPE", 3)];
        let folder = tempfile::tempdir().unwrap();
        for (dtype, count) in eight_bits.map(|dtype| (dtype, 8)).into_iter().chain(others) {
            let data: Vec<u8> = (0..if count == 4 {
                3
            } else if dtype == "C128" {
                16
            } else {
                8
            })
                .collect();
            let file = TensorFile::read(&file_of(dtype, &[count, 1], &data)).unwrap();
            let tensor = &file.tensors["x"];
            assert_eq!((tensor.dtype.as_str(), tensor.shape.as_slice()), (dtype, &[count, 1][..]));
            assert_eq!(tensor.numbers, Numbers::NotUnderstood(data));
            for error in [file.check_understood().unwrap_err(), file.floats("x", &[count, 1]).unwrap_err()] {
                assert!(error.to_string().ends_with(&format!("x is of type {dtype}")), "{error}");
            }
            // Behind floats, so that these stay aligned.
            let floats = StoredTensor::floats_named("f".into(), vec![1], vec![0.5]);
            let mut output = OutputPath::check(&folder.path().join(dtype), false, 0).unwrap();
            write(&mut output, &[tensor.clone(), floats], &Metadata::new()).unwrap();
            let copy = TensorFile::read(output.path()).unwrap();
            assert_eq!((&copy.tensors["x"].dtype, &copy.tensors["x"].numbers), (&tensor.dtype, &tensor.numbers));
            assert_eq!(copy.floats("f", &[1]).unwrap(), [0.5]);
        }
    }

    #[test]
    fn an_unknown_type_does_not_excuse_a_header_that_lies() {
        for (shape, bytes) in [(vec![65], 8), (vec![1 << 40, 1 << 40, 0], 0), (vec![usize::MAX], 8)] {
            let error = TensorFile::read(&file_of("F8_E3M4", &shape, &vec![0; bytes])).unwrap_err();
            assert!(error.to_string().contains("the safetensors header is broken"), "{shape:?}: {error}");
        }
        assert!(TensorFile::read(&file_of("U1", &[64], &[0; 8])).is_ok());
    }

    #[test]
    fn a_file_larger_than_memory_is_refused_before_it_is_read() {
        // Two bytes a number in the file, and four decoded.
        let path = file_of("F16", &[100], &[0; 200]);
        let needed = std::fs::metadata(&path).unwrap().len() + 400;
        assert!(TensorFile::read_within(&path, Wanted::Network, needed).is_ok());
        let error = TensorFile::read_within(&path, Wanted::Network, needed - 1).unwrap_err();
        assert!(error.to_string().contains("reading it takes 1 MiB of memory, of which 0 MiB are free"), "{error}");
        // Integers become eight bytes each.
        let path = file_of("U8", &[100], &[0; 100]);
        let needed = std::fs::metadata(&path).unwrap().len() + 800;
        assert!(TensorFile::read_within(&path, Wanted::Network, needed).is_ok());
        assert!(TensorFile::read_within(&path, Wanted::Network, needed - 1).is_err());
    }
}
