// modules: f32 bf16 f16
// Convolution: fprop, dgrad and wgrad.
//
//   fprop   y[n,p,q,k]  = Σ_{r,s,c} x[n, p·stride_h − pad_h + r·dilation_h, q·stride_w − pad_w + s·dilation_w, c] · w[k,r,s,c]
//   dgrad   dx[n,h,w,c] = Σ_{r,s,k} dy[n,p,q,k] · w[k,r,s,c]   over the p, q that read pixel h, w through tap r, s
//   wgrad   dw[k,r,s,c] = Σ_{n,p,q} dy[n,p,q,k] · x[n,h,w,c]
//
// fprop may add a bias per filter to y, and cut it by a ReLU.
//
// Activations are NHWC; w and dw have one filter, K × R·S·C/G, per row, and rows may be padded. With G groups, filter k sees
// only the C/G channels of group k / (K/G).
//
// All three are implicit GEMMs: the im2col matrix is never in memory, its tiles are gathered into shared memory.
//
//   pass    M          N         K (summed over)
//   fprop   N·P·Q      K/G       R·S·C/G
//   dgrad   N·H·W      C/G       R·S·K/G
//   wgrad   R·S·C/G    K/G       N·P·Q, by split-K: each block sums one split, a second launch adds them in their order
//
// A block computes 64 rows × 64 columns with 128 threads ("wide") or 64 × 16 with 32 ("narrow", for few columns), a thread
// 4 × 8 of them, in steps of 8 summands (f32) or 16. Loads of the next step are in flight while this one multiplies. Grid:
// tiles of rows, tiles of columns, groups (wgrad: groups · splits). Where the channels of a group fill 16 bytes, loads and
// stores take 16 bytes, otherwise one element at a time.
//
// FLOPs: 2·N·P·Q·K·R·S·C/G each. Bytes at least: each tensor once; the tiles read x (dy) once per column tile and w once per
// row tile, mostly from the second-level cache.
//
// Filters that see one channel each (depthwise) are too thin for tiles: a thread per output, bound by memory.
#include "conv2d.cuh"

struct Fprop {
  const element* x;  // N × H × W × C
  const element* w;  // K × R·S·C/G
  element* y;        // N × P × Q × K
  Sizes g;
  Finish finish;
};
static_assert(sizeof(Fprop) == 120, "as in src/ops/conv2d/gpu.rs");

struct Dgrad {
  const element* dy;  // N × P × Q × K
  const element* w;   // K × R·S·C/G
  element* dx;        // N × H × W × C
  Sizes g;
};
static_assert(sizeof(Dgrad) == 104, "as in src/ops/conv2d/gpu.rs");

struct Wgrad {
  const element* x;   // N × H × W × C
  const element* dy;  // N × P × Q × K
  float* partial;     // splits × K × R·S·C/G, rows of `partial_pitch`; dw itself if there is one split
  Sizes g;
  int splits;
  int split;        // pixels of each, a multiple of 16
  int partial_pitch;
  int padding;
};
static_assert(sizeof(Wgrad) == 120, "as in src/ops/conv2d/gpu.rs");

struct WgradSum {
  const float* partial;  // splits × K × columns
  float* dw;             // K × columns, rows of `pitch`
  int k, columns, pitch, splits;
};
static_assert(sizeof(WgradSum) == 32, "as in src/ops/conv2d/gpu.rs");

constexpr unsigned ROWS = 64, DEPTH = 2 * PACK;
constexpr unsigned WIDE = 64, NARROW = 16;
// The part of a tile that a thread computes.
constexpr unsigned THREAD_ROWS = 4, THREAD_COLUMNS = 8;
constexpr unsigned WIDE_THREADS = (ROWS / THREAD_ROWS) * (WIDE / THREAD_COLUMNS);
constexpr unsigned NARROW_THREADS = (ROWS / THREAD_ROWS) * (NARROW / THREAD_COLUMNS);
constexpr unsigned DIRECT_THREADS = 128;

