//! The emulator reports every kind of fault: one broken kernel each, from `broken.cu`, compiled when the tests run.
#![cfg(feature = "emulator")]

mod addresses;
mod clusters;
mod dynamic;
mod hopper;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use medmerge::gpu::emulator::{Context, Emulator, EntryPoint};
use medmerge::gpu::{Address, Failure, Gpu, Handle, TensorCores};
use medmerge::parameters;
use medmerge::tensor::{DType, Device, Tensor};

parameters! {
    struct Broken: 16 bytes { x: Address, count: u64 }
}

const THREADS: u32 = 64;

/// The kernels of a file beside this one, compiled for a storage type into a library made for this process.
fn guests(file: &'static str, storage: DType) -> Vec<&'static EntryPoint> {
    type Known = BTreeMap<(&'static str, String), Vec<&'static EntryPoint>>;
    static COMPILED: Mutex<Known> = Mutex::new(Known::new());
    let mut compiled = COMPILED.lock().unwrap();
    compiled.entry((file, storage.to_string())).or_insert_with(|| compile(file, storage)).clone()
}

fn compile(file: &str, storage: DType) -> Vec<&'static EntryPoint> {
    let source = format!("tests/emulator/{file}.cu");
    // SAFETY: the library has no initialisers. It is never unloaded.
    let library: &libloading::Library =
        Box::leak(Box::new(unsafe { libloading::Library::new(library(&source, storage)).expect("a library") }));
    let source = std::fs::read_to_string(source).expect("the tests' own file");
    let names = source.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next());
    names
        .map(|name| {
            let symbol: &'static str = format!("{name}_{storage}").leak();
            // SAFETY: the macro KERNEL makes these three for every kernel.
            let entry = unsafe {
                type Run = unsafe extern "C" fn(*const c_void, *const *const Context);
                let number = |kind: &str| {
                    let symbol = format!("{name}_{kind}_{storage}");
                    &**library.get::<&'static u32>(symbol.as_bytes()).expect("a number beside its kernel")
                };
                EntryPoint {
                    symbol,
                    run: *library.get::<Run>(symbol.as_bytes()).expect("a kernel"),
                    size: number("size"),
                    threads: number("threads"),
                }
            };
            &*Box::leak(Box::new(entry))
        })
        .collect()
}

