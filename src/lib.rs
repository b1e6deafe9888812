//! MedMerge: merge networks that others trained by learning, on the target task, how much of each to keep.
//!
//! ```text
//!  bench                         what all of this takes, beside what the machine can do
//!  jobs                          whole pieces of work as data, from files to files
//!  train · merge                 the loop, and the method
//!  checkpoint · data · report    files in and out
//!  nn                            a network is data: a graph of named layers
//!  tape ── ops                   differentiation; the primitives, each with its definition and a fast form
//!  tensor ── gpu                 memory
//!  dtype · numbers               types of numbers, and how far apart they are
//! ```
//!
//! Each line uses only those below it. A first program:
//!
//! ```
//! use medmerge::data::synthetic::{SyntheticOptions, Task, generate};
//! use medmerge::data::Normalisation;
//! use medmerge::nn::{Architecture, Model};
//! use medmerge::train::{Place, Silent, Subject, Target, TrainOptions, train};
//!
//! # fn main() -> medmerge::error::Result<()> {
//! let data = generate(Task::Shape, &SyntheticOptions { train: 64, val: 16, test: 16, ..Default::default() });
//! let network = Architecture::named("resnet8", None, Some(4))?.build(data.channels, data.classes);
//! let mut model = Model::initialized(network, 0);
//! let target = Target { data: &data, normalisation: &Normalisation::default(), place: Place::default() };
//! let options = TrainOptions { epochs: 1, batch_size: 16, ..Default::default() };
//! let history = train(&mut model, &mut Subject::Everything, target, &options, &mut Silent)?;
//! assert!(history[0].train_loss.is_finite());
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod checkpoint;
pub mod data;
pub mod dtype;
pub mod error;
pub mod file_kind;
pub mod gpu;
pub mod hex;
pub mod interrupt;
pub mod jobs;
pub mod memory;
pub mod merge;
pub mod metrics;
pub mod nn;
pub mod numbers;
pub mod ops;
pub mod output;
pub mod report;
pub mod selftest;
pub mod tape;
pub mod tensor;
pub mod threads;
pub mod train;
