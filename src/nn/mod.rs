//! Networks as data: a graph of named layers, where their parameters lie, how they run, and builders for the architectures.
//!
//! Knows ops and the tape; knows no file, no data set and no method.

mod fuse;
pub mod init;
mod model;
mod network;
mod resnet;

pub use fuse::{Launches, Stage};
pub use model::{Fault, Model};
pub use network::{BatchNorm, Kind, Layer, Mode, Network, NetworkBuilder, Node, Operation, Output, Parameter, Region};
pub use resnet::{Architecture, Stem};
