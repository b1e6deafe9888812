//! The engine's side of the NVIDIA driver, against a stand-in for the driver's library (`libcuda.c`) that a C compiler
//! makes here. What a GPU does with it, this cannot show; that calls come in an order and with arguments that the
//! documentation allows, and that their errors arrive as failures with a hint, it can.

mod finding;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use medmerge::gpu::tensor_map::{Images, Matrix, Window};
use medmerge::gpu::{Address, Blocks, Failure, Gpu, Handle};
use medmerge::parameters;
use medmerge::tensor::DType;
use serde_json::Value;
use tempfile::TempDir;

parameters! {
    struct Fill: 24 bytes { x: Address, count: u64, value: f32, padding: u32 }
}

/// Compiles a library that calls itself what the driver's does, and the toolkit's stub too.
fn build(source: &Path, library: &Path) {
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler.args(["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o"]).args([library, source]);
    assert!(compiler.status().expect("a C compiler").success());
}

/// Compiles the stand-in into a folder of its own.
fn stand_in() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let build = || {
        let folder = tempfile::tempdir().unwrap();
        build(Path::new("tests/driver/libcuda.c"), &folder.path().join("libcuda.so.1"));
        folder
    };
    FOLDER.get_or_init(build).path()
}

/// A GPU of the stand-in; a test has one of its own, because failures stay.
fn gpu(index: usize) -> Handle {
    static LOADED: OnceLock<libloading::Library> = OnceLock::new();
    // SAFETY: the library has no initialisation. A library that is loaded is found again by its name.
    LOADED.get_or_init(|| unsafe { libloading::Library::new(stand_in().join("libcuda.so.1")) }.unwrap());
    Gpu::cuda(index).unwrap_or_else(|failure| panic!("{failure}\nhint: {}", failure.hint()))
}

fn fill(gpu: Handle, x: Address, count: usize, value: f32) {
    let parameters = Fill { x, count: count as u64, value, padding: 0 };
    // SAFETY: tests own what they fill, or mean to see what happens.
    unsafe { gpu.launch("convert", "fill", DType::F32, [1, 1, 1], 256, &parameters) }
}

fn floats(gpu: Handle, x: Address, count: usize) -> Vec<f32> {
    let mut values = vec![0f32; count];
    gpu.download(x, bytemuck::cast_slice_mut(&mut values));
    values
}

#[test]
fn uploads_and_downloads_of_any_size_keep_their_bytes() {
    let gpu = gpu(0);
    assert_eq!(gpu.description().architecture, "sm_90a");
    assert_eq!(gpu.description().multiprocessors, 4);
    // Across the pieces of the staging buffers, and far more than all of them hold.
    let sizes = [1, 4, 63, 65, 4 << 20, (4 << 20) + 1, (20 << 20) + 3];
    let buffers: Vec<_> = sizes.iter().map(|bytes| (gpu.allocate(*bytes), *bytes)).collect();
    let content =
        |seed: usize, bytes: usize| -> Vec<u8> { (0..bytes).map(|i| (i * 7 + i / 251 + seed) as u8).collect() };
    for round in 0..3 {
        for (index, (buffer, bytes)) in buffers.iter().enumerate() {
            gpu.upload(buffer.address(), &content(round + index, *bytes));
        }
        for (index, (buffer, bytes)) in buffers.iter().enumerate() {
            let mut found = vec![0; *bytes];
            gpu.download(buffer.address(), &mut found);
            assert!(found == content(round + index, *bytes), "{bytes} bytes in round {round}");
        }
    }
    // Many small ones share a buffer.
    for i in 0..100_000u32 {
        gpu.upload(buffers[4].0.address().offset(4 * i as usize), &i.to_le_bytes());
    }
    let found = floats(gpu, buffers[4].0.address(), 100_000);
    assert!(found.iter().enumerate().all(|(i, value)| value.to_bits() == i as u32));
    gpu.check().unwrap();
}

