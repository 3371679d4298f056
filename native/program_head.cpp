// The last op of a Program: logits, and tokens of them, without a matrix of rows by vocabulary.
#include <algorithm>

#include "program.h"

namespace corral {
namespace {

constexpr int kHeadRows = 64;                // rows that share a pass over the weights: bounds what is kept of each
constexpr size_t kStripWidth = kStretch + 16;  // not a power of two, so that rows spread over a cache's sets

}  // namespace

void Head::check(const Model& model) const {
  const Matrix& matrix = model.matrix(weight);
  require(model.buffer(x).selected && matrix.cols() == model.buffer(x).width, "Head's input");
  require(matrix.rows() == model.limits.vocab, "Head's weight must have a row a token");
}

void Head::run(Program& program) const { program.sample(*this); }

void Program::sample(const Head& op) {
  for (int begin = 0; begin < logit_rows_; begin += kHeadRows) {
    sample(op, {begin, std::min(begin + kHeadRows, logit_rows_)});
  }
}

void Program::sample(const Head& op, RowRange rows) {
  const int count = rows.end - rows.begin;
  std::vector<SamplingRow> asked;
  for (int row = rows.begin; row < rows.end; ++row) asked.push_back(batch_->sampling.row(static_cast<size_t>(row)));
  sampler_.start(asked);
  team_.run(sampler_.stretches(), [&](int stretch, int thread) {
    const int begin = stretch * kStretch, end = std::min(begin + kStretch, model.limits.vocab);
    float* logits = strip_of_logits(op, rows, begin, end, thread);
    for (int row = 0; row < count; ++row) sampler_.add(thread, row, stretch, logits + kStripWidth * static_cast<size_t>(row));
  });
  team_.run(count, [&](int number, int thread) {
    const int row = rows.begin + number;
    const auto at = static_cast<size_t>(row);
    SampledRow sampled{
        .token = kFailed,
        .logprob = 0,
        .top_tokens = result_->top_tokens.data() + at * kTopTokens,
        .top_logprobs = result_->top_logprobs.data() + at * kTopTokens,
    };
    sampler_.finish(number, [&](int begin, int end) {
      return strip_of_logits(op, {row, row + 1}, begin, end, thread);
    }, sampled);
    result_->tokens[at] = sampled.token;
    result_->logprobs[at] = sampled.logprob;
  });
}

float* Program::strip_of_logits(const Head& op, RowRange rows, int begin, int end, int thread) {
  FloatArray& strip = strips_[static_cast<size_t>(thread)];
  if (strip == nullptr) strip = allocate_floats(kHeadRows * kStripWidth);
  const PanelRange panels{begin / kPanelRows, (end + kPanelRows - 1) / kPanelRows};
  // Columns count from the matrix's first row.
  multiply(model.matrix(op.weight), op.x, rows, panels, strip.get() - panels.begin * kPanelRows, kStripWidth);
  if (op.softcap > 0) {  // whole panels, so that a logit's bits do not depend on which others are computed
    const int width = (panels.end - panels.begin) * kPanelRows;
    for (int row = 0; row < rows.end - rows.begin; ++row) {
      kernels_.pointwise->softcap(strip.get() + kStripWidth * static_cast<size_t>(row), op.softcap, width);
    }
  }
  return strip.get() + begin % kPanelRows;
}

}  // namespace corral
