// modules: tf32 bf16 f16
// Convolution on tensor cores: dgrad that does the first pass of the backward of the batch norm before it, for each tile.
// The products, and what they cost: conv2d_tensor.cu.
#include "conv2d_tensor.cuh"

KERNEL(conv2d_tensor_dgrad_sums_128x256, ProductGradient, Tile128x256::THREADS) {
  DYNAMIC_TILES(Tile128x256);
  dgrad_sums_of_norm<Tile128x256>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_sums_128x128, ProductGradient, Tile128x128::THREADS) {
  TILES(Tile128x128);
  dgrad_sums_of_norm<Tile128x128>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_sums_128x64, ProductGradient, Tile128x64::THREADS) {
  TILES(Tile128x64);
  dgrad_sums_of_norm<Tile128x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_sums_64x64, ProductGradient, Tile64x64::THREADS) {
  TILES(Tile64x64);
  dgrad_sums_of_norm<Tile64x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_sums_128x32, ProductGradient, Tile128x32::THREADS) {
  TILES(Tile128x32);
  dgrad_sums_of_norm<Tile128x32>(p, rows, columns);
}
