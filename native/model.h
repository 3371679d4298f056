// What a Program is made of, checked as it is put together.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "batch.h"
#include "kv_cache.h"
#include "matrix.h"
#include "ops.h"

namespace corral {

struct Buffer {
  int width;
  bool selected;  // rows are logit rows, not tokens
};

// A matrix for Embed, Linear and Head, or a vector for norms, biases and rope factors.
struct Weight {
  std::shared_ptr<const Matrix> matrix;
  std::vector<float> vector;
};

// Frequencies of one kind of rope; layers with the same parameters share it.
struct RopeTable {
  int rotated, factors;
  double theta, scale;
  std::vector<double> frequencies;  // [rotated / 2]
};

// Each add_* throws std::invalid_argument on a number or shape that does not fit what was added before.
struct Model {
  Limits limits;
  std::vector<Buffer> buffers;
  std::vector<Weight> weights;
  std::vector<KVCache> caches;   // one a layer
  std::vector<int32_t> windows;  // what each group of them sees, 0 = all
  std::vector<RopeTable> ropes;
  std::vector<Op> ops;

  int add_buffer(int width, bool selected);
  int add_kv_layer(int kv_heads, int head_dim, int window, int group);
  int add_matrix(std::shared_ptr<const Matrix> matrix);
  int add_vector(std::vector<float> values);
  void add(Op op);

 private:
  const Buffer& buffer(int index) const;
  const Matrix& matrix(int index) const;
  size_t vector_size(int index) const;
  const KVCache& cache(int index) const;
  void require_like(int buffer, int other) const;
  int rope_table(const Rope& rope);

  void check(const Embed& op);
  void check(const RmsNorm& op);
  void check(const Linear& op);
  void check(Rope& op);
  void check(const KVWrite& op);
  void check(const Attention& op);
  void check(const Add& op);
  void check(const Gated& op);
  void check(const Select& op);
  void check(const Head& op);
};

}  // namespace corral
