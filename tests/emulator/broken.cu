// Kernels that are wrong on purpose, one per kind of fault that the emulator must report; and a right one.
#include "common.cuh"

constexpr unsigned THREADS = 64;

// x has `count` floats.
struct Broken {
  float* x;
  unsigned long long count;
};

KERNEL(right, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  const unsigned long long i = static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x;
  tile[threadIdx.x] = i < p.count ? p.x[i] : 0.0f;
  __syncthreads();
  const float mirrored = tile[THREADS - 1 - threadIdx.x];
  const float sum = warp_sum(mirrored);
  __syncthreads();
  tile[threadIdx.x] = sum;
  __syncwarp();
  const float neighbour = tile[threadIdx.x ^ 1];
  if (i < p.count) p.x[i] = mirrored + neighbour;
}

KERNEL(reads_beyond, Broken, THREADS) {
  if (threadIdx.x == 5) p.x[0] = p.x[p.count];
}

KERNEL(writes_beyond, Broken, THREADS) {
  if (threadIdx.x == 6) p.x[p.count] = 1.0f;
}

KERNEL(writes_before, Broken, THREADS) {
  if (threadIdx.x == 7) p.x[-1] = 1.0f;
}

KERNEL(reads_unwritten, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  if (threadIdx.x < p.count) p.x[threadIdx.x] = tile[threadIdx.x];
}

KERNEL(races_read_after_write, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  tile[threadIdx.x] = 1.0f;
  const float other = tile[(threadIdx.x + 1) % THREADS];
  if (threadIdx.x < p.count) p.x[threadIdx.x] = other;
}

KERNEL(races_write_after_read, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  const float other = tile[threadIdx.x / 2];
  tile[threadIdx.x] = other;
}

KERNEL(races_two_writes, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  tile[threadIdx.x / 2] = static_cast<float>(threadIdx.x);
}

// Ordered behind the reads of its own warp, not behind those of the other one.
KERNEL(races_with_another_warps_reads, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  if (threadIdx.x == 0) tile[0] = 1.0f;
  __syncthreads();
  const float old = tile[0];
  __syncwarp();
  if (threadIdx.x == 0) tile[0] = old + 1.0f;
}

// A shuffle exchanges values but does not order accesses to shared memory.
KERNEL(races_across_a_shuffle, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  tile[threadIdx.x] = 1.0f;
  const float sum = warp_sum(1.0f);
  if (threadIdx.x < p.count) p.x[threadIdx.x] = tile[threadIdx.x ^ 1] + sum;
}

KERNEL(shared_out_of_bounds, Broken, THREADS) {
  SHARED(float, tile, THREADS);
  tile[threadIdx.x + 1] = 1.0f;
}

KERNEL(misses_a_barrier, Broken, THREADS) {
  if (threadIdx.x != 9) __syncthreads();
}

KERNEL(waits_at_two_barriers, Broken, THREADS) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

KERNEL(misses_a_shuffle, Broken, THREADS) {
  if (threadIdx.x != 40 && warp_sum(1.0f) < 0) p.x[0] = 1.0f;
}

KERNEL(waits_at_two_shuffles, Broken, THREADS) {
  float sum = 0;
  if (threadIdx.x % 2 == 0) {
    sum = __shfl_xor_sync(ALL_LANES, 1.0f, 2);
  } else {
    sum = __shfl_xor_sync(ALL_LANES, 1.0f, 2);
  }
  if (sum < 0) p.x[0] = sum;
}

KERNEL(waits_at_a_shuffle_and_a_barrier, Broken, THREADS) {
  if (threadIdx.x == 40) {
    if (warp_sum(1.0f) < 0) p.x[0] = 1.0f;
  } else {
    __syncthreads();
  }
}

KERNEL(shuffles_from_outside, Broken, THREADS) {
  if (threadIdx.x % 32 < 16 && __shfl_xor_sync(0x0000FFFFu, 1.0f, 16) < 0) p.x[0] = 1.0f;
}

KERNEL(is_misaligned, Broken, THREADS) {
  if (threadIdx.x == 3) p.x[0] = load4(p.x + 1).x;
}

KERNEL(divides_by_zero, Broken, THREADS) {
  if (threadIdx.x == 11) p.x[0] = static_cast<float>(threadIdx.x / (static_cast<unsigned>(p.count) - 4));
}

KERNEL(overflows_its_stack, Broken, THREADS) {
  volatile float large[1 << 20];
  large[threadIdx.x] = 1.0f;
  p.x[0] = large[threadIdx.x];
}

KERNEL(wants_too_much_shared_memory, Broken, THREADS) {
  SHARED(float, tile, 12 * 1024 + 1);
  tile[threadIdx.x] = 1.0f;
}

// Whichever block comes last wins.
KERNEL(depends_on_the_order_of_blocks, Broken, THREADS) {
  if (threadIdx.x == 0) p.x[0] = static_cast<float>(blockIdx.x);
}

// Whichever thread comes last wins.
KERNEL(depends_on_the_order_of_threads, Broken, THREADS) {
  p.x[0] = static_cast<float>(threadIdx.x);
}
