//! One run at a time writes a file: an advisory lock on a hidden file beside it.
//!
//! The system lets go of a lock when its process ends, however that ends, so what a killed run left behind is in nobody's
//! way. The hidden file is removed with the last claim of a process on it, while it is still locked; another process may
//! have opened it before, and then holds the lock of a file that nobody else will find: it looks again.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::folder;
use super::unfinished::Unfinished;
use crate::hex::hex;

/// The locks that this process holds.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

struct Held {
    lock: PathBuf,
    claims: usize,
    /// Locked while it is open.
    _file: File,
    _unfinished: Unfinished,
}

/// That this process, and no other one, writes a file; it may have several claims on it.
#[derive(Debug)]
pub(super) struct Claim {
    lock: PathBuf,
}

impl Claim {
    /// Fails with [`io::ErrorKind::WouldBlock`] where another process has a claim.
    pub fn on(path: &Path) -> io::Result<Claim> {
        let lock = beside(path)?;
        let mut all = held();
        match all.iter_mut().find(|held| held.lock == lock) {
            Some(held) => held.claims += 1,
            None => {
                let file = open(&lock)?;
                let unfinished = Unfinished::new(&lock);
                all.push(Held { lock: lock.clone(), claims: 1, _file: file, _unfinished: unfinished });
            }
        }
        Ok(Claim { lock })
    }
}

impl Clone for Claim {
    fn clone(&self) -> Claim {
        held().iter_mut().filter(|held| held.lock == self.lock).for_each(|held| held.claims += 1);
        Claim { lock: self.lock.clone() }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        held().retain_mut(|held| {
            if held.lock == self.lock {
                held.claims -= 1;
                if held.claims == 0 {
                    let _ = std::fs::remove_file(&held.lock);
                }
            }
            held.claims > 0
        });
    }
}

fn held() -> MutexGuard<'static, Vec<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The hidden file of `path`, by one name however the path is written.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default();
    let mut hidden = OsString::from(".");
    if name.len() <= 200 {
        hidden.push(name);
    } else {
        // A name has 255 bytes at most.
        let digest = Sha256::digest(name.as_encoded_bytes());
        hidden.push(hex(digest));
    }
    hidden.push(".medmerge-lock");
    Ok(folder(path).canonicalize()?.join(hidden))
}

fn open(lock: &Path) -> io::Result<File> {
    loop {
        let file = match File::options().read(true).write(true).create(true).truncate(false).open(lock) {
            // Another user's, who was killed: whoever may read it may lock it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(lock).map_err(|_| error)?,
            opened => opened?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Ok(()) if !is_at(&file, lock)? => continue,
            // Some network disks have no locks; there a claim keeps nobody out.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
        }
    }
}

/// Whether the path still leads to this file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(identity(metadata) == identity(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> io::Result<bool> {
    Ok(path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn claims_of_one_process_share_a_lock_that_goes_with_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let first = Claim::on(&path).unwrap();
        let again = Claim::on(&folder.path().join(".").join("result")).unwrap();
        let other = Claim::on(&folder.path().join("other")).unwrap();
        assert_eq!(count(folder.path()), 2);
        drop((first.clone(), first, other));
        assert_eq!(count(folder.path()), 1);
        drop(again);
        assert_eq!(count(folder.path()), 0);
    }

    /// A lock belongs to an open file, so that another one in this process stands for another process.
    #[test]
    fn another_claim_is_refused_and_what_a_killed_run_left_is_not_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let theirs = open(&beside(&path).unwrap()).unwrap();
        assert_eq!(Claim::on(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(count(folder.path()), 1);
        drop(Claim::on(&path).unwrap());
        assert_eq!(count(folder.path()), 0);
    }

    #[test]
    fn a_lock_whose_file_was_removed_keeps_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let lock = beside(&folder.path().join("result")).unwrap();
        let old = open(&lock).unwrap();
        std::fs::remove_file(&lock).unwrap();
        assert!(!is_at(&old, &lock).unwrap());
        let new = open(&lock).unwrap();
        assert!(is_at(&new, &lock).unwrap() && !is_at(&old, &lock).unwrap());
    }

    #[test]
    fn a_name_of_the_greatest_length_can_be_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["a", "b"].map(|letter| folder.path().join(letter.repeat(255)));
        let _claims = [Claim::on(&one).unwrap(), Claim::on(&other).unwrap()];
        assert_eq!(count(folder.path()), 2);
    }
}
