//! A network together with its numbers.

use std::sync::Arc;

use super::Mode;
use super::{Network, Parameter, Region, init};
use crate::gpu::Address;
use crate::ops::batch_norm;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Device, Element, Tensor};
use crate::threads;

/// The graph and the arenas. Cloning shares the numbers until one of the two is written.
#[derive(Clone, Debug)]
pub struct Model {
    pub network: Arc<Network>,
    pub trunk: Tensor,
    pub head: Tensor,
    /// Running means and variances.
    pub statistics: Tensor,
    /// Batches that the running statistics of each batch norm have seen: PyTorch's `num_batches_tracked`.
    pub batches_tracked: Vec<i64>,
}

impl Model {
    /// All parameters zero, running means 0 and variances 1.
    pub fn zeros(network: Arc<Network>, dtype: DType, device: Device) -> Model {
        let arena = |len: usize| Tensor::zeros([len], dtype, device);
        let mut model = Model {
            trunk: arena(network.trunk_len),
            head: arena(network.head_len),
            statistics: arena(network.statistics_len),
            batches_tracked: vec![0; network.batch_norms.len()],
            network,
        };
        model.reset_statistics();
        model
    }

    /// The same in f32 on the CPU.
    pub fn blank(network: Arc<Network>) -> Model {
        Model::zeros(network, DType::F32, Device::Cpu)
    }

    /// A fresh network, initialised from `seed`.
    pub fn initialized(network: Arc<Network>, seed: u64) -> Model {
        let mut model = Model::blank(network);
        init::initialize(&mut model, Region::Trunk, seed);
        init::initialize(&mut model, Region::Head, seed);
        model
    }

    pub fn dtype(&self) -> DType {
        self.trunk.dtype()
    }

    pub fn device(&self) -> Device {
        self.trunk.device()
    }

    pub fn cast(&self, dtype: DType) -> Model {
        Model {
            trunk: self.trunk.cast(dtype),
            head: self.head.cast(dtype),
            statistics: self.statistics.cast(dtype),
            ..self.clone()
        }
    }

    /// The same numbers on another device.
    pub fn to_device(&self, device: Device) -> Model {
        Model {
            trunk: self.trunk.to_device(device),
            head: self.head.to_device(device),
            statistics: self.statistics.to_device(device),
            ..self.clone()
        }
    }

    /// The same numbers in buffers of their own.
    pub fn copy(&self) -> Model {
        Model { trunk: self.trunk.copy(), head: self.head.copy(), statistics: self.statistics.copy(), ..self.clone() }
    }

    /// A parameter's numbers in our order, KRSC for filters, without padding.
    pub fn parameter(&self, parameter: &Parameter) -> Tensor {
        self.arena(parameter.region).window(parameter.offset, parameter.shape, parameter.pitch)
    }

    pub fn arena(&self, region: Region) -> &Tensor {
        match region {
            Region::Trunk => &self.trunk,
            Region::Head => &self.head,
        }
    }

    /// Overwrites a parameter with `values` in our order, without padding.
    pub fn set_parameter<T: Element>(&mut self, parameter: &Parameter, values: &[T]) {
        let arena = match parameter.region {
            Region::Trunk => &mut self.trunk,
            Region::Head => &mut self.head,
        };
        arena.make_unique();
        let row = if parameter.shape.rank() == 1 { 1 } else { parameter.shape.row_len() };
        let window = arena.view_mut().window(parameter.offset, parameter.shape, parameter.pitch);
        for (to, from) in window.data::<T>().chunks_mut(parameter.pitch).zip(values.chunks(row)) {
            to[..row].copy_from_slice(from);
        }
    }

    /// A parameter's numbers where they lie, in f32 on the CPU: its rows, a pitch apart.
    pub fn numbers(&self, parameter: &Parameter) -> &[f32] {
        &self.arena(parameter.region).data::<f32>()[parameter.range()]
    }

    /// The same to be written.
    pub fn numbers_mut(&mut self, parameter: &Parameter) -> &mut [f32] {
        let arena = match parameter.region {
            Region::Trunk => &mut self.trunk,
            Region::Head => &mut self.head,
        };
        arena.make_unique();
        &mut arena.view_mut().data::<f32>()[parameter.range()]
    }

    /// The running mean and variance of a batch norm.
    pub fn running(&self, index: usize) -> (Tensor, Tensor) {
        let norm = &self.network.batch_norms[index];
        let window = |offset| self.statistics.window(offset, [norm.channels], 1);
        (window(norm.mean), window(norm.variance))
    }

    pub fn set_running<T: Element>(&mut self, index: usize, mean: &[T], variance: &[T]) {
        let norm = &self.network.batch_norms[index];
        self.statistics.make_unique();
        for (offset, values) in [(norm.mean, mean), (norm.variance, variance)] {
            let window = self.statistics.view_mut().window(offset, [norm.channels], 1);
            window.data::<T>().copy_from_slice(values);
        }
    }

    /// Running means 0, variances 1, no batch seen.
    pub fn reset_statistics(&mut self) {
        match self.dtype() {
            DType::F32 => self.write_fresh_statistics::<f32>(),
            DType::F64 => self.write_fresh_statistics::<f64>(),
            other => panic!("running statistics of {other}"),
        }
        self.batches_tracked.fill(0);
    }

    fn write_fresh_statistics<T: Element>(&mut self) {
        let mut values = vec![T::default(); self.network.statistics_len];
        for norm in &self.network.batch_norms {
            values[norm.variance..][..norm.channels].fill(T::from_f64(1.0));
        }
        self.statistics.make_unique();
        let shape = self.statistics.shape();
        self.statistics.view_mut().copy_from(&Tensor::from_vec(values, shape));
    }

