// CUDA's words for the host compiler: the same kernel sources, run thread by thread on the CPU and checked on the way.
//
// The scheduler (src/gpu/emulator/) runs the threads of a block as coroutines. It hands every entry point its parameter
// struct and a slot that always points to the context of the thread that is running; all it needs to be asked goes
// through the table of functions in that context, so that this header leaves no symbol open.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

struct Index3 { unsigned x, y, z; };

struct Context;

// Where a number in shared memory was last written and read: by which thread, between which barriers. In a block that is
// asynchronous, src/gpu/emulator/asynchronous.rs reads and writes these.
struct Mark {
  uint32_t epoch;       // barriers of the block so far, plus one; 0: never
  uint16_t thread;      // MANY: several warps; WHOLE_WARP + w: several lanes of warp w
  uint16_t warp_epoch;  // __syncwarp of that thread's warp so far, plus one
};
struct Shadow { Mark write, read; };
constexpr uint16_t MANY = 0xFFFF, WHOLE_WARP = 0x8000;

enum Collective : unsigned { SYNC, SHUFFLE, SHUFFLE_XOR, SHUFFLE_DOWN, SHUFFLE_UP, BALLOT, ANY, ALL };

// The most bytes that a lane hands to all lanes of its warp: the operands of its matrix instructions.
constexpr unsigned OFFER = 256;

// A copy to shared memory that has been asked for and not waited for.
struct Copy {
  void* to;
  const void* from;  // null: zeros
  Shadow* shadow;
  const char* name;
  uint32_t elements, bytes, group;
};
constexpr unsigned COPIES = 64;

struct Context;
struct TensorCores;

// A bulk copy: lines of 128 bytes, from where a tensor map and a place in it say, to shared memory.
struct BulkCopy {
  unsigned char* to;
  Shadow* shadow;
  const char* name;
  uint64_t place;             // of `to` in the array, in numbers
  uint32_t lines, per_line;   // numbers of a line
  const void* map;
  int32_t at[4];              // as the instruction gets it: column and row, or channel, w, h and image
  uint32_t offset[2];
  void (*land)(const BulkCopy*);
  void* barrier;
  const char* barrier_name;
  const char* file;
  uint32_t line;
};

// What a thread of a warpgroup asks for with one product.
struct Product {
  float* d;
  uint32_t columns, sums;  // sums: numbers of d
  uint64_t a, b;
  uint32_t a_along, b_along;
  // The byte of dynamic shared memory where summand k of row (or column) i of an operand lies.
  uint32_t (*place)(uint64_t operand, uint32_t along, uint32_t i, uint32_t k);
  // Adds to the sums of 128 threads.
  void (*compute)(const Product*, const unsigned char* shared, float* const* sums, TensorCores cores);
  const char* file;
  uint32_t line, element_bytes;
};

struct Runtime {
  void (*barrier)(const Context*, const char* file, unsigned line);
  uint64_t (*collective)(const Context*, Collective, unsigned mask, uint64_t value, unsigned argument, const char* file,
                         unsigned line);
  void (*shared)(const Context*, const char* site, unsigned bytes, unsigned count, void** data, Shadow** shadow);
  // Returns the bytes of dynamic shared memory.
  unsigned (*dynamic)(const Context*, const char* site, void** data, Shadow** shadow);
  void (*fault)(const Context*, const char* what, const char* name, uint64_t where, unsigned other_thread);
  // Gives `bytes` to the warp; returns those of its 32 lanes, one's behind the other's, good until the next call.
  const unsigned char* (*exchange)(const Context*, const void* offer, unsigned bytes, const char* file, unsigned line);
  // What follows is Hopper's: hopper.h.
  // Reads or writes a number of shared memory, in a block that is asynchronous.
  void (*access)(const Context*, Shadow* shadow, const void* at, const char* name, uint64_t i, unsigned writes);
  void (*barrier_init)(const Context*, void* barrier, Shadow* shadow, const char* name, unsigned i, unsigned arrivals);
  // Both kinds of fences: of barriers that the thread made, and of what it wrote to shared memory.
  void (*fence)(const Context*, unsigned of_barriers);
  // An arrival and bytes to come, at the barrier of the block with this rank that lies in the place of the one given.
  void (*barrier_arrive)(const Context*, void* barrier, const Shadow* shadow, const char* name, unsigned i, unsigned bytes,
                         unsigned rank);
  void (*barrier_wait)(const Context*, void* barrier, const Shadow* shadow, const char* name, unsigned i, unsigned parity,
                       const char* file, unsigned line);
  void (*named_barrier)(const Context*, unsigned id, unsigned threads, const char* file, unsigned line);
  // To the same place in each block whose rank's bit of `blocks` is set.
  void (*copy)(const Context*, const BulkCopy*, const Shadow* barrier_shadow, unsigned barrier_index, unsigned blocks);
  // The byte of dynamic shared memory that a pointer points to.
  unsigned (*address)(const Context*, const void* at, const char* name);
  void (*product)(const Context*, const Product*);
  void (*product_fence)(const Context*, unsigned commits);
  void (*product_wait)(const Context*, unsigned left, float* sums, unsigned count, const char* file, unsigned line);
  void (*registers)(const Context*, unsigned count, unsigned up, const char* file, unsigned line);
  void (*cluster_barrier)(const Context*, const char* file, unsigned line);
};

