// Kernels whose shared memory is the launch's to size: a right one, and some that are wrong on purpose.
#include "common.cuh"

constexpr unsigned THREADS = 64;

// x has `count` floats.
struct Dynamic {
  float* x;
  unsigned long long count;
};

// x backwards, through shared memory; one block.
KERNEL(reverses, Dynamic, THREADS) {
  DYNAMIC_SHARED(float, stage);
  for (unsigned i = threadIdx.x; i < p.count; i += THREADS) stage[i] = p.x[i];
  __syncthreads();
  for (unsigned i = threadIdx.x; i < p.count; i += THREADS) p.x[i] = stage[p.count - 1 - i];
}

KERNEL(reads_unwritten_stage, Dynamic, THREADS) {
  DYNAMIC_SHARED(float, stage);
  if (threadIdx.x < p.count) p.x[threadIdx.x] = stage[threadIdx.x];
}

KERNEL(races_in_its_stage, Dynamic, THREADS) {
  DYNAMIC_SHARED(float, stage);
  stage[threadIdx.x] = 1.0f;
  const float other = stage[(threadIdx.x + 1) % THREADS];
  if (threadIdx.x < p.count) p.x[threadIdx.x] = other;
}

// 16 KiB beside what the launch asks for.
KERNEL(declares_and_stages, Dynamic, THREADS) {
  SHARED(float, tile, 4096);
  DYNAMIC_SHARED(float, stage);
  tile[threadIdx.x] = 1.0f;
  stage[threadIdx.x] = 2.0f;
  __syncthreads();
  if (threadIdx.x < p.count) p.x[threadIdx.x] = tile[threadIdx.x] + stage[threadIdx.x];
}

KERNEL(names_its_stage_twice, Dynamic, THREADS) {
  DYNAMIC_SHARED(float, first);
  DYNAMIC_SHARED(float, second);
  first[threadIdx.x] = 1.0f;
  if (threadIdx.x < p.count) p.x[threadIdx.x] = second[threadIdx.x];
}
