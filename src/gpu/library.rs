//! The common ground of NVIDIA's two libraries: both are opened when they are needed, from wherever a machine has them,
//! and both are called through a table of the functions that are used, each looked up by its name.

use std::ffi::{OsString, c_int, c_void};
use std::path::{Path, PathBuf};

/// The status that the functions return. Not cudarc's enums: a newer library may know codes that they lack, and a
/// number that is none of an enum's may not be held by it.
pub(super) type Status = c_int;

/// Declares a struct `Api`, which holds a library and the functions in it.
macro_rules! api {
    ($($function:ident($($argument:ty),*) -> $result:ty;)*) => {
        /// Fields have the functions' own names.
        #[allow(non_snake_case)]
        pub(super) struct Api {
            $(pub $function: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Keeps the functions callable.
            _library: libloading::Library,
        }

        impl Api {
            #[allow(non_snake_case)]
            fn load(library: libloading::Library) -> Result<Api, libloading::Error> {
                $(
                    // SAFETY: the signature is that of NVIDIA's header, the same in CUDA 12 and 13.
                    let $function = unsafe {
                        *library.get::<unsafe extern "C" fn($($argument),*) -> $result>(stringify!($function))?
                    };
                )*
                Ok(Api { $($function,)* _library: library })
            }
        }
    };
}
pub(super) use api;

/// Where to look: the environment, and what `/` is. Tests have their own.
pub struct Machine<'a> {
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    pub root: &'a Path,
    /// Asks the loader too.
    pub loader: bool,
}

impl Machine<'_> {
    pub fn this() -> Machine<'static> {
        Machine { variable: &|name| std::env::var_os(name), root: Path::new("/"), loader: true }
    }

    /// A variable that holds a path.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        (self.variable)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// The loader's own words, which the error keeps for itself.
pub(super) fn reason(error: libloading::Error) -> String {
    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The file that a function of a library lies in, as the loader opened it.
#[cfg(unix)]
pub(super) fn file_of(function: *const c_void) -> Option<PathBuf> {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;
    let mut about = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the function writes to the struct that it is given; null pointers and zeros are valid there.
    let (found, about) = unsafe { (libc::dladdr(function, about.as_mut_ptr()), about.assume_init()) };
    if found == 0 || about.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's own string, which stays as long as the library.
    let name = unsafe { CStr::from_ptr(about.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

#[cfg(not(unix))]
pub(super) fn file_of(_function: *const c_void) -> Option<PathBuf> {
    None
}

/// The folders that a path stands for in which `*` may stand once in a component.
pub(super) fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        found = match part.as_os_str().to_str().and_then(|part| part.split_once('*')) {
            Some((start, end)) => found.iter().flat_map(|folder| matching(folder, start, end)).collect(),
            None => found.into_iter().map(|folder| folder.join(part)).collect(),
        };
    }
    found.retain(|folder| folder.is_dir());
    found
}

/// Files in a folder whose name begins with `start`, the highest version first.
pub(super) fn libraries(folder: &Path, start: &str) -> Vec<PathBuf> {
    matching(folder, start, "").into_iter().filter(|path| path.is_file()).collect()
}

/// Entries of a folder, those with the highest numbers in their names first.
fn matching(folder: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let numbers = |name: &str| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end))
        .collect();
    names.sort_by_cached_key(|name| (std::cmp::Reverse(numbers(name)), name.clone()));
    names.into_iter().map(|name| folder.join(name)).collect()
}
