// What Hopper (sm_90a) has beyond `tensor.cuh`, one inline function each: barriers that count bytes, bulk copies by tensor maps (TMA), and
// products that a warpgroup of four warps starts and waits for later (wgmma). PTX on a GPU, twins on the emulator.
//
// Copies fill tiles of 128-byte lines, 64 numbers of 16 bits or 32 of tf32, in the 128-byte swizzle: 16-byte pack c of line l lies in the
// place of pack c ^ (l % 8). Eight lines are an atom of 1024 bytes, to which tiles are aligned; so they lie in dynamic shared memory.
// Products read them as copies leave them, in one of two ways, of which those of tf32 know the first alone:
//
//   ALONG (K-major)   a line is a row of the operand with a line's summands of it; those of one product are 32 bytes of every line
//   otherwise         a line is a summand with 64 rows of the operand (MN-major); sixteen summands are as many lines, and rows
//                     beyond the 64th lie `chunk` elements further
//
// Numbers of f32 are rounded to tf32 as they are copied, which their tensor map says.
//
// Sums: piece j of 8 columns as mma.sync leaves it (tensor.cuh), warp w of the warpgroup rows 16w..16w + 15 of the 64.
#pragma once

#include "common.cuh"

// What the host's driver makes of the description of a tensor (src/gpu/tensor_map.rs). It stands in a kernel's parameters, and is
// never copied.
struct alignas(64) TensorMap { unsigned long long words[16]; };
static_assert(sizeof(TensorMap) == 128, "a CUtensorMap");

// A barrier in shared memory: SHARED(Barrier, full, STAGES). A phase of it is complete when so many threads have arrived as it was made
// for, and as many bytes were copied as they said.
struct alignas(8) Barrier { unsigned long long word; };

constexpr unsigned WARPGROUP = 128;   // threads
constexpr unsigned LINE = 128 / sizeof(element);          // numbers of a line
constexpr unsigned PRODUCT_DEPTH = 32 / sizeof(element);  // summands of one instruction

#ifdef MEDMERGE_EMULATOR
#include "emulator/hopper.h"
#else

// Tensor maps are read where the launch puts parameters: without this the compiler could copy them to where a thread's own memory is.
#undef KERNEL
#define KERNEL(name, Parameters, THREADS) \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) STORED_NAME(name)(const __grid_constant__ Parameters p)

DEVICE unsigned shared_address(const void* of) { return static_cast<unsigned>(__cvta_generic_to_shared(of)); }

// ---- barriers ------------------------------------------------------------------------------------------------------

// One thread makes them, and fences; behind a barrier of the block the others may use them.
DEVICE void barrier_init(SharedArray<Barrier> b, unsigned i, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b + i)), "r"(arrivals) : "memory");
}

// Copies, and the other blocks of a cluster, see the barriers that this thread has made.
DEVICE void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and has the phase wait for `bytes` more.
DEVICE void barrier_expect(SharedArray<Barrier> b, unsigned i, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b + i)), "r"(bytes) : "memory");
}

DEVICE void barrier_arrive(SharedArray<Barrier> b, unsigned i) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b + i)) : "memory");
}

// At the barrier in the same place of the block with this rank in the cluster. Says that products have read, nothing of what threads wrote:
// releasing that to a cluster takes a fence of the whole GPU (MEMBAR.ALL.GPU) each time.
DEVICE void barrier_arrive_at(SharedArray<Barrier> b, unsigned i, unsigned rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(b + i)), "r"(rank)
      : "memory");
}

// Until the phase of this parity is complete: 0 for the first, 1 for the second, 0 for the third. A barrier that is new counts as one
// whose phase of parity 1 is.
DEVICE void barrier_wait(SharedArray<Barrier> b, unsigned i, unsigned parity) {
  const unsigned address = shared_address(b + i);
  unsigned is_complete;
  do {
    // Waits a while by itself.
    asm volatile(
        "{\n.reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n}"
        : "=r"(is_complete) : "r"(address), "r"(parity) : "memory");
  } while (is_complete == 0);
}

