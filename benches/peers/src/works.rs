//! The works: what is measured, under which name, how many operations and bytes it is, and what a peer must offer.

use serde::Deserialize;

/// Something that can be run again and again. `check` is called after at least two runs and consumes their results.
pub trait Work {
    fn run(&mut self);
    /// Numbers that every peer must agree on: see `README.md`.
    fn check(&mut self) -> Vec<f64>;
}

/// One implementation of the works. What it cannot do it leaves out.
///
/// Preparing a work allocates and fills its inputs; only `Work::run` is timed.
pub trait Peer {
    /// The instruction set that it uses, where it says so.
    fn isa(&self) -> Option<String> {
        None
    }
    /// One training step: forward, loss, backward, update.
    fn step(&self, _step: &Step) -> Option<Box<dyn Work>> {
        None
    }
    fn conv(&self, _conv: &Conv, _pass: Pass) -> Option<Box<dyn Work>> {
        None
    }
    /// W[k] = Σ_m α_m[k] · W_m[k] for every filter k of every layer, and the same α[k] for its γ and β.
    fn merge(&self, _sources: usize, _layers: &[Filters]) -> Option<Box<dyn Work>> {
        None
    }
    /// dα_m[k] = Σ_crs dW[k] · W_m[k] + dγ[k] · γ_m[k] + dβ[k] · β_m[k].
    fn merge_backward(&self, _sources: usize, _layers: &[Filters]) -> Option<Box<dyn Work>> {
        None
    }
    /// One step that learns merge weights: blend of two frozen sources with one α per filter, forward, loss, backward,
    /// update of the α and the head.
    fn learn_step(&self, _step: &Step) -> Option<Box<dyn Work>> {
        None
    }
    /// What merging adds to that step: the α, the blend, dα and the gradient of what is learned.
    fn learn_merge(&self, _step: &Step) -> Option<Box<dyn Work>> {
        None
    }
    /// The logits of a batch, by running statistics.
    fn infer(&self, _step: &Step) -> Option<Box<dyn Work>> {
        None
    }
    /// a = b + s·c over arrays of `length`.
    fn triad(&self, _length: usize) -> Option<Box<dyn Work>> {
        None
    }
}

#[derive(Deserialize)]
struct Shapes {
    steps: Vec<Step>,
    /// Batches of the settings of `steps` whose logits are computed.
    infer: Vec<usize>,
    convs: Vec<Conv>,
    resnet50_filters: Vec<Filters>,
}

/// A training step of a network of torchvision's, without dropout, on `n` images of 3 × `px` × `px`.
#[derive(Deserialize, Clone)]
pub struct Step {
    pub network: String,
    pub px: usize,
    pub n: usize,
    pub classes: usize,
    /// Operations for an image: of convolutions and fully connected layers, forward and backward.
    flops: usize,
    /// Of these, forward alone.
    forward: usize,
    /// Parameters that a merge blends: all but the head's.
    merged: usize,
}

impl Step {
    pub fn is_resnet18(&self) -> bool {
        self.network == "resnet18"
    }

    /// Whether images are so small that a ResNet's stem is 3×3 with stride 1, and there is no max-pool.
    pub fn is_small(&self) -> bool {
        self.px <= 64
    }

    /// ResNet-18's.
    pub fn stem(&self) -> Stem {
        let (window, stride, pad) = if self.is_small() { (3, 1, 1) } else { (7, 2, 3) };
        Stem { k: 64, r: window, s: window, stride, pad }
    }

    fn setting(&self) -> String {
        format!("{}/{}px/{}", self.network, self.px, self.n)
    }

    fn flops(&self) -> usize {
        self.n * self.flops
    }

    /// Each network and image size once, with the batches that logits are computed of.
    fn inferences(steps: &[Step], batches: &[usize]) -> Vec<Step> {
        let is_first = |&(i, step): &(usize, &Step)| {
            !steps[..i].iter().any(|before| (&before.network, before.px) == (&step.network, step.px))
        };
        let settings = steps.iter().enumerate().filter(is_first).map(|(_, step)| step);
        settings.flat_map(|step| batches.iter().map(|&n| Step { n, ..step.clone() })).collect()
    }

