// Twins of what hopper.cuh has for sm_90a. The scheduler (src/gpu/emulator/asynchronous.rs) keeps barriers, the copies under way and the
// products that nobody waited for; here is what depends on the type of numbers: how lines are walked, and products computed.
//
// A copy leaves NaN behind where it is asked for, and the numbers when the scheduler likes; a product does the same to its sums, and reads
// its operands when it is waited for.
#pragma once

#include "tensor.cuh"

#define AT_CALL const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

// The byte of a tile of 128-byte lines where byte `byte` of line `line` lies, in the 128-byte swizzle.
DEVICE unsigned swizzled(unsigned line, unsigned byte) { return line * 128 + (byte ^ line % 8 * 16); }

// What stands in a TensorMap here: the twin of `Map` in src/gpu/emulator/maps.rs.
struct Map {
  unsigned long long address;
  unsigned long long pitch[3];     // bytes from a row, or from pixel to pixel, row to row, image to image
  unsigned size[4];                // columns and rows; or channels, width, height and images
  int lower[2], upper[2];          // corners of the box of pixels: the first, and beyond the last; w, h
  unsigned box[2];                 // numbers of a line, and lines
  unsigned stride[2];              // of pixels: w, h
  unsigned kind, element_bytes;
  unsigned long long rest[5];
};
static_assert(sizeof(Map) == 128, "as large as a TensorMap");
constexpr unsigned MAP_OF_BOX = 0x626F78, MAP_OF_PATCHES = 0x706978;

// Calls f(line, numbers of it that the tensor has: from, first, behind the last) for each line of a copy.
template <class F>
DEVICE void walk_lines(const emulator::BulkCopy& copy, F f) {
  const Map& map = *static_cast<const Map*>(copy.map);
  const auto address = [&](long long offset, int first) {
    return reinterpret_cast<const element*>(map.address + static_cast<unsigned long long>(offset) + first * sizeof(element));
  };
  const auto clamp = [](long long v, long long least, long long most) { return static_cast<int>(v < least ? least : v > most ? most : v); };
  const int count = static_cast<int>(copy.per_line);
  const int first = clamp(-static_cast<long long>(copy.at[0]), 0, count);
  const int end = clamp(static_cast<long long>(map.size[0]) - copy.at[0], first, count);
  const auto visit = [&](unsigned line, bool inside, long long offset) {
    if (!inside || first == end) f(line, static_cast<const element*>(nullptr), 0, 0);
    else f(line, address(offset, copy.at[0] + first), first, end);
  };
  const auto is_in = [](long long i, unsigned size) { return i >= 0 && i < static_cast<long long>(size); };
  if (map.kind == MAP_OF_BOX) {
    for (unsigned line = 0; line < copy.lines; ++line) {
      const long long row = static_cast<long long>(copy.at[1]) + line;
      visit(line, is_in(row, map.size[1]), row * static_cast<long long>(map.pitch[0]));
    }
    return;
  }
  int w = copy.at[1], h = copy.at[2];
  long long n = copy.at[3];
  const int last_w = static_cast<int>(map.size[1]) - 1 + map.upper[0], last_h = static_cast<int>(map.size[2]) - 1 + map.upper[1];
  for (unsigned line = 0; line < copy.lines; ++line) {
    const long long x = static_cast<long long>(w) + copy.offset[0], y = static_cast<long long>(h) + copy.offset[1];
    visit(line, is_in(x, map.size[1]) && is_in(y, map.size[2]) && is_in(n, map.size[3]),
          x * static_cast<long long>(map.pitch[0]) + y * static_cast<long long>(map.pitch[1]) + n * static_cast<long long>(map.pitch[2]));
    w += static_cast<int>(map.stride[0]);
    if (w <= last_w) continue;
    w = map.lower[0];
    h += static_cast<int>(map.stride[1]);
    if (h <= last_h) continue;
    h = map.lower[1];
    ++n;
  }
}

