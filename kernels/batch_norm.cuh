// Device functions that the kernels of batch norm share with those of convolutions that do part of its work.
#pragma once

#include "common.cuh"

// Forward and backward agree on the sign of this to the last bit, whoever computes it: what is fused here is not left to the
// compiler, which may choose otherwise in another kernel. `scale` is γ·rstd.
DEVICE float normalized(float x, float mean, float scale, float beta) { return __fmaf_rn(x - mean, scale, beta); }

// Where x lies: in tensors of n × Cᵢ one behind another, as the concatenation that nobody wrote down; or in a single one.
struct Places {
  unsigned first, each;              // channels of the first one, and of each one behind it
  unsigned long long second, pitch;  // elements from the first one to the second, and from that to the third
};
static_assert(sizeof(Places) == 24, "as in src/ops/batch_norm/gpu.rs");

// A channel's numbers: where that of pixel 0 lies, and elements from pixel to pixel.
struct Column {
  unsigned long long begin;
  unsigned pitch;
};

DEVICE Column column_of(const Places& places, unsigned channel) {
  if (channel < places.first) return {channel, places.first};
  const unsigned behind = channel - places.first, part = behind / places.each;
  return {places.second + part * places.pitch + behind % places.each, places.each};
}

// Whether a ReLU lets nothing pass of what a normalised number is stored as. A NaN passes.
DEVICE bool is_cut(float normalized) { return normalized <= STORED_AS_ZERO; }
