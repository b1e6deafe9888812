//! Blocks that run as a cluster on sm_90a: copies to both of two, barriers at which both arrive. Right kernels give the right numbers for
//! any seed, and each kind of wrong one is told so.

use medmerge::gpu::emulator::Emulator;
use medmerge::gpu::tensor_map::Matrix;
use medmerge::gpu::{Address, Blocks, Failure, Gpu, TensorMap};
use medmerge::parameters;
use medmerge::tensor::{DType, Device, Tensor};

use crate::{guests, wholes};

parameters! {
    struct Clusters: 192 bytes { halves: TensorMap, y: Address, rounds: u64, padding: [u32; 12] }
}

const THREADS: usize = 128;
const ROUNDS: usize = 5;

/// What the blocks of `name` write, so many clusters of two.
fn run(seed: u64, name: &'static str, clusters: usize) -> Result<Vec<f32>, Failure> {
    let gpu = Gpu::on_emulator(Emulator::with_guests(seed, guests("clusters", DType::BF16)));
    let numbers = Tensor::from_vec(wholes(ROUNDS * 64 * 64, 3), [ROUNDS * 64 * 64]);
    let numbers = numbers.to_device(Device::Gpu(gpu)).cast(DType::BF16);
    let halves = gpu.encode(Matrix::dense(numbers.address(), DType::BF16, [ROUNDS * 64, 64], 32));
    let mut y = Tensor::zeros([2 * THREADS], DType::F32, Device::Gpu(gpu));
    let (y_address, rounds) = (y.view_mut().address(), ROUNDS as u64);
    let parameters = Clusters { halves, y: y_address, rounds, padding: [0; 12] };
    let blocks = Blocks::from(THREADS as u32).with_dynamic_shared(64 * 128).in_clusters([2, 1, 1]);
    // SAFETY: the kernels write at most as many numbers; what else they do wrong, the emulator stops.
    unsafe { gpu.launch("clusters", name, DType::BF16, [2 * clusters as u32, 1, 1], blocks, &parameters) };
    gpu.synchronize()?;
    Ok(y.to_vec())
}

/// What the emulator says, of each seed's order.
#[track_caller]
fn messages(name: &'static str) -> Vec<String> {
    let message = |seed| run(seed, name, 1).expect_err("a fault").to_string();
    let messages: Vec<String> = (0..6).map(message).collect();
    let begin = format!("kernel {name}_bf16, block [");
    assert!(messages.iter().all(|message| message.contains(&begin)), "{messages:?}");
    messages
}

#[track_caller]
fn is_reported(name: &'static str, words: &[&str]) {
    for message in messages(name) {
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
}

/// Each block adds up both halves of each tile, of which it has copied one.
#[test]
fn blocks_share_what_they_copy() {
    let numbers = wholes(ROUNDS * 64 * 64, 3);
    let sum = |thread: usize| -> f32 {
        let lines = (0..ROUNDS * 64).filter(|line| line % 2 == thread / 64);
        lines.map(|line| numbers[line * 64 + thread % 64]).sum()
    };
    let expected: Vec<f32> = (0..2 * THREADS).map(|i| sum(i % THREADS)).collect();
    for seed in 0..6 {
        assert_eq!(run(seed, "shares_tiles", 1).unwrap(), expected, "seed {seed}");
    }
}

#[test]
fn blocks_side_by_side_are_a_cluster() {
    let found = run(3, "tells_ranks", 3).unwrap();
    assert_eq!(found[..6], [20.0, 21.0, 20.0, 21.0, 20.0, 21.0]);
}

#[test]
fn what_the_other_block_still_reads_is_not_overwritten() {
    let race = ["race: ", " of tile (", "by the bulk copy at tests/emulator/clusters.cu:", "also touched by"];
    is_reported("shares_before_the_other_has_read", &race);
}

#[test]
fn a_block_is_reached_for_only_while_it_is_there() {
    is_reported("shares_before_they_have_met", &["barrier full", "made"]);
    // It had ended, or had not waited: whoever is looked at first.
    let ended = "the block of rank 0 is reached for, which has ended";
    for (name, unawaited) in [
        ("ends_before_the_other_has_arrived", "the block ends before it has waited for those of others"),
        ("ends_before_a_copy_to_it", "the block ends before the bulk copy at tests/emulator/clusters.cu:"),
    ] {
        let is_told = |message: &String| message.contains(ended) || message.contains(unawaited);
        let messages = messages(name);
        assert!(messages.iter().all(is_told), "{messages:?}");
    }
    is_reported("reaches_beyond_its_cluster", &["a block of rank 2 is reached for in a cluster of 2"]);
    is_reported("copies_beyond_its_cluster", &["a block of rank 2 is reached for in a cluster of 2"]);
}

#[test]
fn all_threads_meet_at_the_clusters_barrier() {
    let words =
        ["block [1, 0, 0], thread 77: the cluster's barrier at", "is not reached by this thread, which has ended"];
    is_reported("misses_the_clusters_barrier", &words);
}

#[test]
fn who_arrives_tells_only_who_waits() {
    let race = ["race: ", " of shared", "also touched by thread", "of the block of rank"];
    is_reported("hands_over_by_the_other_block", &race);
}
