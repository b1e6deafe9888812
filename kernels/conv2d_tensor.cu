// Convolution on tensor cores: fprop, dgrad and wgrad for activations in bf16 or f16, without groups.
//
//   pass    rows        columns   summed over
//   fprop   N·P·Q       K         R·S·C
//   dgrad   N·H·W       C         R·S·K
//   wgrad   K           R·S·C     N·P·Q, in stretches: each block sums one, a second launch adds them in their order
//
// The implicit matrix products of conv2d.cu, whose header states the formulas; here channels and filters come in eights, so
// that 16 bytes always belong to one tap. A block computes 64 rows × 64 columns with 128 threads, a warp 32 × 32 of them, in
// steps of 32 summands. Tiles are copied asynchronously, three steps deep, and swizzled: the eight rows of every matrix that
// is loaded lie in different banks. Sums are f32.
//
// Grid: tiles of rows, tiles of columns, stretches (1 but for wgrad).
#include "conv2d.cuh"
#include "tensor.cuh"

constexpr unsigned THREADS = 128;
constexpr unsigned SPAN = 64, DEPTH = 32, STAGES = 3;
// Elements of a tile, and packs of it that each thread copies.
constexpr unsigned TILE = SPAN * DEPTH;
constexpr unsigned SHARE = TILE / PACK / THREADS;
// What a warp computes of the block's tile, in 16 × 8 pieces.
constexpr unsigned WARP_SPAN = 32, PIECE_ROWS = WARP_SPAN / 16, PIECE_COLUMNS = WARP_SPAN / 8;

struct Product {
  const element* from;  // fprop: x, dgrad and wgrad: dy
  const element* by;    // fprop and dgrad: w, wgrad: x
  void* to;             // fprop: y, dgrad: dx (element); wgrad: stretches × K × R·S·C (float), rows of `to_pitch`
  Sizes g;
  int stretch;          // pixels of each stretch, a multiple of 32
  int to_pitch;
};
static_assert(sizeof(Product) == 112, "as in src/ops/conv2d/gpu.rs");

// ---- tiles -----------------------------------------------------------------------------------------------------------

// A tile whose lines are its rows (or columns), 32 summands each: ALONG; or its summands, 64 rows each. Packs of a line
// change places with the line, so that eight neighbouring lines, or every second of sixteen, do not meet in a bank.
template <bool ALONG>
DEVICE unsigned place_of(unsigned line, unsigned pack) {
  return ALONG ? line * DEPTH + (pack ^ (line / 2 % 4)) * PACK : line * SPAN + (pack ^ (line % 8)) * PACK;
}

// This thread's i-th pack of a tile: its line, and its place there.
template <bool ALONG>
DEVICE unsigned line_of(unsigned i) {
  return (threadIdx.x + i * THREADS) / (ALONG ? DEPTH / PACK : SPAN / PACK);
}
template <bool ALONG>
DEVICE unsigned pack_of() {
  return threadIdx.x % (ALONG ? DEPTH / PACK : SPAN / PACK);
}

// ---- where packs come from: each source says for its i-th pack of the next step where it lies, or null for zeros -----

// The patches of x that fprop sums, a line per output pixel, or those of dy that dgrad sums, a line per input pixel.
template <bool BACKWARD>
struct Patches {
  static constexpr bool ALONG = true;
  const element* from;
  Pixel pixel[SHARE];  // image < 0 beyond the last one
  Tap tap;

  DEVICE int channels(const Sizes& g) { return BACKWARD ? g.k : g.c; }

  DEVICE Patches start(const Product& p) {
    const Sizes& g = p.g;
    Patches self;
    self.from = p.from;
    for (unsigned i = 0; i < SHARE; ++i) {
      const int row = static_cast<int>(blockIdx.x * SPAN + line_of<ALONG>(i));
      self.pixel[i] = BACKWARD ? pixel_at(row, g.h, g.w) : pixel_at(row, g.p, g.q);
      if (self.pixel[i].image >= g.n) self.pixel[i].image = -1;
    }
    self.tap = tap_at(static_cast<int>(pack_of<ALONG>() * PACK), channels(g), g);
    return self;
  }

