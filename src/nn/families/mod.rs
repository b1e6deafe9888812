//! The families of networks that are known from the start, a file each.

pub mod densenet;
pub mod resnet;
pub mod vgg;
pub mod widened;
