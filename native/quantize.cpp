#include "quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace corral {
namespace {

// Rounds to nearest even within +-127: more would overflow the kernels' 16-bit sums. NaN becomes -127, as in AVX2.
int8_t quantize(float scaled) {
  if (!(std::fabs(scaled) < 1024.0f)) return -127;
  return static_cast<int8_t>(std::clamp(static_cast<int>(std::nearbyint(scaled)), -127, 127));
}

void quantize_block(const float* x, ActivationBlock& block) {
  uint32_t bits = 0;  // compared as integers, so that a NaN wins
  for (int k = 0; k < kBlock; ++k) bits = std::max(bits, std::bit_cast<uint32_t>(x[k]) & 0x7fffffffu);
  const float maximum = std::bit_cast<float>(bits);
  const float inverse = maximum >= kLeastMaximum ? 127.0f / maximum : 0.0f;
  block.scale = maximum / 127.0f;
  block.code_sum[0] = block.code_sum[1] = 0;
  for (int k = 0; k < kBlock; ++k) {
    block.q[k] = quantize(x[k] * inverse);
    block.code_sum[k / 16] = static_cast<int16_t>(block.code_sum[k / 16] + block.q[k]);
  }
  block.sum = block.scale * static_cast<float>(block.code_sum[0] + block.code_sum[1]);
}

}  // namespace

void quantize_row_scalar(const float* x, int cols, ActivationBlock* row) {
  for (int block = 0; block < cols / kBlock; ++block) quantize_block(x + block * kBlock, row[block]);
}

}  // namespace corral
