#include <bit>
#include <cmath>
#include <cstring>

#include "half.h"
#include "matmul_blocks.h"
#include "quantize.h"

namespace corral {
namespace {

constexpr int kTile = 8;  // rows that share the unpacking of a block

// What the scales of a block say in each of a panel's lanes.
struct LaneScales {
  float scale[2];
  float offset[2];
};

float half_at(const std::byte* halves, int lane) {
  uint16_t bits;
  std::memcpy(&bits, halves + 2 * lane, sizeof bits);
  return half_to_float(bits);
}

LaneScales lane_scales(const Matrix& matrix, int panel, int block, int lane) {
  const int groups = kBlock / matrix.group();
  LaneScales to{};
  for (int group = 0; group < groups; ++group) {
    const Matrix::GroupScale by = matrix.group_scale(panel, lane, block * groups + group);
    to.scale[group] = by.scale;
    to.offset[group] = has_offset(matrix.scales()) ? by.offset : -(static_cast<float>(by.zero) * by.scale);
  }
  return to;
}

void unpack_block(const Matrix& matrix, const std::byte* block, int8_t to[kPanelRows][kBlock]) {
  for (int lane = 0; lane < kPanelRows; ++lane) {
    for (int col = 0; col < kBlock; ++col) to[lane][col] = static_cast<int8_t>(matrix.value_at(block, lane, col));
  }
}

// Sum of factor * code * q over a half block.
float half_sum(const int8_t* codes, const ActivationBlock& x, int half) {
  int total = 0;
  for (int group = 2 * half; group < 2 * half + 2; ++group) {
    int sum = 0;
    for (int k = kActivationGroup * group; k < kActivationGroup * (group + 1); ++k) sum += codes[k] * x.q[k];
    total += sum * x.whole[group];
  }
  return static_cast<float>(total);
}

float add_block(Grouping grouping, const int8_t* codes, const LaneScales& by, const ActivationBlock& x, float acc) {
  const float first = half_sum(codes, x, 0), second = half_sum(codes, x, 1);
  if (grouping == Grouping::Halves) {
    acc = std::fma(std::fma(second, by.scale[1], first * by.scale[0]), x.scale, acc);
    acc = std::fma(by.offset[0], x.half_sum[0], acc);
    return std::fma(by.offset[1], x.half_sum[1], acc);
  }
  acc = std::fma((first + second) * by.scale[0], x.scale, acc);
  return grouping == Grouping::WholeNoOffset ? acc : std::fma(by.offset[0], x.sum, acc);
}

// out [n][8] of one panel and a tile of n rows.
void multiply_tile(const Matrix& matrix, int panel, const ActivationBlock* const* x, int n, float (*out)[kPanelRows]) {
  const Grouping grouping = grouping_of(matrix);
  std::fill_n(out[0], n * kPanelRows, 0.0f);
  const std::byte* codes = matrix.panel_codes(panel);
  for (int block = 0; block < matrix.blocks(); ++block, codes += matrix.block_code_bytes()) {
    int8_t unpacked[kPanelRows][kBlock];
    unpack_block(matrix, codes, unpacked);
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const LaneScales by = lane_scales(matrix, panel, block, lane);
      for (int row = 0; row < n; ++row) {
        out[row][lane] = add_block(grouping, unpacked[lane], by, x[row][block], out[row][lane]);
      }
    }
  }
}

void store_rows(const Matrix& matrix, int panel, const float (*tile)[kPanelRows], int n, float* out, size_t ld_out) {
  const int first = panel * kPanelRows;
  const int rows = std::min(kPanelRows, matrix.rows() - first);
  for (int row = 0; row < n; ++row) std::copy_n(tile[row], rows, out + static_cast<size_t>(row) * ld_out + first);
}

void matmul_panels(const Matrix& matrix, const ActivationRows& x, int n_rows, int panel_begin, int panel_end,
                   float* out, size_t ld_out) {
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    for (int row = 0; row < n_rows; row += kTile) {
      const int n = std::min(kTile, n_rows - row);
      const ActivationBlock* rows[kTile] = {};
      for (int i = 0; i < n; ++i) rows[i] = x.row(row + i);
      float tile[kTile][kPanelRows];
      multiply_tile(matrix, panel, rows, n, tile);
      store_rows(matrix, panel, tile, n, out + static_cast<size_t>(row) * ld_out, ld_out);
    }
  }
}

float weight_at(Codes codes, const std::byte* column, int lane) {
  uint32_t bits;
  if (codes == Codes::F16) return half_at(column, lane);
  if (codes == Codes::F32) {
    std::memcpy(&bits, column + 4 * lane, sizeof bits);
  } else {
    uint16_t high;
    std::memcpy(&high, column + 2 * lane, sizeof high);
    bits = static_cast<uint32_t>(high) << 16;
  }
  return std::bit_cast<float>(bits);
}

void matmul_panels_float(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin,
                         int panel_end, float* out, size_t ld_out) {
  const size_t column_bytes = kPanelRows * (matrix.codes() == Codes::F32 ? 4 : 2);
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    for (int row = 0; row < n_rows; ++row) {
      float sums[kFloatChains][kPanelRows] = {};
      const std::byte* column = matrix.panel_codes(panel);
      for (int col = 0; col < matrix.cols(); ++col, column += column_bytes) {
        float* sum = sums[col % kFloatChains];
        const float by = x[static_cast<size_t>(row) * ld_x + static_cast<size_t>(col)];
        for (int lane = 0; lane < kPanelRows; ++lane) {
          sum[lane] = std::fma(weight_at(matrix.codes(), column, lane), by, sum[lane]);
        }
      }
      float total[1][kPanelRows];
      for (int lane = 0; lane < kPanelRows; ++lane) {
        total[0][lane] = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
      }
      store_rows(matrix, panel, total, 1, out + static_cast<size_t>(row) * ld_out, ld_out);
    }
  }
}

}  // namespace

const MatmulKernels kScalarMatmul = {Order::Quads, quantize_scalar, matmul_panels, matmul_panels_float};

}  // namespace corral
