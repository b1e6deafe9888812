// wgrad with products of dW and the sources' filters in place of dW: what the kernels for it share. conv2d_tensor_products.cu says what they
// compute.
#pragma once

#include "conv2d_tensor.cuh"

struct Products {
  Product product;              // to: parts × M × K (float)
  const float* const* sources;  // M × K filters of R·S × channels, `pitch` apart
  unsigned source_count;
  int channels;                 // of the sources: those that product.g has more are padding
  int pitch;
  unsigned packed;              // pairs of weights lie at multiples of 8 bytes, and no channel is padding
};
static_assert(sizeof(Products) == 200, "as in src/ops/conv2d/products.rs");

// Loads the weights of the filter at `from` for columns `column` and `column + 1` of dW: zero where it has none.
template <bool PACKED>
DEVICE void load_pair(const Products& p, const float* from, int column, float (&pair)[2]) {
  const Sizes& g = p.product.g;
  if constexpr (PACKED) {
    const float2 both = column < g.r * g.s * g.c ? load_vector<float2>(from + column) : make_float2(0, 0);
    pair[0] = both.x, pair[1] = both.y;
  } else {
#pragma unroll
    for (int l = 0; l < 2; ++l) {
      // Divisions, not `divide`: the compiler would keep what that gives, for all columns at once, in registers that it does not have.
      const int tap = (column + l) / g.c, channel = (column + l) % g.c;
      pair[l] = tap < g.r * g.s && channel < p.channels ? from[tap * p.channels + channel] : 0;
    }
  }
}

// The product of the i-th row of this thread's warp with that of one source, over the warp's columns: in all four lanes that have it.
template <class T, bool PACKED>
DEVICE float product_of_row(const Products& p, const Corner& tile, const Sums<T>& sums, unsigned source, unsigned i) {
  const int filter = static_cast<int>(tile.down * T::ROWS + row_of_lane<T>(i));
  float sum = 0;
  if (filter < p.product.g.k) {
    const float* from = p.sources[source] + static_cast<offset>(filter) * p.pitch;
#pragma unroll
    for (unsigned j = 0; j < T::PIECE_COLUMNS; ++j) {
      float pair[2];
      load_pair<PACKED>(p, from, static_cast<int>(tile.across * T::COLUMNS + column_of_pair<T>(j)), pair);
      sum += sums.v[i / 2][j][i % 2 * 2] * pair[0] + sums.v[i / 2][j][i % 2 * 2 + 1] * pair[1];
    }
  }
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  return sum + __shfl_xor_sync(ALL_LANES, sum, 2);
}
