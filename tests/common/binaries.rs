//! The binaries that tests share. To compile all kernels for one architecture takes most of a minute of processor time, which
//! is spent once for all tests, and for `tests/sass.py`: a cache of the program's own, where whatever is compiled from other
//! sources, by other options or another compiler has another name.

use std::fs::File;
use std::path::{Path, PathBuf};

/// What XDG_CACHE_HOME has to be for the program to use it.
pub fn home() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

pub fn folder() -> PathBuf {
    home().join("medmerge")
}

/// Held by whoever compiles for an architecture: tests run in processes of their own, and all but the first should wait and
/// find what it made.
pub fn turn(architecture: &str) -> File {
    std::fs::create_dir_all(home()).unwrap();
    let file = File::create(home().join(format!("{architecture}.lock"))).unwrap();
    file.lock().unwrap();
    file
}