/// The library that the compiler makes of `source`. Tests run in processes of their own: it is kept for the others, under a
/// name for all that it is made of.
fn library(source: &str, storage: DType) -> PathBuf {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let arguments = ["-xc++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fstack-clash-protection"];
    let arguments = arguments.map(str::to_string).into_iter().chain([
        "-Wno-unknown-pragmas".into(),
        "-DMEDMERGE_EMULATOR".into(),
        format!("-DSTORAGE_{}", storage.to_string().to_uppercase()),
        "-Ikernels".into(),
        source.into(),
    ]);
    let arguments: Vec<String> = arguments.collect();
    let mut hasher = DefaultHasher::new();
    (&compiler, &arguments, std::fs::read(source).expect("the tests' own file")).hash(&mut hasher);
    for folder in ["kernels", "kernels/emulator"] {
        let entries = std::fs::read_dir(folder).expect("a folder of the project").map(|entry| entry.unwrap().path());
        let files: BTreeSet<PathBuf> = entries.filter(|path| path.is_file()).collect();
        files.iter().for_each(|path| (path, std::fs::read(path).unwrap()).hash(&mut hasher));
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{:016x}.so", hasher.finish()));
    let turn = File::create(path.with_extension("lock")).unwrap();
    turn.lock().unwrap();
    if !path.exists() {
        let unfinished = path.with_extension("unfinished");
        let status = Command::new(compiler).args(arguments).arg("-o").arg(&unfinished).status();
        assert!(status.expect("a C++ compiler").success());
        std::fs::rename(unfinished, &path).unwrap();
    }
    path
}

fn emulator(seed: u64) -> Handle {
    Gpu::on_emulator(Emulator::with_guests(seed, guests("broken", DType::F32)))
}

/// What x holds after `name` ran in `blocks` blocks over `x`.
fn run(gpu: Handle, name: &'static str, x: &[f32], blocks: u32) -> Result<Vec<f32>, Failure> {
    let mut tensor = Tensor::from_vec(x.to_vec(), [x.len()]).to_device(Device::Gpu(gpu));
    let parameters = Broken { x: tensor.view_mut().address(), count: x.len() as u64 };
    // SAFETY: not for these kernels, which is their point; the emulator stops them.
    unsafe { gpu.launch("broken", name, DType::F32, [blocks, 1, 1], THREADS, &parameters) };
    gpu.synchronize()?;
    Ok(tensor.to_vec())
}

#[track_caller]
fn is_reported(name: &'static str, words: &[&str]) {
    for seed in 0..4 {
        let failure = run(emulator(seed), name, &[1.0, 2.0, 3.0, 4.0], 2).expect_err("a fault");
        let message = failure.to_string();
        assert!(message.contains(&format!("kernel {name}_f32, block [")), "{message}");
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
}

#[test]
fn a_right_kernel_gives_the_same_bits_for_any_seed() {
    let x: Vec<f32> = (0..150).map(|i| 1.0 / (i as f32 + 1.0)).collect();
    let first = run(emulator(0), "right", &x, 3).unwrap();
    assert_eq!(first.len(), 150);
    assert_ne!(first, x);
    for seed in 1..6 {
        assert_eq!(run(emulator(seed), "right", &x, 3).unwrap(), first);
    }
}

#[test]
fn accesses_beyond_a_buffer() {
    is_reported("reads_beyond", &["thread 5", "byte 16 of a buffer of 16"]);
    is_reported("writes_beyond", &["thread 6", "byte 16 of a buffer of 16"]);
    is_reported("overflows_its_stack", &["out of bounds"]);
}

/// Three floats leave four bytes before the inaccessible page.
#[test]
fn accesses_between_a_buffer_and_its_page() {
    let failure = run(emulator(0), "writes_beyond", &[1.0; 3], 1).expect_err("a fault");
    let expected = "kernel writes_beyond_f32: out of bounds: byte 12 of a buffer of 12 was written";
    // The first byte of 1.0 is 0.
    assert_eq!(failure.to_string(), expected);
    assert!(run(emulator(0), "reads_beyond", &[1.0; 3], 1).unwrap()[0].is_nan());
}

#[test]
fn accesses_before_a_buffer() {
    // A buffer of a whole page begins where its lower guard ends.
    let x = vec![0.0; 1024];
    let failure = run(emulator(0), "writes_before", &x, 1).expect_err("a fault");
    assert!(failure.to_string().contains("thread 7: out of bounds"), "{failure}");
}

#[test]
fn shared_memory_out_of_bounds() {
    is_reported("shared_out_of_bounds", &["thread 63", "out of bounds: tile", "[64]"]);
    is_reported("wants_too_much_shared_memory", &["shared memory"]);
}

#[test]
fn what_nobody_wrote_is_nan() {
    let x = run(emulator(0), "reads_unwritten", &[1.0, 2.0], 1).unwrap();
    assert!(x.iter().all(|x| x.is_nan()));
    let fresh = Tensor::uninit([3], DType::F32, Device::Gpu(emulator(0)));
    assert!(fresh.to_vec::<f32>().iter().all(|x| x.is_nan()));
}

#[test]
fn recycled_memory_is_nan() {
    let gpu = emulator(0);
    let first = Tensor::from_vec(vec![1f32; 8], [8]).to_device(Device::Gpu(gpu));
    let address = first.address();
    drop(first);
    let second = Tensor::uninit([8], DType::F32, Device::Gpu(gpu));
    assert_eq!(second.address(), address);
    assert!(second.to_vec::<f32>().iter().all(|x| x.is_nan()));
}

#[test]
fn races_in_shared_memory() {
    is_reported("races_read_after_write", &["race: ", "tile", "also touched by thread"]);
    is_reported("races_write_after_read", &["race: ", "tile", "also touched by"]);
    is_reported("races_two_writes", &["race: two writes", "tile", "also touched by thread"]);
    let words = ["race: write after read of tile", "also touched by several other threads"];
    is_reported("races_with_another_warps_reads", &words);
    is_reported("races_across_a_shuffle", &["race: read after write of tile"]);
}

#[test]
fn barriers_that_not_all_threads_reach() {
    is_reported("misses_a_barrier", &["thread 9: the barrier at", "broken.cu:", "which has ended"]);
    is_reported("waits_at_two_barriers", &["the barrier at", "which waits at the barrier at"]);
}

#[test]
fn collectives_that_not_all_lanes_reach() {
    is_reported("misses_a_shuffle", &["thread 40: the collective at", "common.cuh:", "which has ended"]);
    is_reported("waits_at_two_shuffles", &["the collective at", "which waits at the collective at"]);
    let words = ["the collective at", "which waits at the barrier at"];
    is_reported("waits_at_a_shuffle_and_a_barrier", &words);
    is_reported("shuffles_from_outside", &["a lane outside its mask"]);
}

#[test]
fn misaligned_vectors_and_divisions_by_zero() {
    is_reported("is_misaligned", &["thread 3: misaligned vector access at address 0x"]);
    is_reported("divides_by_zero", &["thread 11: a whole number is divided by zero"]);
}

/// What depends on the order shows in results that change with the seed.
#[test]
fn orders_that_matter_change_with_the_seed() {
    for name in ["depends_on_the_order_of_blocks", "depends_on_the_order_of_threads"] {
        let results: Vec<f32> = (0..8).map(|seed| run(emulator(seed), name, &[0.0], 8).unwrap()[0]).collect();
        assert!(results.iter().any(|result| *result != results[0]), "{name}: {results:?}");
    }
}

#[test]
fn wrong_launches() {
    let gpu = emulator(0);
    let x = Tensor::uninit([4], DType::F32, Device::Gpu(gpu));
    let parameters = Broken { x: x.address(), count: 4 };
    // SAFETY: refused before it runs.
    unsafe { gpu.launch("broken", "right", DType::F32, [1, 1, 1], 32, &parameters) };
    assert!(gpu.check().unwrap_err().to_string().contains("32 threads per block, made for 64"));
    let gpu = emulator(0);
    // SAFETY: refused before it runs.
    unsafe { gpu.launch("broken", "missing", DType::F32, [1, 1, 1], 64, &parameters) };
    assert!(gpu.check().unwrap_err().to_string().contains("no kernel missing_f32"));
}

/// A failed device does nothing more, and what it is asked for is NaN.
#[test]
fn a_failure_is_final() {
    let gpu = emulator(0);
    let healthy = Tensor::from_vec(vec![1f32; 4], [4]).to_device(Device::Gpu(gpu));
    run(gpu, "reads_beyond", &[1.0; 4], 1).unwrap_err();
    assert!(healthy.to_vec::<f32>().iter().all(|x| x.is_nan()));
    assert!(gpu.synchronize().is_err());
}

#[test]
fn a_graph_replays_what_was_recorded() {
    let gpu = emulator(3);
    let x: Vec<f32> = (0..100).map(|i| i as f32 / 7.0).collect();
    let once = run(gpu, "right", &x, 2).unwrap();
    let twice = run(gpu, "right", &once, 2).unwrap();

    let mut tensor = Tensor::from_vec(x.clone(), [x.len()]).to_device(Device::Gpu(gpu));
    let parameters = Broken { x: tensor.view_mut().address(), count: x.len() as u64 };
    let graph = gpu
        .capture(|| {
            // A temporary of the graph's own.
            let temporary = tensor.copy();
            // SAFETY: the kernel stays within `count`.
            unsafe { gpu.launch("broken", "right", DType::F32, [2, 1, 1], THREADS, &parameters) };
            drop(temporary);
        })
        .unwrap();
    assert_eq!(graph.launches(), 1);
    assert_eq!(tensor.to_vec::<f32>(), x, "captured work must not run");
    graph.replay();
    assert_eq!(tensor.to_vec::<f32>(), once);
    graph.replay();
    assert_eq!(tensor.to_vec::<f32>(), twice);
    gpu.check().unwrap();
}

#[test]
fn a_graph_keeps_its_memory_to_itself() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 64], [64]).to_device(Device::Gpu(gpu));
    let mut inside = Address::NULL;
    let graph = gpu.capture(|| inside = x.copy().address()).unwrap();
    let outside = x.copy();
    assert_ne!(outside.address(), inside, "a replay would overwrite it");
    drop(graph);
    assert_eq!(x.copy().address(), inside, "the graph's memory is everybody's again");
}

