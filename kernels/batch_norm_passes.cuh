// The passes of batch normalisation over x in one tensor or in several: batch_norm.cu says what they compute.
#pragma once

#include "batch_norm.cuh"
#include "pixel_walk.cuh"

// ---- statistics ----------------------------------------------------------------------------------------------------

// A thread's pixels of x: where the first one lies, and elements to the next.
struct Line {
  unsigned long long first, stride;
};

template <bool PARTS>
DEVICE Line line_of(const Places& places, const Share& s) {
  if constexpr (!PARTS) return {s.first, s.stride};
  const Column column = column_of(places, s.channel);
  return {column.begin + static_cast<unsigned long long>(s.begin + s.row) * column.pitch,
          static_cast<unsigned long long>(s.rows) * column.pitch};
}

// Where the number of pixel 0 lies.
template <bool PARTS>
DEVICE unsigned long long origin_of(const Places& places, unsigned channel) {
  if constexpr (!PARTS) return channel;
  return column_of(places, channel).begin;
}

struct PartialStatistics {
  const element* x;  // n × C
  float* partial;    // splits × 2 × C: mean less x[0, c], sum of squared distances from the mean
  PixelWalk walk;
  Places places;
};
static_assert(sizeof(PartialStatistics) == 64, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, bool PARTS>
DEVICE void partial_statistics(const PartialStatistics& p, SharedArray<float> means, SharedArray<float> spreads) {
  const Share s = share<WIDTH>(p.walk);
  Unit<WIDTH> mean = {}, spread = {};
  if (s.count > 0) {
    const Line line = line_of<PARTS>(p.places, s);
    const element* x = p.x + line.first;
    const Unit<WIDTH> shift = load_unit<WIDTH>(x), origin = load_unit<WIDTH>(p.x + origin_of<PARTS>(p.places, s.channel));
    Unit<WIDTH> sum = {}, squares = {};
#pragma unroll 4
    for (unsigned i = 1; i < s.count; ++i) {
      const Unit<WIDTH> v = load_unit<WIDTH>(x + i * line.stride);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) {
        const float distance = v.v[j] - shift.v[j];
        sum.v[j] += distance;
        squares.v[j] += distance * distance;
      }
    }
    const float count = static_cast<float>(s.count);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) {
      // 0, but NaN where the first value is not finite: it is in no sum, being at no distance from itself.
      const float self = shift.v[j] - shift.v[j];
      const float offset = sum.v[j] / count + self;
      mean.v[j] = (shift.v[j] - origin.v[j]) + offset;
      const float rest = squares.v[j] - sum.v[j] * offset;
      spread.v[j] = rest < 0 ? 0 : rest;
    }
  }
  share_unit<WIDTH>(means, mean);
  share_unit<WIDTH>(spreads, spread);
  __syncthreads();
  const unsigned channel = channel_to_finish<WIDTH>(p.walk), width = p.walk.columns * WIDTH;
  if (threadIdx.x >= width || channel >= p.walk.channels) return;
  float sum = 0;
  for (unsigned row = 0; row < s.rows; ++row)
    sum += static_cast<float>(pixels_of_row(s.length, row, s.rows)) * means[row * width + threadIdx.x];
  const float middle = sum / static_cast<float>(s.length);
  float squares = 0;
  for (unsigned row = 0; row < s.rows; ++row) {
    const float distance = means[row * width + threadIdx.x] - middle;
    const float count = static_cast<float>(pixels_of_row(s.length, row, s.rows));
    squares += spreads[row * width + threadIdx.x] + count * distance * distance;
  }
  float* partial = p.partial + static_cast<unsigned long long>(blockIdx.x) * 2 * p.walk.channels + channel;
  partial[0] = middle;
  partial[p.walk.channels] = squares;
}

// ---- from the sums of splits, or of a convolution's tiles, to those over all pixels ----------------------------------------
//
// A block takes four channels, or one where C is no multiple of four; a thread every FINISHERS-th tile. There may be thousands
// of tiles and few channels, or few tiles and thousands of channels: blocks are large, or a warp each.

constexpr unsigned MANY = 512, FEW = WARP;  // FINISHERS: threads of a block
constexpr unsigned GROUP = 16;              // threads whose sums are added up first

