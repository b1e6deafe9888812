// modules: f32 bf16 f16
// Batch normalisation per channel, over the n = N·H·W pixels of an NHWC tensor, with what follows it in a network.
//
//   statistics       μ = Σ x / n,   σ² = Σ (x − μ)² / n,   rstd = 1 / √(σ² + ε);   for running statistics also σ²·n/(n − 1)
//   normalize        out = relu?(x̂·γ + β [+ residual]),   x̂ = (x − μ)·rstd
//   gradients        dz = dy where the ReLU let out pass, else 0;   dβ = Σ dz,   dγ = Σ dz·x̂
//   input_gradient   dx = γ·rstd·(dz − dβ/n − x̂·dγ/n), without the two last terms in inference; residual's gradient is dz
//   deviation        rstd of given variances
//   update_running   running += momentum·(batch − running)
//
// x, out, residual, dy, dz, dx are n × C, stored as `element`; whatever there is one of per channel is f32.
//
// Whether the ReLU let a number pass is read off `out` where there is a residual, and computed again from x where not. Then
// dz is never stored: both passes over dy cut it themselves. With a residual, which needs dz as its gradient anyway, the
// first pass writes it over dy.
//
// Everything is bound by memory; the tensors that each pass reads and writes:
//
//                                read                 written
//   statistics                   x
//   normalize                    x [residual]         out
//   gradients                    dy x                                  with a residual and ReLU: dy x out, dz
//   input_gradient               dz x                 dx               in inference: dz, and x where there is a ReLU
//
// some 5 FLOPs per element. Geometry: pixel_walk.cuh. The sums take two launches: each
// block writes those over its pixels to a workspace of splits × 2 × C floats, and a second kernel adds them up and finishes
// everything that is per channel. A convolution on tensor cores does the work of the first launch where it has the
// numbers in registers (conv2d_tensor.cu); the second takes the sums of its tiles all the same.
//
// The variance is accurate to a few units in the last place whatever the mean: a thread sums x − s and (x − s)², s its own
// first value, so that the square of the sum, subtracted, takes away at most as many digits as the count of its pixels
// has. Means are kept relative to x[0, c], or a mean far from zero would round the distances between them; threads,
// and then blocks, are put together by  Σ (x − μ)² = Σᵢ [Mᵢ + nᵢ·(μᵢ − μ)²].  No clamping beyond the rounding of one thread:
// a NaN or an infinity in x comes out as a variance that is not finite.
#include "batch_norm.cuh"
#include "pixel_walk.cuh"

// ---- statistics ----------------------------------------------------------------------------------------------------

