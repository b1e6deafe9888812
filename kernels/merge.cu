// modules: f32
// The backward of the merge, and α from what is learned. The merge itself: merge_blend.cu.
//
//   dα        dα[m,j] = Σ_{i : a(i) = j} dW[i]·W_m[i]
//   products  of one layer with an α per filter: P[m,k] = Σ_{c,r,s} dW[k,c,r,s]·W_m[k,c,r,s]
//   means     a further α is the mean of consecutive learned ones
//
// Arenas are f32 and of one layout, K filters of R·S·C weights each and vectors of K. Loads take 16 bytes. A thread takes two places at a
// time, and has dW and two sources of both in flight before it uses the first: 96 bytes, of which two blocks of a multiprocessor ask for
// 48 KB at once, where some 25 (see merge_blend.cu) keep the memory busy. More sources come two by two, with dW from the first-level
// cache. Every sum runs in an order that the layout alone decides.
//
// dα has two forms.
//
// From dW: one launch over the arena, M + 1 passes over it. A table of chunks in device memory, built once, says what each
// stretch of about 4096 weights is; a block takes one chunk. A chunk of filters also takes the γ and β of the batch norm
// behind them, so that with an α per filter or per kernel all weights of an α lie in one chunk, and it is written at once.
// An α that is shared further (by a layer, or by the network) gets a partial sum from each chunk, in slots that the table
// numbers; a second launch adds those of each α in a fixed order, and writes zero where there are none.
//
// From products: what a convolution's wgrad leaves behind are parts × M × K sums instead of dW (conv2d_tensor.cu), or
// `merge_products` takes them from the dW of that layer while the caches still hold it. One launch for the network then adds
// the parts of each filter and the terms of its γ and β, whose gradients are short vectors; an α that is shared further gets
// slots as above. Bytes: parts·M·K floats and the vectors, about a thousandth of dW.
#include "common.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned IN_FLIGHT = 2;

constexpr unsigned VECTORS = 2;
constexpr unsigned long long NO_VECTOR = ~0ull;

// `rows` × `len` weights, `pitch` apart, from `begin` on. The sum of those in row r and column c goes to output
// first + r·step + c mod period: of dα, or of the partial sums. So does weight r of each vector (period 1), or weight c
// (one row).
struct GradientChunk {
  unsigned long long begin;
  unsigned long long vectors[VECTORS];  // where each begins, or NO_VECTOR
  unsigned rows, len, pitch;
  unsigned period;
  unsigned first, step;
  unsigned is_final;  // outputs are dα
  unsigned padding;
};
static_assert(sizeof(GradientChunk) == 56, "as in src/ops/merge/gpu/");

struct Gradient {
  const GradientChunk* chunks;  // one per block
  const float* const* sources;  // M arenas
  const float* dw;              // arena
  float* dalpha;                // M × alphas
  float* partial;               // M × partials
  unsigned long long alphas, partials;
  unsigned source_count;
  unsigned packed;
};
static_assert(sizeof(Gradient) == 64, "as in src/ops/merge/gpu/");

struct Products {
  const float* const* sources;  // M windows of K × len, rows `pitch` apart
  const float* dw;              // K × len, rows `pitch` apart
  float* products;              // M × K
  unsigned rows, len, pitch;    // K filters
  unsigned rows_per_block;
  unsigned source_count;
  unsigned packed;
};
static_assert(sizeof(Products) == 48, "as in src/ops/merge/gpu/");

// Up to a warp of filters, or of the weights of vectors. That of row r takes parts sums from sums[first_sum + r] on, those
// of source m and part i (i·M + m)·filters further, and weight r of each vector. Its output is `first` + r·step: of dα, or
// of the partial sums; or with `together` all rows have one.
struct ProductChunk {
  unsigned long long first_sum;
  unsigned long long vectors[VECTORS];  // where each begins in the arena, or NO_VECTOR
  unsigned parts, filters;
  unsigned rows;
  unsigned first, step;
  unsigned together;
  unsigned is_final;
  unsigned padding;
};
static_assert(sizeof(ProductChunk) == 56, "as in src/ops/merge/gpu/");

