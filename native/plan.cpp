#include "plan.h"

#include <utility>

namespace corral {
namespace {

// The buffer whose rows an op goes through: what it writes first, or else what it reads first.
template <FromPython T>
int rows_of(const T& op) {
  int read = -1, written = -1;
  each_number(op, [&](auto number) {
    using Kind = decltype(number);
    if (std::is_same_v<Kind, Read> && read < 0) read = number;
    if (std::is_same_v<Kind, Written> && written < 0) written = number;
  });
  return written < 0 ? read : written;
}

class Planner {
 public:
  explicit Planner(const Model& model) : model_(model) {}

  std::vector<Region> plan() {
    for (size_t table = 0; table < model_.ropes.size(); ++table) {
      push(Angles{static_cast<int>(table)}, false, 4 * static_cast<int>(model_.ropes[table].frequencies.size()));
    }
    for (const Op& op : model_.ops) std::visit([this](const auto& one) { place(one); }, op);
    return std::move(regions_);
  }

 private:
  template <class T>
  void place(const T& op) {
    if constexpr (RowOp<T>) {
      push_on(op, rows_of(op));
    } else {
      quantise_inputs(op);
      regions_.push_back(op);
    }
  }
  void place(const Angles&) {}
  void place(const Quantize&) {}

  // Quantised matrices are multiplied with quantised rows: those of the first buffer that the op reads.
  template <class T>
  void quantise_inputs(const T& op) {
    int x = -1;
    bool quantised = false;
    each_number(op, [&](auto number) {
      if constexpr (std::is_same_v<decltype(number), Read>) x = x < 0 ? number : x;
      if constexpr (std::is_same_v<decltype(number), MatrixRef>) quantised |= model_.matrix(number).quantised();
      if constexpr (std::is_same_v<decltype(number), StackRef>) quantised |= model_.expert(number, 0).quantised();
    });
    if (quantised) push_on(Quantize{x}, x);
  }

  void push_on(Op op, int index) { push(std::move(op), model_.buffer(index).selected, model_.buffer(index).width); }

  void push(Op op, bool selected, int width) {
    auto* open = regions_.empty() ? nullptr : std::get_if<RowRegion>(&regions_.back());
    if (open == nullptr || open->selected != selected) {
      regions_.push_back(RowRegion{{}, selected, 0});
      open = std::get_if<RowRegion>(&regions_.back());
    }
    open->ops.push_back(std::move(op));
    open->width += width;
  }

  const Model& model_;
  std::vector<Region> regions_;
};

}  // namespace

std::vector<Region> plan_regions(const Model& model) { return Planner(model).plan(); }

std::string kind_of(const Region& region, const Model& model) {
  if (std::holds_alternative<RowRegion>(region)) return "rows";
  return std::visit([&](const auto& op) -> std::string {
    if constexpr (RowOp<std::decay_t<decltype(op)>>) return "rows";
    else return op.kind(model);
  }, std::get<Op>(region));
}

}  // namespace corral
