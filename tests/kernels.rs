//! The GPU kernels, compiled by NVRTC for every architecture that is supported, without a GPU; and the cache of what it
//! makes.

#[path = "common/binaries.rs"]
mod binaries;

use std::collections::BTreeSet;
use std::path::Path;

use medmerge::gpu::cache::Cache;
use medmerge::gpu::compile::{self, KernelFacts, Module, Source};
use medmerge::gpu::nvrtc::{self, Nvrtc};
use medmerge::gpu::{Failure, KERNELS};
use medmerge::tensor::DType;

/// What the kernels are written for.
const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100"];

#[track_caller]
fn compiler() -> &'static Nvrtc {
    nvrtc::compiler().unwrap_or_else(|failure| {
        panic!("{failure}\nhint: {}\ntests/run.sh installs one into target/nvrtc", failure.hint())
    })
}

/// All kernels, compiled by whoever comes first.
fn compiled(architecture: &str) -> Vec<Module> {
    let _turn = binaries::turn(architecture);
    compile::compile_all(
        compiler(),
        Some(&Cache::at(&binaries::folder())),
        &compile::sources(architecture),
        architecture,
    )
    .unwrap_or_else(|failure| panic!("{failure}\nhint: {}", failure.hint()))
}

/// The names in `KERNEL(name, Parameters, THREADS)`.
fn entry_points(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| Some(line.strip_prefix("KERNEL(")?.split(',').next()?.trim()))
}

#[test]
fn every_kernel_compiles_everywhere_and_fits_its_registers() {
    let nvrtc = compiler();
    let sources = compile::sources("sm_90a");
    let files: BTreeSet<&str> = KERNELS.iter().filter_map(|(name, _)| name.strip_suffix(".cu")).collect();
    assert!(!files.is_empty());
    assert_eq!(sources.iter().map(|source| source.file).collect::<BTreeSet<_>>(), files);
    // Tensor cores take tf32 in its place; all else has f32.
    let without_f32 = |file: &&&str| sources.iter().all(|source| source.file != **file || source.dtype != DType::F32);
    let for_tensor_cores = [
        "conv2d_hopper_dgrad",
        "conv2d_hopper_dgrad_sums",
        "conv2d_hopper_fprop",
        "conv2d_hopper_fprop_statistics",
        "conv2d_hopper_products",
        "conv2d_hopper_wgrad",
        "conv2d_tensor",
        "conv2d_tensor_dgrad",
        "conv2d_tensor_dgrad_sums",
        "conv2d_tensor_fprop",
        "conv2d_tensor_fprop_statistics",
        "conv2d_tensor_products",
        "conv2d_tensor_wgrad",
        "limits_tensor",
    ];
    assert_eq!(files.iter().filter(without_f32).copied().collect::<Vec<_>>(), for_tensor_cores);
    let mut problems = Vec::new();
    for architecture in ARCHITECTURES {
        for (source, module) in compile::sources(architecture).iter().zip(&compiled(architecture)) {
            let mut expected: Vec<String> =
                entry_points(source.text).map(|name| format!("{name}_{}", source.dtype)).collect();
            expected.sort();
            let found: Vec<&str> = module.kernels.iter().map(|kernel| kernel.symbol.as_str()).collect();
            assert_eq!(found, expected, "kernels/{}.cu", source.file);
            for kernel in &module.kernels {
                assert!((1..=255).contains(&kernel.registers), "{kernel:?}");
                if kernel.spill_bytes > 0 || kernel.shared_bytes > 48 << 10 {
                    problems.push(format!("{architecture}: {kernel:?}"));
                }
            }
        }
    }
    let compiler = format!("libnvrtc {} ({})", nvrtc.version, nvrtc.path.display());
    assert!(problems.is_empty(), "spills, or too much shared memory, by {compiler}:\n{}", problems.join("\n"));
}

