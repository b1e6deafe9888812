//! wgrad where the filters are a blend of frozen ones: the products of dW with the sources' filters in place of dW.
//!
//! ```text
//! Σ_parts products[part, m, k] = Σ_{r,s,c} dw[k,r,s,c]·source_m[k,r,s,c]
//! ```
//!
//! On tensor cores a part is what one block sums: `kernels/conv2d_tensor_products.cu`, and dW is never written. Elsewhere
//! the one part is taken from a dW that is dropped behind it.

use super::gpu::sizes;
use super::hopper::WideTiling;
use super::layout::{self, Operands, is_packed};
use super::tensor::{self, Product, STEM_WGRAD};
use super::tiles::{self, Tile, Tiling};
use super::{Conv2d, Geometry, Pass, hopper, readable, wgrad};
use crate::gpu::{Address, Cost, Handle};
use crate::ops::merge;
use crate::parameters;
use crate::tensor::{DType, Device, Implementation, Tensor, TensorMut};

parameters! {
    pub(super) struct Products: 200 bytes {
        product: Product,
        sources: Address,
        source_count: u32,
        channels: i32,
        pitch: i32,
        packed: u32,
    }
}

/// How the pass is divided where it runs on tensor cores: `g` as the kernels see it, splits and the pixels of each, the kernel with its
/// tile, and the parts that come of it.
struct Division {
    g: Geometry,
    splits: usize,
    split: usize,
    kernel: Kernel,
    parts: usize,
}

