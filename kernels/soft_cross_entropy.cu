// modules: f32
// Cross-entropy with shares as targets, loss and gradient in one launch: softmax over the classes, or a sigmoid for each.
//
//   softmax   u = (1 − e)·t + e/K    loss    = 1/N · Σ_n Σ_k v[k]·u[n,k]·(−log p[n,k]),      p = softmax(z)
//                                    dz[n,k] = scale · [ p[n,k]·Σ_j v[j]·u[n,j] − v[k]·u[n,k] ] / N
//   sigmoid   u = (1 − e)·t + e/2    loss    = 1/(N·K) · Σ_n Σ_k v[k]·u[n,k]·(−log s[n,k]) + (1 − u[n,k])·(−log(1 − s[n,k]))
//                                    dz[n,k] = scale · [ s[n,k]·(1 − u[n,k] + v[k]·u[n,k]) − v[k]·u[n,k] ] / (N·K)
//
// All f32, whatever activations are stored as. Bytes: logits and targets, again from L1 where there are rows, the gradient once.
// Geometry: one block, for a batch holds a few thousand logits; a warp per row, rows in a fixed order.
#include "control.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;

struct SoftCrossEntropy {
  const float* logits;      // n × classes
  const float* targets;     // n × classes
  const float* weights;     // classes; null for 1 each
  const Control* control;   // its scale; null for 1
  float* loss;              // 1
  float* gradient;          // n × classes
  unsigned n, classes;
  float smoothing;          // e
  unsigned padding;
};
static_assert(sizeof(SoftCrossEntropy) == 64, "as in src/ops/soft_cross_entropy/gpu.rs");

DEVICE float weight_of(const SoftCrossEntropy& p, unsigned k) { return p.weights != nullptr ? p.weights[k] : 1.0f; }

KERNEL(softmax_of_shares, SoftCrossEntropy, THREADS) {
  SHARED(float, scratch, WARPS);
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const float images = static_cast<float>(p.n);
  const float scale = (p.control != nullptr ? p.control->scale : 1.0f) / images;
  const float sharp = 1.0f - p.smoothing, spread = p.smoothing / static_cast<float>(p.classes);
  float total = 0;
  for (unsigned n = warp; n < p.n; n += WARPS) {
    const unsigned long long row = static_cast<unsigned long long>(n) * p.classes;
    const float* z = p.logits + row;
    const float* t = p.targets + row;
    float* dz = p.gradient + row;
    float largest = -infinity();
    for (unsigned k = lane; k < p.classes; k += WARP) largest = fmaxf(largest, z[k]);
    largest = warp_max(largest);
    float sum = 0, all = 0;
    for (unsigned k = lane; k < p.classes; k += WARP) {
      sum += expf(z[k] - largest);
      all += weight_of(p, k) * (sharp * t[k] + spread);
    }
    const float log_sum = logf(warp_sum(sum));
    all = warp_sum(all);
    for (unsigned k = lane; k < p.classes; k += WARP) {
      const float log_p = (z[k] - largest) - log_sum;
      const float target = weight_of(p, k) * (sharp * t[k] + spread);
      total -= target * log_p;
      dz[k] = (expf(log_p) * all - target) * scale;
    }
  }
  total = block_sum<THREADS>(total, scratch);
  if (threadIdx.x == 0) p.loss[0] = total / images;
}

KERNEL(sigmoid_of_shares, SoftCrossEntropy, THREADS) {
  SHARED(float, scratch, WARPS);
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const float decisions = static_cast<float>(p.n) * static_cast<float>(p.classes);
  const float scale = (p.control != nullptr ? p.control->scale : 1.0f) / decisions;
  const float sharp = 1.0f - p.smoothing, half = 0.5f * p.smoothing;
  float total = 0;
  for (unsigned n = warp; n < p.n; n += WARPS) {
    const unsigned long long row = static_cast<unsigned long long>(n) * p.classes;
    for (unsigned k = lane; k < p.classes; k += WARP) {
      const float z = p.logits[row + k], u = sharp * p.targets[row + k] + half;
      const float wanted = weight_of(p, k) * u;
      // −log s and −log(1 − s), neither of which overflows.
      const float rest = log1pf(expf(-fabsf(z)));
      const float yes = fmaxf(-z, 0.0f) + rest, no = fmaxf(z, 0.0f) + rest;
      total += wanted * yes + (1.0f - u) * no;
      p.gradient[row + k] = (expf(-yes) * (1.0f - u + wanted) - wanted) * scale;
    }
  }
  total = block_sum<THREADS>(total, scratch);
  if (threadIdx.x == 0) p.loss[0] = total / decisions;
}
