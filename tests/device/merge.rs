//! The blend's last bit, and dα from dW and from products.

use medmerge::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan};
use medmerge::nn::{Architecture, Mode, Model, Network};
use medmerge::ops::merge::{Backward, Choice, Parts, Segment, Table, blend, blend_in_parts};
use medmerge::ops::softmax_cross_entropy::CrossEntropy;
use medmerge::tape::Tape;
use medmerge::tensor::{DType, Device, Integers, Tensor};

use crate::common::{Numbers, assert_close};
use crate::devices;
use crate::steps::{shaken, small_network};

/// Other checks take the two zeros for one number.
#[test]
fn a_blend_keeps_the_sign_of_zero() {
    let len = 11;
    let choice = Choice::Alpha { first: 0, row_step: 0, period: 1 };
    let table = Table::new(vec![Segment { offset: 0, rows: 1, row_len: len, pitch: len, choice }], 1, len);
    let sources = [-0.0f32, -1e-3].map(|w| Tensor::from_vec(vec![w; len], [len]));
    let alpha = Tensor::from_vec(vec![1f32, 0.0], [2, 1]);
    let blended = |device: Device| {
        let sources = sources.each_ref().map(|source| source.to_device(device));
        let mut to = Tensor::uninit([len], DType::F32, device);
        blend(&table, &sources.each_ref(), &alpha.to_device(device), to.view_mut());
        to.to_vec::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let expected = blended(Device::Cpu);
    assert_eq!(expected, vec![(-0.0f32).to_bits(); len]);
    for gpu in devices() {
        assert_eq!(blended(Device::Gpu(gpu)), expected, "on {gpu}");
    }
}

fn plan(network: &Network, sources: usize, granularity: Granularity, constraint: Constraint) -> Plan {
    let batch_norm = BatchNormPolicy::Merge;
    Plan::new(network, Method { sources, anchor: 1, granularity, constraint, batch_norm }).unwrap()
}

/// Numbers that are learned, above zero and below one.
fn numbers(plan: &Plan) -> Tensor {
    let shape = [plan.parametrization.rows(), plan.parametrization.learned];
    let values = Numbers(9).reals(shape[0] * shape[1]);
    Tensor::from_vec(values.into_iter().map(|v| (0.5 + 0.3 * v) as f32).collect(), shape)
}

/// What the step reads is the CPU's blend, rounded once: to nearest, ties to even.
#[test]
fn filters_are_rounded_once() {
    let network = small_network();
    for gpu in devices() {
        let device = Device::Gpu(gpu);
        for sources in [1, 2, 3, 5, 8] {
            for granularity in [Granularity::Model, Granularity::Layer, Granularity::Filter, Granularity::Kernel] {
                let plan = plan(&network, sources, granularity, Constraint::Simplex);
                let table = &plan.table;
                let trunks: Vec<Tensor> = (0..sources as u64).map(|seed| shaken(network.clone(), seed).trunk).collect();
                let alpha = plan.parametrization.alpha(&numbers(&plan));
                let mut expected = Tensor::uninit([table.arena_len()], DType::F32, Device::Cpu);
                blend(table, &trunks.iter().collect::<Vec<_>>(), &alpha, expected.view_mut());
                let (filters, rest) = expected.data::<f32>().split_at(table.filters_len());

                let trunks: Vec<Tensor> = trunks.iter().map(|trunk| trunk.to_device(device)).collect();
                let trunks: Vec<&Tensor> = trunks.iter().collect();
                for dtype in [DType::F32, DType::BF16, DType::F16] {
                    let mut of_filters = Tensor::uninit([filters.len()], dtype, device);
                    let mut of_rest = Tensor::uninit([rest.len()], DType::F32, device);
                    let before = gpu.launches();
                    let parts = Parts { filters: of_filters.view_mut(), rest: of_rest.view_mut() };
                    blend_in_parts(table, &trunks, &alpha.to_device(device), parts);
                    assert_eq!(gpu.launches() - before, 1);
                    let rounded = |&w: &f32| match dtype {
                        DType::BF16 => half::bf16::from_f32(w).to_f32(),
                        DType::F16 => half::f16::from_f32(w).to_f32(),
                        _ => w,
                    };
                    let bits = |numbers: Vec<f32>| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    let expected = bits(filters.iter().map(rounded).collect());
                    let what = format!("{sources} sources by {granularity} in {dtype} on {gpu}");
                    assert!(bits(of_filters.to_vec()) == expected, "{what}");
                    assert!(bits(of_rest.to_vec()) == bits(rest.to_vec()), "{what}: what is no filter");
                }
            }
        }
    }
}

/// dα of a step on a batch of six images.
fn learned_gradient(models: &[Model], plan: &Plan, place: (Device, DType), backward: Backward) -> Vec<f64> {
    let (device, precision) = place;
    let mut tape = Tape::new();
    let learned = tape.leaf(numbers(plan).to_device(device));
    let head = tape.leaf(models[0].head.to_device(device));
    let alpha = tape.constrain(&plan.parametrization, &learned);
    let trunks: Vec<Tensor> = models.iter().map(|model| model.trunk.to_device(device)).collect();
    let trunk = tape.merge_by(&plan.table, &trunks, &alpha, precision, backward);
    let images = Numbers(5).reals(6 * 8 * 8).into_iter().map(|v| v as f32).collect();
    let images = Tensor::from_vec(images, [6, 8, 8, 1]).to_device(device).cast(precision);
    let statistics = models[0].statistics.to_device(device);
    let output = models[0].network.forward(&mut tape, &trunk, &head, &statistics, images, Mode::Training);
    let labels = Integers::from_vec(vec![0, 2, 1, 1, 0, 2]).to_device(device);
    let loss = tape.softmax_cross_entropy(&CrossEntropy::default(), &output.logits, &labels, None);
    let gradient = tape.backward(loss).take(&learned).expect("a gradient").to_f64();
    device.check().unwrap();
    gradient
}

/// The same sums in another order, wherever the network runs.
#[test]
fn products_give_the_gradient_that_dw_gives() {
    let network = Architecture::named("resnet8", None, Some(8)).unwrap().build(1, 3);
    let mut places = vec![(Device::Cpu, DType::F32)];
    for gpu in devices() {
        places.extend([DType::F32, DType::BF16, DType::F16].map(|precision| (Device::Gpu(gpu), precision)));
    }
    let cases = [
        (2, Granularity::Filter, Constraint::Affine),
        (3, Granularity::Filter, Constraint::Simplex),
        (8, Granularity::Filter, Constraint::Free),
        (2, Granularity::Layer, Constraint::Clamp),
        (3, Granularity::Layer, Constraint::Free),
        (2, Granularity::Model, Constraint::Free),
        (8, Granularity::Model, Constraint::Affine),
    ];
    for (sources, granularity, constraint) in cases {
        let models: Vec<Model> = (0..sources as u64).map(|seed| shaken(network.clone(), seed)).collect();
        let plan = plan(&network, sources, granularity, constraint);
        for place in &places {
            let launches = || if let Device::Gpu(gpu) = place.0 { gpu.launches() } else { 0 };
            let [(of_products, with_products), (of_dw, with_dw)] = [Backward::Products, Backward::Dw].map(|backward| {
                let before = launches();
                (learned_gradient(&models, &plan, *place, backward), launches() - before)
            });
            let what = format!("{sources} sources by {granularity}, {constraint}, {} on {}", place.1, place.0);
            assert_close(&of_products, &of_dw, 1e-5, &what);
            assert!(of_products.iter().any(|&g| g != 0.0), "{what}");
            // On tensor cores products come without the launches that finish dW.
            assert!(place.1 == DType::F32 || with_products < with_dw, "{what}: {with_products} launches");
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_order_of_threads_and_blocks_changes_no_product() {
    let network = Architecture::named("resnet8", None, Some(8)).unwrap().build(1, 3);
    let models: Vec<Model> = (0..3).map(|seed| shaken(network.clone(), seed)).collect();
    for granularity in [Granularity::Filter, Granularity::Model] {
        let plan = plan(&network, 3, granularity, Constraint::Free);
        for precision in [DType::F32, DType::BF16] {
            let bits = |seed| {
                let device = Device::Gpu(medmerge::gpu::Gpu::emulator(seed).unwrap());
                let gradient = learned_gradient(&models, &plan, (device, precision), Backward::Products);
                gradient.into_iter().map(f64::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(1) == bits(2) && bits(1) == bits(3), "{granularity} in {precision}");
        }
    }
}
