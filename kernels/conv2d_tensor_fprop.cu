// modules: tf32 bf16 f16
// Convolution on tensor cores: fprop, with a bias and a ReLU behind it where there are some, for each tile.
// The products, and what they cost: conv2d_tensor.cu.
#include "conv2d_tensor.cuh"

KERNEL(conv2d_tensor_fprop_128x256, FinishedProduct, Tile128x256::THREADS) {
  DYNAMIC_TILES(Tile128x256);
  fprop<Tile128x256>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_128x128, FinishedProduct, Tile128x128::THREADS) {
  TILES(Tile128x128);
  fprop<Tile128x128>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_128x64, FinishedProduct, Tile128x64::THREADS) {
  TILES(Tile128x64);
  fprop<Tile128x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_64x64, FinishedProduct, Tile64x64::THREADS) {
  TILES(Tile64x64);
  fprop<Tile64x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_128x32, FinishedProduct, Tile128x32::THREADS) {
  TILES(Tile128x32);
  fprop<Tile128x32>(p, rows, columns);
}

// fprop of a padded stem: 4 channels.
KERNEL(conv2d_tensor_fprop_stem, FinishedProduct, Tile128x64::THREADS) {
  TILES(Tile128x64);
  fprop<Tile128x64, 4>(p, rows, columns);
}
