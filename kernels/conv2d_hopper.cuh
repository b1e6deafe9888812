// Convolution on the tensor cores of sm_90a: the products of conv2d_tensor.cu by instructions of whole warpgroups, from operands that a
// warpgroup of their own copies, for activations of 16 bits whose channels come in 64s; fprop also in tf32, where they come in 32s.
//
// A block stays for all the tiles that it computes: one tile, and the one as many further on as there are blocks; tiles of a row stand side
// by side. Its warpgroups have different work. The last one, of which one thread is enough, asks for copies: a step's operands, as deep
// as a line has summands, fill a stage of a ring as soon as that was read. The two others multiply, each half of the tile's rows, and end the tile
// as conv2d_tensor.cuh does, while the ring fills with the next tile's. A stage has two barriers, `full`, on which its bytes
// arrive, and `empty`, on which the warps that have read it do.
//
// Two tiles one below the other have the same columns. Their blocks may be a cluster: then each copies half of the columns, to both of
// them, and a stage is empty when the warps of both have read theirs. Which tiles do is the host's choice; where there is an odd number
// of them, the last one's partner multiplies zeros and stores nothing.
//
//   pass                  rows of the tile                                columns
//   fprop                 patches of x, a line per output pixel           filters, a line each
//   dgrad, per residue    patches of dy, likewise, of stride 1            filters turned, a line per filter with 64 channels
//   wgrad                 dy turned, a line per pixel with 64 filters     patches of x turned, a line per pixel with 64 weights
//
// Patches are what the tensor map's im2col mode reads; it knows the padding, and the stride as the step of its walk. A step belongs to one
// tap. What lies outside becomes zeros. Sums are added in the order of conv2d_tensor.cuh's, taps and then channels, but those of one product
// at a time, and dgrad's taps from the last one on.
//
// Bytes: both operands once for each tile across them, in clusters the columns once for two, the result once. Grid: at most as many
// blocks as fit at once (one per processor, for the registers); which tile a layer gets: src/ops/conv2d/hopper.rs.
#pragma once

#include "conv2d_tensor.cuh"
#include "hopper.cuh"

// ROWS × COLUMNS sums, of which each of the two warpgroups that multiply has half the rows, 64 at a time; through a ring of so many stages.
template <unsigned ROWS_, unsigned COLUMNS_, unsigned RING_>
struct WideTile : Tile<ROWS_, COLUMNS_, ROWS_ / 8, COLUMNS_> {
  using Base = Tile<ROWS_, COLUMNS_, ROWS_ / 8, COLUMNS_>;
  static constexpr unsigned RING = RING_, ROWS = ROWS_, COLUMNS = COLUMNS_;
  static constexpr unsigned MULTIPLIERS = Base::THREADS, ALL_THREADS = MULTIPLIERS + WARPGROUP;
  // Whether there may be clusters: half of the columns are whole copies.
  static constexpr bool IN_CLUSTERS = COLUMNS > 64;
  static_assert(MULTIPLIERS == 2 * WARPGROUP, "two warpgroups multiply");
  // Of a stage.
  static constexpr unsigned ROW_ELEMENTS = ROWS * LINE, COLUMN_ELEMENTS = COLUMNS * LINE, STAGE = ROW_ELEMENTS + COLUMN_ELEMENTS;
  // What the ring takes of dynamic shared memory, and behind it the columns of sums.
  static constexpr unsigned RING_ELEMENTS = RING * STAGE, SCRATCH_FLOATS = (2 * Base::WARPS_DOWN + 3) * COLUMNS;
  static_assert((RING_ELEMENTS * sizeof(element) + SCRATCH_FLOATS * sizeof(float)) <= 226 * 1024, "a block has 227 KiB");
  // A row of pieces is a product of the warpgroup, of which each warp has 16 rows.
  static constexpr unsigned PIECE_STEP = 64;
  DEVICE unsigned row_of_warp(unsigned warp) { return warp / 4 * (ROWS / 2) + warp % 4 * 16; }
};

// As in src/ops/conv2d/hopper.rs.
using Wide128x256 = WideTile<128, 256, 4>;
using Wide128x128 = WideTile<128, 128, 6>;
using Wide256x64 = WideTile<256, 64, 4>;

