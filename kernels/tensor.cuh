// Instructions of tensor cores and of what feeds them, one inline function each: PTX on a GPU, a twin on the emulator.
//
// Fragments, as PTX lays them out. Of lane l, let g = l / 4 and t = l % 4.
//
//   16 × 8 × 16, 16-bit A and B, two neighbouring numbers in a register:
//     a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)       row, first of two columns
//     b[0] (2t.., g), b[1] (2t + 8.., g)                                                  first of two rows, column
//   16 × 8 × 8, tf32: a[0] (g, t), a[1] (g + 8, t), a[2] (g, t + 4), a[3] (g + 8, t + 4);  b[0] (t, g), b[1] (t + 4, g)
//   D and C of both, f32: d[0] (g, 2t), d[1] (g, 2t + 1), d[2] (g + 8, 2t), d[3] (g + 8, 2t + 1)
#pragma once

#include "common.cuh"

struct Fragments {
  unsigned a[4], b[2];
};

#ifdef MEDMERGE_EMULATOR

// Number `half` (0 or 1) of two 16-bit ones.
DEVICE float half_of(unsigned pair, unsigned half) {
  element numbers[4 / sizeof(element)];
  std::memcpy(numbers, &pair, sizeof(pair));
  return to_float(numbers[sizeof(element) == 2 ? half : 0]);
}

// A lane's part of ROWS pieces of A and COLUMNS of B for products DEPTH deep, a float per number, PACKED of them from a
// register.
template <unsigned DEPTH, unsigned ROWS, unsigned COLUMNS>
struct Unpacked {
  static constexpr unsigned PACKED = DEPTH / 8;
  float a[ROWS][4 * PACKED], b[COLUMNS][2 * PACKED];
};

// The largest exponent of the product of two numbers whose significands are from 1 to below 2; that of the product may be one more.
DEVICE int exponent_of(float v) {
  int exponent;
  std::frexp(v, &exponent);
  return exponent - 1;
}

// c + Σ a·b of `count` products, at most 16, as tensor cores add: all are brought to the largest exponent, cut off `extra` bits behind those
// of a float, and so is the sum. Zeros and what is below the least exponent, −133, take no part in that.
DEVICE float add_cut_off(float c, const float* a, const float* b, unsigned count, unsigned extra) {
  int largest = c != 0.0f ? exponent_of(c) : -133;
  bool finite = is_finite(c);
  for (unsigned k = 0; k < count; ++k) {
    finite = finite && is_finite(a[k]) && is_finite(b[k]);
    if (a[k] != 0.0f && b[k] != 0.0f) largest = std::max(largest, exponent_of(a[k]) + exponent_of(b[k]));
  }
  if (!finite) {
    for (unsigned k = 0; k < count; ++k) c += a[k] * b[k];
    return c;
  }
  const int last = std::max(largest, -133) - 23 - static_cast<int>(extra);
  const double unit = std::ldexp(1.0, last), per_unit = std::ldexp(1.0, -last);
  // Conversions to whole numbers cut off.
  int64_t sum = static_cast<int64_t>(c * per_unit);
  for (unsigned k = 0; k < count; ++k) sum += static_cast<int64_t>(static_cast<double>(a[k]) * b[k] * per_unit);
  const double exact = static_cast<double>(sum) * unit;
  const float nearest = static_cast<float>(exact);
  return std::fabs(nearest) > std::fabs(exact) ? std::nextafter(nearest, 0.0f) : nearest;
}

