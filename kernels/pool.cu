// modules: f32 bf16 f16
// Pooling of NHWC images, N × H × W × C to N × P × Q × C, over an R × S window, and over the whole image.
//
//   max_pool                y = max over the window of x, and which tap (r·S + s) attained it first; a NaN wins
//   max_pool_backward       dx = Σ dy over the outputs whose winner this input is
//   average_pool            y = Σ x / divisor
//   average_pool_backward   dx = Σ dy / divisor over the outputs that see this input
//   adaptive_average_pool   y = Σ x / pixels over rows ⌊p·H/P⌋ … ⌈(p + 1)·H/P⌉ − 1, likewise columns
//   adaptive_average_pool_backward   dx = Σ dy / pixels over the outputs that see this input
//   global_average_pool     y[n, c] = Σ x[n, ·, ·, c] / (H·W)
//   global_average_pool_backward   dx = dy[n, c] / (H·W)
//
// x, y, dx, dy are stored as `element`, but the N × C side of the global pool is f32; taps are bytes. The divisor is R·S, or
// the number of taps inside the image.
//
// Bound by memory: forward reads x R·S / stride² times, from the caches but for the first, and writes y; backward gathers,
// so that it writes each dx once and adds in one order, which is the order of the outputs. Geometry: a thread per 16 bytes
// of channels where C allows it, else per channel, of one pixel of what is written; 256 threads per block. The global mean
// has a block per image and chunk of channels: pixel_walk.cuh.
#include "pixel_walk.cuh"

struct Window {
  unsigned n, h, w, c, p, q;
  unsigned r, s;                    // size
  unsigned stride_h, stride_w;
  unsigned padding_h, padding_w;
  unsigned count_padding;           // whether an average divides by R·S everywhere
  unsigned vectorised;              // 1: units of 16 bytes of channels; 0: of one channel
};
static_assert(sizeof(Window) == 56, "as in src/ops/pool/gpu.rs");

// Where a thread's unit lies in an image of height · width pixels.
struct Pixel {
  unsigned n, row, column, channel;
};

// False where there is none. `g` has the images and channels.
template <unsigned WIDTH, class Sizes>
DEVICE bool find_pixel(const Sizes& g, unsigned height, unsigned width, Pixel& pixel) {
  // Fewer than 2³² units: a GPU divides 64-bit numbers by calling a function.
  const unsigned i = blockIdx.x * THREADS + threadIdx.x, units = g.c / WIDTH;
  pixel.channel = i % units * WIDTH;
  pixel.column = i / units % width;
  pixel.row = i / units / width % height;
  pixel.n = i / units / width / height;
  return pixel.n < g.n;
}

// The first element of an image; within one, 32 bits are enough.
DEVICE unsigned long long image(unsigned n, unsigned height, unsigned width, unsigned channels) {
  return static_cast<unsigned long long>(n) * height * width * channels;
}

// The taps begin..end of one axis that lie inside the image, for output `i`.
struct Range {
  unsigned begin, end;
};

DEVICE Range taps_inside(unsigned i, unsigned stride, unsigned padding, unsigned taps, unsigned size) {
  const unsigned start = i * stride;  // of the window, in the padded image
  const unsigned begin = start < padding ? padding - start : 0;
  const unsigned limit = size + padding - start;
  return {begin, taps < limit ? taps : limit};
}

// The outputs begin..end of one axis whose window covers input `i`.
DEVICE Range outputs_over(unsigned i, unsigned stride, unsigned padding, unsigned taps, unsigned outputs) {
  const unsigned place = i + padding;
  const unsigned begin = place < taps ? 0 : (place - taps) / stride + 1;
  const unsigned end = place / stride + 1;
  return {begin, end < outputs ? end : outputs};
}

// 1 / divisor, which is exact where the divisor is a power of two.
DEVICE float share_of_tap(const Window& g, Range r, Range s) {
  const unsigned counted = g.count_padding ? g.r * g.s : (r.end - r.begin) * (s.end - s.begin);
  return 1.0f / static_cast<float>(counted);
}

// One byte per channel of a unit.
template <unsigned WIDTH>
struct alignas(WIDTH) Taps {
  unsigned char v[WIDTH];
};

// ---- max -------------------------------------------------------------------------------------------------------------

