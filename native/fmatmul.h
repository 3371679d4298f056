// Matmul of float matrices; contract in qmatmul.h.
#pragma once

#include <cstddef>

#include "matrix.h"

namespace corral {

#if defined(__x86_64__)
void matmul_panels_float_avx2(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin,
                              int panel_end, float* out, size_t ld_out);
#elif defined(__aarch64__)
void matmul_panels_float_neon(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin,
                              int panel_end, float* out, size_t ld_out);
#endif

}  // namespace corral
