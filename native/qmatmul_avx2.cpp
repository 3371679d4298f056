// Tiles of 8 weight rows by 1 to 4 rows of activations. A block of weights is unpacked once a tile.
#include <immintrin.h>

#include "matmul_scales_avx2.h"
#include "fmatmul.h"
#include "quantize.h"

namespace corral {
namespace {

constexpr int kMostRows = 4;  // of a tile: 8 vectors of codes and 4 sums leave registers for the products

using Vector = __m256i;

Vector load(const std::byte* from, int index) {
  return _mm256_load_si256(reinterpret_cast<const Vector*>(from) + index);
}
// Four codes of an activation row in every lane.
Vector four(const ActivationBlock& x, int g) {
  int32_t codes;
  __builtin_memcpy(&codes, x.q + 4 * g, sizeof codes);
  return _mm256_set1_epi32(codes);
}

// The 8 vectors of a block's unsigned codes.
template <Codes C>
inline void unpack(const std::byte* block, Vector w[8]) {
  const Vector nibble = _mm256_set1_epi8(15);
  for (int g = 0; g < 4; ++g) {
    const Vector both = load(block, g);
    w[g] = _mm256_and_si256(both, nibble);
    w[g + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
  }
  if constexpr (C == Codes::U5) {
    const Vector high = load(block, 4), bit = _mm256_set1_epi8(16);
    for (int g = 0; g < 8; ++g) {
      const Vector at = g < 4 ? _mm256_slli_epi16(high, 4 - g) : _mm256_srli_epi16(high, g - 4);
      w[g] = _mm256_or_si256(w[g], _mm256_and_si256(at, bit));
    }
  }
  if constexpr (C == Codes::U6) {
    const Vector bits = _mm256_set1_epi8(48);
    for (int g = 0; g < 8; ++g) {
      const Vector high = load(block, 4 + g / 4);
      const int shift = 4 - 2 * (g % 4);
      const Vector at = shift >= 0 ? _mm256_slli_epi16(high, shift) : _mm256_srli_epi16(high, -shift);
      w[g] = _mm256_or_si256(w[g], _mm256_and_si256(at, bits));
    }
  }
}

// Sum over vectors [Begin, Begin + Count) of code * q, as 16-bit sums of pairs.
template <int Begin, int Count>
inline Vector pair_sums(const Vector w[8], const ActivationBlock& x) {
  Vector sum = _mm256_maddubs_epi16(w[Begin], four(x, Begin));
  for (int g = Begin + 1; g < Begin + Count; ++g) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[g], four(x, g)));
  return sum;
}

// Sum over the vectors of a half block (Half = 0, 1), multiplied by `by`: a 16-bit factor, twice in each lane.
template <Codes C, int Half>
inline Vector half_sum(const Vector w[8], const ActivationBlock& x, Vector by) {
  constexpr int kBegin = 4 * Half;
  if constexpr (C == Codes::U6) {
    return _mm256_add_epi32(_mm256_madd_epi16(pair_sums<kBegin, 2>(w, x), by),
                            _mm256_madd_epi16(pair_sums<kBegin + 2, 2>(w, x), by));
  } else {
    return _mm256_madd_epi16(pair_sums<kBegin, 4>(w, x), by);
  }
}

template <Codes C>
inline Vector whole_sum(const Vector w[8], const ActivationBlock& x, Vector ones) {
  if constexpr (C == Codes::U4) {
    const Vector pairs = _mm256_add_epi16(pair_sums<0, 4>(w, x), pair_sums<4, 4>(w, x));
    return _mm256_madd_epi16(pairs, ones);
  } else {
    return _mm256_add_epi32(half_sum<C, 0>(w, x, ones), half_sum<C, 1>(w, x, ones));
  }
}

inline __m256 add_whole(Vector sum, const BlockScales& by, const ActivationBlock& x, bool offset, __m256 acc) {
  const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(by.group[0].scale));
  acc = _mm256_fmadd_ps(product, _mm256_broadcast_ss(&x.scale), acc);
  return offset ? _mm256_fmadd_ps(_mm256_load_ps(by.group[0].offset), _mm256_broadcast_ss(&x.sum), acc) : acc;
}

