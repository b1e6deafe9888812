//! Products of sample matrices on a GPU: `kernels/gram.cu`.

use super::Samples;
use crate::gpu::Handle;
use crate::tensor::TensorMut;

pub fn accumulate(_gpu: Handle, _a: Samples, _b: Samples, _sum: TensorMut) {
    unimplemented!("products of sample matrices on a GPU")
}

pub fn moments(_gpu: Handle, _a: Samples, _sum: TensorMut) {
    unimplemented!("moments of a sample matrix on a GPU")
}
