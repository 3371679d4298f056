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

void quantize_half(const float* x, int half, ActivationBlock& block) {
  uint32_t bits = 0;  // compared as integers, so that a NaN wins
  for (int k = 0; k < 16; ++k) bits = std::max(bits, std::bit_cast<uint32_t>(x[k]) & 0x7fffffffu);
  const float maximum = std::bit_cast<float>(bits);
  const float inverse = maximum >= kLeastMaximum ? 127.0f / maximum : 0.0f;
  int sum = 0;
  for (int k = 0; k < 16; ++k) sum += block.q[16 * half + k] = quantize(x[k] * inverse);
  block.scale[half] = maximum / 127.0f;
  block.code_sum[half] = static_cast<int16_t>(sum);
}

}  // namespace

void quantize_row_scalar(const float* x, int cols, ActivationBlock* row) {
  for (int block = 0; block < cols / kBlock; ++block, ++row, x += kBlock) {
    for (int half = 0; half < 2; ++half) quantize_half(x + 16 * half, half, *row);
    row->sum = row->scale[0] * static_cast<float>(row->code_sum[0]) + row->scale[1] * static_cast<float>(row->code_sum[1]);
  }
}

}  // namespace corral
