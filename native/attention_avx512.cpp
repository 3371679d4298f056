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
  static __m512 larger(__m512 x, __m512 y) { return _mm512_max_ps(x, y); }
  static float max_lane(__m512 x) { return _mm512_reduce_max_ps(x); }
  static float sum_lanes(__m512 x) { return _mm512_reduce_add_ps(x); }

  // Within 2 units of the last place; of -inf and of NaN 0, and never called with more than 0.
  static __m512 exp(__m512 x) {
    const __mmask16 alive = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33f), _CMP_GE_OQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts: the first has so few bits that n times it is exact.
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factor));
    }
    return _mm512_maskz_scalef_ps(alive, p, n);
  }
};

}  // namespace

void attend_segment_avx512(const AttentionTask& task, int begin, AttentionState& state) {
  const AttendSegment kernel = task.head_dim % Avx512::kLanes == 0 ? attend_segment<Avx512> : attend_segment_avx2;
  kernel(task, begin, state);
}

}  // namespace corral
