//! Fine-tuning that keeps what sources knew: distillation of features.
//!
//! ```text
//! L + λ/2 · 1/N Σ ‖f(x) − t(x)‖²        t = the mean of the teachers' features
//! ```
//!
//! f(x) is what the classifier reads of an image, teachers run as in evaluation, and N are the images of a batch. That is, but for a
//! constant, the mean of the squared distances to each teacher's features, as FitNets (Romero et al. 2015) have them for one. The
//! loss that is shown is L.

use super::Place;
use crate::nn::Model;
use crate::ops::control::Control;
use crate::ops::pointwise::{Pull, add_assign};
use crate::tape::{Tape, Var};
use crate::tensor::{Device, Tensor};

/// Networks of one architecture whose features are kept, and λ.
pub struct Teachers {
    models: Vec<Model>,
    strength: f64,
    /// Where they run.
    there: Vec<Model>,
}

/// What they say to a batch.
pub(super) struct Features {
    /// The sum over the teachers.
    sum: Tensor,
    share: f64,
    strength: f64,
}

impl Features {
    pub fn pull(&self, control: Option<&Control>) -> Pull<'_> {
        let control = control.map(Control::address);
        Pull { towards: &self.sum, share: self.share, strength: self.strength, control }
    }
}

impl Teachers {
    /// One at least; heads do not matter.
    pub fn new(models: Vec<Model>, strength: f64) -> Teachers {
        assert!(!models.is_empty(), "a teacher at least");
        Teachers { there: models.clone(), models, strength }
    }

    pub(super) fn move_to(&mut self, device: Device) {
        let place = Place { device, ..Place::default() };
        self.there = self.models.iter().map(|model| place.bring(model)).collect();
    }

    /// `None` of networks that have no features.
    pub(super) fn features(&self, images: &Tensor) -> Option<Features> {
        let mut features = self.there.iter().map(|model| {
            let [trunk, head] = [&model.trunk, &model.head].map(|arena| Var::constant(arena.clone()));
            model.network.features(&mut Tape::new(), [&trunk, &head], &model.statistics, images.clone())
        });
        let mut sum = features.next().flatten()?;
        sum.make_unique();
        for features in features {
            add_assign(sum.view_mut(), &features?);
        }
        let (share, images) = (1.0 / self.there.len() as f64, images.shape().dims()[0]);
        Some(Features { sum, share, strength: self.strength / images as f64 })
    }

    /// Everything that a step reads of them.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.there.iter().flat_map(|model| [&model.trunk, &model.head, &model.statistics])
    }

    /// Numbers that they hold.
    pub(super) fn parameters(&self) -> usize {
        self.models.iter().map(|model| model.network.trunk_len).sum()
    }
}