/// A large upload goes beside the work, and is seen in its order all the same: each copy has what was uploaded before it.
#[test]
fn large_uploads_are_seen_in_the_order_of_the_work() {
    let gpu = gpu(9);
    const BYTES: usize = (9 << 20) + 12;
    let content = |round: u8| -> Vec<u8> { (0..BYTES).map(|i| (i / 97) as u8 ^ round).collect() };
    let to = gpu.allocate(BYTES);
    let kept: Vec<_> = (0..3).map(|_| gpu.allocate(BYTES)).collect();
    for round in 0..9 {
        gpu.upload(to.address(), &content(round));
        gpu.copy(kept[usize::from(round) % 3].address(), to.address(), BYTES);
        fill(gpu, to.address(), 100, 3.0);
    }
    for round in 6..9 {
        let mut found = vec![0; BYTES];
        gpu.download(kept[usize::from(round) % 3].address(), &mut found);
        assert!(found == content(round), "round {round}");
    }
    gpu.check().unwrap();
}

/// What other threads do meanwhile neither becomes part of what one records nor breaks it off.
#[test]
fn threads_wait_while_one_records() {
    let gpu = gpu(11);
    let [a, b] = [64, 64].map(|bytes| gpu.allocate(bytes));
    let (begun, is_recording) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        for round in is_recording {
            gpu.upload(b.address(), &[round; 64]);
            fill(gpu, b.address(), 8, f32::from(round));
            assert_eq!(floats(gpu, b.address(), 8), [f32::from(round); 8]);
            drop(gpu.allocate(1 << 12));
        }
    });
    for round in 1..20u8 {
        let graph = gpu
            .capture(|| {
                begun.send(round).unwrap();
                // The other thread has every chance to come between.
                (0..100).for_each(|_| std::thread::yield_now());
                let own = gpu.allocate(64);
                fill(gpu, own.address(), 16, 2.0);
                gpu.copy(a.address(), own.address(), 64);
            })
            .unwrap();
        assert_eq!((graph.launches(), graph.work().len()), (1, 2), "round {round}");
        graph.replay();
    }
    drop(begun);
    other.join().unwrap();
    assert_eq!(floats(gpu, a.address(), 16), [2.0; 16]);
    gpu.check().unwrap();
}

/// A table that is first needed while a step is recorded is there when it is replayed.
#[test]
fn a_table_may_be_needed_first_while_work_is_recorded() {
    let gpu = gpu(10);
    let a = gpu.allocate(12);
    let graph = gpu.capture(|| gpu.copy(a.address(), gpu.constant(&[1.0f32, 2.0, 4.0]), 12)).unwrap();
    graph.replay();
    assert_eq!(floats(gpu, a.address(), 3), [1.0, 2.0, 4.0]);
    drop(graph);
    assert_eq!(gpu.constant(&[1.0f32, 2.0, 4.0]), gpu.constant(&[1.0f32, 2.0, 4.0]));
    gpu.check().unwrap();
}

#[test]
fn work_is_done_in_order_from_any_thread() {
    let gpu = gpu(1);
    let (a, b) = (gpu.allocate(400), gpu.allocate(400));
    gpu.fill(a.address(), 0, 400);
    std::thread::spawn(move || {
        fill(gpu, a.address(), 100, 3.0);
        gpu.copy(b.address(), a.address(), 200);
        fill(gpu, a.address(), 100, 5.0);
        gpu.copy(b.address().offset(200), a.address(), 200);
        assert_eq!(floats(gpu, b.address(), 100), [[3.0f32; 50], [5.0; 50]].concat());
    })
    .join()
    .unwrap();
    gpu.synchronize().unwrap();
    assert_eq!(gpu.launches(), 2);
}

