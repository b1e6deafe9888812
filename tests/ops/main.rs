//! The primitives: every implementation against the reference on the cases of `medmerge::ops::cases`, every gradient
//! against finite differences, and the promises of the tape.

#[path = "../common/mod.rs"]
mod common;

mod gradients;
mod graphs;
mod parity;
mod tape;
mod threads;
