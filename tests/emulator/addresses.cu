// The address functions of conv2d_tensor.cuh, written down for tests to look at.
#include "conv2d_tensor.cuh"

// ---- places in shared memory ------------------------------------------------------------------------------------------

struct TilePlaces {
  unsigned* packs;   // of each line and pack
  unsigned* pieces;  // for A, then for B: span pieces × depth pieces × LOADS × 32 lanes
};

// Loads of a piece that address memory on their own.
template <class Side>
constexpr unsigned LOADS = TF32 && !Side::ALONG ? 4 : 1;

template <class Side, bool ROWS_FIRST>
DEVICE void write_pieces(unsigned*& to) {
  const unsigned lane = threadIdx.x;
  for (unsigned span = 0; span < Side::SPAN; span += 16)
    for (unsigned depth = 0; depth < DEPTH; depth += PIECE_DEPTH)
      for (unsigned load = 0; load < LOADS<Side>; ++load) {
        to[lane] = LOADS<Side> == 1 ? place_of_line<Side, ROWS_FIRST>(lane, span, depth)
                                    : place_across<Side, ROWS_FIRST>(lane, load, span, depth);
        to += WARP;
      }
}

template <class Side>
DEVICE void write_places(const TilePlaces& p) {
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < Side::SPAN * LINE_PACKS; ++i) p.packs[i] = Side::place(i / Side::PACKS, i % Side::PACKS);
  unsigned* to = p.pieces;
  write_pieces<Side, true>(to);
  write_pieces<Side, false>(to);
}

KERNEL(places_along_128, TilePlaces, WARP) { write_places<Side<true, 128, 128>>(p); }
KERNEL(places_along_64, TilePlaces, WARP) { write_places<Side<true, 64, 128>>(p); }
KERNEL(places_along_32, TilePlaces, WARP) { write_places<Side<true, 32, 128>>(p); }
KERNEL(places_across_128, TilePlaces, WARP) { write_places<Side<false, 128, 128>>(p); }
KERNEL(places_across_64, TilePlaces, WARP) { write_places<Side<false, 64, 128>>(p); }
KERNEL(places_across_32, TilePlaces, WARP) { write_places<Side<false, 32, 128>>(p); }

// ---- who writes what --------------------------------------------------------------------------------------------------

// Instead of results: how often each element of the result is handed out. `to` is f32 whatever the result is.
template <class T>
DEVICE Sums<T> nothing() {
  Sums<T> sums;
  for (unsigned i = 0; i < T::PIECE_ROWS; ++i)
    for (unsigned j = 0; j < T::PIECE_COLUMNS; ++j)
      for (unsigned l = 0; l < 4; ++l) sums.v[i][j][l] = 0;
  return sums;
}

DEVICE void count_elements(const Product& p, offset at, int count) {
  float* counts = static_cast<float*>(p.to);
  for (int i = 0; i < count; ++i) counts[at + i] += 1;
}

template <class T>
DEVICE void count_y(const Product& p) {
  for_each_of_y<T>(p, corner_of_block(p), nothing<T>(), [&](offset at, int count, unsigned, unsigned, const float (&)[8]) {
    count_elements(p, at, count);
  });
}

template <class T>
DEVICE void count_dx(const BackwardProduct& all) {
  const Product& p = all.product;
  const Residues of = residues(all, blockIdx.z);
  if (!has_rows<T>(p, backward_walk(p, of))) return;
  for_each_of_dx<T>(p, of, nothing<T>(), [&](offset at, int count, unsigned, unsigned, const float (&)[8]) {
    count_elements(p, at, count);
  });
}

template <class T>
DEVICE void count_dw(const Product& p) {
  for_each_of_dw<T>(p, corner_of_block(p), blockIdx.z, nothing<T>(), [&](offset at, int count, unsigned, unsigned, const float (&)[8]) {
    count_elements(p, at, count);
  });
}

KERNEL(count_y_128x256, Product, Tile128x256::THREADS) { count_y<Tile128x256>(p); }
KERNEL(count_y_128x128, Product, Tile128x128::THREADS) { count_y<Tile128x128>(p); }
KERNEL(count_y_128x64, Product, Tile128x64::THREADS) { count_y<Tile128x64>(p); }
KERNEL(count_y_64x64, Product, Tile64x64::THREADS) { count_y<Tile64x64>(p); }
KERNEL(count_y_128x32, Product, Tile128x32::THREADS) { count_y<Tile128x32>(p); }
KERNEL(count_dx_128x256, BackwardProduct, Tile128x256::THREADS) { count_dx<Tile128x256>(p); }
KERNEL(count_dx_128x128, BackwardProduct, Tile128x128::THREADS) { count_dx<Tile128x128>(p); }
KERNEL(count_dx_128x64, BackwardProduct, Tile128x64::THREADS) { count_dx<Tile128x64>(p); }
KERNEL(count_dx_64x64, BackwardProduct, Tile64x64::THREADS) { count_dx<Tile64x64>(p); }
KERNEL(count_dx_128x32, BackwardProduct, Tile128x32::THREADS) { count_dx<Tile128x32>(p); }
KERNEL(count_dw_128x256, Product, Tile128x256::THREADS) { count_dw<Tile128x256>(p); }
KERNEL(count_dw_128x128, Product, Tile128x128::THREADS) { count_dw<Tile128x128>(p); }
KERNEL(count_dw_128x64, Product, Tile128x64::THREADS) { count_dw<Tile128x64>(p); }
KERNEL(count_dw_64x64, Product, Tile64x64::THREADS) { count_dw<Tile64x64>(p); }

// ---- what is summed ---------------------------------------------------------------------------------------------------

// The first and the one behind the last pixel of each split: to[2·z], to[2·z + 1].
KERNEL(splits, Product, WARP) {
  if (threadIdx.x != 0) return;
  int* to = static_cast<int*>(p.to) + 2 * blockIdx.z;
  to[0] = split_begin(p);
  to[1] = split_end(p);
}