// What this thread wrote to shared memory before, copies and products read behind.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Until `threads` threads are here, whole warps of the block, by one of its 16 barriers; __syncthreads is number 0.
DEVICE void warpgroup_barrier(unsigned id, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters ------------------------------------------------------------------------------------------------------
//
// Blocks of a cluster run at the same time, and have the same shared memory at the same places. One may be reached for while all of its
// threads have not ended, and each of those behind the cluster's barrier.

DEVICE unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Until all threads of all blocks of the cluster are here.
DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- copies --------------------------------------------------------------------------------------------------------
//
// One thread asks for a copy; its bytes count towards a barrier, those too that lie outside of the tensor and become zeros.

// The box of a matrix that begins at column x of row y.
DEVICE void copy_box(SharedArray<element> to, unsigned place, const TensorMap& map, int x, int y, SharedArray<Barrier> b, unsigned i) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to + place)),
      "l"(&map), "r"(x), "r"(y), "r"(shared_address(b + i))
      : "memory");
}

// What the outputs from one on read through one tap (im2col), a line each, in the order of a walk through the map's box of pixels: from
// channel c of pixel (w, h) of image n on, which is the first one's place of tap (0, 0), moved by the tap's offsets.
DEVICE void copy_patches(SharedArray<element> to, unsigned place, const TensorMap& map, int c, int w, int h, int n, unsigned offset_w,
                         unsigned offset_h, SharedArray<Barrier> b, unsigned i) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8};" ::"r"(shared_address(to + place)),
      "l"(&map), "r"(c), "r"(w), "r"(h), "r"(n), "r"(shared_address(b + i)), "h"(static_cast<unsigned short>(offset_w)),
      "h"(static_cast<unsigned short>(offset_h))
      : "memory");
}

// The same to each block of the cluster whose rank's bit of `blocks` is set: to the same place, and towards its barrier i.
DEVICE void copy_box_to(SharedArray<element> to, unsigned place, const TensorMap& map, int x, int y, SharedArray<Barrier> b, unsigned i,
                        unsigned blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to + place)),
      "l"(&map), "r"(x), "r"(y), "r"(shared_address(b + i)), "h"(static_cast<unsigned short>(blocks))
      : "memory");
}

DEVICE void copy_patches_to(SharedArray<element> to, unsigned place, const TensorMap& map, int c, int w, int h, int n, unsigned offset_w,
                            unsigned offset_h, SharedArray<Barrier> b, unsigned i, unsigned blocks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8}, %9;" ::"r"(shared_address(to + place)),
      "l"(&map), "r"(c), "r"(w), "r"(h), "r"(n), "r"(shared_address(b + i)), "h"(static_cast<unsigned short>(offset_w)),
      "h"(static_cast<unsigned short>(offset_h)), "h"(static_cast<unsigned short>(blocks))
      : "memory");
}

// ---- products ------------------------------------------------------------------------------------------------------

// The descriptor of a matrix in shared memory, which a product reads from `place` on. Its fields, from bit 0: the address, 14 bits;
// from bit 16 the bytes from 64 rows to the next where it is not ALONG, otherwise not looked at; from bit 32 the bytes from an atom
// to the next; all in 16 bytes. From bit 62 the swizzle: 1 is that of 128 bytes. The base offset, from bit 49, is 0: atoms are aligned.
template <bool ALONG>
DEVICE unsigned long long operand(SharedArray<element> tile, unsigned place, unsigned chunk = 0) {
  const unsigned long long address = (shared_address(tile + place) & 0x3FFFFu) >> 4;
  const unsigned long long leading = ALONG ? 1 : chunk * sizeof(element) >> 4, stride = 8 * LINE * sizeof(element) >> 4;
  return address | leading << 16 | stride << 32 | 1ull << 62;
}

#define REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 \
  REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128 \
  REGISTERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, " \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, " \
  "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_OF_PIECE(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SUMS_OF_8(j) \
  SUMS_OF_PIECE(j), SUMS_OF_PIECE(j + 1), SUMS_OF_PIECE(j + 2), SUMS_OF_PIECE(j + 3), SUMS_OF_PIECE(j + 4), SUMS_OF_PIECE(j + 5), \
      SUMS_OF_PIECE(j + 6), SUMS_OF_PIECE(j + 7)