// The sums over all threads, in every one of them. `scratch` holds FINISHERS · WIDTH floats, `sums` as many as there are
// groups, and one, times WIDTH.
template <unsigned WIDTH, unsigned FINISHERS>
DEVICE Unit<WIDTH> sum_over_block(const Unit<WIDTH>& v, SharedArray<float> scratch, SharedArray<float> sums) {
  constexpr unsigned GROUPS = FINISHERS / GROUP;
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) scratch[j * FINISHERS + threadIdx.x] = v.v[j];
  __syncthreads();
  if (threadIdx.x < GROUPS * WIDTH) {
    const unsigned first = threadIdx.x / GROUPS * FINISHERS + threadIdx.x % GROUPS;
    float sum = 0;
#pragma unroll
    for (unsigned i = 0; i < GROUP; ++i) sum += scratch[first + i * GROUPS];
    sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x < WIDTH) {
    float sum = 0;
#pragma unroll 8
    for (unsigned i = 0; i < GROUPS; ++i) sum += sums[threadIdx.x * GROUPS + i];
    sums[GROUPS * WIDTH + threadIdx.x] = sum;
  }
  __syncthreads();
  Unit<WIDTH> total;
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) total.v[j] = sums[GROUPS * WIDTH + j];
  return total;
}
static_assert(FEW / GROUP * 4 <= FEW && MANY / GROUP * 4 <= MANY, "a thread for each group");

struct FinishStatistics {
  const element* x;       // n × C, of whose first row the means are relative; null: of zero
  const float* partial;   // splits × 2 × C
  float* mean;            // C
  float* rstd;            // C
  float* batch_mean;      // C, or null: for running statistics, as is the next
  float* batch_variance;  // C, or null: unbiased
  unsigned pixels, channels, splits;
  unsigned span;          // pixels per split; the last one may have fewer
  float epsilon;
  unsigned vectorised;    // 1: C is a multiple of four
  Places places;
};
static_assert(sizeof(FinishStatistics) == 96, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, unsigned FINISHERS, bool PARTS>
DEVICE void finish_statistics(const FinishStatistics& p, SharedArray<float> scratch, SharedArray<float> sums) {
  const unsigned channel = blockIdx.x * WIDTH, last = p.splits - 1;
  const float full = static_cast<float>(p.span), rest = static_cast<float>(p.pixels - last * p.span);
  const float count = static_cast<float>(p.pixels);
  const float* partial = p.partial + channel;
  const unsigned long long stride = 2ull * p.channels;
  // The means lie close together even where all of them are far from zero.
  const Unit<WIDTH> first = load_floats<WIDTH>(partial);
  Unit<WIDTH> offset = {}, squares = {};
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < p.splits; i += FINISHERS) {
    const Unit<WIDTH> mean = load_floats<WIDTH>(partial + i * stride);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) offset.v[j] += (i < last ? full : rest) * (mean.v[j] - first.v[j]);
  }
  offset = sum_over_block<WIDTH, FINISHERS>(offset, scratch, sums);
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) offset.v[j] /= count;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < p.splits; i += FINISHERS) {
    const Unit<WIDTH> mean = load_floats<WIDTH>(partial + i * stride);
    const Unit<WIDTH> apart = load_floats<WIDTH>(partial + i * stride + p.channels);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) {
      const float distance = (mean.v[j] - first.v[j]) - offset.v[j];
      squares.v[j] += apart.v[j] + (i < last ? full : rest) * distance * distance;
    }
  }
  // The total of the sum before may still be read, but not its scratch.
  squares = sum_over_block<WIDTH, FINISHERS>(squares, scratch, sums + (FINISHERS / GROUP + 1) * WIDTH);
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) {
    if (threadIdx.x != j) continue;
    const unsigned c = channel + j;
    const float mean = (p.x == nullptr ? 0.0f : to_float(p.x[origin_of<PARTS>(p.places, c)])) + (first.v[j] + offset.v[j]);
    p.mean[c] = mean;
    p.rstd[c] = 1.0f / sqrtf(squares.v[j] / count + p.epsilon);
    if (p.batch_mean != nullptr) {
      p.batch_mean[c] = mean;
      p.batch_variance[c] = squares.v[j] / static_cast<float>(p.pixels > 1 ? p.pixels - 1 : 1);
    }
  }
}

// ---- gradients of γ and β --------------------------------------------------------------------------------------------

// Where a gradient passes.
constexpr unsigned WHOLE = 0;      // everywhere: no ReLU, or it has been cut already
constexpr unsigned BY_INPUT = 1;   // where x, normalised, is above zero
constexpr unsigned BY_OUTPUT = 2;  // where `out` is

