// What the quantised matmul kernels of all instruction sets share: the arithmetic of a block, and how rows are tiled.
//
// For one output, with acc = 0, the blocks of 32 columns in ascending order (x = the row's activation block, i0, i1 =
// sums of factor * code * q over its halves, whole numbers however they are computed, fma rounds once):
//   Whole   a group of 32:  acc = fma((i0 + i1) * scale, x.scale, acc);  acc = fma(offset, x.sum, acc)
//   Halves  groups of 16:   acc = fma(fma(i1, scale1, i0 * scale0), x.scale, acc);
//                           acc = fma(offset0, x.half_sum[0], acc);  acc = fma(offset1, x.half_sum[1], acc)
// where scale = super scale * sub scale, and offset = -(zero * scale) where none is stored. Signed codes in groups of 32
// without zero point and offset leave out the offset's fma.
//
// With |q| <= 127 16-bit sums of code * q cannot overflow: four pairs of products of U5 reach 31496, two of U6 32004,
// one of S8 or T4 32512.
// Sums of factor * code * q stay below 2^24, even with 128 added to signed codes.
//
// Float matrices: four sums by column % 4, each acc = fma(weight, x, acc) in ascending order;
// the result is (sum0 + sum1) + (sum2 + sum3).
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "qmatmul.h"

namespace corral {

extern const MatmulKernels kScalarMatmul;
#if defined(__x86_64__)
extern const MatmulKernels kAvx2Matmul;
extern const MatmulKernels kAvx512VnniMatmul;
#elif defined(__aarch64__)
extern const MatmulKernels kNeonMatmul;
#endif

// Internal linkage: every instruction set's file must have its own copies.
namespace {

enum class Grouping { Whole, WholeNoOffset, Halves };

inline Grouping grouping_of(const Matrix& matrix) {
  if (matrix.group() == 16) return Grouping::Halves;
  const bool one_zero = matrix.scales() == Scales::Half || matrix.scales() == Scales::Super;
  return is_signed(matrix.codes()) && one_zero && matrix.zero() == 0 ? Grouping::WholeNoOffset : Grouping::Whole;
}

// The scales of one block of a panel, ready for use.
struct alignas(64) BlockScales {
  struct Group {
    float scale[kPanelRows];
    float offset[kPanelRows];
  };
  Group group[2];  // the second only for groups of 16
};

constexpr int kFloatChains = 4;
constexpr int kSegmentBlocks = 64;  // blocks whose scales are expanded at a time: they and their codes fit the first cache

// Splits n rows into tiles of nearly equal width up to `Most`, the wider first, and calls body(constant<width>, first
// row).
template <int Most, class Body>
inline void for_tiles(int n, const Body& body) {
  const int tiles = (n + Most - 1) / Most;
  if (tiles == 0) return;
  const int narrow = n / tiles, wider = n % tiles;
  for (int tile = 0, row = 0; tile < tiles; ++tile) {
    const int width = narrow + (tile < wider);
    [&]<int... W>(std::integer_sequence<int, W...>) {
      ((width == W + 1 ? body(std::integral_constant<int, W + 1>{}, row) : void()), ...);
    }(std::make_integer_sequence<int, Most>{});
    row += width;
  }
}

// Results pass through a strip of memory that fits the first cache. Straight to `out`, rows of a power-of-two width
// would all fall into one set of it, and every line would be fetched and written twice.
constexpr int kStripPanels = 8;
constexpr int kStripRows = 64;
using StripRow = float[kStripPanels * kPanelRows];

struct Strip {
  StripRow* rows;
  float* out;  // where they go, ld floats from row to row
  size_t ld;

  // Asks for the line that these results will be copied to: far from this core's caches, as another step or another
  // core was the last to use it. Inlined at once: GCC takes a call that only prefetches for one without effect.
  [[gnu::always_inline]] void fetch(int row, int column) const {
    constexpr int kLine = 64 / sizeof(float);
    if (column % kLine == 0) __builtin_prefetch(out + static_cast<size_t>(row) * ld + column, 1);
  }
};

// Calls body(first row, rows, first panel, end, strip) for parts of the result, strip.rows[n][(panel - first) * 8 +
// lane].
template <class Body>
inline void for_strips(const Matrix& matrix, int n_rows, int panel_begin, int panel_end, float* out, size_t ld_out,
                       const Body& body) {
  alignas(64) StripRow rows[kStripRows];
  for (int row = 0; row < n_rows; row += kStripRows) {
    const int n = std::min(kStripRows, n_rows - row);
    for (int panel = panel_begin; panel < panel_end; panel += kStripPanels) {
      const int end = std::min(panel + kStripPanels, panel_end);
      const int first = panel * kPanelRows, width = std::min(end * kPanelRows, matrix.rows()) - first;
      const Strip strip{rows, out + static_cast<size_t>(row) * ld_out + first, ld_out};
      body(row, n, panel, end, strip);
      for (int i = 0; i < n; ++i) std::copy_n(rows[i], width, strip.out + static_cast<size_t>(i) * ld_out);
    }
  }
}

}  // namespace
}  // namespace corral
