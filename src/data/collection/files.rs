//! Files of a folder or of an archive, read where they are.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::ZipArchive;

use crate::error::{Error, Result};
use crate::file_kind::{self, Wanted};

/// Folders below folders, beyond which nobody looks: a link may lead back up.
const DEEPEST: usize = 16;

/// Files by their names below a root, with slashes, in order.
pub(super) struct Files {
    /// The folder, or the archive.
    pub root: PathBuf,
    names: Vec<String>,
    place: Place,
}

enum Place {
    Folder,
    /// Where the content of each file begins, and its length.
    Tar(File, Vec<(u64, u64)>),
    /// The number of each file in the archive's list.
    Zip(ZipArchive<Shared>, Vec<usize>),
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files of {}", self.names.len(), self.root.display())
    }
}

impl Files {
    /// Those below a folder; hidden ones are left out.
    pub fn of_folder(root: &Path) -> Result<Files> {
        let mut names = Vec::new();
        walk(root, "", DEEPEST, &mut names)?;
        names.sort();
        Ok(Files { root: root.to_path_buf(), names, place: Place::Folder })
    }

    /// Those of an archive that can be read in place; `None` if it is no such archive.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn of_archive(path: &Path) -> Result<Option<Files>> {
        let opened = file_kind::open(path, "read", Wanted::DataSet)?;
        match opened.kind {
            Some(kind) if kind == file_kind::TAR => tar(path, opened.file).map(Some),
            Some(kind) if kind == file_kind::ZIP => zip(path, opened.file).map(Some),
            _ => Ok(None),
        }
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What to call a file in a message.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(&self.names[index])
    }

    /// The content of a file, whole. Any thread may read.
    pub fn read(&self, index: usize) -> Result<Vec<u8>> {
        let path = self.path(index);
        let content = match &self.place {
            Place::Folder => fs::read(&path),
            Place::Tar(file, places) => {
                let (start, length) = places[index];
                let mut content = vec![0; length as usize];
                file.read_exact_at(&mut content, start).map(|()| content)
            }
            Place::Zip(archive, numbers) => {
                let mut content = Vec::new();
                // A clone shares the list of members, and has a place of its own.
                let mut archive = archive.clone();
                let member = archive.by_index(numbers[index]).map_err(io::Error::other);
                member.and_then(|mut member| member.read_to_end(&mut content)).map(|_| content)
            }
        };
        content.map_err(Error::io("read", path))
    }

    /// The first bytes of a file; all of it where it has no more.
    pub fn start(&self, index: usize, length: u64) -> Result<Vec<u8>> {
        let path = self.path(index);
        let mut start = Vec::new();
        let read = match &self.place {
            Place::Folder => File::open(&path).and_then(|file| file.take(length).read_to_end(&mut start)),
            Place::Tar(file, places) => {
                let (place, whole) = places[index];
                start.resize(whole.min(length) as usize, 0);
                file.read_exact_at(&mut start, place).map(|()| start.len())
            }
            Place::Zip(archive, numbers) => {
                let mut archive = archive.clone();
                let member = archive.by_index(numbers[index]).map_err(io::Error::other);
                member.and_then(|member| member.take(length).read_to_end(&mut start))
            }
        };
        read.map(|_| start).map_err(Error::io("read", path))
    }
}

fn walk(folder: &Path, below: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    let failed = || Error::io("read", folder);
    for entry in fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Links are followed.
        let Ok(kind) = fs::metadata(entry.path()) else { continue };
        let whole = format!("{below}{name}");
        match () {
            () if name.starts_with('.') || name == "__MACOSX" => {}
            () if kind.is_dir() && depth > 0 => walk(&entry.path(), &format!("{whole}/"), depth - 1, names)?,
            () if kind.is_file() => names.push(whole),
            () => {}
        }
    }
    Ok(())
}

/// Whether a member of an archive is one that somebody put there to be read.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.') && part != "." || part == "__MACOSX")
}

fn tar(path: &Path, file: File) -> Result<Files> {
    let damaged = |source: io::Error| {
        Error::data(path, format!("its tar archive is damaged or cut off ({source})"), "download or write it again")
    };
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut members = Vec::new();
    let mut archive = tar::Archive::new(&file);
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = match entry {
            // Nothing of an archive but its magic.
            Err(_) if members.is_empty() => break,
            entry => entry.map_err(damaged)?,
        };
        let name = entry.path().map_err(damaged)?.to_string_lossy().trim_start_matches("./").to_string();
        if !entry.header().entry_type().is_file() || is_hidden(&name) {
            continue;
        }
        let (start, size) = (entry.raw_file_position(), entry.size());
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        members.push((name, (start, size)));
    }
    members.sort();
    let (names, places) = members.into_iter().unzip();
    Ok(Files { root: path.to_path_buf(), names, place: Place::Tar(file, places) })
}

fn zip(path: &Path, file: File) -> Result<Files> {
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let archive = ZipArchive::new(Shared { file: Arc::new(file), at: 0, length }).map_err(|error| {
        Error::data(path, format!("its zip archive is damaged or cut off ({error})"), "download or write it again")
    })?;
    let mut members: Vec<(String, usize)> = (0..archive.len())
        .filter_map(|index| Some((archive.name_for_index(index)?.ok()?.into_owned(), index)))
        .filter(|(name, _)| !name.ends_with('/') && !is_hidden(name))
        .collect();
    members.sort();
    let (names, numbers) = members.into_iter().unzip();
    Ok(Files { root: path.to_path_buf(), names, place: Place::Zip(archive, numbers) })
}

/// A file that many read, each at a place of its own.
#[derive(Clone)]
struct Shared {
    file: Arc<File>,
    at: u64,
    length: u64,
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
