// modules: tf32 bf16 f16 for sm_90a
// Convolution on the tensor cores of sm_90a: fprop, with a bias and a ReLU behind it where there are some, for each tile.
// How it works: conv2d_hopper.cuh; the products, and what they cost: conv2d_tensor.cu.
#include "conv2d_hopper.cuh"

KERNEL(conv2d_hopper_fprop_128x256, WideFprop, Wide128x256::ALL_THREADS) {
  RING(Wide128x256);
  wide_fprop<Wide128x256>(p, ring);
}

KERNEL(conv2d_hopper_fprop_128x128, WideFprop, Wide128x128::ALL_THREADS) {
  RING(Wide128x128);
  wide_fprop<Wide128x128>(p, ring);
}

KERNEL(conv2d_hopper_fprop_256x64, WideFprop, Wide256x64::ALL_THREADS) {
  RING(Wide256x64);
  wide_fprop<Wide256x64>(p, ring);
}
