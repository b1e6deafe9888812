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
    /// a = b + s·c over arrays of `length`.
    fn triad(&self, _length: usize) -> Option<Box<dyn Work>> {
        None
    }
}

#[derive(Deserialize)]
struct Shapes {
    steps: Vec<Step>,
    convs: Vec<Conv>,
    resnet50_filters: Vec<Filters>,
}

/// A training step of ResNet-18 on `n` images of 3 × `px` × `px`.
#[derive(Deserialize, Clone)]
pub struct Step {
    pub px: usize,
    pub n: usize,
    pub classes: usize,
    pub stem: Stem,
    pub max_pool: bool,
}

#[derive(Deserialize, Clone, Copy)]
pub struct Stem {
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub stride: usize,
    pub pad: usize,
}

/// SGD's constants in every step.
pub mod sgd {
    pub const LEARNING_RATE: f64 = 0.01;
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
    Step { step: Step, flops: usize },
    Conv(Conv, Pass),
    Merge { backward: bool, sources: usize, layers: Vec<Filters> },
    Learn { only_merge: bool, step: Step, flops: usize, parameters: usize },
    Triad,
}

/// Of a learning step.
pub const LEARN_SOURCES: usize = 2;

impl Case {
    pub fn group(&self) -> &'static str {
        match self {
            Case::Step { .. } => "step",
            Case::Conv(..) => "conv",
            Case::Merge { .. } => "merge",
            Case::Learn { .. } => "learn",
            Case::Triad => "triad",
        }
    }

    pub fn name(&self) -> String {
        match self {
            Case::Step { step, .. } => format!("step/resnet18/{}px/{}", step.px, step.n),
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
            Case::Learn { only_merge, step, .. } => {
                format!("learn_{}/resnet18/{}px/{}", if *only_merge { "merge" } else { "step" }, step.px, step.n)
            }
            Case::Triad => format!("triad/{}Mi", TRIAD >> 20),
        }
    }

    pub fn prepare(&self, peer: &dyn Peer) -> Option<Box<dyn Work>> {
        match self {
            Case::Step { step, .. } => peer.step(step),
            Case::Conv(conv, pass) => peer.conv(conv, *pass),
            Case::Merge { backward: false, sources, layers } => peer.merge(*sources, layers),
            Case::Merge { backward: true, sources, layers } => peer.merge_backward(*sources, layers),
            Case::Learn { only_merge: false, step, .. } => peer.learn_step(step),
            Case::Learn { only_merge: true, step, .. } => peer.learn_merge(step),
            Case::Triad => peer.triad(TRIAD),
        }
    }

    pub fn flops(&self) -> usize {
        match self {
            Case::Step { flops, .. } => *flops,
            Case::Conv(conv, Pass::All) => conv.flops() * conv.passes(),
            Case::Conv(conv, _) => conv.flops(),
            Case::Merge { sources, layers, .. } => 2 * sources * parameters(layers),
            Case::Learn { flops, .. } => *flops,
            Case::Triad => 2 * TRIAD,
        }
    }

    /// The least that must move: every input read once, every output written once. A whole step has no such figure.
    pub fn bytes(&self) -> Option<usize> {
        let elements = match self {
            Case::Step { .. } | Case::Learn { only_merge: false, .. } => return None,
            Case::Conv(conv, Pass::All) => conv.sizes().iter().sum::<usize>() * conv.passes(),
            Case::Conv(conv, _) => conv.sizes().iter().sum(),
            Case::Merge { sources, layers, .. } => (sources + 1) * parameters(layers),
            // The sources are read twice, the blend is written, and its gradient read.
            Case::Learn { parameters, .. } => 2 * (LEARN_SOURCES + 1) * parameters,
            Case::Triad => 3 * TRIAD,
        };
        Some(4 * elements)
    }
}

fn parameters(layers: &[Filters]) -> usize {
    layers.iter().map(Filters::parameters).sum()
}

/// Every work in order. `quick` keeps 28 px at batch 8 and two sources: enough to see that a peer works.
pub fn cases(quick: bool) -> Vec<Case> {
    let mut shapes: Shapes = serde_json::from_str(include_str!("../shapes.json")).expect("shapes.json");
    if quick {
        shapes.steps.retain(|step| step.px == 28);
        shapes.convs.retain(|conv| conv.px == 28);
        shapes.steps.iter_mut().for_each(|step| step.n = 8);
        shapes.convs.iter_mut().for_each(|conv| conv.n = 8);
    }
    let sources: &[usize] = if quick { &[2] } else { &[2, 4, 8] };

    let mut cases = vec![];
    let mut learning = vec![];
    for step in &shapes.steps {
        let head = 3 * 2 * step.n * 512 * step.classes;
        let convs = shapes.convs.iter().filter(|conv| conv.px == step.px);
        let flops = head + convs.map(|conv| conv.flops() * conv.passes() * conv.count).sum::<usize>();
        cases.push(Case::Step { step: step.clone(), flops });
        if step.px == 28 {
            let filters = shapes.convs.iter().filter(|conv| conv.px == step.px);
            let parameters = filters.map(|conv| conv.count * (conv.sizes()[1] + 2 * conv.k)).sum();
            let merging = 2 * 2 * LEARN_SOURCES * parameters;
            learning.push(Case::Learn { only_merge: false, step: step.clone(), flops: flops + merging, parameters });
            learning.push(Case::Learn { only_merge: true, step: step.clone(), flops: merging, parameters });
        }
    }
    for pass in [Pass::Fprop, Pass::Dgrad, Pass::Wgrad, Pass::All] {
        let convs = shapes.convs.iter().filter(|conv| !(pass == Pass::Dgrad && conv.is_stem()));
        cases.extend(convs.map(|conv| Case::Conv(conv.clone(), pass)));
    }
    for backward in [false, true] {
        let layers = &shapes.resnet50_filters;
        cases.extend(sources.iter().map(|&sources| Case::Merge { backward, sources, layers: layers.clone() }));
    }
    cases.extend(learning);
    cases.push(Case::Triad);
    cases
}