// Writes what a copy copies.
DEVICE void land(const emulator::BulkCopy* copy) {
  walk_lines(*copy, [&](unsigned line, const element* from, int first, int end) {
    for (int j = 0; j < static_cast<int>(copy->per_line); ++j) {
      element number{};
      if (j >= first && j < end) number = from[j - first];
      if constexpr (sizeof(element) == 4) number = from_float(float_of(to_tf32(to_float(number))));
      std::memcpy(copy->to + swizzled(line, j * sizeof(element)), &number, sizeof(number));
    }
  });
}

DEVICE void fail_copy(const char* what, const char* name, unsigned long long place) {
  const emulator::Context* now = emulator::context();
  now->runtime->fault(now, what, name, place, now->thread.x);
}

DEVICE void start_copy(SharedArray<element> to, unsigned place, const TensorMap& of, unsigned kind, const int (&at)[4], unsigned offset_w,
                       unsigned offset_h, SharedArray<Barrier> b, unsigned i, unsigned blocks, const char* file, unsigned line) {
  const emulator::Context* now = emulator::context();
  const Map& map = *reinterpret_cast<const Map*>(&of);
  emulator::check_aligned(&of, alignof(TensorMap));
  if (map.kind != kind) fail_copy("the tensor map is none of this kind, for a bulk copy to", to.name, place);
  if (map.element_bytes != sizeof(element)) fail_copy("the tensor map is of another type of numbers, for a bulk copy to", to.name, place);
  const unsigned lines = map.box[1];
  const unsigned byte = now->runtime->address(now, to.data + place, to.name);
  if (byte % 1024 != 0) fail_copy("a bulk copy begins in the middle of a swizzle's 1024 bytes:", to.name, place);
  if (place + static_cast<int64_t>(lines) * LINE > to.count) fail_copy("out of bounds: a bulk copy from here on:", to.name, place);
  if (kind == MAP_OF_PATCHES) {
    if (offset_w > 255 || offset_h > 255) fail_copy("an offset of a bulk copy beyond 255, to", to.name, place);
    for (unsigned d = 0; d < 2; ++d) {
      const long long first = map.lower[d], last = static_cast<long long>(map.size[1 + d]) - 1 + map.upper[d];
      if (at[1 + d] < first || at[1 + d] > last || (at[1 + d] - first) % map.stride[d] != 0)
        fail_copy("a bulk copy begins at a pixel that its box does not have, to", to.name, place);
    }
  }
  emulator::BulkCopy copy = {reinterpret_cast<unsigned char*>(to.data + place), to.shadow + place, to.name, place, lines, LINE, &of,
                             {at[0], at[1], at[2], at[3]}, {offset_w, offset_h}, land, b.data + i, b.name, file, line};
  // What is beyond a buffer faults here, where it is known who asked for it.
  walk_lines(copy, [](unsigned, const element* from, int first, int end) {
    if (first < end) {
      const volatile unsigned char* bytes = reinterpret_cast<const volatile unsigned char*>(from);
      (void)bytes[0];
      (void)bytes[(end - first) * sizeof(element) - 1];
    }
  });
  now->runtime->copy(now, &copy, b.shadow + i, i, blocks);
}

// ---- barriers ------------------------------------------------------------------------------------------------------

DEVICE void barrier_bounds(SharedArray<Barrier> b, unsigned i) {
  if (i < b.count) return;
  const emulator::Context* now = emulator::context();
  now->runtime->fault(now, "out of bounds:", b.name, i, now->thread.x);
}

DEVICE void barrier_init(SharedArray<Barrier> b, unsigned i, unsigned arrivals) {
  barrier_bounds(b, i);
  const emulator::Context* now = emulator::context();
  now->runtime->barrier_init(now, b.data + i, b.shadow + i, b.name, i, arrivals);
}

DEVICE void fence_barriers() { emulator::context()->runtime->fence(emulator::context(), 1); }
DEVICE void fence_async() { emulator::context()->runtime->fence(emulator::context(), 0); }

DEVICE void arrive_at(SharedArray<Barrier> b, unsigned i, unsigned bytes, unsigned rank) {
  barrier_bounds(b, i);
  const emulator::Context* now = emulator::context();
  now->runtime->barrier_arrive(now, b.data + i, b.shadow + i, b.name, i, bytes, rank);
}

