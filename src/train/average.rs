//! The average of a network over its epochs, as a start that keeps more of what it knew.
//!
//! ```text
//! A ← d·A + (1 − d)·N        A begins as the network after the first epoch
//! ```
//!
//! Trunk and head are averaged. Running statistics are not: they are re-estimated for A, as for every other network that is made of
//! several (Izmailov et al. 2018). It is the merge op that averages, so that every device gives the same bits.

use super::{Target, reestimate_statistics};
use crate::error::Result;
use crate::nn::Model;
use crate::ops::merge::{Choice, Segment, Table, blend};
use crate::tensor::{DType, Tensor};

pub struct Average {
    decay: f64,
    model: Option<Model>,
}

impl Average {
    pub fn new(decay: f64) -> Average {
        Average { decay, model: None }
    }

    /// The average so far, if an epoch has ended.
    pub fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    /// Continues from what [`Average::model`] said.
    pub fn restore(&mut self, model: Option<Model>) {
        self.model = model;
    }

    /// Takes in the network after an epoch, and returns the average. Running statistics are those of `now` where `reestimates` is
    /// false: of a trunk that stays as it is.
    pub fn add(&mut self, now: &Model, reestimates: bool, target: Target, batch_size: usize) -> Result<&Model> {
        let Some(before) = self.model.take() else { return Ok(self.model.insert(now.copy())) };
        let device = now.device();
        let alpha = Tensor::from_vec(vec![self.decay as f32, (1.0 - self.decay) as f32], [2, 1]).to_device(device);
        let before = before.to_device(device);
        let [trunk, head] = [(&before.trunk, &now.trunk), (&before.head, &now.head)].map(|(a, b)| mean(&alpha, a, b));
        let mut average = Model { trunk, head, ..now.copy() };
        if reestimates && average.statistics.shape().len() > 0 {
            reestimate_statistics(&mut average, target, batch_size)?;
        }
        Ok(self.model.insert(average))
    }
}

/// α₀·a + α₁·b.
fn mean(alpha: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
    let len = a.shape().len();
    let mut mean = Tensor::uninit([len], DType::F32, a.device());
    if len > 0 {
        let choice = Choice::Alpha { first: 0, row_step: 0, period: 1 };
        let table = Table::new(vec![Segment { offset: 0, rows: 1, row_len: len, pitch: len, choice }], 1, len);
        blend(&table, &[a, b], alpha, mean.view_mut());
    }
    mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Normalisation;
    use crate::data::synthetic::{SyntheticOptions, Task, generate};
    use crate::nn::Architecture;
    use crate::train::Place;

    #[test]
    fn an_average_is_that_of_the_formula_with_statistics_of_its_own() {
        let data =
            generate(Task::Shape, &SyntheticOptions { size: 16, train: 16, val: 4, test: 4, ..Default::default() });
        let target = Target { data: &data, normalisation: &Normalisation::default(), place: Place::default() };
        let network = Architecture::named("resnet8", None, Some(4)).unwrap().build(data.channels, data.classes);
        let epochs: Vec<Model> = (0..3).map(|seed| Model::initialized(network.clone(), seed)).collect();
        let mut average = Average::new(0.75);
        for epoch in &epochs {
            average.add(epoch, true, target, 8).unwrap();
        }
        let ours = average.model().unwrap();
        for of in [|model: &Model| model.trunk.to_f64(), |model: &Model| model.head.to_f64()] {
            let [a, b, c] = [0, 1, 2].map(|epoch| of(&epochs[epoch]));
            for (i, ours) in of(ours).into_iter().enumerate() {
                let expected = 0.75 * (0.75 * a[i] + 0.25 * b[i]) + 0.25 * c[i];
                assert!((ours - expected).abs() < 1e-6, "{ours} is not {expected}");
            }
        }
        let mut again = ours.copy();
        reestimate_statistics(&mut again, target, 8).unwrap();
        assert_eq!(again.statistics.to_f64(), ours.statistics.to_f64());
        assert_ne!(epochs[2].statistics.to_f64(), ours.statistics.to_f64());
        let mut kept = Average::new(0.75);
        kept.add(&epochs[0], false, target, 8).unwrap();
        let ours = kept.add(&epochs[1], false, target, 8).unwrap();
        assert_eq!(epochs[1].statistics.to_f64(), ours.statistics.to_f64());
    }
}
