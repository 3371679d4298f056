#include "attention_tiles.h"
#include "exp_neon.h"

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
  static float32x4_t larger(float32x4_t x, float32x4_t y) { return vmaxq_f32(x, y); }
  static float32x4_t exp(float32x4_t x) { return exp_neon(x); }
  static float max_lane(float32x4_t x) { return vmaxvq_f32(x); }
  static float sum_lanes(float32x4_t x) { return vaddvq_f32(x); }
};

}  // namespace

void attend_segment_neon(const AttentionTask& task, int begin, AttentionState& state) {
  const AttendSegment kernel = task.head_dim % Neon::kLanes == 0 ? attend_segment<Neon> : attend_segment_scalar;
  kernel(task, begin, state);
}

}  // namespace corral
