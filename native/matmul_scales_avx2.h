// Scale expansion (matmul_scales.h) with AVX2.
#pragma once

#include <immintrin.h>

#include "matmul_prefetch.h"
#include "matmul_scales.h"

namespace corral {
namespace {

struct Floats {
  __m256 v;

  static __m128i load_bytes(const std::byte* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); }
  static Floats load_halves(const std::byte* from) {
    return {_mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  static Floats load_signed(const std::byte* from) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_bytes(from)))};
  }
  static Floats convert(__m128i bytes) { return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))}; }
  static Floats load_unsigned(const std::byte* from) { return convert(load_bytes(from)); }
  static Floats load_low(const std::byte* from) { return convert(_mm_and_si128(load_bytes(from), _mm_set1_epi8(15))); }
  static Floats load_high(const std::byte* from) {
    return convert(_mm_and_si128(_mm_srli_epi16(load_bytes(from), 4), _mm_set1_epi8(15)));
  }
  static Floats set(float value) { return {_mm256_set1_ps(value)}; }
  Floats operator*(Floats by) const { return {_mm256_mul_ps(v, by.v)}; }
  Floats operator-() const { return {_mm256_xor_ps(v, _mm256_set1_ps(-0.0f))}; }
  void store(float* to) const { _mm256_store_ps(to, v); }
};

// Fills `to` for blocks [begin, end) of a panel, and asks for the scales that lie `ahead` bytes further on.
inline void expand_segment(const Matrix& matrix, int panel, int begin, int end, size_t ahead, ScaleSegment& to) {
  const int unit = is_super(matrix.scales()) ? kSuper / kBlock : 1;
  const std::byte* scales = matrix.panel_scales(panel) + ahead;
  const std::byte* last = scales + matrix.scale_bytes() * static_cast<size_t>(end / unit);
  for (scales += matrix.scale_bytes() * static_cast<size_t>(begin / unit); scales < last; scales += kLine) {
    prefetch<kLine>(scales);
  }
  expand_segment_by<Floats>(matrix, panel, begin, end, to);
}

}  // namespace
}  // namespace corral
