//! A merge that is learned on while all of the folded network is fine-tuned.
//!
//! ```text
//! T = V + Σ_m (α_m − α⁰_m)·W_m        dV = dT        dα_m = Σ dT·W_m, as in every merge
//! ```
//!
//! V is the trunk that is fine-tuned, which begins as the fold by α⁰; W are the sources, which stay frozen. α = α⁰ at first, to
//! the bit, since both come from the same numbers by the same op: so T begins as the fold, and where α stays it is V. What is
//! taken from one source as it is (batch norms of the anchor) has no α, and is V. The result is T, an ordinary trunk.

use std::sync::Arc;

use super::step::MergeState;
use crate::merge::Plan;
use crate::ops::merge::{Choice, Table};
use crate::tape::{Tape, Var};
use crate::tensor::{Device, Tensor};

/// What is merged on top of a trunk.
pub struct Change {
    pub merge: MergeState,
    /// Without the stretches that are taken from one source.
    table: Arc<Table>,
    /// The merge weights of the fold, as they are learned, and −α⁰, on the device of a step.
    folded: Tensor,
    pub(super) minus_alpha: Tensor,
}

impl Change {
    /// Nothing yet: `merge_weights` are those of the fold. `trunks` are the sources as they were merged.
    pub fn new(plan: Plan, trunks: Vec<Tensor>, merge_weights: Tensor) -> Change {
        let blended = plan.table.segments().iter().filter(|segment| matches!(segment.choice, Choice::Alpha { .. }));
        let table = Table::new(blended.copied().collect(), plan.table.alphas(), plan.table.arena_len())
            .with_filters(plan.table.filters_len());
        let minus_alpha = minus_alpha(&plan, &merge_weights);
        // Its own buffer: it will be written.
        let merge = MergeState { keeps_statistics: true, ..MergeState::new(plan, trunks, merge_weights.copy()) };
        Change { merge, table: Arc::new(table), folded: merge_weights, minus_alpha }
    }

    /// α⁰ is computed anew where α will be: an exponential of one device need not be that of another.
    pub(super) fn move_to(&mut self, device: Device) {
        self.minus_alpha = minus_alpha(&self.merge.plan, &self.folded.to_device(device));
    }

    /// T of V and the merge weights.
    pub fn trunk(&self, tape: &mut Tape, v: &Var, merge_weights: &Var) -> Var {
        let alpha = tape.constrain(&self.merge.plan.parametrization, merge_weights);
        let change = tape.add(alpha, Var::constant(self.minus_alpha.clone()));
        let change = tape.merge(&self.table, &self.merge.trunks, &change);
        tape.add(v.clone(), change)
    }

    /// T as it is now.
    pub(super) fn fold(&self, v: &Tensor) -> Tensor {
        let [v, merge_weights] = [v, &self.merge.merge_weights].map(|tensor| Var::constant(tensor.clone()));
        self.trunk(&mut Tape::new(), &v, &merge_weights).into_value()
    }
}

/// On the device of the merge weights.
fn minus_alpha(plan: &Plan, merge_weights: &Tensor) -> Tensor {
    let alpha = plan.parametrization.alpha(merge_weights);
    let minus = alpha.to_f64().into_iter().map(|alpha| -alpha).collect();
    Tensor::from_vec::<f64>(minus, alpha.shape()).cast(alpha.dtype()).to_device(alpha.device())
}
