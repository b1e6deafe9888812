//! `devices`.

use std::io::{self, Write};

use serde_json::{Value, json};

use medmerge::error::Result;
use medmerge::gpu::{self, Description, Failure, Found, Library};
use medmerge::ops::simd::Isa;
use medmerge::output::shown;

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
        "cpu": {"available": true, "cores": cores, "threads": threads, "instructions": Isa::chosen().to_string()},
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
    report(global, &result, |out| {
        line(out, "cpu", format_args!("available: {cores} cores, {threads} threads, {}", Isa::chosen()))?;
        match &first {
            Ok(index) => line(out, "cuda", format_args!("available: cuda:{index} is the first"))?,
            Err(failure) => line(out, "cuda", format_args!("not available: {failure}"))?,
        }
        library_lines(out, "driver", &probe.driver)?;
        library_lines(out, "compiler", &probe.compiler)?;
        probe.gpus.iter().enumerate().try_for_each(|gpu| gpu_lines(out, gpu))?;
        if has_emulator {
            line(out, "emulator", format_args!("available"))?;
        } else {
            line(out, "emulator", format_args!("not available: {}", Failure::NoEmulator))?;
            line(out, "", format_args!("  hint: {}", Failure::NoEmulator.hint()))?;
        }
        line(out, "auto", format_args!("takes {auto}"))
    })
}

fn line(out: &mut dyn Write, name: &str, text: std::fmt::Arguments) -> io::Result<()> {
    writeln!(out, "{name:<10}{text}")
}

fn reason<T>(result: &Result<T, Failure>) -> Option<String> {
    result.as_ref().err().map(Failure::to_string)
}

fn library_json(library: &Result<Library, Failure>) -> Value {
    match library {
        Ok(library) => json!({"path": shown(&library.path), "version": library.version.to_string()}),
        Err(failure @ Failure::NoCompiler { searched }) => {
            let searched: Vec<String> = searched.iter().map(|path| shown(path)).collect();
            json!({"reason": failure.to_string(), "hint": failure.hint(), "searched": searched})
        }
        Err(failure @ Failure::NoDriver { tried }) => {
            json!({"reason": failure.to_string(), "hint": failure.hint(), "tried": tried})
        }
        Err(failure) => json!({"reason": failure.to_string(), "hint": failure.hint()}),
    }
}

fn library_lines(out: &mut dyn Write, name: &str, library: &Result<Library, Failure>) -> io::Result<()> {
    match library {
        Ok(Library { path, version }) => {
            line(out, "", format_args!("{name}: {}, CUDA {version}", path.display()))?;
        }
        Err(failure) => {
            line(out, "", format_args!("{name}: {failure}"))?;
            line(out, "", format_args!("  hint: {}", failure.hint()))?;
            let places: Vec<String> = match failure {
                Failure::NoDriver { tried } => tried.clone(),
                Failure::NoCompiler { searched } => searched.iter().map(|place| shown(place)).collect(),
                _ => Vec::new(),
            };
            if !places.is_empty() {
                line(out, "", format_args!("  looked for:"))?;
                places.iter().try_for_each(|place| line(out, "", format_args!("    {place}")))?;
            }
        }
    }
    Ok(())
}

fn gpu_json((index, gpu): (usize, &Found)) -> Value {
    let Description { name, architecture, multiprocessors, memory, .. } = &gpu.description;
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

fn gpu_lines(out: &mut dyn Write, (index, gpu): (usize, &Found)) -> io::Result<()> {
    let Description { name, architecture, multiprocessors, memory, .. } = &gpu.description;
    let gib = *memory as f64 / (1u64 << 30) as f64;
    line(
        out,
        "",
        format_args!("cuda:{index}: {name}, {architecture}, {gib:.1} GiB, {multiprocessors} multiprocessors"),
    )?;
    if let Err(failure) = &gpu.usable {
        line(out, "", format_args!("  not available: {failure}"))?;
        line(out, "", format_args!("  hint: {}", failure.hint()))?;
    }
    Ok(())
}
