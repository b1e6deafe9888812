// Batch normalisation per channel, over the n = N·H·W pixels of an NHWC tensor.
//
//   statistics           μ = Σ x / n,   σ² = Σ (x − μ)² / n
//   reciprocal_deviation rstd = 1 / √(σ² + ε)
//   normalize            y = (x − μ)·γ·rstd + β
//   parameter_gradients  dβ = Σ dy,   dγ = rstd · Σ dy·(x − μ)
//   input_gradient       dx = γ·rstd·(dy − dβ/n − (x − μ)·rstd·dγ/n), without the two middle terms in inference
//   update_running       running += momentum·(batch − running)
//
// x, y, dx, dy are n × C, stored as `element`; whatever there is one of per channel is f32.
//
// Everything is bound by memory: statistics reads x once, parameter_gradients x and dy, normalize reads x and writes y,
// input_gradient reads both and writes one; some 5 FLOPs per element. Geometry: tile.cuh. The sums take two launches: each
// block writes those over its pixels to a workspace of splits × 2 × C floats, and a second kernel adds them up, 8 channels
// per block, 32 threads to a channel.
//
// The variance is accurate to a few units in the last place whatever the mean: a thread sums x − s and (x − s)², s its own
// first value, so that the square of the sum, subtracted, takes away at most as many digits as the count of its pixels
// has. Means are kept relative to x[0, c], or a mean far from zero would round the distances between them; threads,
// and then blocks, are put together by  Σ (x − μ)² = Σᵢ [Mᵢ + nᵢ·(μᵢ − μ)²].  No clamping beyond the rounding of one thread:
// a NaN or an infinity in x comes out as a variance that is not finite.
#include "tile.cuh"

// ---- statistics ----------------------------------------------------------------------------------------------------

