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
  const int8_t* table;  // of T4
  const std::byte* codes[2];
  const ScaleSegment* scales[2];
  size_t ahead;  // how far on to prefetch
};

// The same place of the next pair; in long panels, somewhat further on.
size_t ahead_of(const Matrix& matrix) {
  const size_t pair = 2 * matrix.bytes() / static_cast<size_t>(matrix.panels());
  return pair <= 4 * kAhead ? pair : kAhead;
}

// Moved up by so many bits, or down by -bits.
inline Vector shifted(Vector v, int bits) {
  return bits >= 0 ? _mm512_slli_epi16(v, bits) : _mm512_srli_epi16(v, -bits);
}

// The 8 vectors of a block's codes, unsigned: signed ones moved up by 128.
template <Codes C>
inline void unpack(const std::byte* low, const std::byte* high, const int8_t* table, Vector w[8]) {
  const auto plane = [&](int index) { return join(low + 32 * index, high + 32 * index); };
  constexpr int kBits = code_bits(C), kLow = kBits & 4;
  if constexpr (C == Codes::S8) {
    for (int g = 0; g < 8; ++g) w[g] = _mm512_xor_si512(plane(g), _mm512_set1_epi8(-128));
    return;
  }
  for (int g = 0; g < 8; ++g) w[g] = _mm512_setzero_si512();
  if constexpr (kBits & 4) {
    const Vector nibble = _mm512_set1_epi8(15);
    for (int g = 0; g < 4; ++g) {
      const Vector both = plane(g);
      w[g] = _mm512_and_si512(both, nibble);
      w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
  }
  constexpr int kOr = 0xf8;  // ternary logic: a | (b & c)
  if constexpr (kBits & 2) {
    const Vector pairs[2] = {plane(kLow), plane(kLow + 1)}, bits = _mm512_set1_epi8(3 << kLow);
    for (int g = 0; g < 8; ++g) {
      w[g] = _mm512_ternarylogic_epi32(w[g], shifted(pairs[g / 4], kLow - 2 * (g % 4)), bits, kOr);
    }
  }
  if constexpr (kBits & 1) {
    const Vector singles = plane(kBits - 1), bit = _mm512_set1_epi8(1 << (kBits - 1));
    for (int g = 0; g < 8; ++g) w[g] = _mm512_ternarylogic_epi32(w[g], shifted(singles, kBits - 1 - g), bit, kOr);
  }
  if constexpr (C == Codes::T4) {
    const Vector values = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    const Vector moved = _mm512_xor_si512(values, _mm512_set1_epi8(-128));
    for (int g = 0; g < 8; ++g) w[g] = _mm512_shuffle_epi8(moved, w[g]);
  }
}

// start + sum of factor * code * q over groups [Begin, Begin + 2) of 8 columns: whole numbers below 2^24, exact.
template <int Begin>
inline __m512 add_groups(const Vector w[8], const ActivationBlock& x, __m512 start) {
  for (int group = Begin; group < Begin + 2; ++group) {
    Vector sum = _mm512_setzero_si512();
    for (int g = 2 * group; g < 2 * group + 2; ++g) {
      sum = _mm512_dpbusd_epi32(sum, w[g], _mm512_set1_epi32(load_int(x.q + 4 * g)));
    }
    start = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(x.factor[group]), start);
  }
  return start;
}

// A block's scales and offsets of both panels.
inline __m512 scales_of(const Pair& pair, int block, int group) {
  return join_floats(pair.scales[0]->block[block].group[group].scale, pair.scales[1]->block[block].group[group].scale);
}
inline __m512 offsets_of(const Pair& pair, int block, int group) {
  return join_floats(pair.scales[0]->block[block].group[group].offset,
                     pair.scales[1]->block[block].group[group].offset);
}

template <Codes C, bool Offset>
struct Whole {
  __m512 scale, offset;

  Whole(const Pair& pair, int block) : scale(scales_of(pair, block, 0)), offset(offsets_of(pair, block, 0)) {}

  __m512 add(const Vector w[8], const ActivationBlock& x, __m512 acc) const {
    const __m512 start = is_signed(C) ? _mm512_set1_ps(x.moved) : _mm512_setzero_ps();
    const __m512 sum = add_groups<2>(w, x, add_groups<0>(w, x, start));
    acc = _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), _mm512_set1_ps(x.scale), acc);
    return Offset ? _mm512_fmadd_ps(offset, _mm512_set1_ps(x.sum), acc) : acc;
  }
};

template <Codes C>
struct Halves {
  __m512 scale[2], offset[2];

  Halves(const Pair& pair, int block) {
    for (int half = 0; half < 2; ++half) {
      scale[half] = scales_of(pair, block, half);
      offset[half] = offsets_of(pair, block, half);
    }
  }

  __m512 add(const Vector w[8], const ActivationBlock& x, __m512 acc) const {
    const __m512 first = add_groups<0>(w, x, is_signed(C) ? moved(x, 0) : _mm512_setzero_ps());
    const __m512 second = add_groups<2>(w, x, is_signed(C) ? moved(x, 1) : _mm512_setzero_ps());
    const __m512 product = _mm512_fmadd_ps(second, scale[1], _mm512_mul_ps(first, scale[0]));
    acc = _mm512_fmadd_ps(product, _mm512_set1_ps(x.scale), acc);
    acc = _mm512_fmadd_ps(offset[0], _mm512_set1_ps(x.half_sum[0]), acc);
    return _mm512_fmadd_ps(offset[1], _mm512_set1_ps(x.half_sum[1]), acc);
  }

