// modules: tf32 bf16 f16 for sm_90a
// Convolution on the tensor cores of sm_90a: fprop that leaves the statistics of y, for the batch norm behind it, for each tile.
// How it works: conv2d_hopper.cuh; the products, and what they cost: conv2d_tensor.cu.
#include "conv2d_hopper.cuh"

KERNEL(conv2d_hopper_fprop_statistics_128x256, WideStatistics, Wide128x256::ALL_THREADS) {
  RING(Wide128x256);
  wide_statistics<Wide128x256>(p, ring);
}

KERNEL(conv2d_hopper_fprop_statistics_128x128, WideStatistics, Wide128x128::ALL_THREADS) {
  RING(Wide128x128);
  wide_statistics<Wide128x128>(p, ring);
}

KERNEL(conv2d_hopper_fprop_statistics_256x64, WideStatistics, Wide256x64::ALL_THREADS) {
  RING(Wide256x64);
  wide_statistics<Wide256x64>(p, ring);
}