inline __m256 add_halves(Vector first, Vector second, const BlockScales& by, const ActivationBlock& x, __m256 acc) {
  __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(first), _mm256_load_ps(by.group[0].scale));
  product = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second), _mm256_load_ps(by.group[1].scale), product);
  acc = _mm256_fmadd_ps(product, _mm256_broadcast_ss(&x.scale), acc);
  for (int half = 0; half < 2; ++half) {
    const __m256 sum = _mm256_set1_ps(x.scale * static_cast<float>(x.code_sum[half]));
    acc = _mm256_fmadd_ps(_mm256_load_ps(by.group[half].offset), sum, acc);
  }
  return acc;
}

// `sum` has the sub scales in it already, but not the zero point.
inline __m256 add_sub_scaled(Vector sum, const BlockSubScales& by, const ActivationBlock& x, __m256 acc) {
  int32_t code_sums;
  __builtin_memcpy(&code_sums, x.code_sum, sizeof code_sums);
  const Vector zero = *reinterpret_cast<const Vector*>(by.zero);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_set1_epi32(code_sums), zero));
  const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(by.scale));
  return _mm256_fmadd_ps(product, _mm256_broadcast_ss(&x.scale), acc);
}

inline Vector sub_scale(const BlockSubScales& by, int half) { return *reinterpret_cast<const Vector*>(by.sub[half]); }

template <Codes C, Grouping G, int T>
inline void unsigned_block(const std::byte* codes, const ScaleSegment& scales, int block,
                           const ActivationBlock* const* x, __m256* acc) {
  Vector w[8];
  unpack<C>(codes, w);
  const Vector ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const ActivationBlock& xb = x[t][block];
    if constexpr (G == Grouping::Whole) {
      acc[t] = add_whole(whole_sum<C>(w, xb, ones), scales.block[block], xb, true, acc[t]);
    } else if constexpr (G == Grouping::Halves) {
      acc[t] = add_halves(half_sum<C, 0>(w, xb, ones), half_sum<C, 1>(w, xb, ones), scales.block[block], xb, acc[t]);
    } else {
      const BlockSubScales& by = scales.sub[block];
      const Vector sum = _mm256_add_epi32(half_sum<C, 0>(w, xb, sub_scale(by, 0)), half_sum<C, 1>(w, xb, sub_scale(by, 1)));
      acc[t] = add_sub_scaled(sum, by, xb, acc[t]);
    }
  }
}

// Signed codes: |w| * (x with w's sign), widened at once.
template <int T>
inline void add_signed(const std::byte* codes, int begin, int end, const ActivationBlock* const* x, int block,
                       Vector by, Vector* sums) {
#pragma GCC unroll 8
  for (int g = begin; g < end; ++g) {
    const Vector w = load(codes, g), magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const Vector pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four(x[t][block], g), w));
      sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(pairs, by));
    }
  }
}

template <Grouping G, int T>
inline void signed_block(const std::byte* codes, const ScaleSegment& scales, int block,
                         const ActivationBlock* const* x, __m256* acc) {
  const Vector ones = _mm256_set1_epi16(1);
  const bool sub = G == Grouping::SubScaled;
  Vector first[T] = {}, second[T] = {};
  add_signed<T>(codes, 0, 4, x, block, sub ? sub_scale(scales.sub[block], 0) : ones, first);
  constexpr bool kApart = G == Grouping::Halves;
  add_signed<T>(codes, 4, 8, x, block, sub ? sub_scale(scales.sub[block], 1) : ones, kApart ? second : first);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const ActivationBlock& xb = x[t][block];
    if constexpr (G == Grouping::SubScaled) acc[t] = add_sub_scaled(first[t], scales.sub[block], xb, acc[t]);
    if constexpr (G == Grouping::Halves) acc[t] = add_halves(first[t], second[t], scales.block[block], xb, acc[t]);
    if constexpr (G == Grouping::Whole) acc[t] = add_whole(first[t], scales.block[block], xb, true, acc[t]);
    if constexpr (G == Grouping::WholeNoOffset) acc[t] = add_whole(first[t], scales.block[block], xb, false, acc[t]);
  }
}