constexpr unsigned CHUNK = 64 * LINE;  // elements of 64 lines
// Registers of a thread that copies, and of one that multiplies: 128·40 + 256·232 are all but 1024 of a processor's 65536.
constexpr unsigned COPY_REGISTERS = 40, MULTIPLY_REGISTERS = 232;
// The block's barrier on which those wait for each other that multiply.
constexpr unsigned MULTIPLIERS_BARRIER = 1;

// ---- the ring --------------------------------------------------------------------------------------------------------

// Blocks of a cluster, one or two, and which of them this one is.
struct Team { unsigned size, rank; };

struct Ring {
  SharedArray<element> memory;
  SharedArray<Barrier> full, empty;
  Team team;
};

// The shared memory of a kernel for tiles of T.
#define RING(T)                       \
  DYNAMIC_SHARED(element, memory);    \
  SHARED(Barrier, full, T::RING);     \
  SHARED(Barrier, empty, T::RING);    \
  const Ring ring = {memory, full, empty, team_of<T>()}

template <class T>
DEVICE Team team_of() {
  if constexpr (T::IN_CLUSTERS) return {cluster_size(), cluster_rank()};
  else return {1, 0};
}

// A stage, and the parity of the phase of its barriers that is waited for.
struct Turn { unsigned stage, parity; };

template <class T>
DEVICE void next(Turn& turn) {
  if (++turn.stage == T::RING) {
    turn.stage = 0;
    turn.parity ^= 1;
  }
}

// Waits until this turn's stage was read, by both blocks of a cluster: what this one copies goes to the other too. Then has the stage's
// barrier expect a whole stage, and returns where the stage begins. Bytes from the other block may come before they are expected: of
// this phase, because that block has waited for this one's warps too.
template <class T>
DEVICE unsigned begin_copies(const Ring& ring, const Turn& turn) {
  barrier_wait(ring.empty, turn.stage, turn.parity);
  barrier_expect(ring.full, turn.stage, T::STAGE * sizeof(element));
  return turn.stage * T::STAGE;
}

// Of a warp that has read a stage.
DEVICE void leave_stage(const Ring& ring, unsigned stage) {
  const unsigned lane = threadIdx.x % WARP;
  if (ring.team.size == 1) {
    if (lane == 0) barrier_arrive(ring.empty, stage);
  } else if (lane < ring.team.size) {
    barrier_arrive_at(ring.empty, stage, lane);
  }
}

// Copies of columns: to all blocks of the cluster.
DEVICE void share_box(const Ring& ring, unsigned place, const TensorMap& map, int x, int y, unsigned stage) {
  if (ring.team.size == 1) copy_box(ring.memory, place, map, x, y, ring.full, stage);
  else copy_box_to(ring.memory, place, map, x, y, ring.full, stage, (1u << ring.team.size) - 1);
}

DEVICE void share_patches(const Ring& ring, unsigned place, const TensorMap& map, int c, int w, int h, int n, unsigned offset_w,
                          unsigned offset_h, unsigned stage) {
  if (ring.team.size == 1) copy_patches(ring.memory, place, map, c, w, h, n, offset_w, offset_h, ring.full, stage);
  else copy_patches_to(ring.memory, place, map, c, w, h, n, offset_w, offset_h, ring.full, stage, (1u << ring.team.size) - 1);
}

// Whether this block copies the tile's 64 columns of this number.
DEVICE bool copies_chunk(const Team& team, unsigned chunk) { return team.size == 1 || chunk % team.size == team.rank; }

// ---- tiles and their copies ------------------------------------------------------------------------------------------

struct Maps {
  TensorMap from, by;
};

// Of dgrad the patches of each pair of residues, which have their own corners in dy.
constexpr unsigned MOST_PAIRS = 4;
struct BackwardMaps {
  TensorMap by, from[MOST_PAIRS];
};

// A tile of the result; of wgrad, in one split, of dgrad, of one pair of residues.
struct Piece {
  Corner corner;
  unsigned part;
};

// Teams of tiles of a part, those of a cluster one below the other.
DEVICE unsigned teams_of_part(const Product& p, const Team& team) {
  const unsigned down = (static_cast<unsigned>(p.tiles_down) + team.size - 1) >> (team.size - 1);
  return down * p.by_tiles.divisor;
}

