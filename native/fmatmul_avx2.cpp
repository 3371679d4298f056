#include "fmatmul.h"

#include <immintrin.h>

#include "matmul_blocks.h"

namespace corral {
namespace {

constexpr int kMostRows = 3;  // of a tile: 4 sums a row and 2 vectors more fill the registers

template <Codes C>
inline __m256 load_column(const std::byte* from) {
  if constexpr (C == Codes::F32) return _mm256_load_ps(reinterpret_cast<const float*>(from));
  const __m128i halves = _mm_load_si128(reinterpret_cast<const __m128i*>(from));
  if constexpr (C == Codes::F16) return _mm256_cvtph_ps(halves);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

template <Codes C, int T>
void multiply_tile(const std::byte* weights, int cols, const float* const* x, float (*out)[kPanelRows]) {
  constexpr size_t kColumnBytes = kPanelRows * (C == Codes::F32 ? 4 : 2);
  __m256 acc[T][kFloatChains];
  for (auto& sums : acc) {
    for (__m256& sum : sums) sum = _mm256_setzero_ps();
  }
  int col = 0;
  const auto add_column = [&](int chain) {
    const __m256 w = load_column<C>(weights + kColumnBytes * static_cast<size_t>(col + chain));
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) acc[t][chain] = _mm256_fmadd_ps(w, _mm256_broadcast_ss(x[t] + col + chain), acc[t][chain]);
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
    const __m256 total = _mm256_add_ps(_mm256_add_ps(acc[t][0], acc[t][1]), _mm256_add_ps(acc[t][2], acc[t][3]));
    _mm256_store_ps(out[t], total);
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
      alignas(32) float tile[T][kPanelRows];
      for (int t = 0; t < T; ++t) rows[t] = x + static_cast<size_t>(row + t) * ld_x;
      multiply_tile<C, T>(matrix.panel_codes(panel), matrix.cols(), rows, tile);
      for (int t = 0; t < T; ++t) std::copy_n(tile[t], lanes, out + static_cast<size_t>(row + t) * ld_out + first);
    });
  }
}

}  // namespace

void matmul_panels_float_avx2(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin,
                              int panel_end, float* out, size_t ld_out) {
  const auto multiply = matrix.codes() == Codes::F32   ? multiply_panels<Codes::F32>
                        : matrix.codes() == Codes::F16 ? multiply_panels<Codes::F16>
                                                       : multiply_panels<Codes::BF16>;
  multiply(matrix, x, ld_x, n_rows, panel_begin, panel_end, out, ld_out);
}

}  // namespace corral
