// Definitions for all kernels: the storage type of activations, 16-byte accesses, sums over a warp and over a block.
//
// A file of kernels is compiled once per storage type: STORAGE_F32, STORAGE_BF16 and STORAGE_F16; STORAGE_F32 alone if it
// does not mention `element`; STORAGE_TF32, an f32 whose products may be rounded to tf32, in the place of STORAGE_F32 if it
// includes tensor.cuh. Sums are always f32. The same sources run on the CPU: see emulator/emulator.h, which then supplies
// what is CUDA's own here.
//
//   KERNEL(op_direction, Parameters, THREADS) { … }   an entry point; its one argument is `p`, a const Parameters
//   SHARED(float, tile, COUNT);                       an array in shared memory, COUNT known at compile time
//   DYNAMIC_SHARED(float, stages);                    all the shared memory that the launch asks for beyond that; one per kernel
//   DEVICE float f(…) { … }                           a device function
//   SharedArray<float>                                how such a function takes an array in shared memory
#pragma once

#ifdef MEDMERGE_EMULATOR
#include "emulator/emulator.h"
#else
#define DEVICE static __device__ __forceinline__
#define KERNEL(name, Parameters, THREADS) \
  extern "C" __global__ void __launch_bounds__(THREADS) STORED_NAME(name)(const Parameters p)
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
// Aligned for what wants it most: tiles that TMA copies in its widest swizzle.
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(1024) type name[]
template <class T>
using SharedArray = T*;
// CUDA's own 16-byte accesses; the emulator checks their alignment.
template <class T>
DEVICE T load_vector(const void* from) { return *static_cast<const T*>(from); }
template <class T>
DEVICE void store_vector(void* to, T value) { *static_cast<T*>(to) = value; }
// Four floats that nobody reads again soon: they are the first to leave the caches.
DEVICE float4 load4_streaming(const float* from) { return __ldcs(reinterpret_cast<const float4*>(from)); }
// Four floats of shared memory, `i` a multiple of 4.
DEVICE float4 shared_load4(const float* array, unsigned i) { return *reinterpret_cast<const float4*>(array + i); }
DEVICE void shared_store4(float* array, unsigned i, float4 v) { *reinterpret_cast<float4*>(array + i) = v; }
// The memory of an array of `count` other things, once everybody is done with these.
template <class T>
DEVICE float* shared_as_floats(T* array, unsigned) { return reinterpret_cast<float*>(array); }
#endif

// The entry points of a file carry the storage type in their name: fill_f32, fill_bf16.
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define STORED_NAME(name) JOIN(name, STORAGE)

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xFFFFFFFFu;

DEVICE unsigned bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(unsigned bits) { return __uint_as_float(bits); }
DEVICE bool is_finite(float v) { return (bits_of(v) & 0x7F800000u) != 0x7F800000u; }
DEVICE bool is_nan(float v) { return v != v; }
DEVICE float infinity() { return float_of(0x7F800000u); }

// ---- storage of activations ----------------------------------------------------------------------------------------

#if defined(STORAGE_BF16)
#define STORAGE bf16
struct element { unsigned short bits; };
DEVICE float to_float(element v) { return float_of(static_cast<unsigned>(v.bits) << 16); }
// Round to nearest, ties to even; a NaN becomes 0x7FFF.
#ifdef MEDMERGE_EMULATOR
DEVICE element from_float(float v) {
  const unsigned bits = bits_of(v);
  const unsigned rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  return element{static_cast<unsigned short>(is_nan(v) ? 0x7FFFu : rounded >> 16)};
}
#else
DEVICE element from_float(float v) {
  element e;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(e.bits) : "f"(v));
  return e;
}
// Two of them in one instruction.
DEVICE unsigned from_floats(float first, float second) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
#endif
// The largest number that is stored as zero, as in the other two.
constexpr float STORED_AS_ZERO = 0x1p-134f;
#elif defined(STORAGE_F16)
#define STORAGE f16
struct element { unsigned short bits; };
#include "half.cuh"
DEVICE float to_float(element v) { return half_to_float(v.bits); }
DEVICE element from_float(float v) { return element{half_from_float(v)}; }
#ifndef MEDMERGE_EMULATOR
// Two of them in one instruction.
DEVICE unsigned from_floats(float first, float second) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
#endif
constexpr float STORED_AS_ZERO = 0x1p-25f;
#else
#ifdef STORAGE_TF32
#define STORAGE tf32
#else
#define STORAGE f32
#endif
using element = float;
DEVICE float to_float(element v) { return v; }
DEVICE element from_float(float v) { return v; }
constexpr float STORED_AS_ZERO = 0;
#endif