/// The kernels' needs on the architectures that differ, as they were when somebody last looked: a change shows in the diff of these files,
/// which the test writes anew beside itself.
#[test]
fn needs_are_those_on_record() {
    let nvrtc = compiler();
    let mut differing = Vec::new();
    for architecture in ["sm_80", "sm_89", "sm_90a", "sm_100"] {
        let path = format!("benches/results/kernels-{architecture}.csv");
        let record = std::fs::read_to_string(&path).unwrap_or_default();
        let first = record.lines().next().unwrap_or_default();
        let head = format!("# libnvrtc {}, {architecture}", nvrtc.version);
        if !first.is_empty() && first != head {
            // Another compiler gives other numbers; the test above watches over spills with any.
            eprintln!("not compared: {path} is of another compiler than libnvrtc {}", nvrtc.version);
            continue;
        }
        let mut found = format!("{head}\nkernel,threads,registers,shared bytes,blocks per processor\n");
        for (source, module) in compile::sources(architecture).iter().zip(compiled(architecture)) {
            let mut rows = rows(&module, architecture);
            if !record.contains(&rows) {
                // The compiler does not always choose the same registers: one of a hundred kernels had 149 once where it has
                // 139 otherwise, from the same source by the same file of libnvrtc. What differs twice is a change.
                rows = self::rows(&compile::compile(nvrtc, None, source, architecture).unwrap(), architecture);
            }
            found.push_str(&rows);
        }
        let beside = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{architecture}.csv"));
        std::fs::write(&beside, &found).unwrap();
        if found != record {
            differing.push(format!("{path}; what is now is in {}", beside.display()));
        }
    }
    assert!(differing.is_empty(), "differs from {}", differing.join(", "));
}

/// What each kernel of a module needs, as it stands on record.
fn rows(module: &Module, architecture: &str) -> String {
    let row = |kernel: &KernelFacts| {
        let blocks = kernel.blocks_per_processor(architecture).unwrap();
        let KernelFacts { symbol, threads, registers, shared_bytes, .. } = kernel;
        assert!(*threads > 0 && blocks > 0, "{kernel:?}");
        format!("{symbol},{threads},{registers},{shared_bytes},{blocks}\n")
    };
    module.kernels.iter().map(row).collect()
}

/// What the tests above and `tests/sass.py` look at is what the compiler makes of today's sources. One file shows it for all:
/// they are stored alike, under names that a test of `compile` checks.
#[test]
fn a_shared_binary_is_what_the_compiler_makes_now() {
    let sources = compile::sources("sm_90a");
    let source = sources.iter().find(|source| source.file == "convert" && source.dtype == DType::BF16).unwrap();
    let cache = Cache::at(&binaries::folder());
    let now = compile::compile(compiler(), None, source, "sm_90a").unwrap();
    for is_surely_cached in [false, true] {
        let shared = compile::compile(compiler(), Some(&cache), source, "sm_90a").unwrap();
        assert!(shared.is_cached || !is_surely_cached);
        assert_eq!((&shared.cubin, &shared.kernels), (&now.cubin, &now.kernels));
    }
}

#[test]
fn a_spill_would_be_noticed() {
    // A hundred values alive at once, and 32 registers to hold them.
    let text = "extern \"C\" __global__ void __launch_bounds__(1024, 2) crowd_f32(float* x) {
        float v[100];
        #pragma unroll
        for (int i = 0; i < 100; ++i) v[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 100; ++i) x[i * 1024 + threadIdx.x] = v[99 - i] * v[(i * 37) % 100];
    }";
    let source = Source { file: "crowd", text, dtype: DType::F32 };
    let module = compile::compile(compiler(), None, &source, "sm_80").unwrap();
    assert!(module.kernels[0].spill_bytes > 0, "{:?}", module.kernels);
}

/// What a launch asks for is none of what a kernel declares: 48 KiB and no more would be the end of that.
#[test]
fn dynamic_shared_memory_is_not_declared() {
    let text = include_str!("emulator/dynamic.cu");
    let source = Source { file: "dynamic", text, dtype: DType::F32 };
    for architecture in ["sm_80", "sm_90a"] {
        let module = compile::compile(compiler(), None, &source, architecture).unwrap();
        let declared = |symbol: &str| {
            let kernel = module.kernels.iter().find(|kernel| kernel.symbol == symbol);
            kernel.unwrap_or_else(|| panic!("{symbol} in {:?}", module.kernels)).shared_bytes
        };
        assert_eq!((declared("reverses_f32"), declared("declares_and_stages_f32")), (0, 16 << 10), "{architecture}");
    }
}