// A tile in shared memory lies summand by summand. Four floats behind each keep 16-byte accesses aligned and spread the
// transposed stores over the banks.
template <unsigned SPAN>
constexpr unsigned PITCH = SPAN + 4;
template <unsigned SPAN>
constexpr unsigned TILE = DEPTH * PITCH<SPAN>;

DEVICE Pack zeros() {
  Pack pack;
#pragma unroll
  for (unsigned i = 0; i < PACK; ++i) pack.v[i] = 0;
  return pack;
}

// Members of these structs have linkage otherwise, and the emulator links this file once per storage type.
namespace {

// ---- which 16 bytes of a tile a thread loads ------------------------------------------------------------------------

// A tile of SPAN rows (or columns) × DEPTH summands as packs; this thread's i-th is number threadIdx.x + i·THREADS.
// ALONG_DEPTH: a pack holds neighbouring summands of one row, and a line is a row; otherwise it holds neighbouring rows of
// one summand, and a line is a summand. All packs of a thread begin at the same place, in different lines.
template <unsigned SPAN, unsigned THREADS, bool ALONG_DEPTH>
struct Share {
  static constexpr unsigned PER_LINE = (ALONG_DEPTH ? DEPTH : SPAN) / PACK;
  static constexpr unsigned COUNT = SPAN * DEPTH / PACK / THREADS;
  static_assert(COUNT * PACK * THREADS == SPAN * DEPTH && THREADS % PER_LINE == 0, "equal shares, one place in a line");

  DEVICE int line(unsigned i) { return static_cast<int>((threadIdx.x + i * THREADS) / PER_LINE); }
  DEVICE int place() { return static_cast<int>(threadIdx.x % PER_LINE * PACK); }

  DEVICE void store(SharedArray<float> tile, const Pack (&packs)[COUNT]) {
#pragma unroll
    for (unsigned i = 0; i < COUNT; ++i) {
      const float(&v)[PACK] = packs[i].v;
      if (ALONG_DEPTH) {
#pragma unroll
        for (unsigned j = 0; j < PACK; ++j) tile[(place() + j) * PITCH<SPAN> + line(i)] = v[j];
      } else {
#pragma unroll
        for (unsigned j = 0; j < PACK; j += 4)
          shared_store4(tile, line(i) * PITCH<SPAN> + place() + j, make_float4(v[j], v[j + 1], v[j + 2], v[j + 3]));
      }
    }
  }
};

// ---- where summands come from ---------------------------------------------------------------------------------------

// Rows of fprop's product: the patches of x, a row per output pixel; or of dgrad's: those of dy, a row per input pixel.
template <unsigned THREADS, bool BACKWARD>
struct Im2col {
  using Lot = Share<ROWS, THREADS, true>;
  const element* from;  // the group's first channel
  Sizes g;
  Pixel pixel[Lot::COUNT];  // image < 0 beyond the last row
  Tap tap;

  DEVICE int channels(const Sizes& g) { return BACKWARD ? g.group_k : g.group_c; }

  DEVICE Im2col start(const element* from, const Sizes& g) {
    Im2col self;
    self.g = g;
    self.from = from + static_cast<offset>(blockIdx.z) * channels(g);
    const int height = BACKWARD ? g.h : g.p, width = BACKWARD ? g.w : g.q;
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) {
      const int row = static_cast<int>(blockIdx.x * ROWS) + Lot::line(i);
      self.pixel[i] = pixel_at(row, height, width);
      if (self.pixel[i].image >= g.n) self.pixel[i].image = -1;
    }
    self.tap = tap_at(Lot::place(), channels(g), g);
    return self;
  }

