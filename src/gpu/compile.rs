//! From the embedded sources to a binary for one architecture (a cubin, never PTX: what runs is what was looked at).
//!
//! A file of kernels becomes a module per storage type of activations. The compiler also says what each kernel needs:
//! registers, memory that registers were spilled to, shared memory.

use std::time::Instant;

use object::{Object, ObjectSection};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cache::{Cache, Key};
use super::nvrtc::{Nvrtc, Refusal};
use super::{Failure, KERNELS};
use crate::dtype::DType;

/// A file of `kernels/` to compile for one storage type.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Without `.cu`.
    pub file: &'a str,
    pub text: &'a str,
    pub dtype: DType,
}

#[derive(Clone, Debug)]
pub struct Module {
    pub cubin: Vec<u8>,
    pub kernels: Vec<KernelFacts>,
    /// The time it took, from the cache or not.
    pub seconds: f64,
    pub is_cached: bool,
}

/// The resources that a kernel needs, per thread or per block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// With the storage type: `fill_bf16`.
    pub symbol: String,
    /// Per thread.
    pub registers: u32,
    /// Bytes per thread that did not fit the registers, stored and loaded.
    pub spill_bytes: u32,
    /// Static shared memory per block.
    pub shared_bytes: u32,
    /// Threads of a block.
    pub threads: u32,
}

impl KernelFacts {
    /// Blocks that a processor of this architecture holds at once, if it is known.
    pub fn blocks_per_processor(&self, architecture: &str) -> Option<u32> {
        let limits = Processor::of(architecture)?;
        let warps = self.threads.div_ceil(32);
        // Registers are given out to warps, 256 at a time.
        let registers = warps * (self.registers.max(1) * 32).next_multiple_of(256);
        let by_shared = limits.shared_bytes / (self.shared_bytes.next_multiple_of(128) + RESERVED);
        Some((REGISTERS / registers).min(by_shared).min(limits.warps / warps).min(limits.blocks))
    }
}

impl KernelFacts {
    /// Of the most shared memory that a processor can have, how much its blocks need all together, with so many bytes each beyond what the kernel
    /// declares, in percent: the rest of that memory is a cache. `None` where the architecture is not known.
    pub fn carve_out(&self, architecture: &str, dynamic_shared: u32) -> Option<u32> {
        let facts = KernelFacts { shared_bytes: self.shared_bytes + dynamic_shared, ..self.clone() };
        let (limits, blocks) = (Processor::of(architecture)?, facts.blocks_per_processor(architecture)?);
        let needed = blocks * (facts.shared_bytes.next_multiple_of(128) + RESERVED);
        Some((100 * needed).div_ceil(limits.shared_bytes).min(100))
    }
}

/// Registers of a processor, and the shared memory that each of its blocks has for the system.
const REGISTERS: u32 = 65_536;
const RESERVED: u32 = 1024;

/// The limits of a processor, as the CUDA programming guide's table of compute capabilities says.
struct Processor {
    blocks: u32,
    warps: u32,
    shared_bytes: u32,
}

impl Processor {
    fn of(architecture: &str) -> Option<Processor> {
        let processor = |blocks, warps, shared_kb: u32| Processor { blocks, warps, shared_bytes: shared_kb << 10 };
        Some(match architecture {
            "sm_80" => processor(32, 64, 164),
            "sm_86" => processor(16, 48, 100),
            "sm_89" => processor(24, 48, 100),
            "sm_90" | "sm_90a" | "sm_100" | "sm_100a" => processor(32, 64, 228),
            _ => return None,
        })
    }
}

/// The modules of a file of `kernels/`, as its first line says: the storage types that it is compiled for, and the
/// architectures, none for all.
struct Modules {
    /// Without `.cu`.
    file: &'static str,
    storage: &'static [DType],
    architectures: &'static [&'static str],
}

const MODULES: &[Modules] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// All that a training run on `architecture` may need.
pub fn sources(architecture: &str) -> Vec<Source<'static>> {
    let of = |modules: &&Modules| modules.architectures.is_empty() || modules.architectures.contains(&architecture);
    let modules = MODULES.iter().filter(of);
    modules
        .flat_map(|&Modules { file, storage, .. }| {
            let text = text(file).expect("build.rs embeds what it lists");
            storage.iter().map(move |&dtype| Source { file, text, dtype })
        })
        .collect()
}

/// A file of `kernels/`, without `.cu`.
pub(super) fn text(file: &str) -> Option<&'static str> {
    KERNELS.iter().find(|(name, _)| name.strip_suffix(".cu") == Some(file)).map(|(_, text)| *text)
}

/// The storage type for which a file is compiled where activations are of `dtype`: tf32 is f32 to everything that does not
/// use tensor cores.
pub fn storage(file: &str, dtype: DType) -> DType {
    let modules = MODULES.iter().find(|modules| modules.file == file);
    match modules {
        Some(modules) if dtype == DType::TF32 && !modules.storage.contains(&DType::TF32) => DType::F32,
        // What is not among them are the kernels of tests, which mean what they say.
        _ => dtype,
    }
}

