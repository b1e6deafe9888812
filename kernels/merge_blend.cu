// modules: f32 bf16 f16
// The merge: every weight of a network as a weighted sum of the same weight in M source networks, stored as a step reads it.
//
//   W[i] = α[0, a(i)]·W_0[i] + α[1, a(i)]·W_1[i] + …, added from left to right, each operation rounded
//
// Sources are f32 arenas of one layout: filters in front, from `filters_len` on the rest (γ, β). Of the blend, filters are
// stored as activations are (rounded once more, to nearest), the rest as f32; each number is written once, and for f32 both
// are one arena. No pass of the present convolutions wants a second layout of the filters: 16-bit dgrad reads the same rows
// as fprop and turns them with ldmatrix.trans on the way from shared memory, f32 dgrad turns them as it stages them. (The tf32
// form of wgmma, which takes K-major operands only, would be the first to need one, in dgrad.)
//
// A table of chunks in device memory says what each stretch of weights is; a block takes one chunk. The host cuts chunks of
// 8 to 32 KB so that there are at least four waves of blocks. A thread takes eight weights at a time, 32 bytes of each
// source, and has up to four sources in flight before it uses the first. Three blocks fit a multiprocessor's registers: with
// two sources they ask for 48 KB at once, with four for 96, where some 25 KB (4.3 TB/s × 0.7 µs / 132) keep the memory busy;
// to have eight sources in flight would cost blocks and gain nothing. Sources are read with a hint that nobody reads them
// again soon; the blend, which the step reads next, stays cached.
// Four neighbouring weights that begin at a multiple of four have one α between them (a filter's, a layer's) or four
// neighbouring ones (kernels', a vector's), which come in one load; through the first-level cache, for a chunk has at most
// a few hundred of the former, and a warp reads one or two at a time. What lies otherwise goes weight by weight.
//
// One launch. Bytes: 4·M per weight read, 4 or 2 written; weights that no chunk blends or copies are zeroed by one that
// says so. FLOPs: 2·M − 1 per weight.
#include "common.cuh"

constexpr unsigned THREADS = 256;
// Weights that a thread takes at a time, in fours.
constexpr unsigned UNIT = 8, FOURS = UNIT / 4;

// Values of `BlendChunk::source` beside the number of a source.
constexpr int BLENDED = -1, ZERO = -2;

// The sharing of α among four neighbouring weights of a chunk that begin at a multiple of four.
// FOUR_ALPHAS lie at a multiple of four in every source's.
enum Fours : unsigned { NOTHING, ONE_ALPHA, FOUR_ALPHAS };

// Weights begin .. begin + len of the arena, padding between rows included: filters or rest, never both.
struct BlendChunk {
  unsigned long long begin;
  unsigned len;
  unsigned column;            // of the first weight in its row
  unsigned row_len, pitch;
  unsigned first;             // the weight at (row, column) takes α[first + row·row_step + column mod period],
  unsigned row_step, period;  // rows counted from the chunk's first
  int source;
  Fours fours;
  unsigned padding;
};
static_assert(sizeof(BlendChunk) == 48, "as in src/ops/merge/gpu/");

struct Blend {
  const BlendChunk* chunks;     // one per block
  const float* const* sources;  // M arenas
  const float* alpha;           // M × alphas
  element* filters;             // the arena's first filters_len numbers
  float* rest;                  // and those behind
  unsigned long long alphas, filters_len;
  unsigned source_count;
  unsigned packed;              // all arenas and α are aligned to 16 bytes, and filters_len a multiple of four
};
static_assert(sizeof(Blend) == 64, "as in src/ops/merge/gpu/");

using position = unsigned long long;

// Which α of a source the weight at (row, column) takes; rows are counted from the chunk's first.
DEVICE unsigned alpha_of(const BlendChunk& chunk, unsigned row, unsigned column) {
  return chunk.first + row * chunk.row_step + (chunk.period == 1 ? 0 : column % chunk.period);
}

DEVICE float blend_weight(const Blend& p, const BlendChunk& chunk, position i) {
  const unsigned behind = chunk.column + static_cast<unsigned>(i - chunk.begin);
  const unsigned row = behind / chunk.pitch, column = behind % chunk.pitch;
  if (chunk.source == ZERO || column >= chunk.row_len) return 0;
  if (chunk.source >= 0) return p.sources[chunk.source][i];
  const float* alpha = p.alpha + alpha_of(chunk, row, column);
  float sum = __fmul_rn(alpha[0], p.sources[0][i]);
#pragma unroll 1
  for (unsigned m = 1; m < p.source_count; ++m) sum += __fmul_rn(alpha[m * p.alphas], p.sources[m][i]);
  return sum;
}

struct Weights {
  float v[UNIT];
};

DEVICE Weights load_weights(const float* from) {
  Weights weights;
#pragma unroll
  for (unsigned four = 0; four < FOURS; ++four) {
    const float4 v = load4_streaming(from + four * 4);
    weights.v[four * 4] = v.x;
    weights.v[four * 4 + 1] = v.y;
    weights.v[four * 4 + 2] = v.z;
    weights.v[four * 4 + 3] = v.w;
  }
  return weights;
}