/// What two graphs need of one size, they need once.
#[test]
fn graphs_share_their_memory() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 64], [64]).to_device(Device::Gpu(gpu));
    let mut inside = Vec::new();
    let graphs = [(); 2].map(|()| gpu.capture(|| inside.push(x.copy().address())).unwrap());
    assert_eq!(inside[0], inside[1]);
    let [first, second] = graphs;
    drop(first);
    assert_ne!(x.copy().address(), inside[0], "the second graph still writes there");
    drop(second);
    assert_eq!(x.copy().address(), inside[0]);
}

#[test]
fn a_graph_keeps_memory_that_is_dropped_later() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 64], [64]).to_device(Device::Gpu(gpu));
    let mut inside = None;
    let graph = gpu.capture(|| inside = Some(x.copy())).unwrap();
    let inside = inside.unwrap();
    let address = inside.address();
    drop(inside);
    let outside = x.copy();
    assert_ne!(outside.address(), address, "a replay would overwrite it");
    drop(graph);
    assert_eq!(x.copy().address(), address, "the graph's memory is everybody's again");
}

#[test]
fn a_graph_keeps_memory_that_is_dropped_meanwhile() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 64], [64]).to_device(Device::Gpu(gpu));
    let read = x.copy();
    let address = read.address();
    let graph = gpu.capture(|| drop((read.copy(), read))).unwrap();
    assert_ne!(x.copy().address(), address, "a replay reads it");
    drop(graph);
    let again = [0; 2].map(|_| x.copy());
    assert!(again.iter().any(|copy| copy.address() == address), "the graph's memory is everybody's again");
}

