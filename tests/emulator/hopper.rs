//! What runs beside threads on sm_90a: bulk copies, barriers that count bytes, products of warpgroups. Right kernels give the right
//! numbers for any seed, and each kind of wrong one is told so.

use medmerge::gpu::emulator::Emulator;
use medmerge::gpu::tensor_map::{Images, Mapped, Matrix, Window};
use medmerge::gpu::{Address, Blocks, Failure, Gpu, Handle, TensorCores, TensorMap};
use medmerge::parameters;
use medmerge::tensor::{DType, Device, Tensor};

use crate::{guests, wholes};

parameters! {
    struct Hopper: 320 bytes {
        a: TensorMap,
        b: TensorMap,
        y: Address,
        count: u64,
        tile_of_b: u32,
        at: [i32; 4],
        offset: [u32; 2],
        padding: [u32; 5],
    }
}

/// Bytes that all of these kernels get by with.
const SHARED: u32 = 3 * (128 + 256) * 128;
const BOTH: [DType; 2] = [DType::BF16, DType::F16];

fn emulator(seed: u64, storage: DType, cores: TensorCores) -> Handle {
    Gpu::on_emulator(Emulator::with_guests(seed, guests("hopper", storage)).with_tensor_cores(cores))
}

fn on(gpu: Handle, storage: DType, numbers: &[f32]) -> Tensor {
    Tensor::from_vec(numbers.to_vec(), [numbers.len()]).to_device(Device::Gpu(gpu)).cast(storage)
}

/// What `name` writes: `count` numbers.
fn run(
    gpu: Handle,
    storage: DType,
    name: &'static str,
    threads: u32,
    count: usize,
    parameters: Hopper,
) -> Result<Vec<f32>, Failure> {
    let mut y = Tensor::uninit([count], DType::F32, Device::Gpu(gpu));
    let parameters = Hopper { y: y.view_mut().address(), ..parameters };
    let blocks = Blocks::from(threads).with_dynamic_shared(SHARED);
    // SAFETY: the kernels write `count` numbers; what else they do wrong, the emulator stops.
    unsafe { gpu.launch("hopper", name, storage, [1; 3], blocks, &parameters) };
    gpu.synchronize()?;
    Ok(y.to_vec())
}

fn nothing() -> Hopper {
    bytemuck::Zeroable::zeroed()
}

/// Pack c of line l of 1024 bytes lies where pack c ^ (l % 8) would, as PTX has it: bits 4 to 6 of the address are changed by bits 7 to 9.
#[test]
fn the_swizzle_is_that_of_ptx() {
    let gpu = emulator(0, DType::BF16, TensorCores::Rounding);
    let count = 24 * 128;
    let places = run(gpu, DType::BF16, "swizzles", 128, count, Hopper { count: count as u64, ..nothing() }).unwrap();
    for (address, place) in places.iter().enumerate() {
        assert_eq!(*place as usize, address ^ ((address >> 7 & 7) << 4), "{address}");
    }
}

/// A box that sticks out of its matrix on each side.
#[test]
fn boxes_are_zero_outside_of_the_matrix() {
    let (rows, columns, lines) = (20, 72, 40);
    let numbers = wholes(rows * columns, 5);
    for (seed, [x, y]) in
        [[0, 0], [3, -7], [-60, 15], [50, 19], [-64, 0], [72, 0], [0, 20], [8, -40]].into_iter().enumerate()
    {
        let gpu = emulator(seed as u64, DType::BF16, TensorCores::Rounding);
        let tensor = on(gpu, DType::BF16, &numbers);
        let a = gpu.encode(Matrix::dense(tensor.address(), DType::BF16, [rows, columns], lines as u32));
        let parameters = Hopper { a, count: lines as u64, at: [x, y, 0, 0], ..nothing() };
        let found = run(gpu, DType::BF16, "copies_box", 128, lines * 64, parameters).unwrap();
        for (i, found) in found.iter().enumerate() {
            let (row, column) = (y as i64 + (i / 64) as i64, x as i64 + (i % 64) as i64);
            let inside = (0..rows as i64).contains(&row) && (0..columns as i64).contains(&column);
            let expected = if inside { numbers[row as usize * columns + column as usize] } else { 0.0 };
            assert_eq!(*found, expected, "line {} and column {} of the box at {x}, {y}", i / 64, i % 64);
        }
    }
}