// The sums are added to (a predicate that is true), neither operand is negated, and each is turned where it is not ALONG.
#define PRODUCT_OF(TYPES, COLUMNS, REGISTERS, A, B, TURNS)                                              \
  "{\n.reg .pred adds;\nsetp.eq.u32 adds, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" COLUMNS TYPES " {" \
  REGISTERS "}, " A ", " B ", adds, 1, 1" TURNS ";\n}"
#if defined(STORAGE_BF16)
#define PRODUCT_TYPES "k16.f32.bf16.bf16"
#else
#define PRODUCT_TYPES "k16.f32.f16.f16"
#endif
#ifdef STORAGE_TF32
#define PRODUCT(COLUMNS, REGISTERS, A, B, TURN_A, TURN_B, ...)                                                                   \
  static_assert(A_ALONG && B_ALONG, "numbers of 32 bits are not turned");                                                        \
  asm volatile(PRODUCT_OF("k8.f32.tf32.tf32", COLUMNS, REGISTERS, A, B, "") : __VA_ARGS__ : "l"(a), "l"(b))
#else
#define PRODUCT(COLUMNS, REGISTERS, A, B, TURN_A, TURN_B, ...)                                                        \
  asm volatile(PRODUCT_OF(PRODUCT_TYPES, COLUMNS, REGISTERS, A, B, ", " TURN_A ", " TURN_B)                           \
               : __VA_ARGS__                                                                                         \
               : "l"(a), "l"(b), "n"(A_ALONG ? 0 : 1), "n"(B_ALONG ? 0 : 1))
#endif

// Starts d += a·b, 64 rows of a by COLUMNS of b, for PRODUCT_DEPTH summands. Every thread of a warpgroup calls it.
template <unsigned COLUMNS, bool A_ALONG, bool B_ALONG>
DEVICE void multiply(float (&d)[COLUMNS / 8][4], unsigned long long a, unsigned long long b) {
  static_assert(COLUMNS == 64 || COLUMNS == 128 || COLUMNS == 256, "the columns that tiles have");
  if constexpr (COLUMNS == 64) {
    PRODUCT("64", REGISTERS_32, "%32", "%33", "%34", "%35", SUMS_OF_8(0));
  } else if constexpr (COLUMNS == 128) {
    PRODUCT("128", REGISTERS_64, "%64", "%65", "%66", "%67", SUMS_OF_8(0), SUMS_OF_8(8));
  } else {
    PRODUCT("256", REGISTERS_128, "%128", "%129", "%130", "%131", SUMS_OF_8(0), SUMS_OF_8(8), SUMS_OF_8(16), SUMS_OF_8(24));
  }
}

#undef PRODUCT
#undef PRODUCT_OF
#undef PRODUCT_TYPES
#undef SUMS_OF_8
#undef SUMS_OF_PIECE
#undef REGISTERS_128
#undef REGISTERS_64
#undef REGISTERS_32

// Before the first product, and after the sums were touched otherwise.
DEVICE void multiply_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
DEVICE void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the last LEFT groups are under way: then `d`, all sums that the products add to, holds those of the others, and their
// operands may be overwritten. With a group under way nothing else may touch them.
template <unsigned LEFT, unsigned ROWS, unsigned COLUMNS>
DEVICE void multiply_wait(float (&d)[ROWS][COLUMNS][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
  // Neither the waiting nor what follows moves past this.
#pragma unroll
  for (unsigned i = 0; i < ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < COLUMNS; ++j)
#pragma unroll
      for (unsigned l = 0; l < 4; ++l) asm volatile("" : "+f"(d[i][j][l])::"memory");
}

// The registers of each thread of a warpgroup from here on, a multiple of 8: a warpgroup that needs fewer gives some back, and others, which
// wait until there are so many, take them. Every thread of a warpgroup calls it.
template <unsigned COUNT>
DEVICE void registers_up() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "as setmaxnreg takes them");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <unsigned COUNT>
DEVICE void registers_down() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "as setmaxnreg takes them");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#endif

// The operand from so many elements further on: the address is its lowest field.
DEVICE unsigned long long further(unsigned long long operand, unsigned elements) {
  return operand + (elements * sizeof(element) >> 4);
}
