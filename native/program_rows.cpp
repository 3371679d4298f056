// Row ops of a Program: each on one row, in one fixed order of arithmetic.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace corral {

void Input::check(const Model& model) const {
  require(!model.buffer(out).selected, "Input gives a row a token");
  require(model.input_width() == 0, "one Input is enough");
}

void Input::run_row(Program& program, int row) const {
  const int width = program.model.buffer(out).width;
  std::copy_n(program.batch().inputs.data() + static_cast<int64_t>(row) * width, width, program.row_of(out, row));
}

void Output::check(const Model& model) const { require(model.buffer(x).selected, "Output gives the wanted rows"); }

void Output::run_row(Program& program, int row) const {
  const int width = program.model.buffer(x).width;
  std::copy_n(program.row_of(x, row), width, program.result().vectors.data() + static_cast<int64_t>(row) * width);
}

void RmsNorm::check(const Model& model) const {
  model.require_like(x, out);
  const int width = model.buffer(x).width;
  require(heads > 0 && width % heads == 0, "RmsNorm's heads");
  require(model.vector(weight).size() == static_cast<size_t>(width / heads), "RmsNorm's weight");
}

void RmsNorm::run_row(Program& program, int row) const {
  const int width = program.model.buffer(x).width / heads;
  const float *from = program.row_of(x, row), *factors = program.model.vector(weight).data();
  float* to = program.row_of(out, row);
  for (int head = 0; head < heads; ++head) {
    program.kernels().pointwise->rms_norm(from + head * width, factors, to + head * width, width, eps);
  }
}

void LayerNorm::check(const Model& model) const {
  model.require_like(x, out);
  const auto width = static_cast<size_t>(model.buffer(x).width);
  require(model.vector(weight).size() == width && model.vector(bias).size() == width, "LayerNorm's weight and bias");
}

void LayerNorm::run_row(Program& program, int row) const {
  const int width = program.model.buffer(x).width;
  const float *from = program.row_of(x, row), *factors = program.model.vector(weight).data();
  const float* offsets = program.model.vector(bias).data();
  float* to = program.row_of(out, row);
  double sum = 0, squares = 0;
  for (int i = 0; i < width; ++i) sum += from[i];
  const double mean = sum / width;
  for (int i = 0; i < width; ++i) squares += (from[i] - mean) * (from[i] - mean);
  const double factor = 1 / std::sqrt(squares / width + eps);
  for (int i = 0; i < width; ++i) to[i] = static_cast<float>((from[i] - mean) * factor) * factors[i] + offsets[i];
}

void Rope::check(const Model& model) const {
  model.require_like(x, out);
  const int width = model.buffer(x).width;
  require(heads > 0 && width % heads == 0, "Rope's heads");
  require(!frequencies.empty() && 2 * frequencies.size() <= static_cast<size_t>(width / heads), "Rope's rotated part");
}

void Rope::run_row(Program& program, int row) const {
  const Buffer& buffer = program.model.buffer(x);
  const auto pairs = static_cast<int>(frequencies.size());
  const float* cosine = program.angles_of(table, buffer.selected ? program.batch().rows[row] : row);
  const PointwiseKernels& kernels = *program.kernels().pointwise;
  const auto rotate = style == RopeStyle::kInterleaved ? kernels.rope_interleaved : kernels.rope_half;
  float* to = program.row_of(out, row);
  const float* from = program.row_of(x, row);
  if (to != from) std::copy_n(from, buffer.width, to);
  for (int head = 0; head < heads; ++head) rotate(to + head * (buffer.width / heads), cosine, cosine + pairs, pairs);
}

void Angles::run_row(Program& program, int row) const {
  const RopeTable& rope = program.model.ropes[static_cast<size_t>(table)];
  float* cosine = program.angles_of(table, row);
  float* sine = cosine + rope.frequencies.size();
  for (size_t i = 0; i < rope.frequencies.size(); ++i) {
    const double angle = program.batch().positions[row] * rope.frequencies[i];
    cosine[i] = static_cast<float>(std::cos(angle) * rope.magnitude);
    sine[i] = static_cast<float>(std::sin(angle) * rope.magnitude);
  }
}

float* Program::angles_of(int table, int64_t token) const {
  const size_t pairs = model.ropes[static_cast<size_t>(table)].frequencies.size();
  return angles_[static_cast<size_t>(table)].get() + token * static_cast<int64_t>(2 * pairs);
}

void Add::check(const Model& model) const {
  model.require_like(x, y);
  model.require_like(x, out);
}

void Add::run_row(Program& program, int row) const {
  program.kernels().pointwise->add(program.row_of(x, row), program.row_of(y, row), program.row_of(out, row),
                                   program.model.buffer(out).width);
}

void Gated::check(const Model& model) const {
  model.require_like(gate, up);
  model.require_like(gate, out);
}

void Gated::run_row(Program& program, int row) const {
  program.gate_kernel(activation)(program.row_of(gate, row), program.row_of(up, row), program.row_of(out, row),
                                  program.model.buffer(out).width);
}

void Route::check(const Model& model) const {
  const Buffer &logits = model.buffer(x), &to = model.buffer(chosen);
  model.require_like(chosen, weights);
  require(to.base != logits.base && model.buffer(weights).base != logits.base && model.buffer(weights).base != to.base,
          "Route's outputs");
  require(to.selected == logits.selected && to.width <= logits.width, "Route chooses more experts than there are");
}

void Route::run_row(Program& program, int row) const {
  const float* logits = program.row_of(x, row);
  float *experts = program.row_of(chosen, row), *shares = program.row_of(weights, row);
  const int count = program.model.buffer(x).width, ranks = program.model.buffer(chosen).width;
  const auto logit = [logits](int expert) { return std::isnan(logits[expert]) ? -INFINITY : logits[expert]; };
  const auto before = [&](int a, int b) { return logit(a) > logit(b) || (logit(a) == logit(b) && a < b); };
  for (int rank = 0, last = -1; rank < ranks; ++rank) {
    int best = -1;
    for (int expert = 0; expert < count; ++expert) {
      if ((last < 0 || before(last, expert)) && (best < 0 || before(expert, best))) best = expert;
    }
    experts[rank] = static_cast<float>(last = best);
    shares[rank] = std::exp(logits[best] - logits[static_cast<int>(experts[0])]);
  }
  float total = 0;
  for (int i = 0; i < (renormalise ? ranks : count); ++i) {
    total += renormalise ? shares[i] : std::exp(logits[i] - logits[static_cast<int>(experts[0])]);
  }
  for (int rank = 0; rank < ranks; ++rank) shares[rank] /= total;
}

void Select::check(const Model& model) const {
  require(!model.buffer(x).selected && model.buffer(out).selected, "Select goes from tokens to logit rows");
  require(model.buffer(x).width == model.buffer(out).width, "Select's width");
}

void Select::run_row(Program& program, int row) const {
  std::copy_n(program.row_of(x, program.batch().rows[row]), program.model.buffer(out).width, program.row_of(out, row));
}

}  // namespace corral
