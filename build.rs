//! Embeds the sources of the GPU kernels, so that the program can compile them where it runs; with the feature
//! `emulator`, also compiles them for the host, once per storage type of activations.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The types that activations are stored as: the name in symbols, and the macro that chooses it.
const STORAGE: [(&str, &str); 4] =
    [("f32", "STORAGE_F32"), ("tf32", "STORAGE_TF32"), ("bf16", "STORAGE_BF16"), ("f16", "STORAGE_F16")];

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels")
        .expect("the folder kernels/ belongs to the crate")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"))
        .collect();
    sources.sort();
    let mut table = String::from("&[\n");
    for path in &sources {
        let name = path.file_name().expect("a file has a name").to_string_lossy();
        let path = path.canonicalize().expect("a file that was just listed");
        writeln!(table, "    ({name:?}, include_str!({path:?})),").expect("writing to a string");
    }
    table.push_str("]\n");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("kernels.rs"), table).expect("OUT_DIR can be written to");
    std::fs::write(Path::new(&out).join("modules.rs"), modules(&sources)).expect("OUT_DIR can be written to");
    #[cfg(feature = "emulator")]
    emulator::build(&sources, Path::new(&out));
}

fn is_kernels(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "cu")
}

/// What the first line of a file of kernels says: the storage types that it is compiled for, a module each, and the
/// architectures, if these are not all.
///
/// ```text
/// // modules: f32 bf16 f16
/// // modules: bf16 f16 for sm_90a
/// ```
struct Declared {
    storage: Vec<String>,
    architectures: Vec<String>,
}

impl Declared {
    fn of(path: &Path) -> Declared {
        let text = std::fs::read_to_string(path).expect("a file that was just listed");
        let line = text.lines().next().and_then(|line| line.strip_prefix("// modules: "));
        let line = line.unwrap_or_else(|| panic!("{}: the first line does not say which modules", path.display()));
        let (storage, architectures) = line.split_once(" for ").unwrap_or((line, ""));
        let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        let declared = Declared { storage: words(storage), architectures: words(architectures) };
        let unknown = declared.storage.iter().find(|word| STORAGE.iter().all(|(name, _)| name != word));
        if let Some(word) = unknown.or(declared.storage.is_empty().then_some(&line.to_string())) {
            panic!("{}: '{word}' is no storage type", path.display());
        }
        declared
    }
}

/// A line of Rust for each file of kernels.
fn modules(sources: &[PathBuf]) -> String {
    let mut table = String::from("&[\n");
    for path in sources.iter().filter(|path| is_kernels(path)) {
        let Declared { storage, architectures } = Declared::of(path);
        let name = path.file_stem().expect("a file has a name").to_string_lossy();
        let storage: Vec<String> = storage.iter().map(|name| format!("DType::{}", name.to_uppercase())).collect();
        let storage = storage.join(", ");
        writeln!(table, "    Modules {{ file: {name:?}, storage: &[{storage}], architectures: &{architectures:?} }},")
            .expect("writing to a string");
    }
    table.push_str("]\n");
    table
}

#[cfg(feature = "emulator")]
mod emulator {
    use super::*;

    /// The names in `KERNEL(name, Parameters, THREADS)`.
    fn entry_points(source: &str) -> Vec<&str> {
        let names = source.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next());
        names.map(str::trim).collect()
    }

    /// Whether `cargo clippy` runs this, which links nothing; it keeps what it makes apart from what a build makes.
    fn is_linted() -> bool {
        std::env::var("RUSTC_WORKSPACE_WRAPPER").is_ok_and(|wrapper| wrapper.contains("clippy"))
    }

    pub fn build(sources: &[PathBuf], out: &Path) {
        let (mut externs, mut table) = (String::new(), String::new());
        for (storage, macro_name) in STORAGE {
            let folder = out.join(storage);
            std::fs::create_dir_all(&folder).expect("OUT_DIR can be written to");
            let mut build = cc::Build::new();
            build.cpp(true).std("c++17").opt_level(2).warnings(true).extra_warnings(true).out_dir(&folder);
            // Each operation rounds, as without fused multiply-add: the host's contraction is not the GPU's either.
            for flag in [
                "-xc++",
                "-ffp-contract=off",
                "-fno-exceptions",
                "-fno-rtti",
                "-fstack-clash-protection",
                // Every access to shared memory asks for the thread that makes it: in a program, that is no call.
                "-ftls-model=initial-exec",
                "-Wno-unknown-pragmas",
                "-Wno-unused-function",
            ] {
                build.flag(flag);
            }
            build.define("MEDMERGE_EMULATOR", None).define(macro_name, None).include("kernels");
            for path in sources.iter().filter(|path| is_kernels(path)) {
                let source = std::fs::read_to_string(path).expect("a file that was just listed");
                if !Declared::of(path).storage.iter().any(|name| name == storage) {
                    continue;
                }
                // A namespace each: what several files, or one file for several types, call by one name would otherwise be
                // one thing to the linker.
                let name = path.file_stem().expect("a file has a name").to_string_lossy();
                let wrapped = folder.join(format!("{name}.cpp"));
                let text = format!(
                    "#include \"emulator/emulator.h\"\nnamespace {name}_{storage} {{\n#include \"{name}.cu\"\n}}\n"
                );
                std::fs::write(&wrapped, text).expect("OUT_DIR can be written to");
                build.file(&wrapped);
                for name in entry_points(&source) {
                    writeln!(
                        externs,
                        "    fn {name}_{storage}(parameters: *const c_void, slot: *const *const Context);\n    \
                         static {name}_size_{storage}: u32;\n    static {name}_threads_{storage}: u32;"
                    )
                    .expect("writing to a string");
                    writeln!(
                        table,
                        "    EntryPoint {{ symbol: \"{name}_{storage}\", run: {name}_{storage}, \
                         size: unsafe {{ &{name}_size_{storage} }}, threads: unsafe {{ &{name}_threads_{storage} }} }},"
                    )
                    .expect("writing to a string");
                }
            }
            if !is_linted() {
                build.compile(&format!("kernels_{storage}"));
            }
        }
        let text = format!("unsafe extern \"C\" {{\n{externs}}}\n\nstatic ENTRIES: &[EntryPoint] = &[\n{table}];\n");
        std::fs::write(out.join("entries.rs"), text).expect("OUT_DIR can be written to");
    }
}
