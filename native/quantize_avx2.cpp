#include <immintrin.h>

#include "quantize.h"

namespace corral {
namespace {

float largest(__m256 x, __m256 y) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const __m256i bits = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(x), magnitude),
                                        _mm256_and_si256(_mm256_castps_si256(y), magnitude));  // so that a NaN wins
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(half));
}

// Sums of the 16 codes in each half: [0] and [1] of the result's low 16 bits of 32.
void sum_halves(__m256i codes, int16_t sums[2]) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
  __m256i sum = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4e));
  sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0xb1));
  sums[0] = static_cast<int16_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(sum)));
  sums[1] = static_cast<int16_t>(_mm_cvtsi128_si32(_mm256_extracti128_si256(sum, 1)));
}

void quantize_block(const float* from, ActivationBlock& block) {
  __m256i words[2];
  for (int half = 0; half < 2; ++half) {
    const __m256 x = _mm256_loadu_ps(from + 16 * half), y = _mm256_loadu_ps(from + 16 * half + 8);
    const float maximum = largest(x, y);
    const __m256 inverse = _mm256_set1_ps(maximum >= kLeastMaximum ? 127.0f / maximum : 0.0f);
    words[half] = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)),
                                     _mm256_cvtps_epi32(_mm256_mul_ps(y, inverse)));
    block.scale[half] = maximum / 127.0f;
  }
  __m256i codes = _mm256_packs_epi16(words[0], words[1]);  // lanes of 4 codes, in the order 0 2 4 6 1 3 5 7
  codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  codes = _mm256_max_epi8(codes, _mm256_set1_epi8(-127));  // -128 would overflow the kernels' 16-bit sums
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.q), codes);
  sum_halves(codes, block.code_sum);
  block.sum = block.scale[0] * static_cast<float>(block.code_sum[0]) +
              block.scale[1] * static_cast<float>(block.code_sum[1]);
}

}  // namespace

void quantize_row_avx2(const float* x, int cols, ActivationBlock* row) {
  for (int block = 0; block < cols / kBlock; ++block) quantize_block(x + block * kBlock, row[block]);
}

}  // namespace corral