/// For each tap of a convolution, what its outputs read, padding as zeros; strides and dilations that differ by dimension.
#[test]
fn patches_are_what_a_convolution_reads() {
    let (n, h, w, c) = (2, 7, 6, 72);
    let numbers = wholes(n * h * w * c, 7);
    for (seed, (taps, strides, padding, dilation)) in [
        ([3, 3], [1, 1], [1, 1], [1, 1]),
        ([3, 3], [2, 2], [1, 1], [1, 1]),
        ([2, 3], [1, 2], [0, 3], [3, 2]),
        ([1, 1], [2, 1], [0, 0], [1, 1]),
    ]
    .into_iter()
    .enumerate()
    {
        let gpu = emulator(seed as u64, DType::F16, TensorCores::Rounding);
        let tensor = on(gpu, DType::F16, &numbers);
        let out = |i: usize, size: usize| (size + 2 * padding[i] - dilation[i] * (taps[i] - 1) - 1) / strides[i] + 1;
        let (p, q) = (out(0, h), out(1, w));
        let window = Window { taps, strides, padding, dilation };
        // More pixels than there are: beyond the last image, zeros.
        let pixels = 40;
        let a = gpu.encode(Images::of_convolution(tensor.address(), DType::F16, [n, h, w, c], window, pixels as u32));
        for first in [0, 5, n * p * q - 3] {
            for (r, s) in (0..taps[0]).flat_map(|r| (0..taps[1]).map(move |s| (r, s))) {
                for channel in [0, 8, 64] {
                    let start = |i: usize, o: usize| (o * strides[i]) as i32 - padding[i] as i32;
                    let at = [channel as i32, start(1, first % q), start(0, first / q % p), (first / q / p) as i32];
                    let offset = [(s * dilation[1]) as u32, (r * dilation[0]) as u32];
                    let parameters = Hopper { a, count: pixels as u64, at, offset, ..nothing() };
                    let found = run(gpu, DType::F16, "copies_patches", 128, pixels * 64, parameters).unwrap();
                    for (i, found) in found.iter().enumerate() {
                        let (output, channel) = (first + i / 64, channel + i % 64);
                        let image = output / q / p;
                        let row = start(0, output / q % p) + offset[1] as i32;
                        let column = start(1, output % q) + offset[0] as i32;
                        let is_in = |i: i32, size: usize| (0..size as i32).contains(&i);
                        let inside = image < n && is_in(row, h) && is_in(column, w) && channel < c;
                        let place = ((image * h + row.max(0) as usize) * w + column.max(0) as usize) * c + channel;
                        assert_eq!(*found, if inside { numbers[place] } else { 0.0 }, "output {output}, tap {r}, {s}");
                    }
                }
            }
        }
    }
}

/// A ring of stages that copies fill and two warpgroups multiply from: whole numbers have one product.
#[test]
fn warpgroups_multiply_what_copies_bring() {
    let (rows, summands) = (128, 448);
    let (a, b) = (wholes(rows * summands, 5), wholes(256 * summands, 11));
    // Lines of summands, or of rows.
    let turned = |numbers: &[f32], rows: usize| -> Vec<f32> {
        (0..rows * summands).map(|i| numbers[i % rows * summands + i / rows]).collect()
    };
    let (columns_of, along_of) = ([128, 128, 256, 64], [(true, true), (true, false), (false, false), (false, true)]);
    let names = ["multiplies_rows", "multiplies_turned_b", "multiplies_turned", "multiplies_narrow"];
    for ((name, columns), (a_along, b_along)) in names.into_iter().zip(columns_of).zip(along_of) {
        let sum = |i: usize| {
            let products = (0..summands).map(|k| a[i / columns * summands + k] * b[i % columns * summands + k]);
            products.sum::<f32>()
        };
        let expected: Vec<f32> = (0..rows * columns).map(sum).collect();
        for storage in BOTH {
            for (seed, cores) in
                [TensorCores::Rounding, TensorCores::Hopper, TensorCores::Rounding].into_iter().enumerate()
            {
                let gpu = emulator(seed as u64, storage, cores);
                let matrix = |numbers: &[f32], rows: usize, along: bool| {
                    let (shape, numbers) = match along {
                        true => ([rows, summands], numbers[..rows * summands].to_vec()),
                        false => ([summands, rows], turned(numbers, rows)),
                    };
                    let tensor = on(gpu, storage, &numbers);
                    (gpu.encode(Matrix::dense(tensor.address(), storage, shape, 64)), tensor)
                };
                let (of_a, _a) = matrix(&a, rows, a_along);
                let (of_b, _b) = matrix(&b, columns, b_along);
                let parameters = Hopper { a: of_a, b: of_b, count: summands as u64, ..nothing() };
                let found = run(gpu, storage, name, 384, rows * columns, parameters).unwrap();
                assert!(found == expected, "{name}, {storage}, seed {seed}");
            }
        }
    }
}

