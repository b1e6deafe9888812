// modules: f32
// The limits of a GPU, for other kernels to be measured against: its memory by three mixes of reads and writes, and its
// f32 arithmetic.
//
//   limits_copy      y[i] = x[i]                    8 bytes per float: 1 read, 1 write
//   limits_triad     y[i] = x[i] + scale·z[i]      12 bytes per float: 2 reads, 1 write; 2 FLOPs
//   limits_read      y[b] = Σ of block b's x[i]     4 bytes per float: reads alone, but for one float of y per block
//   limits_multiply  v = v·scale + shift            2 FLOPs per step and number, none of them from memory; y[thread] = the
//                    sum of the thread's numbers, so that they have to be computed
//
// Arrays are dense, f32, and a multiple of 4 floats long. Memory: a thread takes UNITS × 16 bytes, THREADS · 16 bytes apart, all
// of its loads in flight before the first use; a block takes UNITS · THREADS of these units. Sums run in an order that
// depends on the count alone. Arithmetic: NUMBERS chains per thread, none of which waits for another; as many
// blocks as the caller likes.
#include "common.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned UNITS = 4;
constexpr unsigned NUMBERS = 64;

struct Stream {
  const float* x;  // count
  const float* z;  // count; the triad's second array
  float* y;        // count; of limits_read: one per block
  unsigned long long units;  // of 4 floats
  float scale;
  unsigned padding;
};
static_assert(sizeof(Stream) == 40, "as in src/ops/limits.rs");

struct Multiply {
  float* y;  // one per thread
  unsigned steps;
  float scale, shift;
  unsigned padding;
};
static_assert(sizeof(Multiply) == 24, "as in src/ops/limits.rs");

using offset = unsigned long long;

// This thread's i-th unit.
DEVICE offset unit(unsigned i) {
  return (static_cast<offset>(blockIdx.x) * UNITS + i) * THREADS + threadIdx.x;
}

// Beyond the end: zeros.
DEVICE void load_units(float4 (&v)[UNITS], const float* x, offset units) {
#pragma unroll
  for (unsigned i = 0; i < UNITS; ++i) v[i] = unit(i) < units ? load4(x + 4 * unit(i)) : make_float4(0, 0, 0, 0);
}

DEVICE void store_units(float* y, const float4 (&v)[UNITS], offset units) {
#pragma unroll
  for (unsigned i = 0; i < UNITS; ++i)
    if (unit(i) < units) store4(y + 4 * unit(i), v[i]);
}

KERNEL(limits_copy, Stream, THREADS) {
  float4 v[UNITS];
  load_units(v, p.x, p.units);
  store_units(p.y, v, p.units);
}

KERNEL(limits_triad, Stream, THREADS) {
  float4 v[UNITS], z[UNITS];
  load_units(v, p.x, p.units);
  load_units(z, p.z, p.units);
#pragma unroll
  for (unsigned i = 0; i < UNITS; ++i) {
    v[i].x += p.scale * z[i].x;
    v[i].y += p.scale * z[i].y;
    v[i].z += p.scale * z[i].z;
    v[i].w += p.scale * z[i].w;
  }
  store_units(p.y, v, p.units);
}

KERNEL(limits_read, Stream, THREADS) {
  SHARED(float, scratch, THREADS / WARP);
  float4 v[UNITS];
  load_units(v, p.x, p.units);
  float sum = 0;
#pragma unroll
  for (unsigned i = 0; i < UNITS; ++i) sum += v[i].x + v[i].y + (v[i].z + v[i].w);
  sum = block_sum<THREADS>(sum, scratch);
  if (threadIdx.x == 0) p.y[blockIdx.x] = sum;
}

KERNEL(limits_multiply, Multiply, THREADS) {
  float v[NUMBERS];
#pragma unroll
  for (unsigned i = 0; i < NUMBERS; ++i) v[i] = static_cast<float>(threadIdx.x + i);
  // Each step's factor is the last one's result, or the compiler would take the products out of the loop.
  for (unsigned step = 0; step < p.steps; ++step) {
#pragma unroll
    for (unsigned i = 0; i < NUMBERS; ++i) v[i] = v[i] * p.scale + p.shift;
  }
  float sum = 0;
#pragma unroll
  for (unsigned i = 0; i < NUMBERS; ++i) sum += v[i];
  p.y[static_cast<offset>(blockIdx.x) * THREADS + threadIdx.x] = sum;
}