/// Compiles many modules at once, in the order of `sources`.
pub fn compile_all(
    nvrtc: &Nvrtc,
    cache: Option<&Cache>,
    sources: &[Source],
    architecture: &str,
) -> Result<Vec<Module>, Failure> {
    // The compiler's documentation promises that threads may use it at the same time.
    let modules: Vec<_> = sources.par_iter().map(|source| compile(nvrtc, cache, source, architecture)).collect();
    modules.into_iter().collect()
}

/// Compiles one module, or takes it from the cache.
pub fn compile(nvrtc: &Nvrtc, cache: Option<&Cache>, source: &Source, architecture: &str) -> Result<Module, Failure> {
    let start = Instant::now();
    let headers: Vec<(&str, &str)> = KERNELS.iter().filter(|(name, _)| name.ends_with(".cuh")).copied().collect();
    let options = options(source.dtype, architecture);
    let name = format!("kernels/{}.cu", source.file);
    let entry = format!("{}_{}-{architecture}", source.file, source.dtype);
    let key = key(&nvrtc.version.to_string(), &name, source.text, &headers, &options);
    if let Some((kernels, cubin)) = cache.and_then(|cache| decode(&cache.read(&entry, &key)?)) {
        return Ok(Module { cubin, kernels, seconds: start.elapsed().as_secs_f64(), is_cached: true });
    }
    let compiled = nvrtc.compile(&name, source.text, &headers, &options).map_err(|refusal| match refusal {
        Refusal::Source(log) => {
            Failure::Compile { file: source.file.to_string(), architecture: architecture.to_string(), log }
        }
        Refusal::Other(failure) => failure,
    })?;
    let mut kernels = facts(&compiled.log);
    kernels.iter_mut().for_each(|kernel| kernel.threads = threads(&compiled.cubin, &kernel.symbol).unwrap_or_default());
    if let Some(cache) = cache {
        cache.write(&entry, &key, &encode(&kernels, &compiled.cubin));
    }
    Ok(Module { cubin: compiled.cubin, kernels, seconds: start.elapsed().as_secs_f64(), is_cached: false })
}

/// Rounding is CUDA's default: multiply and add are fused, and nothing is "fast".
fn options(dtype: DType, architecture: &str) -> Vec<String> {
    vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".into(),
        format!("-DSTORAGE_{}", dtype.to_string().to_uppercase()),
        // Changes no instruction, and lets NVIDIA's tools name the line.
        "--generate-line-info".into(),
        "--ptxas-options=-v".into(),
    ]
}

fn key(compiler: &str, name: &str, text: &str, headers: &[(&str, &str)], options: &[String]) -> Key {
    let mut key = Key::new("medmerge kernels 2");
    key.add(compiler);
    key.add(name);
    key.add(text);
    for (name, text) in headers {
        key.add(name);
        key.add(text);
    }
    // The architecture is one of them.
    options.iter().for_each(|option| key.add(option));
    key
}

/// The facts as a line of JSON, then the binary.
fn encode(kernels: &[KernelFacts], cubin: &[u8]) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(kernels).expect("strings and numbers");
    bytes.push(b'\n');
    bytes.extend_from_slice(cubin);
    bytes
}

fn decode(bytes: &[u8]) -> Option<(Vec<KernelFacts>, Vec<u8>)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((serde_json::from_slice(&bytes[..end]).ok()?, bytes[end + 1..].to_vec()))
}

/// Reads the assembler's report, sorted by name:
///
/// ```text
/// ptxas info    : Compiling entry function 'fill_f32' for 'sm_90a'
/// ptxas info    : Function properties for fill_f32
/// ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 10 registers, used 1 barriers, 4096 bytes smem, 376 bytes cmem[0]
/// ```
fn facts(log: &str) -> Vec<KernelFacts> {
    let mut all: Vec<KernelFacts> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let symbol = rest.split('\'').next().unwrap_or_default().to_string();
            all.push(KernelFacts { symbol, ..Default::default() });
            continue;
        }
        let Some(kernel) = all.last_mut() else { continue };
        let start = line.find(|c: char| c.is_ascii_digit()).unwrap_or(0);
        for part in line[start..].split(", ") {
            let part = part.trim_start_matches("used ");
            let Some((number, unit)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match unit.trim() {
                "registers" => kernel.registers = number,
                "bytes spill stores" | "bytes spill loads" => kernel.spill_bytes += number,
                "bytes smem" => kernel.shared_bytes = number,
                _ => {}
            }
        }
    }
    all.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    all
}

