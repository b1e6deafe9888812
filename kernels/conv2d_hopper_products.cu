// modules: bf16 f16 for sm_90a
// wgrad on the tensor cores of sm_90a where the filters are a blend of frozen ones: products with the sources' filters in place of dW, for
// each tile. What is computed: conv2d_tensor_products.cu; how tiles work: conv2d_hopper.cuh.
//
// Here a warp has all columns of its rows, so that four lanes finish a row: no shared memory, and nobody waits. A part is that of one
// split and tile of columns, as there.
#include "conv2d_hopper.cuh"
#include "conv2d_products.cuh"

struct WideProducts {
  Maps maps;  // dy and x
  Products products;  // no channel is padding
};
static_assert(sizeof(WideProducts) == 512, "as in src/ops/conv2d/hopper.rs");

template <class T, bool PACKED>
DEVICE void store_products_of_piece(const Products& p, const Piece& piece, const Sums<T>& sums) {
  const offset part = static_cast<offset>(piece.part) * p.product.by_tiles.divisor + piece.corner.across;
#pragma unroll 1
  for (unsigned source = 0; source < p.source_count; ++source) {
    float* to = static_cast<float*>(p.product.to) + (part * p.source_count + source) * p.product.g.k;
#pragma unroll
    for (unsigned i = 0; i < 2 * T::PIECE_ROWS; ++i) {
      const float sum = product_of_row<T, PACKED>(p, piece.corner, sums, source, i);
      const int filter = static_cast<int>(piece.corner.down * T::ROWS + row_of_lane<T>(i));
      if (threadIdx.x % 4 == 0 && filter < p.product.g.k) to[filter] = sum;
    }
  }
}

template <class T>
DEVICE void wide_products(const WideProducts& all, const Ring& ring) {
  const Products& p = all.products;
  for_each_piece<T, OfWeights>(p.product, all.maps, ring, [&](const Piece& piece, const Sums<T>& sums) {
    if (p.packed) store_products_of_piece<T, true>(p, piece, sums);
    else store_products_of_piece<T, false>(p, piece, sums);
  });
}

KERNEL(conv2d_hopper_products_128x256, WideProducts, Wide128x256::ALL_THREADS) {
  RING(Wide128x256);
  wide_products<Wide128x256>(p, ring);
}

KERNEL(conv2d_hopper_products_128x128, WideProducts, Wide128x128::ALL_THREADS) {
  RING(Wide128x128);
  wide_products<Wide128x128>(p, ring);
}

KERNEL(conv2d_hopper_products_256x64, WideProducts, Wide256x64::ALL_THREADS) {
  RING(Wide256x64);
  wide_products<Wide256x64>(p, ring);
}