// ROWS × COLUMNS products at once. Lanes exchange all that they hold, unpacked, before any of them multiplies: to switch from
// lane to lane takes longer than a product.
template <unsigned DEPTH, unsigned ROWS, unsigned COLUMNS>
DEVICE void multiply_add(float (&d)[ROWS][COLUMNS][4], const unsigned (&own_a)[ROWS][4], const unsigned (&own_b)[COLUMNS][2]) {
  using All = Unpacked<DEPTH, ROWS, COLUMNS>;
  constexpr unsigned PACKED = All::PACKED;
  const auto number = [](unsigned bits, unsigned i) { return PACKED == 2 ? half_of(bits, i) : float_of(bits); };
  All own;
  for (unsigned m = 0; m < ROWS; ++m)
    for (unsigned i = 0; i < 4 * PACKED; ++i) own.a[m][i] = number(own_a[m][i / PACKED], i % PACKED);
  for (unsigned n = 0; n < COLUMNS; ++n)
    for (unsigned i = 0; i < 2 * PACKED; ++i) own.b[n][i] = number(own_b[n][i / PACKED], i % PACKED);
  const emulator::Offers<All> of = emulator::exchange(own, __FILE__, __LINE__);
  const unsigned lane = threadIdx.x % WARP, row = lane / 4, column = lane % 4 * 2;
  // Two columns of each piece of B.
  float b[DEPTH][COLUMNS][2];
  for (unsigned k = 0; k < DEPTH; ++k) {
    const unsigned owner = k % (4 * PACKED) / PACKED, i = k / (4 * PACKED) * PACKED + k % PACKED;
    for (unsigned n = 0; n < COLUMNS; ++n)
      for (unsigned j = 0; j < 2; ++j) b[k][n][j] = of[(column + j) * 4 + owner].b[n][i];
  }
  const emulator::TensorCores cores = emulator::context()->tensor_cores;
  if (cores.bytes != 0) {
    const unsigned together = cores.bytes * DEPTH / 32;
    for (unsigned m = 0; m < ROWS; ++m) {
      for (unsigned half = 0; half < 2; ++half) {
        float a[DEPTH], of_column[DEPTH];
        for (unsigned k = 0; k < DEPTH; ++k) {
          const unsigned owner = k % (4 * PACKED) / PACKED, part = k / (4 * PACKED);
          a[k] = of[row * 4 + owner].a[m][(half + part * 2) * PACKED + k % PACKED];
        }
        for (unsigned n = 0; n < COLUMNS; ++n) {
          for (unsigned j = 0; j < 2; ++j) {
            float& sum = d[m][n][half * 2 + j];
            for (unsigned k = 0; k < DEPTH; ++k) of_column[k] = b[k][n][j];
            for (unsigned k = 0; k < DEPTH; k += together) sum = add_cut_off(sum, a + k, of_column + k, together, cores.extra);
          }
        }
      }
    }
    return;
  }
  for (unsigned m = 0; m < ROWS; ++m) {
    for (unsigned half = 0; half < 2; ++half) {
      float sums[COLUMNS][2] = {};
      for (unsigned k = 0; k < DEPTH; ++k) {
        // The registers of A for these k; rows 8 on are in the second of each two.
        const unsigned owner = k % (4 * PACKED) / PACKED, part = k / (4 * PACKED);
        const float a = of[row * 4 + owner].a[m][(half + part * 2) * PACKED + k % PACKED];
        for (unsigned n = 0; n < COLUMNS; ++n)
          for (unsigned j = 0; j < 2; ++j) sums[n][j] += a * b[k][n][j];
      }
      for (unsigned n = 0; n < COLUMNS; ++n)
        for (unsigned j = 0; j < 2; ++j) d[m][n][half * 2 + j] += sums[n][j];
    }
  }
}

template <unsigned DEPTH>
DEVICE void multiply_add(float (&d)[4], const Fragments& f) {
  float sums[1][1][4] = {{{d[0], d[1], d[2], d[3]}}};
  multiply_add<DEPTH, 1, 1>(sums, {{f.a[0], f.a[1], f.a[2], f.a[3]}}, {{f.b[0], f.b[1]}});
  for (unsigned j = 0; j < 4; ++j) d[j] = sums[0][0][j];
}

#endif

// D = A·B + D, 16 × 8 × 16, with A and B as activations are stored: bf16 or f16.
DEVICE void mma_16816(float (&d)[4], const Fragments& f) {
#ifdef MEDMERGE_EMULATOR
  multiply_add<16>(d, f);
#elif defined(STORAGE_BF16)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
#elif defined(STORAGE_F16)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
#endif
}

// f32 rounded to tf32, 10 bits of fraction: to nearest, ties away from zero, as cvt.rna does.
DEVICE unsigned to_tf32(float v) {
#ifdef MEDMERGE_EMULATOR
  const unsigned bits = bits_of(v);
  return is_finite(v) ? (bits + 0x1000u) & ~0x1FFFu : bits;
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
#endif
}

// D = A·B + D, 16 × 8 × 8, with A and B in tf32.
DEVICE void mma_1688(float (&d)[4], const Fragments& f) {
#ifdef MEDMERGE_EMULATOR
  multiply_add<8>(d, f);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
#endif
}

