//! Which kernels a run launches, known before it begins: a step and a look at a batch, on a device that does nothing. So they are compiled
//! side by side; one by one, as they are first launched, they would take as long on many processors as on one.

use super::batches::Batch;
use super::optimizer::BETAS;
use super::step::{MergeState, step};
use super::{Place, Subject, TrainOptions};
use crate::gpu::{Handle, Kernel, WorkOf};
use crate::nn::Model;
use crate::ops::control::Control;
use crate::ops::images::Images;
use crate::ops::softmax_cross_entropy::{CrossEntropy, Form};
use crate::tensor::{DType, Device, Integers, Tensor};

/// Compiles what steps of `subject` on batches of this shape, N, H, W, C, will launch on the device of `place`, where that is a GPU. A help:
/// what it does not foresee is compiled when it is launched.
pub(super) fn compile_ahead(
    place: Place,
    model: &Model,
    subject: &Subject,
    options: &TrainOptions,
    loss: &CrossEntropy,
    batch: [usize; 4],
) {
    if let Device::Gpu(gpu) = place.device
        && gpu.compiles_ahead()
    {
        gpu.compile_ahead(&kernels(gpu, place, model, subject, options, loss, batch));
    }
}

fn kernels(
    of: Handle,
    place: Place,
    model: &Model,
    subject: &Subject,
    options: &TrainOptions,
    loss: &CrossEntropy,
    batch @ [images, _, _, channels]: [usize; 4],
) -> Vec<Kernel> {
    let dry = of.rehearsal();
    let there = Place { device: Device::Gpu(dry), ..place };
    let mut twin = there.bring(&Model::zeros(model.network.clone(), DType::F32, there.device));
    let bytes = Integers::from_vec(vec![0; batch.iter().product()]).to_device(there.device);
    let labels = Integers::from_vec(vec![0; images]).to_device(there.device);
    let tables = vec![[0.0; 256]; channels].into();
    let mut batch = Batch::of_bytes(Images { bytes, shape: batch, placements: None }, tables, place.precision, labels);
    // Decisions that are several have no one label.
    if loss.form == Form::Sigmoid {
        batch = batch.with_shares(Tensor::zeros([images, model.network.classes], DType::F32, there.device));
    }
    let control = Control::new(dry, 0, BETAS[0], BETAS[1], place.precision == DType::F16);
    let mut work = dry.trace(|| drop(twin.logits(batch.activations()))).work;
    for mut subject in rehearsed(subject, there.device) {
        let mut optimizers = subject.optimizers(options, &twin.network);
        // The first one makes what the others find.
        for _ in 0..2 {
            let once = || drop(step(&mut twin, &mut subject, &mut optimizers, loss, &batch, 1.0, Some(&control)));
            work.extend(dry.trace(once).work);
        }
    }
    let kernel = |of| if let WorkOf::Launch(kernel) = of { Some(kernel) } else { None };
    work.into_iter().filter_map(|work| kernel(work.of)).collect()
}

