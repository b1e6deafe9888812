// modules: tf32 bf16 f16
// The limits of a GPU's tensor cores through mma.sync, for convolutions to be measured against: matrix products that
// stay in registers.
//
//   limits_product   D[chain] = A·B[chain] + D[chain], again and again;   2·16·8·DEPTH FLOPs per warp, chain and step
//                    y[thread] = the sum of the thread's numbers of all D, so that they have to be computed
//
// A is 16 × DEPTH and B DEPTH × 8, in bf16 or f16 (DEPTH 16) or tf32 (DEPTH 8); D is f32. CHAINS products per warp, none of
// which waits for another; all operands are loaded before the first. Their numbers are whole, differ from thread to thread, and
// are no zeros: a processor that multiplies zeros draws less power, and clocks higher. As many blocks as the caller likes.
#include "tensor.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned CHAINS = 8;

struct Product {
  float* y;  // one per thread
  unsigned steps;
  unsigned padding;
};
static_assert(sizeof(Product) == 16, "as in src/ops/limits.rs");

// −127 … 127: exact in every type, and so are sums of few products.
DEVICE float number(unsigned place) {
  const unsigned mixed = (threadIdx.x * 64 + place + 1) * 2654435761u;
  return static_cast<float>((mixed >> 16) % 255) - 127.0f;
}

// Register `i` of a fragment: two numbers of 16 bits, or one of tf32.
DEVICE unsigned fragment(unsigned i) {
#ifdef STORAGE_TF32
  return to_tf32(number(i));
#else
  const element low = from_float(number(2 * i)), high = from_float(number(2 * i + 1));
  return low.bits | static_cast<unsigned>(high.bits) << 16;
#endif
}

KERNEL(limits_product, Product, THREADS) {
  Fragments f[CHAINS];
  float d[CHAINS][4];
#pragma unroll
  for (unsigned chain = 0; chain < CHAINS; ++chain) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      f[chain].a[i] = fragment(i);
      d[chain][i] = 0;
    }
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) f[chain].b[i] = fragment(4 + 2 * chain + i);
  }
  for (unsigned step = 0; step < p.steps; ++step) {
#pragma unroll
    for (unsigned chain = 0; chain < CHAINS; ++chain) {
#ifdef STORAGE_TF32
      mma_1688(d[chain], f[chain]);
#else
      mma_16816(d[chain], f[chain]);
#endif
    }
  }
  float sum = 0;
#pragma unroll
  for (unsigned chain = 0; chain < CHAINS; ++chain) sum += d[chain][0] + d[chain][1] + (d[chain][2] + d[chain][3]);
  p.y[static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x] = sum;
}
