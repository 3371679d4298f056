#include <arm_neon.h>

#include "attention_tiles.h"

namespace corral {
namespace {

struct Neon {
  using Floats = float32x4_t;
  static constexpr int kLanes = 4, kQueries = 10, kSums = 20;  // of 32 registers

  static float32x4_t all(float x) { return vdupq_n_f32(x); }
  static float32x4_t load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, float32x4_t x) { vst1q_f32(p, x); }
  static float32x4_t load_halves(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static float32x4_t add(float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); }
  static float32x4_t subtract(float32x4_t x, float32x4_t y) { return vsubq_f32(x, y); }
  static float32x4_t multiply(float32x4_t x, float32x4_t y) { return vmulq_f32(x, y); }
  static float32x4_t add_product(float32x4_t sum, float32x4_t x, float32x4_t y) { return vfmaq_f32(sum, x, y); }
  static float32x4_t divide(float32x4_t x, float32x4_t y) { return vdivq_f32(x, y); }
  static float32x4_t with_sign(float32x4_t size, float32x4_t x) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), x, size);
  }
  static float32x4_t larger(float32x4_t x, float32x4_t y) { return vmaxq_f32(x, y); }
  static float max_lane(float32x4_t x) { return vmaxvq_f32(x); }
  static float sum_lanes(float32x4_t x) { return vaddvq_f32(x); }

  // p * 2^n, the latter in the last bits; 0 for x below -125 and NaN.
  static float32x4_t shift(float32x4_t p, float32x4_t n, float32x4_t x) {
    const uint32x4_t power = vshlq_n_u32(vreinterpretq_u32_f32(n), 23);
    const uint32x4_t result = vaddq_u32(vreinterpretq_u32_f32(p), power);
    return vreinterpretq_f32_u32(vandq_u32(result, vcgeq_f32(x, vdupq_n_f32(-125.0f))));
  }
};

}  // namespace

void attend_segment_neon(const AttentionTask& task, int begin, AttentionState& state) {
  const AttendSegment kernel = takes_heads_of<Neon>(task) ? attend_segment<Neon> : attend_segment_scalar;
  kernel(task, begin, state);
}

}  // namespace corral
