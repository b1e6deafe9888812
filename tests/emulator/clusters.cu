// Clusters of two blocks on sm_90a: what they hand to each other, and one kernel that is wrong on purpose for each kind of fault.
#include "hopper.cuh"

constexpr unsigned THREADS = 128;
constexpr unsigned HALF = LINE / 2;  // lines of a half of a tile
constexpr unsigned TILE = LINE * LINE, BYTES = TILE * sizeof(element);
constexpr unsigned BOTH = 3;  // blocks, by the bits of their ranks

// `halves` has boxes of 32 lines. Each block writes THREADS numbers of y, those of rank 1 behind those of rank 0.
struct Clusters {
  TensorMap halves;
  float* y;
  unsigned long long rounds;
  unsigned padding[12];
};
static_assert(sizeof(Clusters) == 192, "as in tests/emulator/clusters.rs");

struct Start {
  SharedArray<element> tile;
  SharedArray<Barrier> full, empty;
  unsigned rank;
};

// `full` is arrived at by who expects bytes, `empty` by the warps of both blocks. MEETS: behind the cluster's barrier.
template <bool MEETS = true>
DEVICE Start start() {
  DYNAMIC_SHARED(element, tile);
  SHARED(Barrier, full, 1);
  SHARED(Barrier, empty, 1);
  if (threadIdx.x == 0) {
    barrier_init(full, 0, 1);
    barrier_init(empty, 0, 2 * THREADS / WARP);
    fence_barriers();
  }
  if (MEETS) cluster_barrier();
  else __syncthreads();
  return {tile, full, empty, cluster_rank()};
}

// This block's half of a tile, to both.
DEVICE void share_half(const Clusters& p, const Start& s, unsigned round) {
  if (threadIdx.x != 0) return;
  barrier_expect(s.full, 0, BYTES);
  const int line = static_cast<int>(round * LINE + s.rank * HALF);
  copy_box_to(s.tile, s.rank * HALF * LINE, p.halves, 0, line, s.full, 0, BOTH);
}

DEVICE void leave(const Start& s) {
  __syncwarp();
  if (threadIdx.x % WARP < 2) barrier_arrive_at(s.empty, 0, threadIdx.x % WARP);
}

// Every number of the tile is added up; a thread has those of a column of its block, of each other line.
DEVICE float sum_of_column(const Start& s) {
  float sum = 0;
  for (unsigned line = threadIdx.x / LINE; line < LINE; line += THREADS / LINE)
    sum += to_float(s.tile[swizzled(line, threadIdx.x % LINE * 2) / 2]);
  return sum;
}

DEVICE void store(const Clusters& p, const Start& s, float v) { p.y[s.rank * THREADS + threadIdx.x] = v; }

// ---- right kernels -------------------------------------------------------------------------------------------------

// So many tiles, one after the other in the same place. HASTY: copied over before the other block has read.
template <bool HASTY>
DEVICE void shares(const Clusters& p) {
  const Start s = start();
  float sum = 0;
  for (unsigned round = 0; round < p.rounds; ++round) {
    if (!HASTY) barrier_wait(s.empty, 0, round % 2 ^ 1);
    else __syncthreads();
    share_half(p, s, round);
    barrier_wait(s.full, 0, round % 2);
    sum += sum_of_column(s);
    leave(s);
  }
  barrier_wait(s.empty, 0, p.rounds % 2 ^ 1);
  store(p, s, sum);
}
KERNEL(shares_tiles, Clusters, THREADS) { shares<false>(p); }

// Which blocks are together, and how many.
KERNEL(tells_ranks, Clusters, THREADS) {
  if (threadIdx.x == 0) p.y[blockIdx.x] = static_cast<float>(cluster_size() * 10 + cluster_rank());
}

// ---- wrong ones ----------------------------------------------------------------------------------------------------

KERNEL(shares_before_the_other_has_read, Clusters, THREADS) { shares<true>(p); }

// The other may not have made its barriers.
KERNEL(shares_before_they_have_met, Clusters, THREADS) {
  const Start s = start<false>();
  share_half(p, s, 0);
  barrier_wait(s.full, 0, 0);
  cluster_barrier();
}

// The other arrives while this one is there, or when it has ended.
KERNEL(ends_before_the_other_has_arrived, Clusters, THREADS) {
  const Start s = start();
  share_half(p, s, 0);
  barrier_wait(s.full, 0, 0);
  store(p, s, sum_of_column(s));
  if (s.rank == 1) leave(s);
}

// Rank 0 waits for nothing: what it is sent may come when it has ended.
KERNEL(ends_before_a_copy_to_it, Clusters, THREADS) {
  const Start s = start();
  if (s.rank == 0) return;
  if (threadIdx.x == 0) {
    barrier_expect(s.full, 0, BYTES / 2);
    copy_box_to(s.tile, 0, p.halves, 0, 0, s.full, 0, BOTH);
  }
  barrier_wait(s.full, 0, 0);
}

KERNEL(reaches_beyond_its_cluster, Clusters, THREADS) {
  const Start s = start();
  if (threadIdx.x == 0) barrier_arrive_at(s.empty, 0, 2);
  cluster_barrier();
}

KERNEL(copies_beyond_its_cluster, Clusters, THREADS) {
  const Start s = start();
  if (threadIdx.x == 0) copy_box_to(s.tile, 0, p.halves, 0, 0, s.full, 0, 5);
  cluster_barrier();
}

KERNEL(misses_the_clusters_barrier, Clusters, THREADS) {
  const Start s = start();
  if (s.rank == 0 || threadIdx.x != 77) cluster_barrier();
}

// Nobody but the other block's threads has waited for what this one's wrote.
KERNEL(hands_over_by_the_other_block, Clusters, THREADS) {
  SHARED(float, shared, THREADS);
  const Start s = start();
  shared[threadIdx.x] = 1.0f;
  if (threadIdx.x < 32) leave(s);
  store(p, s, shared[(threadIdx.x + 32) % THREADS]);
  cluster_barrier();
}
