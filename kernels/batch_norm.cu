// modules: f32 bf16 f16
// Batch normalisation per channel, over the n = N·H·W pixels of an NHWC tensor, with what follows it in a network.
//
//   statistics       μ = Σ x / n,   σ² = Σ (x − μ)² / n,   rstd = 1 / √(σ² + ε);   for running statistics also σ²·n/(n − 1)
//   normalize        out = relu?(x̂·γ + β [+ residual]),   x̂ = (x − μ)·rstd
//   normalize_two    out = relu?(x̂·γ + β + r̂·γ' + β'),   r̂ the residual, by statistics of its own
//   gradients        dz = dy where the ReLU let out pass, else 0;   dβ = Σ dz,   dγ = Σ dz·x̂
//   input_gradient   dx = γ·rstd·(dz − dβ/n − x̂·dγ/n), without the two last terms in inference; residual's gradient is dz
//   deviation        rstd of given variances
//   update_running   running += momentum·(batch − running)
//
// x, dx, out, residual, dy, dz are n × C, stored as `element`, the first two of them in one tensor or in several (`Places`);
// whatever there is one of per channel is f32.
//
// Whether the ReLU let a number pass is read off `out` where there is a residual, and computed again from x where not. Then
// dz is never stored: both passes over dy cut it themselves. With a residual, which needs dz as its gradient anyway, the
// first pass writes it over dy.
//
// Everything is bound by memory; the tensors that each pass reads and writes:
//
//                                read                 written
//   statistics                   x
//   normalize                    x [residual]         out              a byte per 16 of out, where its signs are wanted
//   normalize_two                x residual           out              the same
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
#include "batch_norm_passes.cuh"

KERNEL(batch_norm_statistics, PartialStatistics, THREADS) {
  SHARED(float, means, THREADS * PACK);
  SHARED(float, spreads, THREADS * PACK);
  if (p.walk.vectorised) partial_statistics<PACK, false>(p, means, spreads);
  else partial_statistics<1, false>(p, means, spreads);
}

KERNEL(batch_norm_statistics_finish, FinishStatistics, MANY) {
  SHARED(float, scratch, MANY * 4);
  SHARED(float, sums, (MANY / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_statistics<4, MANY, false>(p, scratch, sums);
  else finish_statistics<1, MANY, false>(p, scratch, sums);
}

KERNEL(batch_norm_statistics_finish_few, FinishStatistics, FEW) {
  SHARED(float, scratch, FEW * 4);
  SHARED(float, sums, (FEW / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_statistics<4, FEW, false>(p, scratch, sums);
  else finish_statistics<1, FEW, false>(p, scratch, sums);
}

KERNEL(batch_norm_gradients, GradientSums, THREADS) {
  SHARED(float, betas, THREADS * PACK);
  SHARED(float, gammas, THREADS * PACK);
  if (p.walk.vectorised) cut_gradients<PACK, false>(p, betas, gammas);
  else cut_gradients<1, false>(p, betas, gammas);
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

KERNEL(batch_norm_normalize, Normalize, THREADS) {
  if (p.walk.vectorised) normalize_any<PACK, false>(p);
  else normalize_any<1, false>(p);
}

// A kernel of its own, since twice as many numbers per channel take more registers.
KERNEL(batch_norm_normalize_two, Normalize, THREADS) { normalize_two<false>(p); }

KERNEL(batch_norm_input_gradient, InputGradient, THREADS) {
  if (p.walk.vectorised) input_gradient_any<PACK, false>(p);
  else input_gradient_any<1, false>(p);
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
