// Convolution on tensor cores: the product of tiles, where its operands lie, and how its results are handed out.
//
// A block computes ROWS × COLUMNS of the GEMM's M × N sums, a warp WARP_ROWS × WARP_COLUMNS of them, in steps of 64 bytes of K: 32
// summands of 16 bits, 16 of tf32. Tiles are copied asynchronously, three steps deep, into shared memory, where packs of 16 bytes change places so that
// what is loaded together lies in different banks. tf32 is rounded to nearest as it is loaded. Sums are f32, and each is
// added in one order whatever the tile, so that the choice of a tile changes no bit of a result that is not by
// split-K.
//
//   mainloop<Tile, Rows, Columns>(p, depth, …)   the sums of this thread over `depth` summands: K, or its split
//   for_each_eight<Tile>(sums, f)                f(row, column, v): v[8] are the sums in columns column..column + 7 of `row`,
//                                                counted from the tile's corner, column a multiple of 8. Each sum is handed
//                                                to one thread. Everybody calls it: it exchanges numbers within a warp.
//
// for_each_of_y, …_of_dx and …_of_dw say where in the result they belong. An epilogue is what a kernel does in f, or with the
// sums themselves before or after: for the batch norm behind fprop or before dgrad it adds up columns, over the thread's
// rows, over the lanes with the same columns, and over the warps above each other. To use the tiles' memory for that,
// call `finish_copies` first.
#pragma once

#include "batch_norm.cuh"
#include "conv2d.cuh"
#include "tensor.cuh"

constexpr unsigned STAGES = 3;
constexpr unsigned LINE_PACKS = 4;              // packs of a step
constexpr unsigned DEPTH = LINE_PACKS * PACK;   // summands of a step
constexpr unsigned PIECE_DEPTH = 2 * PACK;      // summands of the instructions between two loads
constexpr bool TF32 = sizeof(element) == 4;

template <unsigned ROWS_, unsigned COLUMNS_, unsigned WARP_ROWS_, unsigned WARP_COLUMNS_ = 32>
struct Tile {
  static constexpr unsigned ROWS = ROWS_, COLUMNS = COLUMNS_, WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
  static constexpr unsigned WARPS_DOWN = ROWS / WARP_ROWS, WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
  static constexpr unsigned THREADS = WARPS_DOWN * WARPS_ACROSS * WARP;
  // Rows and columns of pieces, 16 × 8 each, that a warp computes; four side by side, a group, are handed out together.
  static constexpr unsigned PIECE_ROWS = WARP_ROWS / 16, PIECE_COLUMNS = WARP_COLUMNS / 8, GROUPS = WARP_COLUMNS / 32;
  static constexpr unsigned ROW_ELEMENTS = ROWS * DEPTH, COLUMN_ELEMENTS = COLUMNS * DEPTH;  // of a stage
  // Where a warp's rows begin, and how far its rows of pieces lie from each other.
  static constexpr unsigned PIECE_STEP = 16;
  DEVICE unsigned row_of_warp(unsigned warp) { return warp / WARPS_ACROSS * WARP_ROWS; }
};

// As in src/ops/conv2d/tiles.rs.
using Tile128x256 = Tile<128, 256, 64, 64>;
using Tile128x128 = Tile<128, 128, 64>;
using Tile128x64 = Tile<128, 64, 64>;
using Tile64x64 = Tile<64, 64, 32>;
using Tile128x32 = Tile<128, 32, 32>;

// n / divisor for n below 2³¹ is n·multiplier / 2^shift: the host knows what is divided by (src/ops/conv2d/divider.rs), and a division takes
// as long as ten such products.
struct Divider { unsigned divisor, multiplier, shift; };

DEVICE int divide(int n, const Divider& by) {
  return static_cast<int>(static_cast<unsigned long long>(static_cast<unsigned>(n)) * by.multiplier >> by.shift);
}

struct Product {
  const element* from;  // fprop: x, dgrad and wgrad: dy
  const element* by;    // fprop and dgrad: w, wgrad: x
  void* to;             // fprop: y, dgrad: dx (element); wgrad: splits × K × R·S·C (float), rows of `to_pitch`
  Sizes g;
  int split;          // pixels of each split of wgrad, a multiple of DEPTH
  int to_pitch;
  int tiles_down;          // tiles of rows
  Divider by_tiles;        // tiles of columns
  Divider by_rows;         // fprop and wgrad: rows and columns of an image of y
  Divider by_columns;
  Divider by_channels;     // of what is read through taps: fprop and wgrad C, dgrad K
  Divider by_taps;         // fprop and wgrad: S
};
static_assert(sizeof(Product) == 176, "as in src/ops/conv2d/tensor.rs");

// This block's tile. Tiles of one row stand side by side in the grid, so that the lines of x (or dy) that they share are read from memory once,
// and then from the cache.
DEVICE unsigned tile_down(const Product& p) { return static_cast<unsigned>(divide(static_cast<int>(blockIdx.x), p.by_tiles)); }
DEVICE unsigned tile_across(const Product& p) { return blockIdx.x - tile_down(p) * p.by_tiles.divisor; }

// A tile of the result: how many tiles of rows are above it, and how many of columns beside it.
struct Corner { unsigned down, across; };
DEVICE Corner corner_of_block(const Product& p) { return {tile_down(p), tile_across(p)}; }

// ---- tiles in shared memory ------------------------------------------------------------------------------------------

// SPAN rows (or columns) of a tile. A line of it is one of them with its DEPTH summands (ALONG), or a summand with all SPAN.
template <bool ALONG_, unsigned SPAN_, unsigned THREADS_>
struct Side {
  static constexpr bool ALONG = ALONG_;
  static constexpr unsigned SPAN = SPAN_, THREADS = THREADS_;
  static constexpr unsigned PACKS = ALONG ? LINE_PACKS : SPAN / PACK;  // of a line
  static constexpr unsigned SHARE = SPAN * LINE_PACKS / THREADS;       // packs that each thread copies
  static_assert(THREADS % PACKS == 0 && SPAN * LINE_PACKS % THREADS == 0, "a thread copies one column of packs");

  // This thread's packs: the line of the i-th, and its number in the line.
  DEVICE unsigned line(unsigned i) { return (threadIdx.x + i * THREADS) / PACKS; }
  DEVICE unsigned pack() { return threadIdx.x % PACKS; }

  // Where a pack lies. Loaded together are: the same pack of eight lines, by ldmatrix; or, in tf32 across lines, two packs
  // of four lines.
  DEVICE unsigned place(unsigned line, unsigned pack) {
    const unsigned turn = !ALONG && TF32 ? line % 4 * 2 : PACKS == 4 ? line / 2 % 4 : line % 8;
    return (line * PACKS + (pack ^ turn)) * PACK;
  }
};

