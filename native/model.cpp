#include "model.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace corral {
namespace {

template <class Items>
void require_index(const Items& items, int index, const char* what) {
  require(index >= 0 && static_cast<size_t>(index) < items.size(), what);
}

void require_number(const Model& model, Read x) { require_index(model.buffers, x, "no such buffer"); }
void require_number(const Model& model, Written x) { require_index(model.buffers, x, "no such buffer"); }
void require_number(const Model& model, LayerRef x) { require_index(model.caches, x, "no such KV layer"); }

void require_number(const Model& model, MatrixRef x) {
  require_index(model.weights, x, "no such weight");
  require(model.weights[static_cast<size_t>(x)].matrices.size() == 1, "no single matrix where one should stand");
}

void require_number(const Model& model, StackRef x) {
  require_index(model.weights, x, "no such weight");
  require(model.experts(x) > 0, "a vector stands where matrices should");
}

void require_number(const Model& model, VectorRef x) {
  require_index(model.weights, x, "no such weight");
  require(model.weights[static_cast<size_t>(x)].matrices.empty(), "a matrix stands where a vector should");
}

}  // namespace

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("wrong program: ") + what);
}

int Model::add_buffer(int width, bool selected) {
  require(width > 0, "a buffer needs a width");
  const int index = static_cast<int>(buffers.size());
  buffers.push_back({width, selected, index, 0});
  return index;
}

int Model::add_view(int base, int start, int width) {
  require_index(buffers, base, "no such buffer");
  const Buffer& whole = buffer(base);
  require(whole.base == base && width > 0 && start >= 0 && start <= whole.width - width, "a view outside its buffer");
  buffers.push_back({width, whole.selected, base, start});
  return static_cast<int>(buffers.size()) - 1;
}

int Model::add_kv_group(int window, int pool) {
  require(window >= 0, "a group's window must not be negative");
  require_index(num_blocks, pool, "no such pool of KV blocks");
  groups.push_back({window, pool, num_blocks[static_cast<size_t>(pool)]});
  return static_cast<int>(groups.size()) - 1;
}

int Model::add_kv_layer(int kv_heads, int key_size, int value_size, int group) {
  require(kv_heads > 0 && key_size > 0 && value_size > 0, "a KV layer's sizes must be positive");
  require_index(groups, group, "no such group of KV layers");
  const KVGroup& own = groups[static_cast<size_t>(group)];
  caches.emplace_back(kv_heads, key_size, value_size, own.window, group, own.pool);
  return static_cast<int>(caches.size()) - 1;
}

int Model::add_matrices(std::vector<std::shared_ptr<const Matrix>> matrices) {
  require(!matrices.empty(), "a stack without matrices");
  for (const auto& matrix : matrices) {
    require(matrix->rows() == matrices[0]->rows() && matrix->cols() == matrices[0]->cols() &&
                matrix->quantised() == matrices[0]->quantised(),
            "a stack of different matrices");
  }
  weights.push_back({std::move(matrices), {}});
  return static_cast<int>(weights.size()) - 1;
}

int Model::add_vector(std::vector<float> values) {
  weights.push_back({{}, std::move(values)});
  return static_cast<int>(weights.size()) - 1;
}

void Model::add(Op op) {
  if (!ops.empty()) {
    const bool ended = std::holds_alternative<Head>(ops.back()) || std::holds_alternative<Output>(ops.back());
    require(!ended, "Head or Output must be the last op");
  }
  std::visit([this](auto& one) {
    if constexpr (FromPython<std::decay_t<decltype(one)>>) {
      each_number(one, [this](auto number) { require_number(*this, number); });
      one.check(*this);
    }
  }, op);
  if (auto* rope = std::get_if<Rope>(&op)) rope->table = rope_table(*rope);
  ops.push_back(std::move(op));
}

int Model::input_width() const {
  for (const Op& op : ops) {
    if (const auto* input = std::get_if<Input>(&op)) return buffer(input->out).width;
  }
  return 0;
}

int Model::output_width() const {
  const auto* output = ops.empty() ? nullptr : std::get_if<Output>(&ops.back());
  return output == nullptr ? 0 : buffer(output->x).width;
}

void Model::require_like(int index, int other) const {
  require(buffer(index).width == buffer(other).width && buffer(index).selected == buffer(other).selected,
          "buffers differ in shape");
}

int Model::rope_table(const Rope& rope) {
  const auto same = std::find_if(ropes.begin(), ropes.end(), [&](const RopeTable& table) {
    return table.frequencies == rope.frequencies && table.magnitude == rope.magnitude;
  });
  const auto table = static_cast<int>(same - ropes.begin());
  if (same == ropes.end()) ropes.push_back({rope.frequencies, rope.magnitude});
  return table;
}

}  // namespace corral