struct MaxPool {
  const element* x;     // N × H × W × C
  element* y;           // N × P × Q × C
  unsigned char* taps;  // N × P × Q × C
  Window window;
};
static_assert(sizeof(MaxPool) == 80, "as in src/ops/pool/gpu.rs");

template <unsigned WIDTH>
DEVICE void max_over_window(const MaxPool& p) {
  const Window& g = p.window;
  Pixel at;
  if (!find_pixel<WIDTH>(g, g.p, g.q, at)) return;
  const Range rows = taps_inside(at.row, g.stride_h, g.padding_h, g.r, g.h);
  const Range columns = taps_inside(at.column, g.stride_w, g.padding_w, g.s, g.w);
  const element* image_x = p.x + image(at.n, g.h, g.w, g.c) + at.channel;
  Unit<WIDTH> best = {};
  Taps<WIDTH> winner = {};
  bool first = true;
  for (unsigned r = rows.begin; r < rows.end; ++r) {
    for (unsigned s = columns.begin; s < columns.end; ++s) {
      const unsigned h = at.row * g.stride_h + r - g.padding_h, w = at.column * g.stride_w + s - g.padding_w;
      const Unit<WIDTH> x = load_unit<WIDTH>(image_x + (h * g.w + w) * g.c);
      const unsigned char tap = static_cast<unsigned char>(r * g.s + s);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) {
        const bool wins = first || x.v[j] > best.v[j] || is_nan(x.v[j]);
        best.v[j] = wins ? x.v[j] : best.v[j];
        winner.v[j] = wins ? tap : winner.v[j];
      }
      first = false;
    }
  }
  const unsigned long long i = image(at.n, g.p, g.q, g.c) + (at.row * g.q + at.column) * g.c + at.channel;
  store_unit<WIDTH>(p.y + i, best);
  store_vector<Taps<WIDTH>>(p.taps + i, winner);
}

KERNEL(max_pool, MaxPool, THREADS) {
  if (p.window.vectorised) max_over_window<PACK>(p);
  else max_over_window<1>(p);
}

struct MaxPoolBackward {
  const element* dy;          // N × P × Q × C
  const unsigned char* taps;  // N × P × Q × C
  element* dx;                // N × H × W × C
  Window window;
};
static_assert(sizeof(MaxPoolBackward) == 80, "as in src/ops/pool/gpu.rs");

template <unsigned WIDTH>
DEVICE void gather_from_winners(const MaxPoolBackward& p) {
  const Window& g = p.window;
  Pixel at;
  if (!find_pixel<WIDTH>(g, g.h, g.w, at)) return;
  const Range rows = outputs_over(at.row, g.stride_h, g.padding_h, g.r, g.p);
  const Range columns = outputs_over(at.column, g.stride_w, g.padding_w, g.s, g.q);
  const unsigned long long outputs = image(at.n, g.p, g.q, g.c) + at.channel;
  Unit<WIDTH> dx = {};
  for (unsigned row = rows.begin; row < rows.end; ++row) {
#pragma unroll 1  // or the loops' unrolled copies do not fit the registers
    for (unsigned column = columns.begin; column < columns.end; ++column) {
      const unsigned r = at.row + g.padding_h - row * g.stride_h, s = at.column + g.padding_w - column * g.stride_w;
      const unsigned long long i = outputs + (row * g.q + column) * g.c;
      const Unit<WIDTH> dy = load_unit<WIDTH>(p.dy + i);
      const Taps<WIDTH> winner = load_vector<Taps<WIDTH>>(p.taps + i);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) dx.v[j] += winner.v[j] == r * g.s + s ? dy.v[j] : 0;
    }
  }
  store_unit<WIDTH>(p.dx + image(at.n, g.h, g.w, g.c) + (at.row * g.w + at.column) * g.c + at.channel, dx);
}

KERNEL(max_pool_backward, MaxPoolBackward, THREADS) {
  if (p.window.vectorised) gather_from_winners<PACK>(p);
  else gather_from_winners<1>(p);
}

// ---- average ---------------------------------------------------------------------------------------------------------

struct AveragePool {
  const element* x;  // N × H × W × C; backward: dy, N × P × Q × C
  element* y;        // N × P × Q × C; backward: dx, N × H × W × C
  Window window;
};
static_assert(sizeof(AveragePool) == 72, "as in src/ops/pool/gpu.rs");

