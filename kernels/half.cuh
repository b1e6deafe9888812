// IEEE 754 half precision from and to f32: one instruction on a GPU, integer arithmetic on the host.
#pragma once

#ifdef MEDMERGE_EMULATOR
DEVICE float half_to_float(unsigned short bits) {
  const unsigned sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3FFu;
  if (exponent == 31) return float_of(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float value = static_cast<float>(fraction) * float_of(0x33800000u);  // · 2⁻²⁴: exact
  return float_of(sign | bits_of(value));
}

// Round to nearest, ties to even; beyond 65,504 infinite.
DEVICE unsigned short half_from_float(float v) {
  const unsigned bits = bits_of(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<unsigned short>(0x7FFFu);
  if (magnitude >= 0x47800000u) return static_cast<unsigned short>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {
    // Below 2⁻¹⁴ halves are multiples of 2⁻²⁴: adding 0.5 leaves those multiples in the last bits of an f32.
    const float shifted = float_of(magnitude) + 0.5f;
    return static_cast<unsigned short>(sign | (bits_of(shifted) - 0x3F000000u));
  }
  const unsigned rounded = magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<unsigned short>(sign | rounded >> 13);
}
#else
DEVICE float half_to_float(unsigned short bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}

DEVICE unsigned short half_from_float(float v) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
#endif
