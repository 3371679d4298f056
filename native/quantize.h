// Activation quantisation of each instruction set; contract in qmatmul.h.
#pragma once

#include "qmatmul.h"

namespace corral {

// A half block whose largest value is below this becomes all zeros: its reciprocal would overflow.
constexpr float kLeastMaximum = 1e-30f;

void quantize_row_scalar(const float* x, int cols, ActivationBlock* row);
#if defined(__x86_64__)
void quantize_row_avx2(const float* x, int cols, ActivationBlock* row);
#endif

}  // namespace corral