// How tensor cores add: sums of `bytes` of A's numbers at a time, which are cut off `extra` bits behind those of a float; `bytes` is
// 0 where each product is rounded by itself.
struct TensorCores { uint32_t bytes, extra; };

struct Context {
  Index3 thread, block, threads, grid;
  uint32_t rank, cluster;  // of the block in its cluster, and how many blocks that has
  TensorCores tensor_cores;
  uint32_t epoch;
  uint16_t warp_epoch;
  uint16_t asynchronous;  // whether accesses to shared memory are the runtime's to check
  const Runtime* runtime;
  mutable uint32_t copies_asked, copies_group;
  Copy* copies;  // room for COPIES
};

// Set by every entry point. One for all files of kernels: the linker keeps one copy of the member functions below, which
// would read the variable of the file it came from.
inline thread_local const Context* const* slot;
static inline const Context* context() { return *slot; }

static inline bool is_ordered(const Mark& mark, const Context* now) {
  if (mark.epoch != now->epoch) return true;
  if (mark.thread == now->thread.x) return true;
  if (mark.thread == MANY) return false;
  const unsigned warp = now->thread.x / 32;
  const bool same_warp = static_cast<unsigned>(mark.thread >= WHOLE_WARP ? mark.thread - WHOLE_WARP : mark.thread / 32u) == warp;
  return same_warp && mark.warp_epoch != now->warp_epoch;
}

// `at`: the number itself.
static inline void note_read(Shadow& shadow, const void* at, const char* name, uint64_t i) {
  const Context* now = context();
  if (now->asynchronous) return now->runtime->access(now, &shadow, at, name, i, 0);
  if (!is_ordered(shadow.write, now)) now->runtime->fault(now, "race: read after write of", name, i, shadow.write.thread);
  const uint16_t self = static_cast<uint16_t>(now->thread.x);
  Mark& read = shadow.read;
  if (read.epoch != now->epoch) {
    read = Mark{now->epoch, self, now->warp_epoch};
  } else if (read.thread != self || read.warp_epoch != now->warp_epoch) {
    const uint16_t warp = WHOLE_WARP + self / 32;
    const bool same_warp = read.thread == warp || (read.thread < WHOLE_WARP && read.thread / 32u == self / 32u);
    read.thread = read.thread == self ? self : same_warp ? warp : MANY;
    read.warp_epoch = now->warp_epoch;
  }
}

static inline void note_write(Shadow& shadow, const void* at, const char* name, uint64_t i) {
  const Context* now = context();
  if (now->asynchronous) return now->runtime->access(now, &shadow, at, name, i, 1);
  if (!is_ordered(shadow.write, now)) now->runtime->fault(now, "race: two writes of", name, i, shadow.write.thread);
  if (!is_ordered(shadow.read, now)) now->runtime->fault(now, "race: write after read of", name, i, shadow.read.thread);
  shadow.write = Mark{now->epoch, static_cast<uint16_t>(now->thread.x), now->warp_epoch};
}

template <class T>
struct SharedReference {
  T& value;
  Shadow& shadow;
  const char* name;
  uint64_t i;
  operator T() const { note_read(shadow, &value, name, i); return value; }
  const SharedReference& operator=(T v) const { note_write(shadow, &value, name, i); value = v; return *this; }
  const SharedReference& operator=(const SharedReference& other) const { return *this = static_cast<T>(other); }
  const SharedReference& operator+=(T v) const { return *this = static_cast<T>(*this) + v; }
};

