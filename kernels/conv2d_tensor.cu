// modules: tf32 bf16 f16
// Convolution on tensor cores: fprop, dgrad and wgrad for activations in bf16, f16 or tf32, without groups.
//
//   pass    M                         N         K (summed over)
//   fprop   N·P·Q                     K         R·S·C
//   dgrad   N·H·W, by residue         C         R·S·K
//   wgrad   K                         R·S·C     N·P·Q, by split-K: each block sums one split, a second launch adds them in order
//
// The implicit GEMMs of conv2d.cu, whose header states the formulas; here channels and filters come in packs of 16
// bytes, so that a pack belongs to one tap. A stem with fewer channels than that is padded first. dgrad with a
// stride is as many products as there are residues (h mod stride, w mod stride) of input pixels: each sums only over the taps
// that reach its pixels, so that none is wasted. A 1×1 convolution of stride 1 comes as a single line of pixels: a plain
// matrix product, in which no address leaves its row.
//
// FLOPs: 2·N·P·Q·K·R·S·C of each pass. Bytes: both operands once for each tile across them, the result once; wgrad writes
// 4·K·R·S·C for each split, which the second launch reads again.
//
// For the batch norm behind it, fprop can leave the statistics of what it stored; dgrad can do the first pass of the backward
// of the batch norm before it: what it stores is then already cut by the ReLU between the two, and its sums are left
// beside. Both cost no further pass over activations but dgrad's over x.
//
// A file for each pass, so that they compile side by side: conv2d_tensor_fprop.cu, _fprop_statistics.cu, _dgrad.cu, _dgrad_sums.cu and
// _wgrad.cu. Here is what stands around them: the stem is padded before, and splits are added behind.
//
// Grid: tiles of rows, tiles of columns, residues (dgrad), splits (wgrad). How tiles work: conv2d_tensor.cuh; which of
// them a layer gets: src/ops/conv2d/tiles.rs.
#include "conv2d_tensor.cuh"

constexpr unsigned DIRECT_THREADS = 128;

// y: rows × padded_lines × padded_channels from x: rows × lines × channels, rows `pitch` apart; what x does not have is zero.
struct Padding {
  const element* x;
  element* y;
  long long all_lines;  // of y
  int lines, padded_lines, channels, padded_channels;
  int pitch, padding;
};
static_assert(sizeof(Padding) == 48, "as in src/ops/conv2d/tensor.rs");

// A thread per line of y.
KERNEL(conv2d_tensor_pad, Padding, DIRECT_THREADS) {
  const offset i = static_cast<offset>(blockIdx.x) * DIRECT_THREADS + threadIdx.x;
  if (i >= p.all_lines) return;
  const offset row = i / p.padded_lines, line = i % p.padded_lines;
  const element* x = p.x + row * p.pitch + line * p.channels;
  const int channels = line < p.lines ? p.channels : 0;
  element* y = p.y + i * p.padded_channels;
  for (int c = 0; c < p.padded_channels; ++c) y[c] = c < channels ? x[c] : from_float(0);
}

struct StretchSum {
  const float* partial;  // splits × K × taps × padded
  float* dw;             // K rows of taps × channels, `pitch` apart
  int filters, taps, channels, padded;
  int pitch, splits;
};
static_assert(sizeof(StretchSum) == 40, "as in src/ops/conv2d/tensor.rs");

// dw from the sums of the splits, added in their order; a thread per weight.
KERNEL(conv2d_tensor_wgrad_sum, StretchSum, DIRECT_THREADS) {
  const offset i = static_cast<offset>(blockIdx.x) * DIRECT_THREADS + threadIdx.x;
  const int weights = p.taps * p.channels;
  if (i >= static_cast<offset>(p.filters) * weights) return;
  const offset filter = i / weights, weight = i % weights, stride = static_cast<offset>(p.filters) * p.taps * p.padded;
  const float* partial = p.partial + (filter * p.taps + weight / p.channels) * p.padded + weight % p.channels;
  float sum = partial[0];
  for (int split = 1; split < p.splits; ++split) sum += partial[split * stride];
  p.dw[filter * p.pitch + weight] = sum;
}
