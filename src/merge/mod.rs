//! The method: which α a weight takes, how sources are checked, and how everything learned becomes one network.
//!
//! ```text
//! learned ──constraint──▶ α ──merge──▶ trunk     (every step of the probe, on the tape)
//! learned + head + running statistics ──fold──▶ one ordinary network
//! ```
//!
//! Knows networks and checkpoints; knows no device, and no file but through `checkpoint`.

pub mod align;
pub mod methods;
mod plan;
pub(crate) mod solve;
mod sources;
mod statistics;
mod weights;
mod zip;

pub use align::{Align, Alignment};
pub use plan::{BatchNormPolicy, Granularity, Method, Plan, Start, WeightGroup};
pub use sources::{Source, Sources, check_alike};
pub(crate) use weights::{ALIGN, STATISTICS};
pub use weights::{LayerSummary, Learned, SourceRecord, training_metadata};

pub use statistics::{ProbeStatistics, Statistics, rescale};
pub use zip::{Member, Zip};

pub use crate::ops::merge::constraint::Constraint;
mod difference;
mod fixed;
mod heads;
pub use difference::{Changed, Difference};
pub use fixed::{Fixed, fold_by};
pub use heads::{Head, Heads};