// An array in shared memory; also a pointer into one, by `+`.
template <class T>
struct SharedArray {
  T* data;
  Shadow* shadow;
  int64_t count;
  const char* name;
  int64_t step = 1;  // marks of a number: two in a float whose memory is an array of 16-bit numbers
  SharedReference<T> operator[](int64_t i) const {
    if (i < 0 || i >= count) {
      const Context* now = context();
      now->runtime->fault(now, "out of bounds:", name, static_cast<uint64_t>(i), now->thread.x);
    }
    return {data[i], shadow[i * step], name, static_cast<uint64_t>(i)};
  }
  SharedArray operator+(int64_t offset) const { return {data + offset, shadow + offset * step, count - offset, name, step}; }
};

template <class T>
static inline SharedArray<T> shared(const char* name, unsigned count) {
  void* data;
  Shadow* shadow;
  const Context* now = context();
  now->runtime->shared(now, name, count * sizeof(T), count, &data, &shadow);
  return {static_cast<T*>(data), shadow, count, name, 1};
}

template <class T>
static inline SharedArray<T> dynamic_shared(const char* name) {
  void* data;
  Shadow* shadow;
  const Context* now = context();
  const unsigned bytes = now->runtime->dynamic(now, name, &data, &shadow);
  return {static_cast<T*>(data), shadow, static_cast<int64_t>(bytes / sizeof(T)), name, 1};
}

static inline void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    const Context* now = context();
    now->runtime->fault(now, "misaligned vector access at", "address", reinterpret_cast<uintptr_t>(address), now->thread.x);
  }
}

