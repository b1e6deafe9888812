//! `devices` and `kernels`, on machines with and without the libraries that they look for.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::binaries;
use crate::support::{Folder, Run, refusal_problems, scores};

/// Runs with variables set, and the cache of kernels in the folder.
fn run(folder: &Folder, arguments: &str, variables: &[(&str, &Path)]) -> Run {
    let mut command = folder.command(arguments);
    command.env("XDG_CACHE_HOME", folder.path("cache")).envs(variables.iter().copied());
    Run::from(command.output().unwrap())
}

/// Fills the folder's cache with all kernels but those of `convert.cu`.
fn almost_fill_cache(folder: &Folder) {
    let turn = binaries::turn("sm_80");
    let filled = run(&Folder::new(), "kernels --arch sm_80", &[("XDG_CACHE_HOME", &binaries::home())]);
    assert_eq!(filled.code, Some(0), "{}", filled.stderr);
    drop(turn);
    let mine = folder.path("cache/medmerge");
    std::fs::create_dir_all(&mine).unwrap();
    for entry in std::fs::read_dir(binaries::folder()).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with("convert_") && !name.starts_with('.') && name.contains("-sm_80-") {
            std::fs::copy(entry.path(), mine.join(name)).unwrap();
        }
    }
}

/// Which modules were taken from the cache.
fn cached(result: &Value) -> Vec<(&str, bool)> {
    let modules = result["modules"].as_array().unwrap();
    modules.iter().map(|one| (one["file"].as_str().unwrap(), one["cached"].as_bool().unwrap())).collect()
}

