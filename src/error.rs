//! One error type for the whole library.
//!
//! Every variant that a user can cause says what is wrong in one line and carries a hint that says what to do about it.
//! Programming mistakes (two tensors of different shape handed to an op) are panics, not errors.

use std::path::{Path, PathBuf};

use crate::gpu::Failure;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    /// Nobody takes what the run prints.
    #[error("cannot write to the standard output")]
    Stdout { source: std::io::Error },

    /// An option, or a combination of options, that makes no sense.
    #[error("{message}")]
    Usage { message: String, hint: String },

    /// A name that is not among those known; the hint offers the nearest.
    #[error("unknown {kind} '{name}'")]
    UnknownName { kind: &'static str, name: String, known: Vec<String> },

    /// An output that is already there.
    #[error("{} already exists", path.display())]
    Exists { path: PathBuf },

    /// A checkpoint that cannot be used: broken, foreign, not finite, or of another shape than its companions.
    #[error("{}: {message}", path.display())]
    Checkpoint { path: PathBuf, message: String, hint: String },

    /// A data set that cannot be used.
    #[error("{}: {message}", path.display())]
    Data { path: PathBuf, message: String, hint: String },

    /// A loss that is no longer a number.
    #[error("the loss became {loss} at step {step} (epoch {epoch})")]
    Diverged { loss: f32, step: usize, epoch: usize, last_checkpoint: Option<PathBuf> },

    /// A result that is no number, or that no network may hold.
    #[error("{message}")]
    NotFinite { message: String, hint: String },

    /// A device that was asked for and is not here.
    #[error("device '{device}' is not available")]
    Device { device: String, source: Failure },

    /// Something that failed on a GPU.
    #[error(transparent)]
    Gpu(#[from] Failure),

    /// Ops that did not pass `selftest`.
    #[error("the self-test on {device} failed: {}", ops.join(", "))]
    Selftest { device: String, ops: Vec<String> },

    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted { last_checkpoint: Option<PathBuf> },
}

impl Error {
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Usage { message: message.into(), hint: hint.into() }
    }

    pub fn checkpoint(path: impl AsRef<Path>, message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Checkpoint { path: path.as_ref().to_path_buf(), message: message.into(), hint: hint.into() }
    }

    pub fn data(path: impl AsRef<Path>, message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Data { path: path.as_ref().to_path_buf(), message: message.into(), hint: hint.into() }
    }

    pub fn unknown<S: Into<String>>(kind: &'static str, name: &str, known: impl IntoIterator<Item = S>) -> Error {
        Error::UnknownName { kind, name: name.to_string(), known: known.into_iter().map(Into::into).collect() }
    }

    /// A hint of what the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Io { source, path, .. } => Some(match source.kind() {
                std::io::ErrorKind::NotFound => match path.parent() {
                    Some(folder) if !folder.as_os_str().is_empty() && !folder.exists() => {
                        format!("the folder {} does not exist", folder.display())
                    }
                    _ => "check the spelling of the path".into(),
                },
                std::io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder".into(),
                std::io::ErrorKind::StorageFull => {
                    "free some space or write to another disk; the file was not written".into()
                }
                std::io::ErrorKind::FileTooLarge => {
                    "files may not grow so large here: ulimit -f shows the limit; the file was not written".into()
                }
                std::io::ErrorKind::IsADirectory => "give the path of a file, not of a folder".into(),
                _ => "check the path and the disk".into(),
            }),
            Error::Stdout { .. } => Some("check where it leads, and whether that disk is full".into()),
            Error::Usage { hint, .. }
            | Error::Checkpoint { hint, .. }
            | Error::Data { hint, .. }
            | Error::NotFinite { hint, .. } => Some(hint.clone()),
            Error::UnknownName { name, known, .. } => Some(match nearest(name, known) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known: {}", known.join(", ")),
            }),
            Error::Exists { .. } => Some("give another path, or --force to overwrite it".into()),
            Error::Diverged { last_checkpoint, .. } => Some(match last_checkpoint {
                Some(path) => format!("use a smaller --learning-rate; the last good checkpoint is {}", path.display()),
                None => "use a smaller --learning-rate; no checkpoint was written".into(),
            }),
            Error::Device { source, .. } => Some(source.hint()),
            Error::Gpu(failure) => Some(failure.hint()),
            Error::Selftest { .. } => Some("do not trust results of this device; report the lines above".into()),
            Error::Interrupted { last_checkpoint } => {
                last_checkpoint.as_ref().map(|path| format!("the last good checkpoint is {}", path.display()))
            }
        }
    }

    /// 2 where the user gave something wrong, 1 where the work itself failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Diverged { .. }
            | Error::NotFinite { .. }
            | Error::Selftest { .. }
            | Error::Interrupted { .. }
            | Error::Stdout { .. } => 1,
            Error::Gpu(failure) => failure.exit_code(),
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::Interrupted => 1,
            _ => 2,
        }
    }
}

/// The known name that differs from `name` by the fewest edits, if any is near enough to be a slip of the finger.
pub fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.as_str())
}
