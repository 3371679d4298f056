// exp of four floats, within 2 units of the last place.
#pragma once

#include <arm_neon.h>

#include <initializer_list>

namespace corral {

// Below -87.3 the result is exactly 0 (so exp(-inf) is 0); above 88.3 it stays at exp(88.3). NaN becomes 0.
inline float32x4_t exp_neon(float32x4_t x) {
  const uint32x4_t alive = vcgeq_f32(x, vdupq_n_f32(-87.33f));
  x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-87.33f)), vdupq_n_f32(88.3f));
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504088896341f));
  // ln 2 in two parts: the first has so few bits that n times it is exact.
  float32x4_t r = vfmsq_n_f32(x, n, 0.693359375f);
  r = vfmsq_n_f32(r, n, -2.12194440e-4f);
  float32x4_t p = vdupq_n_f32(1.0f / 5040);
  for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = vfmaq_f32(vdupq_n_f32(factor), p, r);
  }
  const int32x4_t exponent = vshlq_n_s32(vcvtnq_s32_f32(n), 23);
  const int32x4_t result = vaddq_s32(vreinterpretq_s32_f32(p), exponent);
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_s32(result), alive));
}

}  // namespace corral
