//! One pass of one op on one case, so that every check treats all ops on all devices alike.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::operand::{Execution, Input, Layout, Output, Role, Values};
use crate::gpu::TensorCores;
use crate::numbers::{Numbers, stored};
use crate::tensor::{DType, Device, Tensor, TensorMut};

/// The fault that a check found.
pub type Wrong = String;

type Run = Box<dyn Fn(&[Tensor], Vec<TensorMut>) + Send + Sync>;

/// Which values a check draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// From −3 to 3: index errors cannot hide behind rounding.
    Integers,
    Reals,
}

pub struct Pass {
    /// `fprop`, `dx`.
    pub direction: &'static str,
    pub case: String,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    /// Tolerance of the normalised error against `f64` with random inputs, in every dtype: what storing a result rounds
    /// away is taken off before, and what storing the inputs rounds away the reference sees too.
    pub tolerance: f64,
    /// The same for the CPU, where it may be less.
    pub tolerance_on_cpu: f64,
    /// Whether integers give the same bits as in `f64`, rounded once where the result is stored in fewer.
    pub is_exact: bool,
    /// The products of the sums that it may make on tensor cores, where tf32 is not f32; 0 for others.
    pub on_tensor_cores: usize,
    /// Whether the case is an edge of the CPU's implementation, and a long run of the same elsewhere.
    pub is_of_cpu: bool,
    run: Run,
}

/// Numbers before and behind every operand. Those of an output nobody may touch. A multiple of 16 bytes in every dtype.
const MARGIN: usize = 64;
/// Exact in every dtype.
const SENTINEL: f64 = -1232.0;
/// How far an operand in an arena lies behind a boundary of 16 bytes in some of the runs: no distance in `f32`, but
/// 8 bytes in `bf16` and `f16`.
const SHIFT: usize = 4;

impl Pass {
    /// `run` calls the op with the inputs and the outputs, in the order given.
    pub fn new<const I: usize, const O: usize>(
        direction: &'static str,
        inputs: [Input; I],
        outputs: [impl Into<Output>; O],
        run: impl Fn([&Tensor; I], [TensorMut; O]) + Send + Sync + 'static,
    ) -> Pass {
        Pass::with_many(direction, inputs.to_vec(), outputs.map(Into::into).to_vec(), move |inputs, outputs| {
            let outputs = outputs.try_into().unwrap_or_else(|_| panic!("another number of outputs"));
            run(std::array::from_fn(|i| &inputs[i]), outputs)
        })
    }

    /// The same for an op with any number of inputs.
    pub fn with_many(
        direction: &'static str,
        inputs: Vec<Input>,
        outputs: Vec<Output>,
        run: impl Fn(&[Tensor], Vec<TensorMut>) + Send + Sync + 'static,
    ) -> Pass {
        Pass {
            direction,
            case: String::new(),
            inputs,
            outputs,
            tolerance: 0.0,
            tolerance_on_cpu: 0.0,
            is_exact: false,
            on_tensor_cores: 0,
            is_of_cpu: false,
            run: Box::new(run),
        }
    }

    pub fn of(self, case: impl ToString) -> Pass {
        Pass { case: case.to_string(), ..self }
    }

    pub fn within(self, tolerance: f64) -> Pass {
        Pass { tolerance, tolerance_on_cpu: tolerance, ..self }
    }

    pub fn within_on_cpu(self, tolerance_on_cpu: f64) -> Pass {
        Pass { tolerance_on_cpu, ..self }
    }

    pub fn exact(self) -> Pass {
        self.exact_if(true)
    }

    pub fn exact_if(self, is_exact: bool) -> Pass {
        Pass { is_exact, ..self }
    }

    pub fn on_tensor_cores(self, products: usize) -> Pass {
        Pass { on_tensor_cores: products, ..self }
    }

    /// The tolerance on a device. Tensor cores cut off: with each few products that they add the sum loses up to 2⁻²³ of itself, half of that
    /// on average, always towards zero, so that a sum of n such steps may be n·2⁻²⁴ too small.
    pub fn tolerance_on(&self, execution: Execution) -> f64 {
        let Device::Gpu(gpu) = execution.device else {
            return if execution == Execution::CPU { self.tolerance_on_cpu } else { self.tolerance };
        };
        let cores = gpu.description().tensor_cores;
        let is_cut_off = execution.dtype != DType::F32 && cores != TensorCores::Rounding;
        let steps = if is_cut_off { self.on_tensor_cores.div_ceil(cores.products(execution.dtype)) } else { 0 };
        self.tolerance + steps as f64 * 2f64.powi(-24)
    }