/// A trace of work gives the plan of its memory, and what it launched.
#[test]
fn a_planned_graph_replays_what_was_traced() {
    let gpu = emulator(0);
    let x = Tensor::from_vec((0..64).map(|i| i as f32).collect(), [64]).to_device(Device::Gpu(gpu));
    let mut out = Tensor::zeros([64], DType::F32, Device::Gpu(gpu));
    let mut kept = Vec::new();
    let mut work = |kept: &mut Vec<Tensor>| {
        let mut copy = x.copy();
        if kept.is_empty() {
            // As a table: made at the first call, and there from then on.
            kept.push(x.copy());
        }
        medmerge::ops::pointwise::add_assign(copy.view_mut(), &x);
        let second = copy.copy();
        drop(copy);
        let third = second.copy();
        out.view_mut().copy_from(&third);
    };
    let trace = gpu.trace(|| work(&mut kept));
    assert_eq!((trace.plan.len(), trace.plan.peak_live(), trace.plan.arena()), (3, 512, 512));
    let names: Vec<String> = trace.work.iter().map(|work| work.of.name()).collect();
    assert_eq!(names, ["memcpy", "memcpy", "add_f32", "memcpy", "memcpy", "memcpy"]);
    let graph = gpu.capture_planned(&trace.plan, || work(&mut kept)).unwrap();
    assert_eq!((graph.work().len(), gpu.misfits()), (5, 0));
    let held = gpu.held_memory();
    let again = gpu.capture_planned(&trace.plan, || work(&mut kept)).unwrap();
    assert_eq!(gpu.held_memory(), held, "both graphs lie in one arena");
    for graph in [&graph, &again] {
        out.view_mut().fill(0.0);
        graph.replay();
        assert_eq!(out.to_vec::<f32>(), (0..64).map(|i| 2.0 * i as f32).collect::<Vec<_>>());
    }
    gpu.check().unwrap();
}

