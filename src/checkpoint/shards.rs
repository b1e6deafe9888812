//! Networks in several files, shards, which an index names: `{"weight_map": {"fc.bias": "model-00002-of-00002.safetensors", …}}`.
//!
//! Every tensor lies where the index says and nowhere else, so that a shard of another network or of an older download is
//! found. The identity of the whole is the SHA-256 of the index's bytes followed by the SHA-256 of each shard, in hexadecimal,
//! in the order of the shards' names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use sha2::{Digest, Sha256};

use super::tensors::{Numbers, StoredTensor, TensorFile, check_memory};
use super::{Metadata, first_few, safetensors_file};
use crate::error::{Error, Result};
use crate::file_kind::{self, Opened, Wanted};
use crate::hex::hex;

/// An index, as its file has it.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The shard of each tensor. A tensor that is named twice is an error; a map would keep the last.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the shard of each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<WeightMap, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((tensor, shard)) = entries.next_entry::<String, String>()? {
                    if let Some(before) = map.insert(tensor.clone(), shard) {
                        let (tensor, before) = (tensor.escape_debug(), before.escape_debug());
                        return Err(A::Error::custom(format!("it names {tensor} twice, first in {before}")));
                    }
                }
                Ok(WeightMap(map))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A shard and the tensors that the index expects there.
struct Shard {
    path: PathBuf,
    expected: BTreeSet<String>,
}

const INCOMPLETE: &str = "download the index and all of its shards again, from one place";

/// Reads the network of an index, which is open at its beginning, into no more than `memory` bytes.
pub(super) fn read(path: &Path, opened: Opened, memory: u64) -> Result<TensorFile> {
    let mut bytes = Vec::new();
    let Opened { file, length, .. } = opened;
    check_memory(path, length, memory)?;
    file.take(file_kind::MAX_INDEX).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    let shards = shards(path, &bytes)?;
    check_before_reading(path, &shards, memory)?;
    let mut hasher = Sha256::new_with_prefix(&bytes);
    let (mut tensors, mut metadata, mut free) = (BTreeMap::new(), Metadata::new(), memory);
    for shard in &shards {
        let file = shard.read(path, free)?;
        hasher.update(&file.sha256);
        free = free.saturating_sub(file.tensors.values().map(size).sum());
        add_metadata(path, &mut metadata, file.metadata)?;
        tensors.extend(file.tensors);
    }
    Ok(TensorFile { path: path.to_path_buf(), tensors, metadata, sha256: hex(hasher.finalize()) })
}