// ---- where packs come from: each source says for its i-th pack of a step where it lies, or null for zeros ------------------
//
// Operands have fewer than 2³¹ elements here, so that one register counts them.

// How pixels of the output read the input: pixel (row, column) reads (from_h + row·stride_h + r·step_h, …) through tap (r, s).
struct Walk {
  int rows, columns;  // pixels of an image
  int from_h, from_w, stride_h, stride_w, step_h, step_w;
  int taps_h, taps_w;           // taps_w is not 0
  int height, width, channels;  // of what is read
  Divider by_rows, by_columns, by_channels, by_taps;
};

DEVICE Walk forward_walk(const Product& p) {
  const Sizes& g = p.g;
  return Walk{g.p, g.q, -g.padding_h, -g.padding_w, g.stride_h, g.stride_w, g.dilation_h, g.dilation_w,
              g.r, g.s, g.h, g.w, g.c, p.by_rows, p.by_columns, p.by_channels, p.by_taps};
}

// dgrad with a stride: the input rows h = residue + stride·i read output rows through every `tap_step`-th tap alone, from
// `first_tap` on, and tap first_tap + j·tap_step reads row from + i + j·step. Likewise columns.
struct Residue {
  int residue;
  int count;  // rows of this residue
  int first_tap, tap_step, taps;
  int from, step;
  Divider by_count, by_taps;  // by 1 where there are none
};
static_assert(sizeof(Residue) == 52, "as in src/ops/conv2d/tensor.rs");

constexpr unsigned MOST_RESIDUES = 4;

// dgrad's product: one for each block of the grid's last dimension.
struct BackwardProduct {
  Product product;
  Residue h[MOST_RESIDUES], w[MOST_RESIDUES];
  unsigned adds;  // 1: to what is there
  unsigned padding;
};
static_assert(sizeof(BackwardProduct) == 600, "as in src/ops/conv2d/tensor.rs");

struct Residues { const Residue &h, &w; };

// The `number`-th pair of residues.
DEVICE Residues residues(const BackwardProduct& p, unsigned number) {
  unsigned h = 0, w = number;
  for (const unsigned across = p.product.g.stride_w; w >= across; w -= across) ++h;
  return {p.h[h], p.w[w]};
}

DEVICE Walk backward_walk(const Product& p, const Residues& of) {
  const Residue &h = of.h, &w = of.w;
  const bool is_read = h.taps > 0 && w.taps > 0;
  return Walk{h.count, w.count, h.from, w.from, 1, 1, h.step, w.step, is_read ? h.taps : 0, is_read ? w.taps : 1,
              p.g.p, p.g.q, p.g.k, h.by_count, w.by_count, p.by_channels, w.by_taps};
}

DEVICE void advance(Tap& tap, int channels, int taps_w) {
  tap.channel += DEPTH;
  while (tap.channel >= channels) {
    tap.channel -= channels;
    if (++tap.s == taps_w) {
      tap.s = 0;
      ++tap.r;
    }
  }
}

DEVICE Tap tap_at(int i, const Walk& walk) {
  const int tap = divide(i, walk.by_channels), r = divide(tap, walk.by_taps);
  return Tap{r, tap - r * walk.taps_w, i - tap * walk.channels};
}

DEVICE Pixel pixel_at(int i, const Divider& by_rows, const Divider& by_columns) {
  const int line = divide(i, by_columns), image = divide(line, by_rows);
  return Pixel{image, line - image * static_cast<int>(by_rows.divisor), i - line * static_cast<int>(by_columns.divisor)};
}

// A row or column that nothing reads.
constexpr int NOWHERE = -(1 << 30);

DEVICE bool is_inside(int i, int size) { return static_cast<unsigned>(i) < static_cast<unsigned>(size); }

// The patches of x that fprop sums, a line per output pixel, or those of dy that dgrad sums, a line per input pixel. UNIT
// elements are of one tap: fewer than a pack where an activation has 4 channels of 16 bits.
template <class Side_, unsigned UNIT_>
struct Im2col {
  using Side = Side_;
  static constexpr unsigned UNIT = UNIT_, PARTS = PACK / UNIT;
  int origin[Side::SHARE];              // where lies what the line's pixel reads through tap (0, 0), maybe outside
  int h[Side::SHARE], w[Side::SHARE];   // its row and column
  Tap tap[PARTS];
  Walk walk;

  DEVICE Im2col start(const Product& p, const Walk& walk) {
    Im2col self;
    self.walk = walk;
    for (unsigned i = 0; i < Side::SHARE; ++i) {
      const int row = static_cast<int>(tile_down(p) * Side::SPAN + Side::line(i));
      const Pixel pixel = pixel_at(row, walk.by_rows, walk.by_columns);
      const int h = pixel.row * walk.stride_h + walk.from_h, w = pixel.column * walk.stride_w + walk.from_w;
      self.h[i] = pixel.image < p.g.n ? h : NOWHERE;
      self.w[i] = w;
      self.origin[i] = ((pixel.image * walk.height + h) * walk.width + w) * walk.channels;
    }
    for (unsigned part = 0; part < PARTS; ++part)
      self.tap[part] = tap_at(static_cast<int>(Side::pack() * PACK + part * UNIT), walk);
    return self;
  }

  DEVICE const element* at(const Im2col& self, const Product& p, unsigned i, unsigned part) {
    const Walk& walk = self.walk;
    const Tap& tap = self.tap[part];
    const int down = tap.r * walk.step_h, right = tap.s * walk.step_w;
    const bool inside = is_inside(self.h[i] + down, walk.height) && is_inside(self.w[i] + right, walk.width);
    if (!inside || tap.r >= walk.taps_h) return nullptr;
    return p.from + (self.origin[i] + (down * walk.width + right) * walk.channels + tap.channel);
  }

  DEVICE void step(Im2col& self, const Product&) {
    for (unsigned part = 0; part < PARTS; ++part) advance(self.tap[part], self.walk.channels, self.walk.taps_w);
  }
};

// Filters, a line each: fprop's columns.
template <class Side_>
struct Filters {
  using Side = Side_;
  static constexpr unsigned UNIT = PACK;
  int depth;

  DEVICE Filters start(const Product&, const Walk&) { return Filters{static_cast<int>(Side::pack() * PACK)}; }

  DEVICE const element* at(const Filters& self, const Product& p, unsigned i, unsigned) {
    const int filter = static_cast<int>(tile_across(p) * Side::SPAN + Side::line(i));
    if (filter >= p.g.k || self.depth >= p.g.r * p.g.s * p.g.c) return nullptr;
    return p.by + (filter * p.g.pitch + self.depth);
  }