#[track_caller]
fn json(run: &Run) -> Value {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

#[track_caller]
fn assert_refusal(run: &Run, says: &[&str]) {
    assert_eq!(refusal_problems(run), Vec::<String>::new(), "{}", run.stderr);
    says.iter().for_each(|text| assert!(run.stderr.contains(text), "does not say '{text}':\n{}", run.stderr));
}

#[test]
fn devices_without_a_driver_say_so() {
    let folder = Folder::new();
    let devices = json(&run(&folder, "devices --json", &[]));
    if devices["cuda"]["driver"]["path"].is_string() {
        println!("not run: this machine has a driver");
        return;
    }
    let text = run(&folder, "devices", &[]).stdout;
    for says in ["libcuda, the NVIDIA driver's library, was not found", "hint: install NVIDIA's driver", "takes cpu"] {
        assert!(text.contains(says), "does not say '{says}':\n{text}");
    }
    assert_eq!(devices["auto"], "cpu");
    assert_eq!(devices["cuda"]["available"], false);
    assert!(devices["cuda"]["reason"].as_str().unwrap().contains("libcuda"));
    assert_eq!(devices["cuda"]["gpus"], Value::Array(Vec::new()));
    assert_eq!(devices["emulator"]["available"], cfg!(feature = "emulator"));
}

#[test]
fn a_compiler_that_is_none_is_refused() {
    let folder = Folder::new();
    folder.write("text.so", "This is a text file, and long enough for the header of a library. ".repeat(9));
    std::fs::create_dir(folder.path("empty")).unwrap();
    for (named, says) in [
        ("nowhere", "no such file or folder"),
        ("text.so", "text.so: invalid ELF header"),
        ("empty", "the folder holds no libnvrtc.so"),
    ] {
        let named = folder.path(named);
        let variables = [("MEDMERGE_NVRTC", named.as_path())];
        assert_refusal(&run(&folder, "kernels", &variables), &["MEDMERGE_NVRTC names", says, "leave the variable out"]);
        let devices = json(&run(&folder, "devices --json", &variables));
        assert!(devices["cuda"]["compiler"]["reason"].as_str().unwrap().contains(says), "{devices:#}");
    }
}

#[test]
fn architectures_that_are_none_are_refused() {
    let folder = Folder::new();
    for (named, says) in [
        ("nonsense", &["unknown architecture 'nonsense'", "known: ", "sm_90a"][..]),
        ("sm_90b", &["unknown architecture 'sm_90b'", "did you mean 'sm_90"]),
        ("sm_91", &["unknown architecture 'sm_91'", "did you mean 'sm_"]),
        ("sm_999", &["cannot compile for sm_999", "newer libnvrtc"]),
        ("sm_20", &["no longer compiles for sm_20"]),
    ] {
        assert_refusal(&run(&folder, &format!("kernels --arch {named} --cubin new"), &[]), says);
    }
    assert!(!folder.path("new").exists());
    assert_refusal(&run(&folder, "kernels --force", &[]), &["--cubin"]);
}

#[test]
fn kernels_are_shown_written_and_found_again() {
    let folder = Folder::new();
    almost_fill_cache(&folder);
    let first = json(&run(&folder, "kernels --arch sm_80 --cubin out --json", &[]));
    assert_eq!(first["architecture"], "sm_80");
    for (file, is_cached) in cached(&first) {
        assert_eq!(is_cached, file != "kernels/convert.cu", "{file}");
    }
    assert_eq!(std::fs::read_dir(folder.path("out")).unwrap().count(), cached(&first).len());
    assert!(folder.bytes("out/convert_bf16.sm_80.cubin").starts_with(b"\x7fELF"));

    assert_refusal(&run(&folder, "kernels --arch sm_80 --cubin out", &[]), &["out already exists", "--force"]);
    let again = run(&folder, "kernels --arch sm_80 --cubin out --force", &[]);
    assert_eq!((again.code, again.stderr.as_str()), (Some(0), ""));
    for says in ["  fill_bf16 ", "convert.cu, f32: cached"] {
        assert!(again.stdout.contains(says), "does not say '{says}':\n{}", again.stdout);
    }
    assert!(!again.stdout.contains(": compiled"), "{}", again.stdout);
}

#[test]
fn programs_that_start_at_once_share_a_cache() {
    let folder = Folder::new();
    almost_fill_cache(&folder);
    let start = || {
        let mut command = folder.command("kernels --arch sm_80 --json");
        command.env("XDG_CACHE_HOME", folder.path("cache"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = (0..4).map(|_| start()).collect();
    let outputs: Vec<Output> = running.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let results: Vec<Value> = outputs.into_iter().map(|output| json(&Run::from(output))).collect();
    let facts = |result: &Value| -> Vec<Value> {
        result["modules"].as_array().unwrap().iter().map(|module| module["kernels"].clone()).collect()
    };
    assert!(results.iter().all(|result| facts(result) == facts(&results[0])));
    let last = json(&run(&folder, "kernels --arch sm_80 --json", &[]));
    assert!(cached(&last).iter().all(|(_, is_cached)| *is_cached), "{last:#}");
    assert_eq!(folder.leftovers(), Vec::<PathBuf>::new());
}

/// As when it was copied, or packed, without the library that it opens when it compiles.
#[test]
fn a_compiler_without_its_companion_is_refused() {
    let folder = Folder::new();
    let compiler = json(&run(&folder, "devices --json", &[]))["cuda"]["compiler"].clone();
    let Some(whole) = compiler["path"].as_str().map(Path::new) else {
        println!("not run: this machine has no libnvrtc");
        return;
    };
    let builtins = format!("libnvrtc-builtins.so.{}", compiler["version"].as_str().unwrap());
    // SAFETY: the library runs nothing when it is loaded.
    if unsafe { libloading::Library::new(&builtins) }.is_ok() {
        println!("not run: the loader finds {builtins} wherever libnvrtc lies");
        return;
    }
    // A link would lead to the companion.
    let alone = folder.path("alone.so");
    std::fs::copy(whole, &alone).unwrap();
    let says = format!("libnvrtc cannot compile: {builtins} is missing or broken beside {}", alone.display());
    let named = [("MEDMERGE_NVRTC", alone.as_path())];
    assert_refusal(&run(&folder, "kernels --arch sm_80", &named), &[&says, "hint: install the whole package again"]);
    let compiler = &json(&run(&folder, "devices --json", &named))["cuda"]["compiler"];
    assert_eq!(compiler["reason"], says);
    // Where none is named, another one is taken.
    let packages = "lib/python3.12/site-packages/nvidia/cu13/lib";
    let (first, second) = (folder.path("venv").join(packages), folder.path("home/.local").join(packages));
    [&first, &second].iter().for_each(|packages| std::fs::create_dir_all(packages).unwrap());
    std::fs::hard_link(&alone, first.join("libnvrtc.so.13")).unwrap();
    std::os::unix::fs::symlink(whole.canonicalize().unwrap(), second.join("libnvrtc.so.13")).unwrap();
    let (venv, home) = (folder.path("venv"), folder.path("home"));
    let variables = [("MEDMERGE_NVRTC", Path::new("")), ("VIRTUAL_ENV", &venv), ("HOME", &home)];
    let compiler = &json(&run(&folder, "devices --json", &variables))["cuda"]["compiler"];
    let path = compiler["path"].as_str().unwrap_or_else(|| panic!("{compiler:#}"));
    assert!(!Path::new(path).starts_with(&venv), "{path}");
    // With the companion, however broken, beside it.
    folder.write(&builtins, "This is a text file. ".repeat(99));
    assert_refusal(&run(&folder, "kernels --arch sm_80", &named), &[&says]);
    std::fs::copy(whole.canonicalize().unwrap().with_file_name(&builtins), folder.path(&builtins)).unwrap();
    let compiler = &json(&run(&folder, "devices --json", &named))["cuda"]["compiler"];
    assert_eq!(compiler["path"].as_str().map(Path::new), Some(&*alone), "{compiler:#}");
}

/// By --isa or by the environment; the network sees the same, but for what rounding leaves.
#[test]
fn an_instruction_set_is_chosen() {
    let folder = Folder::with_sources();
    let chosen = |arguments: &str, variables: &[(&str, &Path)]| {
        let devices = json(&run(&folder, &format!("devices --json {arguments}"), variables));
        devices["cpu"]["instructions"].as_str().unwrap().to_string()
    };
    let portable = [("MEDMERGE_ISA", Path::new("portable"))];
    let widest = chosen("", &[]);
    assert_eq!(chosen("--isa portable", &[]), "portable");
    assert_eq!(chosen("", &portable), "portable");
    assert_eq!(chosen(&format!("--isa {widest}"), &portable), widest);
    assert_refusal(&run(&folder, "devices --isa mmx", &[]), &["instruction set", "mmx", "portable"]);
    let elsewhere = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    assert_refusal(
        &run(&folder, &format!("devices --isa {elsewhere}"), &[]),
        &["this processor has no", elsewhere, "portable"],
    );

    let predict = |arguments: &str, to: &str| {
        let predict = format!("predict --model texture.safetensors --data data/texture.npz --out {to} {arguments}");
        folder.done(&predict);
        scores(&folder.text(to)).concat()
    };
    let (expected, found) = (predict("", "widest.csv"), predict("--isa portable", "portable.csv"));
    assert!(!expected.is_empty() && expected.len() == found.len());
    let farthest = expected.iter().zip(&found).map(|(expected, found)| (expected - found).abs()).fold(0.0, f32::max);
    assert!(farthest < 1e-4, "{farthest}");
}