    /// Operations of blending and of dα.
    fn merging_flops(&self) -> usize {
        2 * 2 * LEARN_SOURCES * self.merged
    }
}

#[derive(Clone, Copy)]
pub struct Stem {
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub stride: usize,
    pub pad: usize,
}

/// SGD's constants in every step.
pub mod sgd {
    /// So small that rounding moves the second loss of ResNet-50 by less than run.py allows: at 0.01 it moves PyTorch's
    /// from one memory format to the other by more.
    pub const LEARNING_RATE: f64 = 0.001;
    pub const MOMENTUM: f64 = 0.9;
    pub const WEIGHT_DECAY: f64 = 5e-4;
}

/// One convolution of ResNet-18: `count` layers share this shape.
#[derive(Deserialize, Clone)]
pub struct Conv {
    pub name: String,
    pub px: usize,
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub stride: usize,
    pub pad: usize,
    pub count: usize,
}

impl Conv {
    pub fn p(&self) -> usize {
        (self.h + 2 * self.pad - self.r) / self.stride + 1
    }
    pub fn q(&self) -> usize {
        (self.w + 2 * self.pad - self.s) / self.stride + 1
    }
    /// Elements of x, w and y.
    pub fn sizes(&self) -> [usize; 3] {
        [self.n * self.c * self.h * self.w, self.k * self.c * self.r * self.s, self.n * self.k * self.p() * self.q()]
    }
    /// Nobody needs the gradient of the images.
    pub fn is_stem(&self) -> bool {
        self.c == 3
    }
    /// Of one pass, padding included.
    fn flops(&self) -> usize {
        2 * self.sizes()[2] * self.c * self.r * self.s
    }
    fn passes(&self) -> usize {
        if self.is_stem() { 2 } else { 3 }
    }
}

/// `All` is forward and backward in one go, with dy all ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Fprop,
    Dgrad,
    Wgrad,
    All,
}

/// The K filters of a layer, C × R × S each; batch norm's γ and β follow every layer.
#[derive(Deserialize, Clone, Copy)]
pub struct Filters {
    pub k: usize,
    pub c: usize,
    pub r: usize,
    pub s: usize,
}

impl Filters {
    /// Elements of one filter.
    pub fn row(&self) -> usize {
        self.c * self.r * self.s
    }
    /// Elements of the layer, γ and β included.
    pub fn parameters(&self) -> usize {
        self.k * (self.row() + 2)
    }
}

/// Elements of each array of the triad: 256 MiB, several times a last-level cache.
const TRIAD: usize = 64 << 20;

pub enum Case {
    Step(Step),
    Conv(Conv, Pass),
    Merge { backward: bool, sources: usize, layers: Vec<Filters> },
    Learn { only_merge: bool, step: Step },
    Infer(Step),
    Triad,
}

/// Of a learning step.
pub const LEARN_SOURCES: usize = 2;
/// Merge weights of all but the first source in a learning step. Halves of two random networks would blend into one
/// whose logits are next to zero, whatever its filters are.
pub const START: f64 = 0.1;

