// The matmuls of a Program: panels of all the matrices of an op in one region, and the logits.
#include <algorithm>
#include <numeric>

#include "program.h"

namespace corral {
namespace {

constexpr int kLogitRows = 32;            // rows of a tile of logits: bounds its memory
constexpr int64_t kChunkWork = 1 << 17;   // multiplications that make a chunk worth its hand-over: 2 us or so
constexpr int kActivationRows = 64;       // rows whose activations stay in a core's cache while panels pass

}  // namespace

void Program::run_row(const Embed& op, int row) {
  float* out = row_of(op.out, row);
  matrix_of(op.weight).dequantize_row(batch_->tokens[row], out);
  if (op.scale != 1.0f) kernels_.pointwise->scale(out, op.scale, out, model.buffers[op.out].width);
}

void Program::run_row(const Quantize& op, int row) {
  kernels_.matmul->quantize_row(row_of(op.x, row), model.buffers[op.x].width, activations(op.x).row(row));
}

ActivationRows Program::activations(int x) const {
  return {reinterpret_cast<std::byte*>(activations_.get()), model.buffers[x].width};
}

void Program::multiply(const Matrix& matrix, int x, RowRange rows, PanelRange panels, float* out) const {
  const auto ld = static_cast<size_t>(matrix.rows());
  for (int row = rows.begin; row < rows.end; row += kActivationRows) {
    const int n = std::min(kActivationRows, rows.end - row);
    float* to = out + (row - rows.begin) * static_cast<int64_t>(ld);
    if (matrix.quantised()) {
      ActivationRows from = activations(x);
      from.memory += activations_bytes(from.cols) * static_cast<size_t>(row);
      kernels_.matmul->matmul_panels(matrix, from, n, panels.begin, panels.end, to, ld);
    } else {
      const int width = model.buffers[x].width;
      kernels_.matmul->matmul_panels_float(matrix, row_of(x, row), width, n, panels.begin, panels.end, to, ld);
    }
  }
}

int Program::panels_of_a_chunk(const Matrix& matrix, int rows, int panels) const {
  const int64_t work = int64_t{kPanelRows} * matrix.cols() * rows;
  const int64_t least = (kChunkWork + work - 1) / work;
  // Enough chunks to even out the threads, few enough to be cheap.
  const int64_t wanted = panels / (16 * team_.size());
  const int64_t chunk = std::max({int64_t{1}, least, wanted});
  return static_cast<int>(chunk + chunk % 2);  // some kernels take panels in pairs
}

void Program::run(const Linear& op) {
  if (rows_in(op.x) == 0) return;
  const RowRange rows{0, rows_in(op.x)};
  int panels = 0;
  for (int weight : op.weights) panels += matrix_of(weight).panels();
  const int chunk = panels_of_a_chunk(matrix_of(op.weights[0]), rows.end, panels);
  team_.run((panels + chunk - 1) / chunk, [&](int number, int) {
    int first = number * chunk, end = std::min(first + chunk, panels);
    for (size_t i = 0; i < op.weights.size() && end > 0; ++i) {
      const Matrix& matrix = matrix_of(op.weights[i]);
      const PanelRange range{std::max(first, 0), std::min(end, matrix.panels())};
      if (range.begin < range.end) {
        multiply(matrix, op.x, rows, range, row_of(op.outs[i], 0));
        if (op.biases[i] != kNone) add_bias(op.biases[i], op.outs[i], rows, range);
      }
      first -= matrix.panels();
      end -= matrix.panels();
    }
  });
}

void Program::add_bias(int bias, int out, RowRange rows, PanelRange panels) {
  const int begin = panels.begin * kPanelRows;
  const int end = std::min(panels.end * kPanelRows, model.buffers[out].width);
  for (int row = rows.begin; row < rows.end; ++row) {
    float* to = row_of(out, row) + begin;
    kernels_.pointwise->add(to, vector_of(bias) + begin, to, end - begin);
  }
}

void Program::run(const Head& op) {
  for (int begin = 0; begin < logit_rows_; begin += kLogitRows) {
    run_logits(op, {begin, std::min(begin + kLogitRows, logit_rows_)});
  }
}

void Program::run_logits(const Head& op, RowRange rows) {
  const Matrix& matrix = matrix_of(op.weight);
  const auto vocab = static_cast<size_t>(matrix.rows());
  const size_t count = static_cast<size_t>(rows.end - rows.begin);
  if (logits_held_ < count) {
    logits_.reset();
    logits_ = allocate_floats(count * vocab);
    logits_held_ = count;
  }
  const int panels = matrix.panels(), chunk = panels_of_a_chunk(matrix, rows.end - rows.begin, panels);
  team_.run((panels + chunk - 1) / chunk, [&](int number, int) {
    const int first = number * chunk;
    multiply(matrix, op.x, rows, {first, std::min(first + chunk, panels)}, logits_.get());
  });
  team_.run(static_cast<int>(count), [&](int number, int thread) {
    const size_t row = static_cast<size_t>(rows.begin + number);
    SampledRow sampled{
        .token = kFailed,
        .logprob = 0,
        .top_tokens = result_->top_tokens.data() + row * kTopTokens,
        .top_logprobs = result_->top_logprobs.data() + row * kTopTokens,
    };
    samplers_[static_cast<size_t>(thread)].sample(logits_.get() + static_cast<size_t>(number) * vocab,
                                                  batch_->sampling.row(row), sampled);
    result_->tokens[row] = sampled.token;
    result_->logprobs[row] = sampled.logprob;
  });
}

}  // namespace corral
