//! One pass of one op on one case, so that every check treats all ops alike.

use std::ops::Range;

use medmerge::ops::merge::Table;
use medmerge::tensor::Element;

use crate::common::{Numbers, f32s, normalized_error};

/// Which elements of a buffer count. The others of an input are NaN, so that reading one shows in the result; the
/// others of an output must stay as they are.
#[derive(Clone, Debug)]
pub struct Layout {
    pub len: usize,
    covered: Vec<Range<usize>>,
}

impl Layout {
    pub fn dense(len: usize) -> Layout {
        Layout::rows(1, len, len)
    }

    pub fn rows(rows: usize, row_len: usize, pitch: usize) -> Layout {
        let covered = (0..rows).map(|row| row * pitch..row * pitch + row_len).collect();
        Layout { len: (rows - 1) * pitch + row_len, covered }
    }

    /// These rows behind `offset` other elements, in a buffer of `len`.
    pub fn at(self, offset: usize, len: usize) -> Layout {
        let shifted = |range: Range<usize>| range.start + offset..range.end + offset;
        Layout { len, covered: self.covered.into_iter().map(shifted).collect() }
    }

    /// The weights that a merge reads.
    pub fn of_table(table: &Table) -> Layout {
        let rows = table.segments().iter().flat_map(|segment| {
            (0..segment.rows).map(|row| {
                let start = segment.offset + row * segment.pitch;
                start..start + segment.row_len
            })
        });
        Layout { len: table.arena_len(), covered: rows.collect() }
    }

    fn mask(&self) -> Vec<bool> {
        let mut mask = vec![false; self.len];
        self.covered.iter().for_each(|range| mask[range.clone()].fill(true));
        mask
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Uniform within `spread` of `centre`.
    Around {
        centre: f64,
        spread: f64,
    },
    /// The same, but for the first row of `row` elements, which lies `offset` off.
    FirstOff {
        centre: f64,
        spread: f64,
        row: usize,
        offset: f64,
    },
    /// Whole numbers below this one.
    Below(u64),
    Zero,
}

#[derive(Clone, Debug)]
pub struct Input {
    pub layout: Layout,
    pub values: Values,
}

impl Input {
    /// Numbers in [−1, 1).
    pub fn unit(layout: Layout) -> Input {
        Input { layout, values: Values::Around { centre: 0.0, spread: 1.0 } }
    }

    pub fn around(len: usize, centre: f64, spread: f64) -> Input {
        Input { layout: Layout::dense(len), values: Values::Around { centre, spread } }
    }
}

#[derive(Clone, Debug)]
pub enum Output {
    /// Starts as NaN.
    Fresh(Layout),
    /// Starts as a copy of the input with this index.
    Over(usize),
}

impl From<Layout> for Output {
    fn from(layout: Layout) -> Output {
        Output::Fresh(layout)
    }
}

pub type Run<T> = Box<dyn Fn(&[Vec<T>], &mut [&mut [T]]) + Send + Sync>;

pub struct Pass {
    pub name: String,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    /// Of the normalised error against `f64`, with random inputs.
    pub tolerance: f64,
    /// Whether integers give the same bits in `f32` and `f64`.
    pub is_exact: bool,
    pub cpu: Run<f32>,
    pub reference: Run<f64>,
}

/// `pass!(op, name, [inputs], [outputs], |input, … => output, …| call)`: the call with the functions of `op::cpu`, and
/// the same call with those of `op::reference`.
#[macro_export]
macro_rules! pass {
    ($op:ident, $name:expr, $inputs:expr, $outputs:expr, |$($i:pat_param),* => $($o:ident),*| $call:expr) => {
        $crate::pass::Pass::new(
            $name,
            $inputs,
            $outputs.map($crate::pass::Output::from),
            move |inputs: &[Vec<f32>], outputs: &mut [&mut [f32]]| {
                use medmerge::ops::$op::cpu::*;
                let ([$($i),*], [$($o),*]) = (inputs, outputs) else { panic!("another number of operands") };
                $call
            },
            move |inputs: &[Vec<f64>], outputs: &mut [&mut [f64]]| {
                use medmerge::ops::$op::reference::*;
                let ([$($i),*], [$($o),*]) = (inputs, outputs) else { panic!("another number of operands") };
                $call
            },
        )
    };
}

/// Numbers before and behind every output that nobody may touch.
const MARGIN: usize = 64;
const SENTINEL: f64 = -1234.5;

impl Pass {
    pub fn new(
        name: impl ToString,
        inputs: impl IntoIterator<Item = Input>,
        outputs: impl IntoIterator<Item = Output>,
        cpu: impl Fn(&[Vec<f32>], &mut [&mut [f32]]) + Send + Sync + 'static,
        reference: impl Fn(&[Vec<f64>], &mut [&mut [f64]]) + Send + Sync + 'static,
    ) -> Pass {
        Pass {
            name: name.to_string(),
            inputs: inputs.into_iter().collect(),
            outputs: outputs.into_iter().collect(),
            tolerance: 0.0,
            is_exact: false,
            cpu: Box::new(cpu),
            reference: Box::new(reference),
        }
    }

    pub fn within(self, tolerance: f64) -> Pass {
        Pass { tolerance, ..self }
    }

    pub fn exact(self) -> Pass {
        Pass { is_exact: true, ..self }
    }

