//! The greedy soup: the average of those sources that do each other good.
//!
//! From the best on, by macro F1 on the validation split, each source joins the average if that is then no worse. Sources tell the
//! target's classes apart already; the classic ones are one network, fine-tuned several times.

use super::{Inputs, MergeMethod, Merged, Task, linear};
use crate::error::{Error, Result};
use crate::nn::Model;
use crate::tensor::Tensor;

pub struct GreedySoup;

impl MergeMethod for GreedySoup {
    fn name(&self) -> &'static str {
        "greedy-soup"
    }

    fn about(&self) -> [&'static str; 2] {
        [
            "From the best source on, each joins the average if its macro F1 on the validation split of --data does not",
            "fall, statistics re-estimated each time; for sources that tell the target's classes apart already.",
        ]
    }

    fn citation(&self) -> &'static str {
        "Wortsman et al., Model soups, ICML 2022, recipe 1"
    }

    fn needs_images(&self) -> bool {
        true
    }

    fn measures(&self) -> bool {
        true
    }

    fn reads_coefficients(&self) -> bool {
        false
    }

    fn merge(&self, task: &Task) -> Result<Merged> {
        let inputs = task.inputs;
        check_heads(&inputs)?;
        let count = inputs.sources.len();
        let soup = |kept: &[usize]| Soup::of(task, kept);
        let mut alone: Vec<(f64, usize)> = (0..count)
            .map(|source| Ok((task.images().score(&soup(&[source])?.model)?, source)))
            .collect::<Result<_>>()?;
        let mut remarks: Vec<String> = alone.iter().map(|&(score, source)| told(&inputs, source, score)).collect();
        // Equal ones in the order that they were given in.
        alone.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let (mut best, first) = alone[0];
        let mut kept = vec![first];
        for &(_, source) in &alone[1..] {
            let more = [&kept[..], &[source]].concat();
            let score = task.images().score(&soup(&more)?.model)?;
            if score >= best {
                (best, kept) = (score, more);
            }
        }
        let names: Vec<String> =
            kept.iter().map(|&source| inputs.sources.get(source).path.display().to_string()).collect();
        remarks.push(format!("the soup of {}: macro F1 {best:.4} on the validation split", names.join(", ")));
        let Soup { model, shares } = soup(&kept)?;
        Ok(Merged { shares: Some(shares), remarks, ..model.trunk.into() })
    }
}

/// An average of some sources, with its head.
struct Soup {
    model: Model,
    /// One per source; 0 of those that are not in it.
    shares: Vec<f64>,
}

impl Soup {
    fn of(task: &Task, kept: &[usize]) -> Result<Soup> {
        let inputs = task.inputs;
        let share = |source: usize| if kept.contains(&source) { 1.0 / kept.len() as f64 } else { 0.0 };
        let shares: Vec<f64> = (0..inputs.sources.len()).map(share).collect();
        let inputs = Inputs { coefficients: &shares, filtered: &[], ..inputs };
        let trunk = linear::Linear.merge(&Task { inputs, ..*task })?.trunk;
        let heads: Vec<Vec<f32>> = kept.iter().map(|&source| inputs.model(source).head.to_vec()).collect();
        let mean = |at: usize| heads.iter().map(|head| head[at] / kept.len() as f32).sum();
        let head: Vec<f32> = (0..heads[0].len()).map(mean).collect();
        let head = Tensor::from_vec(head, inputs.model(kept[0]).head.shape());
        Ok(Soup { model: Model { trunk, head, ..inputs.model(kept[0]).copy() }, shares })
    }
}

fn told(inputs: &Inputs, source: usize, score: f64) -> String {
    format!("{}: macro F1 {score:.4} on the validation split", inputs.sources.get(source).path.display())
}

fn check_heads(inputs: &Inputs) -> Result<()> {
    let classes = inputs.model(0).network.classes;
    for source in inputs.sources.iter() {
        let path = source.path.display();
        if !source.checkpoint.has_head || source.checkpoint.model.network.classes != classes {
            let message =
                format!("{path}: --method greedy-soup measures sources by classifiers of the target's classes");
            return Err(Error::usage(message, "fine-tune each on the target first: medmerge train --from"));
        }
    }
    Ok(())
}
