// modules: f32 bf16 f16
// Products of two sample matrices over their rows, and the moments of the columns of one.
//
//   product   sum[i][j] += Σ_p a[p][i]·b[p][j]
//   moments   sum[0][i] += Σ_p a[p][i],   sum[1][i] += Σ_p a[p][i]²
//
// A sample matrix has a row for each output pixel of a convolution by one filter, rows = N·P·Q, and a column for each number
// of the filter, D = R·S·C, zero in the padding; it is never in memory. Pixels themselves are 1×1 patches. Activations are
// NHWC and stored as `element`; sums, D_a × D_b and 2 × D, are f32.
//
// FLOPs: 2·rows·D_a·D_b, and 4·rows·D. Bytes at least: each activation and the sum once; tiles read `a` once per 64 columns
// of `b` and the other way round, mostly from the second-level cache.
//
// product: a block computes 64 × 64 sums with 128 threads, a thread 4 × 8 of them, in steps of 8 rows (f32) or 16; the loads
// of the next step are in flight while this one multiplies. Sums of 256 rows are added to those of the runs before them, so
// that less is rounded away. A matrix by itself: only tiles on and above the diagonal, each written on both sides of it.
// Grid: tiles of columns of a, of b, splits. moments: lanes along the columns, eight warps share the rows. Grid: chunks of
// 32 columns, splits. One split adds to the sum itself; several leave partial sums, which `gram_sum` adds in a fixed order.
// Where channels fill 16 bytes, products load 16 bytes, otherwise one element at a time.
#include "conv2d.cuh"

struct Samples {
  const element* x;  // N × H × W × C
  Sizes g;           // of one filter
};
static_assert(sizeof(Samples) == 88, "as in src/ops/gram/gpu.rs");

struct Product {
  Samples a, b;
  float* to;          // splits × D_a × D_b
  int split;          // rows of each, a multiple of 16
  unsigned adds;      // 1: to what is there
  unsigned mirrored;  // 1: b is a
  unsigned padding;
};
static_assert(sizeof(Product) == 200, "as in src/ops/gram/gpu.rs");

struct Moments {
  Samples a;
  float* to;  // splits × 2 × D
  int split;  // rows of each
  unsigned adds;
};
static_assert(sizeof(Moments) == 104, "as in src/ops/gram/gpu.rs");

struct Sum {
  const float* partial;  // splits × count
  float* sum;            // count
  unsigned count, splits;
};
static_assert(sizeof(Sum) == 24, "as in src/ops/gram/gpu.rs");

constexpr unsigned SPAN = 64, DEPTH = 2 * PACK;
// The part of a tile that a thread computes.
constexpr unsigned THREAD_ROWS = 4, THREAD_COLUMNS = 8;
constexpr unsigned THREADS = (SPAN / THREAD_ROWS) * (SPAN / THREAD_COLUMNS);
// 16 bytes of a tile for each thread.
static_assert(SPAN * DEPTH == THREADS * PACK, "a tile of each matrix in one load");
// Four floats behind each row of a tile keep 16-byte accesses aligned.
constexpr unsigned PITCH = SPAN + 4, TILE = DEPTH * PITCH;
// Rows that are summed before they are added to others.
constexpr unsigned RUN = 256, THREAD_RUN = 32;
constexpr unsigned COLUMN_THREADS = 256, WARPS = COLUMN_THREADS / WARP;

DEVICE int columns_of(const Sizes& g) { return g.r * g.s * g.c; }
DEVICE int rows_of(const Sizes& g) { return g.n * g.p * g.q; }

// Whether row p of the matrix is pixel p.
DEVICE bool is_pixels(const Sizes& g) {
  return g.r == 1 && g.s == 1 && g.stride_h == 1 && g.stride_w == 1 && g.padding_h == 0 && g.padding_w == 0;
}

// The channels that `pixel` of the output sees through `tap`; null in the padding, and beyond the last tap.
DEVICE const element* seen(const Samples& m, const Pixel& pixel, const Tap& tap) {
  const Sizes& g = m.g;
  const int h = reach<false>(pixel.row, tap.r, g.stride_h, g.padding_h, g.dilation_h, g.h);
  const int w = reach<false>(pixel.column, tap.s, g.stride_w, g.padding_w, g.dilation_w, g.w);
  if (tap.r >= g.r || h < 0 || w < 0) return nullptr;
  return m.x + static_cast<offset>((pixel.image * g.h + h) * g.w + w) * g.c;
}

// ---- products -------------------------------------------------------------------------------------------------------

// What a thread loads of a matrix: neighbouring columns of one row in each step.
struct Place {
  int column, row, end;
  Tap tap;
};

