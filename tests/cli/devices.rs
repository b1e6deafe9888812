//! `devices` and `kernels`, on machines with and without the libraries that they look for.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::{Folder, Run, refusal_problems};

/// Runs with variables set, and the cache of kernels in the folder.
fn run(folder: &Folder, arguments: &str, variables: &[(&str, &Path)]) -> Run {
    let mut command = folder.command(arguments);
    command.env("XDG_CACHE_HOME", folder.path("cache")).envs(variables.iter().copied());
    Run::from(command.output().unwrap())
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
    folder.write("text.so", "no library");
    std::fs::create_dir(folder.path("empty")).unwrap();
    for (named, says) in
        [("nowhere", "no such file or folder"), ("text.so", "text.so"), ("empty", "the folder holds no libnvrtc.so")]
    {
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
    let first = json(&run(&folder, "kernels --arch sm_80 --cubin out --json", &[]));
    let modules = first["modules"].as_array().unwrap();
    assert_eq!(first["architecture"], "sm_80");
    assert!(modules.iter().all(|module| module["cached"] == false));
    let files = std::fs::read_dir(folder.path("out")).unwrap().count();
    assert_eq!(files, modules.len());
    assert!(folder.bytes("out/convert_bf16.sm_80.cubin").starts_with(b"\x7fELF"));

    assert_refusal(&run(&folder, "kernels --arch sm_80 --cubin out", &[]), &["out already exists", "--force"]);
    let again = run(&folder, "kernels --arch sm_80 --cubin out --force", &[]);
    assert_eq!((again.code, again.stderr.as_str()), (Some(0), ""));
    assert!(
        again.stdout.contains("  fill_bf16 ") && again.stdout.contains("convert.cu, f32: cached"),
        "{}",
        again.stdout
    );
    assert!(!again.stdout.contains(": compiled"), "{}", again.stdout);
}

#[test]
fn programs_that_start_at_once_share_a_cache() {
    let folder = Folder::new();
    let start = || {
        let mut command = folder.command("kernels --arch sm_89 --json");
        command.env("XDG_CACHE_HOME", folder.path("cache"));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = (0..3).map(|_| start()).collect();
    let outputs: Vec<Output> = running.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let mut facts = outputs.into_iter().map(|output| {
        let result = json(&Run::from(output));
        result["modules"].as_array().unwrap().iter().map(|module| module["kernels"].clone()).collect::<Vec<_>>()
    });
    let first = facts.next().unwrap();
    assert!(facts.all(|others| others == first));
    let last = json(&run(&folder, "kernels --arch sm_89 --json", &[]));
    assert!(last["modules"].as_array().unwrap().iter().all(|module| module["cached"] == true), "{last:#}");
    assert_eq!(folder.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_cache_that_cannot_be_written_costs_time_alone() {
    let folder = Folder::new();
    folder.write("file", "");
    for _ in 0..2 {
        let kernels = json(&run(&folder, "kernels --arch sm_80 --json", &[("XDG_CACHE_HOME", &folder.path("file"))]));
        assert!(kernels["modules"].as_array().unwrap().iter().all(|module| module["cached"] == false));
    }
}