  // Where the channels of the tap lie that `pixel` sees; null in the padding.
  DEVICE const element* seen(const Im2col& self, const Pixel& pixel, const Tap& tap) {
    const Sizes& g = self.g;
    const int height = BACKWARD ? g.p : g.h, width = BACKWARD ? g.q : g.w;
    const int h = reach<BACKWARD>(pixel.row, tap.r, g.stride_h, g.padding_h, g.dilation_h, height);
    const int w = reach<BACKWARD>(pixel.column, tap.s, g.stride_w, g.padding_w, g.dilation_w, width);
    if (pixel.image < 0 || tap.r >= g.r || h < 0 || w < 0) return nullptr;
    return self.from + static_cast<offset>((pixel.image * height + h) * width + w) * (BACKWARD ? g.k : g.c);
  }

  DEVICE Pack load(const Im2col& self, unsigned i) {
    Tap tap = self.tap;
    const element* from = seen(self, self.pixel[i], tap);
    if (self.g.packed & (BACKWARD ? PACKED_Y : PACKED_X)) return from ? load_pack(from + tap.channel) : zeros();
    Pack pack;
#pragma unroll
    for (unsigned j = 0; j < PACK; ++j) {
      pack.v[j] = from ? to_float(from[tap.channel]) : 0;
      if (j + 1 == PACK) break;
      advance(tap, 1, channels(self.g), self.g);
      if (tap.channel == 0) from = seen(self, self.pixel[i], tap);
    }
    return pack;
  }

  DEVICE void step(Im2col& self) { advance(self.tap, DEPTH, channels(self.g), self.g); }
};

// Columns of fprop's product: a filter each, summed over its R·S·C/G weights.
template <unsigned COLUMNS, unsigned THREADS>
struct Filters {
  using Lot = Share<COLUMNS, THREADS, true>;
  const element* filter[Lot::COUNT];  // null beyond the group's last one
  int at, end;
  unsigned packed;

  DEVICE Filters start(const element* w, const Sizes& g) {
    Filters self;
    const int filters = g.group_k;
    self.at = Lot::place();
    self.end = g.r * g.s * g.group_c;
    self.packed = g.packed & PACKED_W;
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) {
      const int column = static_cast<int>(blockIdx.y * COLUMNS) + Lot::line(i);
      const offset k = static_cast<offset>(blockIdx.z) * filters + column;
      self.filter[i] = column < filters ? w + k * g.pitch : nullptr;
    }
    return self;
  }

  DEVICE Pack load(const Filters& self, unsigned i) {
    const element* filter = self.filter[i];
    if (self.packed) return filter && self.at < self.end ? load_pack(filter + self.at) : zeros();
    Pack pack;
#pragma unroll
    for (int j = 0; j < static_cast<int>(PACK); ++j)
      pack.v[j] = filter && self.at + j < self.end ? to_float(filter[self.at + j]) : 0;
    return pack;
  }

  DEVICE void step(Filters& self) { self.at += DEPTH; }
};

// Columns of dgrad's product: a channel each, summed over R·S·K/G; `Tap::channel` counts the group's filters.
template <unsigned COLUMNS, unsigned THREADS>
struct TransposedFilters {
  using Lot = Share<COLUMNS, THREADS, false>;
  const element* w;  // the group's first filter
  Sizes g;
  int channel;
  Tap tap[Lot::COUNT];

  DEVICE TransposedFilters start(const element* w, const Sizes& g) {
    TransposedFilters self;
    const int filters = g.group_k;
    self.g = g;
    self.w = w + static_cast<offset>(blockIdx.z) * filters * g.pitch;
    self.channel = static_cast<int>(blockIdx.y * COLUMNS) + Lot::place();
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) self.tap[i] = tap_at(Lot::line(i), filters, g);
    return self;
  }

  DEVICE Pack load(const TransposedFilters& self, unsigned i) {
    const Sizes& g = self.g;
    const Tap& tap = self.tap[i];
    const int channels = g.group_c;
    if (tap.r >= g.r || self.channel >= channels) return zeros();
    const element* from =
        self.w + static_cast<offset>(tap.channel) * g.pitch + (tap.r * g.s + tap.s) * channels + self.channel;
    if (g.packed & PACKED_W) return load_pack(from);
    Pack pack;
#pragma unroll
    for (int j = 0; j < static_cast<int>(PACK); ++j)
      pack.v[j] = self.channel + j < channels ? to_float(from[j]) : 0;
    return pack;
  }

  DEVICE void step(TransposedFilters& self) {
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) advance(self.tap[i], DEPTH, self.g.group_k, self.g);
  }
};