DEVICE unsigned line() { return threadIdx.x / (SPAN / PACK); }
DEVICE unsigned place_in_line() { return threadIdx.x % (SPAN / PACK) * PACK; }

DEVICE Place start(const Samples& m, unsigned tile, int begin, int end) {
  Place place;
  place.column = static_cast<int>(tile * SPAN + place_in_line());
  place.row = begin + static_cast<int>(line());
  place.end = end;
  place.tap = tap_at(place.column, m.g.c, m.g);
  return place;
}

DEVICE Pack load(const Samples& m, const Place& place) {
  const Sizes& g = m.g;
  Pack pack;
#pragma unroll
  for (unsigned i = 0; i < PACK; ++i) pack.v[i] = 0;
  if (place.row >= place.end || place.column >= columns_of(g)) return pack;
  if (is_pixels(g)) {
    const element* from = m.x + static_cast<offset>(place.row) * g.c + place.column;
    if (g.packed & PACKED_X) return load_pack(from);
#pragma unroll
    for (int i = 0; i < static_cast<int>(PACK); ++i)
      if (place.column + i < g.c) pack.v[i] = to_float(from[i]);
    return pack;
  }
  const Pixel pixel = pixel_at(place.row, g.p, g.q);
  Tap tap = place.tap;
  const element* from = seen(m, pixel, tap);
  if (g.packed & PACKED_X) return from ? load_pack(from + tap.channel) : pack;
#pragma unroll
  for (unsigned i = 0; i < PACK; ++i) {
    if (from) pack.v[i] = to_float(from[tap.channel]);
    if (i + 1 == PACK) break;
    advance(tap, 1, g.c, g);
    if (tap.channel == 0) from = seen(m, pixel, tap);
  }
  return pack;
}

DEVICE void store(SharedArray<float> tile, const Pack& pack) {
#pragma unroll
  for (unsigned i = 0; i < PACK; i += 4)
    shared_store4(
        tile, line() * PITCH + place_in_line() + i,
        make_float4(pack.v[i], pack.v[i + 1], pack.v[i + 2], pack.v[i + 3]));
}

// This thread's part of the block's tile.
struct Part {
  float v[THREAD_ROWS][THREAD_COLUMNS];
};

DEVICE unsigned first_row() { return threadIdx.x / (SPAN / THREAD_COLUMNS) * THREAD_ROWS; }
DEVICE unsigned first_column() { return threadIdx.x % (SPAN / THREAD_COLUMNS) * THREAD_COLUMNS; }

DEVICE void clear(Part& part) {
#pragma unroll
  for (unsigned i = 0; i < THREAD_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < THREAD_COLUMNS; ++j) part.v[i][j] = 0;
}

DEVICE void add(Part& to, const Part& part) {
#pragma unroll
  for (unsigned i = 0; i < THREAD_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < THREAD_COLUMNS; ++j) to.v[i][j] += part.v[i][j];
}

