// What runs beside threads on sm_90a: right kernels, and one that is wrong on purpose for each kind of fault.
#include "hopper.cuh"

// A copy and a product at a time in these; the ring has two warpgroups that multiply and one that copies.
constexpr unsigned THREADS = 128;
constexpr unsigned RING_THREADS = 384;
constexpr unsigned TILE = 64 * LINE;
constexpr unsigned BYTES = TILE * sizeof(element);

// y has room for what a kernel writes; `count` is the kernel's own: summands, a parity, numbers.
struct Hopper {
  TensorMap a, b;
  float* y;
  unsigned long long count;
  unsigned tile_of_b, at[4], offset[2], padding[5];
};

// ---- right kernels -------------------------------------------------------------------------------------------------

KERNEL(swizzles, Hopper, THREADS) {
  for (unsigned i = threadIdx.x; i < p.count; i += THREADS) p.y[i] = static_cast<float>(swizzled(i / 128, i % 128));
}

// The lines of a box, or of patches, as they were before the swizzle.
template <bool PATCHES>
DEVICE void copies(const Hopper& p) {
  DYNAMIC_SHARED(element, tile);
  SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 1);
    fence_barriers();
  }
  __syncthreads();
  const unsigned lines = static_cast<unsigned>(p.count);
  if (threadIdx.x == 0) {
    barrier_expect(full, 0, lines * 128);
    const int x = static_cast<int>(p.at[0]), y = static_cast<int>(p.at[1]);
    if (PATCHES)
      copy_patches(tile, 0, p.a, x, y, static_cast<int>(p.at[2]), static_cast<int>(p.at[3]), p.offset[0], p.offset[1], full, 0);
    else
      copy_box(tile, 0, p.a, x, y, full, 0);
  }
  barrier_wait(full, 0, 0);
  for (unsigned i = threadIdx.x; i < lines * LINE; i += THREADS)
    p.y[i] = to_float(tile[swizzled(i / LINE, i % LINE * 2) / 2]);
}
KERNEL(copies_box, Hopper, THREADS) { copies<false>(p); }
KERNEL(copies_patches, Hopper, THREADS) { copies<true>(p); }

// y = a·b, 128 rows by COLUMNS, of `count` summands in steps of 64, through a ring of three stages. a and b are K-major, or lie as lines
// of 64 rows for each summand. Warpgroup 2 copies, by one of its threads; 0 and 1 have 64 rows each, and keep one step under way.
// HASTY: a stage is free again while its products are under way.
constexpr unsigned STAGES = 3;
template <unsigned COLUMNS, bool A_ALONG, bool B_ALONG, bool HASTY = false>
DEVICE void multiplies(const Hopper& p) {
  DYNAMIC_SHARED(element, stages);
  SHARED(Barrier, full, STAGES);
  SHARED(Barrier, empty, STAGES);
  constexpr unsigned A = 2 * TILE, B = COLUMNS * LINE;
  if (threadIdx.x == 0) {
    for (unsigned i = 0; i < STAGES; ++i) {
      barrier_init(full, i, 1);
      barrier_init(empty, i, 8);
    }
    fence_barriers();
  }
  __syncthreads();
  const unsigned steps = static_cast<unsigned>(p.count) / LINE, group = threadIdx.x / WARPGROUP;
  if (group == 2) {
    registers_down<40>();
    if (threadIdx.x % WARPGROUP != 0) return;
    for (unsigned step = 0; step < steps; ++step) {
      const unsigned stage = step % STAGES, at = stage * (A + B);
      const int k = static_cast<int>(step * LINE);
      barrier_wait(empty, stage, step / STAGES % 2 ^ 1);
      barrier_expect(full, stage, (A + B) * 2);
      for (unsigned part = 0; part < 2; ++part)
        copy_box(stages, at + part * TILE, p.a, A_ALONG ? k : part * 64, A_ALONG ? part * 64 : k, full, stage);
      for (unsigned part = 0; part < COLUMNS / 64; ++part)
        copy_box(stages, at + A + part * TILE, p.b, B_ALONG ? k : part * 64, B_ALONG ? part * 64 : k, full, stage);
    }
    return;
  }
  registers_up<232>();
  float d[1][COLUMNS / 8][4] = {};
  multiply_fence();
  for (unsigned step = 0; step < steps; ++step) {
    const unsigned stage = step % STAGES, at = stage * (A + B);
    barrier_wait(full, stage, step / STAGES % 2);
    const unsigned long long a = operand<A_ALONG>(stages, at + group * TILE, TILE), b = operand<B_ALONG>(stages, at + A, TILE);
    for (unsigned k = 0; k < LINE; k += PRODUCT_DEPTH)
      multiply<COLUMNS, A_ALONG, B_ALONG>(d[0], further(a, A_ALONG ? k : k * LINE), further(b, B_ALONG ? k : k * LINE));
    multiply_commit();
    multiply_wait<1>(d);
    if (HASTY && threadIdx.x % WARP == 0) barrier_arrive(empty, stage);
    if (!HASTY && step > 0 && threadIdx.x % WARP == 0) barrier_arrive(empty, (step - 1) % STAGES);
  }
  multiply_wait<0>(d);
  const unsigned row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
  for (unsigned j = 0; j < COLUMNS / 8; ++j)
    for (unsigned i = 0; i < 4; ++i) p.y[(row + i / 2 * 8) * COLUMNS + j * 8 + column + i % 2] = d[0][j][i];
}
KERNEL(multiplies_rows, Hopper, RING_THREADS) { multiplies<128, true, true>(p); }
KERNEL(multiplies_turned_b, Hopper, RING_THREADS) { multiplies<128, true, false>(p); }
KERNEL(multiplies_turned, Hopper, RING_THREADS) { multiplies<256, false, false>(p); }
KERNEL(multiplies_narrow, Hopper, RING_THREADS) { multiplies<64, false, true>(p); }
KERNEL(multiplies_hastily, Hopper, RING_THREADS) { multiplies<64, true, true, true>(p); }

