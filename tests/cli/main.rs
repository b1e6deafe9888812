//! The program as its users meet it: arguments in, files, lines and an exit code out.

mod align;
mod augmentation;
mod bad_input;
mod bench;
#[path = "../common/binaries.rs"]
mod binaries;
mod compare;
mod devices;
#[cfg(feature = "dicom")]
mod dicom;
mod export;
mod failures;
mod figures;
mod headers;
mod heads;
mod images;
mod jobs;
mod learned_on;
mod learning_rates;
mod many_labels;
mod memory;
mod methods;
mod outputs;
mod outside;
mod robust;
mod selftest;
mod shards;
mod support;
mod tiles;
mod updates;
mod variants;
mod writing;