  DEVICE void step(Filters& self, const Product&) { self.depth += DEPTH; }
};

// Filters turned, a line for each tap and filter: dgrad's columns are channels.
template <class Side_>
struct TransposedFilters {
  using Side = Side_;
  static constexpr unsigned UNIT = PACK;
  Tap tap[Side::SHARE];        // of those that this residue reads; `channel` counts filters
  int first;                   // where this thread's channels lie in the first filter, or NOWHERE beyond the last one
  int step_h, step_w;          // elements from tap to tap
  int taps_h, taps_w;

  DEVICE TransposedFilters start(const Product& p, const Walk& walk, const Residues& of) {
    const Residue &h = of.h, &w = of.w;
    const int channel = static_cast<int>(tile_across(p) * Side::SPAN + Side::pack() * PACK);
    TransposedFilters self;
    self.first = channel < p.g.c ? (h.first_tap * p.g.s + w.first_tap) * p.g.c + channel : NOWHERE;
    self.step_h = h.tap_step * p.g.s * p.g.c;
    self.step_w = w.tap_step * p.g.c;
    self.taps_h = walk.taps_h;
    self.taps_w = walk.taps_w;
    for (unsigned i = 0; i < Side::SHARE; ++i)
      self.tap[i] = tap_at(static_cast<int>(Side::line(i)), walk);
    return self;
  }

  DEVICE const element* at(const TransposedFilters& self, const Product& p, unsigned i, unsigned) {
    const Tap& tap = self.tap[i];
    if (tap.r >= self.taps_h || self.first == NOWHERE) return nullptr;
    return p.by + (self.first + tap.channel * p.g.pitch + tap.r * self.step_h + tap.s * self.step_w);
  }

  DEVICE void step(TransposedFilters& self, const Product& p) {
    for (unsigned i = 0; i < Side::SHARE; ++i) advance(self.tap[i], p.g.k, self.taps_w);
  }
};

// The output pixels of this block's split: wgrad's summands.
DEVICE int split_begin(const Product& p) { return static_cast<int>(blockIdx.z) * p.split; }
DEVICE int split_end(const Product& p) {
  const int pixels = p.g.n * p.g.p * p.g.q, begin = split_begin(p);
  return pixels - begin < p.split ? pixels : begin + p.split;
}

// dy, a line per output pixel: wgrad's rows are filters.
template <class Side_>
struct Outputs {
  using Side = Side_;
  static constexpr unsigned UNIT = PACK;
  int pixel, filter;

  DEVICE Outputs start(const Product& p, const Walk&) {
    return Outputs{split_begin(p), static_cast<int>(tile_down(p) * Side::SPAN + Side::pack() * PACK)};
  }

  DEVICE const element* at(const Outputs& self, const Product& p, unsigned i, unsigned) {
    const int pixel = self.pixel + static_cast<int>(Side::line(i));
    if (pixel >= split_end(p) || self.filter >= p.g.k) return nullptr;
    return p.from + (pixel * p.g.k + self.filter);
  }

  DEVICE void step(Outputs& self, const Product&) { self.pixel += DEPTH; }
};

// The patches of x, a line per output pixel: wgrad's columns are a filter's weights.
template <class Side_, unsigned UNIT_>
struct TransposedIm2col {
  using Side = Side_;
  static constexpr unsigned UNIT = UNIT_, PARTS = PACK / UNIT;
  Tap tap[PARTS];
  Pixel pixel[Side::SHARE];
  Pixel jump;  // of DEPTH pixels
  int left;    // pixels of the split from this step on

  DEVICE TransposedIm2col start(const Product& p, const Walk& walk) {
    TransposedIm2col self;
    for (unsigned part = 0; part < PARTS; ++part) {
      const unsigned weight = tile_across(p) * Side::SPAN + Side::pack() * PACK + part * UNIT;
      self.tap[part] = tap_at(static_cast<int>(weight), walk);
    }
    for (unsigned i = 0; i < Side::SHARE; ++i)
      self.pixel[i] = pixel_at(split_begin(p) + static_cast<int>(Side::line(i)), walk.by_rows, walk.by_columns);
    self.jump = pixel_at(DEPTH, walk.by_rows, walk.by_columns);
    self.left = split_end(p) - split_begin(p);
    return self;
  }

  DEVICE const element* at(const TransposedIm2col& self, const Product& p, unsigned i, unsigned part) {
    const Sizes& g = p.g;
    const Tap& tap = self.tap[part];
    const Pixel& pixel = self.pixel[i];
    const int h = pixel.row * g.stride_h - g.padding_h + tap.r * g.dilation_h;
    const int w = pixel.column * g.stride_w - g.padding_w + tap.s * g.dilation_w;
    const bool inside = is_inside(h, g.h) && is_inside(w, g.w);
    if (!inside || tap.r >= g.r || static_cast<int>(Side::line(i)) >= self.left) return nullptr;
    return p.by + (((pixel.image * g.h + h) * g.w + w) * g.c + tap.channel);
  }

  DEVICE void step(TransposedIm2col& self, const Product& p) {
    self.left -= DEPTH;
    for (unsigned i = 0; i < Side::SHARE; ++i) {
      Pixel& pixel = self.pixel[i];
      pixel.column += self.jump.column;
      pixel.row += self.jump.row;
      pixel.image += self.jump.image;
      if (pixel.column >= p.g.q) {
        pixel.column -= p.g.q;
        ++pixel.row;
      }
      if (pixel.row >= p.g.p) {
        pixel.row -= p.g.p;
        ++pixel.image;
      }
    }
  }
};

// ---- the product -----------------------------------------------------------------------------------------------------

// Asks for the next step's tile.
template <class Source>
DEVICE void copy_tile(Source& source, const Product& p, SharedArray<element> tile) {
  using Side = typename Source::Side;
#pragma unroll
  for (unsigned i = 0; i < Side::SHARE; ++i) {
    const unsigned place = Side::place(Side::line(i), Side::pack());
#pragma unroll
    for (unsigned part = 0; part < PACK / Source::UNIT; ++part) {
      const element* from = Source::at(source, p, i, part);
      copy_async<Source::UNIT * sizeof(element)>(tile, place + part * Source::UNIT, from != nullptr ? from : p.from,
                                                 from != nullptr);
    }
  }
  Source::step(source, p);
}

// Which of its four 8 × 8 matrices a piece of 16 rows (or columns) × PIECE_DEPTH summands has where. ROWS_FIRST: the two
// halves of the rows before those of the summands, as A wants them; otherwise the summands' first, as B does.
template <bool ROWS_FIRST>
DEVICE unsigned half_of_rows(unsigned matrix) { return ROWS_FIRST ? matrix % 2 : matrix / 2; }
template <bool ROWS_FIRST>
DEVICE unsigned half_of_depth(unsigned matrix) { return ROWS_FIRST ? matrix / 2 : matrix % 2; }

