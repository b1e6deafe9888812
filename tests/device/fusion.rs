//! Layers joined into stages come to the same as one by one: logits, every gradient, the statistics of the batch. In f32 bit
//! for bit, on the CPU and on a device; in half precision no further from f64 than layer by layer, where every layer
//! rounds what it stores.

use std::sync::Arc;

use medmerge::nn::families::resnet::ResNet;
use medmerge::nn::{Architecture, Launches, Mode, Model, Network, NetworkBuilder, Node, Operation, Role, Stem};
use medmerge::ops::conv2d::Conv2d;
use medmerge::ops::pool::Pool;
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tape::Tape;
use medmerge::tensor::{DType, Device, Integers, Tensor};

use crate::common::{Numbers, devices, f32s, normalized_error};

const IMAGES: [usize; 4] = [3, 12, 12, 3];
const CLASSES: usize = 5;

fn conv(b: &mut NetworkBuilder, name: &str, x: Node, filters: usize, window: usize) -> Node {
    b.conv2d(name, x, filters, window, Conv2d::new(1, window / 2))
}

fn relu(b: &mut NetworkBuilder, name: &str, x: Node) -> Node {
    b.plain(name, Operation::Relu, &[x])
}

fn head(mut b: NetworkBuilder, x: Node) -> Arc<Network> {
    let x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
    b.linear("fc", x, CLASSES);
    b.finish()
}

/// Batch norm, ReLU and convolution in this order, over all that came before: layers of `inner` filters and then `growth`,
/// and a transition to so many that `transition + growth` comes next.
fn dense([growth, inner, transition]: [usize; 3]) -> Arc<Network> {
    let mut b = NetworkBuilder::new(3);
    let mut x = b.input();
    x = conv(&mut b, "stem", x, growth, 3);
    x = b.plain("stem.pool", Operation::MaxPool(Pool::new(3, 1, 1)), &[x]);
    for layer in 0..3 {
        let name = |part: &str| format!("layer{layer}.{part}");
        let mut y = b.batch_norm(&name("norm1"), x);
        y = relu(&mut b, &name("relu1"), y);
        y = conv(&mut b, &name("conv1"), y, inner, 1);
        y = b.batch_norm(&name("norm2"), y);
        y = relu(&mut b, &name("relu2"), y);
        y = conv(&mut b, &name("conv2"), y, growth, 3);
        x = b.plain(&name("concat"), Operation::Concat, &[x, y]);
        if layer == 1 {
            x = b.batch_norm("transition.norm", x);
            x = relu(&mut b, "transition.relu", x);
            x = conv(&mut b, "transition.conv", x, transition, 1);
            x = b.plain("transition.pool", Operation::AveragePool(Pool::new(2, 2, 0)), &[x]);
        }
    }
    x = b.batch_norm("norm", x);
    x = relu(&mut b, "relu", x);
    head(b, x)
}

/// Convolutions and ReLUs alone.
fn plain() -> Arc<Network> {
    let mut b = NetworkBuilder::new(3);
    let mut x = b.input();
    for (layer, filters) in [8, 16, 16].into_iter().enumerate() {
        x = conv(&mut b, &format!("conv{layer}"), x, filters, 3);
        x = relu(&mut b, &format!("relu{layer}"), x);
        x = b.plain(&format!("pool{layer}"), Operation::MaxPool(Pool::new(2, 2, 0)), &[x]);
    }
    head(b, x)
}

/// Convolutions with biases, one of them before a sum, and a hidden linear layer.
fn biased() -> Arc<Network> {
    let mut b = NetworkBuilder::new(3);
    let mut x = b.conv2d_with_bias("conv0", b.input(), 8, 3, Conv2d::new(1, 1));
    x = relu(&mut b, "relu0", x);
    let y = b.conv2d_with_bias("conv1", x, 8, 3, Conv2d::new(1, 1));
    x = b.plain("add", Operation::Add, &[y, x]);
    x = relu(&mut b, "relu1", x);
    x = b.plain("pool", Operation::GlobalAveragePool, &[x]);
    x = b.hidden_linear("hidden", x, 12);
    x = relu(&mut b, "relu2", x);
    b.linear("fc", x, CLASSES);
    b.finish()
}

