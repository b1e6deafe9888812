//! `devices`.

use serde_json::{Value, json};

use medmerge::error::Result;
use medmerge::gpu::{self, Description, Failure, Found, Library};

use super::report;
use crate::cli::Global;

pub fn run(global: &Global) -> Result<()> {
    let probe = gpu::probe();
    let first = probe.first();
    let auto = first.as_ref().map_or("cpu".to_string(), |index| format!("cuda:{index}"));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = rayon::current_num_threads();
    let has_emulator = cfg!(feature = "emulator");
    let result = json!({
        "auto": auto,
        "cpu": {"available": true, "cores": cores, "threads": threads, "instructions": instructions()},
        "cuda": {
            "available": first.is_ok(),
            "reason": reason(&first),
            "driver": library_json(&probe.driver),
            "compiler": library_json(&probe.compiler),
            "gpus": probe.gpus.iter().enumerate().map(gpu_json).collect::<Vec<_>>(),
        },
        "emulator": {
            "available": has_emulator,
            "reason": (!has_emulator).then(|| Failure::NoEmulator.to_string()),
            "hint": (!has_emulator).then(|| Failure::NoEmulator.hint()),
        },
    });
    report(global, &result, || {
        line("cpu", format_args!("available: {cores} cores, {threads} threads, {}", instructions()));
        match &first {
            Ok(index) => line("cuda", format_args!("available: cuda:{index} is the first")),
            Err(failure) => line("cuda", format_args!("not available: {failure}")),
        }
        library_lines("driver", &probe.driver);
        library_lines("compiler", &probe.compiler);
        probe.gpus.iter().enumerate().for_each(gpu_lines);
        if has_emulator {
            line("emulator", format_args!("available"));
        } else {
            line("emulator", format_args!("not available: {}", Failure::NoEmulator));
            line("", format_args!("  hint: {}", Failure::NoEmulator.hint()));
        }
        line("auto", format_args!("takes {auto}"));
    });
    Ok(())
}

fn line(name: &str, text: std::fmt::Arguments) {
    println!("{name:<10}{text}");
}

fn reason<T>(result: &Result<T, Failure>) -> Option<String> {
    result.as_ref().err().map(Failure::to_string)
}

fn library_json(library: &Result<Library, Failure>) -> Value {
    match library {
        Ok(library) => json!({"path": library.path, "version": library.version.to_string()}),
        Err(failure @ Failure::NoCompiler { searched }) => {
            json!({"reason": failure.to_string(), "hint": failure.hint(), "searched": searched})
        }
        Err(failure @ Failure::NoDriver { tried }) => {
            json!({"reason": failure.to_string(), "hint": failure.hint(), "tried": tried})
        }
        Err(failure) => json!({"reason": failure.to_string(), "hint": failure.hint()}),
    }
}

fn library_lines(name: &str, library: &Result<Library, Failure>) {
    match library {
        Ok(Library { path, version }) => {
            line("", format_args!("{name}: {}, CUDA {version}", path.display()));
        }
        Err(failure) => {
            line("", format_args!("{name}: {failure}"));
            line("", format_args!("  hint: {}", failure.hint()));
            let places: Vec<String> = match failure {
                Failure::NoDriver { tried } => tried.clone(),
                Failure::NoCompiler { searched } => searched.iter().map(|place| place.display().to_string()).collect(),
                _ => Vec::new(),
            };
            if !places.is_empty() {
                line("", format_args!("  looked for:"));
                places.iter().for_each(|place| line("", format_args!("    {place}")));
            }
        }
    }
}

fn gpu_json((index, gpu): (usize, &Found)) -> Value {
    let Description { name, architecture, multiprocessors, memory } = &gpu.description;
    json!({
        "device": format!("cuda:{index}"),
        "name": name,
        "architecture": architecture,
        "multiprocessors": multiprocessors,
        "memory_bytes": memory,
        "available": gpu.usable.is_ok(),
        "reason": reason(&gpu.usable),
    })
}

fn gpu_lines((index, gpu): (usize, &Found)) {
    let Description { name, architecture, multiprocessors, memory } = &gpu.description;
    let gib = *memory as f64 / (1u64 << 30) as f64;
    line("", format_args!("cuda:{index}: {name}, {architecture}, {gib:.1} GiB, {multiprocessors} multiprocessors"));
    if let Err(failure) = &gpu.usable {
        line("", format_args!("  not available: {failure}"));
        line("", format_args!("  hint: {}", failure.hint()));
    }
}

/// The widest vector instructions that the ops will use.
pub fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "AVX2";
        }
        "SSE2"
    }
    #[cfg(not(target_arch = "x86_64"))]
    "the compiler's baseline"
}
