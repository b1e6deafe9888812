//! Networks as data: a graph of named layers, where their parameters lie, and builders for the architectures.
//!
//! Knows ops and the tape; knows no file, no data set and no method.

pub mod init;
mod model;
mod network;
mod resnet;

pub use model::Model;
pub use network::{BatchNorm, Kind, Layer, Mode, Network, NetworkBuilder, Node, Operation, Output, Parameter, Region};
pub use resnet::{Architecture, Stem};
