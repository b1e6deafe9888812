//! The address functions of the convolution on tensor cores, by what they must be for every shape: each element of a result
//! belongs to one thread, places in shared memory are a permutation without bank conflicts, splits and residues leave
//! nothing out.

use medmerge::gpu::emulator::Emulator;
use medmerge::gpu::{Address, Gpu, Handle};
use medmerge::ops::conv2d::division::{Axis, Divider, Residue};
use medmerge::parameters;
use medmerge::tensor::{DType, Device, Integers, Tensor};

use super::guests;

const TILES: [(&str, usize, usize, u32); 5] = [
    ("128x256", 128, 256, 256),
    ("128x128", 128, 128, 256),
    ("128x64", 128, 64, 128),
    ("64x64", 64, 64, 128),
    ("128x32", 128, 32, 128),
];

parameters! {
    struct TilePlaces: 16 bytes { packs: Address, pieces: Address }
}

parameters! {
    struct Product: 176 bytes {
        from: Address, by: Address, to: Address,
        n: i32, h: i32, w: i32, c: i32,
        k: i32, r: i32, s: i32,
        p: i32, q: i32,
        stride_h: i32, stride_w: i32, padding_h: i32, padding_w: i32, dilation_h: i32, dilation_w: i32,
        groups: i32, group_c: i32, group_k: i32,
        pitch: i32, packed: u32,
        split: i32, to_pitch: i32, tiles_down: i32,
        by_tiles: Divider, by_rows: Divider, by_columns: Divider, by_channels: Divider, by_taps: Divider,
    }
}

parameters! {
    struct BackwardProduct: 600 bytes { product: Product, h: [Residue; 4], w: [Residue; 4], adds: u32, padding: u32 }
}

fn emulator(dtype: DType) -> Handle {
    Gpu::on_emulator(Emulator::with_guests(7, guests("addresses", dtype)))
}

fn launch<P: medmerge::gpu::Parameters>(
    gpu: Handle,
    name: &'static str,
    dtype: DType,
    grid: [usize; 3],
    threads: u32,
    parameters: &P,
) {
    // SAFETY: the buffers below are as large as the kernels' comments say.
    unsafe { gpu.launch("addresses", name, dtype, grid.map(|size| size as u32), threads, parameters) };
    gpu.synchronize().unwrap();
}

fn all_differ(values: impl Iterator<Item = u32>) -> bool {
    let mut values: Vec<u32> = values.collect();
    let count = values.len();
    values.sort_unstable();
    values.dedup();
    values.len() == count
}

#[test]
fn places_are_permutations_without_bank_conflicts() {
    for dtype in [DType::BF16, DType::TF32] {
        let gpu = emulator(dtype);
        let (pack, line_packs) = (16 / dtype.size(), 4);
        for (name, span, is_along) in [
            ("places_along_128", 128, true),
            ("places_along_64", 64, true),
            ("places_along_32", 32, true),
            ("places_across_128", 128, false),
            ("places_across_64", 64, false),
            ("places_across_32", 32, false),
        ] {
            let across_in_tf32 = !is_along && dtype == DType::TF32;
            let loads = if across_in_tf32 { 4 } else { 1 };
            let packs = Integers::<u32>::uninit(span * line_packs, Device::Gpu(gpu));
            let pieces = Integers::<u32>::uninit(2 * span / 16 * 2 * loads * 32, Device::Gpu(gpu));
            let parameters = TilePlaces { packs: packs.address(), pieces: pieces.address() };
            launch(gpu, name, dtype, [1, 1, 1], 32, &parameters);
            let (packs, pieces) = (packs.to_vec(), pieces.to_vec());

            let mut sorted = packs.clone();
            sorted.sort_unstable();
            let all: Vec<u32> = (0..packs.len() as u32).map(|i| i * pack as u32).collect();
            assert_eq!(sorted, all, "{name} {dtype}: a permutation of packs");
            // Eight threads copy, and eight rows of a matrix are loaded, in one go if they lie in different sixteenths of 128 bytes.
            let sixteenth = |place: &u32| *place / pack as u32 % 8;
            for eight in packs.chunks(8) {
                assert!(all_differ(eight.iter().map(sixteenth)), "{name} {dtype}: copies to {eight:?}");
            }
            for warp in pieces.chunks(32) {
                if across_in_tf32 {
                    assert!(all_differ(warp.iter().map(|place| place % 32)), "{name} {dtype}: loads of {warp:?}");
                } else {
                    let conflicts = warp.chunks(8).find(|eight| !all_differ(eight.iter().map(sixteenth)));
                    assert_eq!(conflicts, None, "{name} {dtype}: a matrix");
                }
                assert!(warp.iter().all(|place| (*place as usize) < packs.len() * pack), "{name} {dtype}: {warp:?}");
            }
        }
    }
}

/// Numbers below a limit, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> i32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize % limit) as i32
    }
}

