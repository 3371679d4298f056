#include <immintrin.h>

#include "attention_tiles.h"

namespace corral {
namespace {

struct Avx512 {
  using Floats = __m512;
  static constexpr int kLanes = 16, kQueries = 12, kSums = 24;  // of 32 registers

  static __m512 all(float x) { return _mm512_set1_ps(x); }
  static __m512 load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
  static __m512 load_halves(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 add(__m512 x, __m512 y) { return _mm512_add_ps(x, y); }
  static __m512 subtract(__m512 x, __m512 y) { return _mm512_sub_ps(x, y); }
  static __m512 multiply(__m512 x, __m512 y) { return _mm512_mul_ps(x, y); }
  static __m512 add_product(__m512 sum, __m512 x, __m512 y) { return _mm512_fmadd_ps(x, y, sum); }
  static __m512 divide(__m512 x, __m512 y) { return _mm512_div_ps(x, y); }
  static __m512 with_sign(__m512 size, __m512 x) {
    return _mm512_or_ps(size, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));
  }
  static __m512 larger(__m512 x, __m512 y) { return _mm512_max_ps(x, y); }
  static float max_lane(__m512 x) { return _mm512_reduce_max_ps(x); }
  static float sum_lanes(__m512 x) { return _mm512_reduce_add_ps(x); }

  // p * 2^n, the latter in the last bits; 0 for x below -125 and NaN.
  static __m512 shift(__m512 p, __m512 n, __m512 x) {
    const __mmask16 alive = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-125.0f), _CMP_GE_OQ);
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(alive, _mm512_castps_si512(p), power));
  }
};

}  // namespace

void attend_segment_avx512(const AttentionTask& task, int begin, AttentionState& state) {
  const AttendSegment kernel = takes_heads_of<Avx512>(task) ? attend_segment<Avx512> : attend_segment_avx2;
  kernel(task, begin, state);
}

}  // namespace corral
