//! Training and learning on a device: agreement with the CPU, the same bits with and without graphs and whatever the
//! order of threads, nothing allocated in a steady state, and what happens when numbers overflow.
//!
//! Runs on the emulator, and on the GPU that `MEDMERGE_REQUIRE_DEVICE` names.

mod account;
mod alignment;
mod control;
mod convert;
mod families;
mod fusion;
mod images;
mod jobs;
mod merge;
mod methods;
mod statistics;
mod steps;

#[path = "../common/mod.rs"]
mod common;

use common::devices;