// Threads write an operand themselves, fence, and meet by a barrier of their own; another warpgroup has left long ago.
KERNEL(multiplies_what_it_wrote, Hopper, 256) {
  DYNAMIC_SHARED(element, tile);
  if (threadIdx.x >= WARPGROUP) return;
  for (unsigned i = threadIdx.x; i < TILE; i += WARPGROUP)
    tile[swizzled(i / LINE, i % LINE * 2) / 2] = from_float(i / LINE == i % LINE ? 2.0f : 0.0f);
  fence_async();
  warpgroup_barrier(3, WARPGROUP);
  float d[1][8][4] = {};
  for (unsigned round = 0; round < 2; ++round) {
    multiply_fence();
    for (unsigned k = 0; k < LINE; k += PRODUCT_DEPTH) {
      const unsigned long long a = further(operand<true>(tile, 0), k);
      multiply<64, true, true>(d[0], a, a);
    }
    multiply_commit();
    multiply_wait<0>(d);
    d[0][0][0] += 1.0f;
  }
  // The tile's memory is the threads' again.
  warpgroup_barrier(3, WARPGROUP);
  const SharedArray<float> sums = as_floats(tile);
  for (unsigned j = 0; j < 8; ++j) sums[threadIdx.x * 8 + j] = d[0][j][0] + d[0][j][1] + d[0][j][2] + d[0][j][3];
  warpgroup_barrier(3, WARPGROUP);
  float sum = 0;
  for (unsigned j = 0; j < 8; ++j) sum += sums[(threadIdx.x ^ 127) * 8 + j];
  p.y[threadIdx.x] = sum;
}

// One thread hands numbers to the others through a barrier in shared memory, twice through the same place.
KERNEL(hands_over, Hopper, THREADS) {
  SHARED(float, handed, 1);
  SHARED(Barrier, full, 1);
  SHARED(Barrier, empty, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 1);
    barrier_init(empty, 0, THREADS);
  }
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < 4; ++i) {
    if (threadIdx.x == 5) {
      barrier_wait(empty, 0, i % 2 ^ 1);
      handed[0] = static_cast<float>(i + 1);
      barrier_arrive(full, 0);
    }
    barrier_wait(full, 0, i % 2);
    sum = sum * 10 + handed[0];
    barrier_arrive(empty, 0);
  }
  p.y[threadIdx.x] = sum;
}

// ---- wrong ones ----------------------------------------------------------------------------------------------------

// What they have in common: a barrier for a copy, and operands that were waited for.
struct Start {
  SharedArray<element> tile;
  SharedArray<Barrier> full;
};
DEVICE Start start(const Hopper& p, bool waits) {
  DYNAMIC_SHARED(element, tile);
  SHARED(Barrier, full, 2);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 1);
    barrier_init(full, 1, 1);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_expect(full, 0, BYTES);
    copy_box(tile, 0, p.a, 0, 0, full, 0);
  }
  if (waits) barrier_wait(full, 0, 0);
  return {tile, full};
}

DEVICE void multiply_tile(float (&d)[8][4], SharedArray<element> tile) {
  const unsigned long long a = operand<true>(tile, 0);
  multiply<64, true, true>(d, a, a);
}

DEVICE void store(const Hopper& p, const float (&d)[1][8][4]) { p.y[threadIdx.x] = d[0][0][0]; }

