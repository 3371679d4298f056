#include "quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace corral {
namespace {

// Rounds to nearest even within +-127: more would overflow the kernels' 16-bit sums.
int8_t quantize(float scaled) {
  if (!(std::fabs(scaled) < 1024.0f)) return -127;
  return static_cast<int8_t>(std::clamp(static_cast<int>(std::nearbyint(scaled)), -127, 127));
}

float largest(const float* x, int count) {
  uint32_t bits = 0;  // compared as integers, so that a NaN wins
  for (int k = 0; k < count; ++k) bits = std::max(bits, std::bit_cast<uint32_t>(x[k]) & 0x7fffffffu);
  return std::bit_cast<float>(bits);
}

}  // namespace

void quantize_block(const float* x, ActivationBlock& block) {
  const float top = largest(x, kBlock);
  const bool usable = top >= kLeastMaximum && std::isfinite(top);  // else the scale alone carries what x was
  int sums[2] = {0, 0};
  for (int group = 0; group < kActivationGroups; ++group) {
    const float* from = x + kActivationGroup * group;
    const float share = usable ? largest(from, kActivationGroup) * (static_cast<float>(kMostFactor) / top) : 0.0f;
    const float factor = std::clamp(std::ceil(share), 1.0f, static_cast<float>(kMostFactor));
    const float inverse = usable ? kSteps / top / factor : 0.0f;
    int sum = 0;
    for (int k = 0; k < kActivationGroup; ++k) sum += block.q[kActivationGroup * group + k] = quantize(from[k] * inverse);
    sums[group / 2] += sum * static_cast<int>(factor);
    block.factor[group] = factor;
    block.whole[group] = static_cast<int16_t>(factor);
  }
  block.scale = top / kSteps;
  for (int half = 0; half < 2; ++half) block.half_sum[half] = block.scale * static_cast<float>(sums[half]);
  block.sum = block.scale * static_cast<float>(sums[0] + sums[1]);
  block.moved = -128.0f * static_cast<float>(sums[0] + sums[1]);
}

void quantize_scalar(const float* x, int blocks, const ActivationRows& to, int n, int first) {
  for (int block = 0; block < blocks; ++block) quantize_block(x + block * kBlock, to.row(n)[first + block]);
}

}  // namespace corral
