// Runs a Program for one batch after the other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "batch.h"
#include "batch_attention.h"
#include "kernels.h"
#include "model.h"
#include "plan.h"
#include "profile.h"
#include "sampling.h"
#include "team.h"

namespace corral {

// Memory that becomes resident as it is written.
struct FreeFloats {
  void operator()(float* floats) const;
};
using FloatArray = std::unique_ptr<float[], FreeFloats>;
FloatArray allocate_floats(size_t count);

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
  Isa isa() const { return kernels_.isa; }
  // How many rows the last step left in a buffer, and where they begin.
  int buffer_rows(int index) const;
  const float* buffer(int index) const { return row_of(index, 0); }

 private:
  struct RowRange {
    int begin, end;
  };
  struct PanelRange {
    int begin, end;
  };

  float* row_of(int buffer, int64_t row) const {
    return buffers_[static_cast<size_t>(buffer)].get() + row * model.buffers[static_cast<size_t>(buffer)].width;
  }
  const float* vector_of(int weight) const { return model.weights[static_cast<size_t>(weight)].vector.data(); }
  const Matrix& matrix_of(int weight) const { return *model.weights[static_cast<size_t>(weight)].matrix; }
  int rows_of(bool selected) const { return selected ? logit_rows_ : tokens_; }
  int rows_in(int buffer) const { return rows_of(model.buffers[static_cast<size_t>(buffer)].selected); }

  void run(const RowRegion& region);
  void run(const Linear& op);
  void run(const Attention& op);
  void run(const Head& op);

  void run_row(const Embed& op, int row);
  void run_row(const RmsNorm& op, int row);
  void run_row(const Rope& op, int row);
  void run_row(const KVWrite& op, int row);
  void run_row(const Add& op, int row);
  void run_row(const Gated& op, int row);
  void run_row(const Select& op, int row);
  void run_row(const Angles& op, int row);
  void run_row(const Quantize& op, int row);

  // Which block of each group each row's keys and values go to.
  void find_blocks();
  ActivationRows activations(int x) const;
  // out[(row - rows.begin) * ld + m] = x[row] times row m of the matrix, for the rows of these panels.
  void multiply(const Matrix& matrix, int x, RowRange rows, PanelRange panels, float* out, size_t ld) const;
  int panels_of_a_chunk(const Matrix& matrix, int rows, int panels) const;
  void multiply_chunk(const Linear& op, RowRange rows, PanelRange panels);
  void add_bias(int bias, int out, RowRange rows, PanelRange panels);
  void sample(const Head& op, RowRange rows);
  // Logits [begin, end) of these rows, in the thread's strip.
  float* strip_of_logits(const Head& op, RowRange rows, int begin, int end, int thread);

  const Kernels kernels_;
  Team team_;
  Profile profile_;
  BatchAttention attention_;
  std::vector<Region> regions_;
  std::vector<size_t> kinds_;  // of the regions, for the profile
  KVMemory kv_memory_;
  std::vector<FloatArray> buffers_;
  std::vector<FloatArray> angles_;  // of each rope table: [N][cosines, sines]
  FloatArray activations_;          // quantised rows for the next matmul
  Sampler sampler_;
  std::vector<FloatArray> strips_;  // logits of a stretch, one a thread

  // The step that is running, or the last one.
  const Batch* batch_ = nullptr;
  const StepResult* result_ = nullptr;
  int tokens_ = 0, logit_rows_ = 0;
  std::vector<int32_t> block_of_;  // [groups, N]
};

}  // namespace corral