#[test]
fn a_recorded_step_is_replayed() {
    let gpu = gpu(2);
    let (a, b) = (gpu.allocate(64), gpu.allocate(64));
    let from = gpu.record_event().unwrap();
    fill(gpu, a.address(), 16, 1.0);
    let graph = gpu
        .capture(|| {
            gpu.copy(b.address(), a.address(), 64);
            let own = gpu.allocate(1 << 20);
            fill(gpu, own.address(), 16, 2.0);
            gpu.copy(a.address(), own.address(), 64);
        })
        .unwrap();
    assert_eq!(graph.launches(), 1);
    assert_eq!(floats(gpu, a.address(), 1), [1.0], "recording runs nothing");
    graph.replay();
    assert_eq!((floats(gpu, a.address(), 1), floats(gpu, b.address(), 1)), (vec![2.0], vec![1.0]));
    graph.replay();
    assert_eq!(floats(gpu, b.address(), 1), [2.0]);
    let to = gpu.record_event().unwrap();
    assert_eq!(gpu.milliseconds(from, to).unwrap(), 1.5);
    drop(graph);
    gpu.synchronize().unwrap();
}

#[test]
fn what_cannot_be_recorded_is_a_failure() {
    let gpu = gpu(3);
    let a = gpu.allocate(64);
    let failure = gpu.capture(|| gpu.upload(a.address(), &[0; 64])).map(drop).unwrap_err();
    assert!(matches!(failure, Failure::Recording { .. }), "{failure}");
    assert_eq!(failure.to_string(), "an upload while a graph is being recorded");
}

#[test]
fn memory_that_does_not_suffice_says_how_much_there_is() {
    let gpu = gpu(4);
    let kept = gpu.allocate(16 << 20);
    // Waits on its shelf, and is given back to the driver when that helps.
    drop(gpu.allocate(40 << 20));
    let larger = gpu.allocate(41 << 20);
    gpu.check().unwrap();
    let none = gpu.allocate(8 << 20);
    let Err(Failure::OutOfMemory { requested, free, total }) = gpu.check() else { panic!("{:?}", gpu.check()) };
    assert_eq!((requested, free, total), (8 << 20, 7 << 20, 64 << 20));
    drop((kept, larger, none));
}

#[test]
fn a_fault_names_the_kernel_before_it() {
    let gpu = gpu(5);
    let a = gpu.allocate(64);
    fill(gpu, a.address(), 16, 1.0);
    gpu.synchronize().unwrap();
    fill(gpu, Address(16), 16, 1.0);
    gpu.check().unwrap();
    let failure = gpu.synchronize().unwrap_err();
    let Failure::Fault { message } = &failure else { panic!("{failure}") };
    for says in
        ["CUDA_ERROR_ILLEGAL_ADDRESS", "illegal memory access", "at or before kernel fill_f32 of kernels/convert.cu"]
    {
        assert!(message.contains(says), "{message}");
    }
    assert!(floats(gpu, a.address(), 16).iter().all(|value| value.is_nan()));
    assert_eq!(gpu.synchronize().unwrap_err().to_string(), failure.to_string());
}

#[test]
fn a_kernel_that_is_not_there_is_a_failure() {
    let gpu = gpu(6);
    let parameters = Fill { x: Address::NULL, count: 0, value: 0.0, padding: 0 };
    // SAFETY: nothing is launched.
    unsafe { gpu.launch("convert", "nothing", DType::F32, [1, 1, 1], 32, &parameters) };
    let failure = gpu.check().unwrap_err();
    assert!(failure.to_string().contains("kernels/convert.cu has no kernel nothing_f32"), "{failure}");
}

#[test]
fn a_launch_that_is_refused_is_named() {
    let gpu = gpu(7);
    let parameters = Fill { x: Address::NULL, count: 0, value: 0.0, padding: 0 };
    // SAFETY: nothing is launched.
    unsafe { gpu.launch("convert", "fill", DType::F32, [1, 1 << 16, 1], 256, &parameters) };
    let failure = gpu.check().unwrap_err().to_string();
    assert!(failure.ends_with("CUDA_ERROR_INVALID_VALUE: 1×65536×1 blocks of 256 of fill_f32"), "{failure}");
}