struct GradientOfProducts {
  const ProductChunk* chunks;   // one per block
  const float* const* sources;  // M arenas
  const float* sums;            // of all layers
  const float* rest;            // the gradient of the arena from filters_len on
  float* dalpha;                // M × alphas
  float* partial;               // M × partials
  unsigned long long alphas, partials, filters_len;
  unsigned source_count;
  unsigned padding;
};
static_assert(sizeof(GradientOfProducts) == 80, "as in src/ops/merge/gpu/");

// The partial sums of one α: those in slots[begin .. begin + count].
struct Share {
  unsigned alpha, begin, count;
};

struct GradientSum {
  const Share* shares;    // share_count
  const unsigned* slots;
  const float* partial;   // M × partials
  float* dalpha;          // M × alphas
  unsigned long long alphas, partials;
  unsigned share_count;
  unsigned padding;
};
static_assert(sizeof(GradientSum) == 56, "as in src/ops/merge/gpu/");

using position = unsigned long long;

// ---- dα -------------------------------------------------------------------------------------------------------------

DEVICE float* output_of(const Gradient& p, const GradientChunk& chunk, unsigned source) {
  return chunk.is_final ? p.dalpha + source * p.alphas : p.partial + source * p.partials;
}

// Weights begin .. end of a row, or of a part of one.
struct Stretch { position begin, end; };

DEVICE bool is_pack(const Gradient& p, const Stretch& of, position i) { return p.packed && i >= of.begin && i + 4 <= of.end; }

DEVICE float product_of_four(const float4& a, const float4& b) { return (a.x * b.x + a.y * b.y) + (a.z * b.z + a.w * b.w); }

// Adds dw·w of the weights from `i` on, four of the stretch or as many as it has of them.
DEVICE void add_four(const Gradient& p, const Stretch& of, position i, unsigned first_source, float (&sums)[IN_FLIGHT]) {
  if (is_pack(p, of, i)) {
    const float4 dw = load4(p.dw + i);
#pragma unroll
    for (unsigned u = 0; u < IN_FLIGHT; ++u)
      if (first_source + u < p.source_count) sums[u] += product_of_four(dw, load4(p.sources[first_source + u] + i));
    return;
  }
#pragma unroll 1
  for (position l = i < of.begin ? of.begin : i; l < i + 4 && l < of.end; ++l) {
#pragma unroll
    for (unsigned u = 0; u < IN_FLIGHT; ++u)
      if (first_source + u < p.source_count) sums[u] += p.dw[l] * p.sources[first_source + u][l];
  }
}

// Adds dw·w over two stretches of up to four sources, each lane its share of the 16-byte packs: those of both come before the first is used.
DEVICE void add_products(
    const Gradient& p, const Stretch (&of)[2], unsigned first_source, unsigned lane, unsigned lanes, float (&sums)[2][IN_FLIGHT]) {
  position i[2] = {of[0].begin / 4 * 4 + lane * 4, of[1].begin / 4 * 4 + lane * 4};
#pragma unroll 1
  for (; i[0] < of[0].end || i[1] < of[1].end; i[0] += lanes * 4, i[1] += lanes * 4) {
    if (is_pack(p, of[0], i[0]) && is_pack(p, of[1], i[1])) {
      float4 dw[2], weight[IN_FLIGHT][2];
#pragma unroll
      for (unsigned s = 0; s < 2; ++s) dw[s] = load4(p.dw + i[s]);
#pragma unroll
      for (unsigned u = 0; u < IN_FLIGHT; ++u)
#pragma unroll
        for (unsigned s = 0; s < 2; ++s)
          if (first_source + u < p.source_count) weight[u][s] = load4(p.sources[first_source + u] + i[s]);
#pragma unroll
      for (unsigned u = 0; u < IN_FLIGHT; ++u)
#pragma unroll
        for (unsigned s = 0; s < 2; ++s)
          if (first_source + u < p.source_count) sums[s][u] += product_of_four(dw[s], weight[u][s]);
      continue;
    }
    add_four(p, of[0], i[0], first_source, sums[0]);
    add_four(p, of[1], i[1], first_source, sums[1]);
  }
}

