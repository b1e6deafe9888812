// Device functions that the kernels of batch norm share with those of convolutions that do part of its work.
#pragma once

#include "common.cuh"

// Forward and backward agree on the sign of this to the last bit, whoever computes it. `scale` is γ·rstd.
DEVICE float normalized(float x, float mean, float scale, float beta) { return (x - mean) * scale + beta; }

// Whether a ReLU lets nothing pass of what a normalised number is stored as. A NaN passes.
DEVICE bool is_cut(float normalized) { return normalized <= STORED_AS_ZERO; }