/// More than what needs no permission, then less, then more again; and clusters, which a graph keeps.
#[test]
fn a_launch_asks_for_shared_memory_and_clusters() {
    let gpu = gpu(8);
    let a = gpu.allocate(64);
    let launch = |grid, blocks: Blocks, value: f32| {
        let parameters = Fill { x: a.address(), count: 16, value, padding: 0 };
        // SAFETY: the memory is as long as that.
        unsafe { gpu.launch("convert", "fill", DType::F32, grid, blocks, &parameters) }
    };
    let blocks = Blocks::from(256);
    for (kib, value) in [(40, 1.0), (100, 2.0), (10, 3.0), (100, 4.0), (227, 5.0)] {
        launch([1; 3], blocks.with_dynamic_shared(kib << 10), value);
        assert_eq!(floats(gpu, a.address(), 1), [value]);
    }
    let clustered = blocks.with_dynamic_shared(60 << 10).in_clusters([2, 1, 4]);
    let graph = gpu.capture(|| launch([6, 1, 8], clustered, 6.0)).unwrap();
    graph.replay();
    assert_eq!(floats(gpu, a.address(), 1), [6.0]);
    launch([6, 1, 7], clustered, 7.0);
    let failure = gpu.check().unwrap_err().to_string();
    let says = "6×1×7 blocks of 256 with 61440 bytes of dynamic shared memory in clusters of 2×1×4 of fill_f32";
    assert!(failure.ends_with(says), "{failure}");
}

/// The stand-in's tensor map holds the arguments that it was made of.
#[test]
fn tensor_maps_are_described_from_the_innermost_dimension_on() {
    let gpu = gpu(11);
    assert!(gpu.description().warpgroups);
    let memory = gpu.allocate(1 << 16);
    let address = memory.address();
    // What it is, its type, how many dimensions; the swizzle of 128 bytes, 256 bytes to L2, zeros outside.
    let kind = |kind: u64, dtype: u64, rank: u64| kind | dtype << 8 | rank << 16 | 3 << 24 | 3 << 32;
    let matrix = Matrix { address, dtype: DType::BF16, rows: 100, columns: 72, pitch: 160, box_rows: 192 };
    let map = gpu.encode(matrix).0;
    assert_eq!(map[..2], [kind(1, 9, 2), address.0]);
    assert_eq!(map[2..9], [72, 100, 0, 0, 160, 0, 0]);
    assert_eq!(map[9..13], [64 | 192 << 32, 1 | 1 << 16, 0, 0]);

    let window = Window { taps: [3, 7], strides: [2, 1], padding: [1, 3], dilation: [4, 1] };
    let images = Images::of_convolution(address, DType::F16, [5, 11, 13, 72], window, 128);
    let map = gpu.encode(images).0;
    assert_eq!(map[..2], [kind(2, 6, 4), address.0]);
    // C, W, H, N.
    assert_eq!(map[2..9], [72, 13, 11, 5, 144, 13 * 144, 11 * 13 * 144]);
    assert_eq!(map[9..11], [64 | 128 << 32, 1 | 1 << 16 | 2 << 32 | 1 << 48]);
    // W, H: the paddings, and what is left of them when the taps are there.
    let corner = |w: i32, h: i32| u64::from(w as u32) | u64::from(h as u32) << 32;
    assert_eq!(map[11..13], [corner(-3, -1), corner(3 - 6, 1 - 8)]);

    gpu.check().unwrap();
}

#[test]
fn shared_memory_that_no_block_has_is_refused_by_name() {
    let gpu = gpu(9);
    let parameters = Fill { x: Address::NULL, count: 0, value: 0.0, padding: 0 };
    let blocks = Blocks::from(256).with_dynamic_shared(228 << 10);
    // SAFETY: nothing is launched.
    unsafe { gpu.launch("convert", "fill", DType::F32, [1; 3], blocks, &parameters) };
    let failure = gpu.check().unwrap_err().to_string();
    assert!(failure.contains("cuFuncSetAttribute"), "{failure}");
    assert!(failure.contains("233472 bytes of dynamic shared memory of fill_f32"), "{failure}");
}

#[test]
fn a_gpu_beyond_the_last_is_refused() {
    gpu(0);
    assert!(matches!(Gpu::cuda(99), Err(Failure::NoDevice { index: 99, count: 12 })));
}

/// The program with the stand-in, and variables that change it.
fn program(arguments: &str, variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    program_in(&[stand_in()], arguments, variables)
}