template <unsigned WIDTH>
DEVICE void average_over_window(const AveragePool& p) {
  const Window& g = p.window;
  Pixel at;
  if (!find_pixel<WIDTH>(g, g.p, g.q, at)) return;
  const Range rows = taps_inside(at.row, g.stride_h, g.padding_h, g.r, g.h);
  const Range columns = taps_inside(at.column, g.stride_w, g.padding_w, g.s, g.w);
  const element* image_x = p.x + image(at.n, g.h, g.w, g.c) + at.channel;
  Unit<WIDTH> sum = {};
  for (unsigned r = rows.begin; r < rows.end; ++r) {
    for (unsigned s = columns.begin; s < columns.end; ++s) {
      const unsigned h = at.row * g.stride_h + r - g.padding_h, w = at.column * g.stride_w + s - g.padding_w;
      const Unit<WIDTH> x = load_unit<WIDTH>(image_x + (h * g.w + w) * g.c);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) sum.v[j] += x.v[j];
    }
  }
  const float factor = share_of_tap(g, rows, columns);
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) sum.v[j] *= factor;
  store_unit<WIDTH>(p.y + image(at.n, g.p, g.q, g.c) + (at.row * g.q + at.column) * g.c + at.channel, sum);
}

KERNEL(average_pool, AveragePool, THREADS) {
  if (p.window.vectorised) average_over_window<PACK>(p);
  else average_over_window<1>(p);
}

template <unsigned WIDTH>
DEVICE void gather_averages(const AveragePool& p) {
  const Window& g = p.window;
  Pixel at;
  if (!find_pixel<WIDTH>(g, g.h, g.w, at)) return;
  const Range rows = outputs_over(at.row, g.stride_h, g.padding_h, g.r, g.p);
  const Range columns = outputs_over(at.column, g.stride_w, g.padding_w, g.s, g.q);
  const unsigned long long outputs = image(at.n, g.p, g.q, g.c) + at.channel;
  Unit<WIDTH> dx = {};
#pragma unroll 1
  for (unsigned row = rows.begin; row < rows.end; ++row) {
    const Range r = taps_inside(row, g.stride_h, g.padding_h, g.r, g.h);
#pragma unroll 1  // of a division's slow path, one copy is enough: more do not fit the registers
    for (unsigned column = columns.begin; column < columns.end; ++column) {
      const float factor = share_of_tap(g, r, taps_inside(column, g.stride_w, g.padding_w, g.s, g.w));
      const Unit<WIDTH> dy = load_unit<WIDTH>(p.x + outputs + (row * g.q + column) * g.c);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) dx.v[j] += dy.v[j] * factor;
    }
  }
  store_unit<WIDTH>(p.y + image(at.n, g.h, g.w, g.c) + (at.row * g.w + at.column) * g.c + at.channel, dx);
}

KERNEL(average_pool_backward, AveragePool, THREADS) {
  if (p.window.vectorised) gather_averages<PACK>(p);
  else gather_averages<1>(p);
}

// ---- average over windows that cover the image, whatever its size ----------------------------------------------------

struct AdaptivePool {
  const element* x;  // N × H × W × C; backward: dy, N × P × Q × C
  element* y;        // N × P × Q × C; backward: dx, N × H × W × C
  unsigned n, h, w, c, p, q;
  unsigned vectorised;  // as in Window
  unsigned padding;
};
static_assert(sizeof(AdaptivePool) == 48, "as in src/ops/pool/gpu.rs");

// The members of the other side that member `i` of this one meets along an axis: the window of an output, and the outputs over
// an input.
DEVICE Range meets(unsigned i, unsigned ours, unsigned theirs) {
  return {i * theirs / ours, ((i + 1) * theirs + ours - 1) / ours};
}

template <unsigned WIDTH>
DEVICE void average_adaptively(const AdaptivePool& p) {
  Pixel at;
  if (!find_pixel<WIDTH>(p, p.p, p.q, at)) return;
  const Range rows = meets(at.row, p.p, p.h), columns = meets(at.column, p.q, p.w);
  const element* image_x = p.x + image(at.n, p.h, p.w, p.c) + at.channel;
  Unit<WIDTH> sum = {};
  for (unsigned h = rows.begin; h < rows.end; ++h) {
    for (unsigned w = columns.begin; w < columns.end; ++w) {
      const Unit<WIDTH> x = load_unit<WIDTH>(image_x + (h * p.w + w) * p.c);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) sum.v[j] += x.v[j];
    }
  }
  const float pixels = static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin));
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) sum.v[j] /= pixels;
  store_unit<WIDTH>(p.y + image(at.n, p.p, p.q, p.c) + (at.row * p.q + at.column) * p.c + at.channel, sum);
}

