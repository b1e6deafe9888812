//! Networks as data: a graph of named layers, where their parameters lie, how they run, and builders for the architectures.
//!
//! Knows ops and the tape; knows no file, no data set and no method.

mod architecture;
mod builder;
mod concatenations;
pub mod families;
mod feeds;
mod fuse;
mod graph;
pub mod init;
mod model;
mod network;
mod stem;
mod units;

pub use architecture::{Architecture, Family};
pub use builder::NetworkBuilder;
pub use concatenations::Place;
pub use feeds::{Feed, Rows};
pub use fuse::{Launches, Stage};
pub use graph::{BatchNorm, Initial, Layer, Network, Node, Operation, Order, Parameter, Region, Role};
pub use model::{Fault, Model};
pub use network::{EPSILON, Extras, Mode, Output};
pub use stem::Stem;
pub use units::{Axis, Holder, Permutation, Place as UnitPlace, Strand, UnitGroup, Units};