/// What tensor cores of sm_90a cut off: 1 and sixteen times 2⁻²⁵.
#[test]
fn warpgroups_add_as_their_architecture_does() {
    let (rows, summands) = (128, 64);
    let mut a = vec![0.0; rows * summands];
    let mut b = a.clone();
    (a[0], b[0]) = (1.0, 1.0);
    (1..5).for_each(|k| (a[k], b[k]) = (2f32.powi(-12), 2f32.powi(-13)));
    let one = |cores| {
        let gpu = emulator(1, DType::F16, cores);
        let (a, b) = (on(gpu, DType::F16, &a), on(gpu, DType::F16, &b));
        let map = |of: &Tensor| gpu.encode(Matrix::dense(of.address(), DType::F16, [rows, summands], 64));
        let parameters = Hopper { a: map(&a), b: map(&b), count: summands as u64, ..nothing() };
        run(gpu, DType::F16, "multiplies_rows", 384, rows * 128, parameters).unwrap()[0]
    };
    assert_eq!(one(TensorCores::Rounding), 1.0);
    assert_eq!(one(TensorCores::Hopper), 1.0 + 2f32.powi(-23));
    assert_eq!(one(TensorCores::Ampere), 1.0);
}

#[test]
fn threads_order_what_they_write_by_fences_and_barriers() {
    for seed in 0..4 {
        let gpu = emulator(seed, DType::BF16, TensorCores::Rounding);
        let found = run(gpu, DType::BF16, "multiplies_what_it_wrote", 256, 128, nothing()).unwrap();
        // 2·1 squared, twice; a lane has four sums of each of 8 pieces, and added to one of them.
        let expected: Vec<f32> = (0..128usize)
            .map(|thread| {
                let other = thread ^ 127;
                let (row, column) = (other / 32 * 16 + other % 32 / 4, other % 4 * 2);
                let on_diagonal = |row: usize| row % 8 == column || row % 8 == column + 1;
                let count = [row, row + 8].into_iter().filter(|row| on_diagonal(*row)).count();
                8.0 * count as f32 + 2.0
            })
            .collect();
        assert_eq!(found, expected, "seed {seed}");
        let found = run(gpu, DType::BF16, "hands_over", 128, 128, nothing()).unwrap();
        assert_eq!(found, [1234.0; 128], "seed {seed}");
    }
}

/// A matrix of 64 × 64 that all broken kernels copy.
fn broken(seed: u64, name: &'static str) -> Result<Vec<f32>, Failure> {
    let gpu = emulator(seed, DType::BF16, TensorCores::Rounding);
    let tensor = on(gpu, DType::BF16, &wholes(64 * 64, 3));
    let a = gpu.encode(Matrix::dense(tensor.address(), DType::BF16, [64, 64], 64));
    run(gpu, DType::BF16, name, 128, 128, Hopper { a, ..nothing() })
}