// The place of the 16 bytes that a lane points ldmatrix to, for a piece that begins at (`span`, `depth`).
template <class Side, bool ROWS_FIRST>
DEVICE unsigned place_of_line(unsigned lane, unsigned span, unsigned depth) {
  const unsigned of_rows = half_of_rows<ROWS_FIRST>(lane / 8), of_depth = half_of_depth<ROWS_FIRST>(lane / 8);
  const unsigned line = Side::ALONG ? span + of_rows * 8 + lane % 8 : depth + of_depth * 8 + lane % 8;
  const unsigned pack = Side::ALONG ? depth / PACK + of_depth : span / PACK + of_rows;
  return Side::place(line, pack);
}

// The place of a lane's number of a matrix, in tf32 across lines.
template <class Side, bool ROWS_FIRST>
DEVICE unsigned place_across(unsigned lane, unsigned matrix, unsigned span, unsigned depth) {
  const unsigned line = depth + half_of_depth<ROWS_FIRST>(matrix) * 4 + lane % 4;
  const unsigned row = span + half_of_rows<ROWS_FIRST>(matrix) * 8 + lane / 4;
  return Side::place(line, row / PACK) + row % PACK;
}

// Loads COUNT pieces beside each other as the matrix instructions take them; the first begins at (`span`, `depth`).
template <class Side, bool ROWS_FIRST, unsigned COUNT>
DEVICE void load_pieces(unsigned (&r)[COUNT][4], SharedArray<element> tile, unsigned span, unsigned depth) {
  const unsigned lane = threadIdx.x % WARP;
  if constexpr (TF32 && !Side::ALONG) {
#pragma unroll
    for (unsigned i = 0; i < COUNT; ++i)
#pragma unroll
      for (unsigned m = 0; m < 4; ++m)
        r[i][m] = bits_of(to_float(tile[place_across<Side, ROWS_FIRST>(lane, m, span + i * 16, depth)]));
  } else {
    unsigned lines[COUNT];
#pragma unroll
    for (unsigned i = 0; i < COUNT; ++i) lines[i] = place_of_line<Side, ROWS_FIRST>(lane, span + i * 16, depth);
    load_matrices<!Side::ALONG>(r, tile, lines);
  }
  if constexpr (TF32) {
#pragma unroll
    for (unsigned i = 0; i < COUNT; ++i)
#pragma unroll
      for (unsigned m = 0; m < 4; ++m) r[i][m] = to_tf32(float_of(r[i][m]));
  }
}

template <class T>
struct Sums {
  float v[T::PIECE_ROWS][T::PIECE_COLUMNS][4];
};

// Where this thread's warp begins in the block's tile.
template <class T>
DEVICE unsigned warp_row() { return T::row_of_warp(threadIdx.x / WARP); }
template <class T>
DEVICE unsigned warp_column() { return threadIdx.x / WARP % T::WARPS_ACROSS * T::WARP_COLUMNS; }

template <class T, class RowSide, class ColumnSide>
DEVICE void multiply_tiles(Sums<T>& sums, SharedArray<element> rows, SharedArray<element> columns) {
#pragma unroll
  for (unsigned depth = 0; depth < DEPTH; depth += PIECE_DEPTH) {
    unsigned a[T::PIECE_ROWS][4], pairs[T::PIECE_COLUMNS / 2][4], b[T::PIECE_COLUMNS][2];
    load_pieces<RowSide, true>(a, rows, warp_row<T>(), depth);
    load_pieces<ColumnSide, false>(pairs, columns, warp_column<T>(), depth);
#pragma unroll
    for (unsigned j = 0; j < T::PIECE_COLUMNS; ++j)
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) b[j][half] = pairs[j / 2][j % 2 * 2 + half];
    multiply_pieces(sums.v, a, b);
  }
}

// The shared memory of a kernel for tiles of T.
#define TILES(T)                                            \
  SHARED(element, rows, STAGES * T::ROW_ELEMENTS);          \
  SHARED(element, columns, STAGES * T::COLUMN_ELEMENTS)

// The same where that is more than a kernel can declare.
#define DYNAMIC_TILES(T)          \
  DYNAMIC_SHARED(element, tiles); \
  const SharedArray<element> rows = tiles, columns = tiles + STAGES * T::ROW_ELEMENTS

template <class T, class Rows, class Columns>
DEVICE Sums<T> mainloop(
    const Product& p, Rows rows, Columns columns, int depth, SharedArray<element> row_tiles, SharedArray<element> column_tiles) {
  Sums<T> sums;
#pragma unroll
  for (unsigned i = 0; i < T::PIECE_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < T::PIECE_COLUMNS; ++j)
#pragma unroll
      for (unsigned l = 0; l < 4; ++l) sums.v[i][j][l] = 0;

  const int steps = (depth + static_cast<int>(DEPTH) - 1) / static_cast<int>(DEPTH);
  for (int step = 0; step < static_cast<int>(STAGES) - 1; ++step) {
    if (step < steps) {
      copy_tile(rows, p, row_tiles + step * T::ROW_ELEMENTS);
      copy_tile(columns, p, column_tiles + step * T::COLUMN_ELEMENTS);
    }
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    // This step's tiles are here, and everybody is done with those of the step before, which are filled next.
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    const int next = step + static_cast<int>(STAGES) - 1;
    if (next < steps) {
      copy_tile(rows, p, row_tiles + next % STAGES * T::ROW_ELEMENTS);
      copy_tile(columns, p, column_tiles + next % STAGES * T::COLUMN_ELEMENTS);
    }
    commit_copies();
    const unsigned stage = step % STAGES;
    multiply_tiles<T, typename Rows::Side, typename Columns::Side>(
        sums, row_tiles + stage * T::ROW_ELEMENTS, column_tiles + stage * T::COLUMN_ELEMENTS);
  }
  return sums;
}

// ---- results ---------------------------------------------------------------------------------------------------------

// Behind this nobody reads or fills the tiles any more.
DEVICE void finish_copies() {
  wait_for_copies<0>();
  __syncthreads();
}

// The first of the eight columns of this thread in the block's tile, of each group of pieces.
template <class T>
DEVICE unsigned column_of_lane(unsigned group) { return warp_column<T>() + group * 32 + threadIdx.x % 4 * 8; }

// The i-th row of this thread in the block's tile, of 2·PIECE_ROWS.
template <class T>
DEVICE unsigned row_of_lane(unsigned i) { return warp_row<T>() + i / 2 * T::PIECE_STEP + i % 2 * 8 + threadIdx.x % WARP / 4; }

