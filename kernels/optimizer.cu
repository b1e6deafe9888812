// modules: f32
// Updates of whole arenas, and the decision whether a step's update is made.
//
//   square_sums   partial[b] = Σ g[i]² over block b's CHUNK numbers
//   gather        s = share·g of the first batch of an update, s + share·g of the others
//   note          the loss of a batch that is only gathered; apply = it is finite: of its statistics alone
//   decide        norm = √(Σ partial) / scale; apply = loss and norm are finite; the next step and bias corrections;
//                 clip = min(1, limit / (norm + ε)), by which every g below is multiplied as it is unscaled
//   rescale       the next scale, behind the updates: half after an overflow, double after enough good steps
//   sgd           g += weight_decay·w      v = momentum·v + g      w −= rate·v, or rate·(g + momentum·v) (Nesterov)
//   adamw         m = β₁·m + (1 − β₁)·g     u = β₂·u + (1 − β₂)·g²
//                 w = decay·w − rate / correction₁ · m / (√u / correction₂ + ε)
//   clamp         w = min(max(w, 0), 1)
//
// All f32. Bytes: square_sums 1 read; sgd 3 reads, 2 writes; adamw 4 reads, 3 writes; gather 2 and 1; clamp 1 and 1.
// Geometry: a thread per 4 numbers, 256 per block; note, decide and rescale are one block. Without a control block, an update is always made, with the
// corrections that the parameters give.
#include "control.cuh"

constexpr unsigned THREADS = 256;
// Numbers per block of square_sums: 16 per thread.
constexpr unsigned CHUNK = 4096;

struct SquareSums {
  const float* g;  // count
  float* partial;  // ⌈count / CHUNK⌉
  unsigned long long count;
};
static_assert(sizeof(SquareSums) == 24, "as in src/ops/optimizer/gpu.rs");