    /// Inputs that are exact in `f32`, the same at every call.
    pub fn draw(&self, integers: bool) -> Vec<Vec<f64>> {
        let mut numbers = Numbers(self.name.len() as u64);
        let mut draw = |input: &Input| -> Vec<f64> {
            let len = input.layout.len;
            let mut around = |centre: f64, spread: f64| match integers {
                true => numbers.integers(len),
                false => numbers.reals(len).into_iter().map(|v| centre + spread * v).collect(),
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
            for (value, covered) in values.iter_mut().zip(input.layout.mask()) {
                *value = if covered { f64::from(*value as f32) } else { f64::NAN };
            }
            values
        };
        self.inputs.iter().map(&mut draw).collect()
    }

    /// Every output's numbers, without padding.
    pub fn on_cpu(&self, inputs: &[Vec<f64>]) -> Vec<Vec<f32>> {
        let inputs: Vec<Vec<f32>> = inputs.iter().map(|input| f32s(input)).collect();
        self.execute(&inputs, &self.cpu)
    }

    pub fn on_reference(&self, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        self.execute(inputs, &self.reference)
    }

    fn execute<T: Element>(&self, inputs: &[Vec<T>], run: &Run<T>) -> Vec<Vec<T>> {
        let _named = NamedOnPanic(&self.name);
        let sentinel = T::from_f64(SENTINEL);
        let layouts: Vec<&Layout> = self.outputs.iter().map(|output| self.layout(output)).collect();
        let start = |(output, layout): (&Output, &&Layout)| {
            let fresh = vec![T::from_f64(f64::NAN); layout.len];
            let mut buffer = vec![sentinel; layout.len + 2 * MARGIN];
            let values = if let Output::Over(input) = output { &inputs[*input] } else { &fresh };
            for range in layout.covered.iter().cloned() {
                buffer[MARGIN..][range.clone()].copy_from_slice(&values[range]);
            }
            buffer
        };
        let mut buffers: Vec<Vec<T>> = self.outputs.iter().zip(&layouts).map(start).collect();
        let inner = |(buffer, layout): (_, &&Layout)| -> &mut [T] {
            let buffer: &mut Vec<T> = buffer;
            &mut buffer[MARGIN..][..layout.len]
        };
        let mut slices: Vec<&mut [T]> = buffers.iter_mut().zip(&layouts).map(inner).collect();
        run(inputs, &mut slices);
        let finish = |(buffer, layout): (Vec<T>, &Layout)| {
            let covered = [vec![false; MARGIN], layout.mask(), vec![false; MARGIN]].concat();
            let (inside, outside): (Vec<_>, Vec<_>) =
                buffer.into_iter().zip(covered).partition(|(_, covered)| *covered);
            let untouched = outside.iter().all(|(value, _)| *value == sentinel);
            assert!(untouched, "{}: wrote over padding, or beyond its output", self.name);
            inside.into_iter().map(|(value, _)| value).collect()
        };
        buffers.into_iter().zip(layouts).map(finish).collect()
    }

    fn layout<'a>(&'a self, output: &'a Output) -> &'a Layout {
        match output {
            Output::Fresh(layout) => layout,
            Output::Over(input) => &self.inputs[*input].layout,
        }
    }

    /// The same bits for integers, but for the sign of a zero, wherever the arithmetic is exact.
    pub fn check_integers(&self) {
        if !self.is_exact {
            return;
        }
        let inputs = self.draw(true);
        for (actual, expected) in self.on_cpu(&inputs).iter().zip(self.on_reference(&inputs)) {
            for (i, (&actual, expected)) in actual.iter().zip(expected).enumerate() {
                let same = f64::from(actual).to_bits() == expected.to_bits() || (actual == 0.0 && expected == 0.0);
                assert!(same, "{}: {actual} at {i}, not {expected}", self.name);
            }
        }
    }

    /// The worst normalised error with random inputs, which is within the tolerance.
    pub fn check_reals(&self) -> f64 {
        let inputs = self.draw(false);
        let mut worst = 0f64;
        for (actual, expected) in self.on_cpu(&inputs).into_iter().zip(self.on_reference(&inputs)) {
            let actual: Vec<f64> = actual.into_iter().map(f64::from).collect();
            worst = worst.max(normalized_error(&actual, &expected));
        }
        let (name, tolerance) = (&self.name, self.tolerance);
        assert!(worst <= tolerance, "{name}: normalised error {worst:.3e} > {tolerance:.1e}");
        worst
    }

    /// Whatever is not finite in the reference's result is not finite here, wherever a NaN or an infinity came in.
    pub fn check_not_finite(&self) {
        for (index, input) in self.inputs.iter().enumerate() {
            if matches!(input.values, Values::Below(_)) {
                continue;
            }
            let places: Vec<usize> = input.layout.covered.iter().flat_map(Clone::clone).collect();
            let Some(&place) = places.get(places.len() / 3) else { continue };
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut inputs = self.draw(false);
                inputs[index][place] = value;
                for (actual, expected) in self.on_cpu(&inputs).iter().zip(self.on_reference(&inputs)) {
                    let swallowed = actual.iter().zip(&expected).position(|(a, e)| !e.is_finite() && a.is_finite());
                    let name = &self.name;
                    assert!(swallowed.is_none(), "{name}: {value} in input {index} does not reach {swallowed:?}");
                    let nan =
                        actual.iter().zip(expected).position(|(a, e)| value.is_nan() && e.is_nan() && !a.is_nan());
                    assert!(nan.is_none(), "{name}: NaN in input {index} comes out as a number at {nan:?}");
                }
            }
        }
    }
}

/// Names the pass in which an implementation panicked.
struct NamedOnPanic<'a>(&'a str);

impl Drop for NamedOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {}", self.0);
        }
    }
}

/// References to several buffers.
pub fn slices<T>(buffers: &[Vec<T>]) -> Vec<&[T]> {
    buffers.iter().map(Vec::as_slice).collect()
}
