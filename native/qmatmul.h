// Matmul of packed weights with rows of activations: out[n, m] = sum over k of x[n, k] * weight[m, k].
//
// A result's bits depend on its row of x and its row of weights alone: every kernel does the same float operations in
// the same order for one (row, output) pair whatever stands beside it, and all instruction sets give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu.h"
#include "matrix.h"

namespace corral {

// One row of activations as int8 codes with a scale for every 32 columns: x[k] ~ scale[k / 32] * q[k], |q| <= 127.
struct Activations {
  int8_t* q;          // [cols]
  float* scale;       // [cols / 32]
  float* sum;         // [cols / 32]: scale * sum of the codes of the block
  int16_t* code_sum;  // [cols / 16]: sum of the codes of each half block
  float* half_sum;    // [cols / 16]: scale * code_sum
};

size_t activations_bytes(int cols);  // a multiple of 64
Activations activations_at(void* memory, int cols);  // memory: activations_bytes(cols), 64-byte aligned

// Rows of activations one after the other, activations_bytes(cols) apart.
struct ActivationRows {
  std::byte* memory;
  int cols;

  Activations row(int n) const {
    return activations_at(memory + activations_bytes(cols) * static_cast<size_t>(n), cols);
  }
};

// One table an instruction set. Panels [panel_begin, panel_end) of the matrix go to
// out[n * ld_out + m] for their rows m < matrix.rows() and n < n_rows; nothing else is written.
struct MatmulKernels {
  // x [cols] -> row; cols a multiple of 32. A NaN or an infinity makes this row's results NaN or infinite.
  void (*quantize_row)(const float* x, int cols, const Activations& row);
  // For quantised matrices.
  void (*matmul_panels)(const Matrix& matrix, const ActivationRows& x, int n_rows, int panel_begin, int panel_end,
                        float* out, size_t ld_out);
  // For float matrices; row n of x begins at x + n * ld_x.
  void (*matmul_panels_float)(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin,
                              int panel_end, float* out, size_t ld_out);
};

const MatmulKernels& kernels(Isa isa);  // isa must be supported

}  // namespace corral
