#include "model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace corral {
namespace {

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("wrong program: ") + what);
}

template <class Items>
auto& at(Items& items, int index, const char* what) {
  require(index >= 0 && static_cast<size_t>(index) < items.size(), what);
  return items[static_cast<size_t>(index)];
}

}  // namespace

int Model::add_buffer(int width, bool selected) {
  require(width > 0, "a buffer needs a width");
  buffers.push_back({width, selected});
  return static_cast<int>(buffers.size()) - 1;
}

int Model::add_kv_layer(int kv_heads, int head_dim, int window, int group) {
  require(kv_heads > 0 && head_dim > 0 && window >= 0 && group >= 0, "a KV layer's sizes must be positive");
  caches.emplace_back(kv_heads, head_dim, window, group);
  windows.resize(std::max(windows.size(), static_cast<size_t>(group) + 1), 1);
  int32_t& widest = windows[static_cast<size_t>(group)];
  widest = window == 0 || widest == 0 ? 0 : std::max(widest, window);
  return static_cast<int>(caches.size()) - 1;
}

int Model::add_matrix(std::shared_ptr<const Matrix> matrix) {
  weights.push_back({std::move(matrix), {}});
  return static_cast<int>(weights.size()) - 1;
}

int Model::add_vector(std::vector<float> values) {
  weights.push_back({nullptr, std::move(values)});
  return static_cast<int>(weights.size()) - 1;
}

void Model::add(Op op) {
  require(ops.empty() || !std::holds_alternative<Head>(ops.back()), "Head must be the last op");
  std::visit([this](auto& one) { check(one); }, op);
  ops.push_back(std::move(op));
}

const Buffer& Model::buffer(int index) const { return at(buffers, index, "no such buffer"); }

const Matrix& Model::matrix(int index) const {
  const Weight& weight = at(weights, index, "no such weight");
  require(weight.matrix != nullptr, "a vector stands where a matrix should");
  return *weight.matrix;
}

size_t Model::vector_size(int index) const {
  const Weight& weight = at(weights, index, "no such weight");
  require(weight.matrix == nullptr, "a matrix stands where a vector should");
  return weight.vector.size();
}

const KVCache& Model::cache(int index) const { return at(caches, index, "no such KV layer"); }

void Model::require_like(int index, int other) const {
  require(buffer(index).width == buffer(other).width && buffer(index).selected == buffer(other).selected,
          "buffers differ in shape");
}

void Model::check(const Embed& op) {
  require(!buffer(op.out).selected && matrix(op.weight).cols() == buffer(op.out).width, "Embed's width");
  require(matrix(op.weight).rows() >= limits.vocab, "Embed's weight has fewer rows than the vocabulary");
}

void Model::check(const RmsNorm& op) {
  require_like(op.x, op.out);
  require(op.heads > 0 && buffer(op.x).width % op.heads == 0, "RmsNorm's heads");
  require(vector_size(op.weight) == static_cast<size_t>(buffer(op.x).width / op.heads), "RmsNorm's weight");
}

void Model::check(const Linear& op) {
  require(!op.weights.empty() && op.weights.size() == op.outs.size() && op.weights.size() == op.biases.size(),
          "Linear's lists differ in length");
  for (size_t i = 0; i < op.weights.size(); ++i) {
    const Matrix& weight = matrix(op.weights[i]);
    const Buffer& out = buffer(op.outs[i]);
    require(op.outs[i] != op.x && out.selected == buffer(op.x).selected, "Linear's output");
    require(weight.cols() == buffer(op.x).width && weight.rows() == out.width, "Linear's weight");
    require(op.biases[i] == kNone || vector_size(op.biases[i]) == static_cast<size_t>(out.width), "Linear's bias");
  }
}

void Model::check(Rope& op) {
  require(op.heads > 0 && op.head_dim > 0 && buffer(op.x).width == op.heads * op.head_dim, "Rope's heads");
  require(op.rotated > 0 && op.rotated <= op.head_dim && op.rotated % 2 == 0, "Rope's rotated part");
  require(op.theta > 0 && op.scale > 0, "Rope's base and scale must be positive");
  require(op.factors == kNone || vector_size(op.factors) == static_cast<size_t>(op.rotated / 2), "Rope's factors");
  op.table = rope_table(op);
}

int Model::rope_table(const Rope& rope) {
  for (size_t i = 0; i < ropes.size(); ++i) {
    const RopeTable& table = ropes[i];
    if (table.rotated == rope.rotated && table.factors == rope.factors && table.theta == rope.theta &&
        table.scale == rope.scale) {
      return static_cast<int>(i);
    }
  }
  RopeTable table{rope.rotated, rope.factors, rope.theta, rope.scale, {}};
  for (int i = 0; i < rope.rotated / 2; ++i) {
    double frequency = std::pow(rope.theta, -2.0 * i / rope.rotated) / rope.scale;
    if (rope.factors != kNone) frequency /= weights[static_cast<size_t>(rope.factors)].vector[static_cast<size_t>(i)];
    table.frequencies.push_back(frequency);
  }
  ropes.push_back(std::move(table));
  return static_cast<int>(ropes.size()) - 1;
}

void Model::check(const KVWrite& op) {
  const int width = cache(op.layer).kv_heads * cache(op.layer).head_dim;
  require(buffer(op.k).width == width && buffer(op.v).width == width, "KVWrite's width");
  require(!buffer(op.k).selected && !buffer(op.v).selected, "KVWrite needs positions");
}

void Model::check(const Attention& op) {
  const KVCache& layer = cache(op.layer);
  require_like(op.q, op.out);
  require(op.q != op.out, "Attention's buffers");
  require(op.heads > 0 && op.heads % layer.kv_heads == 0, "Attention's heads must be a multiple of its kv heads");
  require(buffer(op.q).width == op.heads * layer.head_dim, "Attention's width");
}

void Model::check(const Add& op) {
  require_like(op.x, op.y);
  require_like(op.x, op.out);
}

void Model::check(const Gated& op) {
  require_like(op.gate, op.up);
  require_like(op.gate, op.out);
}

void Model::check(const Select& op) {
  require(!buffer(op.x).selected && buffer(op.out).selected, "Select goes from tokens to logit rows");
  require(buffer(op.x).width == buffer(op.out).width, "Select's width");
}

void Model::check(const Head& op) {
  require(buffer(op.x).selected && matrix(op.weight).cols() == buffer(op.x).width, "Head's input");
  require(matrix(op.weight).rows() == limits.vocab, "Head's weight must have a row a token");
}

}  // namespace corral