struct GradientSums {
  const element* x;    // n × C
  const element* dy;   // n × C
  const element* out;  // n × C, read if cut BY_OUTPUT
  element* dz;         // n × C, written if cut BY_OUTPUT; may be dy
  const float* mean;   // C
  const float* rstd;   // C, like the next two read if cut BY_INPUT
  const float* gamma;  // C
  const float* beta;   // C
  float* partial;      // splits × 2 × C: Σ dz, Σ dz·(x − μ)
  unsigned cut, padding;
  PixelWalk walk;
  Places places;
};
static_assert(sizeof(GradientSums) == 128, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, unsigned CUT, bool PARTS>
DEVICE void partial_gradients(const GradientSums& p, SharedArray<float> betas, SharedArray<float> gammas) {
  const Share s = share<WIDTH>(p.walk);
  Unit<WIDTH> beta = {}, gamma = {};
  if (s.count > 0) {
    const Line line = line_of<PARTS>(p.places, s);
    const Unit<WIDTH> mean = load_floats<WIDTH>(p.mean + s.channel);
    Unit<WIDTH> scale, shift;
    if constexpr (CUT == BY_INPUT) {
      const Unit<WIDTH> g = load_floats<WIDTH>(p.gamma + s.channel), rstd = load_floats<WIDTH>(p.rstd + s.channel);
      shift = load_floats<WIDTH>(p.beta + s.channel);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) scale.v[j] = g.v[j] * rstd.v[j];
    }
#pragma unroll 2
    for (unsigned i = 0; i < s.count; ++i) {
      const unsigned long long at = s.first + i * s.stride;
      const Unit<WIDTH> v = load_unit<WIDTH>(p.x + (PARTS ? line.first + i * line.stride : at));
      Unit<WIDTH> d = load_unit<WIDTH>(p.dy + at);
      if constexpr (CUT == BY_INPUT) {
#pragma unroll
        for (unsigned j = 0; j < WIDTH; ++j)
          if (is_cut(normalized(v.v[j], mean.v[j], scale.v[j], shift.v[j]))) d.v[j] = 0;
      } else if constexpr (CUT == BY_OUTPUT) {
        const Unit<WIDTH> out = load_unit<WIDTH>(p.out + at);
#pragma unroll
        for (unsigned j = 0; j < WIDTH; ++j)
          if (out.v[j] <= 0) d.v[j] = 0;
        store_unit<WIDTH>(p.dz + at, d);
      }
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) {
        beta.v[j] += d.v[j];
        gamma.v[j] += d.v[j] * (v.v[j] - mean.v[j]);
      }
    }
  }
  share_unit<WIDTH>(betas, beta);
  share_unit<WIDTH>(gammas, gamma);
  __syncthreads();
  const unsigned channel = channel_to_finish<WIDTH>(p.walk);
  if (threadIdx.x >= p.walk.columns * WIDTH || channel >= p.walk.channels) return;
  float* partial = p.partial + static_cast<unsigned long long>(blockIdx.x) * 2 * p.walk.channels + channel;
  partial[0] = sum_over_rows<WIDTH>(p.walk, betas);
  partial[p.walk.channels] = sum_over_rows<WIDTH>(p.walk, gammas);
}

template <unsigned WIDTH, bool PARTS>
DEVICE void cut_gradients(const GradientSums& p, SharedArray<float> betas, SharedArray<float> gammas) {
  if (p.cut == BY_INPUT) partial_gradients<WIDTH, BY_INPUT, PARTS>(p, betas, gammas);
  else if (p.cut == BY_OUTPUT) partial_gradients<WIDTH, BY_OUTPUT, PARTS>(p, betas, gammas);
  else partial_gradients<WIDTH, WHOLE, PARTS>(p, betas, gammas);
}

