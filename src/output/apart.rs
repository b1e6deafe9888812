//! Files of one command that must not be the same: what it reads and what it writes.

use std::path::{Path, PathBuf};

use super::{check_names_a_file, destination, folder};
use crate::error::{Error, Result};

/// A file, and the option that names it.
pub type Named<'a> = (&'a str, &'a Path);

/// Refuses an output that is also an input, or another output, under whatever name: replacing it would destroy what the
/// command was given, or half of what it made.
pub fn check_apart(inputs: &[Named], outputs: &[Named]) -> Result<()> {
    for (index, output) in outputs.iter().enumerate() {
        check_names_a_file(output.1)?;
        let identity = Identity::of(output.1);
        let is_same = |other: &&Named| identity.is_some() && Identity::of(other.1) == identity;
        if let Some(other) = outputs[..index].iter().chain(inputs).find(is_same) {
            let message = format!("{} and {} name the same file, {}", other.0, output.0, output.1.display());
            return Err(Error::usage(message, "give different paths"));
        }
    }
    Ok(())
}

/// The identity of a file, which tells it from every other one.
#[derive(PartialEq)]
enum Identity {
    /// Its device and number there: links of either kind lead to the same.
    #[cfg(unix)]
    Existing(u64, u64),
    /// Where it is, or will be.
    At(PathBuf),
}

impl Identity {
    /// `None` where there is no such folder, which is refused elsewhere.
    fn of(path: &Path) -> Option<Identity> {
        let path = destination(path).ok()?;
        #[cfg(unix)]
        if let Ok(metadata) = std::fs::metadata(&path) {
            use std::os::unix::fs::MetadataExt;
            return Some(Identity::Existing(metadata.dev(), metadata.ino()));
        }
        Some(Identity::At(folder(&path).canonicalize().ok()?.join(path.file_name()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_under_each_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let [file, hard, soft, other, new] =
            ["file", "hard", "soft", "other", "new"].map(|name| folder.path().join(name));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&other, "").unwrap();
        std::fs::hard_link(&file, &hard).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("file", &soft).unwrap();
        #[cfg(not(unix))]
        std::fs::hard_link(&file, &soft).unwrap();
        let around = folder.path().join("..").join(folder.path().file_name().unwrap());
        for same in [&file, &hard, &soft, &around.join("file")] {
            let error = check_apart(&[("--data", &file)], &[("--out", same)]).unwrap_err();
            assert!(error.to_string().starts_with("--data and --out name the same file, "), "{error}");
        }
        check_apart(&[("--data", &file)], &[("--out", &other), ("--log", &new)]).unwrap();
        let new_again = around.join("new");
        let error = check_apart(&[], &[("--out", &new), ("--weights", &new_again)]).unwrap_err();
        assert!(error.to_string().starts_with("--out and --weights "), "{error}");
        // Two inputs may be.
        check_apart(&[("--data", &file), ("--model", &file)], &[("--out", &new)]).unwrap();
    }
}