/// The shards that an index names, in the order of their names.
fn shards(path: &Path, index: &[u8]) -> Result<Vec<Shard>> {
    let broken =
        |reason: String| Error::checkpoint(path, format!("the index of shards is broken: {reason}"), INCOMPLETE);
    let Index { weight_map: WeightMap(map) } =
        serde_json::from_slice(index).map_err(|error| broken(error.to_string()))?;
    let mut by_name = BTreeMap::<String, BTreeSet<String>>::new();
    for (tensor, shard) in map {
        by_name.entry(shard).or_default().insert(tensor);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let of_entry = |(name, expected): (String, BTreeSet<String>)| {
        let is_inside = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
        // A path of one system may be a name on another one.
        if name.is_empty() || !is_inside || name.contains(['\\', ':']) {
            let message = format!("it names the shard '{}', which is not beside it", name.escape_debug());
            let hint = "shards lie in the folder of their index; move them there, and correct the index";
            return Err(Error::checkpoint(path, message, hint));
        }
        Ok(Shard { path: folder.join(name), expected })
    };
    by_name.into_iter().map(of_entry).collect()
}

/// Checks what headers tell before any numbers are read: that each shard is there and has its tensors, and that all of them
/// fit into memory, decoded, beside the largest file.
fn check_before_reading(path: &Path, shards: &[Shard], memory: u64) -> Result<()> {
    if let Some(shard) = shards.iter().find(|shard| !shard.path.exists()) {
        let message = format!("its shard {} is missing", shard.path.display());
        return Err(Error::checkpoint(path, message, "put all shards beside their index"));
    }
    let (mut decoded, mut largest) = (0u64, 0);
    for shard in shards {
        let opened = shard.open()?;
        // What a pickle holds is known when it has been followed, which is done where it is read.
        if opened.kind == Some(file_kind::SAFETENSORS) {
            let length = opened.length;
            let outline = safetensors_file::outline(&shard.path, opened)?;
            shard.check(path, outline.names.iter())?;
            decoded = decoded.saturating_add(outline.decoded);
            largest = largest.max(length);
        }
    }
    check_memory(path, decoded.saturating_add(largest), memory)
}

impl Shard {
    fn open(&self) -> Result<Opened> {
        let opened = file_kind::open(&self.path, "read", Wanted::Network)?.expect(&self.path, Wanted::Network)?;
        match opened.kind == Some(file_kind::INDEX) {
            true => Err(Error::checkpoint(&self.path, "this is an index, and one of its own shards", INCOMPLETE)),
            false => Ok(opened),
        }
    }

    fn read(&self, index: &Path, memory: u64) -> Result<TensorFile> {
        let file = TensorFile::of_one(&self.path, self.open()?, memory)?;
        self.check(index, file.tensors.keys())?;
        Ok(file)
    }

    /// Compares the names of the tensors that are there with those that the index expects.
    fn check<'a>(&self, index: &Path, there: impl Iterator<Item = &'a String>) -> Result<()> {
        let there: BTreeSet<&String> = there.collect();
        let shard = self.path.display();
        let missing = self.expected.iter().filter(|name| !there.contains(name));
        let missing = missing.map(|name| format!("{} is not in {shard}", name.escape_debug()));
        let surplus = there.iter().filter(|name| !self.expected.contains(**name));
        let surplus =
            surplus.map(|name| format!("{shard} has {}, which the index does not place there", name.escape_debug()));
        let wrong: Vec<String> = missing.chain(surplus).collect();
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Error::checkpoint(index, first_few(&wrong), INCOMPLETE)),
        }
    }
}

/// Bytes of a tensor in memory.
fn size(tensor: &StoredTensor) -> u64 {
    (match &tensor.numbers {
        Numbers::Floats(values) => size_of_val(values.as_slice()),
        Numbers::Integers(values) => size_of_val(values.as_slice()),
        Numbers::NotUnderstood(bytes) => bytes.len(),
    }) as u64
}

/// Adds what a shard's header says. Shards that contradict each other about their network are of two; other contradictions
/// are told.
fn add_metadata(path: &Path, all: &mut Metadata, of_shard: Metadata) -> Result<()> {
    for (key, value) in of_shard {
        match all.get(&key) {
            Some(other) if *other != value && key.starts_with("medmerge.") => {
                let message = format!("its shards contradict each other about {}", key.escape_debug());
                return Err(Error::checkpoint(path, message, INCOMPLETE));
            }
            Some(other) if *other != value => drop(all.insert(key, "(differs from shard to shard)".into())),
            _ => drop(all.insert(key, value)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::write;
    use crate::output::OutputPath;

    /// Each shard would fit alone.
    #[test]
    fn shards_larger_than_memory_are_refused_before_they_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut length = 0;
        for name in ["a", "b"] {
            let path = folder.path().join(name);
            let tensor = StoredTensor::floats_named(name.into(), vec![1000], vec![0.5; 1000]);
            write(&mut OutputPath::check(&path, false, 0).unwrap(), &[tensor], &Metadata::new()).unwrap();
            length = length.max(std::fs::metadata(&path).unwrap().len());
        }
        let index = folder.path().join("index.json");
        std::fs::write(&index, r#"{"weight_map": {"a": "a", "b": "b"}}"#).unwrap();
        let needed = length + 2 * 4000;
        let file = TensorFile::read_within(&index, Wanted::Network, needed).unwrap();
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
        let error = TensorFile::read_within(&index, Wanted::Network, needed - 1).unwrap_err();
        assert!(error.to_string().contains("index.json: reading it takes 1 MiB of memory"), "{error}");
    }
}