  DEVICE const element* at(const Patches& self, const Product& p, unsigned i) {
    const Sizes& g = p.g;
    const Pixel& pixel = self.pixel[i];
    const int height = BACKWARD ? g.p : g.h, width = BACKWARD ? g.q : g.w;
    const int h = reach<BACKWARD>(pixel.row, self.tap.r, g.stride_h, g.padding_h, g.dilation_h, height);
    const int w = reach<BACKWARD>(pixel.column, self.tap.s, g.stride_w, g.padding_w, g.dilation_w, width);
    if (pixel.image < 0 || self.tap.r >= g.r || h < 0 || w < 0) return nullptr;
    return self.from + static_cast<offset>((pixel.image * height + h) * width + w) * channels(g) + self.tap.channel;
  }

  DEVICE void step(Patches& self, const Product& p) { advance(self.tap, DEPTH, channels(p.g), p.g); }
};

// Filters, a line each: fprop's columns.
struct Filters {
  static constexpr bool ALONG = true;
  int depth;

  DEVICE Filters start(const Product&) { return Filters{static_cast<int>(pack_of<ALONG>() * PACK)}; }

  DEVICE const element* at(const Filters& self, const Product& p, unsigned i) {
    const int filter = static_cast<int>(blockIdx.y * SPAN + line_of<ALONG>(i));
    if (filter >= p.g.k || self.depth >= p.g.r * p.g.s * p.g.c) return nullptr;
    return p.by + static_cast<offset>(filter) * p.g.pitch + self.depth;
  }

  DEVICE void step(Filters& self, const Product&) { self.depth += DEPTH; }
};

// Filters turned, a line for each tap and filter: dgrad's columns are channels.
struct TurnedFilters {
  static constexpr bool ALONG = false;
  Tap tap[SHARE];  // `channel` counts filters

  DEVICE TurnedFilters start(const Product& p) {
    TurnedFilters self;
    for (unsigned i = 0; i < SHARE; ++i) self.tap[i] = tap_at(static_cast<int>(line_of<ALONG>(i)), p.g.k, p.g);
    return self;
  }

  DEVICE const element* at(const TurnedFilters& self, const Product& p, unsigned i) {
    const Tap& tap = self.tap[i];
    const int channel = static_cast<int>(blockIdx.y * SPAN + pack_of<ALONG>() * PACK);
    if (tap.r >= p.g.r || channel >= p.g.c) return nullptr;
    return p.by + static_cast<offset>(tap.channel) * p.g.pitch + (tap.r * p.g.s + tap.s) * p.g.c + channel;
  }

  DEVICE void step(TurnedFilters& self, const Product& p) {
    for (unsigned i = 0; i < SHARE; ++i) advance(self.tap[i], DEPTH, p.g.k, p.g);
  }
};

// The output pixels of this block's stretch: wgrad's summands.
DEVICE int stretch_begin(const Product& p) { return static_cast<int>(blockIdx.z) * p.stretch; }
DEVICE int stretch_end(const Product& p) {
  const int pixels = p.g.n * p.g.p * p.g.q, begin = stretch_begin(p);
  return pixels - begin < p.stretch ? pixels : begin + p.stretch;
}

// dy, a line per output pixel: wgrad's rows are filters.
struct Outputs {
  static constexpr bool ALONG = false;
  int pixel;

  DEVICE Outputs start(const Product& p) { return Outputs{stretch_begin(p)}; }

  DEVICE const element* at(const Outputs& self, const Product& p, unsigned i) {
    const int pixel = self.pixel + static_cast<int>(line_of<ALONG>(i));
    const int filter = static_cast<int>(blockIdx.x * SPAN + pack_of<ALONG>() * PACK);
    if (pixel >= stretch_end(p) || filter >= p.g.k) return nullptr;
    return p.from + static_cast<offset>(pixel) * p.g.k + filter;
  }

  DEVICE void step(Outputs& self, const Product&) { self.pixel += DEPTH; }
};

// The patches of x, a line per output pixel: wgrad's columns are a filter's weights.
struct TurnedPatches {
  static constexpr bool ALONG = false;
  Tap tap;
  int pixel;

