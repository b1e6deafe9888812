//! Files appear complete or not at all, never over another one unless told so, and by one run at a time.

mod apart;
mod claim;
mod unfinished;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

pub use apart::{Named, check_apart};
pub use unfinished::remove_unfinished;

use crate::error::{Error, Result};
use crate::interrupt::Shield;
use claim::Claim;
use unfinished::Unfinished;

/// A place where a file may be written, found good before the work that fills it starts.
#[derive(Clone, Debug)]
pub struct OutputPath {
    path: PathBuf,
    force: bool,
    /// As long as this lives, no other run writes here.
    _claim: Claim,
}

/// Bytes of a file's name, on nearly every file system.
const LONGEST_NAME: usize = 255;

impl OutputPath {
    /// Checks that the path names a file, which no other run is writing, that nothing is overwritten unless `force`, that
    /// the folder exists and can be written to, and that its disk has `bytes` free.
    pub fn check(path: &Path, force: bool, bytes: u64) -> Result<OutputPath> {
        check_names_a_file(path)?;
        let path = &destination(path)?;
        if path.file_name().is_some_and(|name| name.len() > LONGEST_NAME) {
            let message = format!("{} is too long a name", path.display());
            return Err(Error::usage(message, format!("a file's name has {LONGEST_NAME} bytes at most")));
        }
        if path.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(Error::Io { action: "write", path: path.to_path_buf(), source });
        }
        // Before anything is looked at, so that a run that ends meanwhile is noticed by one of the two.
        let claim = claim(path)?;
        if path.exists() && !force {
            return Err(Error::Exists { path: path.to_path_buf() });
        }
        let folder = folder(path);
        temporary(path).map_err(Error::io("write", path))?;
        let free = fs4::available_space(folder).map_err(Error::io("write", path))?;
        if free < bytes {
            let (needed, free) = (bytes.div_ceil(1 << 10), free >> 10);
            return Err(Error::usage(
                format!("{} needs {needed} KB, and its disk has {free} KB free", path.display()),
                "free some space, or write to another disk",
            ));
        }
        Ok(OutputPath { path: path.to_path_buf(), force, _claim: claim })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file by what `fill` writes: into a temporary file beside it, then by renaming. What this run wrote
    /// itself it may write again.
    pub fn write(&mut self, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let _shield = Shield::new();
        let failed = || Error::io("write", &self.path);
        let Temporary { mut file, _unfinished } = temporary(&self.path).map_err(failed())?;
        let mut writer = std::io::BufWriter::with_capacity(1 << 20, file.as_file_mut());
        fill(&mut writer).and_then(|()| writer.flush()).map_err(failed())?;
        drop(writer);
        // A full disk may show only here.
        file.as_file().sync_all().map_err(failed())?;
        if self.force {
            file.persist(&self.path).map_err(|error| failed()(error.error))?;
        } else {
            file.persist_noclobber(&self.path).map_err(|error| match error.error.kind() {
                std::io::ErrorKind::AlreadyExists => Error::Exists { path: self.path.clone() },
                _ => failed()(error.error),
            })?;
        }
        self.force = true;
        Ok(())
    }
}

/// `folder/`, `folder/.` and `..` name folders, whether there are any or not.
fn check_names_a_file(path: &Path) -> Result<()> {
    let text = path.as_os_str().as_encoded_bytes();
    let is_separator = |byte: &u8| std::path::is_separator(char::from(*byte));
    match text.rsplit(is_separator).next().unwrap_or_default() {
        b"" | b"." | b".." => {
            let message = format!("'{}' names a folder", path.display());
            Err(Error::usage(message, "give the path of a file in it"))
        }
        _ => Ok(()),
    }
}

fn claim(path: &Path) -> Result<Claim> {
    Claim::on(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            let message = format!("another run is writing {}", path.display());
            Error::usage(message, "wait until it has ended, or give another path")
        }
        _ => Error::io("write", path)(error),
    })
}

/// Where a link leads, so that the file there is replaced and not the link. What is there must be an ordinary file: a
/// device or a pipe would be replaced by one.
fn destination(path: &Path) -> Result<PathBuf> {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let destination = match is_link {
        true => std::fs::canonicalize(path).map_err(Error::io("write", path))?,
        false => path.to_path_buf(),
    };
    match std::fs::metadata(&destination) {
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => {
            Err(Error::usage(format!("{} is no ordinary file", path.display()), "give the path of a file"))
        }
        _ => Ok(destination),
    }
}

/// The folder that a path names a file in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file that is removed with this, or when the program ends.
struct Temporary {
    file: tempfile::NamedTempFile<File>,
    _unfinished: Unfinished,
}

/// A temporary file in the folder of `path`. Such files are readable by their owner alone unless told otherwise; this one
/// becomes an ordinary file, under the umask.
fn temporary(path: &Path) -> std::io::Result<Temporary> {
    let mut unfinished = None;
    let create = |path: &Path| {
        unfinished = Some(Unfinished::new(path));
        File::options().read(true).write(true).create_new(true).open(path)
    };
    let file = tempfile::Builder::new().prefix(".medmerge-").make_in(folder(path), create)?;
    Ok(Temporary { file, _unfinished: unfinished.expect("made before the file") })
}

/// A path as text, for JSON: what is not UTF-8 in it, as a file's name on Unix may be, becomes `�`.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Makes a folder for several files; it must be new or empty unless `force`.
pub fn make_folder(path: &Path, force: bool) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return Err(Error::usage(
            format!("{} is no folder", path.display()),
            "give another path; several files are written",
        ));
    }
    if path.is_dir() && !force {
        let mut entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
        if entries.next().is_some() {
            return Err(Error::Exists { path: path.to_path_buf() });
        }
    }
    std::fs::create_dir_all(path).map_err(Error::io("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let mut output = OutputPath::check(&path, false, 0).unwrap();
        let failure = output.write(|file| {
            file.write_all(b"half")?;
            Err(std::io::ErrorKind::StorageFull.into())
        });
        assert!(failure.unwrap_err().hint().unwrap().contains("free some space"));
        drop(output);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_kept_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let mut output = OutputPath::check(&path, false, 0).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        assert!(matches!(OutputPath::check(&path, false, 0), Err(Error::Exists { .. })));
        assert!(matches!(output.write(|file| file.write_all(b"ours")), Err(Error::Exists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        let mut forced = OutputPath::check(&path, true, 0).unwrap();
        forced.write(|file| file.write_all(b"ours")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
    }

    #[test]
    fn a_path_that_names_a_folder_is_refused_whether_it_exists_or_not() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["new/", "new/.", "new/..", ".", "..", "./", ""] {
            let named = if path.is_empty() {
                PathBuf::new()
            } else {
                PathBuf::from(format!("{}/{path}", folder.path().display()))
            };
            let error = OutputPath::check(&named, true, 0).unwrap_err();
            assert!(error.to_string().ends_with("names a folder"), "{path}: {error}");
        }
        OutputPath::check(&folder.path().join("..."), true, 0).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_process_may_check_and_write_a_file_through_several_hands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let early = OutputPath::check(&path, false, 0).unwrap();
        let mut output = OutputPath::check(&path, false, 0).unwrap();
        let mut clone = early.clone();
        drop(early);
        output.write(|file| file.write_all(b"ours")).unwrap();
        assert!(matches!(clone.write(|file| file.write_all(b"theirs")), Err(Error::Exists { .. })));
        drop((output, clone));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_disk_without_room_is_found_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let error = OutputPath::check(&folder.path().join("result"), false, u64::MAX).unwrap_err();
        assert!(error.to_string().contains("KB free"), "{error}");
    }
}
