//! Arrows go down only: which part of the source may name which.

use std::path::{Path, PathBuf};

/// All source files under `path`, without their tests.
fn sources(path: &str) -> Vec<(PathBuf, String)> {
    fn collect(path: &Path, to: &mut Vec<PathBuf>) {
        if path.is_dir() {
            let mut entries: Vec<PathBuf> = path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            entries.iter().for_each(|entry| collect(entry, to));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            to.push(path.to_path_buf());
        }
    }
    let mut files = Vec::new();
    collect(Path::new(path), &mut files);
    assert!(!files.is_empty(), "{path} is not there");
    let without_tests = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let end = text.find("#[cfg(test)]\nmod").into_iter().chain(text.find("#[cfg(all(test")).min();
        let code = text[..end.unwrap_or(text.len())].lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n");
        (path, code)
    };
    files.into_iter().map(without_tests).collect()
}

/// A part of the source, and what it may not name.
const ARROWS: [(&str, &[&str]); 13] = [
    ("src/dtype.rs", &["crate::"]),
    ("src/numbers.rs", &["crate::tensor", "crate::gpu", "crate::ops", "crate::selftest"]),
    ("src/gpu", &["crate::tensor", "crate::ops", "crate::tape", "crate::nn", "crate::train", "crate::data"]),
    ("src/tensor", &["crate::ops", "crate::tape", "crate::nn", "crate::merge", "crate::train", "crate::data"]),
    ("src/tape.rs", &["crate::ops", "crate::nn", "crate::merge", "crate::train", "crate::data"]),
    ("src/ops", &["crate::nn", "crate::merge", "crate::train", "crate::data", "crate::checkpoint", "crate::jobs"]),
    ("src/nn", &["crate::checkpoint", "crate::data", "crate::merge", "crate::train", "safetensors", "\"medmerge."]),
    ("src/data", &["crate::nn", "crate::merge", "crate::train", "crate::checkpoint", "crate::tensor", "crate::gpu"]),
    ("src/merge", &["crate::gpu", "Device", "crate::train", "crate::jobs", "crate::report"]),
    ("src/checkpoint", &["crate::gpu", "crate::train", "crate::merge", "crate::jobs"]),
    ("src/train", &["crate::jobs", "crate::report", "crate::bench"]),
    ("src/jobs", &["crate::tape", "crate::bench", "indicatif", "clap"]),
    ("src/commands", &["medmerge::tape", "medmerge::ops::merge", "medmerge::ops::optimizer"]),
];

/// What computes: commands may name none of it.
const COMPUTES: [&str; 11] = [
    "Model::",
    "Sources::",
    "Tape::",
    ".forward(",
    " train(",
    " learn(",
    " evaluate(",
    ".fold(&",
    "fold_by(",
    "reestimate",
    ".blend(",
];

#[test]
fn arrows_go_down_only() {
    let mut wrong = Vec::new();
    for (part, forbidden) in ARROWS {
        for (path, code) in sources(part) {
            let named = forbidden.iter().filter(|name| code.contains(*name));
            wrong.extend(named.map(|name| format!("{} names {name}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_turn_flags_into_jobs_and_print() {
    let mut wrong = Vec::new();
    for (path, code) in sources("src/commands") {
        let named = COMPUTES.iter().filter(|name| code.contains(*name));
        wrong.extend(named.map(|name| format!("{} names {name}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Each of them stands somewhere in the jobs and what they call: the names are not out of date.
    let library: String = ["src/jobs", "src/train"].into_iter().flat_map(sources).map(|(_, code)| code).collect();
    for name in COMPUTES {
        assert!(library.contains(name), "{name} is nowhere");
    }
}

#[test]
fn unsafe_code_stands_where_it_is_looked_for() {
    let allowed = [
        "src/gpu/",
        "src/ops/gemm.rs",
        "src/ops/simd.rs",
        "src/ops/conv2d/cpu/",
        "src/tensor/arena.rs",
        "src/allocator.rs",
        "src/main.rs",
    ];
    for (path, code) in sources("src") {
        let place = path.display().to_string();
        let launches = place.starts_with("src/ops/") && code.contains("gpu.launch(") || code.contains("self.launch(");
        let may = launches || allowed.iter().any(|part| place.starts_with(part));
        assert!(may || !code.contains("unsafe {"), "{place} has unsafe code");
    }
}

/// The check above sees what stands there, also where several names share one `use`.
#[test]
fn uses_are_written_one_module_a_line() {
    for (path, code) in sources("src") {
        assert!(!code.contains("use crate::{"), "{}: a use that hides which module it names", path.display());
    }
}
