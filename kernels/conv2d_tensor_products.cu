// modules: tf32 bf16 f16
// wgrad on tensor cores where the filters are a blend of frozen ones: products with the sources' filters in place of dW.
//
//   P[part, m, k] = Σ dW[k, …]·W_m[k, …]   over the pixels of one split and the weights of one tile of columns
//
// The sum over the parts, a part for each split and tile of columns, is what dα needs (merge.cu). A block computes
// its tile of dW as wgrad does (conv2d_tensor.cu), and while it is in registers takes its product with the tiles of the
// M sources: each thread over its columns, four lanes of a row by shuffles, the warps side by side through shared
// memory, always in this order. dW is never written, and there is no second launch.
//
// Bytes: the operands as wgrad, 4·M·K·R·S·C of the sources for each split (from memory once, then from the L2 cache),
// and 4·M·K for each part. FLOPs: 2·M·K·R·S·C for each split beside wgrad's.
//
// ResNet-50, 2 sources, 32 images of 224 pixels, bf16, counted with the splits that src/ops/conv2d/tiles.rs chooses, x
// and dy left out. Through dW: 302 MB of splits written, and read by the second launches; 94 MB of dW written, and read for
// dα beside 188 MB of sources: 980 MB. Here: 188 MB of sources, which the cache hands out again 3.4 times (629 MB), 7 MB of
// parts written and read: 202 MB; and 53 launches of wgrad and a padded stem where there were 98 and dα.
//
// Grid: tiles of rows, tiles of columns, splits.
#include "conv2d_products.cuh"

// Sources whose products are added up at a time.
constexpr unsigned BATCH = 8;

// The products of this warp's part of the tile with one source's, for each of its rows: to[row of the tile].
template <class T, bool PACKED>
DEVICE void multiply_by_source(const Products& p, const Sums<T>& sums, unsigned source, SharedArray<float> to) {
  const Corner tile = corner_of_block(p.product);
#pragma unroll
  for (unsigned i = 0; i < 2 * T::PIECE_ROWS; ++i) {
    const float sum = product_of_row<T, PACKED>(p, tile, sums, source, i);
    if (threadIdx.x % 4 == 0) to[row_of_lane<T>(i)] = sum;
  }
}

// `scratch`: the memory of the tiles, which are done with.
template <class T>
DEVICE void store_products(const Products& p, const Sums<T>& sums, SharedArray<float> scratch) {
  static_assert(BATCH * T::WARPS_ACROSS * T::ROWS * sizeof(float) <= STAGES * T::ROW_ELEMENTS * sizeof(element),
                "the tiles of rows are large enough");
  const offset part = static_cast<offset>(blockIdx.z) * p.product.by_tiles.divisor + tile_across(p.product);
  const unsigned across = threadIdx.x / WARP % T::WARPS_ACROSS;
  finish_copies();
#pragma unroll 1
  for (unsigned first = 0; first < p.source_count; first += BATCH) {
    const unsigned batch = p.source_count - first < BATCH ? p.source_count - first : BATCH;
#pragma unroll 1
    for (unsigned m = 0; m < batch; ++m) {
      const SharedArray<float> to = scratch + (m * T::WARPS_ACROSS + across) * T::ROWS;
      if (p.packed) multiply_by_source<T, true>(p, sums, first + m, to);
      else multiply_by_source<T, false>(p, sums, first + m, to);
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < batch * T::ROWS; i += T::THREADS) {
      const unsigned m = i / T::ROWS, row = i % T::ROWS, filter = tile_down(p.product) * T::ROWS + row;
      if (filter >= static_cast<unsigned>(p.product.g.k)) continue;
      float sum = 0;
#pragma unroll
      for (unsigned warp = 0; warp < T::WARPS_ACROSS; ++warp) sum += scratch[(m * T::WARPS_ACROSS + warp) * T::ROWS + row];
      static_cast<float*>(p.product.to)[(part * p.source_count + first + m) * p.product.g.k + filter] = sum;
    }
    __syncthreads();
  }
}

template <class T, unsigned UNIT = PACK>
DEVICE void products(const Products& p, SharedArray<element> rows, SharedArray<element> columns) {
  const Sums<T> sums = wgrad_sums<T, UNIT>(p.product, rows, columns);
  store_products<T>(p, sums, as_floats(rows));
}

KERNEL(conv2d_tensor_products_128x128, Products, Tile128x128::THREADS) {
  TILES(Tile128x128);
  products<Tile128x128>(p, rows, columns);
}

KERNEL(conv2d_tensor_products_128x64, Products, Tile128x64::THREADS) {
  TILES(Tile128x64);
  products<Tile128x64>(p, rows, columns);
}

KERNEL(conv2d_tensor_products_64x64, Products, Tile64x64::THREADS) {
  TILES(Tile64x64);
  products<Tile64x64>(p, rows, columns);
}

// Products of a padded stem: 4 channels.
KERNEL(conv2d_tensor_products_stem, Products, Tile64x64::THREADS) {
  TILES(Tile64x64);
  products<Tile64x64, 4>(p, rows, columns);
}
