// Tiles of two panels (16 weight rows) by 1 to 8 rows of activations: the sums of products that AVX2 takes apart to
// fit 16 bits come here from vpdpbusd, whole.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 warns of its own intrinsics
#endif
#include <immintrin.h>

#include "fmatmul.h"
#include "matmul_scales_avx2.h"
#include "quantize.h"

namespace corral {
namespace {

constexpr int kMostRows = 8;

using Vector = __m512i;

// The same vector of both panels.
inline Vector join(const void* low, const void* high) {
  const Vector first = _mm512_castsi256_si512(_mm256_load_si256(static_cast<const __m256i*>(low)));
  return _mm512_inserti64x4(first, _mm256_load_si256(static_cast<const __m256i*>(high)), 1);
}
inline __m512 join_floats(const float* low, const float* high) { return _mm512_castsi512_ps(join(low, high)); }

inline int32_t load_int(const void* from) {
  int32_t value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

// A pair of panels' codes and scales from some block on.
struct Pair {
  const std::byte* codes[2];
  const ScaleSegment* scales[2];
};

// The 8 vectors of a block's codes, unsigned: those of S8 moved up by 128.
template <Codes C>
inline void unpack(const std::byte* low, const std::byte* high, Vector w[8]) {
  const auto plane = [&](int index) { return join(low + 32 * index, high + 32 * index); };
  if constexpr (C == Codes::S8) {
    for (int g = 0; g < 8; ++g) w[g] = _mm512_xor_si512(plane(g), _mm512_set1_epi8(-128));
    return;
  }
  const Vector nibble = _mm512_set1_epi8(15);
  for (int g = 0; g < 4; ++g) {
    const Vector both = plane(g);
    w[g] = _mm512_and_si512(both, nibble);
    w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
  }
  constexpr int kOr = 0xf8;  // ternary logic: a | (b & c)
  if constexpr (C == Codes::U5) {
    const Vector bits = plane(4), bit = _mm512_set1_epi8(16);
    for (int g = 0; g < 8; ++g) {
      const Vector at = g < 4 ? _mm512_slli_epi16(bits, 4 - g) : _mm512_srli_epi16(bits, g - 4);
      w[g] = _mm512_ternarylogic_epi32(w[g], at, bit, kOr);
    }
  }
  if constexpr (C == Codes::U6) {
    const Vector pairs[2] = {plane(4), plane(5)}, bits = _mm512_set1_epi8(48);
    for (int g = 0; g < 8; ++g) {
      const int shift = 4 - 2 * (g % 4);
      const Vector at = shift >= 0 ? _mm512_slli_epi16(pairs[g / 4], shift) : _mm512_srli_epi16(pairs[g / 4], -shift);
      w[g] = _mm512_ternarylogic_epi32(w[g], at, bits, kOr);
    }
  }
}

// Sum of (code - zero) * q over a half block.
template <Codes C, int Half>
inline Vector half_sum(const Vector w[8], const ActivationBlock& x, int zero = 0) {
  if constexpr (C == Codes::S8) zero += 128;  // as far as unpack moved them
  Vector sum = _mm512_setzero_si512();
  if (C == Codes::S8 || zero != 0) {
    const int factor = Half == 0 ? -zero & 0xffff : -zero * 65536;  // beside 0, for the pair of code sums
    sum = _mm512_dpwssd_epi32(sum, _mm512_set1_epi32(load_int(x.code_sum)), _mm512_set1_epi32(factor));
  }
  for (int g = 4 * Half; g < 4 * Half + 4; ++g) {
    sum = _mm512_dpbusd_epi32(sum, w[g], _mm512_set1_epi32(load_int(x.q + 4 * g)));
  }
  return sum;
}

struct WholeScales {
  __m512 scale, offset;

  WholeScales(const Pair& pair, int block, int group = 0)
      : scale(join_floats(at(pair, 0, block, group).scale, at(pair, 1, block, group).scale)),
        offset(join_floats(at(pair, 0, block, group).offset, at(pair, 1, block, group).offset)) {}

  static const BlockScales::Group& at(const Pair& pair, int half, int block, int group) {
    return pair.scales[half]->block[block].group[group];
  }
};

// The two halves' sums by the scales of the activations.
inline __m512 join_halves(Vector first, Vector second, const ActivationBlock& x) {
  const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(first), _mm512_set1_ps(x.scale[0]));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), _mm512_set1_ps(x.scale[1]), product);
}

template <Codes C, bool Offset>
struct Whole {
  WholeScales by;

  Whole(const Pair& pair, int block, int) : by(pair, block) {}

  __m512 add(const Vector w[8], const ActivationBlock& x, __m512 acc) const {
    acc = _mm512_fmadd_ps(join_halves(half_sum<C, 0>(w, x), half_sum<C, 1>(w, x), x), by.scale, acc);
    return Offset ? _mm512_fmadd_ps(by.offset, _mm512_set1_ps(x.sum), acc) : acc;
  }
};

template <Codes C>
struct Halves {
  WholeScales by[2];

  Halves(const Pair& pair, int block, int) : by{{pair, block, 0}, {pair, block, 1}} {}

  __m512 add(const Vector w[8], const ActivationBlock& x, __m512 acc) const {
    const Vector sums[2] = {half_sum<C, 0>(w, x), half_sum<C, 1>(w, x)};
    for (int half = 0; half < 2; ++half) {
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[half]), by[half].scale);
      acc = _mm512_fmadd_ps(product, _mm512_set1_ps(x.scale[half]), acc);
    }
    for (int half = 0; half < 2; ++half) {
      const __m512 sum = _mm512_set1_ps(x.scale[half] * static_cast<float>(x.code_sum[half]));
      acc = _mm512_fmadd_ps(by[half].offset, sum, acc);
    }
    return acc;
  }
};

