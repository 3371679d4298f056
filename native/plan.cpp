#include "plan.h"

#include <algorithm>
#include <utility>

namespace corral {
namespace {

class Planner {
 public:
  explicit Planner(const Model& model) : model_(model) {}

  std::vector<Region> plan() {
    for (size_t table = 0; table < model_.ropes.size(); ++table) {
      push(Angles{static_cast<int>(table)}, false, 2 * model_.ropes[table].rotated);
    }
    for (const Op& op : model_.ops) std::visit([this](const auto& one) { place(one); }, op);
    return std::move(regions_);
  }

 private:
  void push(RowOp op, bool selected, int width) {
    auto* open = regions_.empty() ? nullptr : std::get_if<RowRegion>(&regions_.back());
    if (open == nullptr || open->selected != selected) {
      regions_.push_back(RowRegion{{}, selected, 0});
      open = std::get_if<RowRegion>(&regions_.back());
    }
    open->ops.push_back(std::move(op));
    open->width += width;
  }

  const Buffer& buffer(int index) const { return model_.buffers[static_cast<size_t>(index)]; }
  void push_on(RowOp op, int index) { push(std::move(op), buffer(index).selected, buffer(index).width); }

  void place(const Embed& op) { push_on(op, op.out); }
  void place(const RmsNorm& op) { push_on(op, op.out); }
  void place(const Rope& op) { push_on(op, op.x); }
  void place(const KVWrite& op) { push_on(op, op.k); }
  void place(const Add& op) { push_on(op, op.out); }
  void place(const Gated& op) { push_on(op, op.out); }
  void place(const Select& op) { push_on(op, op.out); }
  void place(const Attention& op) { regions_.push_back(op); }

  void place(const Linear& op) {
    if (std::any_of(op.weights.begin(), op.weights.end(), [this](int i) { return quantised(i); })) quantise(op.x);
    regions_.push_back(op);
  }

  void place(const Head& op) {
    if (quantised(op.weight)) quantise(op.x);
    regions_.push_back(op);
  }

  bool quantised(int weight) const { return model_.weights[static_cast<size_t>(weight)].matrix->quantised(); }
  void quantise(int x) { push_on(Quantize{x}, x); }

  const Model& model_;
  std::vector<Region> regions_;
};

}  // namespace

std::vector<Region> plan_regions(const Model& model) { return Planner(model).plan(); }

std::string kind_of(const Region& region, const Model& model) {
  if (std::holds_alternative<RowRegion>(region)) return "rows";
  if (std::holds_alternative<Attention>(region)) return "attention";
  if (std::holds_alternative<Head>(region)) return "head";
  const int weight = std::get<Linear>(region).weights[0];
  return "matmul " + std::string(codes_name(model.weights[static_cast<size_t>(weight)].matrix->codes()));
}

}  // namespace corral