KERNEL(waits_for_ever, Hopper, THREADS) {
  const Start s = start(p, true);
  barrier_wait(s.full, 1, 0);
}

KERNEL(expects_too_much, Hopper, THREADS) {
  DYNAMIC_SHARED(element, tile);
  SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 1);
    fence_barriers();
    barrier_expect(full, 0, BYTES + 128);
    copy_box(tile, 0, p.a, 0, 0, full, 0);
  }
  __syncthreads();
  barrier_wait(full, 0, 0);
}

KERNEL(expects_too_little, Hopper, THREADS) {
  DYNAMIC_SHARED(element, tile);
  SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 2);
    fence_barriers();
    copy_box(tile, 0, p.a, 0, 0, full, 0);
    barrier_arrive(full, 0);
    barrier_arrive(full, 0);
  }
  __syncthreads();
  barrier_wait(full, 0, 0);
}

KERNEL(arrives_too_often, Hopper, THREADS) {
  SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 2);
    barrier_expect(full, 0, 16);
    barrier_arrive(full, 0);
    barrier_arrive(full, 0);
  }
}

KERNEL(uses_a_barrier_that_was_not_made, Hopper, THREADS) {
  SHARED(Barrier, full, 2);
  if (threadIdx.x == 0) barrier_init(full, 0, 1);
  __syncthreads();
  barrier_arrive(full, 1);
}

KERNEL(uses_a_barrier_too_early, Hopper, THREADS) {
  SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) barrier_init(full, 0, THREADS);
  barrier_arrive(full, 0);
}

KERNEL(copies_to_a_barrier_without_a_fence, Hopper, THREADS) {
  DYNAMIC_SHARED(element, tile);
  SHARED(Barrier, full, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 1);
    barrier_expect(full, 0, BYTES);
    copy_box(tile, 0, p.a, 0, 0, full, 0);
  }
  __syncthreads();
  barrier_wait(full, 0, 0);
}

KERNEL(reads_a_copy_too_early, Hopper, THREADS) {
  const Start s = start(p, false);
  p.y[threadIdx.x] = to_float(s.tile[threadIdx.x]);
  barrier_wait(s.full, 0, 0);
}

// A barrier of the block is none for copies.
KERNEL(waits_for_a_copy_by_the_wrong_barrier, Hopper, THREADS) {
  const Start s = start(p, false);
  __syncthreads();
  p.y[threadIdx.x] = to_float(s.tile[threadIdx.x]);
  barrier_wait(s.full, 0, 0);
}

KERNEL(leaves_a_copy_behind, Hopper, THREADS) {
  start(p, false);
}

KERNEL(copies_onto_what_others_read, Hopper, THREADS) {
  const Start s = start(p, true);
  p.y[threadIdx.x] = to_float(s.tile[threadIdx.x]);
  if (threadIdx.x == 0) {
    barrier_expect(s.full, 1, BYTES);
    copy_box(s.tile, 0, p.a, 0, 0, s.full, 1);
  }
  barrier_wait(s.full, 1, 0);
}

KERNEL(copies_onto_a_product, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_commit();
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_expect(s.full, 1, BYTES);
    copy_box(s.tile, 0, p.a, 0, 0, s.full, 1);
  }
  multiply_wait<0>(d);
  barrier_wait(s.full, 1, 0);
  store(p, d);
}

KERNEL(writes_onto_a_product, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_commit();
  s.tile[threadIdx.x] = from_float(1.0f);
  multiply_wait<0>(d);
  store(p, d);
}

KERNEL(copies_off_an_atom, Hopper, THREADS) {
  const Start s = start(p, true);
  if (threadIdx.x == 0) copy_box(s.tile, LINE, p.a, 0, 0, s.full, 1);
}

KERNEL(copies_beyond_its_tile, Hopper, THREADS) {
  const Start s = start(p, true);
  if (threadIdx.x == 0) copy_box(s.tile, static_cast<unsigned>(s.tile.count) - 8 * LINE, p.a, 0, 0, s.full, 1);
}

KERNEL(begins_outside_of_the_box_of_pixels, Hopper, THREADS) { copies<true>(p); }

KERNEL(multiplies_a_copy_too_early, Hopper, THREADS) {
  const Start s = start(p, false);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_commit();
  multiply_wait<0>(d);
  barrier_wait(s.full, 0, 0);
  store(p, d);
}

// One warp of the warpgroup does not wait.
KERNEL(multiplies_a_copy_that_one_warp_did_not_wait_for, Hopper, THREADS) {
  const Start s = start(p, false);
  // Behind this it has been asked for.
  __syncthreads();
  if (threadIdx.x / WARP != 2) barrier_wait(s.full, 0, 0);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
}

