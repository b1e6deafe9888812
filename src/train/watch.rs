//! What networks say, in nodes of their graph, to the training images of a target.

use std::collections::BTreeMap;

use super::batches::Batches;
use super::{Observer, Place, Target};
use crate::data::SplitName;
use crate::error::{Error, Result};
use crate::nn::{Model, Node};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Networks of one kind that see the same images, so many at a time.
pub(super) struct Watch<'a> {
    pub models: &'a [&'a Model],
    pub nodes: &'a [Node],
    pub batch: usize,
    pub target: Target<'a>,
}

impl Watch<'_> {
    /// Refuses images that need more memory than there is, with so many f32 of sums besides.
    pub fn check_memory(&self, numbers: usize) -> Result<()> {
        // All that is looked at is kept until every network has run.
        let images = self.models.len() * self.batch.min(self.target.data.train.len());
        self.target.check_memory(&self.models[0].network, images, true, numbers)
    }

    /// Shows all training images, batch by batch and each once, and what each network says to them to `look`; the images
    /// themselves are a node too, [`Node::INPUT`].
    ///
    /// # Errors
    /// If it is stopped, or an image cannot be read.
    pub fn each_batch(
        &self,
        observer: &mut dyn Observer,
        mut look: impl FnMut(&[BTreeMap<Node, Tensor>]),
    ) -> Result<()> {
        let unfused = Place { is_fused: false, ..self.target.place };
        let models: Vec<Model> = self.models.iter().map(|model| unfused.bring(model)).collect();
        let loader = self.target.in_order(SplitName::Train, models[0].network.input_channels, self.batch);
        let (images, mut done) = (self.target.data.train.len(), 0);
        let batches = Batches::new(loader, unfused);
        batches.ahead(0, |epoch| {
            for loaded in epoch {
                if observer.stops() {
                    return Err(Error::Interrupted { last_checkpoint: None });
                }
                let loaded = loaded?;
                done += loaded.images();
                let x = batches.place(loaded).activations();
                let seen: Vec<_> = models.iter().map(|model| activations(model, &x, self.nodes)).collect();
                look(&seen);
                self.target.place.device.check()?;
                observer.images(done, images);
            }
            Ok(())
        })
    }
}

/// What a network says in some nodes, and the images, by the running statistics.
fn activations(model: &Model, x: &Tensor, nodes: &[Node]) -> BTreeMap<Node, Tensor> {
    let mut seen = BTreeMap::from([(Node::INPUT, x.clone())]);
    let (trunk, head) = (Var::constant(model.trunk.clone()), Var::constant(model.head.clone()));
    let mut look = |node: Node, value: &Tensor| {
        if nodes.contains(&node) {
            // Its own numbers: the next op may write over those.
            seen.insert(node, value.copy());
        }
    };
    model.network.watch(&mut Tape::new(), [&trunk, &head], &model.statistics, x.clone(), &mut look);
    seen
}
