#include <immintrin.h>

#include <limits>

#include "quantize.h"

namespace corral {
namespace {

__m128i load_magnitudes(const float* x) {
  const __m128i magnitude = _mm_set1_epi32(0x7fffffff);
  const auto* from = reinterpret_cast<const __m128i*>(x);
  const __m128i low = _mm_and_si128(_mm_loadu_si128(from), magnitude);
  return _mm_max_epi32(low, _mm_and_si128(_mm_loadu_si128(from + 1), magnitude));
}

// The largest magnitude of each group of 8, compared as integers, so that a NaN wins.
__m128 largest_of_groups(const float* x) {
  const __m128i a = load_magnitudes(x), b = load_magnitudes(x + 8);
  const __m128i c = load_magnitudes(x + 16), d = load_magnitudes(x + 24);
  const __m128i ab = _mm_max_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
  const __m128i cd = _mm_max_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
  return _mm_castsi128_ps(_mm_max_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)));
}

float largest(__m128 groups) {
  __m128i bits = _mm_castps_si128(groups);
  bits = _mm_max_epi32(bits, _mm_shuffle_epi32(bits, 0x4e));
  bits = _mm_max_epi32(bits, _mm_shuffle_epi32(bits, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(bits));
}

__m256i quantize_group(const float* x, __m128 inverses, int group) {
  const __m256 by = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(inverses), _mm256_set1_epi32(group));
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + kActivationGroup * group), by));
}

__m256i quantize_codes(const float* x, __m128 inverses) {
  const __m256i low = _mm256_packs_epi32(quantize_group(x, inverses, 0), quantize_group(x, inverses, 1));
  const __m256i high = _mm256_packs_epi32(quantize_group(x, inverses, 2), quantize_group(x, inverses, 3));
  const __m256i codes = _mm256_packs_epi16(low, high);  // lanes of 4 codes, in the order 0 2 4 6 1 3 5 7
  return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Sums of factor * q, in the first lane of each half of the result.
__m256i sum_halves(__m256i codes, __m128i whole) {
  const __m128i pairs = _mm_or_si128(whole, _mm_slli_epi32(whole, 16));
  const __m256i factors =
      _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(pairs), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
  __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), factors);
  sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4e));
  return _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0xb1));
}

void quantize_usable_block(const float* x, __m128 groups, float top, ActivationBlock& block) {
  const __m128 shares = _mm_mul_ps(groups, _mm_set1_ps(static_cast<float>(kMostFactor) / top));
  const __m128 most = _mm_set1_ps(static_cast<float>(kMostFactor));
  const __m128 factors = _mm_min_ps(_mm_max_ps(_mm_ceil_ps(shares), _mm_set1_ps(1.0f)), most);
  const __m128i whole = _mm_cvtps_epi32(factors);
  const __m256i codes = quantize_codes(x, _mm_div_ps(_mm_set1_ps(kSteps / top), factors));
  const __m256i sums = sum_halves(codes, whole);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.q), codes);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(block.whole), _mm_packs_epi32(whole, whole));
  _mm_storeu_ps(block.factor, factors);
  block.scale = top / kSteps;
  const int first = _mm256_cvtsi256_si32(sums), second = _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1));
  block.half_sum[0] = block.scale * static_cast<float>(first);
  block.half_sum[1] = block.scale * static_cast<float>(second);
  block.sum = block.scale * static_cast<float>(first + second);
  block.moved = -128.0f * static_cast<float>(first + second);
}

void order_in_pairs(int8_t* q) {
  const __m256i halves = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,  //
                                          0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  auto* at = reinterpret_cast<__m256i*>(q);
  _mm256_storeu_si256(at, _mm256_shuffle_epi8(_mm256_loadu_si256(at), halves));
}

}  // namespace

template <Order O>
void quantize_avx2(const float* x, int blocks, const ActivationRows& to, int n, int first) {
  ActivationBlock* row = to.row(n) + first;
  for (int block = 0; block < blocks; ++block, ++row, x += kBlock) {
    const __m128 groups = largest_of_groups(x);
    const float top = largest(groups);
    if (top >= kLeastMaximum && top <= std::numeric_limits<float>::max()) {
      quantize_usable_block(x, groups, top, *row);
    } else {
      quantize_block(x, *row);
    }
    if constexpr (O == Order::Pairs) order_in_pairs(row->q);
  }
}

template void quantize_avx2<Order::Quads>(const float*, int, const ActivationRows&, int, int);
template void quantize_avx2<Order::Pairs>(const float*, int, const ActivationRows&, int, int);

}  // namespace corral
