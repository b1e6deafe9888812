//! `kernels`: compiles the GPU kernels ahead of time, and shows what each needs.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use medmerge::error::{Error, Result};
use medmerge::gpu::cache::Cache;
use medmerge::gpu::compile::{self, KernelFacts, Module, Source};
use medmerge::gpu::nvrtc::{self, Nvrtc};
use medmerge::gpu::{self, Failure};
use medmerge::output::{OutputPath, make_folder, shown};

use super::{note, report};
use crate::cli::{Global, Kernels};

/// The architecture that is compiled for where there is no GPU.
const DEFAULT: &str = "sm_90a";

pub fn run(options: &Kernels, global: &Global) -> Result<()> {
    let nvrtc = nvrtc::compiler()?;
    let architecture = match &options.architecture {
        Some(named) => known(nvrtc, named)?,
        None => of_this_machine(nvrtc, global)?,
    };
    if let Some(folder) = &options.cubin {
        make_folder(folder, options.force)?;
    }
    let sources = compile::sources(&architecture);
    let modules = compile::compile_all(nvrtc, Cache::of_user().as_ref(), &sources, &architecture)?;
    let all: Vec<(&Source, &Module)> = sources.iter().zip(&modules).collect();
    if let Some(folder) = &options.cubin {
        write(folder, &all, &architecture, options.force)?;
    }
    let spilled: Vec<&str> = modules
        .iter()
        .flat_map(|module| &module.kernels)
        .filter(|kernel| kernel.spill_bytes > 0)
        .map(|kernel| kernel.symbol.as_str())
        .collect();
    if !spilled.is_empty() {
        note(global, format_args!("note: registers did not suffice: {}", spilled.join(", ")));
    }
    let result = json!({
        "architecture": architecture,
        "compiler": {"path": shown(&nvrtc.path), "version": nvrtc.version.to_string()},
        "modules": all.iter().map(|(source, module)| json!({
            "file": format!("kernels/{}.cu", source.file),
            "dtype": source.dtype.to_string(),
            "bytes": module.cubin.len(),
            "seconds": module.seconds,
            "cached": module.is_cached,
            "kernels": module.kernels.iter().map(|kernel| of_kernel(kernel, &architecture)).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    report(global, &result, |out| print(out, nvrtc, &architecture, &all))
}

/// An architecture of the command line that the compiler knows, or that is too new or too old for it.
fn known(nvrtc: &Nvrtc, named: &str) -> Result<String> {
    let architectures = nvrtc.architectures();
    let numbers = || architectures.iter().filter_map(|known| nvrtc::capability(known));
    let is_between = |number: u32| numbers().any(|known| known >= number) && numbers().any(|known| known <= number);
    match nvrtc.check(named) {
        Err(_) if nvrtc::capability(named).is_none_or(is_between) => {
            Err(Error::unknown("architecture", named, architectures))
        }
        result => Ok(result.map(|()| named.to_string())?),
    }
}

fn of_this_machine(nvrtc: &Nvrtc, global: &Global) -> Result<String, Failure> {
    let probe = gpu::probe();
    let architecture = match probe.gpus.first() {
        Some(gpu) => gpu.description.architecture.clone(),
        None => {
            note(global, format_args!("note: no GPU was found; compiling for {DEFAULT}"));
            DEFAULT.to_string()
        }
    };
    nvrtc.check(&architecture)?;
    Ok(architecture)
}

fn write(folder: &Path, all: &[(&Source, &Module)], architecture: &str, force: bool) -> Result<()> {
    for (source, module) in all {
        let path = folder.join(format!("{}_{}.{architecture}.cubin", source.file, source.dtype));
        let mut output = OutputPath::check(&path, force, module.cubin.len() as u64)?;
        output.write(|file| file.write_all(&module.cubin))?;
    }
    Ok(())
}

/// The facts of a kernel: what the compiler says, and what follows for a processor.
fn of_kernel(kernel: &KernelFacts, architecture: &str) -> serde_json::Value {
    let mut facts = serde_json::to_value(kernel).expect("strings and numbers");
    facts["blocks_per_processor"] = json!(kernel.blocks_per_processor(architecture));
    facts
}

fn print(out: &mut dyn Write, nvrtc: &Nvrtc, architecture: &str, all: &[(&Source, &Module)]) -> std::io::Result<()> {
    writeln!(out, "{architecture}, libnvrtc {} ({})\n", nvrtc.version, nvrtc.path.display())?;
    let names = all.iter().flat_map(|(_, module)| &module.kernels).map(|kernel| kernel.symbol.len() + 2);
    let width = names.max().unwrap_or(0).max(24);
    writeln!(
        out,
        "{:<width$} {:>7} {:>9} {:>13} {:>12} {:>16}",
        "kernel", "threads", "registers", "spilled bytes", "shared bytes", "blocks/processor"
    )?;
    for (source, module) in all {
        let how = if module.is_cached { "cached" } else { "compiled" };
        writeln!(out, "{}.cu, {}: {how}, {:.3} s", source.file, source.dtype, module.seconds)?;
        for kernel in &module.kernels {
            writeln!(
                out,
                "{:<width$} {:>7} {:>9} {:>13} {:>12} {:>16}",
                format!("  {}", kernel.symbol),
                kernel.threads,
                kernel.registers,
                kernel.spill_bytes,
                kernel.shared_bytes,
                kernel.blocks_per_processor(architecture).map_or("?".into(), |blocks| blocks.to_string())
            )?;
        }
    }
    Ok(())
}
