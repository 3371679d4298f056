// Tiles of 4 weight rows by 1 to 8 rows of activations: a dot-product instruction multiplies 4 columns of 4 weight
// rows. Codes of all kinds fit signed bytes, so that those of less bits, once unpacked, are read as S8.
#include <arm_neon.h>

#include "fmatmul.h"
#include "matmul_scales.h"
#include "quantize.h"

namespace corral {
namespace {

constexpr int kMostRows = 8;
constexpr int kHalf = 4;  // weight rows of a vector: a panel is worked through in two halves

// Eight weight rows: what matmul_scales.h asks for.
struct Floats {
  float32x4_t low, high;

  static Floats convert(int16x8_t whole) {
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(whole))), vcvtq_f32_s32(vmovl_high_s16(whole))};
  }
  static Floats load_halves(const std::byte* from) {
    const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(from)));
    return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
  }
  static Floats load_signed(const std::byte* from) {
    return convert(vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(from))));
  }
  static uint8x8_t load_bytes(const std::byte* from) { return vld1_u8(reinterpret_cast<const uint8_t*>(from)); }
  static Floats convert(uint8x8_t bytes) { return convert(vreinterpretq_s16_u16(vmovl_u8(bytes))); }
  static Floats load_unsigned(const std::byte* from) { return convert(load_bytes(from)); }
  static Floats load_low(const std::byte* from) { return convert(vand_u8(load_bytes(from), vdup_n_u8(15))); }
  static Floats load_high(const std::byte* from) { return convert(vshr_n_u8(load_bytes(from), 4)); }
  static Floats set(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
  Floats operator*(Floats by) const { return {vmulq_f32(low, by.low), vmulq_f32(high, by.high)}; }
  Floats operator-() const { return {vnegq_f32(low), vnegq_f32(high)}; }
  void store(float* to) const {
    vst1q_f32(to, low);
    vst1q_f32(to + 4, high);
  }
};

// `to` with the bits `mask` of a plane moved up by so many bits, or down by -bits.
inline uint8x16_t with_bits(uint8x16_t to, uint8x16_t plane, int bits, int mask) {
  const uint8x16_t at = vshlq_u8(plane, vdupq_n_s8(static_cast<int8_t>(bits)));
  return vorrq_u8(to, vandq_u8(at, vdupq_n_u8(static_cast<uint8_t>(mask))));
}

// The 8 vectors of a block's codes for 4 rows, of T4 as the table has them; `from` is at the first of these rows.
template <Codes C>
inline void unpack(const std::byte* from, const int8_t* table, int8x16_t w[8]) {
  const auto plane = [from](int index) { return vld1q_u8(reinterpret_cast<const uint8_t*>(from) + 32 * index); };
  constexpr int kBits = code_bits(C), kLow = kBits & 4;
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    if constexpr (C == Codes::S8) {
      w[g] = vreinterpretq_s8_u8(plane(g));
      continue;
    }
    uint8x16_t code = vdupq_n_u8(0);
    if constexpr (kBits & 4) code = g < 4 ? vandq_u8(plane(g % 4), vdupq_n_u8(15)) : vshrq_n_u8(plane(g % 4), 4);
    if constexpr (kBits & 2) code = with_bits(code, plane(kLow + g / 4), kLow - 2 * (g % 4), 3 << kLow);
    if constexpr (kBits & 1) code = with_bits(code, plane(kBits - 1), kBits - 1 - g, 1 << (kBits - 1));
    w[g] = C == Codes::T4 ? vqtbl1q_s8(vld1q_s8(table), code) : vreinterpretq_s8_u8(code);
  }
}

// Codes unpacked to a byte each, laid out as S8: worth its pass where several tiles read a block.
using PlainBlock = int8_t[8][2][16];

template <Codes C>
inline void unpack_block(const std::byte* from, const int8_t* table, PlainBlock& to) {
  for (int half = 0; half < 2; ++half) {
    int8x16_t w[8];
    unpack<C>(from + 16 * half, table, w);
    for (int g = 0; g < 8; ++g) vst1q_s8(to[g][half], w[g]);
  }
}

// Sum of factor * code * q over a half block, 16 columns.
template <int Half>
inline int32x4_t half_sum(const int8x16_t w[8], const ActivationBlock& x, int32x4_t factors) {
  const int8x16_t q = vld1q_s8(x.q + 16 * Half);
  const int32x4_t zero = vdupq_n_s32(0);
  const int32x4_t first = vdotq_laneq_s32(vdotq_laneq_s32(zero, w[4 * Half], q, 0), w[4 * Half + 1], q, 1);
  const int32x4_t second = vdotq_laneq_s32(vdotq_laneq_s32(zero, w[4 * Half + 2], q, 2), w[4 * Half + 3], q, 3);
  return vmlaq_laneq_s32(vmulq_laneq_s32(first, factors, 2 * Half), second, factors, 2 * Half + 1);
}