DEVICE void barrier_expect(SharedArray<Barrier> b, unsigned i, unsigned bytes) { arrive_at(b, i, bytes, emulator::context()->rank); }
DEVICE void barrier_arrive(SharedArray<Barrier> b, unsigned i) { barrier_expect(b, i, 0); }
DEVICE void barrier_arrive_at(SharedArray<Barrier> b, unsigned i, unsigned rank) { arrive_at(b, i, 0, rank); }

DEVICE void barrier_wait(SharedArray<Barrier> b, unsigned i, unsigned parity, AT_CALL) {
  barrier_bounds(b, i);
  const emulator::Context* now = emulator::context();
  now->runtime->barrier_wait(now, b.data + i, b.shadow + i, b.name, i, parity, file, line);
}

DEVICE unsigned cluster_size() { return emulator::context()->cluster; }
DEVICE unsigned cluster_rank() { return emulator::context()->rank; }
DEVICE void cluster_barrier(AT_CALL) { emulator::context()->runtime->cluster_barrier(emulator::context(), file, line); }

DEVICE void warpgroup_barrier(unsigned id, unsigned threads, AT_CALL) {
  emulator::context()->runtime->named_barrier(emulator::context(), id, threads, file, line);
}

// ---- copies --------------------------------------------------------------------------------------------------------

DEVICE unsigned own_block() { return 1u << emulator::context()->rank; }

DEVICE void copy_box_to(SharedArray<element> to, unsigned place, const TensorMap& map, int x, int y, SharedArray<Barrier> b, unsigned i,
                        unsigned blocks, AT_CALL) {
  barrier_bounds(b, i);
  start_copy(to, place, map, MAP_OF_BOX, {x, y, 0, 0}, 0, 0, b, i, blocks, file, line);
}

DEVICE void copy_patches_to(SharedArray<element> to, unsigned place, const TensorMap& map, int c, int w, int h, int n, unsigned offset_w,
                            unsigned offset_h, SharedArray<Barrier> b, unsigned i, unsigned blocks, AT_CALL) {
  barrier_bounds(b, i);
  start_copy(to, place, map, MAP_OF_PATCHES, {c, w, h, n}, offset_w, offset_h, b, i, blocks, file, line);
}

DEVICE void copy_box(SharedArray<element> to, unsigned place, const TensorMap& map, int x, int y, SharedArray<Barrier> b, unsigned i,
                     AT_CALL) {
  copy_box_to(to, place, map, x, y, b, i, own_block(), file, line);
}

DEVICE void copy_patches(SharedArray<element> to, unsigned place, const TensorMap& map, int c, int w, int h, int n, unsigned offset_w,
                         unsigned offset_h, SharedArray<Barrier> b, unsigned i, AT_CALL) {
  copy_patches_to(to, place, map, c, w, h, n, offset_w, offset_h, b, i, own_block(), file, line);
}

// ---- products ------------------------------------------------------------------------------------------------------

// The same fields as on a GPU; the address counts from the start of dynamic shared memory.
template <bool ALONG>
DEVICE unsigned long long operand(SharedArray<element> tile, unsigned place, unsigned chunk = 0) {
  const emulator::Context* now = emulator::context();
  const unsigned address = now->runtime->address(now, tile.data + place, tile.name);
  if (address % 16 != 0) fail_copy("an operand that does not begin at 16 bytes:", tile.name, place);
  if (ALONG ? address % 1024 >= 128 : address % 128 != 0) fail_copy("an operand begins within a swizzle's 1024 bytes:", tile.name, place);
  if (chunk * sizeof(element) % 1024 != 0) fail_copy("rows of an operand that are no swizzle's 1024 bytes apart:", tile.name, chunk);
  const unsigned long long leading = ALONG ? 1 : chunk * sizeof(element) >> 4, stride = 8 * LINE * sizeof(element) >> 4;
  return address >> 4 | leading << 16 | stride << 32 | 1ull << 62;
}

