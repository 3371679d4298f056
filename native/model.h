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

// Rows of floats: memory of its own, or columns of another buffer's rows.
struct Buffer {
  int width;
  bool selected;  // rows are logit rows, not tokens
  int base;       // the buffer that has the memory: itself, unless this is a view
  int start;      // first column of a view
};

// A matrix for Embed, Linear and Head, a stack of them for Experts, or a vector for norms and biases.
struct Weight {
  std::vector<std::shared_ptr<const Matrix>> matrices;
  std::vector<float> vector;
};

// Angles of one kind of rope; ops with the same frequencies and magnitude share it.
struct RopeTable {
  std::vector<double> frequencies;  // radians a position, of each pair
  double magnitude;                 // cosines and sines are multiplied by it
};

// Throws std::invalid_argument: "wrong program: " and what is wrong.
void require(bool condition, const char* what);

// Each add_* throws std::invalid_argument on a number or shape that does not fit what was added before.
struct Model {
  Limits limits;
  std::vector<Buffer> buffers;
  std::vector<Weight> weights;
  std::vector<int> num_blocks;  // of each pool of the KV cache
  std::vector<KVGroup> groups;
  std::vector<KVCache> caches;  // one a layer
  std::vector<RopeTable> ropes;
  std::vector<Op> ops;

  int add_buffer(int width, bool selected);
  int add_view(int base, int start, int width);
  int add_kv_group(int window, int pool);
  int add_kv_layer(int kv_heads, int key_size, int value_size, int group);
  int add_matrices(std::vector<std::shared_ptr<const Matrix>> matrices);
  int add_vector(std::vector<float> values);
  void add(Op op);
  // The width of the rows that a batch brings, and of those that a step gives; 0 where the ops have no Input or Output.
  int input_width() const;
  int output_width() const;

  // What an op's numbers are of; add has seen that they exist.
  const Buffer& buffer(int index) const { return buffers[static_cast<size_t>(index)]; }
  const Matrix& matrix(MatrixRef weight) const { return *weights[static_cast<size_t>(weight)].matrices[0]; }
  int experts(StackRef weight) const { return static_cast<int>(weights[static_cast<size_t>(weight)].matrices.size()); }
  const Matrix& expert(StackRef weight, int number) const {
    return *weights[static_cast<size_t>(weight)].matrices[static_cast<size_t>(number)];
  }
  const std::vector<float>& vector(VectorRef weight) const { return weights[static_cast<size_t>(weight)].vector; }
  const KVCache& cache(LayerRef layer) const { return caches[static_cast<size_t>(layer)]; }
  // Throws unless both have rows of the same kind and width.
  void require_like(int index, int other) const;

 private:
  int rope_table(const Rope& rope);
};

}  // namespace corral
