//! The checks that every pass has to withstand.

use super::operand::{Execution, Values};
use super::pass::{Draw, Pass, Wrong};
use crate::numbers::{error_beyond_storage, normalized_error, stored};

impl Pass {
    /// Runs every check on `execution`. Returns the normalised error with random inputs, the rounding of stored results
    /// included.
    pub fn check(&self, execution: Execution) -> Result<f64, Wrong> {
        let all = || {
            self.check_integers(execution)?;
            self.check_not_finite(execution)?;
            self.check_reals(execution)
        };
        all().map_err(|wrong| format!("{} {}: {wrong}", execution.dtype, self.name()))
    }

    /// The same bits for integers, but for the sign of a zero, wherever the arithmetic is exact.
    fn check_integers(&self, execution: Execution) -> Result<(), Wrong> {
        if !self.is_exact {
            return Ok(());
        }
        self.compare(Draw::Integers, execution, &self.draw(Draw::Integers, execution), |index, actual, expected| {
            let dtype = execution.dtype_of(self.layout(&self.outputs[index]).role);
            let wrong = actual.iter().zip(expected).position(|(&actual, &expected)| {
                let expected = stored(expected, dtype);
                actual.to_bits() != expected.to_bits() && !(actual == 0.0 && expected == 0.0)
            });
            let say = |i: usize| format!("integers give {} at {i} of output {index}, not {}", actual[i], expected[i]);
            wrong.map_or(Ok(()), |i| Err(say(i)))
        })
    }

    /// The worst normalised error with random inputs. What exceeds the storage's rounding is within the tolerance.
    fn check_reals(&self, execution: Execution) -> Result<f64, Wrong> {
        let mut worst = 0f64;
        let tolerance = self.tolerance_on(execution);
        self.compare(Draw::Reals, execution, &self.draw(Draw::Reals, execution), |index, actual, expected| {
            worst = worst.max(normalized_error(actual, expected));
            let dtype = execution.dtype_of(self.layout(&self.outputs[index]).role);
            let beyond = error_beyond_storage(actual, expected, dtype);
            if beyond <= tolerance {
                return Ok(());
            }
            Err(format!("output {index} has a normalised error of {beyond:.3e} > {tolerance:.1e}"))
        })?;
        Ok(worst)
    }