// This block's split of the output pixels: wgrad's summands.
struct Split {
  int group, index, begin, end;
};

DEVICE Split split_of(const Wgrad& p) {
  const int group = static_cast<int>(blockIdx.z) % p.g.groups, index = static_cast<int>(blockIdx.z) / p.g.groups;
  const int pixels = p.g.n * p.g.p * p.g.q;
  const int begin = index * p.split;
  return Split{group, index, begin, pixels - begin < p.split ? pixels : begin + p.split};
}

// Rows of wgrad's product: a weight of the filter each; summed over output pixels.
template <unsigned THREADS>
struct TransposedIm2col {
  using Lot = Share<ROWS, THREADS, false>;
  const element* x;  // the group's first channel
  Sizes g;
  Tap tap;
  int at[Lot::COUNT], end;

  DEVICE TransposedIm2col start(const Wgrad& p, const Split& split) {
    TransposedIm2col self;
    const int channels = p.g.group_c;
    self.g = p.g;
    self.x = p.x + static_cast<offset>(split.group) * channels;
    self.tap = tap_at(static_cast<int>(blockIdx.x * ROWS) + Lot::place(), channels, p.g);
    self.end = split.end;
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) self.at[i] = split.begin + Lot::line(i);
    return self;
  }

  DEVICE const element* seen(const TransposedIm2col& self, const Pixel& pixel, const Tap& tap) {
    const Sizes& g = self.g;
    const int h = reach<false>(pixel.row, tap.r, g.stride_h, g.padding_h, g.dilation_h, g.h);
    const int w = reach<false>(pixel.column, tap.s, g.stride_w, g.padding_w, g.dilation_w, g.w);
    if (tap.r >= g.r || h < 0 || w < 0) return nullptr;
    return self.x + static_cast<offset>((pixel.image * g.h + h) * g.w + w) * g.c;
  }

  DEVICE Pack load(const TransposedIm2col& self, unsigned i) {
    if (self.at[i] >= self.end) return zeros();
    const Pixel pixel = pixel_at(self.at[i], self.g.p, self.g.q);
    Tap tap = self.tap;
    const element* from = seen(self, pixel, tap);
    if (self.g.packed & PACKED_X) return from ? load_pack(from + tap.channel) : zeros();
    Pack pack;
#pragma unroll
    for (unsigned j = 0; j < PACK; ++j) {
      pack.v[j] = from ? to_float(from[tap.channel]) : 0;
      if (j + 1 == PACK) break;
      advance(tap, 1, self.g.group_c, self.g);
      if (tap.channel == 0) from = seen(self, pixel, tap);
    }
    return pack;
  }

  DEVICE void step(TransposedIm2col& self) {
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) self.at[i] += DEPTH;
  }
};

// Columns of wgrad's product: dy, a filter each; summed over output pixels.
template <unsigned COLUMNS, unsigned THREADS>
struct Outputs {
  using Lot = Share<COLUMNS, THREADS, false>;
  const element* dy;  // the group's first filter
  int filter, filters, k;
  unsigned packed;
  int at[Lot::COUNT], end;

