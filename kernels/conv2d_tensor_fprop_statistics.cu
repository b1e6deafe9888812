// modules: tf32 bf16 f16
// Convolution on tensor cores: fprop that leaves the statistics of y, for the batch norm behind it, for each tile.
// The products, and what they cost: conv2d_tensor.cu.
#include "conv2d_tensor.cuh"

KERNEL(conv2d_tensor_fprop_statistics_128x256, ProductStatistics, Tile128x256::THREADS) {
  DYNAMIC_TILES(Tile128x256);
  fprop_statistics<Tile128x256>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_statistics_128x128, ProductStatistics, Tile128x128::THREADS) {
  TILES(Tile128x128);
  fprop_statistics<Tile128x128>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_statistics_128x64, ProductStatistics, Tile128x64::THREADS) {
  TILES(Tile128x64);
  fprop_statistics<Tile128x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_statistics_64x64, ProductStatistics, Tile64x64::THREADS) {
  TILES(Tile64x64);
  fprop_statistics<Tile64x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_statistics_128x32, ProductStatistics, Tile128x32::THREADS) {
  TILES(Tile128x32);
  fprop_statistics<Tile128x32>(p, rows, columns);
}

KERNEL(conv2d_tensor_fprop_statistics_stem, ProductStatistics, Tile128x64::THREADS) {
  TILES(Tile128x64);
  fprop_statistics<Tile128x64, 4>(p, rows, columns);
}