// Lane t of four holds columns 2t and 2t + 1 of four pieces of 8; afterwards piece t whole. In round b lanes whose numbers
// differ in bit b swap the pieces whose numbers do.
template <class T>
DEVICE void gather_eight(float (&v)[8], const Sums<T>& sums, unsigned i, unsigned group) {
  const unsigned lane = threadIdx.x % WARP;
  float now[4][2];
#pragma unroll
  for (unsigned j = 0; j < 4; ++j)
#pragma unroll
    for (unsigned l = 0; l < 2; ++l) now[j][l] = sums.v[i / 2][group * 4 + j][i % 2 * 2 + l];
#pragma unroll
  for (unsigned bit = 1; bit < 4; bit *= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (unsigned j = 0; j < 4; ++j) {
      if (j & bit) continue;
#pragma unroll
      for (unsigned l = 0; l < 2; ++l) {
        const float other = __shfl_xor_sync(ALL_LANES, upper ? now[j][l] : now[j | bit][l], bit);
        if (upper) now[j][l] = other;
        else now[j | bit][l] = other;
      }
    }
  }
#pragma unroll
  for (unsigned j = 0; j < 4; ++j) v[2 * j] = now[j][0], v[2 * j + 1] = now[j][1];
}

template <class T, class F>
DEVICE void for_each_eight(const Sums<T>& sums, F f) {
#pragma unroll
  for (unsigned i = 0; i < 2 * T::PIECE_ROWS; ++i) {
#pragma unroll
    for (unsigned group = 0; group < T::GROUPS; ++group) {
      float v[8];
      gather_eight<T>(v, sums, i, group);
      f(row_of_lane<T>(i), column_of_lane<T>(group), v);
    }
  }
}

// Eight neighbours of a row of activations, of which `count` are inside. `packed`: the row may be written 16 bytes at a time.
DEVICE void store_eight(element* to, const float (&v)[8], int count, bool packed) {
  if (packed && count >= 8) {
#pragma unroll
    for (unsigned half = 0; half < 8 / PACK; ++half) {
      Pack pack;
#pragma unroll
      for (unsigned l = 0; l < PACK; ++l) pack.v[l] = v[half * PACK + l];
      store_pack(to + half * PACK, pack);
    }
    return;
  }
#pragma unroll
  for (int l = 0; l < 8; ++l)
    if (l < count) to[l] = from_float(v[l]);
}

// The pixel of dx that row `row` of this block's product is, counted over all of them; less than zero: none.
DEVICE int input_pixel(const Sizes& g, const Residues& of, int row) {
  if (g.stride_h == 1 && g.stride_w == 1) return row < g.n * g.h * g.w ? row : -1;
  const Pixel pixel = pixel_at(row, of.h.by_count, of.w.by_count);
  if (pixel.image >= g.n) return -1;
  return (pixel.image * g.h + pixel.row * g.stride_h + of.h.residue) * g.w + pixel.column * g.stride_w + of.w.residue;
}

// ---- the three passes ------------------------------------------------------------------------------------------------

template <class T, unsigned UNIT = PACK>
DEVICE Sums<T> fprop_sums(const Product& p, SharedArray<element> rows, SharedArray<element> columns) {
  using From = Im2col<Side<true, T::ROWS, T::THREADS>, UNIT>;
  using By = Filters<Side<true, T::COLUMNS, T::THREADS>>;
  const Walk walk = forward_walk(p);
  return mainloop<T>(p, From::start(p, walk), By::start(p, walk), p.g.r * p.g.s * p.g.c, rows, columns);
}

template <class T>
DEVICE Sums<T> dgrad_sums(
    const Product& p, const Walk& walk, const Residues& of, SharedArray<element> rows, SharedArray<element> columns) {
  using From = Im2col<Side<true, T::ROWS, T::THREADS>, PACK>;
  using By = TransposedFilters<Side<false, T::COLUMNS, T::THREADS>>;
  return mainloop<T>(p, From::start(p, walk), By::start(p, walk, of), walk.taps_h * walk.taps_w * p.g.k, rows, columns);
}

template <class T, unsigned UNIT = PACK>
DEVICE Sums<T> wgrad_sums(const Product& p, SharedArray<element> rows, SharedArray<element> columns) {
  using From = Outputs<Side<false, T::ROWS, T::THREADS>>;
  using By = TransposedIm2col<Side<false, T::COLUMNS, T::THREADS>, UNIT>;
  const Walk walk = forward_walk(p);
  return mainloop<T>(p, From::start(p, walk), By::start(p, walk), split_end(p) - split_begin(p), rows, columns);
}

// Where sums belong. f(at, count, row, column, v): v[0..count] are elements at, at + 1, … of the result; row and column, of the
// tile, are those of for_each_eight.

// Calls f for a tile's sums of y, N·P·Q × K.
template <class T, class F>
DEVICE void for_each_of_y(const Product& p, const Corner& tile, const Sums<T>& sums, F f) {
  const int pixels = p.g.n * p.g.p * p.g.q;
  for_each_eight<T>(sums, [&](unsigned row, unsigned column, const float (&v)[8]) {
    const int pixel = static_cast<int>(tile.down * T::ROWS + row), filter = static_cast<int>(tile.across * T::COLUMNS + column);
    if (pixel < pixels && filter < p.g.k)
      f(pixel * p.g.k + filter, p.g.k - filter < 8 ? p.g.k - filter : 8, row, column, v);
  });
}

// Calls f for a tile's sums of dx, N·H·W × channels. pixel_of(row) is the pixel of a row of the product, or less than zero: none.
template <class T, class PixelOf, class F>
DEVICE void for_each_of_pixels(const Corner& tile, int channels, const Sums<T>& sums, PixelOf pixel_of, F f) {
  for_each_eight<T>(sums, [&](unsigned row, unsigned column, const float (&v)[8]) {
    const int pixel = pixel_of(static_cast<int>(tile.down * T::ROWS + row));
    const int channel = static_cast<int>(tile.across * T::COLUMNS + column);
    if (pixel >= 0 && channel < channels) f(pixel * channels + channel, channels - channel < 8 ? channels - channel : 8, row, column, v);
  });
}

// The same for the pixels of this block's residues.
template <class T, class F>
DEVICE void for_each_of_dx(const Product& p, const Residues& of, const Sums<T>& sums, F f) {
  for_each_of_pixels<T>(corner_of_block(p), p.g.c, sums, [&](int row) { return input_pixel(p.g, of, row); }, f);
}