KERNEL(adaptive_average_pool, AdaptivePool, THREADS) {
  if (p.vectorised) average_adaptively<PACK>(p);
  else average_adaptively<1>(p);
}

template <unsigned WIDTH>
DEVICE void gather_adaptively(const AdaptivePool& p) {
  Pixel at;
  if (!find_pixel<WIDTH>(p, p.h, p.w, at)) return;
  const Range rows = meets(at.row, p.h, p.p), columns = meets(at.column, p.w, p.q);
  const element* image_dy = p.x + image(at.n, p.p, p.q, p.c) + at.channel;
  Unit<WIDTH> dx = {};
#pragma unroll 1
  for (unsigned row = rows.begin; row < rows.end; ++row) {
    const Range h = meets(row, p.p, p.h);
#pragma unroll 1
    for (unsigned column = columns.begin; column < columns.end; ++column) {
      const Range w = meets(column, p.q, p.w);
      const float pixels = static_cast<float>((h.end - h.begin) * (w.end - w.begin));
      const Unit<WIDTH> dy = load_unit<WIDTH>(image_dy + (row * p.q + column) * p.c);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) dx.v[j] += dy.v[j] / pixels;
    }
  }
  store_unit<WIDTH>(p.y + image(at.n, p.h, p.w, p.c) + (at.row * p.w + at.column) * p.c + at.channel, dx);
}

KERNEL(adaptive_average_pool_backward, AdaptivePool, THREADS) {
  if (p.vectorised) gather_adaptively<PACK>(p);
  else gather_adaptively<1>(p);
}

// ---- the whole image -------------------------------------------------------------------------------------------------

struct GlobalPool {
  const element* x;  // N × H·W × C
  float* y;          // N × C
  PixelWalk walk;         // `span` is H·W: block (n, ·) has image n
};
static_assert(sizeof(GlobalPool) == 40, "as in src/ops/pool/gpu.rs");

template <unsigned WIDTH>
DEVICE void average_image(const GlobalPool& p, SharedArray<float> sums) {
  const Share s = share<WIDTH>(p.walk);
  Unit<WIDTH> sum = {};
#pragma unroll 4
  for (unsigned i = 0; i < s.count; ++i) {
    const Unit<WIDTH> x = load_unit<WIDTH>(p.x + s.first + i * s.stride);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) sum.v[j] += x.v[j];
  }
  share_unit<WIDTH>(sums, sum);
  __syncthreads();
  const unsigned channel = channel_to_finish<WIDTH>(p.walk);
  if (threadIdx.x >= p.walk.columns * WIDTH || channel >= p.walk.channels) return;
  const float pixels = static_cast<float>(p.walk.span);
  p.y[static_cast<unsigned long long>(blockIdx.x) * p.walk.channels + channel] = sum_over_rows<WIDTH>(p.walk, sums) / pixels;
}

KERNEL(global_average_pool, GlobalPool, THREADS) {
  SHARED(float, sums, THREADS * PACK);
  if (p.walk.vectorised) average_image<PACK>(p, sums);
  else average_image<1>(p, sums);
}

struct GlobalPoolBackward {
  const float* dy;  // N × C
  element* dx;      // N × H·W × C
  PixelWalk walk;
};
static_assert(sizeof(GlobalPoolBackward) == 40, "as in src/ops/pool/gpu.rs");

template <unsigned WIDTH>
DEVICE void spread_over_image(const GlobalPoolBackward& p) {
  const Share s = share<WIDTH>(p.walk);
  if (s.count == 0) return;
  const float pixels = static_cast<float>(p.walk.span);
  Unit<WIDTH> d = load_floats<WIDTH>(p.dy + static_cast<unsigned long long>(blockIdx.x) * p.walk.channels + s.channel);
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) d.v[j] /= pixels;
  for (unsigned i = 0; i < s.count; ++i) store_unit<WIDTH>(p.dx + s.first + i * s.stride, d);
}

KERNEL(global_average_pool_backward, GlobalPoolBackward, THREADS) {
  if (p.walk.vectorised) spread_over_image<PACK>(p);
  else spread_over_image<1>(p);
}