/// The most threads of a kernel's blocks, which `__launch_bounds__` says and the binary repeats: a record of its section
/// `.nv.info.SYMBOL`, where a record is a form, a kind, and for this form a length and as many bytes.
fn threads(cubin: &[u8], symbol: &str) -> Option<u32> {
    const WITH_LENGTH: u8 = 4;
    const MAX_THREADS: u8 = 5;
    let file = object::File::parse(cubin).ok()?;
    let section = file.section_by_name(&format!(".nv.info.{symbol}"))?;
    let mut records = section.data().ok()?;
    while let [form, kind, low, high, rest @ ..] = records {
        let len = if *form == WITH_LENGTH { usize::from(u16::from_le_bytes([*low, *high])) } else { 0 };
        let (value, behind) = rest.split_at_checked(len)?;
        if *kind == MAX_THREADS {
            let sizes = value.chunks_exact(4).map(|size| u32::from_le_bytes(size.try_into().expect("four bytes")));
            return Some(sizes.product());
        }
        records = behind;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_understood() {
        let log = "\
ptxas info    : 16 bytes gmem
ptxas info    : Compiling entry function 'sum_f32' for 'sm_90a'
ptxas info    : Function properties for sum_f32
ptxas         .     24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 8.644 ms
ptxas info    : Compiling entry function 'fill_f32' for 'sm_80'
ptxas info    : Function properties for fill_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 376 bytes cmem[0]";
        let kernel = |symbol: &str, registers, spill_bytes, shared_bytes| KernelFacts {
            symbol: symbol.into(),
            registers,
            spill_bytes,
            shared_bytes,
            threads: 0,
        };
        assert_eq!(facts(log), [kernel("fill_f32", 10, 0, 0), kernel("sum_f32", 255, 48, 4096)]);
    }

    /// By registers, shared memory, warps and blocks; the figures of the occupancy calculator for compute capability 9.0.
    #[test]
    fn blocks_that_a_processor_holds() {
        let blocks = |threads, registers, shared_bytes| {
            let facts = KernelFacts { threads, registers, shared_bytes, ..Default::default() };
            facts.blocks_per_processor("sm_90a").unwrap()
        };
        assert_eq!(blocks(256, 128, 0), 2);
        assert_eq!(blocks(256, 129, 0), 1);
        assert_eq!(blocks(128, 32, 48 << 10), 4);
        assert_eq!(blocks(1024, 32, 0), 2);
        assert_eq!(blocks(32, 16, 0), 32);
        assert_eq!(KernelFacts::default().blocks_per_processor("sm_7"), None);
    }

    #[test]
    fn shared_memory_is_carved_out_for_all_blocks() {
        let percent = |threads, registers, shared_bytes, dynamic| {
            let facts = KernelFacts { threads, registers, shared_bytes, ..Default::default() };
            facts.carve_out("sm_90a", dynamic).unwrap()
        };
        // Eight blocks with a KiB each for the system, of 228 KiB.
        assert_eq!(percent(256, 32, 0, 0), 4);
        // Two blocks of 48 KiB: 98 of 228.
        assert_eq!(percent(256, 128, 48 << 10, 0), 43);
        assert_eq!(percent(256, 128, 16 << 10, 32 << 10), 43);
        // One alone that takes all that a block may have.
        assert_eq!(percent(384, 168, 1 << 10, 226 << 10), 100);
        assert_eq!(KernelFacts::default().carve_out("sm_7", 0), None);
    }

    /// Whatever the compiler is told, and which compiler it is: a binary in the cache is never of something else.
    #[test]
    fn an_entry_depends_on_all_that_the_compiler_is_given() {
        let options = options(DType::BF16, "sm_90a");
        let headers = [("a.cuh", "A"), ("b.cuh", "B")];
        let other = |name, text| [("a.cuh", "A"), (name, text)];
        let mut other_options = vec![super::options(DType::F16, "sm_90a"), super::options(DType::BF16, "sm_80")];
        other_options.extend((0..options.len()).map(|left_out| {
            let mut fewer = options.clone();
            fewer.remove(left_out);
            fewer
        }));
        let mut keys = vec![
            key("13.0", "x.cu", "X", &headers, &options),
            key("13.1", "x.cu", "X", &headers, &options),
            key("13.0", "y.cu", "X", &headers, &options),
            key("13.0", "x.cu", "Y", &headers, &options),
            key("13.0", "x.cu", "X", &headers[..1], &options),
            key("13.0", "x.cu", "X", &other("b.cuh", "C"), &options),
            key("13.0", "x.cu", "X", &other("c.cuh", "B"), &options),
        ];
        keys.extend(other_options.iter().map(|options| key("13.0", "x.cu", "X", &headers, options)));
        let names: std::collections::BTreeSet<_> = keys.iter().map(Key::hex).collect();
        assert_eq!(names.len(), keys.len());
    }

    #[test]
    fn an_entry_holds_facts_and_binary() {
        let kernels =
            vec![KernelFacts { symbol: "x_f32".into(), registers: 3, spill_bytes: 0, shared_bytes: 16, threads: 32 }];
        let cubin = b"\x7fELF\n\x00\n";
        assert_eq!(decode(&encode(&kernels, cubin)), Some((kernels, cubin.to_vec())));
        assert_eq!(decode(b"no line"), None);
    }
}
