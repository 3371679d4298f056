// Tiles of 8 weight rows by 1 to 6 rows of activations. A block of weights is unpacked once a tile.
#include <immintrin.h>

#include "matmul_scales_avx2.h"
#include "fmatmul.h"
#include "quantize.h"

namespace corral {
namespace {

// Of a tile: 6 half sums and 4 vectors of codes stay in registers, the rows' sums in the first cache.
constexpr int kMostRows = 6;
constexpr int kPlainRows = 9;  // from which unpacking beforehand pays

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

// Moved up by so many bits, or down by -bits.
inline Vector shifted(Vector v, int bits) {
  return bits >= 0 ? _mm256_slli_epi16(v, bits) : _mm256_srli_epi16(v, -bits);
}

// The 4 vectors of half a block's codes, of T4 as the table has them.
template <Codes C, int Half>
inline void unpack(const std::byte* block, const int8_t* table, Vector w[4]) {
  constexpr int kBits = code_bits(C), kLow = kBits & 4;
  for (int i = 0; i < 4; ++i) w[i] = _mm256_setzero_si256();
  if constexpr (kBits & 4) {
    for (int i = 0; i < 4; ++i) w[i] = _mm256_and_si256(shifted(load(block, i), -4 * Half), _mm256_set1_epi8(15));
  }
  if constexpr (kBits & 2) {
    const Vector pairs = load(block, kLow + Half), bits = _mm256_set1_epi8(3 << kLow);
    for (int i = 0; i < 4; ++i) w[i] = _mm256_or_si256(w[i], _mm256_and_si256(shifted(pairs, kLow - 2 * i), bits));
  }
  if constexpr (kBits & 1) {
    constexpr int kAt = kBits - 1;
    const Vector singles = load(block, kAt), bit = _mm256_set1_epi8(1 << kAt);
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm256_or_si256(w[i], _mm256_and_si256(shifted(singles, kAt - 4 * Half - i), bit));
    }
  }
  if constexpr (C == Codes::T4) {
    const Vector values = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    for (int i = 0; i < 4; ++i) w[i] = _mm256_shuffle_epi8(values, w[i]);
  }
}

// The factors of a half block, of an activation row in every lane: Order::Pairs has a group of columns for each.
inline Vector factors(const ActivationBlock& x, int half) {
  int32_t pair;
  __builtin_memcpy(&pair, x.whole + 2 * half, sizeof pair);
  return _mm256_set1_epi32(pair);
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
  acc = _mm256_fmadd_ps(_mm256_load_ps(by.group[0].offset), _mm256_broadcast_ss(&x.half_sum[0]), acc);
  return _mm256_fmadd_ps(_mm256_load_ps(by.group[1].offset), _mm256_broadcast_ss(&x.half_sum[1]), acc);
}

// Codes unpacked to a byte each, [block][vector]: worth its pass where several tiles read a block.
using PlainBlock = Vector[8];

// What multiply_tile reads: the panel's own planes, or blocks unpacked before.
enum class Source { Panel, Plain };

// Keeps the compiler from moving a sum's terms: it would gather them, and run out of registers.
template <class Sum>
inline void in_order(Sum& sum) {
  asm("" : "+x"(sum));
}

// Sum of factor * code * q over a half block. 16 bits hold the sums of four vectors of U5, of two of U6.
template <Codes C, int Half>
inline Vector half_sum(const Vector w[4], const ActivationBlock& x) {
  const auto product = [&](int i) { return _mm256_maddubs_epi16(w[i], four(x, 4 * Half + i)); };
  const Vector low = _mm256_add_epi16(product(0), product(1)), high = _mm256_add_epi16(product(2), product(3));
  const Vector by = factors(x, Half);
  if constexpr (C == Codes::U6) return _mm256_add_epi32(_mm256_madd_epi16(low, by), _mm256_madd_epi16(high, by));
  return _mm256_madd_epi16(_mm256_add_epi16(low, high), by);
}

// The half sums of T rows; `Add`: to what is in `sums`.
template <Codes C, Source S, int Half, bool Add, int T>
inline void unsigned_sums(const std::byte* codes, const ActivationBlock* const* x, int block, Vector* sums) {
  Vector w[4];
  if constexpr (S == Source::Panel) {
    unpack<C, Half>(codes, nullptr, w);
  } else {
    for (int i = 0; i < 4; ++i) w[i] = load(codes, 4 * Half + i);
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) {
    const Vector sum = half_sum<C, Half>(w, x[t][block]);
    sums[t] = Add ? _mm256_add_epi32(sums[t], sum) : sum;
    if constexpr (Half == 1 || C == Codes::U6) in_order(sums[t]);  // U6 keeps both
  }
}

// Signed codes: |w| * (x with w's sign), widened at once.
template <Codes C, Source S, int Half, bool Add, int T>
inline void signed_sums(const std::byte* codes, const int8_t* table, const ActivationBlock* const* x, int block,
                        Vector* sums) {
  constexpr bool kPacked = C == Codes::T4 && S == Source::Panel;
  Vector unpacked[4];
  if constexpr (kPacked) unpack<C, Half>(codes, table, unpacked);
#pragma GCC unroll 6
  for (int g = 4 * Half; g < 4 * Half + 4; ++g) {
    const Vector w = kPacked ? unpacked[g - 4 * Half] : load(codes, g), magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      const ActivationBlock& xb = x[t][block];
      const Vector pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four(xb, g), w));
      const Vector wide = _mm256_madd_epi16(pairs, factors(xb, Half));
      sums[t] = g == 4 * Half && !Add ? wide : _mm256_add_epi32(sums[t], wide);
      in_order(sums[t]);
    }
  }
}

