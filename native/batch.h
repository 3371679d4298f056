// The arrays of one step as Python gave them, and the checks that make them safe to follow.
#pragma once

#include <cstdint>
#include <span>

#include "sampling.h"

namespace corral {

using Ints = std::span<const int32_t>;
using Floats = std::span<const float>;

// R rows to sample or score; lists of row r lie between its entries of `starts`.
struct SamplingRows {
  Ints target;
  Floats temperature;
  Ints top_k;
  Floats top_p, min_p, repetition, presence, frequency;
  std::span<const uint64_t> seeds;
  Ints logprobs;
  Ints penalty_starts, penalty_ids, penalty_counts;
  std::span<const uint8_t> penalty_repeats;
  Ints bias_starts, bias_ids;
  Floats bias_values;

  SamplingRow row(size_t r) const;
};

struct Batch {
  Ints tokens, positions;  // [N]
  Ints starts;             // [B + 1]
  Ints blocks;             // [groups, B, table]
  int groups;
  int table;  // blocks of the longest table
  Ints rows;               // [R]
  SamplingRows sampling;

  int n() const { return static_cast<int>(tokens.size()); }
  int sequences() const { return static_cast<int>(starts.size()) - 1; }
  // Where a sequence's positions lie for a group of KV layers; what it no longer sees may be anything.
  Ints blocks_of(int group, int sequence) const {
    const size_t row = static_cast<size_t>(group) * static_cast<size_t>(sequences()) + static_cast<size_t>(sequence);
    return blocks.subspan(row * static_cast<size_t>(table), static_cast<size_t>(table));
  }
};

struct Limits {
  int max_tokens, max_sequences, num_blocks, vocab;
};

// What came out for each of the R rows; the arrays belong to the caller.
struct StepResult {
  std::span<int32_t> tokens;      // [R]
  std::span<float> logprobs;      // [R]
  std::span<int32_t> top_tokens;  // [R, kTopTokens]
  std::span<float> top_logprobs;  // [R, kTopTokens]
};

// Throws std::invalid_argument, naming the array, unless a step over this batch stays inside every buffer.
// `windows` has what each group of KV layers sees, 0 = all.
void check_batch(const Batch& batch, const Limits& limits, Ints windows);

}  // namespace corral
