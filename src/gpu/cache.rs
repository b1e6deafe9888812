//! Compiled kernels on disk, so that a GPU's are compiled once.
//!
//! An entry's name holds a hash of all that its content depends on, so an entry is never out of date. It appears by renaming,
//! so that several processes may write the same one; and it carries a hash of its content, so that a damaged one is
//! noticed and made again. A cache that cannot be used costs time and nothing else.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::hex::hex;
use crate::interrupt::Shield;

/// A hash of what an entry depends on.
pub struct Key(Sha256);

impl Key {
    /// `format` changes with the meaning of what is stored.
    pub fn new(format: &str) -> Key {
        let mut key = Key(Sha256::new());
        key.add(format);
        key
    }

    /// With its length, so that no two lists of parts run together to the same bytes.
    pub fn add(&mut self, part: &str) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part.as_bytes());
    }

    pub(super) fn hex(&self) -> String {
        hex(self.0.clone().finalize())
    }
}

/// A folder of entries.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub fn at(folder: &Path) -> Cache {
        Cache { folder: folder.to_path_buf() }
    }

    /// `$XDG_CACHE_HOME/medmerge` or `~/.cache/medmerge`; none for a user without a home.
    pub fn of_user() -> Option<Cache> {
        // The specification of the variable says that a relative path counts as none.
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Cache { folder: folder.join("medmerge") })
    }

    /// `name` is for people who look into the folder.
    fn path(&self, name: &str, key: &Key) -> PathBuf {
        self.folder.join(format!("{name}-{}", &key.hex()[..32]))
    }

    /// The content of an entry, if it is there and whole.
    pub fn read(&self, name: &str, key: &Key) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path(name, key)).ok()?;
        let (stored, content) = bytes.split_at_checked(HASH)?;
        (hash(content) == stored).then(|| content.to_vec())
    }

    /// Stores an entry, or does not.
    pub fn write(&self, name: &str, key: &Key, content: &[u8]) {
        let _shield = Shield::new();
        // What is wrong with the folder will show again at every start; it is not worth a message at each.
        let _ = self.try_write(&self.path(name, key), content);
    }

    fn try_write(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::Builder::new().prefix(".medmerge-").tempfile_in(&self.folder)?;
        file.write_all(&hash(content))?;
        file.write_all(content)?;
        file.persist(path)?;
        Ok(())
    }
}

/// Bytes of a hash.
const HASH: usize = 32;

fn hash(content: &[u8]) -> [u8; HASH] {
    Sha256::digest(content).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[&str]) -> Key {
        let mut key = Key::new("test");
        parts.iter().for_each(|part| key.add(part));
        key
    }

    #[test]
    fn an_entry_is_read_back_under_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("new/folder"));
        cache.write("x", &key(&["a", "bc"]), b"content");
        assert_eq!(cache.read("x", &key(&["a", "bc"])).as_deref(), Some(&b"content"[..]));
        for other in [&["ab", "c"][..], &["a", "b", "c"], &["a"], &["a", "bd"]] {
            assert_eq!(cache.read("x", &key(other)), None, "{other:?}");
        }
    }

    #[test]
    fn a_damaged_entry_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let key = key(&["a"]);
        cache.write("x", &key, b"content");
        let path = cache.path("x", &key);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(cache.read("x", &key), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(cache.read("x", &key), None, "byte {at}");
        }
        cache.write("x", &key, b"content");
        assert_eq!(cache.read("x", &key).as_deref(), Some(&b"content"[..]));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let cache = Cache::at(&folder.path().join("file"));
        cache.write("x", &key(&["a"]), b"content");
        assert_eq!(cache.read("x", &key(&["a"])), None);
    }
}
