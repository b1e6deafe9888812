//! `devices`, and the flags that choose one.

use serde_json::json;

use medmerge::error::{Error, Result};

use super::report;
use crate::cli::Global;

/// Refuses a device or a precision that this build cannot serve.
pub fn check(global: &Global) -> Result<()> {
    let unavailable = |reason: String| Err(Error::Device { device: global.device.clone(), reason });
    match global.device.split(':').next().unwrap_or_default() {
        "auto" | "cpu" => {}
        "cuda" => return unavailable("this version has no GPU kernels yet".into()),
        "emulator" => return unavailable("this version has no emulator yet".into()),
        _ => return Err(Error::unknown("device", &global.device, ["auto", "cpu", "cuda", "emulator"])),
    }
    match global.precision.as_str() {
        "f32" => Ok(()),
        "tf32" | "bf16" | "f16" => {
            let hint = "leave --precision out, or give f32";
            Err(Error::usage(format!("precision {} is not available on the CPU", global.precision), hint))
        }
        other => Err(Error::unknown("precision", other, ["f32", "tf32", "bf16", "f16"])),
    }
}

pub fn run(global: &Global) -> Result<()> {
    let driver = medmerge::gpu::probe();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = rayon::current_num_threads();
    let result = json!({
        "cpu": {"available": true, "cores": cores, "threads": threads, "instructions": instructions()},
        "cuda": {
            "available": false,
            "reason": "this version has no GPU kernels yet",
            "driver_library": driver.driver,
            "compiler_library": driver.compiler,
            "gpus": driver.gpus,
        },
        "emulator": {"available": false, "reason": "this version has no emulator yet"},
    });
    report(global, &result, || {
        let found = |library: bool| if library { "found" } else { "not found" };
        println!("cpu       available: {cores} cores, {threads} threads, {}", instructions());
        println!(
            "cuda      not available: this version has no GPU kernels yet (libcuda {}, libnvrtc {})",
            found(driver.driver),
            found(driver.compiler)
        );
        for gpu in &driver.gpus {
            println!("          {gpu}");
        }
        println!("emulator  not available: this version has no emulator yet");
    });
    Ok(())
}

/// The widest vector instructions that the ops will use.
fn instructions() -> &'static str {
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