    pub fn of_cpu_if(self, is_of_cpu: bool) -> Pass {
        Pass { is_of_cpu, ..self }
    }

    /// Whether `execution` is one to check it on.
    pub fn runs_on(&self, execution: Execution) -> bool {
        self.differs_in(execution.dtype) && (!self.is_of_cpu || execution.device == Device::Cpu)
    }

    /// Every operand is `f32`, whatever activations are.
    pub fn in_f32(mut self) -> Pass {
        self.inputs.iter_mut().for_each(|input| input.layout.role = Role::F32);
        for output in &mut self.outputs {
            if let Output::Fresh(layout) = output {
                layout.role = Role::F32;
            }
        }
        self
    }

    pub fn name(&self) -> String {
        format!("{} of {}", self.direction, self.case)
    }

    /// Whether this execution runs other code, or on other operands, than any other dtype on its device.
    pub fn differs_in(&self, dtype: DType) -> bool {
        let mut layouts =
            self.inputs.iter().map(|input| &input.layout).chain(self.outputs.iter().map(|o| self.layout(o)));
        let has_activations = layouts.any(|layout| layout.role == Role::Activation);
        match dtype {
            DType::F32 | DType::F64 => true,
            DType::TF32 => has_activations && self.on_tensor_cores > 0,
            DType::BF16 | DType::F16 => has_activations,
        }
    }

    /// Inputs that are exact in what `execution` stores them as, the same at every call.
    pub fn draw(&self, kind: Draw, execution: Execution) -> Vec<Vec<f64>> {
        let mut numbers = Numbers::named(&self.name());
        let mut draw = |input: &Input| -> Vec<f64> {
            let len = input.layout.len();
            let mut around = |centre: f64, spread: f64| match kind {
                Draw::Integers => numbers.integers(len),
                Draw::Reals => numbers.reals(len).into_iter().map(|v| centre + spread * v).collect(),
            };
            let mut values: Vec<f64> = match input.values {
                Values::Around { centre, spread } => around(centre, spread),
                Values::FirstOff { centre, spread, row, offset } => {
                    let mut values = around(centre, spread);
                    values[..row].iter_mut().for_each(|v| *v += offset);
                    values
                }
                Values::Below(end) => (0..len).map(|_| (numbers.next() % end) as f64).collect(),
                Values::Zero => vec![0.0; len],
            };
            let dtype = execution.dtype_of(input.layout.role);
            values.iter_mut().for_each(|value| *value = stored(f64::from(*value as f32), dtype));
            values
        };
        self.inputs.iter().map(&mut draw).collect()
    }

    /// Every output's numbers, without padding. `kind` also decides where operands in arenas lie, so that the checks
    /// together see every alignment.
    pub fn execute(&self, kind: Draw, execution: Execution, inputs: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, Wrong> {
        let layouts: Vec<&Layout> = self.outputs.iter().map(|output| self.layout(output)).collect();
        let places: Vec<Framed> = self
            .inputs
            .iter()
            .zip(inputs)
            .map(|(input, numbers)| Framed::new(&input.layout, kind, execution, f64::NAN, |i| numbers[i]))
            .collect();
        let fresh = |output: &Output, i: usize| match output {
            Output::Over(input) => inputs[*input][i],
            Output::Fresh(_) => f64::NAN,
        };
        let mut results: Vec<Framed> = self
            .outputs
            .iter()
            .zip(&layouts)
            .map(|(output, layout)| Framed::new(layout, kind, execution, SENTINEL, |i| fresh(output, i)))
            .collect();

        let arguments: Vec<Tensor> = places.iter().map(Framed::window).collect();
        let outputs = results.iter_mut().map(Framed::window_mut).collect();
        catch_unwind(AssertUnwindSafe(|| (self.run)(&arguments, outputs))).map_err(message)?;

        // On the CPU the compiler sees to it that nobody writes an input.
        if let Device::Gpu(gpu) = execution.device {
            gpu.synchronize().map_err(|failure| failure.to_string())?;
            for (index, place) in places.iter().enumerate() {
                let after = place.whole.to_f64();
                let changed = place.before.iter().zip(after).position(|(b, a)| *b != a && !(b.is_nan() && a.is_nan()));
                if let Some(i) = changed {
                    return Err(format!("wrote input {index}, at {}", place.relative(i)));
                }
            }
        }
        results.iter().enumerate().map(|(index, place)| place.result(index)).collect()
    }

    pub(super) fn layout<'a>(&'a self, output: &'a Output) -> &'a Layout {
        match output {
            Output::Fresh(layout) => layout,
            Output::Over(input) => &self.inputs[*input].layout,
        }
    }
}

/// An operand in a buffer of its own, with margins.
struct Framed<'a> {
    layout: &'a Layout,
    start: usize,
    /// The numbers that the buffer holds at first.
    before: Vec<f64>,
    whole: Tensor,
}

