//! Launches that ask for shared memory and for clusters.

use medmerge::gpu::emulator::Emulator;
use medmerge::gpu::{Blocks, Failure, Gpu, Handle};
use medmerge::tensor::{DType, Device, Tensor};

use crate::{Broken, THREADS, guests};

fn emulator(seed: u64) -> Handle {
    Gpu::on_emulator(Emulator::with_guests(seed, guests("dynamic", DType::F32)))
}

/// What x holds after `name` ran over it in `grid` such blocks.
fn run(gpu: Handle, name: &'static str, x: &[f32], grid: [u32; 3], blocks: Blocks) -> Result<Vec<f32>, Failure> {
    let mut tensor = Tensor::from_vec(x.to_vec(), [x.len()]).to_device(Device::Gpu(gpu));
    let parameters = Broken { x: tensor.view_mut().address(), count: x.len() as u64 };
    // SAFETY: the kernels stay within `count`; of their shared memory, the emulator takes care.
    unsafe { gpu.launch("dynamic", name, DType::F32, grid, blocks, &parameters) };
    gpu.synchronize()?;
    Ok(tensor.to_vec())
}

fn with(bytes: usize) -> Blocks {
    Blocks::from(THREADS).with_dynamic_shared(bytes as u32)
}

#[track_caller]
fn assert_fault(name: &'static str, grid: [u32; 3], blocks: Blocks, words: &[&str]) {
    for seed in 0..3 {
        let failure = run(emulator(seed), name, &[1.0; 4], grid, blocks).expect_err("a fault").to_string();
        for word in words {
            assert!(failure.contains(word), "{failure:?} does not say {word:?}");
        }
    }
}

/// More than a kernel can declare, and as much as there is.
#[test]
fn shared_memory_that_the_launch_asks_for() {
    let backwards = |x: &[f32]| x.iter().rev().copied().collect::<Vec<f32>>();
    for count in [4, 20_000, Blocks::SHARED / 4] {
        let x: Vec<f32> = (0..count).map(|i| i as f32).collect();
        for seed in 0..3 {
            assert_eq!(run(emulator(seed), "reverses", &x, [1; 3], with(4 * count)).unwrap(), backwards(&x));
        }
    }
    assert_eq!(run(emulator(0), "declares_and_stages", &[0.0; 4], [3, 1, 1], with(256)).unwrap(), [3.0; 4]);
}

#[test]
fn it_is_checked_like_what_is_declared() {
    assert_fault("reverses", [1; 3], with(12), &["out of bounds: stage", "[3]"]);
    assert_fault("reverses", [1; 3], THREADS.into(), &["out of bounds: stage"]);
    assert_fault("races_in_its_stage", [2, 1, 1], with(1024), &["race: ", "stage", "also touched by thread"]);
    assert_fault("names_its_stage_twice", [1; 3], with(1024), &["second (", "a second name"]);
    // What an earlier block left there is gone.
    let gpu = emulator(0);
    run(gpu, "reverses", &[1.0; 4], [1; 3], with(16)).unwrap();
    let unwritten = run(gpu, "reads_unwritten_stage", &[0.0; 4], [1; 3], with(16)).unwrap();
    assert!(unwritten.iter().all(|x| x.is_nan()), "{unwritten:?}");
}

#[test]
fn a_block_has_so_much_and_no_more() {
    let dynamic = ["232449 bytes of dynamic shared memory; a block has 232448"];
    assert_fault("reverses", [1; 3], with(Blocks::SHARED + 1), &dynamic);
    // With the 16 KiB that it declares.
    let both = ["16384 bytes of shared memory; 16380 can be declared"];
    assert_fault("declares_and_stages", [1; 3], with(Blocks::SHARED - (16 << 10) + 4), &both);
    run(emulator(0), "declares_and_stages", &[0.0; 4], [1; 3], with(Blocks::SHARED - (16 << 10))).unwrap();
}

#[test]
fn clusters_divide_the_grid() {
    let clusters = |cluster| with(256).in_clusters(cluster);
    for (grid, cluster) in [([4, 3, 2], [2, 3, 1]), ([8, 1, 1], [8, 1, 1]), ([5, 1, 1], [1, 1, 1])] {
        run(emulator(0), "declares_and_stages", &[0.0; 4], grid, clusters(cluster)).unwrap();
    }
    let refused = ["clusters of 2×1×1 blocks do not divide a grid of 3×1×1"];
    assert_fault("declares_and_stages", [3, 1, 1], clusters([2, 1, 1]), &refused);
    assert_fault("declares_and_stages", [4, 1, 1], clusters([2, 0, 1]), &["clusters of 2×0×1 blocks do not divide"]);
    assert_fault("declares_and_stages", [16, 1, 1], clusters([16, 1, 1]), &["every GPU takes 8"]);
}

#[test]
fn a_graph_keeps_what_a_launch_asked_for() {
    let gpu = emulator(3);
    let mut x = Tensor::from_vec(vec![1f32, 2.0, 3.0], [3]).to_device(Device::Gpu(gpu));
    let parameters = Broken { x: x.view_mut().address(), count: 3 };
    // SAFETY: the kernel stays within `count`.
    let launch = || unsafe { gpu.launch("dynamic", "reverses", DType::F32, [1; 3], with(12), &parameters) };
    let graph = gpu.capture(launch).unwrap();
    graph.replay();
    assert_eq!(x.to_vec::<f32>(), [3.0, 2.0, 1.0]);
    gpu.check().unwrap();
}