#[test]
fn an_error_names_file_and_line() {
    let text = "#include \"common.cuh\"\n\nKERNEL(broken, float, 32) {\n  unknown();\n}\n";
    let source = Source { file: "broken", text, dtype: DType::BF16 };
    let failure = compile::compile(compiler(), None, &source, "sm_90a").unwrap_err();
    let Failure::Compile { file, architecture, log } = &failure else { panic!("{failure}") };
    assert_eq!((file.as_str(), architecture.as_str()), ("broken", "sm_90a"));
    assert!(log.contains("kernels/broken.cu(4): error") && log.contains("unknown"), "{log}");
    assert!(failure.to_string().contains("kernels/broken.cu"), "{failure}");
}

#[test]
fn what_the_compiler_does_not_know_is_refused() {
    let nvrtc = compiler();
    assert!(matches!(nvrtc.check("sm_999"), Err(Failure::CompilerTooOld { .. })));
    assert!(matches!(nvrtc.check("sm_20"), Err(Failure::GpuTooOld { .. })));
    for architecture in ARCHITECTURES {
        nvrtc.check(architecture).unwrap();
    }
}

const TEXT: &str = "#include \"common.cuh\"
struct Store { element* x; };
KERNEL(store, Store, 32) { p.x[threadIdx.x] = from_float(1.0f); }
";

fn store(cache: &Cache, text: &str, dtype: DType, architecture: &str) -> Module {
    compile::compile(compiler(), Some(cache), &Source { file: "store", text, dtype }, architecture).unwrap()
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_second_start_finds_the_binary() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let first = store(&cache, TEXT, DType::F32, "sm_80");
    let second = store(&cache, TEXT, DType::F32, "sm_80");
    assert_eq!((first.is_cached, second.is_cached), (false, true));
    assert_eq!((&first.cubin, &first.kernels), (&second.cubin, &second.kernels));
    assert!(first.cubin.starts_with(b"\x7fELF"));
    let changed = format!("{TEXT}\n");
    for (text, dtype, architecture) in
        [(TEXT, DType::BF16, "sm_80"), (TEXT, DType::F32, "sm_86"), (changed.as_str(), DType::F32, "sm_80")]
    {
        assert!(!store(&cache, text, dtype, architecture).is_cached, "{dtype} {architecture}");
        assert!(store(&cache, text, dtype, architecture).is_cached, "{dtype} {architecture}");
    }
    assert_eq!(entries(folder.path()).len(), 4);
}

#[test]
fn a_damaged_entry_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let whole = store(&cache, TEXT, DType::F32, "sm_80");
    let [entry] = &entries(folder.path())[..] else { panic!("one entry") };
    let bytes = std::fs::read(entry).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&bytes[..bytes.len() / 2], &[], &flipped, b"something else"] {
        std::fs::write(entry, damaged).unwrap();
        let again = store(&cache, TEXT, DType::F32, "sm_80");
        assert!(!again.is_cached);
        assert_eq!(again.cubin, whole.cubin);
        assert!(store(&cache, TEXT, DType::F32, "sm_80").is_cached);
    }
    assert_eq!(entries(folder.path()).len(), 1);
}

#[test]
fn threads_may_compile_the_same_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let modules: Vec<Module> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| store(&cache, TEXT, DType::F32, "sm_80"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(modules.iter().all(|module| module.cubin == modules[0].cubin));
    assert_eq!(entries(folder.path()).len(), 1);
}

#[test]
fn a_cache_that_cannot_be_written_costs_time_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let cache = Cache::at(&folder.path().join("file"));
    for _ in 0..2 {
        assert!(!store(&cache, TEXT, DType::F32, "sm_80").is_cached);
    }
}