/// A convolution of sizes that need not suit anybody, whose output is not empty.
fn geometry(dice: &mut Dice) -> Product {
    loop {
        let [r, s] = [1 + dice.below(4), 1 + dice.below(4)];
        let [stride_h, stride_w, dilation_h, dilation_w] = [0; 4].map(|_| 1 + dice.below(3));
        let [padding_h, padding_w] = [dice.below(4), dice.below(4)];
        let [h, w] = [1 + dice.below(19), 1 + dice.below(19)];
        let [p, q] = [(h, padding_h, r, dilation_h, stride_h), (w, padding_w, s, dilation_w, stride_w)].map(
            |(size, padding, taps, dilation, stride)| {
                (size + 2 * padding - dilation * (taps - 1) - 1).div_euclid(stride) + 1
            },
        );
        if p < 1 || q < 1 {
            continue;
        }
        let (n, c, k) = (1 + dice.below(3), 8 * (1 + dice.below(20)), 1 + dice.below(200));
        let (groups, group_c, group_k, pitch) = (1, c, k, r * s * c);
        let null = Address::NULL;
        return Product {
            from: null,
            by: null,
            to: null,
            n,
            h,
            w,
            c,
            k,
            r,
            s,
            p,
            q,
            stride_h,
            stride_w,
            padding_h,
            padding_w,
            dilation_h,
            dilation_w,
            groups,
            group_c,
            group_k,
            pitch,
            packed: 0,
            split: 0,
            to_pitch: 0,
            tiles_down: 1,
            by_tiles: Divider::new(1),
            by_rows: Divider::new(p as usize),
            by_columns: Divider::new(q as usize),
            by_channels: Divider::new(c as usize),
            by_taps: Divider::new(s as usize),
        };
    }
}

fn size(number: i32) -> usize {
    number as usize
}

#[test]
fn every_element_of_a_result_is_handed_out_once() {
    let dtype = DType::BF16;
    let gpu = emulator(dtype);
    let mut dice = Dice(1);
    for _ in 0..30 {
        let g = geometry(&mut dice);
        let (pixels, inputs) = (size(g.n * g.p * g.q), size(g.n * g.h * g.w));
        let (residues, weights) = (size(g.stride_h * g.stride_w), size(g.r * g.s * g.c));
        let largest = size(g.n) * size(g.h).div_ceil(size(g.stride_h)) * size(g.w).div_ceil(size(g.stride_w));
        let splits = 1 + size(dice.below(3));
        for (result, elements, [rows, columns, grids]) in [
            ("y", pixels * size(g.k), [pixels, size(g.k), 1]),
            ("dx", inputs * size(g.c), [largest, size(g.c), residues]),
            ("dw", splits * size(g.k) * weights, [size(g.k), weights, splits]),
        ] {
            for (tile, tile_rows, tile_columns, threads) in TILES {
                if result == "dw" && tile == "128x32" {
                    continue;
                }
                let name: &'static str = format!("count_{result}_{tile}").leak();
                let mut counts = Tensor::zeros([elements], DType::F32, Device::Gpu(gpu));
                let [down, across] = [rows.div_ceil(tile_rows), columns.div_ceil(tile_columns)];
                let (tiles_down, by_tiles) = (down as i32, Divider::new(across));
                let to = counts.view_mut().address();
                let product = Product { to, to_pitch: weights as i32, tiles_down, by_tiles, ..g };
                let grid = [down * across, 1, grids];
                let axis = |size, taps, stride, padding, dilation| {
                    let [size, taps, stride, padding, dilation] =
                        [size, taps, stride, padding, dilation].map(self::size);
                    Axis { size, taps, stride, padding, dilation }.residues()
                };
                let h = axis(g.h, g.r, g.stride_h, g.padding_h, g.dilation_h);
                let w = axis(g.w, g.s, g.stride_w, g.padding_w, g.dilation_w);
                match result {
                    "dx" => {
                        launch(gpu, name, dtype, grid, threads, &BackwardProduct { product, h, w, adds: 0, padding: 0 })
                    }
                    _ => launch(gpu, name, dtype, grid, threads, &product),
                }
                let wrong = counts.to_vec::<f32>().into_iter().position(|count| count != 1.0);
                assert_eq!(wrong, None, "{name}: {}×{}×{}×{} → {}", g.n, g.h, g.w, g.c, g.k);
            }
        }
    }
}

#[test]
fn splits_cover_all_pixels_in_their_order() {
    for dtype in [DType::BF16, DType::TF32] {
        let gpu = emulator(dtype);
        let depth = 64 / dtype.size();
        let mut dice = Dice(2);
        for _ in 0..40 {
            let g = geometry(&mut dice);
            let pixels = size(g.n * g.p * g.q);
            let split = pixels.div_ceil(1 + size(dice.below(9))).next_multiple_of(depth);
            let count = pixels.div_ceil(split);
            let bounds = Integers::<u32>::uninit(2 * count, Device::Gpu(gpu));
            let product = Product { to: bounds.address(), split: split as i32, ..g };
            launch(gpu, "splits", dtype, [1, 1, count], 32, &product);
            let mut end = 0;
            for bounds in bounds.to_vec().chunks(2) {
                assert!(bounds[0] == end && bounds[1] > end && (bounds[1] - end) as usize <= split, "{bounds:?}");
                end = bounds[1];
            }
            assert_eq!(end as usize, pixels);
        }
    }
}