// Calls f for a tile's partial sums of dw, splits × K × R·S·C.
template <class T, class F>
DEVICE void for_each_of_dw(const Product& p, const Corner& tile, unsigned split, const Sums<T>& sums, F f) {
  const int weights = p.g.r * p.g.s * p.g.c;
  for_each_eight<T>(sums, [&](unsigned row, unsigned column, const float (&v)[8]) {
    const int filter = static_cast<int>(tile.down * T::ROWS + row), weight = static_cast<int>(tile.across * T::COLUMNS + column);
    if (filter < p.g.k && weight < weights)
      f((static_cast<offset>(split) * p.g.k + filter) * p.to_pitch + weight, weights - weight < 8 ? weights - weight : 8, row,
        column, v);
  });
}

// Whether this block has rows of dx: residues may have fewer than the largest one.
template <class T>
DEVICE bool has_rows(const Product& p, const Walk& walk) {
  return static_cast<int>(tile_down(p) * T::ROWS) < p.g.n * walk.rows * walk.columns;
}

template <class T>
DEVICE void store_y(const Product& p, const Corner& tile, const Sums<T>& sums) {
  element* y = static_cast<element*>(p.to);
  for_each_of_y<T>(p, tile, sums, [&](int at, int count, unsigned, unsigned, const float (&v)[8]) {
    store_eight(y + at, v, count, p.g.packed & PACKED_Y);
  });
}

// Channels are a multiple of PACK, and dx is aligned to 16 bytes. `adds`: to what is there.
template <class T, class PixelOf>
DEVICE void store_dx(element* dx, unsigned adds, const Corner& tile, int channels, const Sums<T>& sums, PixelOf pixel_of) {
  for_each_of_pixels<T>(tile, channels, sums, pixel_of, [&](int at, int count, unsigned, unsigned, const float (&v)[8]) {
#pragma unroll
    for (int first = 0; first < 8; first += PACK) {
      if (first >= count) continue;
      Pack z = {};
      if (adds) z = load_pack(dx + at + first);
#pragma unroll
      for (unsigned l = 0; l < PACK; ++l) z.v[l] += v[first + l];
      store_pack(dx + at + first, z);
    }
  });
}

// Where the matrix instructions leave their results: piece j of a thread has columns column_of_pair(j) and the next one, of rows
// row_of_lane(i).
template <class T>
DEVICE unsigned column_of_pair(unsigned j) { return warp_column<T>() + j * 8 + threadIdx.x % 4 * 2; }

// Each number of the bias is loaded once, for all of its rows.
template <class T>
DEVICE void finish_sums(const Product& p, const Finish& finish, const Corner& tile, Sums<T>& sums) {
#pragma unroll
  for (unsigned j = 0; j < T::PIECE_COLUMNS; ++j)
#pragma unroll
    for (unsigned l = 0; l < 2; ++l) {
      const int filter = static_cast<int>(tile.across * T::COLUMNS + column_of_pair<T>(j) + l);
      const float bias = filter < p.g.k ? finish.bias[filter] : 0;
#pragma unroll
      for (unsigned i = 0; i < 2 * T::PIECE_ROWS; ++i) {
        float& sum = sums.v[i / 2][j][i % 2 * 2 + l];
        sum = finished(finish, sum, bias);
      }
    }
}

struct FinishedProduct {
  Product product;
  Finish finish;
};
static_assert(sizeof(FinishedProduct) == 192, "as in src/ops/conv2d/tensor.rs");

// The end of fprop: a tile of y, with a bias and a ReLU where there are some.
template <class T>
DEVICE void store_finished(const FinishedProduct& all, const Corner& tile, Sums<T>& sums) {
  const Product& p = all.product;
  if (all.finish.bias != nullptr) finish_sums<T>(p, all.finish, tile, sums);
  store_y<T>(p, tile, sums);
}

template <class T, unsigned UNIT = PACK>
DEVICE void fprop(const FinishedProduct& all, SharedArray<element> rows, SharedArray<element> columns) {
  Sums<T> sums = fprop_sums<T, UNIT>(all.product, rows, columns);
  store_finished<T>(all, corner_of_block(all.product), sums);
}

template <class T>
DEVICE void dgrad(const BackwardProduct& all, SharedArray<element> rows, SharedArray<element> columns) {
  const Product& p = all.product;
  const Residues of = residues(all, blockIdx.z);
  const Walk walk = backward_walk(p, of);
  if (!has_rows<T>(p, walk)) return;
  const Sums<T> sums = dgrad_sums<T>(p, walk, of, rows, columns);
  store_dx<T>(static_cast<element*>(p.to), all.adds, corner_of_block(p), p.g.c, sums, [&](int row) { return input_pixel(p.g, of, row); });
}

template <class T>
DEVICE void store_dw(const Product& p, const Corner& tile, unsigned split, const Sums<T>& sums) {
  float* partial = static_cast<float*>(p.to);
  for_each_of_dw<T>(p, tile, split, sums, [&](offset at, int count, unsigned, unsigned, const float (&v)[8]) {
#pragma unroll
    for (int l = 0; l < 8; l += 4) {
      if ((p.g.packed & PACKED_DW) && l + 4 <= count) {
        store4(partial + at + l, make_float4(v[l], v[l + 1], v[l + 2], v[l + 3]));
        continue;
      }
#pragma unroll
      for (int i = l; i < l + 4; ++i)
        if (i < count) partial[at + i] = v[i];
    }
  });
}

template <class T, unsigned UNIT = PACK>
DEVICE void wgrad(const Product& p, SharedArray<element> rows, SharedArray<element> columns) {
  store_dw<T>(p, corner_of_block(p), blockIdx.z, wgrad_sums<T, UNIT>(p, rows, columns));
}

// ---- for batch norms ---------------------------------------------------------------------------------------------------
//
// Sums over a tile's rows: statistics are taken where the matrix instructions leave their results, one piece after the other, so that few
// registers are needed.

// Adds up what the lanes with the same eight columns hold, column(m) being the m-th, and leaves it in `scratch`, WARPS_DOWN × COLUMNS
// floats. In each round a lane hands half of its columns to the lane whose number differs in a bit, and adds what that one has of the other
// half. Behind a barrier `total_of_column` adds up the warps.
template <class T, class Column>
DEVICE void leave_eight(const float (&values)[8], SharedArray<float> scratch, Column column) {
  float now[8];
#pragma unroll
  for (unsigned m = 0; m < 8; ++m) now[m] = values[m];
  unsigned kept = 0;
#pragma unroll
  for (unsigned half = 4; half > 0; half /= 2) {
    const unsigned step = 16 / half;
    const bool upper = (threadIdx.x & step) != 0;
#pragma unroll
    for (unsigned m = 0; m < half; ++m) {
      const float other = __shfl_xor_sync(ALL_LANES, upper ? now[m] : now[m + half], step);
      now[m] = (upper ? now[m + half] : now[m]) + other;
    }
    kept += upper ? half : 0;
  }
  scratch[threadIdx.x / WARP / T::WARPS_ACROSS * T::COLUMNS + column(kept)] = now[0];
}

