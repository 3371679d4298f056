#include "batch_experts.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "program.h"

namespace corral {
namespace {

constexpr int kRows = 64;      // of a chunk: their activations stay in a core's cache while panels pass
constexpr int kColumns = 128;  // of the products of so many rows; fewer rows may have more
constexpr int kApart = 16;     // floats between rows of products, so that they spread over a cache's sets
constexpr int kStrip = kRows * (kColumns + kApart);
constexpr int kRounds = 8;                         // chunks for each thread
constexpr int kBlockPanels = kBlock / kPanelRows;  // what is quantised together is made together

int parts_of(int rows) { return (rows + kRows - 1) / kRows; }
size_t activation_floats(int cols) { return activations_bytes(cols) / sizeof(float); }

}  // namespace

void BatchExperts::Scratch::reserve(size_t wanted) {
  if (wanted <= size) return;
  floats = allocate_floats(wanted);
  size = wanted;
}

void BatchExperts::reserve(const Experts& op, int rows) {
  const Model& model = program_.model;
  const Matrix &gate = model.expert(op.gate, 0), &up = model.expert(op.up, 0), &down = model.expert(op.down, 0);
  const auto pairs = static_cast<size_t>(rows) * static_cast<size_t>(model.buffer(op.chosen).width);
  const auto width = static_cast<size_t>(gate.cols()), inner = static_cast<size_t>(down.cols());
  if (gate.quantised() || up.quantised()) gathered_rows_.reserve(pairs * activation_floats(gate.cols()));
  if (!gate.quantised() || !up.quantised()) gathered_floats_.reserve(pairs * width);
  hidden_.reserve(pairs * (down.quantised() ? activation_floats(down.cols()) : inner));
  strips_.reserve(size_t{2} * kStrip * static_cast<size_t>(program_.team().size()));
}

void BatchExperts::run(const Experts& op) {
  const Model& model = program_.model;
  const int inner = model.expert(op.gate, 0).panels(), outer = model.expert(op.down, 0).panels();
  const int rows = program_.rows_in(op.x);
  if (rows == 0) return;
  sort_pairs(op);
  gather_rows(op);
  program_.team().run(cut_chunks(inner), [&](int number, int thread) {
    make_hidden(op, chunk_of(number, inner), strip(thread, 0), strip(thread, 1));
  });
  // A chunk has some columns of all rows, so that it adds them up alone.
  const int size = std::clamp(outer / (kRounds * program_.team().size()), 2, kColumns / kPanelRows) / 2 * 2;
  program_.team().run((outer + size - 1) / size, [&](int number, int thread) {
    const int first = number * size, end = std::min(first + size, outer), column = first * kPanelRows;
    const int columns = std::min(end * kPanelRows, model.buffer(op.out).width) - column;
    for (int row = 0; row < rows; ++row) std::fill_n(program_.row_of(op.out, row) + column, columns, 0.0f);
    for (const Active& active : active_) {
      for (int begin = active.begin; begin < active.end; begin += kRows) {
        add_down(op, {active, begin, std::min(begin + kRows, active.end), first, end}, strip(thread, 0));
      }
    }
  });
}

void BatchExperts::sort_pairs(const Experts& op) {
  const int experts = program_.model.experts(op.gate), ranks = program_.model.buffer(op.chosen).width;
  const auto each_pair = [&](auto&& visit) {
    for (int row = 0; row < program_.rows_in(op.x); ++row) {
      for (int rank = 0; rank < ranks; ++rank) {
        const int expert = static_cast<int>(program_.row_of(op.chosen, row)[rank]) - op.first;
        if (expert < 0 || expert >= experts) continue;
        visit(static_cast<size_t>(expert), Pair{row, program_.row_of(op.weights, row)[rank]});
      }
    }
  };
  ends_.assign(static_cast<size_t>(experts), 0);
  each_pair([&](size_t expert, const Pair&) { ++ends_[expert]; });
  int count = 0;
  for (int& end : ends_) count += std::exchange(end, count);  // begins of pairs, which become their ends
  pairs_.resize(static_cast<size_t>(count));
  each_pair([&](size_t expert, const Pair& pair) { pairs_[static_cast<size_t>(ends_[expert]++)] = pair; });
  active_.clear();
  for (int expert = 0, begin = 0; expert < experts; begin = ends_[static_cast<size_t>(expert++)]) {
    const int end = ends_[static_cast<size_t>(expert)];
    if (begin == end) continue;
    const int between = pairs_[static_cast<size_t>(end) - 1].row - pairs_[static_cast<size_t>(begin)].row;
    active_.push_back({expert, begin, end, between == end - begin - 1, 0, 0});
  }
}

// Brings the rows of each expert together.
void BatchExperts::gather_rows(const Experts& op) {
  const Model& model = program_.model;
  const bool quantised = model.expert(op.gate, 0).quantised() || model.expert(op.up, 0).quantised();
  const bool floats = !model.expert(op.gate, 0).quantised() || !model.expert(op.up, 0).quantised();
  const auto width = static_cast<size_t>(model.buffer(op.x).width);
  if (std::all_of(active_.begin(), active_.end(), [](const Active& active) { return active.together; })) return;
  const ActivationRows from = program_.activations(op.x), to = gathered_rows_.rows(from.cols);
  program_.team().run(static_cast<int>(active_.size()), [&](int number, int) {
    const Active& active = active_[static_cast<size_t>(number)];
    for (int pair = active.begin; pair < active.end && !active.together; ++pair) {
      const int row = pairs_[static_cast<size_t>(pair)].row;
      if (quantised) std::memcpy(to.row(pair), from.row(row), activations_bytes(from.cols));
      float* copy = gathered_floats_.floats.get() + static_cast<size_t>(pair) * width;
      if (floats) std::copy_n(program_.row_of(op.x, row), width, copy);
    }
  });
}

// How many chunks go through so many panels of each active expert.
int BatchExperts::cut_chunks(int panels) {
  int work = 0, chunks = 0;
  for (const Active& active : active_) work += panels * parts_of(active.end - active.begin);
  const int share = work / (kRounds * program_.team().size());
  for (Active& active : active_) {
    const int rows = active.end - active.begin;
    const int most = (kStrip / std::min(rows, kRows) - kApart) / kPanelRows;
    active.panels = std::clamp(share, kBlockPanels, most) / kBlockPanels * kBlockPanels;
    active.first_chunk = chunks;
    chunks += parts_of(rows) * ((panels + active.panels - 1) / active.panels);
  }
  return chunks;
}

BatchExperts::Chunk BatchExperts::chunk_of(int number, int panels) const {
  const auto after = std::upper_bound(active_.begin(), active_.end(), number,
                                      [](int value, const Active& active) { return value < active.first_chunk; });
  const Active& active = *(after - 1);
  const int chunks = (panels + active.panels - 1) / active.panels, own = number - active.first_chunk;
  const int begin = active.begin + own / chunks * kRows, first = own % chunks * active.panels;
  return {active, begin, std::min(begin + kRows, active.end), first, std::min(first + active.panels, panels)};
}

size_t BatchExperts::Chunk::stride() const {
  return static_cast<size_t>((end_panel - first_panel) * kPanelRows + kApart);
}

void BatchExperts::make_hidden(const Experts& op, const Chunk& chunk, float* gate, float* up) {
  const Model& model = program_.model;
  const Matrix& down = model.expert(op.down, chunk.active.expert);
  const Inputs x = inputs_of(op, chunk);
  multiply(model.expert(op.gate, chunk.active.expert), x, chunk, gate);
  multiply(model.expert(op.up, chunk.active.expert), x, chunk, up);
  const auto activate = program_.gate_kernel(op.activation);
  const int width = std::min(chunk.end_panel * kPanelRows, down.cols()) - chunk.column();
  for (int row = 0; row < chunk.rows(); ++row, gate += chunk.stride(), up += chunk.stride()) {
    if (down.quantised()) {
      activate(gate, up, gate, width);
      program_.kernels().matmul->quantize(gate, width / kBlock, hidden_.rows(down.cols()), chunk.begin + row,
                                          chunk.column() / kBlock);
    } else {
      const size_t at = static_cast<size_t>(chunk.begin + row) * static_cast<size_t>(down.cols());
      activate(gate, up, hidden_.floats.get() + at + chunk.column(), width);
    }
  }
}

void BatchExperts::add_down(const Experts& op, const Chunk& chunk, float* products) {
  const Matrix& down = program_.model.expert(op.down, chunk.active.expert);
  const PointwiseKernels& kernels = *program_.kernels().pointwise;
  const int width = std::min(chunk.end_panel * kPanelRows, down.rows()) - chunk.column();
  multiply(down, hidden_of(op, chunk.begin), chunk, products);
  for (int row = 0; row < chunk.rows(); ++row, products += chunk.stride()) {
    const Pair& pair = pairs_[static_cast<size_t>(chunk.begin + row)];
    float* out = program_.row_of(op.out, pair.row) + chunk.column();
    kernels.scale(products, pair.weight, products, width);
    kernels.add(out, products, out, width);
  }
}

BatchExperts::Inputs BatchExperts::inputs_of(const Experts& op, const Chunk& chunk) const {
  const int width = program_.model.buffer(op.x).width;
  if (chunk.active.together) {
    const int row = pairs_[static_cast<size_t>(chunk.begin)].row;
    return {program_.activations(op.x).from(row), program_.row_of(op.x, row), program_.stride_of(op.x)};
  }
  const auto stride = static_cast<size_t>(width), at = static_cast<size_t>(chunk.begin) * stride;
  return {gathered_rows_.rows(width).from(chunk.begin), gathered_floats_.floats.get() + at, stride};
}

BatchExperts::Inputs BatchExperts::hidden_of(const Experts& op, int pair) const {
  const int cols = program_.model.expert(op.down, 0).cols();
  const auto stride = static_cast<size_t>(cols);
  return {hidden_.rows(cols).from(pair), hidden_.floats.get() + static_cast<size_t>(pair) * stride, stride};
}

void BatchExperts::multiply(const Matrix& matrix, const Inputs& x, const Chunk& chunk, float* out) const {
  const MatmulKernels& kernels = *program_.kernels().matmul;
  out -= chunk.column();  // columns count from the matrix's first row
  if (matrix.quantised()) {
    kernels.matmul_panels(matrix, x.quantised, chunk.rows(), chunk.first_panel, chunk.end_panel, out, chunk.stride());
  } else {
    kernels.matmul_panels_float(matrix, x.floats, x.stride, chunk.rows(), chunk.first_panel, chunk.end_panel, out,
                                chunk.stride());
  }
}

float* BatchExperts::strip(int thread, int number) const {
  return strips_.floats.get() + static_cast<size_t>(2 * thread + number) * kStrip;
}

void Experts::check(const Model& model) const {
  const Matrix &gates = model.expert(gate, 0), &ups = model.expert(up, 0), &downs = model.expert(down, 0);
  const Buffer& to = model.buffer(out);
  model.require_like(chosen, weights);
  require(first >= 0 && model.experts(gate) == model.experts(up) && model.experts(gate) == model.experts(down),
          "Experts' matrices differ in number");
  require(gates.cols() == model.buffer(x).width && ups.cols() == gates.cols() && ups.rows() == gates.rows(),
          "Experts' gate and up");
  require(downs.cols() == gates.rows() && downs.rows() == to.width, "Experts' down");
  for (int buffer : {int{x}, int{chosen}, int{weights}}) {
    require(to.base != model.buffer(buffer).base && to.selected == model.buffer(buffer).selected, "Experts' output");
  }
}

void Experts::run(Program& program) const { program.run_experts(*this); }

std::string Experts::kind(const Model& model) const {
  return "experts " + std::string(codes_name(model.expert(gate, 0).codes()));
}

}  // namespace corral