    /// Whatever is not finite in the reference's result is not finite here, wherever a NaN or an infinity came in.
    fn check_not_finite(&self, execution: Execution) -> Result<(), Wrong> {
        let drawn = self.draw(Draw::Reals, execution);
        for (index, input) in self.inputs.iter().enumerate() {
            if matches!(input.values, Values::Below(_)) {
                continue;
            }
            let places: Vec<usize> = input.layout.indices().collect();
            let Some(&place) = places.get(places.len() / 3) else { continue };
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut inputs = drawn.clone();
                inputs[index][place] = value;
                self.compare(Draw::Reals, execution, &inputs, |output, actual, expected| {
                    let pairs = || actual.iter().zip(expected);
                    if let Some(i) = pairs().position(|(a, e)| !e.is_finite() && a.is_finite()) {
                        return Err(format!("{value} in input {index} does not reach {i} of output {output}"));
                    }
                    if value.is_nan()
                        && let Some(i) = pairs().position(|(a, e)| e.is_nan() && !a.is_nan())
                    {
                        return Err(format!("NaN in input {index} is a number at {i} of output {output}"));
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Runs on `execution` and in the reference, and compares output by output: its index, and the numbers of both.
    fn compare(
        &self,
        kind: Draw,
        execution: Execution,
        inputs: &[Vec<f64>],
        mut compare: impl FnMut(usize, &[f64], &[f64]) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        let actual = self.execute(kind, execution, inputs)?;
        let expected =
            self.execute(kind, Execution::REFERENCE, inputs).map_err(|wrong| format!("the reference {wrong}"))?;
        for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            compare(index, actual, expected)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::operand::{Input, Layout, Output};
    use crate::tensor::DType;

    const ROWS: usize = 3;
    const ROW: usize = 5;
    const PITCH: usize = 8;

    /// `y = 2x` over padded rows in the reference; on the CPU `wrong` has the last word.
    fn doubling(wrong: impl Fn(&[f32], &mut [f32]) + Send + Sync + 'static) -> Pass {
        let rows = || Layout::padded([ROWS, ROW], PITCH).in_arena();
        let pass = Pass::new("y", [Input::unit(rows())], [rows()], move |[x], [y]| {
            let indices = || (0..ROWS * ROW).map(|i| i / ROW * PITCH + i % ROW);
            if x.dtype() == DType::F64 {
                let y = y.data::<f64>();
                indices().for_each(|i| y[i] = 2.0 * x.data::<f64>()[i]);
            } else {
                let (x, y) = (x.data::<f32>(), y.data::<f32>());
                indices().for_each(|i| y[i] = 2.0 * x[i]);
                wrong(x, y);
            }
        });
        pass.of("rows").within(1e-6).exact()
    }

    #[track_caller]
    fn assert_caught(pass: Pass, says: &str) {
        let wrong = pass.check(Execution::CPU).expect_err("nothing was found");
        assert!(wrong.starts_with("f32 y of rows: "), "{wrong}");
        assert!(wrong.contains(says), "{wrong}");
    }

    #[test]
    fn a_right_pass_is_right() {
        assert_eq!(doubling(|_, _| ()).check(Execution::CPU), Ok(0.0));
        // Rounding within the tolerance.
        let error = doubling(|_, y| y[3] = y[3].next_up()).inexact().check(Execution::CPU).unwrap();
        assert!(error > 0.0 && error < 1e-6, "{error}");
    }

    #[test]
    fn an_index_that_is_one_off() {
        assert_caught(doubling(|x, y| y[0] = 2.0 * x[1]), "integers give");
        assert_caught(doubling(|x, y| y[0] = 2.0 * x[1]).inexact(), "normalised error");
        // Reads the padding of an input.
        assert_caught(doubling(|x, y| y[ROW - 1] += 0.0 * x[ROW]), "integers give NaN at 4");
        assert_caught(doubling(|x, y| y[ROW - 1] += 0.0 * x[ROW]).inexact(), "normalised error of inf");
    }

    #[test]
    fn one_element_that_is_wrong() {
        assert_caught(doubling(|_, y| y[2] = y[2].next_up()), "integers give");
        assert_caught(doubling(|_, y| y[2 * PITCH + 4] *= 1.0 + 1e-4).inexact(), "normalised error");
    }

    #[test]
    fn an_element_that_is_not_written() {
        assert_caught(doubling(|_, y| y[9] = f32::NAN), "integers give NaN");
        assert_caught(doubling(|_, y| y[9] = f32::NAN).inexact(), "normalised error of inf");
    }

    #[test]
    fn padding_that_is_written() {
        assert_caught(doubling(|_, y| y[ROW] = 0.0), "wrote 0 at 5 of output 0");
    }

    #[test]
    fn a_swallowed_nan_or_infinity() {
        let swallow = |_: &[f32], y: &mut [f32]| y.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = 0.0);
        assert_caught(doubling(swallow), "NaN in input 0 does not reach 5 of output 0");
        let clamp = |_: &[f32], y: &mut [f32]| y.iter_mut().filter(|v| v.is_infinite()).for_each(|v| *v = 9.0);
        assert_caught(doubling(clamp), "inf in input 0 does not reach 5 of output 0");
        let infinite = |_: &[f32], y: &mut [f32]| y.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = f32::INFINITY);
        assert_caught(doubling(infinite), "NaN in input 0 is a number at 5 of output 0");
    }

    #[test]
    fn a_panic() {
        assert_caught(doubling(|_, _| panic!("on purpose")), "panicked: on purpose");
    }

    /// Over an input, the op has to read what the output holds.
    #[test]
    fn an_output_over_an_input_starts_as_the_input() {
        let negate = || {
            Pass::new("y", [Input::unit(Layout::dense([7]))], [Output::Over(0)], |[x], [y]| match x.dtype() {
                DType::F64 => y.data::<f64>().iter_mut().for_each(|v| *v = -*v),
                _ => y.data::<f32>().iter_mut().for_each(|v| *v = -*v),
            })
        };
        assert_eq!(negate().exact().check(Execution::CPU), Ok(0.0));
    }

    impl Pass {
        fn inexact(self) -> Pass {
            self.exact_if(false)
        }
    }
}
