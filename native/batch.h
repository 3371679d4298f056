// The arrays of one step as Python gave them, and the checks that make them safe to follow.
#pragma once

#include <cstdint>
#include <span>

#include "sampling.h"

namespace corral {

using Ints = std::span<const int32_t>;
// Ids and what each is given, of R rows: row r's lie between its entries of `starts`. No starts: no row has any.
template <class T>
struct RowLists {
  Ints starts, ids;
  std::span<const T> values;

  std::span<const int32_t> ids_of(size_t r) const { return of(ids, r); }
  std::span<const T> values_of(size_t r) const { return of(values, r); }

 private:
  template <class Span>
  Span of(Span all, size_t r) const {
    if (starts.empty()) return {};
    const auto begin = static_cast<size_t>(starts[r]);
    return all.subspan(begin, static_cast<size_t>(starts[r + 1]) - begin);
  }
};

// Which tokens rows may be given, a bit each; no rows: every row may be given all.
struct Masks {
  Ints rows;                       // [R], -1 = all
  std::span<const uint32_t> bits;  // [masks, words]
  size_t words;                    // ceil(vocab / 32)

  const uint32_t* of(size_t r) const {
    return rows.empty() || rows[r] < 0 ? nullptr : bits.data() + static_cast<size_t>(rows[r]) * words;
  }
};

struct SamplingRows {
  std::span<const SamplingColumns> columns;  // [R]
  Masks masks;
  RowLists<int32_t> penalties;
  RowLists<float> bias;

  SamplingRow row(size_t r) const {
    return {columns[r], masks.of(r), penalties.ids_of(r), penalties.values_of(r), bias.ids_of(r), bias.values_of(r)};
  }
};

struct Batch {
  Ints tokens, positions;  // [N]
  Ints starts;             // [B + 1]
  Ints slots;              // [B]
  Ints tables;             // [groups, all_slots, table]
  int groups, all_slots;
  int table;  // blocks of the longest table
  Ints rows;               // [R]
  SamplingRows sampling;
  std::span<const float> inputs;  // [N, width] for a Program with an Input

  int n() const { return static_cast<int>(tokens.size()); }
  int sequences() const { return static_cast<int>(starts.size()) - 1; }
  // Where a sequence's positions lie for a group of KV layers; what it no longer sees may be anything.
  Ints blocks_of(int group, int sequence) const {
    const int64_t row = int64_t{group} * all_slots + slots[static_cast<size_t>(sequence)];
    return tables.subspan(static_cast<size_t>(row * table), static_cast<size_t>(table));
  }
};

struct Limits {
  int max_tokens, max_sequences, vocab;
};

// KV layers that share block tables.
struct KVGroup {
  int window;  // last positions that a query sees; 0 = all
  int pool;    // where the blocks come from
  int num_blocks;  // of the pool
};

// What came out for each of the R rows; the arrays belong to the caller.
struct StepResult {
  std::span<int32_t> tokens;      // [R]
  std::span<float> logprobs;      // [R]
  std::span<int32_t> top_tokens;  // [R, kTopTokens]
  std::span<float> top_logprobs;  // [R, kTopTokens]
  std::span<float> vectors;       // [R, width] of a Program that ends in Output
};

// Throws std::invalid_argument, naming the array, unless a step over this batch stays inside every buffer.
void check_batch(const Batch& batch, const Limits& limits, std::span<const KVGroup> groups);

}  // namespace corral