#[derive(Clone, Copy)]
enum Kernel {
    OfWarps(Tile, &'static str),
    OfWarpgroups(WideTiling),
}

impl Division {
    fn new(g: Geometry, kernel: Kernel, splits: usize, columns: usize, depth: usize) -> Division {
        let pixels = g.n * g.p * g.q;
        let split = pixels.div_ceil(splits).next_multiple_of(depth);
        let splits = pixels.div_ceil(split);
        Division { g, splits, split, kernel, parts: splits * g.filter_len().div_ceil(columns) }
    }
}

/// `None` if operands of this shape and dtype, aligned as tensors are, do not run on tensor cores of the device.
fn division(device: Device, of: &Geometry, dtype: DType, sources: usize) -> Option<Division> {
    let layout::OnTensorCores { g, has_tiles } = layout::on_tensor_cores(of, Pass::Wgrad, dtype, Operands::ALIGNED)?;
    if let Device::Gpu(gpu) = device
        && let Some(seen) = hopper::serves(gpu, of, Pass::Wgrad, dtype, [Address::NULL; 2])
    {
        let choice = hopper::choose_products(&seen, sources);
        let WideTiling { tile, splits, .. } = choice;
        return Some(Division::new(seen, Kernel::OfWarpgroups(choice), splits, tile.columns(), hopper::LINE));
    }
    // Packs of 16 bits that span two taps have a kernel of their own.
    let is_stem = !has_tiles;
    let Tiling { tile, splits } = tiles::choose_products(&g, dtype, sources, is_stem.then_some(STEM_WGRAD));
    let kernel = match tile {
        _ if is_stem => "conv2d_tensor_products_stem",
        Tile::Large => "conv2d_tensor_products_128x128",
        Tile::Medium => "conv2d_tensor_products_128x64",
        Tile::Small => "conv2d_tensor_products_64x64",
        Tile::Wide | Tile::Narrow => unreachable!("no such kernel"),
    };
    Some(Division::new(g, Kernel::OfWarps(tile, kernel), splits, tile.columns(), tiles::depth(dtype)))
}

/// In how many parts [`wgrad_products`] leaves the products with so many sources on a device.
pub fn product_parts(device: Device, g: &Geometry, dtype: DType, sources: usize) -> usize {
    division(device, g, dtype, sources).map_or(1, |division| division.parts)
}

/// Overwrites `products`, parts × M × K: the sum over the parts is that of dW with the filters of M `sources`, which are laid
/// out alike. dW itself is not kept. On a GPU `x` and `dy` are of one dtype, all else is f32.
pub fn wgrad_products(conv: Conv2d, x: &Tensor, dy: &Tensor, sources: &[Tensor], products: TensorMut) {
    let (filters, pitch) = (sources[0].shape(), sources[0].pitch());
    let g = Geometry::new(conv, x.shape(), filters, pitch);
    assert_eq!(dy.shape(), g.y(), "the gradient of a convolution's output");
    if let Some(x) = readable(&g, Pass::Wgrad, x, Some(dy)) {
        return wgrad_products(conv, &x, dy, sources, products);
    }
    let alike = |source: &Tensor| source.shape() == filters && source.pitch() == pitch;
    assert!(sources.iter().all(alike), "products with filters that differ in layout");
    let division = division(x.device(), &g, x.dtype(), sources.len());
    let parts = division.as_ref().map_or(1, |division| division.parts);
    assert_eq!(products.shape().dims(), [parts, sources.len(), g.k], "the products of {} sources", sources.len());
    if let (Implementation::Gpu(gpu), Some(division)) = (x.implementation(), division)
        && layout::on_tensor_cores(&g, Pass::Wgrad, x.dtype(), Operands { x: x.address(), y: dy.address(), w: None })
            .is_some()
    {
        return on_tensor_cores(gpu, &g, &division, [x, dy], sources, products);
    }
    let mut whole = Tensor::uninit([g.k * pitch], products.dtype(), x.device());
    wgrad(conv, x, dy, whole.view_mut().window(0, filters, pitch));
    let dw = whole.window(0, filters, pitch);
    let (first, others) = products.window(0, [parts * sources.len() * g.k], 1).split_at(sources.len() * g.k);
    merge::products(&dw, sources, first.window(0, [sources.len(), g.k], g.k));
    if parts > 1 {
        // Operands that lie otherwise than tensors do: not those of a network.
        others.fill(0.0);
    }
}

fn on_tensor_cores(
    gpu: Handle,
    g: &Geometry,
    division: &Division,
    [x, dy]: [&Tensor; 2],
    sources: &[Tensor],
    products: TensorMut,
) {
    let dtype = x.dtype();
    assert!(dy.dtype() == dtype, "products of {dtype} by {}", dy.dtype());
    let are_f32 = sources.iter().all(|source| source.dtype() == DType::F32) && products.dtype() == DType::F32;
    assert!(are_f32, "sources and products are f32");
    let Division { g: seen, splits, split, kernel, parts } = division;
    let padded = layout::padded(g, dtype);
    let padded_x = padded.as_ref().and_then(|padded| tensor::pad_x(gpu, dtype, x.address(), g, padded));
    let x = padded_x.as_ref().map_or(x.address(), Tensor::address);
    let addresses: Vec<Address> = sources.iter().map(Tensor::address).collect();
    // In pairs; more would not hurt.
    let packed = padded.is_none() && addresses.iter().all(|&address| is_packed(address, DType::F32, g.c, g.pitch));
    let (sizes, size) = (sizes(seen, dtype, x, dy.address(), None), [seen.k, seen.filter_len()]);
    let parameters = |product| Products {
        product,
        sources: gpu.constant(&addresses),
        source_count: u32::try_from(sources.len()).expect("fewer than 2³² sources"),
        channels: tensor::int(g.c),
        pitch: tensor::int(g.pitch),
        packed: packed.into(),
    };
    // The sources' weights once: what other splits read comes from the cache.
    let weights = (sources.len() * g.k * g.filter_len()) as u64;
    let numbers = (parts * sources.len() * g.k) as u64;
    let cost = padded.unwrap_or(*g).cost(Pass::Wgrad, dtype);
    let flops = cost.flops + 2 * weights * *splits as u64;
    gpu.account(|| Cost { flops, read: cost.read + 4 * weights, written: 4 * numbers });
    let (tile, kernel) = match *kernel {
        Kernel::OfWarps(tile, kernel) => (tile, kernel),
        Kernel::OfWarpgroups(choice) => {
            let operands = [x, dy.address(), products.address()];
            let choice = WideTiling { splits: *splits, ..choice };
            return hopper::wgrad_products(gpu, seen, dtype, operands, (choice, *split), parameters);
        }
    };
    let product = Product::new((seen, sizes), Pass::Wgrad, [dy.address(), x, products.address()], (tile, size));
    let parameters = parameters(Product { split: tensor::int(*split), ..product });
    let [down, across] = tensor::tiles(tile, size);
    let grid = [down * across, 1, *splits].map(tensor::dim);
    // SAFETY: `layout` was asked whether operands come in packs; the contract checked their shapes, that the sources' are those
    // of the filters, and that `products` has a place for each part, of which there is one for each split and tile of
    // columns.
    unsafe { gpu.launch("conv2d_tensor_products", kernel, dtype, grid, tile.threads(), &parameters) }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::gpu::Gpu;
    use crate::gpu::WorkOf;
    use crate::gpu::emulator::Emulator;
    use crate::numbers::Numbers;
    use crate::ops::cases;
    use crate::tensor::Shape;

    /// The products that `wgrad_products` leaves, added over the parts: by the reference in `f64`, or on a device.
    fn products(g: &Geometry, sources: usize, place: Option<(Device, DType)>) -> Vec<f64> {
        let filters: Shape = [g.k, g.r, g.s, g.c].into();
        let mut numbers = Numbers(11);
        let mut tensor = |shape: Shape, dtype: Option<DType>| {
            let values: Vec<f64> = numbers.integers(shape.len()).into_iter().map(f64::signum).collect();
            match (place, dtype) {
                (None, _) => Tensor::from_vec(values, shape),
                (Some((device, activations)), dtype) => {
                    let values = Tensor::from_vec(values.iter().map(|&v| v as f32).collect(), shape);
                    values.to_device(device).cast(dtype.unwrap_or(activations))
                }
            }
        };
        let (x, dy) = (tensor(g.x(), None), tensor(g.y(), None));
        let frozen: Vec<Tensor> = (0..sources).map(|_| tensor(filters, Some(DType::F32))).collect();
        let parts = product_parts(x.device(), g, x.dtype(), sources);
        let mut products = Tensor::uninit([parts, sources, g.k], frozen[0].dtype(), x.device());
        wgrad_products(g.conv, &x, &dy, &frozen, products.view_mut());
        let products = products.to_f64();
        (0..sources * g.k).map(|i| products.iter().skip(i).step_by(sources * g.k).sum()).collect()
    }

    /// One source, and more than a block multiplies at a time; integers, so that each tile gives the reference's bits.
    #[test]
    fn every_tile_multiplies_every_case() {
        let gpu = Gpu::emulator(3).unwrap();
        let dtypes = [DType::BF16, DType::F16, DType::TF32];
        for (index, case) in cases::CONV2D.iter().filter(|case| case.conv.groups == 1).enumerate() {
            let g = Geometry { pitch: case.geometry().filter_len(), ..case.geometry() };
            let (dtype, sources) = (dtypes[index % 3], [1, 9][index / 3 % 2]);
            let expected = products(&g, sources, None);
            for tile in Tile::ALL.into_iter().filter(|tile| tile.serves_products()) {
                let place = Some((Device::Gpu(gpu), dtype));
                let actual = tiles::with_choice(Tiling { tile, splits: 3 }, || products(&g, sources, place));
                gpu.check().unwrap();
                let wrong = (0..actual.len()).find(|&i| actual[i] != expected[i]).map(|i| (i, actual[i], expected[i]));
                assert!(wrong.is_none(), "{dtype}, {sources} sources, {}, {tile:?}: {wrong:?}", case.name);
            }
        }
    }

    /// The same by products of warpgroups.
    #[test]
    fn every_wide_tile_multiplies_every_case() {
        let gpu = Gpu::on_emulator(Emulator::new(4).with_warpgroups(true));
        let mut count = 0;
        for case in cases::CONV2D {
            for tiling in WideTiling::all() {
                let (dtype, sources) = ([DType::BF16, DType::F16][count % 2], [1, 3][count / 2 % 2]);
                if hopper::choice(&case.geometry(), Pass::Wgrad, dtype).is_none() {
                    continue;
                }
                count += 1;
                let g = Geometry { pitch: case.geometry().filter_len(), ..case.geometry() };
                let (expected, mut actual) = (products(&g, sources, None), Vec::new());
                let trace = gpu.trace(|| {
                    let place = Some((Device::Gpu(gpu), dtype));
                    actual = hopper::with_choice(WideTiling { splits: 3, ..tiling }, || products(&g, sources, place));
                });
                gpu.check().unwrap();
                let is_wide = |of| matches!(of, WorkOf::Launch(kernel) if kernel.file == "conv2d_hopper_products");
                assert_eq!(trace.work.iter().filter(|work| is_wide(work.of)).count(), 1, "{}", case.name);
                let wrong = (0..actual.len()).find(|&i| actual[i] != expected[i]).map(|i| (i, actual[i], expected[i]));
                assert!(wrong.is_none(), "{dtype}, {sources} sources, {}, {tiling}: {wrong:?}", case.name);
            }
        }
        assert!(count >= 25, "{count}");
    }

    /// No dW, no workspace and no second launch; a stem's channels are padded first.
    #[test]
    fn tensor_cores_take_one_launch() {
        let gpu = Gpu::emulator(3).unwrap();
        for (x, w, launches) in [([2, 8, 8, 16], [24, 3, 3, 16], 1), ([2, 8, 8, 3], [16, 3, 3, 3], 2)] {
            let g = Geometry::new(Conv2d::new(1, 1), x.into(), w.into(), w[1] * w[2] * w[3]);
            let tensor = |shape: Shape| Tensor::zeros(shape, DType::BF16, Device::Gpu(gpu));
            let (x, dy) = (tensor(g.x()), tensor(g.y()));
            let frozen = vec![Tensor::zeros(w, DType::F32, Device::Gpu(gpu)); 2];
            let parts = product_parts(Device::Gpu(gpu), &g, DType::BF16, 2);
            let mut to = Tensor::uninit([parts, 2, g.k], DType::F32, Device::Gpu(gpu));
            let before = gpu.launches();
            wgrad_products(g.conv, &x, &dy, &frozen, to.view_mut());
            assert_eq!(gpu.launches() - before, launches);
        }
    }
}