// Adds a block of 4 weight rows, those from `row` on of the panel.
template <Grouping G>
inline float32x4_t add_block(const int8x16_t w[8], const BlockScales& by, int row, const ActivationBlock& x,
                             float32x4_t acc) {
  const int32x4_t factors = vmovl_s16(vld1_s16(x.whole));
  const int32x4_t first = half_sum<0>(w, x, factors), second = half_sum<1>(w, x, factors);
  const auto scale = [&](int group) { return vld1q_f32(by.group[group].scale + row); };
  const auto offset = [&](int group) { return vld1q_f32(by.group[group].offset + row); };
  if constexpr (G == Grouping::Halves) {
    const float32x4_t product =
        vfmaq_f32(vmulq_f32(vcvtq_f32_s32(first), scale(0)), vcvtq_f32_s32(second), scale(1));
    acc = vfmaq_n_f32(vfmaq_n_f32(acc, product, x.scale), offset(0), x.half_sum[0]);
    return vfmaq_n_f32(acc, offset(1), x.half_sum[1]);
  }
  acc = vfmaq_n_f32(acc, vmulq_f32(vcvtq_f32_s32(vaddq_s32(first, second)), scale(0)), x.scale);
  return G == Grouping::Whole ? vfmaq_n_f32(acc, offset(0), x.sum) : acc;
}

// Blocks [begin, begin + blocks) of 4 rows of a panel, from `row` on, times n rows; sums of earlier blocks lie in
// strip.rows[n][column...].
template <Codes C, Grouping G>
void multiply_half(const std::byte* codes, const ScaleSegment& scales, int row, int begin, int blocks,
                   const ActivationRows& x, int n_rows, const Strip& strip, int column) {
  for_tiles<kMostRows>(n_rows, [&]<int T>(std::integral_constant<int, T>, int first) {
    const ActivationBlock* rows[T];
    float32x4_t acc[T];
    for (int t = 0; t < T; ++t) {
      rows[t] = x.row(first + t) + begin;
      acc[t] = begin > 0 ? vld1q_f32(strip.rows[first + t] + column) : vdupq_n_f32(0);
      strip.fetch(first + t, column);
    }
    for (int block = 0; block < blocks; ++block) {
      int8x16_t w[8];
      unpack<C>(codes + block_bytes(C) * static_cast<size_t>(block), scales.table, w);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[t] = add_block<G>(w, scales.block[block], row, rows[t][block], acc[t]);
    }
    for (int t = 0; t < T; ++t) vst1q_f32(strip.rows[first + t] + column, acc[t]);
  });
}

template <Codes C, Grouping G>
void multiply_segment(const std::byte* codes, const ScaleSegment& scales, int begin, int blocks,
                      const ActivationRows& x, int n_rows, const Strip& strip, int column) {
  const auto multiply = [&]<Codes As>(const std::byte* from, std::integral_constant<Codes, As>) {
    for (int row = 0; row < kPanelRows; row += kHalf) {
      multiply_half<As, G>(from + 4 * row, scales, row, begin, blocks, x, n_rows, strip, column + row);
    }
  };
  if constexpr (C != Codes::S8) {
    if (n_rows > kMostRows) {
      alignas(16) PlainBlock plain[kSegmentBlocks];
      for (int block = 0; block < blocks; ++block) {
        unpack_block<C>(codes + block_bytes(C) * static_cast<size_t>(block), scales.table, plain[block]);
      }
      return multiply(reinterpret_cast<const std::byte*>(plain), std::integral_constant<Codes, Codes::S8>());
    }
  }
  multiply(codes, std::integral_constant<Codes, C>());
}

using MultiplySegment = void (*)(const std::byte*, const ScaleSegment&, int, int, const ActivationRows&, int,
                                 const Strip&, int);

template <Codes C>
MultiplySegment choose_grouping(Grouping grouping) {
  if (grouping == Grouping::Halves) return multiply_segment<C, Grouping::Halves>;
  if constexpr (is_signed(C)) {
    if (grouping == Grouping::WholeNoOffset) return multiply_segment<C, Grouping::WholeNoOffset>;
  }
  return multiply_segment<C, Grouping::Whole>;
}

MultiplySegment choose(const Matrix& matrix) {
  const Grouping grouping = grouping_of(matrix);
  return with_codes(matrix.codes(), [&]<Codes C>(std::integral_constant<Codes, C>) { return choose_grouping<C>(grouping); });
}

void multiply_panel(const Matrix& matrix, MultiplySegment multiply, const ActivationRows& x, int n_rows, int panel,
                    const Strip& strip, int column) {
  ScaleSegment scales;
  for (int begin = 0; begin < matrix.blocks(); begin += kSegmentBlocks) {
    const int end = std::min(begin + kSegmentBlocks, matrix.blocks());
    expand_segment_by<Floats>(matrix, panel, begin, end, scales);
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

const MatmulKernels kNeonMatmul = {Order::Quads, quantize_neon, matmul_panels, matmul_panels_float_neon};

}  // namespace corral
