// modules: f32 bf16 f16
// Fill, and conversion between f32 and the storage type of activations.
//
//   fill       x[i] = value
//   to_f32     y[i] = x[i]
//   from_f32   y[i] = x[i], rounded to nearest
//
// Bytes: one read and one write of each element. Geometry: a thread per 16 bytes of storage, 256 threads per block.
#include "common.cuh"

constexpr unsigned THREADS = 256;

struct Fill {
  element* x;  // count
  unsigned long long count;
  float value;
  unsigned padding;
};
static_assert(sizeof(Fill) == 24, "as in src/gpu/convert.rs");

struct Convert {
  const void* x;  // count
  void* y;        // count
  unsigned long long count;
};
static_assert(sizeof(Convert) == 24, "as in src/gpu/convert.rs");

// The first element of this thread's 16 bytes.
DEVICE unsigned long long first_element() {
  return (static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x) * PACK;
}

// Windows of arenas may begin anywhere.
DEVICE bool are_aligned(const Convert& p) {
  return (reinterpret_cast<unsigned long long>(p.x) | reinterpret_cast<unsigned long long>(p.y)) % 16 == 0;
}

KERNEL(fill, Fill, THREADS) {
  const unsigned long long first = first_element();
  if (first + PACK <= p.count && reinterpret_cast<unsigned long long>(p.x) % 16 == 0) {
    Pack pack;
#pragma unroll
    for (unsigned i = 0; i < PACK; ++i) pack.v[i] = p.value;
    store_pack(p.x + first, pack);
  } else {
    for (unsigned i = 0; i < PACK && first + i < p.count; ++i) p.x[first + i] = from_float(p.value);
  }
}

KERNEL(to_f32, Convert, THREADS) {
  const element* x = static_cast<const element*>(p.x);
  float* y = static_cast<float*>(p.y);
  const unsigned long long first = first_element();
  if (first + PACK <= p.count && are_aligned(p)) {
    const Pack pack = load_pack(x + first);
#pragma unroll
    for (unsigned i = 0; i < PACK; i += 4)
      store4(y + first + i, make_float4(pack.v[i], pack.v[i + 1], pack.v[i + 2], pack.v[i + 3]));
  } else {
    for (unsigned long long i = first; i < first + PACK && i < p.count; ++i) y[i] = to_float(x[i]);
  }
}

KERNEL(from_f32, Convert, THREADS) {
  const float* x = static_cast<const float*>(p.x);
  element* y = static_cast<element*>(p.y);
  const unsigned long long first = first_element();
  if (first + PACK <= p.count && are_aligned(p)) {
    Pack pack;
#pragma unroll
    for (unsigned i = 0; i < PACK; i += 4) {
      const float4 v = load4(x + first + i);
      pack.v[i] = v.x;
      pack.v[i + 1] = v.y;
      pack.v[i + 2] = v.z;
      pack.v[i + 3] = v.w;
    }
    store_pack(y + first, pack);
  } else {
    for (unsigned long long i = first; i < first + PACK && i < p.count; ++i) y[i] = from_float(x[i]);
  }
}
