// modules: f32 bf16 f16
// From images as bytes to a batch of activations: shift, flip, normalise.
//
//   y[n, h, w, k] = table[k][x[n, clamp(h − down), clamp(w' − right), k or 0]],   w' = flip ? W − 1 − w : w;   0 for channels behind
//   the table's, of which a stem on tensor cores wants four in all
//
// The host draws each image's placement; the table holds the normalised value of every byte, so that all devices give the
// same bits. Bytes: one read per byte of the images, one write per activation. Geometry: a thread per pixel.
#include "common.cuh"

constexpr unsigned THREADS = 256;

struct Images {
  const unsigned char* x;   // n × h × w × c
  const int* placements;    // n × 3: flip, down, right; null for none
  const float* table;       // k × 256
  element* y;               // n × h × w × stored
  unsigned n, h, w, c, k;
  unsigned stored;          // k or more
};
static_assert(sizeof(Images) == 56, "as in src/ops/images/gpu.rs");

DEVICE int clamped(int v, int size) { return v < 0 ? 0 : v >= size ? size - 1 : v; }

KERNEL(images, Images, THREADS) {
  const unsigned long long pixel = static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x;
  if (pixel >= static_cast<unsigned long long>(p.n) * p.h * p.w) return;
  const int height = static_cast<int>(p.h), width = static_cast<int>(p.w);
  int h = static_cast<int>(pixel / p.w % p.h), w = static_cast<int>(pixel % p.w);
  const unsigned long long n = pixel / p.w / p.h;
  if (p.placements != nullptr) {
    const int* placement = p.placements + n * 3;
    w = placement[0] != 0 ? width - 1 - w : w;
    h = clamped(h - placement[1], height);
    w = clamped(w - placement[2], width);
  }
  const unsigned char* x = p.x + ((n * p.h + static_cast<unsigned>(h)) * p.w + static_cast<unsigned>(w)) * p.c;
  element* y = p.y + pixel * p.stored;
  for (unsigned k = p.k; k < p.stored; ++k) y[k] = from_float(0);
  for (unsigned k = 0; k < p.k; ++k) y[k] = from_float(p.table[k * 256 + x[p.c == 1 ? 0 : k]]);
}
