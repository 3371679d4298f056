// The matmuls of a Program: panels of all the matrices of an op in one region.
#include <algorithm>

#include "program.h"

namespace corral {
namespace {

constexpr int kMostRounds = 8;           // chunks for each thread
constexpr int64_t kChunkWork = 1 << 16;  // multiplications that make a chunk worth its hand-over: 1 us or so
constexpr int kActivationRows = 64;      // rows whose activations stay in a core's cache while panels pass

}  // namespace

void Program::run_row(const Embed& op, int row) {
  float* out = row_of(op.out, row);
  matrix_of(op.weight).dequantize_row(batch_->tokens[row], out);
  if (op.scale != 1.0f) kernels_.pointwise->scale(out, op.scale, out, model.buffers[op.out].width);
}

void Program::run_row(const Quantize& op, int row) {
  kernels_.matmul->quantize(row_of(op.x, row), model.buffers[op.x].width / kBlock, activations(op.x), row, 0);
}

ActivationRows Program::activations(int x) const {
  return {reinterpret_cast<std::byte*>(activations_.get()), model.buffers[x].width};
}

void Program::multiply(const Matrix& matrix, int x, RowRange rows, PanelRange panels, float* out,
                       size_t ld) const {
  const int n = rows.end - rows.begin;
  if (matrix.quantised()) {
    ActivationRows from = activations(x);
    from.memory += activations_bytes(from.cols) * static_cast<size_t>(rows.begin);
    kernels_.matmul->matmul_panels(matrix, from, n, panels.begin, panels.end, out, ld);
  } else {
    const int width = model.buffers[x].width;
    kernels_.matmul->matmul_panels_float(matrix, row_of(x, rows.begin), width, n, panels.begin, panels.end, out, ld);
  }
}

int Program::panels_of_a_chunk(const Matrix& matrix, int rows, int panels) const {
  const int64_t work = int64_t{kPanelRows} * matrix.cols() * rows * panels;
  // Enough chunks to even out the threads, few enough to be cheap; as many for each thread.
  const int64_t rounds = std::clamp<int64_t>(work / kChunkWork / team_.size(), 1, kMostRounds);
  const int64_t chunks = rounds * team_.size();
  const auto chunk = static_cast<int>((panels + chunks - 1) / chunks);
  return chunk + chunk % 2;  // some kernels take panels in pairs
}

void Program::run(const Linear& op) {
  const int rows = rows_in(op.x);
  if (rows == 0) return;
  int panels = 0;
  for (int weight : op.weights) panels += matrix_of(weight).panels();
  const int size = panels_of_a_chunk(matrix_of(op.weights[0]), std::min(rows, kActivationRows), panels);
  const int chunks = (panels + size - 1) / size, parts = (rows + kActivationRows - 1) / kActivationRows;
  // All the panels for some rows, then for the next: a matrix is read again sooner than the activations of all rows.
  team_.run(parts * chunks, [&](int number, int) {
    const int row = number / chunks * kActivationRows, first = number % chunks * size;
    multiply_chunk(op, {row, std::min(row + kActivationRows, rows)}, {first, std::min(first + size, panels)});
  });
}

// `panels` count through all the op's matrices.
void Program::multiply_chunk(const Linear& op, RowRange rows, PanelRange panels) {
  for (size_t i = 0; i < op.weights.size() && panels.end > 0; ++i) {
    const Matrix& matrix = matrix_of(op.weights[i]);
    const PanelRange range{std::max(panels.begin, 0), std::min(panels.end, matrix.panels())};
    if (range.begin < range.end) {
      multiply(matrix, op.x, rows, range, row_of(op.outs[i], rows.begin), static_cast<size_t>(matrix.rows()));
      if (op.biases[i] != kNone) add_bias(op.biases[i], op.outs[i], rows, range);
    }
    panels.begin -= matrix.panels();
    panels.end -= matrix.panels();
  }
}

void Program::add_bias(int bias, int out, RowRange rows, PanelRange panels) {
  const int begin = panels.begin * kPanelRows;
  const int end = std::min(panels.end * kPanelRows, model.buffers[out].width);
  for (int row = rows.begin; row < rows.end; ++row) {
    float* to = row_of(out, row) + begin;
    kernels_.pointwise->add(to, vector_of(bias) + begin, to, end - begin);
  }
}

}  // namespace corral
