// modules: f32 bf16 f16
// Concatenation along the channels of NHWC tensors, one input at a time.
//
//   concat_insert    y[pixel, first + c] = x[pixel, c]
//   concat_extract   dx[pixel, c] = dy[pixel, first + c]
//
// Bytes: one read and one write of each element of the part. No arithmetic: the bits stay as they are. Geometry: a thread
// per unit, which is 16 bytes where the channels of the part, of the whole and `first` allow it and else one element; 256
// threads per block.
#include "common.cuh"

constexpr unsigned THREADS = 256;

struct Concat {
  element* part;        // pixels × channels
  element* whole;       // pixels × total
  unsigned units;       // of the part: fewer than 2³², since a GPU divides 64-bit numbers by calling a function
  unsigned channels, total, first;
  unsigned vectorised;  // 1: units of 16 bytes; 0: of one element
  unsigned padding;
};
static_assert(sizeof(Concat) == 40, "as in src/ops/concat/gpu.rs");

// Copies unit `i` of the part to or from its place in the whole.
template <class T>
DEVICE void move_unit(const Concat& p, unsigned i, bool insert) {
  constexpr unsigned WIDTH = sizeof(T) / sizeof(element);
  const unsigned units_per_pixel = p.channels / WIDTH;
  const unsigned long long pixel = i / units_per_pixel;
  element* part = p.part + static_cast<unsigned long long>(i) * WIDTH;
  element* whole = p.whole + pixel * p.total + p.first + i % units_per_pixel * WIDTH;
  if (insert) store_vector<T>(whole, load_vector<T>(part));
  else store_vector<T>(part, load_vector<T>(whole));
}

DEVICE void move_part(const Concat& p, bool insert) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= p.units) return;
  if (p.vectorised) move_unit<StoredPack>(p, i, insert);
  else move_unit<element>(p, i, insert);
}

KERNEL(concat_insert, Concat, THREADS) { move_part(p, true); }

KERNEL(concat_extract, Concat, THREADS) { move_part(p, false); }
