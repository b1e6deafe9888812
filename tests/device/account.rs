//! What a step says that it reads and writes, beside a count by hand.

use std::collections::BTreeMap;

use medmerge::gpu::{Cost, Trace, WorkOf};
use medmerge::nn::{Model, NetworkBuilder, Operation};
use medmerge::ops::control::{Control, Values};
use medmerge::ops::conv2d::Conv2d;
use medmerge::ops::images::Images;
use medmerge::ops::pool::Pool;
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tensor::{DType, Device, Integers};
use medmerge::train::{Batch, Optimizers, Subject, TrainOptions, step};

use crate::devices;

/// By kernel without its storage type: launches, bytes read and bytes written.
type Account = BTreeMap<String, [u64; 3]>;

/// Two images of 6×6 pixels, a convolution, ReLU, a pool, another convolution, the mean, and a layer with three outputs.
#[test]
fn a_small_step_by_hand() {
    let mut builder = NetworkBuilder::new(1);
    let x = builder.input();
    let x = builder.conv2d("first", x, 4, 3, Conv2d::new(1, 1));
    let x = builder.plain("relu", Operation::Relu, &[x]);
    let x = builder.plain("pool", Operation::MaxPool(Pool::new(2, 2, 0)), &[x]);
    let x = builder.conv2d("second", x, 8, 1, Conv2d::new(1, 0));
    let x = builder.plain("mean", Operation::GlobalAveragePool, &[x]);
    builder.linear("head", x, 3);
    let network = builder.finish();
    // Rows of 9 weights are padded to 12.
    assert_eq!((network.trunk_len, network.head_len), (4 * 12 + 8 * 4, 3 * 8 + 4));

    for gpu in devices() {
        let device = Device::Gpu(gpu);
        let mut model = Model::initialized(network.clone(), 1).to_device(device);
        let mut subject = Subject::Everything;
        let mut optimizers: Optimizers = subject.optimizers(&TrainOptions::default(), &network);
        let control = Control::new(gpu, 0, 0.9, 0.999, false);
        let bytes = Integers::from_vec((0..72).map(|i| i * 3).collect()).to_device(device);
        let images = Images { bytes, shape: [2, 6, 6, 1], placements: None };
        let labels = Integers::from_vec(vec![0u32, 2]).to_device(device);
        let batch = Batch::of_bytes(images, [[0.5; 256]].into(), DType::F32, labels);
        let mut run = || {
            let loss = CrossEntropy::default();
            drop(step(&mut model, &mut subject, &mut optimizers, &loss, &batch, 1.0, Some(&control)));
        };
        // The first one makes the optimiser's moments.
        run();
        let Trace { work, plan, .. } = gpu.trace(run);
        gpu.synchronize().unwrap();

        // Numbers of f32 each: 72 in the images, 288 behind the first convolution, 72 behind the pool, with as many bytes that
        // say which was the largest, 144 behind the second convolution, 16 means, 6 logits; 36 and 32 weights, 24 and 3 in
        // the head.
        let control = size_of::<Values>() as u64;
        let expected: [(&str, [u64; 3]); 19] = [
            ("images", [1, 72, 4 * 72]),
            ("conv2d_fprop_narrow", [2, 4 * (72 + 36) + 4 * (72 + 32), 4 * 288 + 4 * 144]),
            ("relu", [1, 4 * 288, 4 * 288]),
            ("max_pool", [1, 4 * 288, 4 * 72 + 72]),
            ("global_average_pool", [1, 4 * 144, 4 * 16]),
            ("linear_forward", [1, 4 * (16 + 24 + 3), 4 * 6]),
            ("softmax_cross_entropy", [1, 4 * 6 + 4 * 2, 4 + 4 * 6]),
            // Where backward starts.
            ("fill", [1, 0, 4]),
            // dw = dyᵀ·x and dx = dy·w.
            ("linear_product", [2, 4 * (6 + 16) + 4 * (6 + 24), 4 * 24 + 4 * 16]),
            ("linear_bias_gradient", [1, 4 * 6, 4 * 3]),
            ("global_average_pool_backward", [1, 4 * 16, 4 * 144]),
            ("conv2d_dgrad_narrow", [1, 4 * (144 + 32), 4 * 72]),
            ("conv2d_wgrad_narrow", [2, 4 * (144 + 72) + 4 * (288 + 72), 4 * 32 + 4 * 36]),
            ("max_pool_backward", [1, 4 * 72 + 72, 4 * 288]),
            ("relu_backward", [1, 4 * (288 + 288), 4 * 288]),
            // Padding: of four rows, but for the last one's, and then that; of the head, behind its three biases.
            ("memset", [3, 0, 4 * (3 * 12 + 9) + 4 * 3 + 4]),
            ("square_sums", [2, 4 * (80 + 28), 2 * 4]),
            ("decide", [1, 2 * 4 + control, control]),
            ("adamw", [2, 4 * 4 * (80 + 28), 3 * 4 * (80 + 28)]),
        ];
        let expected: Account = expected.into_iter().map(|(name, numbers)| (name.into(), numbers)).collect();
        let mut found = Account::new();
        for work in &work {
            let name = match work.of {
                WorkOf::Launch(kernel) => kernel.name.to_string(),
                other => other.name(),
            };
            let [count, read, written] = found.entry(name).or_default();
            (*count, *read, *written) = (*count + 1, *read + work.cost.read, *written + work.cost.written);
        }
        assert_eq!(found, expected, "on {gpu}");
        let total: u64 = expected.values().map(|[_, read, written]| read + written).sum();
        assert_eq!(work.iter().map(|work| work.cost).sum::<Cost>().bytes(), total);
        // At least what lives between the loss and the start of backward.
        assert!(plan.peak_live() > 4 * (288 + 72 + 144) && plan.arena() >= plan.peak_live(), "{plan:?}");
    }
}