impl Case {
    pub fn group(&self) -> &'static str {
        match self {
            Case::Step(..) => "step",
            Case::Conv(..) => "conv",
            Case::Merge { .. } => "merge",
            Case::Learn { .. } => "learn",
            Case::Infer(..) => "infer",
            Case::Triad => "triad",
        }
    }

    pub fn name(&self) -> String {
        match self {
            Case::Step(step) => format!("step/{}", step.setting()),
            Case::Conv(conv, pass) => {
                let pass = match pass {
                    Pass::Fprop => "fprop",
                    Pass::Dgrad => "dgrad",
                    Pass::Wgrad => "wgrad",
                    Pass::All => "all",
                };
                format!("conv_{pass}/{}/{}/{}", conv.name, conv.px, conv.n)
            }
            Case::Merge { backward, sources, .. } => {
                format!("merge{}/resnet50/{sources}", if *backward { "_backward" } else { "" })
            }
            Case::Learn { only_merge, step } => {
                format!("learn_{}/{}", if *only_merge { "merge" } else { "step" }, step.setting())
            }
            Case::Infer(step) => format!("infer/{}", step.setting()),
            Case::Triad => format!("triad/{}Mi", TRIAD >> 20),
        }
    }

    pub fn prepare(&self, peer: &dyn Peer) -> Option<Box<dyn Work>> {
        match self {
            Case::Step(step) => peer.step(step),
            Case::Conv(conv, pass) => peer.conv(conv, *pass),
            Case::Merge { backward: false, sources, layers } => peer.merge(*sources, layers),
            Case::Merge { backward: true, sources, layers } => peer.merge_backward(*sources, layers),
            Case::Learn { only_merge: false, step } => peer.learn_step(step),
            Case::Learn { only_merge: true, step } => peer.learn_merge(step),
            Case::Infer(step) => peer.infer(step),
            Case::Triad => peer.triad(TRIAD),
        }
    }

    pub fn flops(&self) -> usize {
        match self {
            Case::Step(step) => step.flops(),
            Case::Conv(conv, Pass::All) => conv.flops() * conv.passes(),
            Case::Conv(conv, _) => conv.flops(),
            Case::Merge { sources, layers, .. } => 2 * sources * parameters(layers),
            Case::Learn { only_merge: false, step } => step.flops() + step.merging_flops(),
            Case::Learn { only_merge: true, step } => step.merging_flops(),
            Case::Infer(step) => step.n * step.forward,
            Case::Triad => 2 * TRIAD,
        }
    }

    /// The least that must move: every input read once, every output written once. A whole step has no such figure.
    pub fn bytes(&self) -> Option<usize> {
        let elements = match self {
            Case::Step(..) | Case::Learn { only_merge: false, .. } | Case::Infer(..) => return None,
            Case::Conv(conv, Pass::All) => conv.sizes().iter().sum::<usize>() * conv.passes(),
            Case::Conv(conv, _) => conv.sizes().iter().sum(),
            Case::Merge { sources, layers, .. } => (sources + 1) * parameters(layers),
            // The sources are read twice, the blend is written, and its gradient read.
            Case::Learn { step, .. } => 2 * (LEARN_SOURCES + 1) * step.merged,
            Case::Triad => 3 * TRIAD,
        };
        Some(4 * elements)
    }
}

fn parameters(layers: &[Filters]) -> usize {
    layers.iter().map(Filters::parameters).sum()
}

/// Every work in order. `quick` keeps batches of 8, of ResNet-18 at 28 px alone, and two sources: enough to see that a
/// peer works.
pub fn cases(quick: bool) -> Vec<Case> {
    let mut shapes: Shapes = serde_json::from_str(include_str!("../shapes.json")).expect("shapes.json");
    if quick {
        shapes.steps.retain(|step| step.is_small() || !step.is_resnet18());
        shapes.convs.retain(|conv| conv.px == 28);
        shapes.steps.iter_mut().for_each(|step| step.n = 8);
        shapes.infer = vec![1];
        shapes.convs.iter_mut().for_each(|conv| conv.n = 8);
    }
    let sources: &[usize] = if quick { &[2] } else { &[2, 4, 8] };

    let mut cases: Vec<Case> = shapes.steps.iter().cloned().map(Case::Step).collect();
    for pass in [Pass::Fprop, Pass::Dgrad, Pass::Wgrad, Pass::All] {
        let convs = shapes.convs.iter().filter(|conv| !(pass == Pass::Dgrad && conv.is_stem()));
        cases.extend(convs.map(|conv| Case::Conv(conv.clone(), pass)));
    }
    for backward in [false, true] {
        let layers = &shapes.resnet50_filters;
        cases.extend(sources.iter().map(|&sources| Case::Merge { backward, sources, layers: layers.clone() }));
    }
    let learn = |step: &Step| [false, true].map(|only_merge| Case::Learn { only_merge, step: step.clone() });
    cases.extend(shapes.steps.iter().flat_map(learn));
    cases.extend(Step::inferences(&shapes.steps, &shapes.infer).into_iter().map(Case::Infer));
    cases.push(Case::Triad);
    cases
}