#[test]
fn a_panic_while_a_graph_is_captured_leaves_the_device_as_it_was() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 64], [64]).to_device(Device::Gpu(gpu));
    let trace = gpu.trace(|| drop(x.copy()));
    let launches = gpu.launches();
    for planned in [false, true] {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let work = || {
                let mut copy = x.copy();
                medmerge::ops::pointwise::add_assign(copy.view_mut(), &x);
                panic!("on purpose");
            };
            if planned { gpu.capture_planned(&trace.plan, work) } else { gpu.capture(work) }.map(drop)
        }));
        assert!(panicked.is_err());
        // Nothing is being recorded: what waits and downloads works, and what is launched runs.
        gpu.synchronize().unwrap();
        assert_eq!((x.copy().to_vec::<f32>(), gpu.launches()), (vec![1.0; 64], launches));
    }
    let graph = gpu.capture_planned(&trace.plan, || drop(x.copy())).unwrap();
    graph.replay();
    gpu.check().unwrap();
}

#[test]
#[should_panic(expected = "outlive")]
fn a_planned_buffer_cannot_outlive_its_graph() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 64], [64]).to_device(Device::Gpu(gpu));
    let trace = gpu.trace(|| drop(x.copy()));
    let mut kept = None;
    let _graph = gpu.capture_planned(&trace.plan, || kept = Some(x.copy()));
}

#[test]
fn nothing_is_uploaded_while_a_graph_is_captured() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 4], [4]);
    let captured = gpu.capture(|| drop(x.to_device(Device::Gpu(gpu))));
    assert!(captured.err().expect("a fault").to_string().contains("an upload while a graph is captured"));
}

#[test]
fn nothing_is_downloaded_while_a_graph_is_captured() {
    let gpu = emulator(0);
    let x = Tensor::from_vec(vec![1f32; 4], [4]).to_device(Device::Gpu(gpu));
    let captured = gpu.capture(|| drop(x.to_vec::<f32>()));
    assert!(captured.err().expect("a fault").to_string().contains("a download while a graph is captured"));
}

#[test]
fn the_memory_has_an_end() {
    let gpu = emulator(0);
    let _huge = Tensor::uninit([1 << 40], DType::F32, Device::Gpu(gpu));
    assert!(matches!(gpu.check(), Err(Failure::OutOfMemory { .. })));
    assert!(gpu.check().unwrap_err().hint().contains("--batch-size"));
}

parameters! {
    struct Product: 24 bytes { a: Address, b: Address, d: Address }
}

/// What `name` of `matrix.cu` makes of whole numbers: A 16 × 16, B as `b` says.
fn product(name: &'static str, storage: DType, a: &[f32], b: &[f32]) -> Result<Vec<f32>, Failure> {
    product_on(TensorCores::Rounding, name, storage, a, b)
}

fn product_on(
    cores: TensorCores,
    name: &'static str,
    storage: DType,
    a: &[f32],
    b: &[f32],
) -> Result<Vec<f32>, Failure> {
    let gpu = Gpu::on_emulator(Emulator::with_guests(3, guests("matrix", storage)).with_tensor_cores(cores));
    let operand =
        |values: &[f32]| Tensor::from_vec(values.to_vec(), [values.len()]).to_device(Device::Gpu(gpu)).cast(storage);
    let (a, b) = (operand(a), operand(b));
    let mut d = Tensor::uninit([16 * 8], DType::F32, Device::Gpu(gpu));
    let parameters = Product { a: a.address(), b: b.address(), d: d.view_mut().address() };
    // SAFETY: the operands have the kernel's sizes.
    unsafe { gpu.launch("matrix", name, storage, [1, 1, 1], 32, &parameters) };
    gpu.synchronize()?;
    Ok(d.to_vec())
}

/// Whole numbers below 8 in absolute value, different in every place that fragments could confuse.
fn wholes(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * step + i / 7) % 15) as f32 - 7.0).collect()
}

#[test]
fn matrix_instructions_multiply() {
    let (a, turned) = (wholes(256, 5), wholes(128, 11));
    let expected: Vec<f32> =
        (0..128).map(|i| (0..16).map(|k| a[i / 8 * 16 + k] * turned[i % 8 * 16 + k]).sum()).collect();
    let plain: Vec<f32> = (0..128).map(|i| turned[i % 8 * 16 + i / 8]).collect();
    for storage in [DType::BF16, DType::F16] {
        assert_eq!(product("product", storage, &a, &turned).unwrap(), expected, "{storage}");
        assert_eq!(product("product_turned", storage, &a, &plain).unwrap(), expected, "{storage}");
    }
}

