//! The form before PyTorch 1.6: five pickles one after the other (a magic number, a version, the system, the object, the names
//! of its storages), and then each storage: how many numbers there are in eight bytes, and the numbers, which are
//! little-endian whatever wrote them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::machine::{self, Input, Pickled};
use super::values::Value;
use super::views;
use super::{Fault, RESAVE, Result, Storages, broken};

/// 0x1950a86a20f9469cfc6c, the least significant byte first.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

pub struct Legacy {
    file: BufReader<File>,
    /// Where each storage's numbers begin, and how many bytes they are.
    storages: BTreeMap<String, (u64, u64)>,
}

impl Legacy {
    /// Opens a file of `length` bytes and follows its pickles, for which about `memory` bytes may be taken.
    pub fn open(file: File, length: u64, memory: u64) -> Result<(Legacy, Pickled)> {
        let mut legacy = Legacy { file: BufReader::new(file), storages: BTreeMap::new() };
        let mut pickle = || legacy.pickle(length, memory);
        let magic = pickle()?;
        if !matches!(magic.values.get(magic.root), Value::Long(bytes) if *bytes == MAGIC) {
            return Err(broken("it is a Python pickle, and not what torch.save writes"));
        }
        let version = pickle()?;
        if version.values.int(version.root) != Some(VERSION) {
            return Err(Fault::refused(format!("its version of the format is not {VERSION}"), RESAVE));
        }
        let system = pickle()?;
        if !is_little_endian(&system) {
            let message = "it was written on a big-endian machine, before PyTorch 1.6";
            return Err(Fault::refused(message, RESAVE));
        }
        let (object, keys) = (pickle()?, pickle()?);
        legacy.find_storages(&sizes(&object)?, &keys, length)?;
        Ok((legacy, object))
    }

    /// The next of the pickles.
    fn pickle(&mut self, length: u64, memory: u64) -> Result<Pickled> {
        let left = length.saturating_sub(self.file.stream_position()?);
        machine::load(Input::new(&mut self.file, left), memory)
    }

    /// Finds where the storages lie, which must fill the file. `sizes` are the bytes of a number, by storage.
    fn find_storages(&mut self, sizes: &HashMap<&str, usize>, keys: &Pickled, length: u64) -> Result<()> {
        let Value::List(list) = keys.values.get(keys.root) else {
            return Err(broken("it has no list of its storages"));
        };
        let mut at = self.file.stream_position()?;
        for key in list {
            let key = keys.values.text(*key).unwrap_or_default();
            let wrong = |what: &str| broken(format!("its storage '{}' {what}", key.escape_debug()));
            let size = *sizes.get(key).ok_or_else(|| wrong("belongs to no tensor"))? as u64;
            let mut count = [0; 8];
            self.file.read_exact(&mut count)?;
            at += count.len() as u64;
            let count = u64::from_le_bytes(count);
            let end = count.checked_mul(size).and_then(|bytes| at.checked_add(bytes)).filter(|end| *end <= length);
            let end = end.ok_or_else(|| wrong(&format!("claims {count} numbers, more than the file has")))?;
            if self.storages.insert(key.to_string(), (at, end - at)).is_some() {
                return Err(wrong("is there twice"));
            }
            self.file.seek(SeekFrom::Start(end))?;
            at = end;
        }
        match at == length {
            true => Ok(()),
            false => Err(broken(format!("{} bytes follow its last storage", length - at))),
        }
    }
}

/// Whether the system that wrote a file is not said to be big-endian.
fn is_little_endian(system: &Pickled) -> bool {
    let Value::Dict(entries) = system.values.get(system.root) else { return true };
    let entry = entries.iter().find(|(key, _)| system.values.text(*key) == Some("little_endian"));
    !entry.is_some_and(|(_, value)| matches!(system.values.get(*value), Value::Bool(false)))
}

/// The bytes of a number, by storage.
fn sizes(object: &Pickled) -> Result<HashMap<&str, usize>> {
    let mut sizes = HashMap::new();
    for (_, value) in object.values.iter() {
        let Value::Storage(storage) = value else { continue };
        let (key, size) = (object.values.text(storage.key).unwrap_or_default(), views::size(storage.dtype));
        if *sizes.entry(key).or_insert(size) != size {
            return Err(broken(format!("its storage '{}' is of two types", key.escape_debug())));
        }
    }
    Ok(sizes)
}

impl Storages for Legacy {
    fn length(&self, key: &str) -> Result<u64> {
        let found = self.storages.get(key).map(|(_, bytes)| *bytes);
        found.ok_or_else(|| broken(format!("its storage '{}' is missing", key.escape_debug())))
    }

    fn inflated(&self, _: &str) -> Result<u64> {
        Ok(0)
    }

    fn read(&mut self, key: &str) -> Result<Vec<u8>> {
        let length = self.length(key)?;
        self.file.seek(SeekFrom::Start(self.storages[key].0))?;
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn big_endian(&self) -> bool {
        false
    }
}