  // What unpack's 128 has added to a half; rare enough to be summed here.
  static __m512 moved(const ActivationBlock& x, int half) {
    int sum = 0;
    for (int k = 16 * half; k < 16 * half + 16; ++k) sum += x.q[k] * x.whole[k / kActivationGroup];
    return _mm512_set1_ps(-128.0f * static_cast<float>(sum));
  }
};

template <Codes C, class Scaling, int T>
inline void multiply_tile(const Pair& pair, int blocks, const ActivationBlock* const* x, Ahead low_ahead,
                          Ahead high_ahead, __m512* acc) {
  const std::byte *low = pair.codes[0], *high = pair.codes[1];
  for (int block = 0; block < blocks; ++block, low += block_bytes(C), high += block_bytes(C)) {
    Vector w[8];
    low_ahead.fetch<block_bytes(C)>();
    high_ahead.fetch<block_bytes(C)>();
    unpack<C>(low, high, pair.table, w);
    const Scaling scaling(pair, block);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[t] = scaling.add(w, x[t][block], acc[t]);
  }
}

// Blocks [begin, begin + blocks) of a pair times n rows; sums of earlier blocks lie in strip.rows[n][column...].
template <Codes C, class Scaling>
void multiply_segment(const Pair& pair, int begin, int blocks, const ActivationRows& x, int n_rows, const Strip& strip,
                      int column) {
  const Shares<block_bytes(C)> low(pair.codes[0] + pair.ahead, blocks, n_rows);
  const Shares<block_bytes(C)> high(pair.codes[1] + pair.ahead, blocks, n_rows);
  for_tiles<kMostRows>(n_rows, [&]<int T>(std::integral_constant<int, T>, int first) {
    const ActivationBlock* rows[T];
    __m512 acc[T];
    for (int t = 0; t < T; ++t) {
      rows[t] = x.row(first + t) + begin;
      acc[t] = begin > 0 ? _mm512_load_ps(strip.rows[first + t] + column) : _mm512_setzero_ps();
      strip.fetch(first + t, column);
    }
    multiply_tile<C, Scaling, T>(pair, blocks, rows, low.of(first, T), high.of(first, T), acc);
    for (int t = 0; t < T; ++t) _mm512_store_ps(strip.rows[first + t] + column, acc[t]);
  });
}

using MultiplySegment = void (*)(const Pair&, int, int, const ActivationRows&, int, const Strip&, int);

template <Codes C>
constexpr MultiplySegment multiply_for(Grouping grouping) {
  switch (grouping) {
    case Grouping::Whole: return multiply_segment<C, Whole<C, true>>;
    case Grouping::WholeNoOffset: return multiply_segment<C, Whole<C, false>>;
    case Grouping::Halves: return multiply_segment<C, Halves<C>>;
  }
  return nullptr;
}

MultiplySegment choose(const Matrix& matrix) {
  const Grouping grouping = grouping_of(matrix);
  return with_codes(matrix.codes(), [&]<Codes C>(std::integral_constant<Codes, C>) { return multiply_for<C>(grouping); });
}

// A last panel without a neighbour stands for its own: its second result is not stored.
void multiply_pair(const Matrix& matrix, MultiplySegment multiply, const ActivationRows& x, int n_rows,
                   const int (&panels)[2], const Strip& strip, int column) {
  ScaleSegment scales[2];
  Pair pair{.table = matrix.table(), .codes = {}, .scales = {}, .ahead = ahead_of(matrix)};
  for (int begin = 0; begin < matrix.blocks(); begin += kSegmentBlocks) {
    const int end = std::min(begin + kSegmentBlocks, matrix.blocks());
    for (int half = 0; half < 2; ++half) {
      expand_segment(matrix, panels[half], begin, end, pair.ahead, scales[half]);
      pair.scales[half] = &scales[half];
      pair.codes[half] = matrix.panel_codes(panels[half]) + matrix.block_code_bytes() * static_cast<size_t>(begin);
    }
    multiply(pair, begin, end - begin, x, n_rows, strip, column);
  }
}

void matmul_panels(const Matrix& matrix, const ActivationRows& x, int n_rows, int panel_begin, int panel_end,
                   float* out, size_t ld_out) {
  const MultiplySegment multiply = choose(matrix);
  for_strips(matrix, n_rows, panel_begin, panel_end, out, ld_out,
             [&](int row, int n, int first, int end, const Strip& strip) {
               const ActivationRows rows = x.from(row);
               for (int panel = first; panel < end; panel += 2) {
                 const int panels[2] = {panel, std::min(panel + 1, end - 1)};
                 multiply_pair(matrix, multiply, rows, n, panels, strip, (panel - first) * kPanelRows);
               }
             });
}

}  // namespace

const MatmulKernels kAvx512VnniMatmul = {Order::Quads, quantize_avx2<Order::Quads>, matmul_panels, matmul_panels_float_avx2};

}  // namespace corral
