//! The families of networks that are known from the start, a file each.

pub mod resnet;