// The i-th team's tile of this block.
DEVICE Corner corner_of_team(const Product& p, const Team& team, unsigned i) {
  const unsigned down = static_cast<unsigned>(divide(static_cast<int>(i), p.by_tiles));
  return {down * team.size + team.rank, i - down * p.by_tiles.divisor};
}

// The same in one of several parts, one behind the other.
DEVICE Piece piece_of_part(const Product& p, const Team& team, unsigned i) {
  const unsigned part = i / teams_of_part(p, team);
  return {corner_of_team(p, team, i - part * teams_of_part(p, team)), part};
}

// How a pass reads its operands: whether lines go along the summands, how many steps a tile takes, and its copies.
struct Forward {
  using Problem = Product;
  static constexpr bool ROWS_ALONG = true, COLUMNS_ALONG = true;

  DEVICE const Product& product(const Product& p) { return p; }
  DEVICE unsigned parts(const Product&) { return 1; }
  DEVICE Piece piece(const Product& p, const Team& team, unsigned i) { return {corner_of_team(p, team, i), 0}; }

  DEVICE int steps(const Product& p, const Piece&) {
    return p.g.r * p.g.s * ((p.g.c + static_cast<int>(LINE) - 1) / static_cast<int>(LINE));
  }

  // A step's rows are pixels, its columns filters, which the blocks of a cluster share out.
  template <class T>
  DEVICE void copy_tile(const Product& p, const Maps& maps, const Ring& ring, Turn& turn, const Piece& piece) {
    const Sizes& g = p.g;
    const Pixel first = pixel_at(static_cast<int>(piece.corner.down * T::ROWS), p.by_rows, p.by_columns);
    const int h = first.row * g.stride_h - g.padding_h, w = first.column * g.stride_w - g.padding_w;
    const unsigned column = ring.team.rank * (T::COLUMNS / 2);
    const int filter = static_cast<int>(piece.corner.across * T::COLUMNS + column);
    for (int r = 0; r < g.r; ++r) {
      for (int s = 0; s < g.s; ++s) {
        for (int channel = 0; channel < g.c; channel += LINE) {
          const unsigned place = begin_copies<T>(ring, turn);
          copy_patches(ring.memory, place, maps.from, channel, w, h, first.image, static_cast<unsigned>(s * g.dilation_w),
                       static_cast<unsigned>(r * g.dilation_h), ring.full, turn.stage);
          share_box(ring, place + T::ROW_ELEMENTS + column * LINE, maps.by, (r * g.s + s) * g.c + channel, filter, turn.stage);
          next<T>(turn);
        }
      }
    }
  }
};

// dgrad, as a convolution of dy for each pair of residues, whose taps are read from the last one on, so that offsets grow. A pair without
// taps has no steps; one with fewer rows than the largest multiplies zeros in the last of its tiles. Each has some.
struct Backward {
  using Problem = BackwardProduct;
  static constexpr bool ROWS_ALONG = true, COLUMNS_ALONG = false;

  DEVICE const Product& product(const BackwardProduct& p) { return p.product; }
  DEVICE unsigned parts(const BackwardProduct& p) { return static_cast<unsigned>(p.product.g.stride_h * p.product.g.stride_w); }
  DEVICE Piece piece(const BackwardProduct& p, const Team& team, unsigned i) { return piece_of_part(p.product, team, i); }

  DEVICE int steps(const BackwardProduct& p, const Piece& piece) {
    const Residues of = residues(p, piece.part);
    return of.h.taps * of.w.taps * (p.product.g.k / static_cast<int>(LINE));
  }

