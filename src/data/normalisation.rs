//! How bytes become numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Brings bytes v to (v / 255 − mean) / std, per channel; a single mean or std holds for all channels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

impl Default for Normalisation {
    /// MedMNIST's own: from −1 to 1.
    fn default() -> Self {
        Normalisation { mean: vec![0.5], std: vec![0.5] }
    }
}

/// As the options that ask for it.
impl fmt::Display for Normalisation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
        write!(f, "--mean {} --std {}", list(&self.mean), list(&self.std))
    }
}

impl Normalisation {
    pub fn check(&self, channels: usize) -> Result<()> {
        for (name, values) in [("mean", &self.mean), ("standard deviation", &self.std)] {
            if ![1, channels].contains(&values.len()) {
                return Err(Error::usage(
                    format!("{} values for the {name} of {channels} channels", values.len()),
                    format!("give one value, or {channels}"),
                ));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::usage(format!("a {name} of {value}"), "give a finite number"));
            }
        }
        match self.std.iter().find(|std| **std <= 0.0) {
            Some(std) => Err(Error::usage(format!("a standard deviation of {std}"), "give a number above 0")),
            None => Ok(()),
        }
    }

    /// Whether both bring the same bytes to the same numbers, in a network of so many channels.
    ///
    /// # Panics
    /// If [`Normalisation::check`] would refuse the number of channels.
    pub fn is_same(&self, other: &Normalisation, channels: usize) -> bool {
        (0..channels).all(|channel| self.of_channel(channel) == other.of_channel(channel))
    }

    /// # Panics
    /// If [`Normalisation::check`] would refuse the number of channels.
    pub fn of_channel(&self, channel: usize) -> (f32, f32) {
        let pick = |values: &[f32]| if values.len() == 1 { values[0] } else { values[channel] };
        (pick(&self.mean), pick(&self.std))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalisations_that_cannot_work_are_refused() {
        let check = |mean: &[f32], std: &[f32]| Normalisation { mean: mean.into(), std: std.into() }.check(3).is_ok();
        assert!(check(&[0.5], &[0.1, 0.2, 0.3]));
        assert!(!check(&[0.5, 0.5], &[0.5]));
        assert!(!check(&[0.5], &[0.0]));
        assert!(!check(&[0.5], &[0.5, f32::NAN, 0.5]));
    }
}