// Elements in 16 bytes.
constexpr unsigned PACK = 16 / sizeof(element);

// 16 bytes of storage, as floats.
struct Pack { float v[PACK]; };
struct alignas(16) StoredPack { element v[PACK]; };

// `from` is aligned to 16 bytes.
DEVICE Pack load_pack(const element* from) {
  const StoredPack stored = load_vector<StoredPack>(from);
  Pack pack;
#pragma unroll
  for (unsigned i = 0; i < PACK; ++i) pack.v[i] = to_float(stored.v[i]);
  return pack;
}

DEVICE void store_pack(element* to, const Pack& pack) {
#if !defined(MEDMERGE_EMULATOR) && (defined(STORAGE_BF16) || defined(STORAGE_F16))
  store_vector(to, make_uint4(from_floats(pack.v[0], pack.v[1]), from_floats(pack.v[2], pack.v[3]),
                              from_floats(pack.v[4], pack.v[5]), from_floats(pack.v[6], pack.v[7])));
#else
  StoredPack stored;
#pragma unroll
  for (unsigned i = 0; i < PACK; ++i) stored.v[i] = from_float(pack.v[i]);
  store_vector(to, stored);
#endif
}

// Stores a pack and leaves in it what is stored.
DEVICE void store_rounded(element* to, Pack& pack) {
#if !defined(MEDMERGE_EMULATOR) && (defined(STORAGE_BF16) || defined(STORAGE_F16))
  unsigned pairs[PACK / 2];
#pragma unroll
  for (unsigned i = 0; i < PACK / 2; ++i) {
    pairs[i] = from_floats(pack.v[2 * i], pack.v[2 * i + 1]);
    pack.v[2 * i] = to_float(element{static_cast<unsigned short>(pairs[i])});
    pack.v[2 * i + 1] = to_float(element{static_cast<unsigned short>(pairs[i] >> 16)});
  }
  store_vector(to, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
#else
  StoredPack stored;
#pragma unroll
  for (unsigned i = 0; i < PACK; ++i) {
    stored.v[i] = from_float(pack.v[i]);
    pack.v[i] = to_float(stored.v[i]);
  }
  store_vector(to, stored);
#endif
}

// Four floats, whatever activations are stored as; `from` is aligned to 16 bytes.
DEVICE float4 load4(const float* from) { return load_vector<float4>(from); }
DEVICE void store4(float* to, float4 v) { store_vector(to, v); }

// ---- sums in a fixed order -----------------------------------------------------------------------------------------

// The largest of the warp, in every lane.
DEVICE float warp_max(float v) {
#pragma unroll
  for (unsigned step = WARP / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
  return v;
}

// The sum over the warp, in every lane.
DEVICE float warp_sum(float v) {
#pragma unroll
  for (unsigned step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
  return v;
}

// The sum over the block, in every thread. `scratch` holds THREADS / 32 floats and may be used again afterwards.
template <unsigned THREADS>
DEVICE float block_sum(float v, SharedArray<float> scratch) {
  v = warp_sum(v);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < THREADS / WARP; ++warp) sum += scratch[warp];
  __syncthreads();
  return sum;
}