  DEVICE TurnedPatches start(const Product& p) {
    const int weight = static_cast<int>(blockIdx.y * SPAN + pack_of<ALONG>() * PACK);
    return TurnedPatches{tap_at(weight, p.g.c, p.g), stretch_begin(p)};
  }

  DEVICE const element* at(const TurnedPatches& self, const Product& p, unsigned i) {
    const Sizes& g = p.g;
    const int number = self.pixel + static_cast<int>(line_of<ALONG>(i));
    if (number >= stretch_end(p) || self.tap.r >= g.r) return nullptr;
    const Pixel pixel = pixel_at(number, g.p, g.q);
    const int h = reach<false>(pixel.row, self.tap.r, g.stride_h, g.padding_h, g.dilation_h, g.h);
    const int w = reach<false>(pixel.column, self.tap.s, g.stride_w, g.padding_w, g.dilation_w, g.w);
    if (h < 0 || w < 0) return nullptr;
    return p.by + static_cast<offset>((pixel.image * g.h + h) * g.w + w) * g.c + self.tap.channel;
  }

  DEVICE void step(TurnedPatches& self, const Product&) { self.pixel += DEPTH; }
};

// ---- the product -----------------------------------------------------------------------------------------------------

// Asks for the next step's tile.
template <class Source>
DEVICE void copy_tile(Source& source, const Product& p, SharedArray<element> tile) {
#pragma unroll
  for (unsigned i = 0; i < SHARE; ++i) {
    const element* from = Source::at(source, p, i);
    const unsigned place = place_of<Source::ALONG>(line_of<Source::ALONG>(i), pack_of<Source::ALONG>());
    copy_async(tile, place, from != nullptr ? from : p.from, from != nullptr);
  }
  Source::step(source, p);
}

// Four 8 × 8 matrices of 16 rows (or columns) × 16 summands that begin at (`span`, `depth`). ROWS_FIRST: the two halves of
// the rows before those of the summands, as A wants them; otherwise the summands' first, as B does.
template <bool ALONG, bool ROWS_FIRST>
DEVICE void load_piece(unsigned (&r)[4], SharedArray<element> tile, unsigned span, unsigned depth) {
  const unsigned lane = threadIdx.x % WARP, matrix = lane / 8;
  const unsigned of_rows = ROWS_FIRST ? matrix % 2 : matrix / 2, of_depth = ROWS_FIRST ? matrix / 2 : matrix % 2;
  const unsigned line = ALONG ? span + of_rows * 8 + lane % 8 : depth + of_depth * 8 + lane % 8;
  const unsigned pack = ALONG ? depth / 8 + of_depth : span / 8 + of_rows;
  load_matrices<!ALONG>(r, tile, place_of<ALONG>(line, pack));
}

struct Sums {
  float v[PIECE_ROWS][PIECE_COLUMNS][4];
};

DEVICE unsigned warp_row() { return threadIdx.x / WARP / 2 * WARP_SPAN; }
DEVICE unsigned warp_column() { return threadIdx.x / WARP % 2 * WARP_SPAN; }

template <bool ROWS_ALONG, bool COLUMNS_ALONG>
DEVICE void multiply_tiles(Sums& sums, SharedArray<element> rows, SharedArray<element> columns) {
#pragma unroll
  for (unsigned depth = 0; depth < DEPTH; depth += 16) {
    unsigned a[PIECE_ROWS][4], b[PIECE_COLUMNS / 2][4];
#pragma unroll
    for (unsigned i = 0; i < PIECE_ROWS; ++i) load_piece<ROWS_ALONG, true>(a[i], rows, warp_row() + i * 16, depth);
#pragma unroll
    for (unsigned j = 0; j < PIECE_COLUMNS / 2; ++j)
      load_piece<COLUMNS_ALONG, false>(b[j], columns, warp_column() + j * 16, depth);
#pragma unroll
    for (unsigned i = 0; i < PIECE_ROWS; ++i)
#pragma unroll
      for (unsigned j = 0; j < PIECE_COLUMNS; ++j) {
        const Fragments f = {{a[i][0], a[i][1], a[i][2], a[i][3]}, {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]}};
        mma_16816(sums.v[i][j], f);
      }
  }
}

