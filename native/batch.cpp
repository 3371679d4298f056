#include "batch.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kv_cache.h"

namespace corral {
namespace {

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("wrong batch: ") + what);
}

template <class Values, class Test>
void require_all(const Values& values, Test test, const char* what) {
  require(std::all_of(values.begin(), values.end(), test), what);
}

// starts = [0, ..., end], never falling.
void check_starts(Ints starts, size_t entries, size_t end, const char* what) {
  require(starts.size() == entries && starts.front() == 0 && starts.back() == static_cast<int64_t>(end) &&
              std::is_sorted(starts.begin(), starts.end()),
          what);
}

// The rows of one sequence are consecutive positions whose blocks, and all before them that they see, exist.
void check_sequence(const Batch& batch, int sequence, std::span<const KVGroup> groups) {
  const int begin = batch.starts[sequence], end = batch.starts[sequence + 1];
  if (begin == end) return;
  const int64_t first = batch.positions[begin], last = first + (end - begin) - 1;
  require(first >= 0 && last / kKvBlock < batch.table, "positions must lie within the sequence's blocks");
  for (int row = begin; row < end; ++row) {
    require(batch.positions[row] == first + (row - begin), "positions of a sequence must be consecutive");
  }
  for (size_t group = 0; group < groups.size(); ++group) {
    const auto [window, pool, num_blocks] = groups[group];
    const int64_t seen = window == 0 ? 0 : std::max<int64_t>(0, first + 1 - window) / kKvBlock;
    const Ints table = batch.blocks_of(static_cast<int>(group), sequence);
    require_all(table.subspan(static_cast<size_t>(seen), static_cast<size_t>(last / kKvBlock + 1 - seen)),
                [most = num_blocks](int32_t block) { return block >= 0 && block < most; },
                "blocks must be numbers of blocks");
  }
}

template <class T>
void check_lists(const RowLists<T>& lists, size_t rows, int vocab) {
  if (lists.starts.empty() && lists.ids.empty()) return;
  check_starts(lists.starts, rows + 1, lists.ids.size(), "starts of penalties or bias");
  require(lists.values.size() == lists.ids.size(), "arrays of penalties or bias differ in length");
  require_all(lists.ids, [=](int32_t id) { return id >= 0 && id < vocab; }, "ids of penalties or bias must be tokens");
}

void check_masks(const Masks& masks, size_t rows, int vocab) {
  if (masks.rows.empty() && masks.words == 0) return;
  require(masks.rows.size() == rows, "mask rows must have one entry a row");
  require(masks.words == (static_cast<size_t>(vocab) + 31) / 32, "masks must have a bit a token");
  const auto count = static_cast<int64_t>(masks.bits.size() / masks.words);
  require_all(masks.rows, [=](int32_t mask) { return mask >= -1 && mask < count; }, "mask rows must be rows of bits");
}

void check_sampling(const SamplingRows& sampling, size_t rows, int vocab) {
  require(sampling.columns.size() == rows, "sampling columns must have one entry a row");
  for (const SamplingColumns& row : sampling.columns) {
    for (float value : {row.temperature, row.top_p, row.min_p, row.repetition, row.presence, row.frequency}) {
      require(std::isfinite(value), "sampling values must be numbers");
    }
    require(row.target >= -1 && row.target < vocab, "targets must be tokens");
    require(row.logprobs >= -1 && row.logprobs <= kTopTokens, "logprobs must be -1 to 20");
    require(row.temperature >= 0, "temperature must not be negative");
    require(row.repetition > 0, "repetition must be positive");
  }
  check_masks(sampling.masks, rows, vocab);
  check_lists(sampling.penalties, rows, vocab);
  check_lists(sampling.bias, rows, vocab);
  require_all(sampling.bias.values, [](float value) { return value < INFINITY; }, "bias values must be numbers");
}

}  // namespace

void check_batch(const Batch& batch, const Limits& limits, std::span<const KVGroup> groups) {
  const int n = batch.n();
  require(n <= limits.max_tokens, "more tokens than a step may have");
  require(batch.positions.size() == batch.tokens.size(), "positions must have one entry a token");
  require(!batch.starts.empty() && batch.sequences() <= limits.max_sequences, "too many sequences");
  check_starts(batch.starts, batch.starts.size(), batch.tokens.size(), "starts");
  require_all(batch.tokens, [&](int32_t token) { return token >= 0 && token < limits.vocab; },
              "tokens must be below the vocabulary's size");
  require(batch.slots.size() + 1 == batch.starts.size(), "slots must have one entry a sequence");
  require_all(batch.slots, [&](int32_t slot) { return slot >= 0 && slot < batch.all_slots; },
              "slots must be rows of the tables");
  require(static_cast<size_t>(batch.groups) >= groups.size(), "tables must be there for every group");
  for (int sequence = 0; sequence < batch.sequences(); ++sequence) {
    check_sequence(batch, sequence, groups);
  }
  require(batch.rows.size() <= static_cast<size_t>(limits.max_tokens), "more logit rows than tokens");
  require_all(batch.rows, [=](int32_t row) { return row >= 0 && row < n; }, "rows must be rows of the batch");
  check_sampling(batch.sampling, batch.rows.size(), limits.vocab);
}

}  // namespace corral
