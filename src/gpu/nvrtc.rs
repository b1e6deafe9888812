//! Finds libnvrtc, NVIDIA's run-time compiler, and calls it. It needs no GPU and no driver.
//!
//! cudarc can load it too, but looks only where the loader looks by default, takes what it finds there however old, and
//! panics where it finds nothing. Most machines with a GPU have libnvrtc from pip or conda, where the loader never looks.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};
use libloading::Library;

use super::library::{Machine, Status, api, expand, file_of, libraries, reason};
use super::{Failure, libcuda};

/// A version of CUDA: the driver's or the compiler's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Older compilers do not know every GPU that the kernels are written for.
pub const OLDEST: Version = Version(12, 0);

/// A libnvrtc in use. It is never unloaded.
pub struct Nvrtc {
    pub path: PathBuf,
    pub version: Version,
    /// The compute capabilities that it compiles for: 90 is 9.0.
    capabilities: Vec<u32>,
    api: Api,
}

const SUCCESS: Status = nvrtcResult::NVRTC_SUCCESS as Status;

api! {
    nvrtcVersion(*mut c_int, *mut c_int) -> Status;
    nvrtcGetNumSupportedArchs(*mut c_int) -> Status;
    nvrtcGetSupportedArchs(*mut c_int) -> Status;
    nvrtcGetErrorString(Status) -> *const c_char;
    nvrtcCreateProgram(*mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status;
    nvrtcDestroyProgram(*mut nvrtcProgram) -> Status;
    nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char) -> Status;
    nvrtcGetProgramLogSize(nvrtcProgram, *mut usize) -> Status;
    nvrtcGetProgramLog(nvrtcProgram, *mut c_char) -> Status;
    nvrtcGetCUBINSize(nvrtcProgram, *mut usize) -> Status;
    nvrtcGetCUBIN(nvrtcProgram, *mut c_char) -> Status;
}

/// The libnvrtc of this machine, looked for once.
pub fn compiler() -> Result<&'static Nvrtc, Failure> {
    static FOUND: OnceLock<Result<Nvrtc, Failure>> = OnceLock::new();
    FOUND
        .get_or_init(|| find(&Machine::this(), libcuda::driver().ok().map(|driver| driver.version)))
        .as_ref()
        .map_err(Failure::clone)
}

impl Machine<'_> {
    /// Folders that libnvrtc is installed to, `*` for anything: pip's, conda's, the CUDA toolkit's.
    fn folders(&self) -> Vec<PathBuf> {
        const PYTHON: [&str; 2] =
            ["lib/python3*/site-packages/nvidia/*/lib", "lib/python3*/dist-packages/nvidia/*/lib"];
        let mut folders = Vec::new();
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(|name| self.path(name));
        let home = self.path("HOME").map(|home| home.join(".local"));
        for prefix in environments.chain(self.python()).chain(home) {
            folders.extend(PYTHON.map(|packages| prefix.join(packages)));
        }
        folders.extend(self.path("CONDA_PREFIX").map(|prefix| prefix.join("lib")));
        for toolkit in ["usr/local/cuda", "usr/local/cuda-*", "opt/cuda"] {
            folders.extend(["lib64", "targets/*/lib"].map(|lib| self.root.join(toolkit).join(lib)));
        }
        folders
    }

    /// Where the first `python3` of PATH is installed, guessed from its path: running it could take a second.
    fn python(&self) -> Vec<PathBuf> {
        let Some(path) = (self.variable)("PATH") else { return Vec::new() };
        let Some(bin) = std::env::split_paths(&path).find(|folder| folder.join("python3").is_file()) else {
            return Vec::new();
        };
        // A program of pyenv's that chooses a version when it runs.
        if bin.ends_with("shims") {
            return bin.parent().map(|pyenv| pyenv.join("versions/*")).into_iter().collect();
        }
        // The program may be a link into the place where the rest is.
        let real = bin.join("python3").canonicalize().ok();
        let real = real.as_deref().and_then(Path::parent).and_then(Path::parent).map(Path::to_path_buf);
        let mut prefixes: Vec<PathBuf> = bin.parent().map(Path::to_path_buf).into_iter().chain(real).collect();
        // Debian's packages are not in /usr/local, but pip's on Debian are.
        prefixes.push(self.root.join("usr/local"));
        prefixes.dedup();
        prefixes
    }
}

