// How a Program's ops are grouped into regions that the team runs one after the other.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "model.h"
#include "ops.h"

namespace corral {

// Computes the step's cosines and sines of one rope table.
struct Angles {
  int table;
};

// Quantises a buffer's rows for the matmul that comes next.
struct Quantize {
  int x;
};

using RowOp = std::variant<Embed, RmsNorm, Rope, KVWrite, Add, Gated, Select, Angles, Quantize>;

// Ops that work on each row alone: one thread takes a row through all of them.
struct RowRegion {
  std::vector<RowOp> ops;
  bool selected;
  int width;  // floats that one row touches, for choosing how many rows make a chunk
};

using Region = std::variant<RowRegion, Linear, Attention, Head>;

std::vector<Region> plan_regions(const Model& model);
// What a profile calls a region's time: "rows", "attention", "head", or "matmul" and the weights' codes.
std::string kind_of(const Region& region, const Model& model);

}  // namespace corral
