//! placeholder
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod merge;
pub mod metrics;
pub mod nn;
pub mod ops;
pub mod output;
pub mod tape;
pub mod tensor;
pub mod train;