// D = A·B + D for 32 bytes of summands, A and B as activations are stored: ROWS pieces of 16 rows by COLUMNS of 8 columns.
template <unsigned ROWS, unsigned COLUMNS>
DEVICE void multiply_pieces(float (&d)[ROWS][COLUMNS][4], const unsigned (&a)[ROWS][4], const unsigned (&b)[COLUMNS][2]) {
#ifdef MEDMERGE_EMULATOR
  multiply_add<32 / sizeof(element)>(d, a, b);
#else
#pragma unroll
  for (unsigned i = 0; i < ROWS; ++i) {
#pragma unroll
    for (unsigned j = 0; j < COLUMNS; ++j) {
      const Fragments f = {{a[i][0], a[i][1], a[i][2], a[i][3]}, {b[j][0], b[j][1]}};
      if (sizeof(element) == 2) mma_16816(d[i][j], f);
      else mma_1688(d[i][j], f);
    }
  }
#endif
}

// COUNT times four matrices of 8 rows, 16 bytes each: lane l gives the place of row l % 8 of matrix l / 8, a multiple of 16
// bytes. Register m gets 32 bits of row l / 4 of matrix m, the (l % 4)-th: two 16-bit numbers, or one of tf32. TURNED: the
// 16-bit numbers of its transpose; tf32 has no such form.
template <bool TURNED, unsigned COUNT>
DEVICE void load_matrices(unsigned (&r)[COUNT][4], SharedArray<element> array, const unsigned (&row)[COUNT]) {
  static_assert(!TURNED || sizeof(element) == 2, "only 16-bit numbers are turned");
#ifdef MEDMERGE_EMULATOR
  struct Rows { unsigned at[COUNT]; } own;
  for (unsigned i = 0; i < COUNT; ++i) {
    emulator::check_aligned(array.data + row[i], 16);
    own.at[i] = row[i];
  }
  const emulator::Offers<Rows> rows = emulator::exchange(own, __FILE__, __LINE__);
  const unsigned lane = threadIdx.x % WARP;
  constexpr unsigned NUMBERS = 4 / sizeof(element);
  for (unsigned i = 0; i < COUNT; ++i) {
    for (unsigned m = 0; m < 4; ++m) {
      element numbers[NUMBERS];
      for (unsigned j = 0; j < NUMBERS; ++j) {
        const unsigned line = TURNED ? lane % 4 * 2 + j : lane / 4, column = TURNED ? lane / 4 : lane % 4 * NUMBERS + j;
        numbers[j] = array[rows[m * 8 + line].at[i] + column];
      }
      std::memcpy(&r[i][m], numbers, sizeof(r[i][m]));
    }
  }
#else
#pragma unroll
  for (unsigned i = 0; i < COUNT; ++i) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(array + row[i]));
    if (TURNED)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(r[i][0]), "=r"(r[i][1]), "=r"(r[i][2]), "=r"(r[i][3]) : "r"(address) : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(r[i][0]), "=r"(r[i][1]), "=r"(r[i][2]), "=r"(r[i][3]) : "r"(address) : "memory");
  }
#endif
}

// The memory of an array that everybody is done with, as floats.
DEVICE SharedArray<float> as_floats(SharedArray<element> array) {
#ifdef MEDMERGE_EMULATOR
  const int64_t count = array.count * static_cast<int64_t>(sizeof(element)) / static_cast<int64_t>(sizeof(float));
  return {reinterpret_cast<float*>(array.data), array.shadow, count, array.name,
          static_cast<int64_t>(sizeof(float) / sizeof(element))};
#else
  return reinterpret_cast<float*>(array);
#endif
}

// Starts a copy of BYTES (8 or 16) from global to shared memory, at a multiple of them in both; zeros if !valid, and then
// `from` is not read. 16 bytes pass by the L1 cache.
template <unsigned BYTES, class T>
DEVICE void copy_async(SharedArray<T> to, unsigned i, const void* from, bool valid) {
  static_assert(BYTES == 8 || BYTES == 16, "what is copied at once");
#ifdef MEDMERGE_EMULATOR
  emulator::copy_later<BYTES>(to, i, valid ? from : nullptr);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to + i));
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(from), "r"(valid ? 8 : 0) : "memory");
#endif
}

// Ends a group of copies.
DEVICE void commit_copies() {
#ifdef MEDMERGE_EMULATOR
  ++emulator::context()->copies_group;
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last LEFT groups of this thread's copies are under way. A barrier makes the others' visible.
template <unsigned LEFT>
DEVICE void wait_for_copies() {
#ifdef MEDMERGE_EMULATOR
  emulator::wait_for_copies(LEFT);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