struct PartialStatistics {
  const element* x;  // n × C
  float* partial;    // splits × 2 × C: mean less x[0, c], sum of squared distances from the mean
  Tile tile;
};
static_assert(sizeof(PartialStatistics) == 40, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH>
DEVICE void partial_statistics(const PartialStatistics& p, SharedArray<float> means, SharedArray<float> spreads) {
  const Share s = share<WIDTH>(p.tile);
  Unit<WIDTH> mean = {}, spread = {};
  if (s.count > 0) {
    const element* x = p.x + s.first;
    const Unit<WIDTH> shift = load_unit<WIDTH>(x), origin = load_unit<WIDTH>(p.x + s.channel);
    Unit<WIDTH> sum = {}, squares = {};
#pragma unroll 4
    for (unsigned i = 1; i < s.count; ++i) {
      const Unit<WIDTH> v = load_unit<WIDTH>(x + i * s.stride);
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
  const unsigned channel = channel_to_finish<WIDTH>(p.tile), width = p.tile.columns * WIDTH;
  if (threadIdx.x >= width || channel >= p.tile.channels) return;
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
  float* partial = p.partial + static_cast<unsigned long long>(blockIdx.x) * 2 * p.tile.channels + channel;
  partial[0] = middle;
  partial[p.tile.channels] = squares;
}

KERNEL(batch_norm_statistics, PartialStatistics, THREADS) {
  SHARED(float, means, THREADS * PACK);
  SHARED(float, spreads, THREADS * PACK);
  if (p.tile.vectorised) partial_statistics<PACK>(p, means, spreads);
  else partial_statistics<1>(p, means, spreads);
}

// ---- from the blocks' sums to those over all pixels -------------------------------------------------------------------

constexpr unsigned CHANNELS = 8;                // of a block that finishes
constexpr unsigned LANES = THREADS / CHANNELS;  // threads to a channel

// The sum over the LANES of this thread's channel, in every one of them.
DEVICE float sum_over_lanes(float v, SharedArray<float> scratch) {
  scratch[threadIdx.x] = v;
  __syncthreads();
  float sum = 0;
#pragma unroll 8
  for (unsigned lane = 0; lane < LANES; ++lane) sum += scratch[lane * CHANNELS + threadIdx.x % CHANNELS];
  __syncthreads();
  return sum;
}

struct FinishStatistics {
  const element* x;      // n × C, of which the first row is read
  const float* partial;  // splits × 2 × C
  float* mean;           // C
  float* variance;       // C
  unsigned pixels, channels, splits;
  unsigned span;         // pixels per split; the last one may have fewer
};
static_assert(sizeof(FinishStatistics) == 48, "as in src/ops/batch_norm/gpu.rs");

KERNEL(batch_norm_statistics_finish, FinishStatistics, THREADS) {
  SHARED(float, scratch, THREADS);
  const unsigned channel = blockIdx.x * CHANNELS + threadIdx.x % CHANNELS, lane = threadIdx.x / CHANNELS;
  const unsigned splits = channel < p.channels ? p.splits : 0;
  const unsigned last = p.splits - 1;
  const float full = static_cast<float>(p.span), rest = static_cast<float>(p.pixels - last * p.span);
  const float count = static_cast<float>(p.pixels);
  const float* partial = p.partial + channel;
  const unsigned long long stride = 2ull * p.channels;
  float sum = 0;
#pragma unroll 4
  for (unsigned i = lane; i < splits; i += LANES) sum += (i < last ? full : rest) * partial[i * stride];
  const float offset = sum_over_lanes(sum, scratch) / count;
  float squares = 0;
#pragma unroll 4
  for (unsigned i = lane; i < splits; i += LANES) {
    const float distance = partial[i * stride] - offset;
    squares += partial[i * stride + p.channels] + (i < last ? full : rest) * distance * distance;
  }
  squares = sum_over_lanes(squares, scratch);
  if (lane == 0 && channel < p.channels) {
    p.mean[channel] = to_float(p.x[channel]) + offset;
    p.variance[channel] = squares / count;
  }
}

// ---- gradients of γ and β --------------------------------------------------------------------------------------------

struct GradientSums {
  const element* x;   // n × C
  const element* dy;  // n × C
  const float* mean;  // C
  float* partial;     // splits × 2 × C: Σ dy, Σ dy·(x − μ)
  Tile tile;
};
static_assert(sizeof(GradientSums) == 56, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH>
DEVICE void partial_gradients(const GradientSums& p, SharedArray<float> betas, SharedArray<float> gammas) {
  const Share s = share<WIDTH>(p.tile);
  Unit<WIDTH> beta = {}, gamma = {};
  if (s.count > 0) {
    const element *x = p.x + s.first, *dy = p.dy + s.first;
    const Unit<WIDTH> mean = load_floats<WIDTH>(p.mean + s.channel);
#pragma unroll 2
    for (unsigned i = 0; i < s.count; ++i) {
      const Unit<WIDTH> v = load_unit<WIDTH>(x + i * s.stride), d = load_unit<WIDTH>(dy + i * s.stride);
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
  const unsigned channel = channel_to_finish<WIDTH>(p.tile);
  if (threadIdx.x >= p.tile.columns * WIDTH || channel >= p.tile.channels) return;
  float* partial = p.partial + static_cast<unsigned long long>(blockIdx.x) * 2 * p.tile.channels + channel;
  partial[0] = sum_over_rows<WIDTH>(p.tile, betas);
  partial[p.tile.channels] = sum_over_rows<WIDTH>(p.tile, gammas);
}

KERNEL(batch_norm_gradients, GradientSums, THREADS) {
  SHARED(float, betas, THREADS * PACK);
  SHARED(float, gammas, THREADS * PACK);
  if (p.tile.vectorised) partial_gradients<PACK>(p, betas, gammas);
  else partial_gradients<1>(p, betas, gammas);
}

struct FinishGradients {
  const float* partial;  // splits × 2 × C
  const float* rstd;     // C
  float* dgamma;         // C
  float* dbeta;          // C
  unsigned channels, splits;
};
static_assert(sizeof(FinishGradients) == 40, "as in src/ops/batch_norm/gpu.rs");

KERNEL(batch_norm_gradients_finish, FinishGradients, THREADS) {
  SHARED(float, scratch, THREADS);
  const unsigned channel = blockIdx.x * CHANNELS + threadIdx.x % CHANNELS, lane = threadIdx.x / CHANNELS;
  const unsigned splits = channel < p.channels ? p.splits : 0;
  const float* partial = p.partial + channel;
  const unsigned long long stride = 2ull * p.channels;
  float beta = 0, gamma = 0;
#pragma unroll 4
  for (unsigned i = lane; i < splits; i += LANES) {
    beta += partial[i * stride];
    gamma += partial[i * stride + p.channels];
  }
  beta = sum_over_lanes(beta, scratch);
  gamma = sum_over_lanes(gamma, scratch);
  if (lane == 0 && channel < p.channels) {
    p.dbeta[channel] = beta;
    p.dgamma[channel] = gamma * p.rstd[channel];
  }
}

// ---- element by element ----------------------------------------------------------------------------------------------

struct Normalize {
  const element* x;    // n × C
  const float* mean;   // C
  const float* rstd;   // C
  const float* gamma;  // C
  const float* beta;   // C
  element* y;          // n × C
  Tile tile;
};
static_assert(sizeof(Normalize) == 72, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH>
DEVICE void normalize(const Normalize& p) {
  const Share s = share<WIDTH>(p.tile);
  if (s.count == 0) return;
  const Unit<WIDTH> mean = load_floats<WIDTH>(p.mean + s.channel), beta = load_floats<WIDTH>(p.beta + s.channel);
  const Unit<WIDTH> gamma = load_floats<WIDTH>(p.gamma + s.channel), rstd = load_floats<WIDTH>(p.rstd + s.channel);
  Unit<WIDTH> scale;
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) scale.v[j] = gamma.v[j] * rstd.v[j];
#pragma unroll 2
  for (unsigned i = 0; i < s.count; ++i) {
    Unit<WIDTH> v = load_unit<WIDTH>(p.x + s.first + i * s.stride);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) v.v[j] = (v.v[j] - mean.v[j]) * scale.v[j] + beta.v[j];
    store_unit<WIDTH>(p.y + s.first + i * s.stride, v);
  }
}

KERNEL(batch_norm_normalize, Normalize, THREADS) {
  if (p.tile.vectorised) normalize<PACK>(p);
  else normalize<1>(p);
}

struct InputGradient {
  element* dy;          // n × C; becomes dx
  const element* x;     // n × C
  const float* mean;    // C
  const float* rstd;    // C
  const float* gamma;   // C
  const float* dgamma;  // C, read in training only
  const float* dbeta;   // C, read in training only
  unsigned training, padding;
  Tile tile;
};
static_assert(sizeof(InputGradient) == 88, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH>
DEVICE void input_gradient(const InputGradient& p) {
  const Share s = share<WIDTH>(p.tile);
  if (s.count == 0) return;
  const Unit<WIDTH> gamma = load_floats<WIDTH>(p.gamma + s.channel), rstd = load_floats<WIDTH>(p.rstd + s.channel);
  Unit<WIDTH> scale;
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) scale.v[j] = gamma.v[j] * rstd.v[j];
  if (!p.training) {
    for (unsigned i = 0; i < s.count; ++i) {
      Unit<WIDTH> d = load_unit<WIDTH>(p.dy + s.first + i * s.stride);
#pragma unroll
      for (unsigned j = 0; j < WIDTH; ++j) d.v[j] *= scale.v[j];
      store_unit<WIDTH>(p.dy + s.first + i * s.stride, d);
    }
    return;
  }
  const float share = 1.0f / static_cast<float>(p.tile.pixels);
  const Unit<WIDTH> mean = load_floats<WIDTH>(p.mean + s.channel);
  const Unit<WIDTH> dgamma = load_floats<WIDTH>(p.dgamma + s.channel), dbeta = load_floats<WIDTH>(p.dbeta + s.channel);
  // dx = scale·(dy − offset − (x − μ)·slope)
  Unit<WIDTH> offset, slope;
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) {
    offset.v[j] = dbeta.v[j] * share;
    slope.v[j] = rstd.v[j] * dgamma.v[j] * share;
  }
#pragma unroll 2
  for (unsigned i = 0; i < s.count; ++i) {
    Unit<WIDTH> d = load_unit<WIDTH>(p.dy + s.first + i * s.stride);
    const Unit<WIDTH> v = load_unit<WIDTH>(p.x + s.first + i * s.stride);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j)
      d.v[j] = scale.v[j] * (d.v[j] - offset.v[j] - (v.v[j] - mean.v[j]) * slope.v[j]);
    store_unit<WIDTH>(p.dy + s.first + i * s.stride, d);
  }
}

KERNEL(batch_norm_input_gradient, InputGradient, THREADS) {
  if (p.tile.vectorised) input_gradient<PACK>(p);
  else input_gradient<1>(p);
}

// ---- channel by channel ----------------------------------------------------------------------------------------------

struct Deviation {
  const float* variance;  // C
  float* rstd;            // C
  unsigned channels;
  float epsilon;
};
static_assert(sizeof(Deviation) == 24, "as in src/ops/batch_norm/gpu.rs");

KERNEL(batch_norm_deviation, Deviation, THREADS) {
  const unsigned c = blockIdx.x * THREADS + threadIdx.x;
  if (c < p.channels) p.rstd[c] = 1.0f / sqrtf(p.variance[c] + p.epsilon);
}

struct Running {
  float* running_mean;      // C
  float* running_variance;  // C
  const float* mean;        // C
  const float* variance;    // C
  const unsigned* gate;     // a single number, or null; 0: nothing changes
  double kept;              // 1 − momentum
  double mean_step;         // momentum
  double variance_step;     // momentum, times what makes the variance unbiased
  unsigned channels, padding;
};
static_assert(sizeof(Running) == 72, "as in src/ops/batch_norm/gpu.rs");

// In double precision, as on the CPU: a thousand batches later both still agree.
KERNEL(batch_norm_update_running, Running, THREADS) {
  const unsigned c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= p.channels || (p.gate != nullptr && *p.gate == 0)) return;
  p.running_mean[c] = static_cast<float>(p.kept * p.running_mean[c] + p.mean_step * p.mean[c]);
  p.running_variance[c] = static_cast<float>(p.kept * p.running_variance[c] + p.variance_step * p.variance[c]);
}
