//! Which libcuda is taken, and what is said of those that are none. On a machine with a driver some of this is not run:
//! there the search ends at the driver's own library.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use medmerge::gpu::Failure;
use medmerge::gpu::libcuda::{self, Libcuda};
use medmerge::gpu::library::Machine;
use serde_json::Value;
use tempfile::TempDir;

use crate::{build, program_in, stand_in};

/// The toolkit's, in which every function is so. It calls itself `libcuda.so.1`, as the driver's does.
const STUB: &str = "int cuDriverGetVersion(int *version) { return 34; }\nint cuInit(unsigned flags) { return 34; }\n";

/// A folder with a library of this source, under this name.
fn library(name: &str, source: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("source.c");
    std::fs::write(&text, source).unwrap();
    build(&text, &folder.path().join(name));
    folder
}

/// What `devices` says of the driver.
#[track_caller]
fn driver(folders: &[&Path], variables: &[(&str, &str)]) -> Value {
    let (code, stdout, stderr) = program_in(folders, "devices --json", variables);
    assert_eq!(code, Some(0), "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    found["cuda"]["driver"].clone()
}

fn is_without_a_driver() -> bool {
    let is_without = driver(&[], &[])["path"].is_null();
    if !is_without {
        println!("not run: this machine has a driver");
    }
    is_without
}

/// What asking for a GPU ends with, in one line and a hint.
#[track_caller]
fn assert_refusal(folders: &[&Path], variables: &[(&str, &str)], says: &[&str]) {
    let (code, stdout, stderr) = program_in(folders, "selftest --device cuda", variables);
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    says.iter().for_each(|text| assert!(stderr.contains(text), "does not say '{text}':\n{stderr}"));
}

#[test]
fn the_drivers_library_is_taken_before_the_toolkits_stub() {
    let stubs = library("libcuda.so", STUB);
    // Not that it would be passed over: the plain name is not asked for first.
    let links = tempfile::tempdir().unwrap();
    symlink(stand_in().join("libcuda.so.1"), links.path().join("libcuda.so")).unwrap();
    for before in [&stubs, &links] {
        let found = driver(&[before.path(), stand_in()], &[]);
        assert_eq!(found["path"].as_str().map(Path::new), Some(&*stand_in().join("libcuda.so.1")), "{found:#}");
    }
}

/// As in images that link the stub to the driver's name in order to start without one.
#[test]
fn a_stub_under_the_drivers_name_is_passed_over() {
    if !is_without_a_driver() {
        return;
    }
    let stubs = library("libcuda.so.1", STUB);
    let links = tempfile::tempdir().unwrap();
    symlink(stand_in().join("libcuda.so.1"), links.path().join("libcuda.so")).unwrap();
    let found = driver(&[stubs.path(), links.path()], &[]);
    assert_eq!(found["path"].as_str().map(Path::new), Some(&*links.path().join("libcuda.so")), "{found:#}");
}

#[test]
fn a_stub_and_nothing_else_is_named() {
    if !is_without_a_driver() {
        return;
    }
    for name in ["libcuda.so", "libcuda.so.1"] {
        let stubs = library(name, STUB);
        let says = format!("{} is not the NVIDIA driver's library", stubs.path().join(name).display());
        assert_refusal(&[stubs.path()], &[], &[&says, "the CUDA toolkit's stub", "hint: take", "LD_LIBRARY_PATH"]);
        let found = driver(&[stubs.path()], &[]);
        assert!(found["reason"].as_str().unwrap().contains("stub"), "{found:#}");
        assert!(found["hint"].as_str().unwrap().contains("LD_LIBRARY_PATH"), "{found:#}");
    }
    // One that has a version.
    assert_refusal(&[stand_in()], &[("FAKE_CUDA_INIT", "34")], &["the CUDA toolkit's stub"]);
}

#[test]
fn what_lacks_a_function_or_is_no_library_is_said_to() {
    if !is_without_a_driver() {
        return;
    }
    let half = library("libcuda.so.1", "int cuDriverGetVersion(int *version) { return *version = 12040, 0; }\n");
    let says = ["the NVIDIA driver's library, cannot be used", "undefined symbol: cuInit", "hint: update or reinstall"];
    assert_refusal(&[half.path()], &[], &says);
    let text = tempfile::tempdir().unwrap();
    std::fs::write(text.path().join("libcuda.so.1"), "This is a text file. ".repeat(99)).unwrap();
    assert_refusal(&[text.path()], &[], &["was not found", "hint: install NVIDIA's driver"]);
    let found = driver(&[text.path()], &[]);
    assert!(found["tried"].to_string().contains("libcuda.so.1: invalid ELF header"), "{found:#}");
}

/// A later driver's, that is in no list of today.
#[test]
fn a_code_that_nobody_knows_is_shown_as_a_number() {
    let found = driver(&[stand_in()], &[("FAKE_CUDA_INIT", "54321")]);
    assert_eq!(found["reason"], "cuInit failed: error 54321, which the driver has no name for");
}

/// Looks under `root` alone.
fn find(root: &Path) -> Result<Libcuda, Failure> {
    libcuda::find(&Machine { variable: &|_| None, root, loader: false })
}

#[test]
fn folders_of_drivers_are_searched_and_a_stub_there_is_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let put = |folder: &str, file: &Path| -> PathBuf {
        let folder = root.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        symlink(file, folder.join("libcuda.so.1")).unwrap();
        folder.join("libcuda.so.1")
    };
    let stub = library("libcuda.so.1", STUB);
    assert!(matches!(find(root.path()), Err(Failure::NoDriver { tried }) if tried.is_empty()));
    let first = put("usr/lib64", &stub.path().join("libcuda.so.1"));
    assert!(matches!(find(root.path()), Err(Failure::DriverStub { path }) if path == first));
    let behind = put("usr/local/nvidia/lib64", &stand_in().join("libcuda.so.1"));
    assert_eq!(found(root.path()), behind);
    let before = put("usr/lib/x86_64-linux-gnu", &stand_in().join("libcuda.so.1"));
    assert_eq!(found(root.path()), before);
    let of_wsl = put("usr/lib/wsl/lib", &stand_in().join("libcuda.so.1"));
    assert_eq!(found(root.path()), of_wsl);
}

#[track_caller]
fn found(root: &Path) -> PathBuf {
    find(root).unwrap_or_else(|failure| panic!("{failure}")).path
}