  template <class T>
  DEVICE void copy_tile(const BackwardProduct& all, const BackwardMaps& maps, const Ring& ring, Turn& turn, const Piece& piece) {
    const Sizes& g = all.product.g;
    const Residues of = residues(all, piece.part);
    const Pixel first = pixel_at(static_cast<int>(piece.corner.down * T::ROWS), of.h.by_count, of.w.by_count);
    const int h = first.row + of.h.from + (of.h.taps - 1) * of.h.step, w = first.column + of.w.from + (of.w.taps - 1) * of.w.step;
    for (int r = of.h.taps - 1; r >= 0; --r) {
      for (int s = of.w.taps - 1; s >= 0; --s) {
        const int tap = (of.h.first_tap + r * of.h.tap_step) * g.s + of.w.first_tap + s * of.w.tap_step;
        const int weight = tap * g.c + static_cast<int>(piece.corner.across * T::COLUMNS);
        const unsigned offset_h = static_cast<unsigned>((r + 1 - of.h.taps) * of.h.step);
        const unsigned offset_w = static_cast<unsigned>((s + 1 - of.w.taps) * of.w.step);
        for (int filter = 0; filter < g.k; filter += LINE) {
          const unsigned place = begin_copies<T>(ring, turn);
          copy_patches(ring.memory, place, maps.from[piece.part], filter, w, h, first.image, offset_w, offset_h, ring.full, turn.stage);
#pragma unroll
          for (unsigned chunk = 0; chunk < T::COLUMNS / LINE; ++chunk)
            if (copies_chunk(ring.team, chunk))
              share_box(ring, place + T::ROW_ELEMENTS + chunk * CHUNK, maps.by, weight + static_cast<int>(chunk * LINE), filter,
                        turn.stage);
          next<T>(turn);
        }
      }
    }
  }
};

// wgrad, a step of 64 pixels. Splits one behind the other.
struct OfWeights {
  using Problem = Product;
  static constexpr bool ROWS_ALONG = false, COLUMNS_ALONG = false;

  DEVICE const Product& product(const Product& p) { return p; }
  DEVICE unsigned parts(const Product& p) { return static_cast<unsigned>((p.g.n * p.g.p * p.g.q + p.split - 1) / p.split); }
  DEVICE Piece piece(const Product& p, const Team& team, unsigned i) { return piece_of_part(p, team, i); }

  DEVICE int begin(const Product& p, const Piece& piece) { return static_cast<int>(piece.part) * p.split; }

  DEVICE int steps(const Product& p, const Piece& piece) {
    const int left = p.g.n * p.g.p * p.g.q - begin(p, piece), pixels = left < p.split ? left : p.split;
    return (pixels + static_cast<int>(LINE) - 1) / static_cast<int>(LINE);
  }

  template <class T>
  DEVICE void copy_tile(const Product& p, const Maps& maps, const Ring& ring, Turn& turn, const Piece& piece) {
    const Sizes& g = p.g;
    const int filter = static_cast<int>(piece.corner.down * T::ROWS), weights = g.r * g.s * g.c;
    int channel[T::COLUMNS / LINE];
    unsigned offset_w[T::COLUMNS / LINE], offset_h[T::COLUMNS / LINE];
#pragma unroll
    for (unsigned chunk = 0; chunk < T::COLUMNS / LINE; ++chunk) {
      // Beyond the last weights there is nothing to sum: any others will do.
      const int asked = static_cast<int>(piece.corner.across * T::COLUMNS + chunk * LINE);
      const int weight = asked < weights ? asked : weights - static_cast<int>(LINE);
      const int tap = divide(weight, p.by_channels), r = divide(tap, p.by_taps);
      channel[chunk] = weight - tap * g.c;
      offset_h[chunk] = static_cast<unsigned>(r * g.dilation_h);
      offset_w[chunk] = static_cast<unsigned>((tap - r * g.s) * g.dilation_w);
    }
    const int steps = OfWeights::steps(p, piece);
    int pixel = begin(p, piece);
    for (int step = 0; step < steps; ++step, pixel += LINE) {
      const unsigned place = begin_copies<T>(ring, turn);
      const Pixel first = pixel_at(pixel, p.by_rows, p.by_columns);
      const int h = first.row * g.stride_h - g.padding_h, w = first.column * g.stride_w - g.padding_w;
#pragma unroll
      for (unsigned chunk = 0; chunk < T::ROWS / LINE; ++chunk)
        copy_box(ring.memory, place + chunk * CHUNK, maps.from, filter + static_cast<int>(chunk * LINE), pixel, ring.full, turn.stage);
#pragma unroll
      for (unsigned chunk = 0; chunk < T::COLUMNS / LINE; ++chunk)
        if (copies_chunk(ring.team, chunk))
          share_patches(ring, place + T::ROW_ELEMENTS + chunk * CHUNK, maps.by, channel[chunk], w, h, first.image, offset_w[chunk],
                        offset_h[chunk], turn.stage);
      next<T>(turn);
    }
  }
};