/// Every place where layers could be joined has a second reader, or reads one thing twice.
fn forbidden() -> Arc<Network> {
    let mut b = NetworkBuilder::new(3);
    let mut x = b.input();
    x = conv(&mut b, "conv1", x, 8, 3);
    // The batch norm is read by the ReLU and by the sum.
    let norm = b.batch_norm("bn1", x);
    let cut = relu(&mut b, "relu1", norm);
    x = b.plain("add1", Operation::Add, &[cut, norm]);
    // The sum is read by the ReLU and by a convolution.
    let mut y = conv(&mut b, "conv2", x, 8, 3);
    y = b.batch_norm("bn2", y);
    let sum = b.plain("add2", Operation::Add, &[x, y]);
    let cut = relu(&mut b, "relu2", sum);
    let other = conv(&mut b, "conv3", sum, 8, 1);
    x = b.plain("add3", Operation::Add, &[cut, other]);
    // The batch norm is both terms of the sum.
    y = b.batch_norm("bn3", x);
    x = b.plain("add4", Operation::Add, &[y, y]);
    head(b, x)
}

/// A network, and how many stages and layers it has.
fn networks() -> Vec<(&'static str, Arc<Network>, [usize; 2])> {
    let resnet8 = Architecture::named("resnet8", None, Some(8)).unwrap().build(3, CLASSES);
    let resnet18 = Architecture::named("resnet18", Some(Stem::Large), Some(8)).unwrap().build(3, CLASSES);
    let bottleneck = Architecture::from(ResNet::plain(true, vec![2, 1], vec![8, 8], Stem::Small));
    vec![
        ("resnet8", resnet8, [18, 30]),
        ("resnet18", resnet18, [40, 68]),
        ("bottlenecks", bottleneck.build(3, CLASSES), [24, 39]),
        ("dense", dense([8, 16, 16]), [23, 31]),
        // No convolution next to a batch norm comes in packs.
        ("odd", dense([9, 13, 17]), [23, 31]),
        ("plain", plain(), [11, 11]),
        ("biased", biased(), [7, 11]),
        ("forbidden", forbidden(), [13, 14]),
    ]
}

/// Initialised, but no γ is 1 and no β is 0.
fn model(network: &Arc<Network>) -> Model {
    seeded_model(network, 0)
}

fn seeded_model(network: &Arc<Network>, seed: u64) -> Model {
    let mut model = Model::initialized(network.clone(), 3 + seed);
    for parameter in network.parameters.iter().filter(|p| matches!(p.role, Role::Scale | Role::Shift)) {
        let noise = Numbers((seed << 32) + parameter.offset as u64).reals(parameter.shape.len());
        let values: Vec<f32> =
            model.parameter(parameter).to_f64().iter().zip(noise).map(|(v, r)| (v + 0.3 * r) as f32).collect();
        model.set_parameter(parameter, &values);
    }
    for index in 0..network.batch_norms.len() {
        let channels = network.batch_norms[index].channels;
        let mut numbers = Numbers(index as u64);
        let mut draw =
            |centre: f64| f32s(&numbers.reals(channels).iter().map(|v| centre + 0.5 * v).collect::<Vec<_>>());
        let (mean, variance) = (draw(0.0), draw(1.0));
        model.set_running(index, &mean, &variance);
    }
    model
}