template <class T>
DEVICE float total_of_column(SharedArray<float> scratch, unsigned column) {
  float sum = scratch[column];
#pragma unroll
  for (unsigned warp = 1; warp < T::WARPS_DOWN; ++warp) sum += scratch[warp * T::COLUMNS + column];
  return sum;
}

// The sums of a tile's columns, `first` and `second` of a column: `partial` is tiles × 2 × channels, of which `across` counts those beside
// this one.
template <class T, class First, class Second>
DEVICE void store_columns(unsigned across, float* partial, unsigned tile, int channels, First first, Second second) {
  const unsigned column = threadIdx.x;
  const int channel = static_cast<int>(across * T::COLUMNS + column);
  if (column >= T::COLUMNS || channel >= channels) return;
  float* to = partial + static_cast<offset>(tile) * 2 * channels + channel;
  to[0] = first(column);
  to[channels] = second(column);
}

// Two numbers as they are stored: in 16 bits one instruction converts both.
DEVICE void round_as_stored(float& first, float& second) {
#if !defined(MEDMERGE_EMULATOR) && (defined(STORAGE_BF16) || defined(STORAGE_F16))
  const unsigned pair = from_floats(first, second);
  first = to_float(element{static_cast<unsigned short>(pair)});
  second = to_float(element{static_cast<unsigned short>(pair >> 16)});
#else
  first = to_float(from_float(first));
  second = to_float(from_float(second));
#endif
}

struct ProductStatistics {
  Product product;
  float* partial;  // tiles of rows × 2 × K: of what y stores, the mean and the sum of squared distances from it
};
static_assert(sizeof(ProductStatistics) == 184, "as in src/ops/conv2d/tensor.rs");

template <class T>
DEVICE void round_sums(Sums<T>& sums) {
#pragma unroll
  for (unsigned i = 0; i < T::PIECE_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < T::PIECE_COLUMNS; ++j)
#pragma unroll
      for (unsigned l = 0; l < 4; l += 2) round_as_stored(sums.v[i][j][l], sums.v[i][j][l + 1]);
}

// The statistics of a tile's pixels, of sums that are rounded: the mean first, then the distances from it, so that nothing cancels.
// `totals`: (2 × WARPS_DOWN + 1) × COLUMNS floats; `wait` waits for all threads that have sums.
template <class T, class Wait>
DEVICE void store_statistics(
    const ProductStatistics& all, const Corner& tile, const Sums<T>& sums, SharedArray<float> totals, Wait wait) {
  const Product& p = all.product;
  const SharedArray<float> squares = totals + T::WARPS_DOWN * T::COLUMNS, means = squares + T::WARPS_DOWN * T::COLUMNS;
  const int left = p.g.n * p.g.p * p.g.q - static_cast<int>(tile.down * T::ROWS);
  const float count = static_cast<float>(left < static_cast<int>(T::ROWS) ? left : static_cast<int>(T::ROWS));
#pragma unroll
  for (unsigned group = 0; group < T::GROUPS; ++group) {
    float eight[8] = {};
#pragma unroll
    for (unsigned i = 0; i < 2 * T::PIECE_ROWS; ++i)
#pragma unroll
      for (unsigned m = 0; m < 8; ++m)
        if (static_cast<int>(row_of_lane<T>(i)) < left) eight[m] += sums.v[i / 2][group * 4 + m / 2][i % 2 * 2 + m % 2];
    leave_eight<T>(eight, totals, [&](unsigned m) { return column_of_pair<T>(group * 4 + m / 2) + m % 2; });
  }
  wait();
  for (unsigned column = threadIdx.x; column < T::COLUMNS; column += T::THREADS) means[column] = total_of_column<T>(totals, column) / count;
  wait();
#pragma unroll
  for (unsigned group = 0; group < T::GROUPS; ++group) {
    float eight[8] = {}, mean[8];
#pragma unroll
    for (unsigned m = 0; m < 8; ++m) mean[m] = means[column_of_pair<T>(group * 4 + m / 2) + m % 2];
#pragma unroll
    for (unsigned i = 0; i < 2 * T::PIECE_ROWS; ++i)
#pragma unroll
      for (unsigned m = 0; m < 8; ++m) {
        const float distance = sums.v[i / 2][group * 4 + m / 2][i % 2 * 2 + m % 2] - mean[m];
        if (static_cast<int>(row_of_lane<T>(i)) < left) eight[m] += distance * distance;
      }
    leave_eight<T>(eight, squares, [&](unsigned m) { return column_of_pair<T>(group * 4 + m / 2) + m % 2; });
  }
  wait();
  store_columns<T>(
      tile.across, all.partial, tile.down, p.g.k, [&](unsigned column) { return static_cast<float>(means[column]); },
      [&](unsigned column) { return total_of_column<T>(squares, column); });
}

// fprop, and the statistics of each tile's pixels.
template <class T, unsigned UNIT = PACK>
DEVICE void fprop_statistics(const ProductStatistics& all, SharedArray<element> rows, SharedArray<element> columns) {
  const Product& p = all.product;
  const Corner tile = corner_of_block(p);
  Sums<T> sums = fprop_sums<T, UNIT>(p, rows, columns);
  round_sums<T>(sums);
  store_y<T>(p, tile, sums);
  finish_copies();
  store_statistics<T>(all, tile, sums, shared_as_floats(rows, STAGES * T::ROW_ELEMENTS), [] { __syncthreads(); });
}

// What stands between a batch norm and what it puts out is cut where the gradient passes; as in batch_norm_passes.cuh, but that the signs of
// an output come as bits.
constexpr unsigned CUT_NOWHERE = 0, CUT_BY_INPUT = 1, CUT_BY_SIGNS = 2;

struct ProductGradient {
  BackwardProduct backward;
  const element* x;              // N·H·W × C: what the batch norm before this convolution read
  const float* mean;             // C
  const float* rstd;             // C
  const float* gamma;            // C
  const float* beta;             // C
  const unsigned char* signs;    // N·H·W·C / PACK, read if cut BY_SIGNS: bit i is set where number i of 16 bytes of output is not zero
  float* partial;                // residues × tiles of rows × 2 × C: Σ dz, Σ dz·(x − μ)
  unsigned cut;                  // by the ReLU between the two, dz being zero where it let nothing pass
  unsigned padding;
  Places places;                 // where x lies; fewer than 2³¹ elements from its beginning
};
static_assert(sizeof(ProductGradient) == 688, "as in src/ops/conv2d/tensor.rs");

// Four neighbours of an array whose place is a multiple of 16 bytes.
struct alignas(16) Four { float v[4]; };

