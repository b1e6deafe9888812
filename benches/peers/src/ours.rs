//! medmerge itself, as a peer like the others.
//!
//! This file is the place for it, and is empty until medmerge's API settles. To fill it in:
//!
//! 1. `Cargo.toml`: the dependency `medmerge = { path = "../..", optional = true }` and the feature `ours = ["dep:medmerge"]`.
//! 2. Here: a `pub struct Ours;` with `impl Peer for Ours`, as `candle.rs` has it. Each of the methods below returns
//!    a `Box<dyn Work>` that owns its inputs; `run` does the work once, `check` returns the numbers named.
//! 3. `main.rs`: `#[cfg(feature = "ours")] mod ours;` and `#[cfg(feature = "ours")] ("ours", Box::new(ours::Ours)),`
//!    in `peers()`. `run.py` finds it by itself.
//!
//! | method | `run` | `check` |
//! |---|---|---|
//! | `step(&self, &Step)` | one training step, cross-entropy's mean over the batch, `sgd`'s constants | the first two losses |
//! | `conv(&self, &Conv, Pass)` | one pass, or with `Pass::All` the three with dy = 1 | `mean_abs` of y, dx, dw, as far as the pass makes them; never dx of a stem |
//! | `merge(&self, sources, &[Filters])` | all layers with their γ and β | `mean_abs` over everything merged |
//! | `merge_backward(&self, sources, &[Filters])` | dα for all filters and sources | `mean_abs` of dα |
//!
//! Inputs come from `numbers` (whose order is KCRS and NCHW: permute before, not while timing):
//! * step: images `uniform(X, …, 1)`, `labels`; convolution i in torchvision's order `uniform(STEP + i, …, √(6 / CRS))`,
//!   the head (classes × 512) next with bound √(1 / 512), biases 0, γ 1, β 0, running statistics 0 and 1.
//! * conv: `uniform(X | W | DY, …, 1)`.
//! * merge: layer l of source m `uniform(SOURCE · (m + 1) + 3 · l, K · CRS, 1)`, γ and β the next two seeds, K numbers each;
//!   dW, dγ, dβ alike with `GRADIENT` for m + 1; α_m `uniform(ALPHA + m, 26560, 1)`, layer after layer.
