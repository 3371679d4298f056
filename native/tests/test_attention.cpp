#include <algorithm>
#include <numeric>
#include <utility>

#include "checks.h"
#include "half.h"
#include "kernels.h"

namespace corral::tests {
namespace {

constexpr int kPositions = 330;  // more than a segment, and no whole block
constexpr int kBlocks = (kPositions + kKvBlock - 1) / kKvBlock;
constexpr uint16_t kNan = 0x7e00;

// Keys and values of one sequence, its blocks in no order; what was never written is NaN.
class Memory {
 public:
  Memory(int key_size, int value_size, Random& random)
      : keys_(key_size), values_(value_size), halves_(static_cast<size_t>(kBlocks * stride()), kNan), table_(kBlocks) {
    std::iota(table_.begin(), table_.end(), 0);
    for (int i = kBlocks - 1; i > 0; --i) std::swap(table_[i], table_[random.below(i + 1)]);
    for (int position = 0; position < kPositions; ++position) {
      uint16_t* block = halves_.data() + table_[position / kKvBlock] * stride();
      const int at = position % kKvBlock;
      uint16_t* value = block + kKvBlock * keys_ + at * values_;
      for (int d = 0; d < std::max(keys_, values_); ++d) {
        if (d < keys_) block[d * kKvBlock + at] = float_to_half(random.number());
        if (d < values_) value[d] = float_to_half(random.number());
      }
    }
  }

  AttentionTask task() const {
    return {.keys = halves_.data(),
            .values = halves_.data() + kKvBlock * keys_,
            .blocks = table_.data(),
            .block_stride = stride(),
            .key_size = keys_,
            .value_size = values_,
            .scale = 1 / std::sqrt(static_cast<float>(keys_)),
            .softcap = 0,
            .queries = 0,
            .q = {},
            .first = {},
            .end = {},
            .next = {halves_.data(), halves_.data(), halves_.data(), halves_.data()}};
  }

 private:
  int64_t stride() const { return int64_t{kKvBlock} * (keys_ + values_); }

  int keys_, values_;  // of a head
  std::vector<uint16_t> halves_;
  std::vector<int32_t> table_;
};

// Per query: maximum, sum, values.
std::vector<float> attend(AttendSegment kernel, const AttentionTask& task, int begin) {
  std::vector<float> values(static_cast<size_t>(task.queries * task.value_size), 77.0f), result;
  AttentionState state{.maximum = {}, .sum = {}, .values = values.data()};
  kernel(task, begin, state);
  for (int i = 0; i < task.queries; ++i) {
    const auto from = values.begin() + i * task.value_size;
    result.insert(result.end(), {state.maximum[i], state.sum[i]});
    result.insert(result.end(), from, from + task.value_size);
  }
  return result;
}

void compare(AttendSegment kernel, const AttentionTask& task, int begin, const std::string& what) {
  const std::vector<float> together = attend(kernel, task, begin);
  expect_close(together, attend(attend_segment_scalar, task, begin), 2e-5, what);
  for (int i = 0; i < task.queries; ++i) {
    AttentionTask alone = task;
    alone.queries = 1;
    alone.q[0] = task.q[i], alone.first[0] = task.first[i], alone.end[0] = task.end[i];
    const auto from = together.begin() + i * (task.value_size + 2);
    expect_same(attend(kernel, alone, begin), {from, from + task.value_size + 2}, what + ", alone");
  }
}

}  // namespace

void test_attention(Isa isa) {
  const AttendSegment kernel = choose_kernels(std::string(isa_name(isa))).attend;
  Random random(4);
  constexpr std::pair<int, int> kSizes[] = {{6, 6},     {12, 12},   {24, 24},  {64, 64}, {80, 80},
                                            {256, 256}, {192, 128}, {48, 144}, {20, 64}, {64, 20}};
  for (const auto& [key_size, value_size] : kSizes) {
    const Memory memory(key_size, value_size, random);
    const std::vector<float> q = random.numbers(kMaxQueries * key_size, 2);
    for (int queries : {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 24}) {
      if (queries > kMaxQueries) continue;
      AttentionTask task = memory.task();
      task.queries = queries;
      for (int i = 0; i < queries; ++i) task.q[i] = q.data() + i * key_size;
      const auto try_with = [&](const auto& end, const auto& first, const char* which) {
        for (int i = 0; i < queries; ++i) {
          task.end[i] = end(i);
          task.first[i] = std::max(first(i), 0);
        }
        const std::string what = std::string(which) + ", head " + std::to_string(key_size) + "/" + std::to_string(value_size) +
                                 ", queries " + std::to_string(queries);
        for (int begin : {0, kSegment}) compare(kernel, task, begin, what);
      };
      // Ends where the memory does, so that a position too far would be NaN.
      const auto all = [](int) { return 0; };
      try_with([](int) { return kPositions; }, all, "heads of a row");
      try_with([&](int i) { return kPositions - queries + 1 + i; }, all, "rows of a prompt");
      try_with([&](int i) { return kPositions - 40 * (queries - 1 - i) % 300; }, [](int i) { return 37 * i % 200; }, "scattered");
      try_with([](int i) { return kPositions - i % 2 * 290; }, [](int i) { return kPositions - 40 - i % 2 * 290; }, "window");
    }
  }
}

}  // namespace corral::tests