/// The first libnvrtc that can be used; one of MEDMERGE_NVRTC, or none, if that is set. What a compiler newer than the
/// driver makes, the driver may not load: such a one is taken only if there is no other. One that cannot compile is none.
fn find(machine: &Machine, driver: Option<Version>) -> Result<Nvrtc, Failure> {
    if let Some(named) = machine.path("MEDMERGE_NVRTC") {
        return load_named(&named).map_err(|reason| Failure::BadCompiler { path: named, reason })?.whole();
    }
    let mut searched = Vec::new();
    let mut candidates = Vec::new();
    if machine.loader {
        candidates.extend(["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from));
        searched.extend(candidates.clone());
    }
    for pattern in machine.folders() {
        for folder in expand(&pattern) {
            candidates.extend(libraries(&folder, "libnvrtc.so"));
        }
        searched.push(pattern);
    }
    let (mut too_new, mut alone) = (None, None);
    for candidate in candidates {
        match load(&candidate).map(Nvrtc::whole) {
            Ok(Ok(found)) if driver.is_none_or(|driver| found.version.0 <= driver.0) => return Ok(found),
            Ok(Ok(found)) => too_new = too_new.or(Some(found)),
            Ok(Err(failure)) => alone = alone.or(Some(failure)),
            Err(_) => {}
        }
    }
    too_new.ok_or(alone.unwrap_or(Failure::NoCompiler { searched }))
}

fn load_named(named: &Path) -> Result<Nvrtc, String> {
    if named.is_file() {
        return load(named);
    }
    if !named.is_dir() {
        return Err("there is no such file or folder".into());
    }
    let mut reason = "the folder holds no libnvrtc.so".to_string();
    for candidate in libraries(named, "libnvrtc.so") {
        match load(&candidate) {
            Ok(found) => return Ok(found),
            Err(why) => reason = why,
        }
    }
    Err(reason)
}

fn load(path: &Path) -> Result<Nvrtc, String> {
    // SAFETY: libnvrtc runs nothing but its own initialisation when it is loaded.
    let library = unsafe { Library::new(path) }.map_err(reason)?;
    let api = Api::load(library).map_err(reason)?;
    let (mut major, mut minor, mut count) = (0, 0, 0);
    // SAFETY: both functions write to the integers that they are given.
    let status = unsafe { (api.nvrtcVersion)(&mut major, &mut minor) };
    let version = Version(major.unsigned_abs(), minor.unsigned_abs());
    if status != SUCCESS || version < OLDEST {
        return Err(format!("it is of CUDA {version}; {OLDEST} or later is needed"));
    }
    // SAFETY: as above.
    let status = unsafe { (api.nvrtcGetNumSupportedArchs)(&mut count) };
    let mut capabilities = vec![0; if status == SUCCESS { count.unsigned_abs() as usize } else { 0 }];
    // SAFETY: there is room for as many as it has.
    if capabilities.is_empty() || unsafe { (api.nvrtcGetSupportedArchs)(capabilities.as_mut_ptr()) } != SUCCESS {
        return Err("it does not say which GPUs it compiles for".into());
    }
    let path = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => path.to_path_buf(),
        _ => file_of(api.nvrtcVersion as *const c_void).unwrap_or_else(|| path.to_path_buf()),
    };
    let capabilities = capabilities.into_iter().map(|capability: c_int| capability.unsigned_abs()).collect();
    Ok(Nvrtc { path, version, capabilities, api })
}

/// The file that libnvrtc compiles nothing without.
fn builtins(version: Version) -> String {
    format!("libnvrtc-builtins.so.{version}")
}

/// libnvrtc looks for its companion by name alone when it compiles, and not in its own folder. Whether the companion was
/// there.
fn preload_builtins(nvrtc: &Path, version: Version) -> bool {
    let Some(folder) = nvrtc.canonicalize().ok().and_then(|path| path.parent().map(Path::to_path_buf)) else {
        return false;
    };
    let exact = folder.join(builtins(version));
    for path in std::iter::once(&exact).chain(&libraries(&folder, "libnvrtc-builtins.so")) {
        #[cfg(unix)]
        {
            use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
            // SAFETY: the library runs nothing when it is loaded.
            if let Ok(library) = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
                std::mem::forget(library);
                return *path == exact;
            }
        }
        #[cfg(not(unix))]
        let _ = path;
    }
    false
}

/// Why there is no binary.
pub enum Refusal {
    /// The source's fault.
    Source(String),
    /// Anything else.
    Other(Failure),
}

/// The output of a compilation.
pub struct Compiled {
    pub cubin: Vec<u8>,
    pub log: String,
}

