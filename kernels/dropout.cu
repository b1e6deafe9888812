// modules: f32 bf16 f16
// Dropout, forward and backward.
//
//   dropout   y[i] = x[i] · scale if word i mod 4 of Philox4x32-10 at the counter (i / 4, stream, 0) is at least the threshold,
//             else 0; backward is the same of dy
//
// The key lies in device memory: a recorded step draws anew whenever it is replayed. Bytes: x and y once. FLOPs: one each, and
// some 60 whole-number operations per element. Geometry: a thread per 16 bytes of storage, which are one draw of four words or
// two; 256 threads per block.
#include "common.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned QUAD = 4;

struct Drop {
  const element* x;     // count
  element* y;           // count
  const unsigned* key;  // two words
  unsigned long long count;
  unsigned stream;
  unsigned threshold;   // p · 2³²
  float scale;          // 1 / (1 − p)
  unsigned vectorised;  // whether x and y are aligned to 16 bytes
};
static_assert(sizeof(Drop) == 48, "as in src/ops/dropout/gpu.rs");

struct Words { unsigned v[QUAD]; };

DEVICE unsigned high(unsigned long long product) { return static_cast<unsigned>(product >> 32); }

// Ten rounds of Philox4x32 at the counter (quad, stream, 0).
DEVICE Words draw(unsigned long long quad, unsigned stream, unsigned key0, unsigned key1) {
  Words c = {{static_cast<unsigned>(quad), high(quad), stream, 0}};
#pragma unroll
  for (unsigned round = 0; round < 10; ++round) {
    const unsigned long long a = 0xD2511F53ull * c.v[0], b = 0xCD9E8D57ull * c.v[2];
    c = Words{{high(b) ^ c.v[1] ^ key0, static_cast<unsigned>(b), high(a) ^ c.v[3] ^ key1, static_cast<unsigned>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

KERNEL(dropout, Drop, THREADS) {
  const unsigned long long first = (static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x) * PACK;
  if (first >= p.count) return;
  const unsigned key0 = p.key[0], key1 = p.key[1];
  const bool whole = p.vectorised && first + PACK <= p.count;
  Pack x = {};
  if (whole) {
    x = load_pack(p.x + first);
  } else {
#pragma unroll
    for (unsigned i = 0; i < PACK; ++i)
      if (first + i < p.count) x.v[i] = to_float(p.x[first + i]);
  }
#pragma unroll
  for (unsigned half = 0; half < PACK / QUAD; ++half) {
    const Words words = draw(first / QUAD + half, p.stream, key0, key1);
#pragma unroll
    for (unsigned i = 0; i < QUAD; ++i) {
      float& v = x.v[half * QUAD + i];
      v = words.v[i] >= p.threshold ? v * p.scale : 0.0f;
    }
  }
  if (whole) {
    store_pack(p.y + first, x);
  } else {
#pragma unroll
    for (unsigned i = 0; i < PACK; ++i)
      if (first + i < p.count) p.y[first + i] = from_float(x.v[i]);
  }
}