// Where summand k of row i of an operand lies: its descriptor's fields say how, and swizzled what becomes of that.
DEVICE uint32_t place_of(uint64_t operand, unsigned along, unsigned i, unsigned k) {
  const unsigned start = static_cast<unsigned>(operand & 0x3FFF) << 4;
  const unsigned leading = static_cast<unsigned>(operand >> 16 & 0x3FFF) << 4, stride = static_cast<unsigned>(operand >> 32 & 0x3FFF) << 4;
  const unsigned at = along ? start + i / 8 * stride + i % 8 * 128 + k * sizeof(element)
                            : start + i / 64 * leading + k / 8 * stride + k % 8 * 128 + i % 64 * sizeof(element);
  return swizzled(at / 128, at % 128);
}

template <unsigned COLUMNS>
DEVICE void compute_product(const emulator::Product* product, const unsigned char* shared, float* const* sums,
                            emulator::TensorCores cores) {
  const auto number = [&](uint64_t operand, unsigned along, unsigned i, unsigned k) {
    element v;
    std::memcpy(&v, shared + place_of(operand, along, i, k), sizeof(v));
    return to_float(v);
  };
  float b[PRODUCT_DEPTH][COLUMNS], turned[COLUMNS][PRODUCT_DEPTH];
  for (unsigned n = 0; n < COLUMNS; ++n)
    for (unsigned k = 0; k < PRODUCT_DEPTH; ++k) b[k][n] = turned[n][k] = number(product->b, product->b_along, n, k);
  const unsigned together = cores.bytes / sizeof(element);
  for (unsigned row = 0; row < 64; ++row) {
    float a[PRODUCT_DEPTH], results[COLUMNS] = {};
    for (unsigned k = 0; k < PRODUCT_DEPTH; ++k) a[k] = number(product->a, product->a_along, row, k);
    // Warp w has rows from 16w on; a lane two columns of each eight, of rows g and g + 8.
    const unsigned first = row / 16 * WARP + row % 8 * 4, half = row % 16 / 8;
    if (together == 0) {
      for (unsigned k = 0; k < PRODUCT_DEPTH; ++k)
        for (unsigned n = 0; n < COLUMNS; ++n) results[n] += a[k] * b[k][n];
    }
    for (unsigned n = 0; n < COLUMNS; ++n) {
      float& sum = sums[first + n % 8 / 2][n / 8 * 4 + half * 2 + n % 2];
      if (together == 0) sum += results[n];
      else
        for (unsigned k = 0; k < PRODUCT_DEPTH; k += together) sum = add_cut_off(sum, a + k, turned[n] + k, together, cores.extra);
    }
  }
}

template <unsigned COLUMNS, bool A_ALONG, bool B_ALONG>
DEVICE void multiply(float (&d)[COLUMNS / 8][4], unsigned long long a, unsigned long long b, AT_CALL) {
  static_assert(COLUMNS == 64 || COLUMNS == 128 || COLUMNS == 256, "the columns that tiles have");
  static_assert(sizeof(element) == 2 || (A_ALONG && B_ALONG), "numbers of 32 bits are not turned");
  const emulator::Product product = {&d[0][0], COLUMNS, COLUMNS / 2, a, b, A_ALONG, B_ALONG, place_of, compute_product<COLUMNS>, file,
                                     line, sizeof(element)};
  emulator::context()->runtime->product(emulator::context(), &product);
}

DEVICE void multiply_fence() { emulator::context()->runtime->product_fence(emulator::context(), 0); }
DEVICE void multiply_commit() { emulator::context()->runtime->product_fence(emulator::context(), 1); }

template <unsigned LEFT, unsigned ROWS, unsigned COLUMNS>
DEVICE void multiply_wait(float (&d)[ROWS][COLUMNS][4], AT_CALL) {
  emulator::context()->runtime->product_wait(emulator::context(), LEFT, &d[0][0][0], ROWS * COLUMNS * 4, file, line);
}

template <unsigned COUNT>
DEVICE void registers_up(AT_CALL) {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "as setmaxnreg takes them");
  emulator::context()->runtime->registers(emulator::context(), COUNT, 1, file, line);
}
template <unsigned COUNT>
DEVICE void registers_down(AT_CALL) {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "as setmaxnreg takes them");
  emulator::context()->runtime->registers(emulator::context(), COUNT, 0, file, line);
}

#undef AT_CALL
