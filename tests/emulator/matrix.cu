// The twins of tensor-core instructions: a product of 16 × 16 by 16 × 8 numbers, by every way to load its operands.
#include "tensor.cuh"

constexpr unsigned THREADS = 32;

struct Product {
  const element* a;  // 16 × 16
  const element* b;  // 8 × 16: B turned, as convolution weights lie
  float* d;          // 16 × 8
};

constexpr unsigned DEPTH = 16;

DEVICE void store_product(const Product& p, const float (&d)[4]) {
  const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (unsigned i = 0; i < 4; ++i) p.d[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

// A row of matrix m of lane l: matrices 0 and 1 are the upper and lower half of columns 0..8, 2 and 3 those of 8..16.
DEVICE unsigned row_of_a() {
  const unsigned lane = threadIdx.x;
  return (lane % 8 + lane / 8 % 2 * 8) * DEPTH + lane / 16 * 8;
}

// Four matrices.
template <bool TURNED>
DEVICE void load_four(unsigned (&r)[4], SharedArray<element> array, unsigned row) {
  unsigned all[1][4];
  load_matrices<TURNED>(all, array, {row});
  for (unsigned m = 0; m < 4; ++m) r[m] = all[0][m];
}

DEVICE void load_a(const Product& p, SharedArray<element> a, Fragments& f) {
  for (unsigned i = threadIdx.x; i < 16 * DEPTH; i += THREADS) a[i] = p.a[i];
  __syncthreads();
  load_four<false>(f.a, a, row_of_a());
}

KERNEL(product, Product, THREADS) {
  SHARED(element, a, 16 * DEPTH);
  SHARED(element, b, 16 * DEPTH);
  Fragments f;
  load_a(p, a, f);
  // The lower half is not used: four matrices are loaded, B has two.
  for (unsigned i = threadIdx.x; i < 16 * DEPTH; i += THREADS) b[i] = i < 8 * DEPTH ? p.b[i] : from_float(0.0f);
  __syncthreads();
  unsigned r[4];
  load_four<false>(r, b, row_of_a());
  f.b[0] = r[0];
  f.b[1] = r[2];
  float d[4] = {0, 0, 0, 0};
  mma_16816(d, f);
  store_product(p, d);
}

// B as it is in mathematics, 16 × 8, turned while it is loaded; copied asynchronously in two groups.
KERNEL(product_turned, Product, THREADS) {
  SHARED(element, a, 16 * DEPTH);
  SHARED(element, b, 32 * 8);
  Fragments f;
  copy_async<16>(a, threadIdx.x * 8, p.a + threadIdx.x * 8, true);
  commit_copies();
  // Rows beyond B are zeros, and not read from anywhere.
  copy_async<16>(b, threadIdx.x * 8, p.b + threadIdx.x * 8, threadIdx.x < 16);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();
  load_four<false>(f.a, a, row_of_a());
  wait_for_copies<0>();
  __syncthreads();
  unsigned r[4];
  load_four<true>(r, b, (threadIdx.x % 16) * 8);
  f.b[0] = r[0];
  f.b[1] = r[1];
  float d[4] = {0, 0, 0, 0};
  mma_16816(d, f);
  store_product(p, d);
}

// Copies that nobody waited for.
KERNEL(reads_too_early, Product, THREADS) {
  SHARED(element, a, 16 * DEPTH);
  copy_async<16>(a, threadIdx.x * 8, p.a + threadIdx.x * 8, true);
  commit_copies();
  p.d[threadIdx.x] = to_float(a[threadIdx.x * 8]);
}

// Waited for, but without a barrier before another thread's are read.
KERNEL(reads_across, Product, THREADS) {
  SHARED(element, a, 16 * DEPTH);
  copy_async<16>(a, threadIdx.x * 8, p.a + threadIdx.x * 8, true);
  commit_copies();
  wait_for_copies<0>();
  p.d[threadIdx.x] = to_float(a[(threadIdx.x + 1) % THREADS * 8]);
}

// Half of the lanes load one set of matrices, the other half two, in the same line of tensor.cuh.
KERNEL(loads_apart, Product, THREADS) {
  SHARED(element, a, 16 * DEPTH);
  for (unsigned i = threadIdx.x; i < 16 * DEPTH; i += THREADS) a[i] = p.a[i];
  __syncthreads();
  unsigned one[1][4], two[2][4];
  if (threadIdx.x < 16) load_matrices<false>(one, a, {row_of_a()});
  else load_matrices<false>(two, a, {row_of_a(), row_of_a()});
  p.d[threadIdx.x] = static_cast<float>(threadIdx.x < 16 ? one[0][0] : two[1][0]);
}