struct FinishGradients {
  const float* partial;  // splits × 2 × C
  const float* rstd;     // C
  float* dgamma;         // C, or null
  float* dbeta;          // C, or null
  float* means;          // 2 × C, or null: what input_gradient takes off
  unsigned pixels, channels, splits;
  unsigned vectorised;   // 1: C is a multiple of four
};
static_assert(sizeof(FinishGradients) == 56, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, unsigned FINISHERS>
DEVICE void finish_gradients(const FinishGradients& p, SharedArray<float> scratch, SharedArray<float> sums) {
  const unsigned channel = blockIdx.x * WIDTH;
  const float* partial = p.partial + channel;
  const unsigned long long stride = 2ull * p.channels;
  Unit<WIDTH> beta = {}, gamma = {};
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < p.splits; i += FINISHERS) {
    const Unit<WIDTH> b = load_floats<WIDTH>(partial + i * stride);
    const Unit<WIDTH> g = load_floats<WIDTH>(partial + i * stride + p.channels);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) {
      beta.v[j] += b.v[j];
      gamma.v[j] += g.v[j];
    }
  }
  beta = sum_over_block<WIDTH, FINISHERS>(beta, scratch, sums);
  gamma = sum_over_block<WIDTH, FINISHERS>(gamma, scratch, sums + (FINISHERS / GROUP + 1) * WIDTH);
  const float count = static_cast<float>(p.pixels);
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) {
    if (threadIdx.x != j) continue;
    const unsigned c = channel + j;
    const float rstd = p.rstd[c], of_gamma = gamma.v[j] * rstd;
    if (p.dgamma != nullptr) p.dgamma[c] = of_gamma;
    if (p.dbeta != nullptr) p.dbeta[c] = beta.v[j];
    if (p.means != nullptr) {
      p.means[c] = beta.v[j] / count;
      p.means[p.channels + c] = rstd * of_gamma / count;
    }
  }
}

// ---- element by element ----------------------------------------------------------------------------------------------

struct Normalization {
  const float* mean;   // C
  const float* rstd;   // C
  const float* gamma;  // C
  const float* beta;   // C
};

// What is added to a normalisation.
constexpr unsigned NOTHING = 0, RESIDUAL = 1, NORMALIZED_RESIDUAL = 2;

struct Normalize {
  const element* x;           // n × C
  Normalization by;
  const element* residual;    // n × C, or null
  Normalization of_residual;  // what it is normalised by before it is added, by normalize_two
  element* out;               // n × C; may be x, where that is one tensor
  unsigned char* signs;       // n × C / PACK, or null: with a residual, bit i is set where number i of 16 bytes of `out` is not zero
  unsigned relu, padding;
  PixelWalk walk;             // with signs vectorised
  Places places;
};
static_assert(sizeof(Normalize) == 152, "as in src/ops/batch_norm/gpu.rs");

// What a normalisation of a unit of channels needs.
template <unsigned WIDTH>
struct UnitOfNorm { Unit<WIDTH> mean, scale, beta; };

template <unsigned WIDTH>
DEVICE UnitOfNorm<WIDTH> load_norm(const Normalization& by, unsigned channel) {
  const Unit<WIDTH> gamma = load_floats<WIDTH>(by.gamma + channel), rstd = load_floats<WIDTH>(by.rstd + channel);
  UnitOfNorm<WIDTH> unit = {load_floats<WIDTH>(by.mean + channel), {}, load_floats<WIDTH>(by.beta + channel)};
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) unit.scale.v[j] = gamma.v[j] * rstd.v[j];
  return unit;
}

template <unsigned WIDTH, unsigned ADDED, bool PARTS>
DEVICE void normalize(const Normalize& p) {
  const Share s = share<WIDTH>(p.walk);
  if (s.count == 0) return;
  const UnitOfNorm<WIDTH> by = load_norm<WIDTH>(p.by, s.channel);
  UnitOfNorm<WIDTH> other = {};
  if constexpr (ADDED == NORMALIZED_RESIDUAL) other = load_norm<WIDTH>(p.of_residual, s.channel);
  const float floor = p.relu ? 0.0f : -infinity();
  const Line line = line_of<PARTS>(p.places, s);
  // With six numbers per channel at hand, there are no registers for two pixels.
#pragma unroll(ADDED == NORMALIZED_RESIDUAL ? 1 : 2)
  for (unsigned i = 0; i < s.count; ++i) {
    const unsigned long long at = s.first + i * s.stride;
    Unit<WIDTH> v = load_unit<WIDTH>(p.x + (PARTS ? line.first + i * line.stride : at)), residual = {};
    if constexpr (ADDED != NOTHING) residual = load_unit<WIDTH>(p.residual + at);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) {
      v.v[j] = normalized(v.v[j], by.mean.v[j], by.scale.v[j], by.beta.v[j]);
      if constexpr (ADDED == NORMALIZED_RESIDUAL)
        residual.v[j] = normalized(residual.v[j], other.mean.v[j], other.scale.v[j], other.beta.v[j]);
      if constexpr (ADDED != NOTHING) v.v[j] += residual.v[j];
      // Not the larger of the two, which a NaN would not be.
      if (v.v[j] <= floor) v.v[j] = floor;
    }
    store_unit<WIDTH>(p.out + at, v);
    if constexpr (ADDED != NOTHING && WIDTH == PACK)
      if (p.signs != nullptr) {
        unsigned bits = 0;
#pragma unroll
        for (unsigned j = 0; j < WIDTH; ++j) bits |= is_cut(v.v[j]) ? 0 : 1u << j;
        p.signs[at / PACK] = static_cast<unsigned char>(bits);
      }
  }
}

