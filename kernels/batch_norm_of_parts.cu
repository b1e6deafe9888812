// modules: f32 bf16 f16
// Batch normalisation of a concatenation that nobody wrote down: x lies in several tensors, and dx like it, to which it may be
// added. Everything else is as in batch_norm.cu. Kernels of their own, because a second way through memory costs registers.
#include "batch_norm_passes.cuh"

KERNEL(batch_norm_of_parts_statistics, PartialStatistics, THREADS) {
  SHARED(float, means, THREADS * PACK);
  SHARED(float, spreads, THREADS * PACK);
  if (p.walk.vectorised) partial_statistics<PACK, true>(p, means, spreads);
  else partial_statistics<1, true>(p, means, spreads);
}

KERNEL(batch_norm_of_parts_statistics_finish, FinishStatistics, MANY) {
  SHARED(float, scratch, MANY * 4);
  SHARED(float, sums, (MANY / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_statistics<4, MANY, true>(p, scratch, sums);
  else finish_statistics<1, MANY, true>(p, scratch, sums);
}

KERNEL(batch_norm_of_parts_statistics_finish_few, FinishStatistics, FEW) {
  SHARED(float, scratch, FEW * 4);
  SHARED(float, sums, (FEW / GROUP + 1) * 4 * 2);
  if (p.vectorised) finish_statistics<4, FEW, true>(p, scratch, sums);
  else finish_statistics<1, FEW, true>(p, scratch, sums);
}

KERNEL(batch_norm_of_parts_gradients, GradientSums, THREADS) {
  SHARED(float, betas, THREADS * PACK);
  SHARED(float, gammas, THREADS * PACK);
  if (p.walk.vectorised) cut_gradients<PACK, true>(p, betas, gammas);
  else cut_gradients<1, true>(p, betas, gammas);
}

KERNEL(batch_norm_of_parts_normalize_two, Normalize, THREADS) { normalize_two<true>(p); }

KERNEL(batch_norm_of_parts_normalize, Normalize, THREADS) {
  if (p.walk.vectorised) normalize_any<PACK, true>(p);
  else normalize_any<1, true>(p);
}

KERNEL(batch_norm_of_parts_input_gradient, InputGradient, THREADS) {
  if (p.walk.vectorised) input_gradient_any<PACK, true>(p);
  else input_gradient_any<1, true>(p);
}