  DEVICE Outputs start(const Wgrad& p, const Split& split) {
    Outputs self;
    self.filters = p.g.group_k;
    self.filter = static_cast<int>(blockIdx.y * COLUMNS) + Lot::place();
    self.k = p.g.k;
    self.dy = p.dy + static_cast<offset>(split.group) * self.filters;
    self.packed = p.g.packed & PACKED_Y;
    self.end = split.end;
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) self.at[i] = split.begin + Lot::line(i);
    return self;
  }

  DEVICE Pack load(const Outputs& self, unsigned i) {
    if (self.at[i] >= self.end || self.filter >= self.filters) return zeros();
    const element* from = self.dy + static_cast<offset>(self.at[i]) * self.k + self.filter;
    if (self.packed) return load_pack(from);
    Pack pack;
#pragma unroll
    for (int j = 0; j < static_cast<int>(PACK); ++j)
      pack.v[j] = self.filter + j < self.filters ? to_float(from[j]) : 0;
    return pack;
  }

  DEVICE void step(Outputs& self) {
#pragma unroll
    for (unsigned i = 0; i < Lot::COUNT; ++i) self.at[i] += DEPTH;
  }
};

}  // namespace

// ---- the product of two tiles ---------------------------------------------------------------------------------------

// This thread's part of the block's tile; rows from `first_row()`, columns from `first_column()` on.
struct Sums {
  float v[THREAD_ROWS][THREAD_COLUMNS];
};

template <unsigned COLUMNS>
DEVICE unsigned first_row() { return threadIdx.x / (COLUMNS / THREAD_COLUMNS) * THREAD_ROWS; }
template <unsigned COLUMNS>
DEVICE unsigned first_column() { return threadIdx.x % (COLUMNS / THREAD_COLUMNS) * THREAD_COLUMNS; }

