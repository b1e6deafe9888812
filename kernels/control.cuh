// Values that a training step reads and decides on the device, so that it can be replayed without asking the host.
#pragma once

#include "common.cuh"

struct Control {
  double power1, power2;            // β₁ᵗ, β₂ᵗ after `updates` updates
  float factor;                     // of the learning rate; the host writes both before each step
  float share;                      // of the batch's gradient in an update that several batches make
  float scale;                      // of the loss: 1 unless activations are f16
  float correction1, correction2;   // 1 − β₁ᵗ and √(1 − β₂ᵗ), of the update that is being made
  float norm;                       // of the gradient, unscaled
  float clip;                       // by which the gradient is multiplied, so that its norm keeps within its limit
  unsigned apply;                   // 1: this step's update is made
  unsigned updates;                 // made so far
  unsigned steps;                   // run so far
  unsigned good_steps;              // since the scale last changed
  unsigned diverged;                // 1 for good once a loss, or an unscaled gradient, was not finite
  unsigned gathered;                // batches whose gradients wait for the update
  unsigned padding;
};
static_assert(sizeof(Control) == 72, "as in src/ops/control.rs");