template <class T>
static inline T collective(Collective kind, unsigned mask, T value, unsigned argument, const char* file, unsigned line) {
  static_assert(sizeof(T) <= 8, "collectives move at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const Context* now = context();
  bits = now->runtime->collective(now, kind, mask, bits, argument, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
struct Offers {
  const unsigned char* bytes;
  const T& operator[](unsigned lane) const { return *reinterpret_cast<const T*>(bytes + lane * sizeof(T)); }
};

template <class T>
static inline Offers<T> exchange(const T& offer, const char* file, unsigned line) {
  static_assert(sizeof(T) <= OFFER && alignof(T) <= 4, "a lane offers at most this much, words");
  const Context* now = context();
  return {now->runtime->exchange(now, &offer, sizeof(T), file, line)};
}

// Asks for a copy. Until it has been waited for, NaN is there; whoever else reads it needs a barrier behind the wait, as on
// a GPU.
template <unsigned BYTES, class T>
static inline void copy_later(SharedArray<T> to, unsigned i, const void* from) {
  constexpr unsigned ELEMENTS = BYTES / sizeof(T);
  check_aligned(to.data + i, BYTES);
  check_aligned(from, BYTES);
  const Context* now = context();
  if (now->copies_asked == COPIES) now->runtime->fault(now, "too many copies not waited for, at", to.name, i, now->thread.x);
  T poison;
  std::memset(&poison, 0xFF, sizeof(T));
  for (unsigned j = 0; j < ELEMENTS; ++j) to[i + j] = poison;
  now->copies[now->copies_asked++] = Copy{to.data + i, from, to.shadow + i, to.name, ELEMENTS, BYTES, now->copies_group};
}

// Copies that are not among the last `left` groups are done when this returns.
static inline void wait_for_copies(unsigned left) {
  const Context* now = context();
  uint32_t kept = 0;
  for (uint32_t c = 0; c < now->copies_asked; ++c) {
    const Copy copy = now->copies[c];
    if (copy.group + left >= now->copies_group) {
      now->copies[kept++] = copy;
      continue;
    }
    for (uint32_t j = 0; j < copy.elements; ++j)
      note_write(copy.shadow[j], static_cast<const char*>(copy.to) + j * (copy.bytes / copy.elements), copy.name, j);
    if (copy.from != nullptr) std::memcpy(copy.to, copy.from, copy.bytes);
    else std::memset(copy.to, 0, copy.bytes);
  }
  now->copies_asked = kept;
}

}  // namespace emulator

#define DEVICE static inline
#define KERNEL(name, Parameters, THREADS)                                                                \
  static void JOIN(name, body)(const Parameters& p);                                                     \
  extern "C" const unsigned STORED_NAME(JOIN(name, size)) = sizeof(Parameters);                          \
  extern "C" const unsigned STORED_NAME(JOIN(name, threads)) = THREADS;                                  \
  extern "C" void STORED_NAME(name)(const void* parameters, const emulator::Context* const* slot) {      \
    emulator::slot = slot;                                                                               \
    JOIN(name, body)(*static_cast<const Parameters*>(parameters));                                       \
  }                                                                                                      \
  static void JOIN(name, body)(const Parameters& p)
#define EMULATOR_TEXT_(x) #x
#define EMULATOR_TEXT(x) EMULATOR_TEXT_(x)
#define SHARED(type, name, count)               \
  const emulator::SharedArray<type> name =      \
      emulator::shared<type>(#name " (" __FILE__ ":" EMULATOR_TEXT(__LINE__) ")", count)
#define DYNAMIC_SHARED(type, name)              \
  const emulator::SharedArray<type> name =      \
      emulator::dynamic_shared<type>(#name " (" __FILE__ ":" EMULATOR_TEXT(__LINE__) ")")
using emulator::SharedArray;

#define threadIdx (emulator::context()->thread)
#define blockIdx (emulator::context()->block)
#define blockDim (emulator::context()->threads)
#define gridDim (emulator::context()->grid)

#define __syncthreads() emulator::context()->runtime->barrier(emulator::context(), __FILE__, __LINE__)
#define __syncwarp(...) emulator::collective<unsigned>(emulator::SYNC, 0xFFFFFFFFu, 0u, 0, __FILE__, __LINE__)
#define __shfl_sync(mask, v, lane) emulator::collective(emulator::SHUFFLE, mask, v, lane, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, v, lanes) emulator::collective(emulator::SHUFFLE_XOR, mask, v, lanes, __FILE__, __LINE__)
#define __shfl_down_sync(mask, v, by) emulator::collective(emulator::SHUFFLE_DOWN, mask, v, by, __FILE__, __LINE__)
#define __shfl_up_sync(mask, v, by) emulator::collective(emulator::SHUFFLE_UP, mask, v, by, __FILE__, __LINE__)
#define __ballot_sync(mask, v) emulator::collective<unsigned>(emulator::BALLOT, mask, (v) ? 1u : 0u, 0, __FILE__, __LINE__)
#define __any_sync(mask, v) emulator::collective<unsigned>(emulator::ANY, mask, (v) ? 1u : 0u, 0, __FILE__, __LINE__)
#define __all_sync(mask, v) emulator::collective<unsigned>(emulator::ALL, mask, (v) ? 1u : 0u, 0, __FILE__, __LINE__)

static inline unsigned __float_as_uint(float v) { unsigned bits; std::memcpy(&bits, &v, 4); return bits; }
static inline float __uint_as_float(unsigned bits) { float v; std::memcpy(&v, &bits, 4); return v; }
// Rounds by itself: never part of a fused multiply-add.
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }

struct alignas(8) float2 { float x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) float4 { float x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T>
DEVICE T load_vector(const void* from) {
  emulator::check_aligned(from, sizeof(T));
  return *static_cast<const T*>(from);
}
template <class T>
DEVICE void store_vector(void* to, T value) {
  emulator::check_aligned(to, sizeof(T));
  *static_cast<T*>(to) = value;
}
DEVICE float4 load4_streaming(const float* from) { return load_vector<float4>(from); }
// Marks of earlier use stay behind: a barrier has made them void.
template <class T>
DEVICE SharedArray<float> shared_as_floats(SharedArray<T> array, unsigned count) {
  static_assert(sizeof(T) <= sizeof(float), "a mark for each float");
  emulator::check_aligned(array.data, 16);
  return {reinterpret_cast<float*>(array.data), array.shadow, static_cast<int64_t>(count * sizeof(T) / sizeof(float)),
          array.name, static_cast<int64_t>(sizeof(float) / sizeof(T))};
}
DEVICE float4 shared_load4(SharedArray<float> array, unsigned i) {
  emulator::check_aligned(array.data + i, 16);
  return {array[i], array[i + 1], array[i + 2], array[i + 3]};
}
DEVICE void shared_store4(SharedArray<float> array, unsigned i, float4 v) {
  emulator::check_aligned(array.data + i, 16);
  array[i] = v.x;
  array[i + 1] = v.y;
  array[i + 2] = v.z;
  array[i + 3] = v.w;
}