template <bool FENCES>
DEVICE void multiplies_what_threads_wrote(const Hopper& p) {
  DYNAMIC_SHARED(element, tile);
  for (unsigned i = threadIdx.x; i < TILE; i += THREADS) tile[i] = from_float(1.0f);
  if (FENCES) {
    // Behind the barrier by which others know of it, a fence is of no use to them.
    __syncthreads();
    if (threadIdx.x == 0) fence_async();
  } else {
    __syncthreads();
  }
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], tile);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
}
KERNEL(multiplies_without_a_fence, Hopper, THREADS) { multiplies_what_threads_wrote<false>(p); }
KERNEL(fences_for_others, Hopper, THREADS) { multiplies_what_threads_wrote<true>(p); }

KERNEL(copies_onto_writes_without_a_fence, Hopper, THREADS) {
  const Start s = start(p, true);
  s.tile[threadIdx.x] = from_float(1.0f);
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_expect(s.full, 1, BYTES);
    copy_box(s.tile, 0, p.a, 0, 0, s.full, 1);
  }
  barrier_wait(s.full, 1, 0);
}

KERNEL(multiplies_other_operands, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  const unsigned long long a = operand<true>(s.tile, 0);
  multiply<64, true, true>(d[0], further(a, threadIdx.x == 77 ? 16 : 0), a);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
}

KERNEL(multiplies_without_one_thread, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  if (threadIdx.x != 77) multiply_tile(d[0], s.tile);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
}

KERNEL(waits_for_products_without_one_warp, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_commit();
  if (threadIdx.x / WARP != 1) multiply_wait<0>(d);
  store(p, d);
}

KERNEL(reads_sums_too_early, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_commit();
  store(p, d);
  multiply_wait<0>(d);
}

// The group is not ended, so nobody waits for it.
KERNEL(forgets_to_commit, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_wait<0>(d);
  store(p, d);
}

KERNEL(touches_sums_between_products, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  d[0][0][0] = 1.0f;
  multiply_tile(d[0], s.tile);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
}

KERNEL(multiplies_without_a_fence_of_sums, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_tile(d[0], s.tile);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
}

KERNEL(waits_for_other_sums, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {}, other[1][8][4] = {};
  multiply_fence();
  multiply_tile(d[0], s.tile);
  multiply_tile(other[0], s.tile);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
  store(p, other);
}

KERNEL(multiplies_beyond_shared_memory, Hopper, THREADS) {
  const Start s = start(p, true);
  float d[1][8][4] = {};
  multiply_fence();
  const unsigned long long a = operand<true>(s.tile, static_cast<unsigned>(s.tile.count) - 8 * LINE);
  multiply<64, true, true>(d[0], a, a);
  multiply_commit();
  multiply_wait<0>(d);
  store(p, d);
}

KERNEL(sets_registers_apart, Hopper, THREADS) {
  if (threadIdx.x < 64) registers_up<240>();
  else registers_up<232>();
}

KERNEL(sets_registers_in_one_warp, Hopper, THREADS) {
  if (threadIdx.x < 32) registers_down<40>();
}

KERNEL(misses_a_named_barrier, Hopper, THREADS) {
  if (threadIdx.x < 96) warpgroup_barrier(1, THREADS);
}

KERNEL(counts_a_named_barrier_twice, Hopper, THREADS) {
  warpgroup_barrier(1, threadIdx.x < 64 ? 64 : 128);
}

// Ordered by a barrier of its own half only.
KERNEL(races_across_named_barriers, Hopper, THREADS) {
  SHARED(float, shared, THREADS);
  shared[threadIdx.x] = 1.0f;
  warpgroup_barrier(1 + threadIdx.x / 64, 64);
  p.y[threadIdx.x] = shared[(threadIdx.x + 32) % THREADS];
}

// Read by all, and written again before all have said so.
KERNEL(hands_over_too_early, Hopper, THREADS) {
  SHARED(float, handed, 1);
  SHARED(Barrier, full, 1);
  SHARED(Barrier, empty, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 1);
    barrier_init(empty, 0, THREADS / WARP);
  }
  __syncthreads();
  for (unsigned i = 0; i < 2; ++i) {
    if (threadIdx.x == 5) {
      barrier_wait(empty, 0, i % 2 ^ 1);
      handed[0] = static_cast<float>(i + 1);
      barrier_arrive(full, 0);
    }
    barrier_wait(full, 0, i % 2);
    p.y[threadIdx.x] = handed[0];
    // For its warp, but without having waited for it.
    if (threadIdx.x % WARP == 0) barrier_arrive(empty, 0);
  }
}