/// Logits, the gradients of both arenas and, in training, the batch's statistics.
fn pass(model: &Model, is_fused: bool, device: Device, dtype: DType, mode: Mode) -> Vec<Vec<f64>> {
    let network = model.network.planned(is_fused);
    let x = Tensor::from_vec(f32s(&Numbers(5).reals(IMAGES.iter().product())), IMAGES);
    let (model, x) = match dtype {
        DType::F64 => (model.cast(DType::F64), x.cast(DType::F64)),
        dtype => (model.to_device(device), x.to_device(device).cast(dtype)),
    };
    let mut tape = Tape::new();
    let [trunk, head] = [&model.trunk, &model.head].map(|arena| tape.leaf(arena.clone()));
    let output = network.forward(&mut tape, &trunk, &head, &model.statistics, x, mode);
    let labels = Integers::from_vec(vec![0, 3, 1]).to_device(device);
    let loss = tape.softmax_cross_entropy(&CrossEntropy::default(), &output.logits, &labels, None);
    let mut gradients = tape.backward(loss);
    let of_leaves = [trunk, head].map(|leaf| gradients.take(&leaf).expect("a gradient").to_f64());
    let statistics = output.statistics.map(|statistics| statistics.to_f64());
    [vec![output.logits.value().to_f64()], of_leaves.to_vec(), statistics.into_iter().collect()].concat()
}

#[test]
fn stages_join_layers() {
    for (name, network, [stages, layers]) in networks() {
        assert_eq!([network.stages.len(), network.layers.len()], [stages, layers], "{name}");
        assert_eq!(network.planned(false).stages.len(), layers, "{name}");
    }
}

#[test]
fn the_same_bits_in_f32() {
    let all = devices().into_iter().map(Device::Gpu).chain([Device::Cpu]);
    for (device, dtype) in all.map(|device| (device, DType::F32)).chain([(Device::Cpu, DType::F64)]) {
        for (name, network, _) in networks() {
            let model = model(&network);
            for mode in [Mode::Training, Mode::Inference] {
                let [fused, apart] = [true, false].map(|is_fused| pass(&model, is_fused, device, dtype, mode));
                assert!(fused.iter().flatten().all(|v| v.is_finite()), "{name}, {mode:?} on {device}");
                assert!(fused == apart, "{name}, {mode:?}, {dtype} on {device}");
            }
        }
        device.check().unwrap();
    }
}

/// Without a residual and without tensor cores the same bits in half precision too: the ReLU of what was stored is what is
/// stored of the ReLU. With a residual, or where a batch norm adds to the gradients of a concatenation's parts, a stage rounds
/// once where layers round twice; on tensor cores sums are grouped
/// otherwise. What that does to one network is chance (a number beside zero passes a ReLU or not), so that the errors of all
/// are compared together, of several models each. Errors as large as what they are errors of say nothing.
#[test]
fn no_further_off_in_half_precision() {
    for (gpu, dtype) in devices().into_iter().flat_map(|gpu| [DType::BF16, DType::F16].map(|dtype| (gpu, dtype))) {
        let mut ratios = Vec::new();
        for ((name, network, _), seed) in
            networks().into_iter().flat_map(|of| [0, 1, 2, 3].map(|seed| (of.clone(), seed)))
        {
            let model = seeded_model(&network, seed);
            for mode in [Mode::Training, Mode::Inference] {
                let [fused, apart] =
                    [true, false].map(|is_fused| pass(&model, is_fused, Device::Gpu(gpu), dtype, mode));
                let forward = |found: &[Vec<f64>]| [found[0].clone(), found.get(3).cloned().unwrap_or_default()];
                match name {
                    "plain" => {
                        assert!(fused == apart, "{name}, {mode:?}, {dtype} on {gpu}");
                        continue;
                    }
                    "odd" => assert!(forward(&fused) == forward(&apart), "{name}, {mode:?}, {dtype} on {gpu}"),
                    _ => {}
                }
                let exact = pass(&model, false, Device::Cpu, DType::F64, mode);
                let errors = |found: &[Vec<f64>]| -> Vec<f64> {
                    found.iter().zip(&exact).map(|(found, exact)| normalized_error(found, exact)).collect()
                };
                let (fused, apart) = (errors(&fused), errors(&apart));
                println!("{name}, {mode:?}, {dtype} on {gpu}: {fused:.4?}, layer by layer {apart:.4?}");
                // Without a batch norm there are no statistics.
                let pairs = fused.iter().zip(&apart).filter(|(fused, apart)| **apart > 0.0 && fused.max(**apart) < 0.5);
                ratios.extend(pairs.map(|(fused, apart)| fused / apart));
            }
        }
        // On average none, within what chance does to the mean of so many.
        let logarithms: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        let square = logarithms.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (logarithms.len() - 1) as f64;
        let of_mean = (square / logarithms.len() as f64).sqrt();
        println!("{dtype} on {gpu}: {:.3} of the error layer by layer, its logarithm ± {of_mean:.3}", mean.exp());
        assert!(ratios.len() > 100 && of_mean < 0.05 && mean < 2.0 * of_mean, "{dtype} on {gpu}: {mean} ± {of_mean}");
        gpu.check().unwrap();
    }
}

