// How a Program's ops are grouped into regions that the team runs one after the other.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "model.h"
#include "ops.h"

namespace corral {

// Row ops that one thread takes a row through.
struct RowRegion {
  std::vector<Op> ops;
  bool selected;
  int width;  // floats that one row touches, for choosing how many rows make a chunk
};

// Row ops together, or an op that shares its work among the team itself.
using Region = std::variant<RowRegion, Op>;

std::vector<Region> plan_regions(const Model& model);
// What a profile calls a region's time: "rows", "attention", "head", or "matmul" and the weights' codes.
std::string kind_of(const Region& region, const Model& model);

}  // namespace corral
