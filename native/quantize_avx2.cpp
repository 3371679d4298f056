#include <immintrin.h>

#include "quantize.h"

namespace corral {
namespace {

float largest(const __m256 x[4]) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i bits = _mm256_setzero_si256();  // compared as integers, so that a NaN wins
  for (int i = 0; i < 4; ++i) bits = _mm256_max_epi32(bits, _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude));
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
  __m256 x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm256_loadu_ps(from + 8 * i);
  const float maximum = largest(x);
  const __m256 inverse = _mm256_set1_ps(maximum >= kLeastMaximum ? 127.0f / maximum : 0.0f);
  __m256i q[4];
  for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse));
  const __m256i words[2] = {_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])};
  __m256i codes = _mm256_packs_epi16(words[0], words[1]);  // lanes of 4 codes, in the order 0 2 4 6 1 3 5 7
  codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  codes = _mm256_max_epi8(codes, _mm256_set1_epi8(-127));  // -128 would overflow the kernels' 16-bit sums
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.q), codes);
  sum_halves(codes, block.code_sum);
  block.scale = maximum / 127.0f;
  block.sum = block.scale * static_cast<float>(block.code_sum[0] + block.code_sum[1]);
}

}  // namespace

void quantize_row_avx2(const float* x, int cols, ActivationBlock* row) {
  for (int block = 0; block < cols / kBlock; ++block) quantize_block(x + block * kBlock, row[block]);
}

}  // namespace corral