// Adds `blocks` blocks of a panel times T rows to acc [T].
template <Codes C, Grouping G, int T>
inline void multiply_tile(const std::byte* codes, const ScaleSegment& scales, int blocks,
                          const ActivationBlock* const* x, __m256* acc) {
  constexpr size_t kCodeBytes = C == Codes::U4 ? 128 : C == Codes::U5 ? 160 : C == Codes::U6 ? 192 : 256;
  for (int block = 0; block < blocks; ++block, codes += kCodeBytes) {
    if constexpr (C == Codes::S8) {
      signed_block<G, T>(codes, scales, block, x, acc);
    } else {
      unsigned_block<C, G, T>(codes, scales, block, x, acc);
    }
  }
}

// Blocks [begin, begin + blocks) of a panel times n rows; sums of earlier blocks lie in strip[n][column...].
template <Codes C, Grouping G>
void multiply_segment(const std::byte* codes, const ScaleSegment& scales, int begin, int blocks,
                      const ActivationRows& x, int n_rows, StripRow* strip, int column) {
  for_tiles<kMostRows>(n_rows, [&]<int T>(std::integral_constant<int, T>, int first) {
    const ActivationBlock* rows[T];
    __m256 acc[T];
    for (int t = 0; t < T; ++t) {
      rows[t] = x.row(first + t) + begin;
      acc[t] = begin > 0 ? _mm256_load_ps(strip[first + t] + column) : _mm256_setzero_ps();
    }
    multiply_tile<C, G, T>(codes, scales, blocks, rows, acc);
    for (int t = 0; t < T; ++t) _mm256_store_ps(strip[first + t] + column, acc[t]);
  });
}

using MultiplySegment = void (*)(const std::byte*, const ScaleSegment&, int, int, const ActivationRows&, int,
                                 StripRow*, int);

// [codes][grouping]
constexpr MultiplySegment kMultiply[4][4] = {
    {multiply_segment<Codes::U4, Grouping::Whole>, nullptr, multiply_segment<Codes::U4, Grouping::Halves>,
     multiply_segment<Codes::U4, Grouping::SubScaled>},
    {multiply_segment<Codes::U5, Grouping::Whole>, nullptr, multiply_segment<Codes::U5, Grouping::Halves>,
     multiply_segment<Codes::U5, Grouping::SubScaled>},
    {multiply_segment<Codes::U6, Grouping::Whole>, nullptr, multiply_segment<Codes::U6, Grouping::Halves>,
     multiply_segment<Codes::U6, Grouping::SubScaled>},
    {multiply_segment<Codes::S8, Grouping::Whole>, multiply_segment<Codes::S8, Grouping::WholeNoOffset>,
     multiply_segment<Codes::S8, Grouping::Halves>, multiply_segment<Codes::S8, Grouping::SubScaled>},
};

void multiply_panel(const Matrix& matrix, MultiplySegment multiply, const ActivationRows& x, int n_rows, int panel,
                    StripRow* strip, int column) {
  ScaleSegment scales;
  for (int begin = 0; begin < matrix.blocks(); begin += kSegmentBlocks) {
    const int end = std::min(begin + kSegmentBlocks, matrix.blocks());
    expand_segment(matrix, panel, begin, end, scales);
    const std::byte* codes = matrix.panel_codes(panel) + matrix.block_code_bytes() * static_cast<size_t>(begin);
    multiply(codes, scales, begin, end - begin, x, n_rows, strip, column);
  }
}

void matmul_panels(const Matrix& matrix, const ActivationRows& x, int n_rows, int panel_begin, int panel_end,
                   float* out, size_t ld_out) {
  const MultiplySegment multiply =
      kMultiply[static_cast<int>(matrix.codes())][static_cast<int>(grouping_of(matrix))];
  for_strips(matrix, n_rows, panel_begin, panel_end, out, ld_out,
             [&](int row, int n, int first, int end, StripRow* strip) {
               const ActivationRows rows = x.from(row);
               for (int panel = first; panel < end; ++panel) {
                 multiply_panel(matrix, multiply, rows, n, panel, strip, (panel - first) * kPanelRows);
               }
             });
}

}  // namespace

const MatmulKernels kAvx2Matmul = {quantize_row_avx2, matmul_panels, matmul_panels_float_avx2};

}  // namespace corral
