//! The fully connected layer on a GPU: `kernels/linear.cu`.

use super::Geometry;
use crate::gpu::{Address, Cost, Handle};
use crate::parameters;
use crate::tensor::{DType, Tensor, TensorMut};

parameters! {
    struct Forward: 56 bytes {
        x: Address,
        w: Address,
        b: Address,
        y: Address,
        n: u32, c: u32, k: u32, pitch: u32,
        packed: u32,
        padding: u32,
    }
}

parameters! {
    struct Product: 56 bytes {
        a: Address,
        b: Address,
        out: Address,
        rows: u32, columns: u32, depth: u32,
        a_row: u32, a_column: u32, b_pitch: u32, out_pitch: u32,
        padding: u32,
    }
}

parameters! {
    struct BiasGradient: 24 bytes { dy: Address, db: Address, n: u32, k: u32 }
}

const THREADS: usize = 256;
const WARP: usize = 32;
/// Neighbours of y that a warp computes.
const OUTPUTS: usize = 4;
const PRODUCT_THREADS: usize = 128;
const PRODUCT_ROWS: usize = 8;

/// The cost of a product whose operands have so many bytes.
fn cost(g: &Geometry, read: usize, written: usize) -> Cost {
    Cost { flops: 2 * (g.n * g.c * g.k) as u64, ..Cost::moving(read, written) }
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("sizes below 2³²")
}

fn check(dtypes: impl IntoIterator<Item = DType>) {
    assert!(dtypes.into_iter().all(|dtype| dtype == DType::F32), "a linear layer on a GPU is f32");
}

pub fn forward(gpu: Handle, g: &Geometry, x: &Tensor, w: &Tensor, b: &Tensor, y: TensorMut) {
    check([x.dtype(), w.dtype(), b.dtype(), y.dtype()]);
    gpu.account(|| cost(g, x.bytes() + w.bytes() + b.bytes(), y.bytes()));
    let (x, w, b, y) = (x.address(), w.address(), b.address(), y.address());
    let packed = [x.0, w.0].iter().all(|address| address.is_multiple_of(16))
        && g.c.is_multiple_of(4)
        && g.pitch.is_multiple_of(4);
    let [n, c, k, pitch] = [g.n, g.c, g.k, g.pitch].map(small);
    let parameters = Forward { x, w, b, y, n, c, k, pitch, packed: packed.into(), padding: 0 };
    let grid = [g.k.div_ceil(OUTPUTS), g.n.div_ceil(THREADS / WARP), 1].map(small);
    // SAFETY: the shapes of all four were checked against `g`, their dtypes above.
    unsafe { gpu.launch("linear", "linear_forward", DType::F32, grid, THREADS as u32, &parameters) }
}

fn product(gpu: Handle, parameters: &Product) {
    let (columns, rows) = (parameters.columns as usize, parameters.rows as usize);
    let grid = [columns.div_ceil(PRODUCT_THREADS), rows.div_ceil(PRODUCT_ROWS), 1].map(small);
    // SAFETY: the two callers below checked shapes and dtypes, and the strides are those of their shapes.
    unsafe { gpu.launch("linear", "linear_product", DType::F32, grid, PRODUCT_THREADS as u32, parameters) }
}

pub fn input_gradient(gpu: Handle, g: &Geometry, dy: &Tensor, w: &Tensor, dx: TensorMut) {
    check([dy.dtype(), w.dtype(), dx.dtype()]);
    gpu.account(|| cost(g, dy.bytes() + w.bytes(), dx.bytes()));
    let [n, c, k, pitch] = [g.n, g.c, g.k, g.pitch].map(small);
    product(
        gpu,
        &Product {
            a: dy.address(),
            b: w.address(),
            out: dx.address(),
            rows: n,
            columns: c,
            depth: k,
            a_row: k,
            a_column: 1,
            b_pitch: pitch,
            out_pitch: c,
            padding: 0,
        },
    );
}

pub fn weight_gradient(gpu: Handle, g: &Geometry, x: &Tensor, dy: &Tensor, dw: TensorMut) {
    check([x.dtype(), dy.dtype(), dw.dtype()]);
    gpu.account(|| cost(g, x.bytes() + dy.bytes(), dw.bytes()));
    let [n, c, k, pitch] = [g.n, g.c, g.k, g.pitch].map(small);
    product(
        gpu,
        &Product {
            a: dy.address(),
            b: x.address(),
            out: dw.address(),
            rows: k,
            columns: c,
            depth: n,
            a_row: 1,
            a_column: k,
            b_pitch: c,
            out_pitch: pitch,
            padding: 0,
        },
    );
}

pub fn bias_gradient(gpu: Handle, dy: &Tensor, db: TensorMut) {
    check([dy.dtype(), db.dtype()]);
    let k = db.shape().len();
    let parameters = BiasGradient { dy: dy.address(), db: db.address(), n: small(dy.shape().len() / k), k: small(k) };
    gpu.account(|| Cost::moving(dy.bytes(), db.bytes()));
    let grid = [small(k.div_ceil(WARP)), 1, 1];
    // SAFETY: dy is N × K and db K, which the caller checked.
    unsafe { gpu.launch("linear", "linear_bias_gradient", DType::F32, grid, THREADS as u32, &parameters) }
}