KERNEL(square_sums, SquareSums, THREADS) {
  SHARED(float, scratch, THREADS / WARP);
  const unsigned long long start = static_cast<unsigned long long>(blockIdx.x) * CHUNK;
  float sum = 0;
#pragma unroll
  for (unsigned j = 0; j < CHUNK / (4 * THREADS); ++j) {
    const unsigned long long i = start + 4ull * (j * THREADS + threadIdx.x);
    if (i + 4 <= p.count) {
      const float4 g = load4(p.g + i);
      sum += (g.x * g.x + g.y * g.y) + (g.z * g.z + g.w * g.w);
    } else {
      for (unsigned long long k = i; k < p.count; ++k) sum += p.g[k] * p.g[k];
    }
  }
  sum = block_sum<THREADS>(sum, scratch);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

struct Decide {
  Control* control;
  const float* loss;      // 1
  const float* partial;   // partials
  float* losses;          // capacity: the loss of step s at s mod capacity
  double beta1, beta2;
  unsigned partials, capacity;
  unsigned is_scaled;     // whether the loss scale moves
  unsigned growth_steps;  // good steps after which it doubles
  float limit;            // of the norm; may be infinite
  float clip_epsilon;
};
static_assert(sizeof(Decide) == 72, "as in src/ops/optimizer/gpu.rs");

// Of a batch in the middle of an update: there is no gradient to decide on yet.
KERNEL(note, Decide, WARP) {
  if (threadIdx.x != 0) return;
  Control c = *p.control;
  const float loss = p.loss[0];
  if (!is_finite(loss)) c.diverged = 1;
  c.apply = c.diverged == 0;
  p.losses[c.steps % p.capacity] = loss;
  c.steps += 1;
  c.gathered += 1;
  *p.control = c;
}

KERNEL(decide, Decide, THREADS) {
  SHARED(float, scratch, THREADS / WARP);
  float sum = 0;
  for (unsigned i = threadIdx.x; i < p.partials; i += THREADS) sum += p.partial[i];
  sum = block_sum<THREADS>(sum, scratch);
  if (threadIdx.x != 0) return;
  Control c = *p.control;
  const float loss = p.loss[0];
  c.norm = sqrtf(sum) / c.scale;
  const bool is_good = is_finite(loss) && is_finite(c.norm);
  // A gradient that overflowed because of its scale is not the run's end; one that does so at scale 1 is.
  const bool may_retry = p.is_scaled != 0 && is_finite(loss) && c.scale > 1.0f;
  if (!is_good && !may_retry) c.diverged = 1;
  c.apply = is_good && c.diverged == 0;
  p.losses[c.steps % p.capacity] = loss;
  c.steps += 1;
  c.gathered = 0;
  const float shrink = p.limit / (c.norm + p.clip_epsilon);
  c.clip = shrink < 1.0f ? shrink : 1.0f;
  if (c.apply) {
    c.updates += 1;
    c.power1 *= p.beta1;
    c.power2 *= p.beta2;
    c.correction1 = static_cast<float>(1.0 - c.power1);
    c.correction2 = static_cast<float>(sqrt(1.0 - c.power2));
  }
  *p.control = c;
}

// Behind the updates, which still need the scale that this step's gradients carry.
KERNEL(rescale, Decide, WARP) {
  if (threadIdx.x != 0 || p.is_scaled == 0 || p.control->diverged != 0) return;
  Control c = *p.control;
  if (c.apply == 0) {
    c.scale = c.scale > 2.0f ? c.scale * 0.5f : 1.0f;
    c.good_steps = 0;
  } else if (++c.good_steps >= p.growth_steps) {
    c.scale = c.scale < 16777216.0f ? c.scale * 2.0f : c.scale;
    c.good_steps = 0;
  }
  *p.control = c;
}

struct Update {
  float* w;                 // count, like all the others
  const float* g;
  float* first;             // velocity, or first moment
  float* second;            // second moment of AdamW
  const Control* control;   // may be null
  unsigned long long count;
  float rate;               // learning rate
  float weight_decay;
  float beta1, beta2;       // momentum is beta1
  float rest1, rest2;       // 1 − β₁, 1 − β₂, rounded once
  float epsilon;
  float correction1, correction2;  // without a control block
  unsigned nesterov;               // of SGD: 1 where it moves by where the velocity is about to lead
};
static_assert(sizeof(Update) == 88, "as in src/ops/optimizer/gpu.rs");

DEVICE bool is_aligned(const void* address) { return reinterpret_cast<unsigned long long>(address) % 16 == 0; }

// Calls f(w, g, first, second) for this thread's four numbers and stores what it made of w and of the moments. MOMENTS: how
// many there are; what is not there is 0.
template <unsigned MOMENTS, bool HAS_GRADIENT, class F>
DEVICE void update(const Update& p, F f) {
  const unsigned long long i = (static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x) * 4;
  const bool packed = is_aligned(p.w) && is_aligned(p.g) && is_aligned(p.first) && is_aligned(p.second);
  if (packed && i + 4 <= p.count) {
    const float4 none = make_float4(0, 0, 0, 0);
    float4 w = load4(p.w + i), first = MOMENTS > 0 ? load4(p.first + i) : none;
    float4 second = MOMENTS > 1 ? load4(p.second + i) : none;
    const float4 g = HAS_GRADIENT ? load4(p.g + i) : none;
    f(w.x, g.x, first.x, second.x);
    f(w.y, g.y, first.y, second.y);
    f(w.z, g.z, first.z, second.z);
    f(w.w, g.w, first.w, second.w);
    store4(p.w + i, w);
    if (MOMENTS > 0) store4(p.first + i, first);
    if (MOMENTS > 1) store4(p.second + i, second);
    return;
  }
  for (unsigned long long j = i; j < i + 4 && j < p.count; ++j) {
    float first = MOMENTS > 0 ? p.first[j] : 0, second = MOMENTS > 1 ? p.second[j] : 0;
    f(p.w[j], HAS_GRADIENT ? p.g[j] : 0, first, second);
    if (MOMENTS > 0) p.first[j] = first;
    if (MOMENTS > 1) p.second[j] = second;
  }
}

KERNEL(sgd, Update, THREADS) {
  if (p.control != nullptr && p.control->apply == 0) return;
  const float rate = p.control != nullptr ? p.rate * p.control->factor : p.rate;
  const float unscale = p.control != nullptr ? p.control->clip / p.control->scale : 1.0f;
  update<1, true>(p, [&](float& w, float scaled, float& v, float&) {
    const float g = unscale * scaled + p.weight_decay * w;
    v = p.beta1 * v + g;
    w = w - rate * (p.nesterov != 0 ? g + p.beta1 * v : v);
  });
}

KERNEL(adamw, Update, THREADS) {
  if (p.control != nullptr && p.control->apply == 0) return;
  float rate = p.rate, unscale = 1.0f, correction1 = p.correction1, correction2 = p.correction2;
  if (p.control != nullptr) {
    rate *= p.control->factor;
    unscale = p.control->clip / p.control->scale;
    correction1 = p.control->correction1;
    correction2 = p.control->correction2;
  }
  const float decay = 1.0f - rate * p.weight_decay;
  const float size = rate / correction1;
  update<2, true>(p, [&](float& w, float scaled, float& m, float& u) {
    const float g = unscale * scaled;
    m = p.beta1 * m + p.rest1 * g;
    u = p.beta2 * u + p.rest2 * (g * g);
    w = decay * w - size * (m / (sqrtf(u) / correction2 + p.epsilon));
  });
}

KERNEL(gather, Update, THREADS) {
  const float share = p.control->share;
  const bool is_first = p.control->gathered == 0;
  update<0, true>(p, [&](float& sum, float g, float&, float&) { sum = is_first ? share * g : sum + share * g; });
}

KERNEL(clamp, Update, THREADS) {
  if (p.control != nullptr && p.control->apply == 0) return;
  update<0, false>(p, [](float& w, float, float&, float&) { w = w < 0.0f ? 0.0f : w > 1.0f ? 1.0f : w; });
}