// Adds a block of a panel times T rows: half by half for all the rows, so that what is in hand stays in registers and
// a sum is there when it is wanted.
template <Codes C, Source S, Grouping G, int T>
inline void multiply_block(const std::byte* codes, const ScaleSegment& scales, int block,
                           const ActivationBlock* const* x, __m256* acc) {
  constexpr bool kWhole = G != Grouping::Halves;
  Vector first[T], halves[T], *second = kWhole ? first : halves;
  if constexpr (is_signed(C)) {
    signed_sums<C, S, 0, false, T>(codes, scales.table, x, block, first);
    signed_sums<C, S, 1, kWhole, T>(codes, scales.table, x, block, second);
  } else {
    unsigned_sums<C, S, 0, false, T>(codes, x, block, first);
    unsigned_sums<C, S, 1, kWhole, T>(codes, x, block, second);
  }
  const BlockScales& by = scales.block[block];
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) {
    const ActivationBlock& xb = x[t][block];
    if constexpr (kWhole) {
      acc[t] = add_whole(first[t], by, xb, G == Grouping::Whole, acc[t]);
    } else {
      acc[t] = add_halves(first[t], second[t], by, xb, acc[t]);
      in_order(acc[t]);
    }
  }
}

// Adds `blocks` blocks of a panel times T rows to acc [T].
template <Codes C, Source S, Grouping G, int T>
inline void multiply_tile(const std::byte* codes, const ScaleSegment& scales, int blocks,
                          const ActivationBlock* const* x, Ahead ahead, __m256* acc) {
  constexpr size_t kStride = S == Source::Plain ? sizeof(PlainBlock) : block_bytes(C);
  for (int block = 0; block < blocks; ++block, codes += kStride) {
    ahead.fetch<block_bytes(C)>();
    multiply_block<C, S, G, T>(codes, scales, block, x, acc);
  }
}