struct PartialStatistics {
  const element* x;  // n × C
  float* partial;    // splits × 2 × C: mean less x[0, c], sum of squared distances from the mean
  PixelWalk walk;
};
static_assert(sizeof(PartialStatistics) == 40, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH>
DEVICE void partial_statistics(const PartialStatistics& p, SharedArray<float> means, SharedArray<float> spreads) {
  const Share s = share<WIDTH>(p.walk);
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

KERNEL(batch_norm_statistics, PartialStatistics, THREADS) {
  SHARED(float, means, THREADS * PACK);
  SHARED(float, spreads, THREADS * PACK);
  if (p.walk.vectorised) partial_statistics<PACK>(p, means, spreads);
  else partial_statistics<1>(p, means, spreads);
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
};
static_assert(sizeof(FinishStatistics) == 72, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, unsigned FINISHERS>
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
    const float mean = (p.x == nullptr ? 0.0f : to_float(p.x[c])) + (first.v[j] + offset.v[j]);
    p.mean[c] = mean;
    p.rstd[c] = 1.0f / sqrtf(squares.v[j] / count + p.epsilon);
    if (p.batch_mean != nullptr) {
      p.batch_mean[c] = mean;
      p.batch_variance[c] = squares.v[j] / static_cast<float>(p.pixels > 1 ? p.pixels - 1 : 1);
    }
  }
}

KERNEL(batch_norm_statistics_finish, FinishStatistics, MANY) {
  SHARED(float, scratch, MANY * 4);
  SHARED(float, sums, (MANY / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_statistics<4, MANY>(p, scratch, sums);
  else finish_statistics<1, MANY>(p, scratch, sums);
}

KERNEL(batch_norm_statistics_finish_few, FinishStatistics, FEW) {
  SHARED(float, scratch, FEW * 4);
  SHARED(float, sums, (FEW / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_statistics<4, FEW>(p, scratch, sums);
  else finish_statistics<1, FEW>(p, scratch, sums);
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
};
static_assert(sizeof(GradientSums) == 104, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, unsigned CUT>
DEVICE void partial_gradients(const GradientSums& p, SharedArray<float> betas, SharedArray<float> gammas) {
  const Share s = share<WIDTH>(p.walk);
  Unit<WIDTH> beta = {}, gamma = {};
  if (s.count > 0) {
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
      const Unit<WIDTH> v = load_unit<WIDTH>(p.x + at);
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

template <unsigned WIDTH>
DEVICE void cut_gradients(const GradientSums& p, SharedArray<float> betas, SharedArray<float> gammas) {
  if (p.cut == BY_INPUT) partial_gradients<WIDTH, BY_INPUT>(p, betas, gammas);
  else if (p.cut == BY_OUTPUT) partial_gradients<WIDTH, BY_OUTPUT>(p, betas, gammas);
  else partial_gradients<WIDTH, WHOLE>(p, betas, gammas);
}

KERNEL(batch_norm_gradients, GradientSums, THREADS) {
  SHARED(float, betas, THREADS * PACK);
  SHARED(float, gammas, THREADS * PACK);
  if (p.walk.vectorised) cut_gradients<PACK>(p, betas, gammas);
  else cut_gradients<1>(p, betas, gammas);
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

KERNEL(batch_norm_gradients_finish, FinishGradients, MANY) {
  SHARED(float, scratch, MANY * 4);
  SHARED(float, sums, (MANY / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_gradients<4, MANY>(p, scratch, sums);
  else finish_gradients<1, MANY>(p, scratch, sums);
}

KERNEL(batch_norm_gradients_finish_few, FinishGradients, FEW) {
  SHARED(float, scratch, FEW * 4);
  SHARED(float, sums, (FEW / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_gradients<4, FEW>(p, scratch, sums);
  else finish_gradients<1, FEW>(p, scratch, sums);
}

// ---- element by element ----------------------------------------------------------------------------------------------

struct Normalize {
  const element* x;         // n × C
  const float* mean;        // C
  const float* rstd;        // C
  const float* gamma;       // C
  const float* beta;        // C
  const element* residual;  // n × C, or null
  element* out;             // n × C; may be x
  unsigned relu, padding;
  PixelWalk walk;
};
static_assert(sizeof(Normalize) == 88, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, bool RESIDUAL>
DEVICE void normalize(const Normalize& p) {
  const Share s = share<WIDTH>(p.walk);
  if (s.count == 0) return;
  const Unit<WIDTH> mean = load_floats<WIDTH>(p.mean + s.channel), beta = load_floats<WIDTH>(p.beta + s.channel);
  const Unit<WIDTH> gamma = load_floats<WIDTH>(p.gamma + s.channel), rstd = load_floats<WIDTH>(p.rstd + s.channel);
  const float floor = p.relu ? 0.0f : -infinity();
  Unit<WIDTH> scale;
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) scale.v[j] = gamma.v[j] * rstd.v[j];
#pragma unroll 2
  for (unsigned i = 0; i < s.count; ++i) {
    const unsigned long long at = s.first + i * s.stride;
    Unit<WIDTH> v = load_unit<WIDTH>(p.x + at), residual = {};
    if constexpr (RESIDUAL) residual = load_unit<WIDTH>(p.residual + at);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) {
      v.v[j] = normalized(v.v[j], mean.v[j], scale.v[j], beta.v[j]);
      if constexpr (RESIDUAL) v.v[j] += residual.v[j];
      // Not the larger of the two, which a NaN would not be.
      if (v.v[j] <= floor) v.v[j] = floor;
    }
    store_unit<WIDTH>(p.out + at, v);
  }
}

template <unsigned WIDTH>
DEVICE void normalize_any(const Normalize& p) {
  if (p.residual != nullptr) normalize<WIDTH, true>(p);
  else normalize<WIDTH, false>(p);
}

KERNEL(batch_norm_normalize, Normalize, THREADS) {
  if (p.walk.vectorised) normalize_any<PACK>(p);
  else normalize_any<1>(p);
}

struct InputGradient {
  const element* dy;   // n × C
  element* dx;         // n × C; may be dy
  const element* x;    // n × C
  const float* mean;   // C
  const float* rstd;   // C
  const float* gamma;  // C
  const float* beta;   // C, read if cut BY_INPUT
  const float* means;  // 2 × C as batch_norm_gradients_finish leaves them, or null in inference
  unsigned cut;        // WHOLE or BY_INPUT
  unsigned padding;
  PixelWalk walk;
};
static_assert(sizeof(InputGradient) == 96, "as in src/ops/batch_norm/gpu.rs");

template <unsigned WIDTH, bool CUT, bool TRAINING>
DEVICE void input_gradient(const InputGradient& p) {
  const Share s = share<WIDTH>(p.walk);
  if (s.count == 0) return;
  const Unit<WIDTH> gamma = load_floats<WIDTH>(p.gamma + s.channel), rstd = load_floats<WIDTH>(p.rstd + s.channel);
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
    Unit<WIDTH> d = load_unit<WIDTH>(p.dy + at), v = {};
    if constexpr (CUT || TRAINING) v = load_unit<WIDTH>(p.x + at);
#pragma unroll
    for (unsigned j = 0; j < WIDTH; ++j) {
      if constexpr (CUT)
        if (is_cut(normalized(v.v[j], mean.v[j], scale.v[j], beta.v[j]))) d.v[j] = 0;
      if constexpr (TRAINING) d.v[j] = d.v[j] - offset.v[j] - (v.v[j] - mean.v[j]) * slope.v[j];
      d.v[j] *= scale.v[j];
    }
    store_unit<WIDTH>(p.dx + at, d);
  }
}

template <unsigned WIDTH>
DEVICE void input_gradient_any(const InputGradient& p) {
  const bool training = p.means != nullptr;
  if (p.cut == BY_INPUT && training) input_gradient<WIDTH, true, true>(p);
  else if (p.cut == BY_INPUT) input_gradient<WIDTH, true, false>(p);
  else if (training) input_gradient<WIDTH, false, true>(p);
  else input_gradient<WIDTH, false, false>(p);
}

KERNEL(batch_norm_input_gradient, InputGradient, THREADS) {
  if (p.walk.vectorised) input_gradient_any<PACK>(p);
  else input_gradient_any<1>(p);
}

// ---- channel by channel ----------------------------------------------------------------------------------------------

struct Deviation {
  const float* variance;  // count
  float* rstd;            // count
  unsigned count;
  float epsilon;
};
static_assert(sizeof(Deviation) == 24, "as in src/ops/batch_norm/gpu.rs");

KERNEL(batch_norm_deviation, Deviation, THREADS) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x;
  if (i < p.count) p.rstd[i] = 1.0f / sqrtf(p.variance[i] + p.epsilon);
}

struct Running {
  float* running;         // count: means and variances, of one layer or of all
  const float* batch;     // count; variances are unbiased
  const unsigned* gate;   // a single number, or null; 0: nothing changes
  double kept;            // 1 − momentum
  double step;            // momentum
  unsigned count, padding;
};
static_assert(sizeof(Running) == 48, "as in src/ops/batch_norm/gpu.rs");

// In double precision, as on the CPU: a thousand batches later both still agree.
KERNEL(batch_norm_update_running, Running, THREADS) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= p.count || (p.gate != nullptr && *p.gate == 0)) return;
  p.running[i] = static_cast<float>(p.kept * p.running[i] + p.step * p.batch[i]);
}