#[track_caller]
fn is_reported(name: &'static str, words: &[&str]) {
    for seed in 0..4 {
        let message = broken(seed, name).expect_err("a fault").to_string();
        assert!(message.contains(&format!("kernel {name}_bf16, block [0, 0, 0], thread ")), "{message}");
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
}

#[test]
fn waits_that_nobody_ends() {
    let never = ["the wait at tests/emulator/hopper.cu:", "never ends"];
    is_reported(
        "waits_for_ever",
        &[never[0], never[1], "barrier full (", ")[1]", "1 of 1 arrivals and 0 bytes are missing"],
    );
    is_reported("expects_too_much", &[never[0], never[1], "0 of 1 arrivals and 128 bytes are missing"]);
    is_reported("expects_too_little", &["a phase of barrier full", "fewer bytes are expected than copied"]);
    is_reported("arrives_too_often", &["more threads arrive at barrier full", "than the 2"]);
    is_reported("misses_a_named_barrier", &["barrier 1 at tests/emulator/hopper.cu:", "of which 96 come"]);
    is_reported("counts_a_named_barrier_twice", &["barrier 1 at tests/emulator/hopper.cu:"]);
}

#[test]
fn barriers_that_are_not_made() {
    is_reported("uses_a_barrier_that_was_not_made", &["barrier full", ")[1] was not made"]);
    is_reported("uses_a_barrier_too_early", &["full (tests/emulator/hopper.cu:", "made"]);
    is_reported("copies_to_a_barrier_without_a_fence", &["does not see barrier full", "fence_barriers is missing"]);
}

#[test]
fn copies_that_are_not_waited_for() {
    let early = [
        "race: read after write of tile (",
        "also touched by a bulk copy; barrier full (",
        ")[0] of it was not waited for",
    ];
    is_reported("waits_for_a_copy_by_the_wrong_barrier", &early);
    // The copy may be asked for before the others read, or behind.
    is_reported("reads_a_copy_too_early", &["race: ", " of tile (", "bulk copy"]);
    let by_product = [early[0], "by the product at tests/emulator/hopper.cu:", early[1], early[2]];
    is_reported("multiplies_a_copy_too_early", &["race: ", " of tile (", "bulk copy", "product"]);
    is_reported("multiplies_a_copy_that_one_warp_did_not_wait_for", &by_product);
    is_reported("leaves_a_copy_behind", &["the block ends before the bulk copy at tests/emulator/hopper.cu:"]);
}

#[test]
fn copies_and_writes_onto_what_is_read() {
    let by_copy = "by the bulk copy at tests/emulator/hopper.cu:";
    is_reported("copies_onto_what_others_read", &["race: write after read of tile", by_copy, "also touched by"]);
    let product = "also touched by a product of warpgroup 0 that was not waited for";
    is_reported("copies_onto_a_product", &["race: write after read of tile", by_copy, product]);
    is_reported("writes_onto_a_product", &["race: write after read of tile", product]);
}

/// In the ring, with a matrix of as many steps as make it go round.
#[test]
fn a_stage_that_is_given_back_too_early() {
    for seed in 0..4 {
        let gpu = emulator(seed, DType::BF16, TensorCores::Rounding);
        let tensor = on(gpu, DType::BF16, &wholes(128 * 448, 3));
        let a = gpu.encode(Matrix::dense(tensor.address(), DType::BF16, [128, 448], 64));
        let parameters = Hopper { a, b: a, count: 448, ..nothing() };
        let message =
            run(gpu, DType::BF16, "multiplies_hastily", 384, 128 * 64, parameters).expect_err("a fault").to_string();
        for says in ["thread 256: race: write after read of stages", "by the bulk copy at", "that was not waited for"] {
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
    }
}

#[test]
fn copies_to_wrong_places() {
    is_reported("copies_off_an_atom", &["in the middle of a swizzle's 1024 bytes", "tile", "[64]"]);
    is_reported("copies_beyond_its_tile", &["out of bounds: a bulk copy from here on: tile"]);
    let gpu = emulator(0, DType::BF16, TensorCores::Rounding);
    let tensor = on(gpu, DType::BF16, &wholes(64 * 64, 3));
    let window = Window { taps: [3, 3], strides: [2, 2], padding: [1, 1], dilation: [1, 1] };
    let name = "begins_outside_of_the_box_of_pixels";
    let refused = |at: [i32; 4], offset: [u32; 2], says: &str| {
        let a = gpu.encode(Images::of_convolution(tensor.address(), DType::BF16, [1, 8, 8, 64], window, 8));
        let gpu = emulator(0, DType::BF16, TensorCores::Rounding);
        let parameters = Hopper { a, at, offset, count: 8, ..nothing() };
        let message = run(gpu, DType::BF16, name, 128, 8 * 64, parameters).expect_err("a fault").to_string();
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    };
    refused([0, 0, -1, 0], [0; 2], "a pixel that its box does not have");
    refused([0, -1, 9, 0], [0; 2], "a pixel that its box does not have");
    refused([0, -1, -1, 0], [256, 0], "an offset of a bulk copy beyond 255");
    // A buffer that is smaller than its map.
    let beyond = Images::of_convolution(tensor.address(), DType::BF16, [2, 8, 8, 64], window, 8);
    let parameters = Hopper { a: gpu.encode(beyond), at: [0, -1, -1, 1], offset: [1, 1], count: 8, ..nothing() };
    let message = run(gpu, DType::BF16, name, 128, 8 * 64, parameters).expect_err("a fault").to_string();
    assert!(message.contains("byte 8192 of a buffer of 8192"), "{message}");
}

#[test]
fn writes_that_the_asynchronous_proxy_does_not_see() {
    let unseen = "wrote without fence_async";
    let product = "the product at tests/emulator/hopper.cu:";
    is_reported("multiplies_without_a_fence", &[product, "does not see tile", unseen]);
    is_reported("fences_for_others", &[product, "does not see tile", unseen]);
    let copy = "the bulk copy at tests/emulator/hopper.cu:";
    is_reported("copies_onto_writes_without_a_fence", &[copy, "does not see tile", unseen]);
}

#[test]
fn products_that_a_warpgroup_does_not_ask_for_alike() {
    is_reported("multiplies_other_operands", &["has other operands than that of thread"]);
    let one = "is not asked for by this thread of its warpgroup";
    is_reported("multiplies_without_one_thread", &["thread 77: the product at tests/emulator/hopper.cu:", one]);
    let words = ["the wait for products at", "is not reached by this thread of its warpgroup, which has ended"];
    is_reported("waits_for_products_without_one_warp", &words);
    is_reported("multiplies_beyond_shared_memory", &["out of bounds: the product at", "of dynamic shared memory"]);
    is_reported("sets_registers_apart", &["registers are set at", "by others of the warpgroup"]);
    is_reported("sets_registers_in_one_warp", &["ends without setting its registers"]);
}

#[test]
fn sums_that_are_touched_too_early() {
    for seed in 0..2 {
        let sums = broken(seed, "reads_sums_too_early").unwrap();
        assert!(sums.iter().all(|sum| sum.is_nan()), "{sums:?}");
    }
    is_reported("forgets_to_commit", &["the product at tests/emulator/hopper.cu:", "was never waited for"]);
    is_reported("touches_sums_between_products", &["the sums of the product at", "were touched before"]);
    is_reported("multiplies_without_a_fence_of_sums", &["multiply_fence is missing"]);
    is_reported("waits_for_other_sums", &["does not name all sums of those under way"]);
}

#[test]
fn threads_that_are_not_ordered() {
    is_reported("races_across_named_barriers", &["race: read after write of shared", "also touched by thread"]);
    is_reported("hands_over_too_early", &["race: write after read of handed", "also touched by"]);
}

#[test]
fn maps_beyond_a_gpus_limits_are_refused() {
    let gpu = emulator(0, DType::BF16, TensorCores::Rounding);
    let tensor = on(gpu, DType::BF16, &[0.0; 64]);
    gpu.encode(Mapped::from(Matrix::dense(tensor.address(), DType::BF16, [1, 64], 257)));
    let message = gpu.check().unwrap_err().to_string();
    assert!(message.contains("cuTensorMapEncodeTiled failed: a box of 257 rows"), "{message}");
}
