// modules: tf32 bf16 f16
// Convolution on tensor cores: wgrad, of which a second launch (conv2d_tensor_wgrad_sum) adds the splits, for each tile.
// The products, and what they cost: conv2d_tensor.cu.
#include "conv2d_tensor.cuh"

KERNEL(conv2d_tensor_wgrad_128x256, Product, Tile128x256::THREADS) {
  DYNAMIC_TILES(Tile128x256);
  wgrad<Tile128x256>(p, rows, columns);
}

KERNEL(conv2d_tensor_wgrad_128x128, Product, Tile128x128::THREADS) {
  TILES(Tile128x128);
  wgrad<Tile128x128>(p, rows, columns);
}

KERNEL(conv2d_tensor_wgrad_128x64, Product, Tile128x64::THREADS) {
  TILES(Tile128x64);
  wgrad<Tile128x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_wgrad_64x64, Product, Tile64x64::THREADS) {
  TILES(Tile64x64);
  wgrad<Tile64x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_wgrad_stem, Product, Tile64x64::THREADS) {
  TILES(Tile64x64);
  wgrad<Tile64x64, 4>(p, rows, columns);
}
