// modules: bf16 f16 for sm_90a
// Convolution on the tensor cores of sm_90a: wgrad, of which a second launch (conv2d_tensor_wgrad_sum) adds the splits, for each tile.
// How it works: conv2d_hopper.cuh; the products, and what they cost: conv2d_tensor.cu.
#include "conv2d_hopper.cuh"

KERNEL(conv2d_hopper_wgrad_128x256, WideWgrad, Wide128x256::ALL_THREADS) {
  RING(Wide128x256);
  wide_wgrad<Wide128x256>(p, ring);
}

KERNEL(conv2d_hopper_wgrad_128x128, WideWgrad, Wide128x128::ALL_THREADS) {
  RING(Wide128x128);
  wide_wgrad<Wide128x128>(p, ring);
}

KERNEL(conv2d_hopper_wgrad_256x64, WideWgrad, Wide256x64::ALL_THREADS) {
  RING(Wide256x64);
  wide_wgrad<Wide256x64>(p, ring);
}
