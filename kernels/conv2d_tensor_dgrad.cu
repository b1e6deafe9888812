// modules: tf32 bf16 f16
// Convolution on tensor cores: dgrad, for each tile.
// The products, and what they cost: conv2d_tensor.cu.
#include "conv2d_tensor.cuh"

KERNEL(conv2d_tensor_dgrad_128x256, BackwardProduct, Tile128x256::THREADS) {
  DYNAMIC_TILES(Tile128x256);
  dgrad<Tile128x256>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_128x128, BackwardProduct, Tile128x128::THREADS) {
  TILES(Tile128x128);
  dgrad<Tile128x128>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_128x64, BackwardProduct, Tile128x64::THREADS) {
  TILES(Tile128x64);
  dgrad<Tile128x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_64x64, BackwardProduct, Tile64x64::THREADS) {
  TILES(Tile64x64);
  dgrad<Tile64x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_dgrad_128x32, BackwardProduct, Tile128x32::THREADS) {
  TILES(Tile128x32);
  dgrad<Tile128x32>(p, rows, columns);
}
