//! Channels of zeros before and behind those of x: N×H×W×C to N×H×W×(before + C + behind). Backward cuts `dy`'s middle out.
//!
//! Composed of the two halves of concatenation, with zeros for what is not there.

use super::concat;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

impl Tape {
    pub fn pad_channels(&mut self, [before, behind]: [usize; 2], x: &Var) -> Var {
        let (value, [n, h, w, c]) = (x.value(), x.shape().four());
        let mut y = Tensor::zeros([n, h, w, before + c + behind], value.dtype(), value.device());
        concat::insert(value, before, y.view_mut());
        let id = x.id();
        self.record(y, &[id], || {
            Box::new(move |dy, gradients| {
                let id = id.expect("recorded because its input wants a gradient");
                gradients.contribute(id, |dx| concat::backward(&dy, before, dx));
            })
        })
    }
}