// ---- the product -----------------------------------------------------------------------------------------------------

// The sums of this thread's warpgroup over so many steps.
template <class T, class Pass>
DEVICE void multiply_steps(Sums<T>& sums, const Ring& ring, Turn& turn, unsigned warpgroup, int steps) {
  constexpr unsigned ROW_STEP = PRODUCT_DEPTH * (Pass::ROWS_ALONG ? 1 : LINE);
  constexpr unsigned COLUMN_STEP = PRODUCT_DEPTH * (Pass::COLUMNS_ALONG ? 1 : LINE);
#pragma unroll
  for (unsigned i = 0; i < T::PIECE_ROWS; ++i)
#pragma unroll
    for (unsigned j = 0; j < T::PIECE_COLUMNS; ++j)
#pragma unroll
      for (unsigned l = 0; l < 4; ++l) sums.v[i][j][l] = 0;

  unsigned before = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    barrier_wait(ring.full, turn.stage, turn.parity);
    const unsigned place = turn.stage * T::STAGE;
    const unsigned long long rows = operand<Pass::ROWS_ALONG>(ring.memory, place + warpgroup * T::PIECE_ROWS * CHUNK, CHUNK);
    const unsigned long long columns = operand<Pass::COLUMNS_ALONG>(ring.memory, place + T::ROW_ELEMENTS, CHUNK);
    multiply_fence();
#pragma unroll
    for (unsigned depth = 0; depth < LINE / PRODUCT_DEPTH; ++depth)
#pragma unroll
      for (unsigned i = 0; i < T::PIECE_ROWS; ++i)
        multiply<T::COLUMNS, Pass::ROWS_ALONG, Pass::COLUMNS_ALONG>(
            sums.v[i], further(rows, i * CHUNK + depth * ROW_STEP), further(columns, depth * COLUMN_STEP));
    multiply_commit();
    // The step before was read.
    multiply_wait<1>(sums.v);
    if (step > 0) leave_stage(ring, before);
    before = turn.stage;
    next<T>(turn);
  }
  multiply_wait<0>(sums.v);
  if (steps > 0) leave_stage(ring, before);
}

// Everything of a block, with all its threads. f(piece, sums) ends a tile; those call it that multiply.
template <class T, class Pass, class M, class F>
DEVICE void for_each_piece(const typename Pass::Problem& p, const M& maps, const Ring& ring, F f) {
  if (threadIdx.x == 0) {
    for (unsigned stage = 0; stage < T::RING; ++stage) {
      barrier_init(ring.full, stage, 1);
      barrier_init(ring.empty, stage, T::MULTIPLIERS / WARP * ring.team.size);
    }
    fence_barriers();
  }
  if (ring.team.size == 1) __syncthreads();
  else cluster_barrier();
  // The same in all lanes, which the compiler does not see by itself.
  const unsigned warpgroup = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);
  const unsigned teams = Pass::parts(p) * teams_of_part(Pass::product(p), ring.team);
  const unsigned first = blockIdx.x >> (ring.team.size - 1), step = gridDim.x >> (ring.team.size - 1);
  if (warpgroup == T::MULTIPLIERS / WARPGROUP) {
    registers_down<COPY_REGISTERS>();
    if (threadIdx.x != T::MULTIPLIERS) return;
    // Stages that nobody has filled yet are read already.
    Turn turn = {0, 1};
    for (unsigned i = first; i < teams; i += step) Pass::template copy_tile<T>(p, maps, ring, turn, Pass::piece(p, ring.team, i));
    if (ring.team.size == 1) return;
    // The other block's warps arrive here: until they have, this one stays.
    for (unsigned stage = 0; stage < T::RING; ++stage) {
      barrier_wait(ring.empty, turn.stage, turn.parity);
      next<T>(turn);
    }
    return;
  }
  registers_up<MULTIPLY_REGISTERS>();
  Turn turn = {0, 0};
  for (unsigned i = first; i < teams; i += step) {
    const Piece piece = Pass::piece(p, ring.team, i);
    Sums<T> sums;
    multiply_steps<T, Pass>(sums, ring, turn, warpgroup, Pass::steps(p, piece));
    // A cluster has a tile too many where tiles are an odd number.
    if (piece.corner.down < static_cast<unsigned>(Pass::product(p).tiles_down)) f(piece, sums);
  }
}

