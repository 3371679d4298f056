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

constexpr int kActivationGroup = 8;  // columns of one factor
constexpr int kActivationGroups = kBlock / kActivationGroup;
constexpr int kMostFactor = 16;  // bounds sums of factor * code * q by 2^24: exact as integers and as floats

// 32 columns of a row of activations: x[k] ~ scale * factor[k / 8] * q[k] with |q| <= 127 and factors from 1 to 16,
// and what offsets of weights multiply. Factors, because one large value spoils whatever shares its scale: with one
// scale for 32 columns, as usual, a real model's outputs lie three times as far from the truth. All in one record, so
// that a tile of several rows needs one pointer a row.
struct ActivationBlock {
  int8_t q[kBlock];                  // in the columns' order in the kernels' matrices
  int16_t whole[kActivationGroups];  // the factors, to multiply 16-bit sums by
  float factor[kActivationGroups];
  float scale;
  float sum;          // scale * sum of factor * q
  float half_sum[2];  // the same of each half
  float moved;        // -128 * sum of factor * q, for codes that a kernel has moved up by 128
};

// Bytes of one row, a multiple of 64.
inline size_t activations_bytes(int cols) {
  return (static_cast<size_t>(cols / kBlock) * sizeof(ActivationBlock) + 63) / 64 * 64;
}

// Rows of activations one after the other, activations_bytes(cols) apart, 64-byte aligned.
struct ActivationRows {
  std::byte* memory;
  int cols;

  ActivationBlock* row(int n) const {
    return reinterpret_cast<ActivationBlock*>(memory + activations_bytes(cols) * static_cast<size_t>(n));
  }
  ActivationRows from(int n) const { return {memory + activations_bytes(cols) * static_cast<size_t>(n), cols}; }
};

// One table an instruction set. Panels [panel_begin, panel_end) of the matrix go to
// out[n * ld_out + m] for their rows m < matrix.rows() and n < n_rows; nothing else is written.
struct MatmulKernels {
  Order order;  // of the matrices that these kernels multiply; the scalar ones take any
  // x [32 * blocks] -> blocks [first, first + blocks) of row n, whatever this instruction set's matmul reads of them. A
  // NaN or an infinity makes this row's results NaN or infinite.
  void (*quantize)(const float* x, int blocks, const ActivationRows& to, int n, int first);
  // For quantised matrices.
  void (*matmul_panels)(const Matrix& matrix, const ActivationRows& x, int n_rows, int panel_begin, int panel_end,
                        float* out, size_t ld_out);
  // For float matrices; row n of x begins at x + n * ld_x.
  void (*matmul_panels_float)(const Matrix& matrix, const float* x, size_t ld_x, int n_rows, int panel_begin,
                              int panel_end, float* out, size_t ld_out);
};

const MatmulKernels& kernels(Isa isa);  // isa must be supported

}  // namespace corral