// Where a unit's fours lie: in one row each.
struct Places {
  unsigned column[FOURS];  // of the first weight
  unsigned alpha[FOURS];   // its α
};

DEVICE Places places_of(const BlendChunk& chunk, position i) {
  const unsigned behind = chunk.column + static_cast<unsigned>(i - chunk.begin);
  unsigned row = behind / chunk.pitch, column = behind % chunk.pitch;
  Places places;
#pragma unroll
  for (unsigned four = 0; four < FOURS; ++four) {
    places.column[four] = column;
    places.alpha[four] = column < chunk.row_len ? alpha_of(chunk, row, column) : chunk.first;
    column += 4;
    if (column == chunk.pitch) {
      column = 0;
      ++row;
    }
  }
  return places;
}

// The weighted sum of eight weights from `i` on. IN_FLIGHT: sources whose loads come before the first is used.
template <bool ONE, unsigned IN_FLIGHT>
DEVICE Weights weighted_sum(const Blend& p, position i, const Places& places) {
  Weights sum;
#pragma unroll 1
  for (unsigned first = 0; first < p.source_count; first += IN_FLIGHT) {
    Weights weights[IN_FLIGHT];
    float4 alpha[IN_FLIGHT][FOURS];
#pragma unroll
    for (unsigned u = 0; u < IN_FLIGHT; ++u) {
      if (first + u >= p.source_count) break;
      const float* of_source = p.alpha + (first + u) * p.alphas;
      weights[u] = load_weights(p.sources[first + u] + i);
#pragma unroll
      for (unsigned four = 0; four < FOURS; ++four) {
        if (ONE) alpha[u][four].x = of_source[places.alpha[four]];
        else alpha[u][four] = load4(of_source + places.alpha[four]);
      }
    }
#pragma unroll
    for (unsigned u = 0; u < IN_FLIGHT; ++u) {
      if (first + u >= p.source_count) break;
#pragma unroll
      for (unsigned l = 0; l < UNIT; ++l) {
        const float4 four = alpha[u][l / 4];
        const float factor = ONE || l % 4 == 0 ? four.x : l % 4 == 1 ? four.y : l % 4 == 2 ? four.z : four.w;
        const float term = __fmul_rn(factor, weights[u].v[l]);
        // The first product itself, not zero and the product: −0 stays.
        sum.v[l] = first + u == 0 ? term : sum.v[l] + term;
      }
    }
  }
  return sum;
}

// Eight weights from `i` on, all of the chunk and aligned.
template <bool ONE, unsigned IN_FLIGHT>
DEVICE Weights blend_unit(const Blend& p, const BlendChunk& chunk, position i) {
  const Places places = places_of(chunk, i);
  Weights unit;
  if (chunk.source == BLENDED) unit = weighted_sum<ONE, IN_FLIGHT>(p, i, places);
  if (chunk.source >= 0) unit = load_weights(p.sources[chunk.source] + i);
#pragma unroll
  for (unsigned l = 0; l < UNIT; ++l)
    unit.v[l] = chunk.source != ZERO && places.column[l / 4] + l % 4 < chunk.row_len ? unit.v[l] : 0;
  return unit;
}

DEVICE void store_unit(const Blend& p, bool is_filters, position i, const Weights& unit) {
  if (!is_filters) {
    float* to = p.rest + (i - p.filters_len);
#pragma unroll
    for (unsigned four = 0; four < UNIT; four += 4)
      store4(to + four, make_float4(unit.v[four], unit.v[four + 1], unit.v[four + 2], unit.v[four + 3]));
    return;
  }
#pragma unroll
  for (unsigned from = 0; from < UNIT; from += PACK) {
    Pack pack;
#pragma unroll
    for (unsigned l = 0; l < PACK; ++l) pack.v[l] = unit.v[from + l];
    store_pack(p.filters + i + from, pack);
  }
}

// A chunk in units; what is no whole unit at its ends, and all of it unless it is PACKED, weight by weight.
template <bool PACKED, bool ONE, unsigned IN_FLIGHT>
DEVICE void blend_chunk(const Blend& p, const BlendChunk& chunk) {
  const position end = chunk.begin + chunk.len;
  const bool is_filters = chunk.begin < p.filters_len;
#pragma unroll 1
  for (position i = chunk.begin / UNIT * UNIT + threadIdx.x * UNIT; i < end; i += THREADS * UNIT) {
    if (PACKED && i >= chunk.begin && i + UNIT <= end) {
      store_unit(p, is_filters, i, blend_unit<ONE, IN_FLIGHT>(p, chunk, i));
      continue;
    }
#pragma unroll 1
    for (position l = i < chunk.begin ? chunk.begin : i; l < i + UNIT && l < end; ++l) {
      const float weight = blend_weight(p, chunk, l);
      if (is_filters) p.filters[l] = from_float(weight);
      else p.rest[l - p.filters_len] = weight;
    }
  }
}

KERNEL(merge_blend, Blend, THREADS) {
  const BlendChunk chunk = p.chunks[blockIdx.x];
  if (!p.packed || chunk.fours == NOTHING) blend_chunk<false, true, 1>(p, chunk);
  else if (chunk.fours == ONE_ALPHA) blend_chunk<true, true, 4>(p, chunk);
  else blend_chunk<true, false, 2>(p, chunk);
}