// ---- the passes ------------------------------------------------------------------------------------------------------

struct WideFprop {
  Maps maps;  // x and w
  FinishedProduct finished;
};
static_assert(sizeof(WideFprop) == 448, "as in src/ops/conv2d/hopper.rs");

struct WideStatistics {
  Maps maps;
  ProductStatistics statistics;
};
static_assert(sizeof(WideStatistics) == 448, "as in src/ops/conv2d/hopper.rs");

struct WideDgrad {
  BackwardMaps maps;  // w and dy
  BackwardProduct backward;
};
static_assert(sizeof(WideDgrad) == 1280, "as in src/ops/conv2d/hopper.rs");

struct WideGradient {
  BackwardMaps maps;
  ProductGradient gradient;
};
static_assert(sizeof(WideGradient) == 1344, "as in src/ops/conv2d/hopper.rs");

struct WideWgrad {
  Maps maps;  // dy and x
  Product product;
};
static_assert(sizeof(WideWgrad) == 448, "as in src/ops/conv2d/hopper.rs");

template <class T>
DEVICE void wide_fprop(const WideFprop& p, const Ring& ring) {
  for_each_piece<T, Forward>(p.finished.product, p.maps, ring, [&](const Piece& piece, Sums<T>& sums) {
    store_finished<T>(p.finished, piece.corner, sums);
  });
}

// Columns of sums lie behind the ring. Each tile's take the place of those of the one before, which everybody is to be done with.
template <class T>
DEVICE SharedArray<float> scratch(const Ring& ring) { return shared_as_floats(ring.memory + T::RING_ELEMENTS, T::SCRATCH_FLOATS * 2); }

template <class T>
DEVICE void wait_for_multipliers() { warpgroup_barrier(MULTIPLIERS_BARRIER, T::MULTIPLIERS); }

template <class T>
DEVICE void wide_statistics(const WideStatistics& p, const Ring& ring) {
  for_each_piece<T, Forward>(p.statistics.product, p.maps, ring, [&](const Piece& piece, Sums<T>& sums) {
    round_sums<T>(sums);
    store_y<T>(p.statistics.product, piece.corner, sums);
    store_statistics<T>(p.statistics, piece.corner, sums, scratch<T>(ring), [] { wait_for_multipliers<T>(); });
    wait_for_multipliers<T>();
  });
}

template <class T>
DEVICE void wide_dgrad(const WideDgrad& p, const Ring& ring) {
  const BackwardProduct& all = p.backward;
  const Product& product = all.product;
  for_each_piece<T, Backward>(all, p.maps, ring, [&](const Piece& piece, const Sums<T>& sums) {
    const Residues of = residues(all, piece.part);
    store_dx<T>(static_cast<element*>(product.to), all.adds, piece.corner, product.g.c, sums,
                [&](int row) { return input_pixel(product.g, of, row); });
  });
}

template <class T>
DEVICE void wide_dgrad_sums(const WideGradient& p, const Ring& ring) {
  const BackwardProduct& all = p.gradient.backward;
  const Product& product = all.product;
  for_each_piece<T, Backward>(all, p.maps, ring, [&](const Piece& piece, const Sums<T>& sums) {
    const Residues of = residues(all, piece.part);
    store_sums_of_norm<T>(
        p.gradient, piece.corner, piece.part * static_cast<unsigned>(product.tiles_down) + piece.corner.down, product.g.c, sums,
        scratch<T>(ring), [&](int row) { return input_pixel(product.g, of, row); }, [] { wait_for_multipliers<T>(); });
    wait_for_multipliers<T>();
  });
}

template <class T>
DEVICE void wide_wgrad(const WideWgrad& p, const Ring& ring) {
  for_each_piece<T, OfWeights>(p.product, p.maps, ring, [&](const Piece& piece, const Sums<T>& sums) {
    store_dw<T>(p.product, piece.corner, piece.part, sums);
  });
}
