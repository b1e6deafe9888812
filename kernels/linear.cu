// modules: f32
// The fully connected layer, in f32 throughout: heads are small, and their gradients decide what is learned.
//
//   forward           y[n,k]  = Σ_c x[n,c]·w[k,c] + b[k]
//   input_gradient    dx[n,c] = Σ_k dy[n,k]·w[k,c]
//   weight_gradient   dw[k,c] = Σ_n dy[n,k]·x[n,c]
//   bias_gradient     db[k]   = Σ_n dy[n,k]
//
// x, dx are N × C, y, dy N × K, all dense; rows of w and dw, K × C, may be padded. FLOPs: 2·N·C·K for each of the first three.
//
// Forward: a warp for four neighbours of y, lanes along C; the eight warps of a block share their rows of w. Grid: K / 4,
// N / 8. Both gradients are one product out[i,c] = Σ_j a[i,j]·b[j,c]: a thread for eight rows i of one column c, so that b
// is read once for all eight. Grid: C / 128, rows / 8. Sums run in the order of j.
#include "common.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned OUTPUTS = 4;
constexpr unsigned PRODUCT_THREADS = 128, PRODUCT_ROWS = 8;

struct Forward {
  const float* x;  // N × C
  const float* w;  // K × C, rows of `pitch`
  const float* b;  // K
  float* y;        // N × K
  unsigned n, c, k, pitch;
  unsigned packed;  // rows of x and w can be read 16 bytes at a time
  unsigned padding;
};
static_assert(sizeof(Forward) == 56, "as in src/ops/linear/gpu.rs");

struct Product {
  const float* a;  // entry (i, j) at i·a_row + j·a_column
  const float* b;  // depth × columns, rows of `b_pitch`
  float* out;      // rows × columns, rows of `out_pitch`
  unsigned rows, columns, depth;
  unsigned a_row, a_column, b_pitch, out_pitch;
  unsigned padding;
};
static_assert(sizeof(Product) == 56, "as in src/ops/linear/gpu.rs");

struct BiasGradient {
  const float* dy;  // N × K
  float* db;        // K
  unsigned n, k;
};
static_assert(sizeof(BiasGradient) == 24, "as in src/ops/linear/gpu.rs");

using offset = unsigned long long;

KERNEL(linear_forward, Forward, THREADS) {
  const unsigned n = blockIdx.y * (THREADS / WARP) + threadIdx.x / WARP, first = blockIdx.x * OUTPUTS;
  const unsigned lane = threadIdx.x % WARP;
  if (n >= p.n) return;
  const float* x = p.x + static_cast<offset>(n) * p.c;
  float sums[OUTPUTS];
#pragma unroll
  for (unsigned i = 0; i < OUTPUTS; ++i) sums[i] = 0;
  // A row beyond the last one is the last one again, and not stored.
  const float* w[OUTPUTS];
#pragma unroll
  for (unsigned i = 0; i < OUTPUTS; ++i) w[i] = p.w + static_cast<offset>(first + i < p.k ? first + i : p.k - 1) * p.pitch;
  if (p.packed) {
    for (unsigned c = lane * 4; c < p.c; c += WARP * 4) {
      const float4 a = load4(x + c);
#pragma unroll
      for (unsigned i = 0; i < OUTPUTS; ++i) {
        const float4 b = load4(w[i] + c);
        sums[i] += (a.x * b.x + a.y * b.y) + (a.z * b.z + a.w * b.w);
      }
    }
  } else {
    for (unsigned c = lane; c < p.c; c += WARP) {
#pragma unroll
      for (unsigned i = 0; i < OUTPUTS; ++i) sums[i] += x[c] * w[i][c];
    }
  }
#pragma unroll
  for (unsigned i = 0; i < OUTPUTS; ++i) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0 && first + i < p.k) p.y[static_cast<offset>(n) * p.k + first + i] = sum + p.b[first + i];
  }
}

KERNEL(linear_product, Product, PRODUCT_THREADS) {
  const unsigned column = blockIdx.x * PRODUCT_THREADS + threadIdx.x, first = blockIdx.y * PRODUCT_ROWS;
  if (column >= p.columns) return;
  float sums[PRODUCT_ROWS];
#pragma unroll
  for (unsigned i = 0; i < PRODUCT_ROWS; ++i) sums[i] = 0;
  for (unsigned j = 0; j < p.depth; ++j) {
    const float b = p.b[static_cast<offset>(j) * p.b_pitch + column];
#pragma unroll
    for (unsigned i = 0; i < PRODUCT_ROWS; ++i) {
      if (first + i < p.rows)
        sums[i] += p.a[static_cast<offset>(first + i) * p.a_row + static_cast<offset>(j) * p.a_column] * b;
    }
  }
#pragma unroll
  for (unsigned i = 0; i < PRODUCT_ROWS; ++i)
    if (first + i < p.rows) p.out[static_cast<offset>(first + i) * p.out_pitch + column] = sums[i];
}

// A block for 32 classes; its warps share the rows.
KERNEL(linear_bias_gradient, BiasGradient, THREADS) {
  SHARED(float, of_warps, THREADS);
  const unsigned k = blockIdx.x * WARP + threadIdx.x % WARP;
  float sum = 0;
  if (k < p.k)
    for (unsigned n = threadIdx.x / WARP; n < p.n; n += THREADS / WARP) sum += p.dy[static_cast<offset>(n) * p.k + k];
  of_warps[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= WARP || k >= p.k) return;
  for (unsigned warp = 1; warp < THREADS / WARP; ++warp) sum += of_warps[warp * WARP + threadIdx.x];
  p.db[k] = sum;
}