impl<'a> Framed<'a> {
    /// `inside` where elements count, `outside` elsewhere.
    fn new(
        layout: &'a Layout,
        kind: Draw,
        execution: Execution,
        outside: f64,
        inside: impl Fn(usize) -> f64,
    ) -> Framed<'a> {
        let start = if layout.in_arena && kind == Draw::Integers { MARGIN + SHIFT } else { MARGIN };
        let mut before = vec![outside; start + layout.len() + MARGIN];
        layout.indices().for_each(|i| before[start + i] = inside(i));
        let len = [before.len()];
        let whole = match execution.dtype_of(layout.role) {
            DType::F64 => Tensor::from_vec(before.clone(), len),
            dtype => {
                let numbers = Tensor::from_vec(before.iter().map(|&v| v as f32).collect(), len);
                numbers.to_device(execution.device).cast(dtype)
            }
        };
        Framed { layout, start, before, whole }
    }

    fn window(&self) -> Tensor {
        self.whole.window(self.start, self.layout.shape, self.layout.pitch)
    }

    fn window_mut(&mut self) -> TensorMut<'_> {
        self.whole.view_mut().window(self.start, self.layout.shape, self.layout.pitch)
    }

    /// An index of the buffer as seen from the operand's first element.
    fn relative(&self, i: usize) -> isize {
        i as isize - self.start as isize
    }

    /// The elements that count.
    fn result(&self, index: usize) -> Result<Vec<f64>, Wrong> {
        let after = self.whole.to_f64();
        let mut counts = vec![false; after.len()];
        self.layout.indices().for_each(|i| counts[self.start + i] = true);
        let touched = after.iter().zip(&counts).position(|(value, counts)| !counts && *value != SENTINEL);
        match touched {
            Some(i) => Err(format!(
                "wrote {} at {} of output {index}, over padding or beyond it ({} elements)",
                after[i],
                self.relative(i),
                self.layout.len()
            )),
            None => Ok(self.layout.indices().map(|i| after[self.start + i]).collect()),
        }
    }
}

/// The message of a panic.
fn message(payload: Box<dyn std::any::Any + Send>) -> Wrong {
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write that no safe code on the CPU can do.
    #[test]
    fn a_write_beyond_an_output_is_found() {
        for kind in [Draw::Integers, Draw::Reals] {
            for layout in [Layout::dense([3, 4]), Layout::padded([3, 4], 8).in_arena()] {
                let len = layout.len() as isize;
                for at in [-(MARGIN as isize), -1, len, len + MARGIN as isize - 1] {
                    let mut place = Framed::new(&layout, kind, Execution::CPU, SENTINEL, |_| 0.0);
                    assert_eq!(place.result(0), Ok(vec![0.0; 12]));
                    let index = (place.start as isize + at) as usize;
                    place.whole.view_mut().data::<f32>()[index] = 0.0;
                    let wrong = place.result(0).unwrap_err();
                    assert!(wrong.contains(&format!("wrote 0 at {at} of output 0")), "{wrong}");
                }
            }
        }
    }

    #[test]
    fn a_sentinel_is_exact_and_operands_are_aligned() {
        for dtype in [DType::F32, DType::TF32, DType::BF16, DType::F16] {
            assert_eq!(stored(SENTINEL, dtype), SENTINEL);
            assert_eq!(MARGIN * dtype.size() % 16, 0);
        }
        assert_eq!(SHIFT * DType::F32.size() % 16, 0);
    }
}
