#include "attention_tiles.h"
#include "exp_avx2.h"

namespace corral {
namespace {

struct Avx2 {
  using Floats = __m256;
  static constexpr int kLanes = 8, kQueries = 6, kSums = 12;  // of 16 registers

  static __m256 all(float x) { return _mm256_set1_ps(x); }
  static __m256 load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, __m256 x) { _mm256_storeu_ps(p, x); }
  static __m256 load_halves(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static __m256 add(__m256 x, __m256 y) { return _mm256_add_ps(x, y); }
  static __m256 subtract(__m256 x, __m256 y) { return _mm256_sub_ps(x, y); }
  static __m256 multiply(__m256 x, __m256 y) { return _mm256_mul_ps(x, y); }
  // From an intrinsic GCC makes a product that ends in another register, and so moves more than there are.
  static __m256 add_product(__m256 sum, __m256 x, __m256 y) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
    return sum;
  }
  static __m256 divide(__m256 x, __m256 y) { return _mm256_div_ps(x, y); }
  static __m256 with_sign(__m256 size, __m256 x) {
    return _mm256_or_ps(size, _mm256_and_ps(x, _mm256_set1_ps(-0.0f)));
  }
  static __m256 larger(__m256 x, __m256 y) { return _mm256_max_ps(x, y); }
  // p * 2^n, the latter in the last bits; 0 for x below -125 and NaN.
  static __m256 shift(__m256 p, __m256 n, __m256 x) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    const __m256 result = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
    return _mm256_and_ps(result, _mm256_cmp_ps(x, _mm256_set1_ps(-125.0f), _CMP_GE_OQ));
  }
  static float max_lane(__m256 x) { return corral::max_lane(x); }
  static float sum_lanes(__m256 x) { return corral::sum_lanes(x); }
};

}  // namespace

void attend_segment_avx2(const AttentionTask& task, int begin, AttentionState& state) {
  const AttendSegment kernel = takes_heads_of<Avx2>(task) ? attend_segment<Avx2> : attend_segment_scalar;
  kernel(task, begin, state);
}

}  // namespace corral
