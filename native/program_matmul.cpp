// The matmuls of a Program: panels of all the matrices of an op in one region.
#include <algorithm>

#include "program.h"

namespace corral {
namespace {

constexpr int kMostRounds = 8;           // chunks for each thread
constexpr int64_t kChunkWork = 1 << 16;  // multiplications that make a chunk worth its hand-over: 1 us or so
constexpr int kActivationRows = 64;      // rows whose activations stay in a core's cache while panels pass

}  // namespace

void Embed::check(const Model& model) const {
  const Matrix& matrix = model.matrix(weight);
  require(!model.buffer(out).selected && matrix.cols() == model.buffer(out).width, "Embed's width");
  require(matrix.rows() >= model.limits.vocab, "Embed's weight has fewer rows than the vocabulary");
}

void Embed::run_row(Program& program, int row) const {
  float* to = program.row_of(out, row);
  program.model.matrix(weight).dequantize_row(program.batch().tokens[row], to);
  if (scale != 1.0f) program.kernels().pointwise->scale(to, scale, to, program.model.buffer(out).width);
}

void Quantize::run_row(Program& program, int row) const {
  const int blocks = program.model.buffer(x).width / kBlock;
  program.kernels().matmul->quantize(program.row_of(x, row), blocks, program.activations(x), row, 0);
}

ActivationRows Program::activations(int x) const {
  return {reinterpret_cast<std::byte*>(activations_.get()), model.buffer(x).width};
}

void Program::multiply(const Matrix& matrix, int x, RowRange rows, PanelRange panels, float* out,
                       size_t ld) const {
  const int n = rows.end - rows.begin;
  if (matrix.quantised()) {
    ActivationRows from = activations(x);
    from.memory += activations_bytes(from.cols) * static_cast<size_t>(rows.begin);
    kernels_.matmul->matmul_panels(matrix, from, n, panels.begin, panels.end, out, ld);
  } else {
    kernels_.matmul->matmul_panels_float(matrix, row_of(x, rows.begin), stride_of(x), n, panels.begin, panels.end, out,
                                         ld);
  }
}

namespace {

int panels_of_a_chunk(const Matrix& matrix, int rows, int panels, int team) {
  const int64_t work = int64_t{kPanelRows} * matrix.cols() * rows * panels;
  // Enough chunks to even out the threads, few enough to be cheap; as many for each thread.
  const int64_t rounds = std::clamp<int64_t>(work / kChunkWork / team, 1, kMostRounds);
  const int64_t chunks = rounds * team;
  const auto chunk = static_cast<int>((panels + chunks - 1) / chunks);
  return chunk + chunk % 2;  // some kernels take panels in pairs
}

void add_bias(const Program& program, const float* bias, int out, Program::RowRange rows, Program::PanelRange panels) {
  const int begin = panels.begin * kPanelRows;
  const int end = std::min(panels.end * kPanelRows, program.model.buffer(out).width);
  for (int row = rows.begin; row < rows.end; ++row) {
    float* to = program.row_of(out, row) + begin;
    program.kernels().pointwise->add(to, bias + begin, to, end - begin);
  }
}

// `panels` count through all the op's matrices.
void multiply_chunk(const Program& program, const Linear& op, Program::RowRange rows, Program::PanelRange panels) {
  for (size_t i = 0; i < op.weights.size() && panels.end > 0; ++i) {
    const Matrix& matrix = program.model.matrix(op.weights[i]);
    const Program::PanelRange range{std::max(panels.begin, 0), std::min(panels.end, matrix.panels())};
    if (range.begin < range.end) {
      float* out = program.row_of(op.outs[i], rows.begin);
      program.multiply(matrix, op.x, rows, range, out, program.stride_of(op.outs[i]));
      if (op.biases[i]) add_bias(program, program.model.vector(*op.biases[i]).data(), op.outs[i], rows, range);
    }
    panels.begin -= matrix.panels();
    panels.end -= matrix.panels();
  }
}

}  // namespace

void Linear::check(const Model& model) const {
  require(!weights.empty() && weights.size() == outs.size() && weights.size() == biases.size(),
          "Linear's lists differ in length");
  for (size_t i = 0; i < weights.size(); ++i) {
    const Matrix& weight = model.matrix(weights[i]);
    const Buffer& out = model.buffer(outs[i]);
    require(out.base != model.buffer(x).base && out.selected == model.buffer(x).selected, "Linear's output");
    require(weight.cols() == model.buffer(x).width && weight.rows() == out.width, "Linear's weight");
    require(!biases[i] || model.vector(*biases[i]).size() == static_cast<size_t>(out.width), "Linear's bias");
  }
}

void Linear::run(Program& program) const {
  const int rows = program.rows_in(x);
  if (rows == 0) return;
  int panels = 0;
  for (MatrixRef weight : weights) panels += program.model.matrix(weight).panels();
  const Matrix& first_matrix = program.model.matrix(weights[0]);
  const int size = panels_of_a_chunk(first_matrix, std::min(rows, kActivationRows), panels, program.team().size());
  const int chunks = (panels + size - 1) / size, parts = (rows + kActivationRows - 1) / kActivationRows;
  // All the panels for some rows, then for the next: a matrix is read again sooner than the activations of all rows.
  program.team().run(parts * chunks, [&](int number, int) {
    const int row = number / chunks * kActivationRows, first = number % chunks * size;
    multiply_chunk(program, *this, {row, std::min(row + kActivationRows, rows)},
                   {first, std::min(first + size, panels)});
  });
}

std::string Linear::kind(const Model& model) const {
  return "matmul " + std::string(codes_name(model.matrix(weights[0]).codes()));
}

}  // namespace corral
