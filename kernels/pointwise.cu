// modules: f32 bf16 f16
// Sums, rectification and pulls, element by element, written over the first operand.
//
//   relu            x = max(x, 0)
//   relu_backward   dy = dy where y > 0, else 0
//   add             sum += term
//   pull            dx += scale·c·(x − s·t), with the scale of the loss
//   add_rows        the same as add, where the rows of `sum` are padded and those of `term` are not
//
// A NaN passes through: what is compared is `<= 0`, which it is not.
//
// Bytes: each operand once, and one write; at most one FLOP per element, four in pull. Geometry: a thread per 16 bytes of storage, one
// per element in add_rows; 256 threads per block.
#include "control.cuh"

constexpr unsigned THREADS = 256;

DEVICE unsigned long long flat_thread() { return static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x; }

DEVICE float rectified(float x) { return x <= 0 ? 0 : x; }
DEVICE float rectified_gradient(float dy, float y) { return y <= 0 ? 0 : dy; }

struct Relu {
  element* x;  // count
  unsigned long long count;
  unsigned vectorised;  // whether x is aligned to 16 bytes
  unsigned padding;
};
static_assert(sizeof(Relu) == 24, "as in src/ops/pointwise/gpu.rs");

KERNEL(relu, Relu, THREADS) {
  const unsigned long long first = flat_thread() * PACK;
  if (p.vectorised && first + PACK <= p.count) {
    Pack x = load_pack(p.x + first);
#pragma unroll
    for (unsigned i = 0; i < PACK; ++i) x.v[i] = rectified(x.v[i]);
    store_pack(p.x + first, x);
  } else {
    for (unsigned long long i = first; i < first + PACK && i < p.count; ++i) p.x[i] = from_float(rectified(to_float(p.x[i])));
  }
}

struct Both {
  element* to;          // count; read and written
  const element* from;  // count
  unsigned long long count;
  unsigned vectorised;  // whether both are aligned to 16 bytes
  unsigned padding;
};
static_assert(sizeof(Both) == 32, "as in src/ops/pointwise/gpu.rs");

KERNEL(relu_backward, Both, THREADS) {
  const unsigned long long first = flat_thread() * PACK;
  if (p.vectorised && first + PACK <= p.count) {
    Pack dy = load_pack(p.to + first);
    const Pack y = load_pack(p.from + first);
#pragma unroll
    for (unsigned i = 0; i < PACK; ++i) dy.v[i] = rectified_gradient(dy.v[i], y.v[i]);
    store_pack(p.to + first, dy);
  } else {
    for (unsigned long long i = first; i < first + PACK && i < p.count; ++i)
      p.to[i] = from_float(rectified_gradient(to_float(p.to[i]), to_float(p.from[i])));
  }
}

KERNEL(add, Both, THREADS) {
  const unsigned long long first = flat_thread() * PACK;
  if (p.vectorised && first + PACK <= p.count) {
    Pack sum = load_pack(p.to + first);
    const Pack term = load_pack(p.from + first);
#pragma unroll
    for (unsigned i = 0; i < PACK; ++i) sum.v[i] += term.v[i];
    store_pack(p.to + first, sum);
  } else {
    for (unsigned long long i = first; i < first + PACK && i < p.count; ++i)
      p.to[i] = from_float(to_float(p.to[i]) + to_float(p.from[i]));
  }
}

struct Pulled {
  element* dx;  // count, like all the others; read and written
  const element* x;
  const element* towards;   // t
  const Control* control;   // its scale; null for 1
  unsigned long long count;
  float strength, share;    // c, s
  unsigned vectorised;      // whether all are aligned to 16 bytes
  unsigned padding;
};
static_assert(sizeof(Pulled) == 56, "as in src/ops/pointwise/gpu.rs");

KERNEL(pull, Pulled, THREADS) {
  const unsigned long long first = flat_thread() * PACK;
  const float strength = p.control != nullptr ? p.control->scale * p.strength : p.strength;
  if (p.vectorised && first + PACK <= p.count) {
    Pack dx = load_pack(p.dx + first);
    const Pack x = load_pack(p.x + first), towards = load_pack(p.towards + first);
#pragma unroll
    for (unsigned i = 0; i < PACK; ++i) dx.v[i] += strength * (x.v[i] - p.share * towards.v[i]);
    store_pack(p.dx + first, dx);
  } else {
    for (unsigned long long i = first; i < first + PACK && i < p.count; ++i)
      p.dx[i] = from_float(to_float(p.dx[i]) + strength * (to_float(p.x[i]) - p.share * to_float(p.towards[i])));
  }
}

struct AddRows {
  element* sum;         // rows × row, `pitch` apart
  const element* term;  // rows × row
  unsigned count;       // rows · row: below 2³²
  unsigned row, pitch, padding;
};
static_assert(sizeof(AddRows) == 32, "as in src/ops/pointwise/gpu.rs");

KERNEL(add_rows, AddRows, THREADS) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= p.count) return;
  element* sum = p.sum + static_cast<unsigned long long>(i / p.row) * p.pitch + i % p.row;
  *sum = from_float(to_float(*sum) + to_float(p.term[i]));
}
