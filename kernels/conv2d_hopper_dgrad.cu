// modules: bf16 f16 for sm_90a
// Convolution on the tensor cores of sm_90a: dgrad, for each tile.
// How it works: conv2d_hopper.cuh; the products, and what they cost: conv2d_tensor.cu.
#include "conv2d_hopper.cuh"

KERNEL(conv2d_hopper_dgrad_128x256, WideDgrad, Wide128x256::ALL_THREADS) {
  RING(Wide128x256);
  wide_dgrad<Wide128x256>(p, ring);
}

KERNEL(conv2d_hopper_dgrad_128x128, WideDgrad, Wide128x128::ALL_THREADS) {
  RING(Wide128x128);
  wide_dgrad<Wide128x128>(p, ring);
}

KERNEL(conv2d_hopper_dgrad_256x64, WideDgrad, Wide256x64::ALL_THREADS) {
  RING(Wide256x64);
  wide_dgrad<Wide256x64>(p, ring);
}