// The product of weight `at` of the chunk's vectors with its gradient.
DEVICE float vector_product(const Gradient& p, const GradientChunk& chunk, unsigned source, position at) {
  float sum = 0;
#pragma unroll
  for (unsigned v = 0; v < VECTORS; ++v)
    if (chunk.vectors[v] != NO_VECTOR) sum += p.dw[chunk.vectors[v] + at] * p.sources[source][chunk.vectors[v] + at];
  return sum;
}

// The sum over a group of lanes side by side, a power of two of them, in all of them.
DEVICE float group_sum(float v, unsigned lanes) {
  for (unsigned step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
  return v;
}

// The block's only row, in two halves.
DEVICE void alone_gradient(const Gradient& p, const GradientChunk& chunk, unsigned first_source, SharedArray<float> scratch) {
  const position end = chunk.begin + chunk.len, middle = chunk.begin + chunk.len / 8 * 4;
  float sums[2][IN_FLIGHT] = {};
  add_products(p, {{chunk.begin, middle}, {middle, end}}, first_source, threadIdx.x, THREADS, sums);
#pragma unroll
  for (unsigned u = 0; u < IN_FLIGHT; ++u) {
    if (first_source + u >= p.source_count) break;
    if (threadIdx.x == 0) sums[0][u] += vector_product(p, chunk, first_source + u, 0);
    const float sum = block_sum<THREADS>(sums[0][u] + sums[1][u], scratch);
    if (threadIdx.x == 0) output_of(p, chunk, first_source + u)[chunk.first] = sum;
  }
}

// One α per row, or one for all rows: a group of lanes takes two rows at a time. Short rows have groups of half a warp or less, so that each
// lane has something to load.
DEVICE void row_gradient(
    const Gradient& p, const GradientChunk& chunk, unsigned first_source, SharedArray<float> scratch) {
  if (chunk.rows == 1) return alone_gradient(p, chunk, first_source, scratch);
  unsigned lanes = WARP;
  while (lanes > 4 && chunk.len <= lanes * 2) lanes /= 2;
  const unsigned lane = threadIdx.x % lanes, groups = THREADS / lanes;
  const bool together = chunk.step == 0;
  float sums[2][IN_FLIGHT] = {};
  // All lanes of a warp go round as often, for the sums over them.
#pragma unroll 1
  for (unsigned first = 0; first < chunk.rows; first += 2 * groups) {
    unsigned row[2];
    Stretch of[2];
#pragma unroll
    for (unsigned s = 0; s < 2; ++s) {
      row[s] = first + threadIdx.x / lanes + s * groups;
      const position begin = chunk.begin + static_cast<position>(row[s]) * chunk.pitch;
      of[s] = {begin, row[s] < chunk.rows ? begin + chunk.len : begin};
    }
    add_products(p, of, first_source, lane, lanes, sums);
#pragma unroll
    for (unsigned s = 0; s < 2; ++s)
#pragma unroll
      for (unsigned u = 0; u < IN_FLIGHT; ++u) {
        if (first_source + u >= p.source_count) break;
        if (lane == 0 && row[s] < chunk.rows) sums[s][u] += vector_product(p, chunk, first_source + u, row[s]);
        if (together) continue;
        const float sum = group_sum(sums[s][u], lanes);
        sums[s][u] = 0;
        if (lane == 0 && row[s] < chunk.rows)
          output_of(p, chunk, first_source + u)[chunk.first + static_cast<position>(row[s]) * chunk.step] = sum;
      }
  }
  if (!together) return;
#pragma unroll
  for (unsigned u = 0; u < IN_FLIGHT; ++u) {
    if (first_source + u >= p.source_count) break;
    const float sum = block_sum<THREADS>(sums[0][u] + sums[1][u], scratch);
    if (threadIdx.x == 0) output_of(p, chunk, first_source + u)[chunk.first] = sum;
  }
}

// WIDTH neighbours.
template <unsigned WIDTH>
DEVICE void load_neighbours(float (&v)[WIDTH], const float* from) {
  if constexpr (WIDTH == 4) {
    const float4 four = load4(from);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else {
    static_assert(WIDTH == 1, "a number, or four of them");
    v[0] = from[0];
  }
}

// One α per column modulo the period: a thread for WIDTH of them, which adds up the period's repetitions. It takes two such units at a time,
// and loads those of both before it uses the first.
template <unsigned WIDTH>
DEVICE void column_gradient(const Gradient& p, const GradientChunk& chunk, unsigned first_source) {
  const unsigned per_row = chunk.period / WIDTH, units = chunk.rows * per_row;
#pragma unroll 1
  for (unsigned t = threadIdx.x; t < units; t += 2 * THREADS) {
    unsigned row[2], column[2];
    position at[2];
    bool is_there[2];
    float sums[2][IN_FLIGHT][WIDTH] = {};
#pragma unroll
    for (unsigned s = 0; s < 2; ++s) {
      const unsigned unit = t + s * THREADS;
      is_there[s] = unit < units;
      row[s] = unit / per_row;
      column[s] = (unit - row[s] * per_row) * WIDTH;
      at[s] = chunk.begin + static_cast<position>(row[s]) * chunk.pitch + column[s];
    }
    // A row is whole periods.
#pragma unroll 1
    for (unsigned i = 0; i < chunk.len; i += chunk.period) {
      float dw[2][WIDTH] = {}, weight[2][IN_FLIGHT][WIDTH] = {};
#pragma unroll
      for (unsigned s = 0; s < 2; ++s) {
        if (!is_there[s]) continue;
        load_neighbours<WIDTH>(dw[s], p.dw + at[s] + i);
#pragma unroll
        for (unsigned u = 0; u < IN_FLIGHT; ++u)
          if (first_source + u < p.source_count) load_neighbours<WIDTH>(weight[s][u], p.sources[first_source + u] + at[s] + i);
      }
#pragma unroll
      for (unsigned s = 0; s < 2; ++s)
#pragma unroll
        for (unsigned u = 0; u < IN_FLIGHT; ++u)
#pragma unroll
          for (unsigned l = 0; l < WIDTH; ++l) sums[s][u][l] += dw[s][l] * weight[s][u][l];
    }
#pragma unroll
    for (unsigned s = 0; s < 2; ++s)
#pragma unroll
      for (unsigned u = 0; u < IN_FLIGHT; ++u) {
        if (!is_there[s] || first_source + u >= p.source_count) continue;
        float* to = output_of(p, chunk, first_source + u) + chunk.first + static_cast<position>(row[s]) * chunk.step + column[s];
#pragma unroll
        for (unsigned l = 0; l < WIDTH; ++l) to[l] = sums[s][u][l] + vector_product(p, chunk, first_source + u, column[s] + l);
      }
  }
}

KERNEL(merge_gradient, Gradient, THREADS) {
  SHARED(float, scratch, THREADS / WARP);
  const GradientChunk chunk = p.chunks[blockIdx.x];
  const bool in_fours = p.packed && chunk.begin % 4 == 0 && chunk.pitch % 4 == 0 && chunk.period % 4 == 0;
  for (unsigned source = 0; source < p.source_count; source += IN_FLIGHT) {
    if (chunk.period == 1) {
      row_gradient(p, chunk, source, scratch);
    } else if (in_fours) {
      column_gradient<4>(p, chunk, source);
    } else {
      column_gradient<1>(p, chunk, source);
    }
  }
}

// The products of one layer. Grid: filters in groups of rows_per_block.
KERNEL(merge_products, Products, THREADS) {
  SHARED(float, scratch, THREADS / WARP);
  Gradient whole;
  whole.sources = p.sources;
  whole.dw = p.dw;
  whole.dalpha = p.products;
  whole.partial = nullptr;
  whole.alphas = p.rows;
  whole.partials = 0;
  whole.source_count = p.source_count;
  whole.packed = p.packed;
  GradientChunk chunk;
  chunk.first = blockIdx.x * p.rows_per_block;
  chunk.begin = static_cast<position>(chunk.first) * p.pitch;
  for (unsigned v = 0; v < VECTORS; ++v) chunk.vectors[v] = NO_VECTOR;
  chunk.rows = p.rows - chunk.first < p.rows_per_block ? p.rows - chunk.first : p.rows_per_block;
  chunk.len = p.len;
  chunk.pitch = p.pitch;
  chunk.period = 1;
  chunk.step = 1;
  chunk.is_final = 1;
  for (unsigned source = 0; source < p.source_count; source += IN_FLIGHT) row_gradient(whole, chunk, source, scratch);
}

// dα from products. A lane of each warp per row, and the warps share its parts: neighbouring filters lie side by side.
// Grid: chunks, sources.
KERNEL(merge_gradient_of_products, GradientOfProducts, THREADS) {
  constexpr unsigned WARPS = THREADS / WARP;
  SHARED(float, sums, THREADS);
  const ProductChunk chunk = p.chunks[blockIdx.x];
  const unsigned row = threadIdx.x % WARP, warp = threadIdx.x / WARP, source = blockIdx.y;
  float sum = 0;
  if (row < chunk.rows) {
    for (unsigned part = warp; part < chunk.parts; part += WARPS)
      sum += p.sums[chunk.first_sum + (static_cast<position>(part) * p.source_count + source) * chunk.filters + row];
    if (warp == 0) {
#pragma unroll
      for (unsigned v = 0; v < VECTORS; ++v)
        if (chunk.vectors[v] != NO_VECTOR)
          sum += p.rest[chunk.vectors[v] - p.filters_len + row] * p.sources[source][chunk.vectors[v] + row];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0) return;
  for (unsigned other = 1; other < WARPS; ++other) sum += sums[other * WARP + row];
  if (chunk.together) sum = warp_sum(sum);
  float* to = chunk.is_final ? p.dalpha + source * p.alphas : p.partial + source * p.partials;
  if (chunk.together ? row == 0 : row < chunk.rows) to[chunk.first + static_cast<position>(row) * chunk.step] = sum;
}

// A thread per α and source: for tables whose α have few partial sums each. Grid: shares, sources.
KERNEL(merge_gradient_few, GradientSum, THREADS) {
  const position i = static_cast<position>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= p.share_count) return;
  const Share share = p.shares[i];
  const float* partial = p.partial + blockIdx.y * p.partials;
  float sum = 0;
  for (unsigned at = share.begin; at < share.begin + share.count; ++at) sum += partial[p.slots[at]];
  p.dalpha[blockIdx.y * p.alphas + share.alpha] = sum;
}

// A block per α and source, for tables with α that have many. Grid: shares, sources.
KERNEL(merge_gradient_many, GradientSum, THREADS) {
  SHARED(float, scratch, THREADS / WARP);
  const Share share = p.shares[blockIdx.x];
  const float* partial = p.partial + blockIdx.y * p.partials;
  float sum = 0;
  for (unsigned i = threadIdx.x; i < share.count; i += THREADS) sum += partial[p.slots[share.begin + i]];
  sum = block_sum<THREADS>(sum, scratch);
  if (threadIdx.x == 0) p.dalpha[blockIdx.y * p.alphas + share.alpha] = sum;
}

// ---- α from what is learned -----------------------------------------------------------------------------------------
//
//   affine, clamp   α of the anchor = 1 − Σ of the others; learned: the others'
//   simplex         α = softmax over the sources; learned: the logits
//   free            α is what is learned
//
// A thread per learned α, which takes all sources. Bytes: M reads and M writes of each.

enum Constraint : unsigned { AFFINE, SIMPLEX, FREE };

// The mean of the `period` learned α from `first` on.
struct MeanRow {
  unsigned first, period;
};

struct ConstrainForward {
  const float* learned;  // rows × learned_count; the rows are the sources, but for the anchor if affine
  float* alpha;          // M × alphas
  unsigned long long alphas;
  unsigned learned_count;
  unsigned source_count;
  unsigned anchor;
  Constraint constraint;
};
static_assert(sizeof(ConstrainForward) == 40, "as in src/ops/merge/gpu/");

struct MeansForward {
  const MeanRow* rows;  // row_count, in the order of their α behind the learned ones
  float* alpha;         // M × alphas
  unsigned long long alphas;
  unsigned learned_count;
  unsigned row_count;
};
static_assert(sizeof(MeansForward) == 32, "as in src/ops/merge/gpu/");

// `rows` means of `period` each from learned α `first` on; their own α begin at `alpha`.
struct Mean {
  unsigned first, rows, period, alpha;
};

struct ConstrainBackward {
  const float* alpha;      // M × alphas
  const float* dalpha;     // M × alphas
  float* dlearned;         // rows × learned_count
  const unsigned* begins;  // per block, and one more: which entries of `means` touch its learned α
  const Mean* means;
  unsigned long long alphas;
  unsigned learned_count;
  unsigned source_count;
  unsigned anchor;
  Constraint constraint;
};
static_assert(sizeof(ConstrainBackward) == 64, "as in src/ops/merge/gpu/");

KERNEL(merge_constrain, ConstrainForward, THREADS) {
  const position j = static_cast<position>(blockIdx.x) * THREADS + threadIdx.x, n = p.learned_count;
  if (j >= n) return;
  const float* learned = p.learned + j;
  float* alpha = p.alpha + j;
  if (p.constraint == SIMPLEX) {
    float largest = learned[0];
    for (unsigned m = 1; m < p.source_count; ++m) largest = learned[m * n] > largest ? learned[m * n] : largest;
    float sum = 0;
    for (unsigned m = 0; m < p.source_count; ++m) sum += expf(learned[m * n] - largest);
    for (unsigned m = 0; m < p.source_count; ++m) alpha[m * p.alphas] = expf(learned[m * n] - largest) / sum;
    return;
  }
  float others = 0;
  for (unsigned m = 0, row = 0; m < p.source_count; ++m) {
    if (p.constraint == AFFINE && m == p.anchor) continue;
    const float value = learned[row++ * n];
    alpha[m * p.alphas] = value;
    others += value;
  }
  if (p.constraint == AFFINE) alpha[p.anchor * p.alphas] = 1 - others;
}

// A warp per mean and source. Grid: means, sources.
KERNEL(merge_means, MeansForward, THREADS) {
  const position i = static_cast<position>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
  if (i >= p.row_count) return;
  const MeanRow row = p.rows[i];
  float* alpha = p.alpha + blockIdx.y * p.alphas;
  float sum = 0;
  for (unsigned l = threadIdx.x % WARP; l < row.period; l += WARP) sum += alpha[row.first + l];
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) alpha[p.learned_count + i] = sum / static_cast<float>(row.period);
}

// The gradient of α j of a source, its share in the means included.
DEVICE float gathered(const ConstrainBackward& p, position j, unsigned source) {
  const float* dalpha = p.dalpha + source * p.alphas;
  float sum = dalpha[j];
  for (unsigned i = p.begins[blockIdx.x]; i < p.begins[blockIdx.x + 1]; ++i) {
    const Mean mean = p.means[i];
    if (j < mean.first || j - mean.first >= static_cast<position>(mean.rows) * mean.period) continue;
    sum += dalpha[mean.alpha + (j - mean.first) / mean.period] / static_cast<float>(mean.period);
  }
  return sum;
}

KERNEL(merge_constrain_backward, ConstrainBackward, THREADS) {
  const position j = static_cast<position>(blockIdx.x) * THREADS + threadIdx.x, n = p.learned_count;
  if (j >= n) return;
  // Taken off each: the anchor's, or the mean over the sources.
  float common = 0;
  if (p.constraint == AFFINE) common = gathered(p, j, p.anchor);
  if (p.constraint == SIMPLEX)
    for (unsigned m = 0; m < p.source_count; ++m) common += p.alpha[m * p.alphas + j] * gathered(p, j, m);
  for (unsigned m = 0, row = 0; m < p.source_count; ++m) {
    if (p.constraint == AFFINE && m == p.anchor) continue;
    float gradient = gathered(p, j, m);
    if (p.constraint != FREE) gradient -= common;
    if (p.constraint == SIMPLEX) gradient *= p.alpha[m * p.alphas + j];
    p.dlearned[row++ * n + j] = gradient;
  }
}