DEVICE void multiply_tiles(Part& sums, SharedArray<float> a_tile, SharedArray<float> b_tile) {
#pragma unroll
  for (unsigned i = 0; i < DEPTH; ++i) {
    const float4 a = shared_load4(a_tile, i * PITCH + first_row());
    const float4 b = shared_load4(b_tile, i * PITCH + first_column());
    const float4 c = shared_load4(b_tile, i * PITCH + first_column() + 4);
    const float left[THREAD_ROWS] = {a.x, a.y, a.z, a.w};
    const float right[THREAD_COLUMNS] = {b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
    for (unsigned row = 0; row < THREAD_ROWS; ++row)
#pragma unroll
      for (unsigned column = 0; column < THREAD_COLUMNS; ++column) sums.v[row][column] += left[row] * right[column];
  }
}

// The sums over rows from `begin` to `end`. Each array holds two tiles: while one is multiplied the other is filled.
DEVICE Part sums_over_rows(
    const Product& p, int begin, int end, SharedArray<float> a_tiles, SharedArray<float> b_tiles) {
  Place a = start(p.a, blockIdx.x, begin, end), b = start(p.b, blockIdx.y, begin, end);
  Part runs, run;
  clear(runs);
  clear(run);
  store(a_tiles, load(p.a, a));
  store(b_tiles, load(p.b, b));
  __syncthreads();
  const unsigned steps = (static_cast<unsigned>(end - begin) + DEPTH - 1) / DEPTH;
  for (unsigned step = 0; step < steps; ++step) {
    const unsigned now = step % 2 * TILE, next = TILE - now;
    const bool more = step + 1 < steps;
    Pack of_a, of_b;
    if (more) {
      a.row += DEPTH;
      b.row += DEPTH;
      of_a = load(p.a, a);
      of_b = load(p.b, b);
    }
    multiply_tiles(run, a_tiles + now, b_tiles + now);
    if ((step + 1) % (RUN / DEPTH) == 0) {
      add(runs, run);
      clear(run);
    }
    if (more) {
      // The last reads of these tiles lie before the barrier of the step before.
      store(a_tiles + next, of_a);
      store(b_tiles + next, of_b);
      __syncthreads();
    }
  }
  add(runs, run);
  return runs;
}

KERNEL(gram_product, Product, THREADS) {
  SHARED(float, a_tiles, 2 * TILE);
  SHARED(float, b_tiles, 2 * TILE);
  if (p.mirrored && blockIdx.x > blockIdx.y) return;
  const int rows = rows_of(p.a.g), begin = static_cast<int>(blockIdx.z) * p.split;
  const int end = rows - begin < p.split ? rows : begin + p.split;
  const Part sums = sums_over_rows(p, begin, end, a_tiles, b_tiles);
  const int a_columns = columns_of(p.a.g), b_columns = columns_of(p.b.g);
  float* to = p.to + static_cast<offset>(blockIdx.z) * a_columns * b_columns;
  const bool is_twice = p.mirrored && blockIdx.x < blockIdx.y;
#pragma unroll
  for (unsigned i = 0; i < THREAD_ROWS; ++i) {
    const int row = static_cast<int>(blockIdx.x * SPAN + first_row() + i);
    if (row >= a_columns) break;
#pragma unroll
    for (unsigned j = 0; j < THREAD_COLUMNS; ++j) {
      const int column = static_cast<int>(blockIdx.y * SPAN + first_column() + j);
      if (column >= b_columns) break;
      const offset at = static_cast<offset>(row) * b_columns + column;
      to[at] = p.adds ? to[at] + sums.v[i][j] : sums.v[i][j];
      if (is_twice) {
        const offset mirror = static_cast<offset>(column) * b_columns + row;
        to[mirror] = p.adds ? to[mirror] + sums.v[i][j] : sums.v[i][j];
      }
    }
  }
}

// ---- moments --------------------------------------------------------------------------------------------------------

// The sum over the warps of `v`, lane by lane, in the threads of the first one. `scratch` holds COLUMN_THREADS floats.
DEVICE float sum_over_warps(float v, SharedArray<float> scratch) {
  scratch[threadIdx.x] = v;
  __syncthreads();
  float sum = 0;
  if (threadIdx.x < WARP)
    for (unsigned warp = 0; warp < WARPS; ++warp) sum += scratch[warp * WARP + threadIdx.x];
  __syncthreads();
  return sum;
}

KERNEL(gram_moments, Moments, COLUMN_THREADS) {
  SHARED(float, scratch, COLUMN_THREADS);
  const Sizes& g = p.a.g;
  const int columns = columns_of(g), column = static_cast<int>(blockIdx.x * WARP + threadIdx.x % WARP);
  const int rows = rows_of(g), begin = static_cast<int>(blockIdx.y) * p.split;
  const int end = rows - begin < p.split ? rows : begin + p.split;
  const Tap tap = tap_at(column, g.c, g);
  float first = 0, second = 0;
  if (column < columns) {
    int row = begin + static_cast<int>(threadIdx.x / WARP);
    while (row < end) {
      float of_run = 0, squares = 0;
      for (unsigned i = 0; i < THREAD_RUN && row < end; ++i, row += WARPS) {
        const element* from =
            is_pixels(g) ? p.a.x + static_cast<offset>(row) * g.c : seen(p.a, pixel_at(row, g.p, g.q), tap);
        const float v = from ? to_float(from[tap.channel]) : 0;
        of_run += v;
        squares += v * v;
      }
      first += of_run;
      second += squares;
    }
  }
  first = sum_over_warps(first, scratch);
  second = sum_over_warps(second, scratch);
  if (threadIdx.x >= WARP || column >= columns) return;
  float* to = p.to + static_cast<offset>(blockIdx.y) * 2 * columns + column;
  to[0] = p.adds ? to[0] + first : first;
  to[columns] = p.adds ? to[columns] + second : second;
}

// ---- the sums of the splits -----------------------------------------------------------------------------------------

// Added to what is there; a block for 32 numbers, whose splits its warps share. Grid: count / 32.
KERNEL(gram_sum, Sum, COLUMN_THREADS) {
  SHARED(float, scratch, COLUMN_THREADS);
  const unsigned i = blockIdx.x * WARP + threadIdx.x % WARP;
  float sum = 0;
  if (i < p.count)
    for (unsigned split = threadIdx.x / WARP; split < p.splits; split += WARPS)
      sum += p.partial[static_cast<offset>(split) * p.count + i];
  sum = sum_over_warps(sum, scratch);
  if (threadIdx.x < WARP && i < p.count) p.sum[i] += sum;
}
