// modules: bf16 f16 for sm_90a
// Convolution on the tensor cores of sm_90a: dgrad that does the first pass of the backward of the batch norm before it, for each tile.
// How it works: conv2d_hopper.cuh; the products, and what they cost: conv2d_tensor.cu.
#include "conv2d_hopper.cuh"

KERNEL(conv2d_hopper_dgrad_sums_128x256, WideGradient, Wide128x256::ALL_THREADS) {
  RING(Wide128x256);
  wide_dgrad_sums<Wide128x256>(p, ring);
}

KERNEL(conv2d_hopper_dgrad_sums_128x128, WideGradient, Wide128x128::ALL_THREADS) {
  RING(Wide128x128);
  wide_dgrad_sums<Wide128x128>(p, ring);
}

KERNEL(conv2d_hopper_dgrad_sums_256x64, WideGradient, Wide256x64::ALL_THREADS) {
  RING(Wide256x64);
  wide_dgrad_sums<Wide256x64>(p, ring);
}