template <unsigned COLUMNS>
DEVICE void multiply_tiles(Sums& sums, SharedArray<float> rows, SharedArray<float> columns) {
#pragma unroll
  for (unsigned i = 0; i < DEPTH; ++i) {
    const float4 a = shared_load4(rows, i * PITCH<ROWS> + first_row<COLUMNS>());
    const float4 b = shared_load4(columns, i * PITCH<COLUMNS> + first_column<COLUMNS>());
    const float4 c = shared_load4(columns, i * PITCH<COLUMNS> + first_column<COLUMNS>() + 4);
    const float left[THREAD_ROWS] = {a.x, a.y, a.z, a.w};
    const float right[THREAD_COLUMNS] = {b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
    for (unsigned row = 0; row < THREAD_ROWS; ++row)
#pragma unroll
      for (unsigned column = 0; column < THREAD_COLUMNS; ++column) sums.v[row][column] += left[row] * right[column];
  }
}

template <class Source>
DEVICE void load_all(Source& source, Pack (&packs)[Source::Lot::COUNT]) {
#pragma unroll
  for (unsigned i = 0; i < Source::Lot::COUNT; ++i) packs[i] = Source::load(source, i);
  Source::step(source);
}

// The sums over `depth` products. `row_tiles` and `column_tiles` hold two tiles each: while one is multiplied the other is
// filled.
template <unsigned COLUMNS, class Rows, class Columns>
DEVICE Sums mainloop(Rows rows, Columns columns, int depth, SharedArray<float> row_tiles, SharedArray<float> column_tiles) {
  Sums sums;
#pragma unroll
  for (unsigned i = 0; i < THREAD_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < THREAD_COLUMNS; ++j) sums.v[i][j] = 0;
  Pack row_packs[Rows::Lot::COUNT], column_packs[Columns::Lot::COUNT];
  load_all(rows, row_packs);
  load_all(columns, column_packs);
  Rows::Lot::store(row_tiles, row_packs);
  Columns::Lot::store(column_tiles, column_packs);
  __syncthreads();
  const int steps = (depth + static_cast<int>(DEPTH) - 1) / static_cast<int>(DEPTH);
  for (int step = 0; step < steps; ++step) {
    const unsigned now = step % 2, next = 1 - now;
    const bool more = step + 1 < steps;
    if (more) {
      load_all(rows, row_packs);
      load_all(columns, column_packs);
    }
    multiply_tiles<COLUMNS>(sums, row_tiles + now * TILE<ROWS>, column_tiles + now * TILE<COLUMNS>);
    if (more) {
      // The last reads of these tiles lie before the barrier of the step before.
      Rows::Lot::store(row_tiles + next * TILE<ROWS>, row_packs);
      Columns::Lot::store(column_tiles + next * TILE<COLUMNS>, column_packs);
      __syncthreads();
    }
  }
  return sums;
}

// Writes a tile of activations whose rows are pixels, `pitch` elements apart. `to` is the group's first column.
template <unsigned COLUMNS>
DEVICE void store_pixels(const Sums& sums, element* to, int pixels, int columns, int pitch, bool packed) {
  const int column = static_cast<int>(blockIdx.y * COLUMNS + first_column<COLUMNS>());
#pragma unroll
  for (unsigned i = 0; i < THREAD_ROWS; ++i) {
    const unsigned pixel = blockIdx.x * ROWS + first_row<COLUMNS>() + i;
    if (pixel >= static_cast<unsigned>(pixels)) return;
    element* row = to + static_cast<offset>(pixel) * pitch;
#pragma unroll
    for (unsigned j = 0; j < THREAD_COLUMNS; j += PACK) {
      if (packed) {
        Pack pack;
#pragma unroll
        for (unsigned l = 0; l < PACK; ++l) pack.v[l] = sums.v[i][j + l];
        if (column + static_cast<int>(j) < columns) store_pack(row + column + j, pack);
      } else {
#pragma unroll
        for (unsigned l = 0; l < PACK; ++l)
          if (column + static_cast<int>(j + l) < columns) row[column + j + l] = from_float(sums.v[i][j + l]);
      }
    }
  }
}

template <unsigned COLUMNS, unsigned THREADS>
DEVICE void fprop(const Fprop& p, SharedArray<float> row_tiles, SharedArray<float> column_tiles) {
  const int filters = p.g.group_k;
  Sums sums = mainloop<COLUMNS>(
      Im2col<THREADS, false>::start(p.x, p.g), Filters<COLUMNS, THREADS>::start(p.w, p.g),
      p.g.r * p.g.s * p.g.group_c, row_tiles, column_tiles);
  if (p.finish.bias != nullptr) {
#pragma unroll
    for (unsigned j = 0; j < THREAD_COLUMNS; ++j) {
      const int column = static_cast<int>(blockIdx.y * COLUMNS + first_column<COLUMNS>() + j);
      if (column >= filters) continue;
#pragma unroll
      for (unsigned i = 0; i < THREAD_ROWS; ++i)
        sums.v[i][j] = finished(p.finish, sums.v[i][j], p.finish.bias[static_cast<int>(blockIdx.z) * filters + column]);
    }
  }
  store_pixels<COLUMNS>(
      sums, p.y + static_cast<offset>(blockIdx.z) * filters, p.g.n * p.g.p * p.g.q, filters, p.g.k,
      p.g.packed & PACKED_Y);
}

template <unsigned COLUMNS, unsigned THREADS>
DEVICE void dgrad(const Dgrad& p, SharedArray<float> row_tiles, SharedArray<float> column_tiles) {
  const int channels = p.g.group_c;
  const Sums sums = mainloop<COLUMNS>(
      Im2col<THREADS, true>::start(p.dy, p.g), TransposedFilters<COLUMNS, THREADS>::start(p.w, p.g),
      p.g.r * p.g.s * p.g.group_k, row_tiles, column_tiles);
  store_pixels<COLUMNS>(
      sums, p.dx + static_cast<offset>(blockIdx.z) * channels, p.g.n * p.g.h * p.g.w, channels, p.g.c,
      p.g.packed & PACKED_X);
}

template <unsigned COLUMNS, unsigned THREADS>
DEVICE void wgrad(const Wgrad& p, SharedArray<float> row_tiles, SharedArray<float> column_tiles) {
  const Split split = split_of(p);
  const Sums sums = mainloop<COLUMNS>(
      TransposedIm2col<THREADS>::start(p, split), Outputs<COLUMNS, THREADS>::start(p, split),
      split.end - split.begin, row_tiles, column_tiles);
  const int filters = p.g.group_k, weights = p.g.r * p.g.s * p.g.group_c;
  const int weight = static_cast<int>(blockIdx.x * ROWS + first_row<COLUMNS>());
#pragma unroll
  for (unsigned j = 0; j < THREAD_COLUMNS; ++j) {
    const int column = static_cast<int>(blockIdx.y * COLUMNS + first_column<COLUMNS>() + j);
    if (column >= filters) return;
    const offset row = static_cast<offset>(split.index) * p.g.k + split.group * filters + column;
    float* to = p.partial + row * p.partial_pitch + weight;
    if (weight + static_cast<int>(THREAD_ROWS) <= weights && (p.g.packed & PACKED_DW)) {
      store4(to, make_float4(sums.v[0][j], sums.v[1][j], sums.v[2][j], sums.v[3][j]));
    } else {
#pragma unroll
      for (int i = 0; i < static_cast<int>(THREAD_ROWS); ++i)
        if (weight + i < weights) to[i] = sums.v[i][j];
    }
  }
}

KERNEL(conv2d_fprop_wide, Fprop, WIDE_THREADS) {
  SHARED(float, rows, 2 * TILE<ROWS>);
  SHARED(float, columns, 2 * TILE<WIDE>);
  fprop<WIDE, WIDE_THREADS>(p, rows, columns);
}

KERNEL(conv2d_fprop_narrow, Fprop, NARROW_THREADS) {
  SHARED(float, rows, 2 * TILE<ROWS>);
  SHARED(float, columns, 2 * TILE<NARROW>);
  fprop<NARROW, NARROW_THREADS>(p, rows, columns);
}

KERNEL(conv2d_dgrad_wide, Dgrad, WIDE_THREADS) {
  SHARED(float, rows, 2 * TILE<ROWS>);
  SHARED(float, columns, 2 * TILE<WIDE>);
  dgrad<WIDE, WIDE_THREADS>(p, rows, columns);
}

KERNEL(conv2d_dgrad_narrow, Dgrad, NARROW_THREADS) {
  SHARED(float, rows, 2 * TILE<ROWS>);
  SHARED(float, columns, 2 * TILE<NARROW>);
  dgrad<NARROW, NARROW_THREADS>(p, rows, columns);
}

KERNEL(conv2d_wgrad_wide, Wgrad, WIDE_THREADS) {
  SHARED(float, rows, 2 * TILE<ROWS>);
  SHARED(float, columns, 2 * TILE<WIDE>);
  wgrad<WIDE, WIDE_THREADS>(p, rows, columns);
}

KERNEL(conv2d_wgrad_narrow, Wgrad, NARROW_THREADS) {
  SHARED(float, rows, 2 * TILE<ROWS>);
  SHARED(float, columns, 2 * TILE<NARROW>);
  wgrad<NARROW, NARROW_THREADS>(p, rows, columns);
}

// dw from the sums of the splits, added in their order; a thread per weight.
KERNEL(conv2d_wgrad_sum, WgradSum, DIRECT_THREADS) {
  const offset i = static_cast<offset>(blockIdx.x) * DIRECT_THREADS + threadIdx.x;
  const offset weights = static_cast<offset>(p.k) * p.columns;
  if (i >= weights) return;
  float sum = p.partial[i];
  for (int split = 1; split < p.splits; ++split) sum += p.partial[split * weights + i];
  p.dw[i / p.columns * p.pitch + i % p.columns] = sum;
}

// ---- depthwise: C/G = 1 ---------------------------------------------------------------------------------------------

// A thread per output.
KERNEL(conv2d_fprop_depthwise, Fprop, DIRECT_THREADS) {
  const Sizes& g = p.g;
  const offset i = static_cast<offset>(blockIdx.x) * DIRECT_THREADS + threadIdx.x;
  if (i >= static_cast<offset>(g.n) * g.p * g.q * g.k) return;
  const int k = static_cast<int>(i % g.k), channel = k / g.group_k;
  const Pixel pixel = pixel_at(static_cast<int>(i / g.k), g.p, g.q);
  const element* filter = p.w + static_cast<offset>(k) * g.pitch;
  float sum = 0;
  for (int r = 0; r < g.r; ++r) {
    const int h = reach<false>(pixel.row, r, g.stride_h, g.padding_h, g.dilation_h, g.h);
    if (h < 0) continue;
    for (int s = 0; s < g.s; ++s) {
      const int w = reach<false>(pixel.column, s, g.stride_w, g.padding_w, g.dilation_w, g.w);
      if (w < 0) continue;
      const offset at = static_cast<offset>((pixel.image * g.h + h) * g.w + w) * g.c + channel;
      sum += to_float(p.x[at]) * to_float(filter[r * g.s + s]);
    }
  }
  p.y[i] = from_float(p.finish.bias != nullptr ? finished(p.finish, sum, p.finish.bias[k]) : sum);
}

// A thread per element of dx.
KERNEL(conv2d_dgrad_depthwise, Dgrad, DIRECT_THREADS) {
  const Sizes& g = p.g;
  const offset i = static_cast<offset>(blockIdx.x) * DIRECT_THREADS + threadIdx.x;
  if (i >= static_cast<offset>(g.n) * g.h * g.w * g.c) return;
  const int filters = g.group_k, first = static_cast<int>(i % g.c) * filters;
  const Pixel pixel = pixel_at(static_cast<int>(i / g.c), g.h, g.w);
  float sum = 0;
  for (int r = 0; r < g.r; ++r) {
    const int h = reach<true>(pixel.row, r, g.stride_h, g.padding_h, g.dilation_h, g.p);
    if (h < 0) continue;
    for (int s = 0; s < g.s; ++s) {
      const int w = reach<true>(pixel.column, s, g.stride_w, g.padding_w, g.dilation_w, g.q);
      if (w < 0) continue;
      const element* dy = p.dy + static_cast<offset>((pixel.image * g.p + h) * g.q + w) * g.k;
      for (int k = first; k < first + filters; ++k)
        sum += to_float(dy[k]) * to_float(p.w[static_cast<offset>(k) * g.pitch + r * g.s + s]);
    }
  }
  p.dx[i] = from_float(sum);
}

// A block sums 32 filters (lanes) through one tap over one split of pixels, which its warps share pixel by pixel. Grid:
// tiles of filters, taps, splits.
KERNEL(conv2d_wgrad_depthwise, Wgrad, DIRECT_THREADS) {
  SHARED(float, of_warps, DIRECT_THREADS);
  const Sizes& g = p.g;
  const int k = static_cast<int>(blockIdx.x * WARP + threadIdx.x % WARP), channel = k / g.group_k;
  const int tap = static_cast<int>(blockIdx.y), split = static_cast<int>(blockIdx.z);
  const int pixels = g.n * g.p * g.q, begin = split * p.split;
  const int end = pixels - begin < p.split ? pixels : begin + p.split;
  float sum = 0;
  for (int i = begin + static_cast<int>(threadIdx.x / WARP); i < end; i += DIRECT_THREADS / WARP) {
    const Pixel pixel = pixel_at(i, g.p, g.q);
    const int h = reach<false>(pixel.row, tap / g.s, g.stride_h, g.padding_h, g.dilation_h, g.h);
    const int w = reach<false>(pixel.column, tap % g.s, g.stride_w, g.padding_w, g.dilation_w, g.w);
    if (k >= g.k || h < 0 || w < 0) continue;
    const offset at = static_cast<offset>((pixel.image * g.h + h) * g.w + w) * g.c + channel;
    sum += to_float(p.dy[static_cast<offset>(i) * g.k + k]) * to_float(p.x[at]);
  }
  of_warps[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= WARP || k >= g.k) return;
  for (unsigned warp = 1; warp < DIRECT_THREADS / WARP; ++warp) sum += of_warps[warp * WARP + threadIdx.x];
  p.partial[(static_cast<offset>(split) * g.k + k) * p.partial_pitch + tap] = sum;
}
