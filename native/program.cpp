#include "program.h"

#include <algorithm>

namespace corral {
namespace {

constexpr int kRowWork = 8192;  // floats that make a chunk worth handing to another thread: a few microseconds
constexpr int kRowRounds = 8;   // chunks of many rows for each thread: neighbouring rows are read fastest

}  // namespace

Program::Program(const Limits& limits, int threads, const std::string& isa)
    : kernels_(choose_kernels(isa)), team_(threads), profile_(team_), attention_(team_, kernels_.attend), experts_(*this),
      sampler_(*kernels_.pointwise, limits.vocab, team_.size()), strips_(static_cast<size_t>(team_.size())) {
  model.limits = limits;
}

void Program::finish() {
  for (const Weight& weight : model.weights) {
    for (const auto& matrix : weight.matrices) {
      require(!matrix->quantised() || matrix->order() == kernels_.matmul->order,
              "a matrix is packed for other instructions");
    }
  }
  kv_memory_ = KVMemory(model.num_blocks, model.caches);
  const auto rows = static_cast<size_t>(model.limits.max_tokens);
  const auto allocate_rows = [&](size_t width) {
    buffer_bytes_ += rows * width * sizeof(float);
    return allocate_floats(rows * width);
  };
  for (size_t i = 0; i < model.buffers.size(); ++i) {
    const Buffer& buffer = model.buffers[i];
    const auto base = static_cast<size_t>(buffer.base);
    buffers_.push_back(base == i ? allocate_rows(static_cast<size_t>(buffer.width)) : nullptr);
    rows_.push_back({buffers_[base].get() + buffer.start, model.buffers[base].width});
  }
  for (const RopeTable& rope : model.ropes) angles_.push_back(allocate_rows(2 * rope.frequencies.size()));
  size_t widest = 0;
  for (const Buffer& buffer : model.buffers) widest = std::max(widest, activations_bytes(buffer.width));
  activations_ = allocate_rows(widest / sizeof(float));
  for (const Op& op : model.ops) {
    if (const auto* experts = std::get_if<Experts>(&op)) experts_.reserve(*experts, model.limits.max_tokens);
  }
  regions_ = plan_regions(model);
  for (const Region& region : regions_) kinds_.push_back(profile_.kind(kind_of(region, model)));
  block_of_.resize(model.groups.size() * rows);
}

void Program::step(const Batch& batch, const StepResult& result) {
  check_batch(batch, model.limits, model.groups);
  if (batch.inputs.size() != batch.tokens.size() * static_cast<size_t>(model.input_width())) {
    throw std::invalid_argument("wrong batch: inputs must have a row a token, as wide as the Program's Input");
  }
  batch_ = &batch;
  result_ = &result;
  tokens_ = batch.n();
  logit_rows_ = static_cast<int>(batch.rows.size());
  find_blocks();
  attention_.start(batch);
  profile_.begin();
  for (size_t i = 0; i < regions_.size(); ++i) {
    std::visit([this](const auto& one) { run(one); }, regions_[i]);
    profile_.end(kinds_[i]);
  }
}

void Program::find_blocks() {
  auto block = block_of_.begin();
  for (size_t group = 0; group < model.groups.size(); ++group) {
    for (int sequence = 0; sequence < batch_->sequences(); ++sequence) {
      const Ints blocks = batch_->blocks_of(static_cast<int>(group), sequence);
      for (int row = batch_->starts[sequence]; row < batch_->starts[sequence + 1]; ++row) {
        *block++ = blocks[batch_->positions[row] / kKvBlock];
      }
    }
  }
}

void Program::run(const RowRegion& region) {
  const int rows = rows_of(region.selected);
  const int chunk = std::max({1, kRowWork / region.width, rows / (kRowRounds * team_.size())});
  team_.run((rows + chunk - 1) / chunk, [&](int number, int) {
    const int end = std::min((number + 1) * chunk, rows);
    for (int row = number * chunk; row < end; ++row) {  // a row stays in the first cache from op to op
      for (const Op& op : region.ops) {
        std::visit([&](const auto& one) {
          if constexpr (RowOp<std::decay_t<decltype(one)>>) one.run_row(*this, row);
        }, op);
      }
    }
  });
}

void Program::run(const Op& op) {
  std::visit([&](const auto& one) {
    if constexpr (!RowOp<std::decay_t<decltype(one)>>) one.run(*this);
  }, op);
}

}  // namespace corral
