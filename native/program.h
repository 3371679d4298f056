// Runs a Program for one batch after the other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "batch.h"
#include "batch_attention.h"
#include "batch_experts.h"
#include "float_array.h"
#include "kernels.h"
#include "model.h"
#include "plan.h"
#include "profile.h"
#include "sampling.h"
#include "team.h"

namespace corral {

// A row's results depend on its own sequence only: never on the rows beside it, on chunks or on threads.
class Program {
 public:
  Program(const Limits& limits, int threads, const std::string& isa);

  Model model;

  // Plans the regions and takes memory; nothing may be added to the model after it.
  void finish();
  // Throws std::invalid_argument for a batch that does not fit, before anything has changed.
  void step(const Batch& batch, const StepResult& result);

  Profile& profile() { return profile_; }
  // What finish has taken for the rows of a step.
  size_t buffer_bytes() const { return buffer_bytes_; }
  Isa isa() const { return kernels_.isa; }
  // What ops work on, while a step runs.
  const Batch& batch() const { return *batch_; }
  const StepResult& result() const { return *result_; }
  const Kernels& kernels() const { return kernels_; }
  // out = activation(gate) * up.
  auto gate_kernel(Activation activation) const {
    return activation == Activation::kSilu ? kernels_.pointwise->silu_gate : kernels_.pointwise->gelu_gate;
  }
  Team& team() { return team_; }
  float* row_of(int buffer, int64_t row) const {
    const RowMemory& rows = rows_[static_cast<size_t>(buffer)];
    return rows.first + row * rows.stride;
  }
  size_t stride_of(int buffer) const { return static_cast<size_t>(rows_[static_cast<size_t>(buffer)].stride); }
  int rows_in(int buffer) const { return rows_of(model.buffer(buffer).selected); }
  // Cosines, then sines, of a rope table for a token of the batch.
  float* angles_of(int table, int64_t token) const;
  // The block that a token's keys and values go to, for a group of KV layers.
  int32_t block_of(int group, int token) const { return block_of_[static_cast<size_t>(group) * tokens_ + token]; }
  ActivationRows activations(int x) const;

  struct RowRange {
    int begin, end;
  };
  struct PanelRange {
    int begin, end;
  };
  // out[(row - rows.begin) * ld + m] = x[row] times row m of the matrix, for the rows of these panels.
  void multiply(const Matrix& matrix, int x, RowRange rows, PanelRange panels, float* out, size_t ld) const;
  void attend(const Attention& op);
  void run_experts(const Experts& op) { experts_.run(op); }
  void sample(const Head& op);

 private:
  // Where a buffer's rows lie: those of a view as far apart as its base's.
  struct RowMemory {
    float* first;
    int64_t stride;
  };

  int rows_of(bool selected) const { return selected ? logit_rows_ : tokens_; }
  void run(const RowRegion& region);
  void run(const Op& op);

  // Which block of each group each row's keys and values go to.
  void find_blocks();
  void sample(const Head& op, RowRange rows);
  // Logits [begin, end) of these rows, in the thread's strip.
  float* strip_of_logits(const Head& op, RowRange rows, int begin, int end, int thread);

  const Kernels kernels_;
  Team team_;
  Profile profile_;
  BatchAttention attention_;
  BatchExperts experts_;
  std::vector<Region> regions_;
  std::vector<size_t> kinds_;  // of the regions, for the profile
  KVMemory kv_memory_;
  std::vector<FloatArray> buffers_;  // none for a view
  std::vector<RowMemory> rows_;
  std::vector<FloatArray> angles_;  // of each rope table: [N][cosines, sines]
  FloatArray activations_;          // quantised rows for the next matmul
  size_t buffer_bytes_ = 0;
  Sampler sampler_;
  std::vector<FloatArray> strips_;  // logits of a stretch, one a thread

  // The step that is running, or the last one.
  const Batch* batch_ = nullptr;
  const StepResult* result_ = nullptr;
  int tokens_ = 0, logit_rows_ = 0;
  std::vector<int32_t> block_of_;  // [groups, N]
};

}  // namespace corral
