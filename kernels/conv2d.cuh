// The geometry of a convolution, for all its kernels.
#pragma once

#include "common.cuh"

struct Sizes {
  int n, h, w, c;
  int k, r, s;
  int p, q;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int groups, group_c, group_k;  // C/G channels and K/G filters in a group
  int pitch;         // elements from filter to filter of w and of dw
  unsigned packed;   // what may be read and written 16 bytes at a time: PACKED_*
};
static_assert(sizeof(Sizes) == 80, "as in src/ops/conv2d/gpu.rs");

constexpr unsigned PACKED_X = 1, PACKED_Y = 2, PACKED_W = 4, PACKED_DW = 8;

// What follows the sums of fprop.
struct Finish {
  const float* bias;  // K, added to them; or null: nothing follows
  unsigned relu;      // 1: then those below zero become zero
  unsigned padding;
};
static_assert(sizeof(Finish) == 16, "as in src/ops/conv2d/gpu.rs");

// A sum of a filter of this bias.
DEVICE float finished(const Finish& finish, float sum, float bias) {
  const float v = sum + bias;
  // Not the larger of the two, which a NaN would not be.
  return finish.relu && v <= 0 ? 0 : v;
}

using offset = long long;  // pixels are counted in 32 bits, elements in 64

// A place in a filter, or beyond its end: r == g.r.
struct Tap {
  int r, s, channel;
};

// `channels` of each tap count.
DEVICE void advance(Tap& tap, int by, int channels, const Sizes& g) {
  tap.channel += by;
  while (tap.channel >= channels) {
    tap.channel -= channels;
    if (++tap.s == g.s) {
      tap.s = 0;
      ++tap.r;
    }
  }
}

DEVICE Tap tap_at(int i, int channels, const Sizes& g) {
  const int tap = i / channels;
  return Tap{tap / g.s, tap % g.s, i % channels};
}

struct Pixel {
  int image, row, column;
};

DEVICE Pixel pixel_at(int i, int height, int width) {
  return Pixel{i / (height * width), i / width % height, i % width};
}

// fprop: the row or column of x that an output reads through a tap; dgrad: that of dy which reads `from` through it. Less
// than zero: none.
template <bool BACKWARD>
DEVICE int reach(int from, int tap, int stride, int padding, int dilation, int size) {
  int to;
  if (BACKWARD) {
    to = from + padding - tap * dilation;
    if (stride > 1 && to > 0) to = to % stride == 0 ? to / stride : -1;
  } else {
    to = from * stride - padding + tap * dilation;
  }
  return to < size ? to : -1;
}
