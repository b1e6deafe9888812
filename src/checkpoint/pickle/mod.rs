//! Reading what `torch.save` writes: pickles, which are programs, of which nothing is run.
//!
//! ```text
//! archive, legacy   the containers: a pickle, and storages of numbers by name
//! machine           pickle → values; calls: tensors of the few calls that make them
//! outline           values → tensors by name, all of them or none
//! views             a tensor's numbers in its storage
//! ```
//!
//! The pickle is followed and every tensor checked before any numbers are read. One storage at a time is then in memory, beside
//! the tensors that are decoded.

mod archive;
mod calls;
mod legacy;
mod machine;
mod outline;
#[cfg(test)]
mod tests;
mod values;
mod views;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use sha2::{Digest, Sha256};

use self::archive::Archive;
use self::legacy::Legacy;
use self::machine::Pickled;
use self::outline::{Outline, outline};
use self::views::{Filled, View};
use super::tensors::{Numbers, StoredTensor, TensorFile, beyond_i64, check_memory};
use crate::error::Error;
use crate::file_kind::Opened;
use crate::hex::hex;

const DAMAGED: &str = "download or export the file again";
const RESAVE: &str =
    "load it in PyTorch, if you trust it, and save its tensors alone: torch.save(state_dict, \"model.pth\")";

/// An error in a file whose path is known further up.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    Refused { message: String, hint: &'static str },
}

type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    fn refused(message: impl Into<String>, hint: &'static str) -> Fault {
        Fault::Refused { message: message.into(), hint }
    }

    fn of_file(self, path: &Path) -> Error {
        match self {
            Fault::Io(error) => Error::io("read", path)(error),
            Fault::Refused { message, hint } => Error::checkpoint(path, message, hint),
        }
    }
}

/// Tells a broken file from a broken disk.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
                broken(format!("it is damaged or cut off ({error})"))
            }
            _ => Fault::Io(error),
        }
    }
}

fn broken(message: impl Into<String>) -> Fault {
    Fault::refused(message, DAMAGED)
}

/// Where the numbers of tensors lie.
trait Storages {
    /// The bytes of a storage.
    fn length(&self, key: &str) -> Result<u64>;

    /// Bytes that reading it takes which the file does not have, since it is compressed.
    fn inflated(&self, key: &str) -> Result<u64>;

    fn read(&mut self, key: &str) -> Result<Vec<u8>>;

    fn big_endian(&self) -> bool;
}

/// Reads a file, which is open at its beginning, into no more than `memory` bytes.
pub(super) fn read(path: &Path, opened: Opened, memory: u64) -> Result<TensorFile, Error> {
    let failed = || Error::io("read", path);
    let Opened { file, length, start, .. } = opened;
    check_memory(path, length, memory)?;
    let mut whole = file.try_clone().map_err(failed())?;
    let at_path = |fault: Fault| fault.of_file(path);
    let (mut storages, pickled) = open(file, length, &start, memory).map_err(at_path)?;
    let Outline { tensors, notes } = outline(&pickled).map_err(at_path)?;
    let by_storage = by_storage(&pickled, tensors, storages.as_ref()).map_err(at_path)?;
    let needed = needed(&by_storage, storages.as_ref()).map_err(at_path)?;
    check_memory(path, length.saturating_add(needed), memory)?;
    let mut decoded = BTreeMap::new();
    for (key, tensors) in by_storage {
        let storage = storages.read(key).map_err(at_path)?;
        for (name, view) in tensors {
            let filled = Filled { view, storage: &storage, big_endian: storages.big_endian() };
            let numbers = Numbers::decode(Some(view.dtype), &filled).map_err(|value| beyond_i64(path, &name, value))?;
            let (dtype, shape) = (view.dtype.to_string(), view.shape.clone());
            decoded.insert(name.clone(), StoredTensor { name, dtype, shape, numbers });
        }
    }
    let sha256 = sha256(&mut whole).map_err(failed())?;
    Ok(TensorFile { path: path.to_path_buf(), tensors: decoded, metadata: notes, sha256 })
}

/// Opens a file of either form and follows its pickle.
fn open(file: File, length: u64, start: &[u8], memory: u64) -> Result<(Box<dyn Storages>, Pickled)> {
    Ok(match start {
        [b'P', b'K', ..] => {
            let (archive, pickled) = Archive::open(file, memory)?;
            (Box::new(archive), pickled)
        }
        [0x80, ..] => {
            let (legacy, pickled) = Legacy::open(file, length, memory)?;
            (Box::new(legacy), pickled)
        }
        [] => return Err(broken("the file is empty")),
        _ => return Err(broken("by its name it is a PyTorch file, and it is not what torch.save writes")),
    })
}

/// The tensors of each storage, which has as many bytes as the pickle says.
type ByStorage<'a> = BTreeMap<&'a str, Vec<(String, &'a View)>>;

fn by_storage<'a>(
    pickled: &'a Pickled,
    tensors: BTreeMap<String, &'a View>,
    storages: &dyn Storages,
) -> Result<ByStorage<'a>> {
    let mut by_storage = ByStorage::new();
    for (name, view) in tensors {
        let key = pickled.values.text(view.key).unwrap_or_default();
        let length = storages.length(key)?;
        if length != view.storage {
            let (key, told) = (key.escape_debug(), view.storage);
            return Err(broken(format!("its storage '{key}' has {length} bytes where its pickle tells of {told}")));
        }
        by_storage.entry(key).or_default().push((name, view));
    }
    Ok(by_storage)
}

/// Bytes that reading takes beside the file's own.
fn needed(by_storage: &ByStorage, storages: &dyn Storages) -> Result<u64> {
    let (mut decoded, mut largest) = (0u64, 0);
    for (key, tensors) in by_storage {
        largest = largest.max(storages.inflated(key)?);
        decoded = tensors.iter().fold(decoded, |sum, (_, view)| sum.saturating_add(view.decoded()));
    }
    Ok(decoded.saturating_add(largest))
}

fn sha256(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let (mut hasher, mut part) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut part) {
            Ok(0) => return Ok(hex(hasher.finalize())),
            Ok(length) => hasher.update(&part[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
