#include "fmatmul.h"

#include <arm_neon.h>

#include "matmul_blocks.h"

namespace corral {
namespace {

constexpr int kMostRows = 3;  // of a tile: 8 sums a row and 2 vectors more fill the registers

template <Codes C>
inline float32x4x2_t load_column(const std::byte* from) {
  if constexpr (C == Codes::F32) {
    return {{vld1q_f32(reinterpret_cast<const float*>(from)), vld1q_f32(reinterpret_cast<const float*>(from + 16))}};
  }
  const uint16x8_t halves = vld1q_u16(reinterpret_cast<const uint16_t*>(from));
  if constexpr (C == Codes::F16) {
    const float16x8_t halves16 = vreinterpretq_f16_u16(halves);
    return {{vcvt_f32_f16(vget_low_f16(halves16)), vcvt_high_f32_f16(halves16)}};
  }
  return {{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
           vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))}};
}

template <Codes C, int T>
void multiply_tile(const std::byte* weights, int cols, const float* const* x, float (*out)[kPanelRows]) {
  constexpr size_t kColumnBytes = kPanelRows * (C == Codes::F32 ? 4 : 2);
  float32x4x2_t acc[T][kFloatChains];
  for (auto& sums : acc) {
    for (float32x4x2_t& sum : sums) sum = {{vdupq_n_f32(0), vdupq_n_f32(0)}};
  }
  int col = 0;
  const auto add_column = [&](int chain) {
    const float32x4x2_t w = load_column<C>(weights + kColumnBytes * static_cast<size_t>(col + chain));
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) {
      const float by = x[t][col + chain];
      for (int half = 0; half < 2; ++half) acc[t][chain].val[half] = vfmaq_n_f32(acc[t][chain].val[half], w.val[half], by);
    }
  };
  for (; col + kFloatChains <= cols; col += kFloatChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kFloatChains; ++chain) add_column(chain);
  }
#pragma GCC unroll 3
  for (int chain = 0; chain < kFloatChains - 1; ++chain) {
    if (col + chain < cols) add_column(chain);
  }
  for (int t = 0; t < T; ++t) {
    for (int half = 0; half < 2; ++half) {
      const float32x4_t first = vaddq_f32(acc[t][0].val[half], acc[t][1].val[half]);
      vst1q_f32(out[t] + 4 * half, vaddq_f32(first, vaddq_f32(acc[t][2].val[half], acc[t][3].val[half])));
    }
  }
}

template <Codes C>
void multiply_panels(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin, int panel_end,
                     float* out, size_t ld_out) {
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    const int first = panel * kPanelRows;
    const int lanes = std::min(kPanelRows, matrix.rows() - first);
    for_tiles<kMostRows>(n_rows, [&]<int T>(std::integral_constant<int, T>, int row) {
      const float* rows[T];
      float tile[T][kPanelRows];
      for (int t = 0; t < T; ++t) rows[t] = x + static_cast<size_t>(row + t) * ld_x;
      multiply_tile<C, T>(matrix.panel_codes(panel), matrix.cols(), rows, tile);
      for (int t = 0; t < T; ++t) std::copy_n(tile[t], lanes, out + static_cast<size_t>(row + t) * ld_out + first);
    });
  }
}

}  // namespace

void matmul_panels_float_neon(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin,
                              int panel_end, float* out, size_t ld_out) {
  const auto multiply = matrix.codes() == Codes::F32   ? multiply_panels<Codes::F32>
                        : matrix.codes() == Codes::F16 ? multiply_panels<Codes::F16>
                                                       : multiply_panels<Codes::BF16>;
  multiply(matrix, x, ld_x, n_rows, panel_begin, panel_end, out, ld_out);
}

}  // namespace corral
