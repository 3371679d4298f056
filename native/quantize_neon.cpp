#include "quantize.h"

#include <arm_neon.h>

#include <limits>

namespace corral {
namespace {

uint32x4_t load_magnitudes(const float* x) {
  return vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x)), vdupq_n_u32(0x7fffffff));
}

// The largest magnitude of each group of 8, compared as integers, so that a NaN wins.
uint32x4_t largest_of_groups(const float* x) {
  uint32x4_t groups[kActivationGroups];
  for (int group = 0; group < kActivationGroups; ++group, x += kActivationGroup) {
    groups[group] = vmaxq_u32(load_magnitudes(x), load_magnitudes(x + 4));
  }
  return vpmaxq_u32(vpmaxq_u32(groups[0], groups[1]), vpmaxq_u32(groups[2], groups[3]));
}

int8x8_t quantize_group(const float* x, float inverse) {
  const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse));
  const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), inverse));
  return vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high)));
}

void quantize_usable_block(const float* x, float32x4_t groups, float top, ActivationBlock& block) {
  const float32x4_t shares = vmulq_n_f32(groups, static_cast<float>(kMostFactor) / top);
  const float32x4_t most = vdupq_n_f32(static_cast<float>(kMostFactor));
  const float32x4_t factors = vminq_f32(vmaxq_f32(vrndpq_f32(shares), vdupq_n_f32(1.0f)), most);
  const float32x4_t inverses = vdivq_f32(vdupq_n_f32(kSteps / top), factors);
  const int8x16_t low = vcombine_s8(quantize_group(x, vgetq_lane_f32(inverses, 0)),
                                    quantize_group(x + 8, vgetq_lane_f32(inverses, 1)));
  const int8x16_t high = vcombine_s8(quantize_group(x + 16, vgetq_lane_f32(inverses, 2)),
                                     quantize_group(x + 24, vgetq_lane_f32(inverses, 3)));
  const int8x16_t one = vdupq_n_s8(1);
  const int32x4_t zero = vdupq_n_s32(0), whole = vcvtq_s32_f32(factors);
  const int32x4_t sums = vmulq_s32(vpaddq_s32(vdotq_s32(zero, low, one), vdotq_s32(zero, high, one)), whole);
  const int first = vgetq_lane_s32(sums, 0) + vgetq_lane_s32(sums, 1);
  const int second = vgetq_lane_s32(sums, 2) + vgetq_lane_s32(sums, 3);
  vst1q_s8(block.q, low);
  vst1q_s8(block.q + 16, high);
  vst1_s16(block.whole, vmovn_s32(whole));
  vst1q_f32(block.factor, factors);
  block.scale = top / kSteps;
  block.half_sum[0] = block.scale * static_cast<float>(first);
  block.half_sum[1] = block.scale * static_cast<float>(second);
  block.sum = block.scale * static_cast<float>(first + second);
  block.moved = -128.0f * static_cast<float>(first + second);
}

}  // namespace

void quantize_neon(const float* x, int blocks, const ActivationRows& to, int n, int first) {
  ActivationBlock* row = to.row(n) + first;
  for (int block = 0; block < blocks; ++block, ++row, x += kBlock) {
    const uint32x4_t groups = largest_of_groups(x);
    const float top = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(groups))), 0);
    if (top >= kLeastMaximum && top <= std::numeric_limits<float>::max()) {
      quantize_usable_block(x, vreinterpretq_f32_u32(groups), top, *row);
    } else {
      quantize_block(x, *row);
    }
  }
}

}  // namespace corral