template <Codes C>
struct SubScaled {
  Vector sub[2];
  __m512 scale;
  int zero;

  SubScaled(const Pair& pair, int block, int zero_point) : zero(zero_point) {
    const BlockSubScales &low = pair.scales[0]->sub[block], &high = pair.scales[1]->sub[block];
    for (int half = 0; half < 2; ++half) sub[half] = _mm512_srai_epi32(join(low.sub[half], high.sub[half]), 16);
    scale = join_floats(low.scale, high.scale);
  }

  __m512 add(const Vector w[8], const ActivationBlock& x, __m512 acc) const {
    const Vector first = _mm512_mullo_epi32(half_sum<C, 0>(w, x, zero), sub[0]);
    const Vector second = _mm512_mullo_epi32(half_sum<C, 1>(w, x, zero), sub[1]);
    return _mm512_fmadd_ps(join_halves(first, second, x), scale, acc);
  }
};

template <Codes C, class Scaling, int T>
inline void multiply_tile(const Pair& pair, int blocks, int zero, const ActivationBlock* const* x, __m512* acc) {
  constexpr size_t kCodeBytes = C == Codes::U4 ? 128 : C == Codes::U5 ? 160 : C == Codes::U6 ? 192 : 256;
  const std::byte *low = pair.codes[0], *high = pair.codes[1];
  for (int block = 0; block < blocks; ++block, low += kCodeBytes, high += kCodeBytes) {
    Vector w[8];
    unpack<C>(low, high, w);
    const Scaling scaling(pair, block, zero);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[t] = scaling.add(w, x[t][block], acc[t]);
  }
}

// Blocks [begin, begin + blocks) of a pair times n rows; sums of earlier blocks lie in strip[n][column...].
template <Codes C, class Scaling>
void multiply_segment(const Pair& pair, int begin, int blocks, int zero, const ActivationRows& x, int n_rows,
                      StripRow* strip, int column) {
  for_tiles<kMostRows>(n_rows, [&]<int T>(std::integral_constant<int, T>, int first) {
    const ActivationBlock* rows[T];
    __m512 acc[T];
    for (int t = 0; t < T; ++t) {
      rows[t] = x.row(first + t) + begin;
      acc[t] = begin > 0 ? _mm512_load_ps(strip[first + t] + column) : _mm512_setzero_ps();
    }
    multiply_tile<C, Scaling, T>(pair, blocks, zero, rows, acc);
    for (int t = 0; t < T; ++t) _mm512_store_ps(strip[first + t] + column, acc[t]);
  });
}

using MultiplySegment = void (*)(const Pair&, int, int, int, const ActivationRows&, int, StripRow*, int);

template <Codes C>
constexpr MultiplySegment multiply_for(Grouping grouping) {
  switch (grouping) {
    case Grouping::Whole: return multiply_segment<C, Whole<C, true>>;
    case Grouping::WholeNoOffset: return multiply_segment<C, Whole<C, false>>;
    case Grouping::Halves: return multiply_segment<C, Halves<C>>;
    case Grouping::SubScaled: return multiply_segment<C, SubScaled<C>>;
  }
  return nullptr;
}

MultiplySegment choose(const Matrix& matrix) {
  const Grouping grouping = grouping_of(matrix);
  switch (matrix.codes()) {
    case Codes::U4: return multiply_for<Codes::U4>(grouping);
    case Codes::U5: return multiply_for<Codes::U5>(grouping);
    case Codes::U6: return multiply_for<Codes::U6>(grouping);
    default: return multiply_for<Codes::S8>(grouping);
  }
}

// A last panel without a neighbour stands for its own: its second result is not stored.
void multiply_pair(const Matrix& matrix, MultiplySegment multiply, const ActivationRows& x, int n_rows,
                   const int (&panels)[2], StripRow* strip, int column) {
  ScaleSegment scales[2];
  Pair pair;
  for (int begin = 0; begin < matrix.blocks(); begin += kSegmentBlocks) {
    const int end = std::min(begin + kSegmentBlocks, matrix.blocks());
    for (int half = 0; half < 2; ++half) {
      expand_segment(matrix, panels[half], begin, end, scales[half]);
      pair.scales[half] = &scales[half];
      pair.codes[half] = matrix.panel_codes(panels[half]) + matrix.block_code_bytes() * static_cast<size_t>(begin);
    }
    multiply(pair, begin, end - begin, matrix.zero(), x, n_rows, strip, column);
  }
}

void matmul_panels(const Matrix& matrix, const ActivationRows& x, int n_rows, int panel_begin, int panel_end,
                   float* out, size_t ld_out) {
  const MultiplySegment multiply = choose(matrix);
  for_strips(matrix, n_rows, panel_begin, panel_end, out, ld_out,
             [&](int row, int n, int first, int end, StripRow* strip) {
               const ActivationRows rows = x.from(row);
               for (int panel = first; panel < end; panel += 2) {
                 const int panels[2] = {panel, std::min(panel + 1, end - 1)};
                 multiply_pair(matrix, multiply, rows, n, panels, strip, (panel - first) * kPanelRows);
               }
             });
}

}  // namespace

const MatmulKernels kAvx512VnniMatmul = {quantize_row_avx2, matmul_panels, matmul_panels_float_avx2};

}  // namespace corral