template <unsigned WIDTH, bool PARTS>
DEVICE void normalize_any(const Normalize& p) {
  if (p.residual == nullptr) normalize<WIDTH, NOTHING, PARTS>(p);
  else normalize<WIDTH, RESIDUAL, PARTS>(p);
}

template <bool PARTS>
DEVICE void normalize_two(const Normalize& p) {
  if (p.walk.vectorised) normalize<PACK, NORMALIZED_RESIDUAL, PARTS>(p);
  else normalize<1, NORMALIZED_RESIDUAL, PARTS>(p);
}

struct InputGradient {
  const element* dy;   // n × C
  element* dx;         // n × C, as x lies; may be dy, where that is one tensor
  const element* x;    // n × C
  const float* mean;   // C
  const float* rstd;   // C
  const float* gamma;  // C
  const float* beta;   // C, read if cut BY_INPUT
  const float* means;  // 2 × C as batch_norm_gradients_finish leaves them, or null in inference
  unsigned cut;        // WHOLE or BY_INPUT
  unsigned adds;       // 1: to what is there; parts alone are added to
  PixelWalk walk;
  Places places;
};
static_assert(sizeof(InputGradient) == 120, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, bool CUT, bool TRAINING, bool PARTS>
DEVICE void input_gradient(const InputGradient& p) {
  const Share s = share<WIDTH>(p.walk);
  if (s.count == 0) return;
  const Unit<WIDTH> gamma = load_floats<WIDTH>(p.gamma + s.channel), rstd = load_floats<WIDTH>(p.rstd + s.channel);
  const Line line = line_of<PARTS>(p.places, s);
  // dx = scale·(dz − offset − (x − μ)·slope)
  Unit<WIDTH> scale, mean = {}, beta = {}, offset = {}, slope = {};
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) scale.v[j] = gamma.v[j] * rstd.v[j];
  if constexpr (CUT || TRAINING) mean = load_floats<WIDTH>(p.mean + s.channel);
  if constexpr (CUT) beta = load_floats<WIDTH>(p.beta + s.channel);
  if constexpr (TRAINING) {
    offset = load_floats<WIDTH>(p.means + s.channel);
    slope = load_floats<WIDTH>(p.means + p.walk.channels + s.channel);
  }
  // With five numbers per channel at hand, there are no registers for two pixels.
#pragma unroll(CUT && TRAINING ? 1 : 2)
  for (unsigned i = 0; i < s.count; ++i) {
    const unsigned long long at = s.first + i * s.stride;
    const unsigned long long place = PARTS ? line.first + i * line.stride : at;
    Unit<WIDTH> d = load_unit<WIDTH>(p.dy + at), v = {};
    if constexpr (CUT || TRAINING) v = load_unit<WIDTH>(p.x + place);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) {
      if constexpr (CUT)
        if (is_cut(normalized(v.v[j], mean.v[j], scale.v[j], beta.v[j]))) d.v[j] = 0;
      if constexpr (TRAINING) d.v[j] = d.v[j] - offset.v[j] - (v.v[j] - mean.v[j]) * slope.v[j];
      // In parts a product of its own, so that the same number is added as where another kernel adds it.
      d.v[j] = PARTS ? __fmul_rn(d.v[j], scale.v[j]) : d.v[j] * scale.v[j];
    }
    if (PARTS && p.adds) {
      const Unit<WIDTH> sum = load_unit<WIDTH>(p.dx + place);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) d.v[j] += sum.v[j];
    }
    store_unit<WIDTH>(p.dx + place, d);
  }
}

template <unsigned WIDTH, bool PARTS>
DEVICE void input_gradient_any(const InputGradient& p) {
  const bool training = p.means != nullptr;
  if (p.cut == BY_INPUT && training) input_gradient<WIDTH, true, true, PARTS>(p);
  else if (p.cut == BY_INPUT) input_gradient<WIDTH, true, false, PARTS>(p);
  else if (training) input_gradient<WIDTH, false, true, PARTS>(p);
  else input_gradient<WIDTH, false, false, PARTS>(p);
}
