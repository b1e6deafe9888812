//! Operands that begin anywhere. Those of a network begin at multiples of 16 bytes, so that nothing else here takes what
//! kernels do without.

use medmerge::ops::batch_norm::PerChannel;
use medmerge::ops::gram::Samples;
use medmerge::ops::merge::{Choice, Segment, Table};
use medmerge::ops::pool::Pool;
use medmerge::ops::{batch_norm, concat, conv2d, gram, linear, merge, pointwise, pool};
use medmerge::tensor::{DType, Device, Shape, Tensor, TensorMut};

use crate::common::Numbers;
use crate::devices;

type Run = fn(&[Tensor], TensorMut);

/// What `run` makes of whole numbers, with everything `offset` elements behind the start of a buffer. The output starts
/// as the first input.
fn result(run: Run, inputs: &[Shape], output: Shape, dtype: DType, device: Device, offset: usize) -> Vec<f32> {
    let mut numbers = Numbers(9);
    let mut place = |shape: &Shape| {
        let padding = std::iter::repeat_n(f32::NAN, offset);
        let values = padding.chain((0..shape.len()).map(|_| (numbers.next() % 7) as f32 - 3.0)).collect();
        let whole = Tensor::from_vec(values, [offset + shape.len()]).to_device(device).cast(dtype);
        whole.window(offset, *shape, shape.row_len())
    };
    let inputs: Vec<Tensor> = inputs.iter().map(&mut place).collect();
    let mut whole = Tensor::uninit([offset + output.len()], dtype, device);
    let mut to = whole.view_mut().window(offset, output, output.row_len());
    if inputs[0].shape() == output {
        to.reborrow().copy_from(&inputs[0]);
    }
    run(&inputs, to);
    whole.to_vec::<f32>().split_off(offset)
}

#[track_caller]
fn is_the_same(dtypes: &[DType], inputs: &[Shape], output: impl Into<Shape>, run: Run) {
    let output = output.into();
    for gpu in devices() {
        for &dtype in dtypes {
            let at = |offset| result(run, inputs, output, dtype, Device::Gpu(gpu), offset);
            let aligned = at(0);
            for offset in [1, 2, 3] {
                assert_eq!(at(offset), aligned, "{offset} off, {dtype} on {gpu}");
            }
            gpu.check().unwrap();
        }
    }
}

const ALL: &[DType] = &[DType::F32, DType::BF16, DType::F16];
const SINGLE: &[DType] = &[DType::F32];

#[test]
fn convolution() {
    let (x, y, w): (Shape, Shape, Shape) = ([2, 5, 6, 16].into(), [2, 5, 6, 8].into(), [8, 3, 3, 16].into());
    const CONV: conv2d::Conv2d = conv2d::Conv2d::new(1, 1);
    is_the_same(ALL, &[x, w], y, |inputs, y| conv2d::fprop(CONV, &inputs[0], &inputs[1], y));
    is_the_same(ALL, &[y, w], x, |inputs, dx| conv2d::dgrad(CONV, &inputs[0], &inputs[1], dx));
    is_the_same(SINGLE, &[x, y], w, |inputs, dw| conv2d::wgrad(CONV, &inputs[0], &inputs[1], dw));
}

#[test]
fn batch_normalisation() {
    let (x, c): (Shape, Shape) = ([3, 4, 5, 8].into(), [8].into());
    is_the_same(SINGLE, &[x, c, c, c, c, x], x, |inputs, out| {
        let [x, mean, rstd, gamma, beta, residual] = inputs else { unreachable!() };
        batch_norm::normalize(x, PerChannel { mean, rstd, gamma, beta }, Some(residual), true, out);
    });
    is_the_same(SINGLE, &[x, x, c, c, c, c, [2, 8].into()], x, |inputs, dx| {
        let [dy, x, mean, rstd, gamma, beta, means] = inputs else { unreachable!() };
        batch_norm::input_gradient(Some(dy), dx, x, PerChannel { mean, rstd, gamma, beta }, true, Some(means));
    });
}

#[test]
fn pooling() {
    let (x, y): (Shape, Shape) = ([2, 6, 8, 16].into(), [2, 3, 4, 16].into());
    is_the_same(ALL, &[x], y, |inputs, y| pool::average_pool(Pool::new(2, 2, 0), &inputs[0], y));
    is_the_same(ALL, &[y], x, |inputs, dx| pool::average_pool_backward(Pool::new(2, 2, 0), &inputs[0], dx));
}

#[test]
fn pointwise_operations() {
    let x: Shape = [3, 50].into();
    is_the_same(ALL, &[x, x], x, |inputs, sum| pointwise::add_assign(sum, &inputs[1]));
    is_the_same(ALL, &[x], x, |_, y| pointwise::relu_assign(y));
    is_the_same(ALL, &[x, x], x, |inputs, dy| pointwise::relu_backward_assign(dy, &inputs[1]));
}

#[test]
fn concatenation() {
    let (part, whole): (Shape, Shape) = ([2, 3, 4, 8].into(), [2, 3, 4, 16].into());
    is_the_same(ALL, &[whole], part, |inputs, dx| concat::backward(&inputs[0], 8, dx));
}

#[test]
fn linear_layers() {
    let (x, w, b): (Shape, Shape, Shape) = ([5, 16].into(), [6, 16].into(), [6].into());
    is_the_same(SINGLE, &[x, w, b], [5, 6], |inputs, y| linear::forward(&inputs[0], &inputs[1], &inputs[2], y));
}

#[test]
fn products_of_samples() {
    let (x, y, by_pixels, by_patches): (Shape, Shape, Shape, Shape) =
        ([2, 5, 6, 16].into(), [2, 5, 6, 8].into(), [16, 8].into(), [9 * 16, 9 * 16].into());
    is_the_same(SINGLE, &[by_pixels, x, y], by_pixels, |inputs, sum| {
        gram::accumulate(Samples::of(&inputs[1]), Samples::of(&inputs[2]), sum);
    });
    is_the_same(SINGLE, &[by_patches, x], by_patches, |inputs, sum| {
        let patches = Samples::patches(&inputs[1], conv2d::Conv2d::new(1, 1), [3, 3]);
        gram::accumulate(patches, patches, sum);
    });
    is_the_same(SINGLE, &[[2, 16].into(), x], [2, 16], |inputs, sum| gram::moments(Samples::of(&inputs[1]), sum));
}

#[test]
fn merging() {
    fn table() -> Table {
        let segment = |offset, rows, row_len, pitch, [first, row_step, period]: [usize; 3]| Segment {
            offset,
            rows,
            row_len,
            pitch,
            choice: Choice::Alpha { first, row_step, period },
        };
        let segments = vec![segment(4, 4, 9, 12, [0, 1, 1]), segment(52, 3, 16, 16, [4, 4, 4])];
        Table::new(segments, 16, 101)
    }
    let (alpha, arena): (Shape, Shape) = ([2, 16].into(), [101].into());
    is_the_same(SINGLE, &[alpha, arena, arena], arena, |inputs, blend| {
        merge::blend(&table(), &[&inputs[1], &inputs[2]], &inputs[0], blend);
    });
    is_the_same(SINGLE, &[arena, arena, arena], alpha, |inputs, dalpha| {
        merge::alpha_gradient(&table(), &[&inputs[1], &inputs[2]], &inputs[0], dalpha);
    });
}
