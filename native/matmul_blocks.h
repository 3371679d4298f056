// What the quantised matmul kernels of all instruction sets share: the arithmetic of a block, and how rows are tiled.
//
// For one output, with acc = 0, the blocks of 32 columns in ascending order (x = the row's activation block,
// x0, x1 = its scales, s0, s1 = its code sums, i0, i1 = sums of code * q over its halves, fma rounds once):
//   Whole      a group of 32:  acc = fma(fma(i1, x1, i0 * x0), scale, acc);  acc = fma(offset, x.sum, acc)
//   Halves     groups of 16:   acc = fma(i0 * scale0, x0, acc);    acc = fma(i1 * scale1, x1, acc);
//                              acc = fma(offset0, x0 * s0, acc);   acc = fma(offset1, x1 * s1, acc)
//   SubScaled  groups of 16 with integer sub scales c0, c1, in whole numbers as far as they go, super scale `scale`:
//              acc = fma(fma(c1 * (i1 - zero * s1), x1, c0 * (i0 - zero * s0) * x0), scale, acc)
// In the first two scale = super scale * sub scale, and offset = -(zero * scale) where none is stored.
// S8 without zero point and offset leaves out the offset's fma.
//
// The int16 sums of code * q cannot overflow with |q| <= 127: 8 pairs of products of U4 reach 30480, 4 of U5 31496,
// 2 of U6 32004, 1 of S8 32512.
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
#endif

// Internal linkage: every instruction set's file must have its own copies.
namespace {

enum class Grouping { Whole, WholeNoOffset, Halves, SubScaled };

inline Grouping grouping_of(const Matrix& matrix) {
  if (matrix.group() == 16) return matrix.scales() == Scales::Super ? Grouping::SubScaled : Grouping::Halves;
  const bool plain = matrix.codes() == Codes::S8 && matrix.zero() == 0 && !has_offset(matrix.scales());
  return plain ? Grouping::WholeNoOffset : Grouping::Whole;
}

// The scales of one block of a panel, ready for use. Which fields count depends on the Grouping.
struct alignas(64) BlockScales {
  struct Group {
    float scale[kPanelRows];
    float offset[kPanelRows];
  };
  Group group[2];
};
struct alignas(64) BlockSubScales {
  int16_t sub[2][kPanelRows][2];   // each twice, for multiplying pairs
  int16_t zero[2][kPanelRows][2];  // -zero * sub beside 0, for a pair of code sums
  float scale[kPanelRows];
};

constexpr int kFloatChains = 4;
constexpr int kSegmentBlocks = 64;  // blocks whose scales are expanded at a time: they and their codes fit the first cache

// Splits n rows into tiles of nearly equal width up to `Most` and calls body(constant<width>, first row).
template <int Most, class Body>
inline void for_tiles(int n, const Body& body) {
  const int tiles = (n + Most - 1) / Most;
  for (int tile = 0, row = 0; tile < tiles; ++tile) {
    const int width = (n - row + tiles - tile - 1) / (tiles - tile);
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

// Calls body(first row, rows, first panel, end, strip) for parts of the result; strip[n][(panel - first) * 8 + lane].
template <class Body>
inline void for_strips(const Matrix& matrix, int n_rows, int panel_begin, int panel_end, float* out, size_t ld_out,
                       const Body& body) {
  alignas(64) StripRow strip[kStripRows];
  for (int row = 0; row < n_rows; row += kStripRows) {
    const int n = std::min(kStripRows, n_rows - row);
    for (int panel = panel_begin; panel < panel_end; panel += kStripPanels) {
      const int end = std::min(panel + kStripPanels, panel_end);
      body(row, n, panel, end, strip);
      const int first = panel * kPanelRows, width = std::min(end * kPanelRows, matrix.rows()) - first;
      for (int i = 0; i < n; ++i) std::copy_n(strip[i], width, out + static_cast<size_t>(row + i) * ld_out + first);
    }
  }
}

}  // namespace
}  // namespace corral
