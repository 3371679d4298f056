// Activation quantisation of each instruction set; contract in qmatmul.h.
#pragma once

#include "qmatmul.h"

namespace corral {

// A block whose largest value is below this becomes all zeros: its reciprocal would overflow.
constexpr float kLeastMaximum = 1e-30f;
constexpr float kSteps = 127.0f * kMostFactor;  // of the scale in the largest value

void quantize_block(const float* x, ActivationBlock& block);
void quantize_scalar(const float* x, int blocks, const ActivationRows& to, int n, int first);
#if defined(__x86_64__)
template <Order>
void quantize_avx2(const float* x, int blocks, const ActivationRows& to, int n, int first);
#elif defined(__aarch64__)
void quantize_neon(const float* x, int blocks, const ActivationRows& to, int n, int first);
#endif

}  // namespace corral
