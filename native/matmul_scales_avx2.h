// Expands the scales of some blocks of a panel from halves and bytes to what the kernels multiply by.
#pragma once

#include <immintrin.h>

#include "matmul_blocks.h"

namespace corral {
namespace {

inline __m256 load_halves(const std::byte* from) {
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
}
inline __m128i load_8_bytes(const std::byte* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); }
inline __m256 load_signed(const std::byte* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8_bytes(from)));
}
inline __m256 load_unsigned(const std::byte* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8_bytes(from)));
}
inline __m256 negative(__m256 x) { return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f)); }

// Blocks [begin, end) of a panel with a scale a group.
template <int Groups, bool Offset>
inline void expand_half_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  const __m256 zero = _mm256_set1_ps(static_cast<float>(matrix.zero()));
  const std::byte* at = scales + matrix.scale_bytes() * static_cast<size_t>(begin);
  for (int block = begin; block < end; ++block, ++to, at += matrix.scale_bytes()) {
    for (int group = 0; group < Groups; ++group) {
      const __m256 scale = load_halves(at + 16 * group);
      const __m256 offset = Offset ? load_halves(at + 16 * (Groups + group)) : negative(_mm256_mul_ps(zero, scale));
      _mm256_store_ps(to->group[group].scale, scale);
      _mm256_store_ps(to->group[group].offset, offset);
    }
  }
}

// Blocks [begin, end) with super-blocks; begin is a super-block's first.
template <int Groups, bool Offset>
inline void expand_super_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  constexpr int kBlocks = kSuper / kBlock;
  const __m256 zero = _mm256_set1_ps(static_cast<float>(matrix.zero()));
  const std::byte* super = scales + matrix.scale_bytes() * static_cast<size_t>(begin / kBlocks);
  for (int first = begin; first < end; first += kBlocks, super += matrix.scale_bytes()) {
    const __m256 super_scale = load_halves(super);
    const __m256 super_offset = Offset ? load_halves(super + 16) : _mm256_setzero_ps();
    const std::byte* sub = super + (Offset ? 32 : 16);
    for (int block = 0; block < kBlocks; ++block, ++to, sub += Groups * kPanelRows * (Offset ? 2 : 1)) {
      for (int group = 0; group < Groups; ++group) {
        const __m256 scale = _mm256_mul_ps(super_scale, load_signed(sub + kPanelRows * group));
        const __m256 offset = Offset ? _mm256_mul_ps(super_offset, load_unsigned(sub + kPanelRows * (Groups + group)))
                                     : _mm256_mul_ps(zero, scale);
        _mm256_store_ps(to->group[group].scale, scale);
        _mm256_store_ps(to->group[group].offset, negative(offset));
      }
    }
  }
}

template <int Groups>
inline void expand_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  switch (matrix.scales()) {
    case Scales::Half: return expand_half_scales<Groups, false>(matrix, scales, begin, end, to);
    case Scales::HalfOffset: return expand_half_scales<Groups, true>(matrix, scales, begin, end, to);
    case Scales::Super: return expand_super_scales<Groups, false>(matrix, scales, begin, end, to);
    case Scales::SuperOffset: return expand_super_scales<Groups, true>(matrix, scales, begin, end, to);
    case Scales::None: return;
  }
}

struct ScaleSegment {
  BlockScales block[kSegmentBlocks];
};

// Fills `to` for blocks [begin, end) of a panel, at most kSegmentBlocks of them.
inline void expand_segment(const Matrix& matrix, int panel, int begin, int end, ScaleSegment& to) {
  const std::byte* scales = matrix.panel_scales(panel);
  if (matrix.group() == 16) return expand_scales<2>(matrix, scales, begin, end, to.block);
  expand_scales<1>(matrix, scales, begin, end, to.block);
}

}  // namespace
}  // namespace corral