/// Subjects whose steps launch what those of `subject` do, or nearly so.
fn rehearsed(subject: &Subject, device: Device) -> Vec<Subject> {
    let merge = subject.merge().map(|state| {
        let like = |tensor: &Tensor| Tensor::zeros(tensor.shape(), tensor.dtype(), device);
        let trunks = state.trunks.iter().map(like).collect();
        let twin = MergeState::new(state.plan.clone(), trunks, like(&state.merge_weights));
        Subject::Merge(MergeState {
            keeps_statistics: state.keeps_statistics,
            probe_statistics: state.probe_statistics,
            ..twin
        })
    });
    let alone = match subject {
        Subject::Head => Some(Subject::Head),
        Subject::Merge(_) => None,
        Subject::Everything | Subject::EverythingAndMerge(_) | Subject::Distilled(_) => Some(Subject::Everything),
    };
    alone.into_iter().chain(merge).collect()
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::gpu::{Gpu, compile};
    use crate::merge::{BatchNormPolicy, Constraint, Granularity, Method, Plan, Start};
    use crate::nn::Architecture;

    /// Every subject, precision and loss that a run can have is rehearsed without a complaint.
    #[test]
    fn every_kind_of_run_is_foreseen() {
        let gpu = Gpu::emulator_of("sm_90a", 5).unwrap();
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(3, 2);
        for precision in [DType::F32, DType::TF32, DType::BF16, DType::F16] {
            let place = Place { device: Device::Gpu(gpu), precision, is_fused: precision != DType::F16 };
            for subject in [Subject::Everything, Subject::Head] {
                for (form, file) in [(Form::Softmax, "softmax_cross_entropy"), (Form::Sigmoid, "soft_cross_entropy")] {
                    let loss = CrossEntropy { form, ..CrossEntropy::default() };
                    let model = place.bring(&Model::blank(network.clone()));
                    let found = kernels(gpu, place, &model, &subject, &TrainOptions::default(), &loss, [2, 16, 16, 3]);
                    assert!(found.iter().any(|kernel| kernel.file == file), "{precision}");
                }
            }
        }
    }

    /// Nothing that a step launches is a surprise, and much of what there is stays out.
    #[test]
    fn a_step_launches_what_was_foreseen() {
        let gpu = Gpu::emulator_of("sm_90a", 5).unwrap();
        let network = Architecture::named("resnet8", None, None).unwrap().build(3, 2);
        let shape = [2, 16, 16, 3];
        for (precision, merges) in [(DType::BF16, false), (DType::BF16, true), (DType::TF32, true)] {
            let place = Place { device: Device::Gpu(gpu), precision, is_fused: true };
            let model = || place.bring(&Model::initialized(network.clone(), 3));
            let subject = || match merges {
                false => Subject::Everything,
                true => {
                    let (granularity, batch_norm) = (Granularity::Kernel, BatchNormPolicy::Merge);
                    let method =
                        Method { sources: 2, anchor: 0, granularity, constraint: Constraint::Affine, batch_norm };
                    let plan = Plan::new(&network, method).unwrap();
                    let merge_weights = plan.start(Start::Uniform).unwrap().to_device(place.device);
                    Subject::Merge(MergeState::new(plan, vec![model().trunk, model().trunk], merge_weights))
                }
            };
            let (options, loss) = (TrainOptions::default(), CrossEntropy::default());
            let foreseen = kernels(gpu, place, &model(), &subject(), &options, &loss, shape);

            let (mut model, mut subject) = (model(), subject());
            let mut optimizers = subject.optimizers(&options, &network);
            let bytes = Integers::from_vec(vec![7; shape.iter().product()]).to_device(place.device);
            let labels = Integers::from_vec(vec![0, 1]).to_device(place.device);
            let images = Images { bytes, shape, placements: None };
            let batch = Batch::of_bytes(images, vec![[0.5; 256]; 3].into(), precision, labels);
            let control = Control::new(gpu, 0, BETAS[0], BETAS[1], false);
            let ran = gpu.trace(|| {
                for _ in 0..2 {
                    step(&mut model, &mut subject, &mut optimizers, &loss, &batch, 1.0, Some(&control));
                }
                model.logits(batch.activations());
            });
            gpu.check().unwrap();
            let surprises: Vec<String> = ran
                .work
                .iter()
                .map(|work| work.of)
                .filter(|of| matches!(of, WorkOf::Launch(kernel) if !foreseen.contains(kernel)))
                .map(WorkOf::name)
                .collect();
            assert!(surprises.is_empty(), "{precision}: {surprises:?}");
            let modules = |kernels: &[Kernel]| -> BTreeSet<_> {
                kernels.iter().map(|kernel| (kernel.file, kernel.dtype.to_string())).collect()
            };
            let (needed, all) = (modules(&foreseen), compile::sources("sm_90a").len());
            assert!((10..all / 2).contains(&needed.len()), "{precision}: {} of {all} modules", needed.len());
            let has = |file: &str| needed.iter().any(|(needed, _)| *needed == file);
            assert_eq!((has("merge"), has("gram"), has("concat")), (merges, false, false), "{precision}");
            // In tf32 warpgroups turn no operand.
            let turns = has("conv2d_hopper_dgrad") || has("conv2d_hopper_dgrad_sums");
            assert_eq!((has("conv2d_hopper_fprop_statistics"), turns), (true, precision == DType::BF16), "{precision}");
        }
    }
}