DEVICE Four load_four(SharedArray<float> array, unsigned i) {
#ifdef MEDMERGE_EMULATOR
  return Four{{array[i], array[i + 1], array[i + 2], array[i + 3]}};
#else
  return *reinterpret_cast<const Four*>(array + i);
#endif
}

// The norm's numbers for the columns of a tile, in shared memory.
struct NormOfTile { SharedArray<float> means, scales, betas; };

// A thread's column of eight channels of dz, of so many.
struct EightOfNorm {
  unsigned first;               // in the tile
  int channels;
  int channel, count;           // less than one: nothing
  const element* x[8 / PACK];
  int x_pitch[8 / PACK];
};

template <class T>
DEVICE EightOfNorm eight_of_norm(const ProductGradient& all, const Corner& tile, int channels, unsigned group) {
  EightOfNorm self = {};
  self.first = column_of_lane<T>(group);
  self.channels = channels;
  self.channel = static_cast<int>(tile.across * T::COLUMNS + self.first);
  self.count = channels - self.channel < 8 ? channels - self.channel : 8;
#pragma unroll
  for (int part = 0; part < static_cast<int>(8 / PACK); ++part) {
    if (part * static_cast<int>(PACK) >= self.count) continue;
    const Column column = column_of(all.places, static_cast<unsigned>(self.channel + part * static_cast<int>(PACK)));
    self.x[part] = all.x + column.begin;
    self.x_pitch[part] = static_cast<int>(column.pitch);
  }
  return self;
}

// 16 bytes of dz from as many sums of products: added to what is there, cut, stored, and added up as they are stored.
DEVICE void finish_pack(const ProductGradient& all, const EightOfNorm& eight, const NormOfTile& norm, int pixel, unsigned part,
                        const float* v, float* sum, float* product) {
  const unsigned at = static_cast<unsigned>(pixel * eight.channels + eight.channel) + part * PACK;
  element* dz = static_cast<element*>(all.backward.product.to) + at;
  const Pack x = load_pack(eight.x[part] + pixel * eight.x_pitch[part]);
  const unsigned passing = all.cut == CUT_BY_SIGNS ? all.signs[at / PACK] : ~0u;
  Pack z = {};
  if (all.backward.adds) z = load_pack(dz);
  float distances[PACK];
#pragma unroll
  for (unsigned k = 0; k < PACK; k += 4) {
    const unsigned place = eight.first + part * PACK + k;
    const Four mean = load_four(norm.means, place), scale = load_four(norm.scales, place), beta = load_four(norm.betas, place);
#pragma unroll
    for (unsigned m = k; m < k + 4; ++m) {
      const bool cut = all.cut == CUT_BY_INPUT && is_cut(normalized(x.v[m], mean.v[m - k], scale.v[m - k], beta.v[m - k]));
      z.v[m] = cut || !(passing >> m & 1) ? 0 : z.v[m] + v[m];
      distances[m] = x.v[m] - mean.v[m - k];
    }
  }
  store_rounded(dz, z);
#pragma unroll
  for (unsigned k = 0; k < PACK; ++k) {
    sum[k] += z.v[k];
    product[k] += z.v[k] * distances[k];
  }
}

// dz in the place of dx, and the sums of a tile's pixels that the batch norm's backward begins with. Channels are a multiple of PACK, and
// all operands are aligned to 16 bytes. `tile` counts among all of them, `totals`: (2 × WARPS_DOWN + 3) × COLUMNS floats, and `wait`
// waits for all threads that have sums.
template <class T, class PixelOf, class Wait>
DEVICE void store_sums_of_norm(const ProductGradient& all, const Corner& corner, unsigned tile, int channels, const Sums<T>& sums,
                               SharedArray<float> totals, PixelOf pixel_of, Wait wait) {
  const SharedArray<float> products = totals + T::WARPS_DOWN * T::COLUMNS;
  const SharedArray<float> means = products + T::WARPS_DOWN * T::COLUMNS, scales = means + T::COLUMNS, betas = scales + T::COLUMNS;
  for (unsigned column = threadIdx.x; column < T::COLUMNS; column += T::THREADS) {
    const int channel = static_cast<int>(corner.across * T::COLUMNS + column);
    if (channel >= channels) continue;
    means[column] = all.mean[channel];
    scales[column] = all.gamma[channel] * all.rstd[channel];
    betas[column] = all.beta[channel];
  }
  wait();
  const NormOfTile norm = {means, scales, betas};
#pragma unroll
  for (unsigned group = 0; group < T::GROUPS; ++group) {
    const EightOfNorm eight = eight_of_norm<T>(all, corner, channels, group);
    float sum[8] = {}, product[8] = {};
#pragma unroll
    for (unsigned i = 0; i < 2 * T::PIECE_ROWS; ++i) {
      float v[8];
      gather_eight<T>(v, sums, i, group);
      const int pixel = pixel_of(static_cast<int>(corner.down * T::ROWS + row_of_lane<T>(i)));
#pragma unroll
      for (int part = 0; part < static_cast<int>(8 / PACK); ++part)
        if (pixel >= 0 && part * static_cast<int>(PACK) < eight.count)
          finish_pack(all, eight, norm, pixel, part, v + part * PACK, sum + part * PACK, product + part * PACK);
    }
    leave_eight<T>(sum, totals, [&](unsigned m) { return eight.first + m; });
    leave_eight<T>(product, products, [&](unsigned m) { return eight.first + m; });
  }
  wait();
  store_columns<T>(
      corner.across, all.partial, tile, channels, [&](unsigned column) { return total_of_column<T>(totals, column); },
      [&](unsigned column) { return total_of_column<T>(products, column); });
}

// dgrad, with dz in the place of dx.
template <class T>
DEVICE void dgrad_sums_of_norm(const ProductGradient& all, SharedArray<element> rows, SharedArray<element> columns) {
  const Product& p = all.backward.product;
  const Residues of = residues(all.backward, blockIdx.z);
  const Walk walk = backward_walk(p, of);
  const unsigned tile = blockIdx.z * static_cast<unsigned>(p.tiles_down) + tile_down(p);
  if (!has_rows<T>(p, walk)) {
    const auto nothing = [](unsigned) { return 0.0f; };
    return store_columns<T>(tile_across(p), all.partial, tile, p.g.c, nothing, nothing);
  }
  const Sums<T> sums = dgrad_sums<T>(p, walk, of, rows, columns);
  finish_copies();
  store_sums_of_norm<T>(
      all, corner_of_block(p), tile, p.g.c, sums, shared_as_floats(rows, STAGES * T::ROW_ELEMENTS),
      [&](int row) { return input_pixel(p.g, of, row); }, [] { __syncthreads(); });
}