template <class Rows, class Columns>
DEVICE Sums multiply(const Product& p, int depth, SharedArray<element> row_tiles, SharedArray<element> column_tiles) {
  Rows rows = Rows::start(p);
  Columns columns = Columns::start(p);
  Sums sums;
#pragma unroll
  for (unsigned i = 0; i < PIECE_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < PIECE_COLUMNS; ++j)
#pragma unroll
      for (unsigned l = 0; l < 4; ++l) sums.v[i][j][l] = 0;

  const int steps = (depth + static_cast<int>(DEPTH) - 1) / static_cast<int>(DEPTH);
  for (int step = 0; step < static_cast<int>(STAGES) - 1; ++step) {
    if (step < steps) {
      copy_tile(rows, p, row_tiles + step * TILE);
      copy_tile(columns, p, column_tiles + step * TILE);
    }
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    // This step's tiles are here, and everybody is done with those of the step before, which are filled next.
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    const int next = step + static_cast<int>(STAGES) - 1;
    if (next < steps) {
      copy_tile(rows, p, row_tiles + next % STAGES * TILE);
      copy_tile(columns, p, column_tiles + next % STAGES * TILE);
    }
    commit_copies();
    multiply_tiles<Rows::ALONG, Columns::ALONG>(sums, row_tiles + step % STAGES * TILE, column_tiles + step % STAGES * TILE);
  }
  return sums;
}

// Calls f(row, column, first, second) for this thread's pairs of neighbouring columns.
template <class F>
DEVICE void for_each_pair(const Sums& sums, F f) {
  const unsigned lane = threadIdx.x % WARP;
#pragma unroll
  for (unsigned i = 0; i < PIECE_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < PIECE_COLUMNS; ++j)
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned row = blockIdx.x * SPAN + warp_row() + i * 16 + half * 8 + lane / 4;
        const unsigned column = blockIdx.y * SPAN + warp_column() + j * 8 + lane % 4 * 2;
        f(static_cast<int>(row), static_cast<int>(column), sums.v[i][j][half * 2], sums.v[i][j][half * 2 + 1]);
      }
}

// Stores sums as activations, rows × columns.
DEVICE void store_activations(const Product& p, const Sums& sums, int rows, int columns) {
  element* to = static_cast<element*>(p.to);
  for_each_pair(sums, [&](int row, int column, float first, float second) {
    if (row >= rows) return;
    element* pair = to + static_cast<offset>(row) * columns + column;
    if (column < columns) pair[0] = from_float(first);
    if (column + 1 < columns) pair[1] = from_float(second);
  });
}

KERNEL(conv2d_tensor_fprop, Product, THREADS) {
  SHARED(element, rows, STAGES * TILE);
  SHARED(element, columns, STAGES * TILE);
  const Sums sums = multiply<Patches<false>, Filters>(p, p.g.r * p.g.s * p.g.c, rows, columns);
  store_activations(p, sums, p.g.n * p.g.p * p.g.q, p.g.k);
}

KERNEL(conv2d_tensor_dgrad, Product, THREADS) {
  SHARED(element, rows, STAGES * TILE);
  SHARED(element, columns, STAGES * TILE);
  const Sums sums = multiply<Patches<true>, TurnedFilters>(p, p.g.r * p.g.s * p.g.k, rows, columns);
  store_activations(p, sums, p.g.n * p.g.h * p.g.w, p.g.c);
}

KERNEL(conv2d_tensor_wgrad, Product, THREADS) {
  SHARED(element, rows, STAGES * TILE);
  SHARED(element, columns, STAGES * TILE);
  const Sums sums = multiply<Outputs, TurnedPatches>(p, stretch_end(p) - stretch_begin(p), rows, columns);
  const int weights = p.g.r * p.g.s * p.g.c;
  float* to = static_cast<float*>(p.to) + static_cast<offset>(blockIdx.z) * p.g.k * p.to_pitch;
  for_each_pair(sums, [&](int row, int column, float first, float second) {
    if (row >= p.g.k) return;
    float* pair = to + static_cast<offset>(row) * p.to_pitch + column;
    if (column < weights) pair[0] = first;
    if (column + 1 < weights) pair[1] = second;
  });
}