    /// Moves the running statistics towards a batch's ([`Output::statistics`](super::Output)), as
    /// [`batch_norm::update_running`] does; `gate` is its. Momentum `None` takes the cumulative average over all batches since
    /// the last reset.
    pub fn update_statistics(&mut self, of_batch: &Tensor, momentum: Option<f64>, gate: Option<Address>) {
        self.batches_tracked.iter_mut().for_each(|count| *count += 1);
        let momentum = momentum.unwrap_or_else(|| {
            let seen = self.batches_tracked.first().copied().unwrap_or(1);
            assert!(self.batches_tracked.iter().all(|&count| count == seen), "an average begins with a reset");
            1.0 / seen as f64
        });
        self.statistics.make_unique();
        batch_norm::update_running(self.statistics.view_mut(), of_batch, momentum, gate);
    }

    /// Logits of a batch (NHWC) by the running statistics.
    pub fn logits(&self, x: Tensor) -> Tensor {
        threads::within(self.device(), || {
            let (trunk, head) = (Var::constant(self.trunk.clone()), Var::constant(self.head.clone()));
            let output = self.network.forward(&mut Tape::new(), &trunk, &head, &self.statistics, x, Mode::Inference);
            output.logits.into_value()
        })
    }

    /// The first number that no network may hold: a parameter or a statistic that is not finite, a negative variance.
    pub fn first_fault(&self) -> Option<Fault> {
        if self.device() != Device::Cpu {
            return self.to_device(Device::Cpu).first_fault();
        }
        let of_parameter = |p: &Parameter| {
            let row = if p.shape.rank() == 1 { 1 } else { p.shape.row_len() };
            Fault::find(&p.name, &self.parameter(p), row, |value| value.is_finite())
        };
        let of_norm = |index: usize| {
            let (mean, variance) = self.running(index);
            let name = |suffix: &str| format!("{}.{suffix}", self.network.batch_norms[index].name);
            Fault::find(&name("running_mean"), &mean, 1, |value| value.is_finite())
                .or_else(|| Fault::find(&name("running_var"), &variance, 1, |value| value.is_finite() && value >= 0.0))
        };
        let of_parameters = self.network.parameters.iter().find_map(of_parameter);
        of_parameters.or_else(|| (0..self.network.batch_norms.len()).find_map(of_norm))
    }
}

/// A number that no network may hold, by the name of its tensor in files.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub tensor: String,
    /// The filter, channel or class that it belongs to.
    pub channel: usize,
    pub value: f64,
}

impl Fault {
    fn find(name: &str, numbers: &Tensor, row: usize, is_good: impl Fn(f64) -> bool) -> Option<Fault> {
        let numbers = numbers.to_f64();
        let at = numbers.iter().position(|&value| !is_good(value))?;
        Some(Fault { tensor: name.to_string(), channel: at / row.max(1), value: numbers[at] })
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { tensor, channel, value } = self;
        match value.is_finite() {
            true => write!(f, "{tensor} is {value} in channel {channel}, and no variance is negative"),
            false => write!(f, "{tensor} holds NaN or infinity, in channel {channel}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Architecture;

    #[test]
    fn a_fault_is_named_by_its_tensor_and_channel() {
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(1, 2);
        let good = Model::initialized(network, 1);
        assert_eq!(good.first_fault(), None);
        let with_variances = |values: &[f32]| {
            let mut model = good.clone();
            model.set_running(0, &[0.0; 4], values);
            model.first_fault().map(|fault| fault.to_string())
        };
        assert_eq!(with_variances(&[0.0, -0.0, 1.0, 2.0]), None);
        let negative = with_variances(&[1.0, 1.0, -0.5, 1.0]).unwrap();
        assert_eq!(negative, "bn1.running_var is -0.5 in channel 2, and no variance is negative");
        let nan = with_variances(&[1.0, f32::NAN, 1.0, 1.0]).unwrap();
        assert_eq!(nan, "bn1.running_var holds NaN or infinity, in channel 1");
        let mut model = good.clone();
        let filters = model.network.parameter("layer1.0.conv1.weight").unwrap().clone();
        let mut values = model.parameter(&filters).to_vec::<f32>();
        // The last of K = 4 filters.
        *values.last_mut().unwrap() = f32::INFINITY;
        model.set_parameter(&filters, &values);
        let fault = model.first_fault().unwrap();
        assert_eq!((fault.tensor.as_str(), fault.channel), ("layer1.0.conv1.weight", 3));
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests_on_a_gpu {
    use super::*;
    use crate::gpu::Gpu;
    use crate::nn::Architecture;

    /// The running statistics of two batches, from a reset on, are bitwise those of the CPU.
    #[test]
    fn running_statistics_on_a_gpu() {
        let network = Architecture::named("resnet20", None, None).unwrap().build(3, 2);
        let run = |device: Device| {
            let mut model = Model::zeros(network.clone(), DType::F32, Device::Cpu).to_device(device);
            model.statistics.make_unique();
            model.statistics.view_mut().fill(7.0);
            model.reset_statistics();
            let reset = model.statistics.to_vec::<f32>();
            for scale in [0.3f32, 1.7] {
                let len = model.network.statistics_len;
                let values = (0..len).map(|i| 0.1 + scale * (i as f32).sqrt()).collect();
                let batch = Tensor::from_vec(values, [len]).to_device(device);
                model.update_statistics(&batch, Some(0.1), None);
                model.update_statistics(&batch, None, None);
            }
            (reset, model.statistics.to_vec::<f32>())
        };
        assert_eq!(run(Device::Gpu(Gpu::emulator(1).unwrap())), run(Device::Cpu));
    }
}