/// Frees a program however the compilation ends.
struct Program<'a>(&'a Api, nvrtcProgram);

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created and is not used any more.
        unsafe { (self.0.nvrtcDestroyProgram)(&mut self.1) };
    }
}

impl Nvrtc {
    /// Itself, or what it lacks. Where its companion is not beside it, the loader may find one: to try is the one way to know.
    fn whole(self) -> Result<Nvrtc, Failure> {
        if preload_builtins(&self.path, self.version) {
            return Ok(self);
        }
        match self.compile("nothing.cu", "", &[], &[]) {
            Err(Refusal::Other(failure @ Failure::NoBuiltins { .. })) => {
                // What has compiled, or tried to, may leave something behind that runs at the thread's end.
                std::mem::forget(self);
                Err(failure)
            }
            _ => Ok(self),
        }
    }

    /// Names of what it compiles for, as `--gpu-architecture` takes them.
    pub fn architectures(&self) -> Vec<String> {
        let plain = self.capabilities.iter().map(|capability| format!("sm_{capability}"));
        // With the instructions that only GPUs of exactly this capability have.
        let own = self.capabilities.iter().filter(|capability| **capability >= 90);
        let mut names: Vec<String> = plain.chain(own.map(|capability| format!("sm_{capability}a"))).collect();
        names.sort_by_cached_key(|name| (name.len(), name.clone()));
        names
    }

    /// Whether it compiles for an architecture, and if not, which of the two is the older one.
    pub fn check(&self, architecture: &str) -> Result<(), Failure> {
        if self.architectures().iter().any(|known| known == architecture) {
            return Ok(());
        }
        let (version, architecture) = (self.version.to_string(), architecture.to_string());
        match capability(&architecture) {
            Some(capability) if self.capabilities.iter().all(|known| *known > capability) => {
                Err(Failure::GpuTooOld { version, architecture })
            }
            _ => Err(Failure::CompilerTooOld { version, architecture }),
        }
    }