/// In tf32 activations are stored as f32: what a convolution leaves for a batch norm differs from what the batch norm finds
/// itself by the order of sums alone. In inference that is seen in gradients of γ and β only; in training each number that
/// comes out a bit different may round to another tf32 as it is multiplied, 2⁻¹¹ away, and a few in a hundred do.
#[test]
fn the_same_but_for_the_order_of_sums_in_tf32() {
    for gpu in devices() {
        for (mode, tolerance) in [(Mode::Training, 2e-3), (Mode::Inference, 1e-7)] {
            let mut worst = 0f64;
            for (name, network, _) in networks() {
                let model = model(&network);
                let [fused, apart] =
                    [true, false].map(|is_fused| pass(&model, is_fused, Device::Gpu(gpu), DType::TF32, mode));
                for (fused, apart) in fused.iter().zip(&apart).filter(|(_, apart)| !apart.is_empty()) {
                    let error = normalized_error(fused, apart);
                    assert!(error < tolerance, "{name}, {mode:?} on {gpu}: {error:.1e}");
                    worst = worst.max(error);
                }
            }
            println!("{mode:?} on {gpu}: at worst {worst:.1e}");
            assert!(worst > 0.0, "nothing was summed in another order");
        }
        gpu.check().unwrap();
    }
}

/// Forward exactly, backward up to the second launches of wgrad.
#[test]
fn stages_launch_what_they_say() {
    let places = devices().into_iter().flat_map(|gpu| [DType::F32, DType::BF16, DType::TF32].map(|dtype| (gpu, dtype)));
    for (gpu, dtype) in places {
        for (name, network, _) in networks() {
            let model = model(&network).to_device(Device::Gpu(gpu));
            for is_fused in [true, false] {
                let network = network.planned(is_fused);
                let x = Tensor::from_vec(f32s(&Numbers(5).reals(IMAGES.iter().product())), IMAGES);
                let x = x.to_device(Device::Gpu(gpu)).cast(dtype);
                // The filters as activations are stored.
                let filters = u64::from(dtype == DType::BF16);
                let mut tape = Tape::new();
                let [trunk, head] = [&model.trunk, &model.head].map(|arena| tape.leaf(arena.clone()));
                let before = gpu.launches();
                let output = network.forward(&mut tape, &trunk, &head, &model.statistics, x, Mode::Training);
                let forward = gpu.launches() - before - filters;
                let labels = Integers::from_vec(vec![0, 3, 1]).to_device(Device::Gpu(gpu));
                let loss = tape.softmax_cross_entropy(&CrossEntropy::default(), &output.logits, &labels, None);
                let before = gpu.launches();
                tape.backward(loss);
                let backward = (gpu.launches() - before) as usize;
                let said: Launches = (0..network.stages.len()).map(|index| network.launches(index, dtype)).sum();
                let convolutions =
                    network.layers.iter().filter(|l| matches!(l.operation, Operation::Conv2d { .. })).count();
                println!("{name}, {dtype}, fused: {is_fused}: {forward}, {backward}; {said:?}");
                assert_eq!(forward, said.forward as u64, "{name}, {dtype}, fused: {is_fused}");
                let expected = said.backward - convolutions..=said.backward;
                assert!(expected.contains(&backward), "{name}, {dtype}, fused: {is_fused}: {backward}, {expected:?}");
            }
        }
        gpu.check().unwrap();
    }
}