// Blocks [begin, begin + blocks) of a panel, whose codes lie in it at `packed`, times n rows; sums of earlier blocks lie
// in strip.rows[n][column...].
template <Codes C, Grouping G, Source S>
void multiply_tiles(const std::byte* codes, const std::byte* packed, const ScaleSegment& scales, int begin, int blocks,
                    const ActivationRows& x, int n_rows, const Strip& strip, int column) {
  const Shares<block_bytes(C)> shares(packed + kAhead, blocks, n_rows);
  for_tiles<kMostRows>(n_rows, [&]<int T>(std::integral_constant<int, T>, int first) {
    const ActivationBlock* rows[T];
    __m256 acc[T];
    for (int t = 0; t < T; ++t) {
      rows[t] = x.row(first + t) + begin;
      acc[t] = begin > 0 ? _mm256_load_ps(strip.rows[first + t] + column) : _mm256_setzero_ps();
      strip.fetch(first + t, column);
    }
    multiply_tile<C, S, G, T>(codes, scales, blocks, rows, shares.of(first, T), acc);
    for (int t = 0; t < T; ++t) _mm256_store_ps(strip.rows[first + t] + column, acc[t]);
  });
}

template <Codes C, Grouping G>
void multiply_segment(const std::byte* codes, const ScaleSegment& scales, int begin, int blocks,
                      const ActivationRows& x, int n_rows, const Strip& strip, int column) {
  if constexpr (C != Codes::S8) {
    if (n_rows >= kPlainRows) {
      PlainBlock plain[kSegmentBlocks];
      for (int block = 0; block < blocks; ++block) {
        unpack<C, 0>(codes + block * block_bytes(C), scales.table, plain[block]);
        unpack<C, 1>(codes + block * block_bytes(C), scales.table, plain[block] + 4);
      }
      const auto* bytes = reinterpret_cast<const std::byte*>(plain);
      return multiply_tiles<C, G, Source::Plain>(bytes, codes, scales, begin, blocks, x, n_rows, strip, column);
    }
  }
  multiply_tiles<C, G, Source::Panel>(codes, codes, scales, begin, blocks, x, n_rows, strip, column);
}

using MultiplySegment = void (*)(const std::byte*, const ScaleSegment&, int, int, const ActivationRows&, int,
                                 const Strip&, int);

// By Grouping.
template <Codes C>
constexpr MultiplySegment kNoOffset = is_signed(C) ? multiply_segment<C, Grouping::WholeNoOffset> : nullptr;
template <Codes C>
constexpr MultiplySegment kMultiply[3] = {multiply_segment<C, Grouping::Whole>, kNoOffset<C>,
                                          multiply_segment<C, Grouping::Halves>};

MultiplySegment choose(const Matrix& matrix) {
  const auto grouping = static_cast<int>(grouping_of(matrix));
  return with_codes(matrix.codes(), [&]<Codes C>(std::integral_constant<Codes, C>) { return kMultiply<C>[grouping]; });
}

void multiply_panel(const Matrix& matrix, MultiplySegment multiply, const ActivationRows& x, int n_rows, int panel,
                    const Strip& strip, int column) {
  ScaleSegment scales;
  for (int begin = 0; begin < matrix.blocks(); begin += kSegmentBlocks) {
    const int end = std::min(begin + kSegmentBlocks, matrix.blocks());
    expand_segment(matrix, panel, begin, end, kAhead, scales);
    const std::byte* codes = matrix.panel_codes(panel) + matrix.block_code_bytes() * static_cast<size_t>(begin);
    multiply(codes, scales, begin, end - begin, x, n_rows, strip, column);
  }
}

void matmul_panels(const Matrix& matrix, const ActivationRows& x, int n_rows, int panel_begin, int panel_end,
                   float* out, size_t ld_out) {
  const MultiplySegment multiply = choose(matrix);
  for_strips(matrix, n_rows, panel_begin, panel_end, out, ld_out,
             [&](int row, int n, int first, int end, const Strip& strip) {
               const ActivationRows rows = x.from(row);
               for (int panel = first; panel < end; ++panel) {
                 multiply_panel(matrix, multiply, rows, n, panel, strip, (panel - first) * kPanelRows);
               }
             });
}

}  // namespace

const MatmulKernels kAvx2Matmul = {Order::Pairs, quantize_avx2<Order::Pairs>, matmul_panels, matmul_panels_float_avx2};

}  // namespace corral
