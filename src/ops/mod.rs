//! The primitives. An op with kernels is a folder; one composed of others, or what several share, is a file.
//!
//! A folder holds one contract and its implementations:
//!
//! * `mod.rs` the formula, shapes and checks; the dispatch on where the tensors live; the record on the tape;
//! * `reference.rs` naive loops, generic over `f32` and `f64`: the definition, and what `f64` tensors run;
//! * `cpu.rs` the fast form for `f32`;
//! * `gpu.rs` the typed launches of its kernels.
//!
//! Implementations write into what they are given; where a contract returns a tensor, it comes from the pool of buffers.
//! Sums run in an order that does not depend on the number of threads. Activations are N, H, W, C; filters K, R, S, C.

pub mod batch_norm;
mod bias;
pub mod cases;
pub mod concat;
pub mod control;
pub mod conv2d;
pub mod dropout;
pub mod gemm;
pub mod gram;
pub mod images;
pub(crate) mod limits;
pub mod linear;
pub mod merge;
pub mod optimizer;
mod pad_channels;
mod pixel_walk;
pub mod pointwise;
pub mod pool;
pub mod simd;
pub mod soft_cross_entropy;
pub mod softmax_cross_entropy;

pub use crate::gpu::Cost;
