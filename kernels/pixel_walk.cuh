// How a block walks over a matrix of pixels × C, N·H·W pixels one after the other, whose columns are reduced or scaled.
//
// `columns` threads side by side (a power of two, at most a warp) hold a unit of channels each: 16 bytes of storage where
// C allows it, else one element. THREADS / columns rows of such threads share the `span` pixels of block (b, ·) between
// them, row r taking pixels r, r + rows, …; so a warp reads whole sectors, and a thread meets one unit of channels only.
// The grid is splits of the pixels × chunks of the channels. Everything depends on the shape alone, and so does the order
// of every sum.
#pragma once

#include "common.cuh"

constexpr unsigned THREADS = 256;

struct PixelWalk {
  unsigned pixels, channels;
  unsigned columns;     // threads side by side
  unsigned span;        // pixels per block
  unsigned vectorised;  // 1: units of 16 bytes; 0: units of one element
  unsigned padding;
};
static_assert(sizeof(PixelWalk) == 24, "as in src/ops/pixel_walk.rs");

// A unit of channels, as floats.
template <unsigned WIDTH>
struct Unit {
  float v[WIDTH];
};

// A thread's share of the walk.
struct Share {
  unsigned channel;  // the first of its unit; beyond the last channel: nothing to do
  unsigned row, rows;
  unsigned begin;    // the block's first pixel
  unsigned length;   // and how many it has
  unsigned count;    // how many of them are this thread's
  unsigned long long first;   // its first element
  unsigned long long stride;  // elements from one of its pixels to the next
};

// How many of `length` pixels are those of row `row`.
DEVICE unsigned pixels_of_row(unsigned length, unsigned row, unsigned rows) {
  return length / rows + (row < length % rows ? 1 : 0);
}

template <unsigned WIDTH>
DEVICE Share share(const PixelWalk& walk) {
  Share s;
  s.rows = THREADS / walk.columns;
  s.row = threadIdx.x / walk.columns;
  s.channel = (blockIdx.y * walk.columns + threadIdx.x % walk.columns) * WIDTH;
  s.begin = blockIdx.x * walk.span;
  s.length = walk.pixels - s.begin < walk.span ? walk.pixels - s.begin : walk.span;
  s.count = s.channel < walk.channels ? pixels_of_row(s.length, s.row, s.rows) : 0;
  s.first = static_cast<unsigned long long>(s.begin + s.row) * walk.channels + s.channel;
  s.stride = static_cast<unsigned long long>(s.rows) * walk.channels;
  return s;
}

// The channel whose sums over the rows thread t < columns · WIDTH of the block finishes.
template <unsigned WIDTH>
DEVICE unsigned channel_to_finish(const PixelWalk& walk) {
  return blockIdx.y * walk.columns * WIDTH + threadIdx.x;
}

template <unsigned WIDTH>
DEVICE Unit<WIDTH> load_unit(const element* from) {
  Unit<WIDTH> unit;
  if constexpr (WIDTH == 1) {
    unit.v[0] = to_float(*from);
  } else {
    static_assert(WIDTH == PACK, "16 bytes or one element");
    const Pack pack = load_pack(from);
#pragma unroll
    for (unsigned i = 0; i < WIDTH; ++i) unit.v[i] = pack.v[i];
  }
  return unit;
}

template <unsigned WIDTH>
DEVICE void store_unit(element* to, const Unit<WIDTH>& unit) {
  if constexpr (WIDTH == 1) {
    *to = from_float(unit.v[0]);
  } else {
    static_assert(WIDTH == PACK, "16 bytes or one element");
    Pack pack;
#pragma unroll
    for (unsigned i = 0; i < WIDTH; ++i) pack.v[i] = unit.v[i];
    store_pack(to, pack);
  }
}

// As many f32 as a unit has channels.
template <unsigned WIDTH>
DEVICE Unit<WIDTH> load_floats(const float* from) {
  Unit<WIDTH> unit;
  if constexpr (WIDTH == 1) {
    unit.v[0] = *from;
  } else {
#pragma unroll
    for (unsigned i = 0; i < WIDTH; i += 4) {
      const float4 v = load4(from + i);
      unit.v[i] = v.x;
      unit.v[i + 1] = v.y;
      unit.v[i + 2] = v.z;
      unit.v[i + 3] = v.w;
    }
  }
  return unit;
}

// Puts the unit of every thread into shared memory, THREADS · WIDTH floats: row after row, each of columns · WIDTH.
template <unsigned WIDTH>
DEVICE void share_unit(SharedArray<float> to, const Unit<WIDTH>& unit) {
  if constexpr (WIDTH == 1) {
    to[threadIdx.x] = unit.v[0];
  } else {
#pragma unroll
    for (unsigned i = 0; i < WIDTH; i += 4)
      shared_store4(to, threadIdx.x * WIDTH + i, make_float4(unit.v[i], unit.v[i + 1], unit.v[i + 2], unit.v[i + 3]));
  }
}

// The sum over the rows of what `share_unit` put there, for thread t < columns · WIDTH. In groups, whose sums are small, so
// that less is rounded away.
template <unsigned WIDTH>
DEVICE float sum_over_rows(const PixelWalk& walk, SharedArray<float> units) {
  constexpr unsigned GROUP = 8;
  const unsigned rows = THREADS / walk.columns, width = walk.columns * WIDTH;
  float sum = 0;
  for (unsigned row = 0; row < rows; row += GROUP) {
    float group = 0;
#pragma unroll
    for (unsigned i = 0; i < GROUP; ++i) group += units[(row + i) * width + threadIdx.x];
    sum += group;
  }
  return sum;
}
static_assert(THREADS / WARP % 8 == 0, "rows come in groups of 8");