/// 1 and products of 2⁻ⁿ with signs: what is cut off, and of how many products at a time, tells the architectures apart.
#[test]
fn tensor_cores_cut_off_as_their_architecture_does() {
    let on = |cores, terms: &[(usize, f32, f32)]| {
        let (mut a, mut b) = (vec![0.0; 256], vec![0.0; 128]);
        for &(k, of_a, of_b) in terms {
            (a[k], b[k]) = (of_a, of_b);
        }
        product_on(cores, "product", DType::BF16, &a, &b).unwrap()[0]
    };
    let power = |n: i32| 2f32.powi(n);
    let below_one = 1.0 - power(-24);
    let [ampere, hopper, rounding] = [TensorCores::Ampere, TensorCores::Hopper, TensorCores::Rounding];
    for (terms, expected) in [
        // 1 − 2⁻²⁵: the 25th bit behind the point is kept by Hopper alone, and what is kept is cut off to a float.
        (vec![(0, 1.0, 1.0), (1, power(-12), -power(-13))], [1.0, below_one, 1.0]),
        // 1 − 2⁻²⁶ is beyond both.
        (vec![(0, 1.0, 1.0), (1, power(-13), -power(-13))], [1.0, 1.0, 1.0]),
        // 1 + 3·2⁻²⁵ is rounded up to 1 + 2⁻²³ by a rounding sum, and cut off by both.
        (vec![(0, 1.0, 1.0), (1, 1.5 * power(-12), power(-12))], [1.0, 1.0, 1.0 + power(-23)]),
        // Four times 2⁻²⁵: together 2⁻²³ on Hopper; on Ampere each is nothing beside 1.
        (
            std::iter::once((0, 1.0, 1.0)).chain((1..5).map(|k| (k, power(-12), power(-13)))).collect(),
            [1.0, 1.0 + power(-23), 1.0],
        ),
        // The same in the second half: eight at a time come after the 1 is there, sixteen with it.
        (
            std::iter::once((0, 1.0, 1.0)).chain((8..12).map(|k| (k, power(-12), power(-13)))).collect(),
            [1.0, 1.0 + power(-23), 1.0],
        ),
        // Before the 1 is there, four of them are a sum of their own on Ampere.
        (
            (0..4).map(|k| (k, power(-12), power(-13))).chain([(8, 1.0, 1.0)]).collect(),
            [1.0 + power(-23), 1.0 + power(-23), 1.0 + power(-23)],
        ),
    ] {
        let found = [ampere, hopper, rounding].map(|cores| on(cores, &terms));
        assert_eq!(found, expected, "{terms:?}");
    }
    let whole: Vec<f32> = wholes(256, 5);
    let exact = product("product", DType::F16, &whole, &wholes(128, 11)).unwrap();
    for cores in [ampere, hopper] {
        assert_eq!(product_on(cores, "product", DType::F16, &whole, &wholes(128, 11)).unwrap(), exact);
    }
    assert!(on(hopper, &[(3, f32::NAN, 1.0)]).is_nan());
    assert_eq!(on(ampere, &[(3, f32::INFINITY, 1.0)]), f32::INFINITY);
}

/// Nobody's offer is read as if it were as long as another's.
#[test]
fn lanes_that_exchange_different_things() {
    let failure = product("loads_apart", DType::BF16, &wholes(256, 5), &wholes(128, 11)).unwrap_err().to_string();
    for says in ["the collective at", "tensor.cuh:", "which waits at the collective at"] {
        assert!(failure.contains(says), "no '{says}' in {failure}");
    }
}

#[test]
fn copies_that_were_not_waited_for() {
    let (a, b) = (wholes(256, 5), wholes(128, 11));
    let early = product("reads_too_early", DType::BF16, &a, &b).unwrap();
    assert!(early[..32].iter().all(|value| value.is_nan()));
    let failure = product("reads_across", DType::BF16, &a, &b).unwrap_err().to_string();
    assert!(failure.contains("race: ") && failure.contains("after"), "{failure}");
}