    /// Compiles `text`, which messages call `name`, to a binary. May be called by several threads at once.
    pub fn compile(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
        options: &[String],
    ) -> Result<Compiled, Refusal> {
        let string = |text: &str| CString::new(text).map_err(|_| Refusal::Source(format!("{name}: a zero byte")));
        let strings = |texts: &mut dyn Iterator<Item = &str>| texts.map(string).collect::<Result<Vec<_>, _>>();
        let (text, name) = (string(text)?, string(name)?);
        let header_names = strings(&mut headers.iter().map(|(name, _)| *name))?;
        let header_texts = strings(&mut headers.iter().map(|(_, text)| *text))?;
        let options = strings(&mut options.iter().map(String::as_str))?;
        let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<_>>();
        let (header_names, header_texts) = (pointers(&header_names), pointers(&header_texts));
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings end with a zero and outlive the call; there are as many names as texts.
        let status = unsafe {
            (self.api.nvrtcCreateProgram)(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        self.succeed("nvrtcCreateProgram", status)?;
        let program = Program(&self.api, program);
        let option_pointers = pointers(&options);
        // SAFETY: the program exists; the options end with a zero and outlive the call.
        let compiled = unsafe {
            (self.api.nvrtcCompileProgram)(program.1, option_pointers.len() as c_int, option_pointers.as_ptr())
        };
        let log =
            self.bytes("nvrtcGetProgramLog", &program, self.api.nvrtcGetProgramLogSize, self.api.nvrtcGetProgramLog)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_string();
        self.finish(compiled, &log)?;
        let cubin = self.bytes("nvrtcGetCUBIN", &program, self.api.nvrtcGetCUBINSize, self.api.nvrtcGetCUBIN)?;
        Ok(Compiled { cubin, log })
    }

    /// The result of a compilation that ended with `status`.
    fn finish(&self, status: Status, log: &str) -> Result<(), Refusal> {
        const SOURCE: Status = nvrtcResult::NVRTC_ERROR_COMPILATION as Status;
        const BUILTINS: Status = nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE as Status;
        match status {
            SOURCE => Err(Refusal::Source(log.to_string())),
            BUILTINS => {
                Err(Refusal::Other(Failure::NoBuiltins { nvrtc: self.path.clone(), builtins: builtins(self.version) }))
            }
            _ => self.succeed("nvrtcCompileProgram", status).map_err(|refusal| match refusal {
                Refusal::Other(Failure::Driver { call, message }) if !log.is_empty() => {
                    Refusal::Other(Failure::Driver { call, message: format!("{message}: {log}") })
                }
                other => other,
            }),
        }
    }

    /// Asks a program for something, after asking for its size.
    fn bytes(
        &self,
        call: &'static str,
        program: &Program,
        size_of: unsafe extern "C" fn(nvrtcProgram, *mut usize) -> Status,
        get: unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, Refusal> {
        let mut size = 0;
        // SAFETY: the program exists.
        self.succeed(call, unsafe { size_of(program.1, &mut size) })?;
        let mut bytes = vec![0u8; size];
        // SAFETY: there is room for as many bytes as it says.
        self.succeed(call, unsafe { get(program.1, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn succeed(&self, call: &'static str, status: Status) -> Result<(), Refusal> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: the function returns a string of its own for every number.
        let message = unsafe { CStr::from_ptr((self.api.nvrtcGetErrorString)(status)) };
        Err(Refusal::Other(Failure::Driver { call, message: message.to_string_lossy().into_owned() }))
    }
}

/// 90 of `sm_90` and of `sm_90a`.
pub fn capability(architecture: &str) -> Option<u32> {
    architecture.strip_prefix("sm_")?.trim_end_matches(['a', 'f']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "no library").unwrap();
    }

    #[test]
    fn folders_of_pip_conda_and_the_toolkit_are_searched() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let files = [
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "venv/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "conda/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "pyenv/versions/3.13.1/lib/python3.13/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "home/.local/lib/python3.10/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "conda/lib/libnvrtc.so.12",
            "usr/local/cuda/lib64/libnvrtc.so",
            "usr/local/cuda-12.10/lib64/libnvrtc.so.12",
            "usr/local/cuda-12.9/targets/x86_64-linux/lib/libnvrtc.so.12",
            "opt/cuda/lib64/libnvrtc.so.12",
        ];
        files.iter().for_each(|file| touch(&at(file)));
        touch(&at("pyenv/shims/python3"));
        touch(&at("conda/lib/libnvrtc-builtins.so.12.4"));
        let variable = |name: &str| {
            let value = match name {
                "VIRTUAL_ENV" => at("venv"),
                "CONDA_PREFIX" => at("conda"),
                "HOME" => at("home"),
                "PATH" => at("pyenv/shims"),
                _ => return None,
            };
            Some(value.into_os_string())
        };
        let machine = Machine { variable: &variable, root: root.path(), loader: false };
        let folders = machine.folders();
        let found: Vec<PathBuf> = folders
            .iter()
            .flat_map(|pattern| expand(pattern))
            .flat_map(|folder| libraries(&folder, "libnvrtc.so"))
            .collect();
        assert_eq!(found, files.map(at));
        let Err(Failure::NoCompiler { searched }) = find(&machine, None) else { panic!("none of these is a library") };
        assert_eq!(searched, folders);
    }

    #[test]
    fn a_link_to_python_leads_to_its_packages() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().canonicalize().unwrap().join(path);
        touch(&at("store/python/bin/python3"));
        touch(&at("store/python/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13"));
        std::fs::create_dir_all(at("bin")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(at("store/python/bin/python3"), at("bin/python3")).unwrap();
        let variable = |name: &str| (name == "PATH").then(|| at("bin").into_os_string());
        let machine = Machine { variable: &variable, root: root.path(), loader: false };
        let found: Vec<PathBuf> = machine.folders().iter().flat_map(|pattern| expand(pattern)).collect();
        assert_eq!(found, [at("store/python/lib/python3.12/site-packages/nvidia/cu13/lib")]);
    }

    #[test]
    fn a_named_compiler_is_used_or_refused_and_nothing_else_tried() {
        let root = tempfile::tempdir().unwrap();
        touch(&root.path().join("text/libnvrtc.so.13"));
        std::fs::create_dir_all(root.path().join("empty")).unwrap();
        for (named, says) in
            [("nowhere", "no such file or folder"), ("empty", "no libnvrtc.so"), ("text", "libnvrtc.so.13")]
        {
            let named = root.path().join(named);
            let variable = |name: &str| (name == "MEDMERGE_NVRTC").then(|| named.clone().into_os_string());
            let machine = Machine { variable: &variable, root: Path::new("/"), loader: true };
            let Err(Failure::BadCompiler { path, reason }) = find(&machine, None) else { panic!("{named:?} was used") };
            assert_eq!(path, named);
            assert!(reason.contains(says), "{reason}");
        }
    }

    #[test]
    fn architectures_have_capabilities() {
        assert_eq!(
            ["sm_80", "sm_90a", "sm_100f", "sm_", "gfx90a", "sm_9x"].map(capability),
            [Some(80), Some(90), Some(100), None, None, None]
        );
    }
}