/// The program with the libraries in these folders, as the loader finds them.
fn program_in(folders: &[&Path], arguments: &str, variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_medmerge"));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).unwrap());
    command.args(arguments.split(' ')).current_dir(folder.path());
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    command.env("XDG_CACHE_HOME", cache).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn devices(variables: &[(&str, &str)]) -> Value {
    let (code, stdout, stderr) = program("devices --json", variables);
    assert_eq!(code, Some(0), "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn devices_shows_what_the_driver_reports() {
    let found = devices(&[]);
    let cuda = &found["cuda"];
    assert_eq!((&found["auto"], &cuda["available"]), (&Value::from("cuda:0"), &Value::from(true)), "{found:#}");
    assert_eq!(cuda["driver"]["version"], "13.0");
    let path: PathBuf = serde_json::from_value(cuda["driver"]["path"].clone()).unwrap();
    assert_eq!(path, stand_in().join("libcuda.so.1"));
    assert_eq!(cuda["gpus"].as_array().unwrap().len(), 12);
    assert_eq!((&cuda["gpus"][9]["device"], &cuda["gpus"][9]["name"]), (&"cuda:9".into(), &"Stand-in".into()));
    assert_eq!(cuda["gpus"][0]["memory_bytes"], 64 << 20);
    let (_, text, _) = program("devices", &[("FAKE_CUDA_CAPABILITY", "80")]);
    assert!(text.contains("cuda:1: Stand-in, sm_80, 0.1 GiB, 4 multiprocessors"), "{text}");
}

#[test]
fn devices_explains_what_cannot_be_used() {
    for (variable, value, says) in [
        ("FAKE_CUDA_VERSION", "11080", "the NVIDIA driver supports CUDA 11.8; CUDA 12.0 is needed"),
        ("FAKE_CUDA_DEVICES", "0", "there is no GPU 0: the driver reports 0"),
        ("FAKE_CUDA_CAPABILITY", "52", "no longer compiles for sm_52"),
        ("FAKE_CUDA_CAPABILITY", "999", "cannot compile for sm_999"),
        ("MEDMERGE_NVRTC", "/nowhere", "MEDMERGE_NVRTC names /nowhere"),
    ] {
        let found = devices(&[(variable, value)]);
        assert_eq!((&found["auto"], &found["cuda"]["available"]), (&"cpu".into(), &false.into()), "{variable}={value}");
        assert!(found["cuda"]["reason"].as_str().unwrap().contains(says), "{variable}={value}: {found:#}");
    }
}

#[test]
fn auto_takes_the_first_gpu_that_can_be_used() {
    let old_first = [("FAKE_CUDA_CAPABILITY", "52,90")];
    assert_eq!(devices(&old_first)["auto"], "cuda:1");
    // The stand-in knows none of the kernels; what counts is where they would have run.
    let (_, stdout, stderr) = program("selftest --json --op pointwise", &old_first);
    let report: Value = serde_json::from_str(&stdout).expect(&stderr);
    assert_eq!(report["device"], "cuda:1", "{stderr}");
}

#[test]
fn a_binary_that_the_driver_does_not_understand_is_the_compilers_fault() {
    // A GPU is used by no verb without files of its own: this test runs itself with another stand-in.
    let variable = "FAKE_CUDA_LOADS_NOTHING";
    if std::env::var_os(variable).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "a_binary_that_the_driver_does_not_understand_is_the_compilers_fault"]);
        assert!(again.env(variable, "1").status().unwrap().success());
        return;
    }
    let gpu = gpu(0);
    let a = gpu.allocate(64);
    fill(gpu, a.address(), 16, 1.0);
    let failure = gpu.check().unwrap_err();
    assert!(matches!(failure, Failure::CompilerTooNew { .. }), "{failure}");
    assert!(failure.to_string().contains("the NVIDIA driver (CUDA 13.0) cannot load what libnvrtc"), "{failure}");
}

#[test]
fn kernels_are_compiled_for_the_gpu_that_is_here() {
    let (code, stdout, stderr) = program("kernels", &[("FAKE_CUDA_CAPABILITY", "80")]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with("sm_80, libnvrtc "), "{stdout}");
}
