// modules: f32
// Softmax and cross-entropy, loss and gradient in one launch.
//
//   loss    = Σ_n [ (1 − e)·v[l_n]·(−log p[n, l_n]) + (e/K)·Σ_k v[k]·(−log p[n, k]) ] / Σ_n v[l_n],      p = softmax(z)
//   dz[n,k] = scale · [ p[n,k]·((1 − e)·v[l_n] + (e/K)·Σ_j v[j]) − (1 − e)·v[l_n]·[k = l_n] − (e/K)·v[k] ] / Σ_n v[l_n]
//
// All f32, whatever activations are stored as. Bytes: the logits three times (from L1), the gradient once. Geometry: one
// block, for a batch holds a few thousand logits; a warp per row, rows in a fixed order.
#include "control.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;

struct CrossEntropy {
  const float* logits;      // n × classes
  const unsigned* labels;   // n
  const float* weights;     // classes; null for 1 each
  const Control* control;   // its scale; null for 1
  float* loss;              // 1
  float* gradient;          // n × classes
  unsigned n, classes;
  float smoothing;          // e
  unsigned padding;
};
static_assert(sizeof(CrossEntropy) == 64, "as in src/ops/softmax_cross_entropy/gpu.rs");

DEVICE float weight_of(const CrossEntropy& p, unsigned k) { return p.weights != nullptr ? p.weights[k] : 1.0f; }

KERNEL(softmax_cross_entropy, CrossEntropy, THREADS) {
  SHARED(float, scratch, WARPS);
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

  float norm = 0, all = 0;
  for (unsigned n = threadIdx.x; n < p.n; n += THREADS) norm += weight_of(p, p.labels[n]);
  for (unsigned k = threadIdx.x; k < p.classes; k += THREADS) all += weight_of(p, k);
  norm = block_sum<THREADS>(norm, scratch);
  all = block_sum<THREADS>(all, scratch);

  const float spread = p.smoothing / static_cast<float>(p.classes);
  const float scale = (p.control != nullptr ? p.control->scale : 1.0f) / norm;
  float total = 0;
  for (unsigned n = warp; n < p.n; n += WARPS) {
    const float* z = p.logits + static_cast<unsigned long long>(n) * p.classes;
    float* dz = p.gradient + static_cast<unsigned long long>(n) * p.classes;
    const unsigned label = p.labels[n];
    float largest = -infinity();
    for (unsigned k = lane; k < p.classes; k += WARP) largest = fmaxf(largest, z[k]);
    largest = warp_max(largest);
    float sum = 0;
    for (unsigned k = lane; k < p.classes; k += WARP) sum += expf(z[k] - largest);
    const float log_sum = logf(warp_sum(sum));
    const float sharp = (1.0f - p.smoothing) * weight_of(p, label);
    for (unsigned k = lane; k < p.classes; k += WARP) {
      const float log_p = (z[k] - largest) - log_sum;
      const float target = spread * weight_of(p, k) + (k == label ? sharp : 0.0f);
      total -= target * log_p;
      dz[k] = (expf(log_p) * (sharp + spread * all) - target) * scale;
    }
  }
  total = block_sum<THREADS>(total, scratch);
  if (threadIdx.x == 0) p.loss[0] = total / norm;
}
