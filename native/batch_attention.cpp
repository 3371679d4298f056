#include "batch_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace corral {
namespace {

// Positions of a segment are fixed, so one thread adds up the same parts in the same order as many would.
int first_segment(const AttentionTask& task) {
  return *std::min_element(task.first, task.first + task.queries) / kSegment;
}

int end_segment(const AttentionTask& task) {
  return (*std::max_element(task.end, task.end + task.queries) + kSegment - 1) / kSegment;
}

}  // namespace

void BatchAttention::start(const Batch& batch) {
  batch_ = &batch;
  tile_rows_ = 0;
  all_rows_.resize(batch.tokens.size());
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
}

void BatchAttention::run(const Attention& op, KVCache& cache, bool selected, const AttentionRows& rows) {
  cut_units(op, cache, selected);
  int longest = 0;
  for (const Tile& tile : tiles_) longest = std::max(longest, tile.position + tile.rows);
  const int segments = (longest + kSegment - 1) / kSegment;
  // Too few units to keep the team busy: let it share the segments of each.
  if (segments > 1 && team_.size() > 1 && units_.size() < 4 * static_cast<size_t>(team_.size())) {
    run_split(op, cache, rows, segments);
  } else {
    run_whole(op, cache, rows);
  }
}

void BatchAttention::cut_units(const Attention& op, const KVCache& cache, bool selected) {
  const int group = op.heads / cache.kv_heads;
  const int parts = (group + kMaxQueries - 1) / kMaxQueries, heads = (group + parts - 1) / parts;
  cut_tiles(std::max(1, kMaxQueries / group), selected);
  units_.clear();
  for (const Tile& tile : tiles_) {
    for (int kv_head = 0; kv_head < cache.kv_heads; ++kv_head) {
      for (int first = 0; first < group; first += heads) {
        units_.push_back({tile, kv_head, kv_head * group + first, std::min(heads, group - first)});
      }
    }
  }
}

void BatchAttention::cut_tiles(int rows_of_a_tile, bool selected) {
  if (rows_of_a_tile == tile_rows_ && selected == tiles_selected_) return;
  tile_rows_ = rows_of_a_tile;
  tiles_selected_ = selected;
  tiles_.clear();
  const Ints rows = selected ? batch_->rows : all_rows_;
  for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(tiles_.back().rows)) {
    const auto next = std::upper_bound(batch_->starts.begin(), batch_->starts.end(), rows[at]);
    const auto end = std::min(rows.size(), at + static_cast<size_t>(tile_rows_));
    size_t last = at;
    while (last + 1 < end && rows[last + 1] == rows[last] + 1 && rows[last + 1] < *next) ++last;
    tiles_.push_back({.sequence = static_cast<int>(next - batch_->starts.begin()) - 1,
                      .row = static_cast<int>(at),
                      .rows = static_cast<int>(last - at) + 1,
                      .position = batch_->positions[rows[at]]});
  }
}

AttentionTask BatchAttention::task_of(const Attention& op, KVCache& cache, const AttentionRows& rows,
                                      const Unit& unit) const {
  AttentionTask task{
      .keys = cache.keys(0, unit.kv_head),
      .values = cache.values(0, unit.kv_head),
      .blocks = batch_->blocks_of(cache.group, unit.tile.sequence).data(),
      .block_stride = cache.block_stride(),
      .key_size = cache.key_size,
      .value_size = cache.value_size,
      .scale = op.scale,
      .softcap = op.softcap,
      .queries = unit.tile.rows * unit.heads,
      .q = {},
      .first = {},
      .end = {},
      .next = {},
  };
  for (int i = 0; i < task.queries; ++i) {
    const int64_t row = unit.tile.row + i / unit.heads;
    const int end = unit.tile.position + i / unit.heads + 1;
    task.q[i] = rows.q + row * rows.q_stride + (unit.head + i % unit.heads) * cache.key_size;
    task.first[i] = cache.window == 0 ? 0 : std::max(0, end - cache.window);
    task.end[i] = end;
  }
  std::fill(std::begin(task.next), std::end(task.next), task.keys);
  return task;
}

// Where the task of a unit will begin to read.
void BatchAttention::announce(const Unit& unit, KVCache& cache, AttentionTask& task) const {
  const Ints blocks = batch_->blocks_of(cache.group, unit.tile.sequence);
  const int end = batch_->positions[unit.tile.row + unit.tile.rows - 1];
  const int begin = cache.window == 0 ? 0 : std::max(0, batch_->positions[unit.tile.row] + 1 - cache.window);
  for (int i = 0; i < kTile / kKvBlock; ++i) {
    const int position = std::clamp(begin / kTile * kTile + i * kKvBlock, begin, end);
    task.next[i] = cache.keys(blocks[position / kKvBlock], unit.kv_head);
  }
}

void BatchAttention::run_whole(const Attention& op, KVCache& cache, const AttentionRows& rows) {
  team_.run(static_cast<int>(units_.size()), [&](int number, int thread) {
    const Unit& unit = units_[number];
    AttentionTask task = task_of(op, cache, rows, unit);
    announce(units_[std::min(number + static_cast<size_t>(team_.size()), units_.size() - 1)], cache, task);
    Scratch& scratch = scratch_[thread];
    scratch.segment.values.resize(static_cast<size_t>(kMaxQueries) * task.value_size);
    reset(scratch.total, task.value_size);
    for (int segment = first_segment(task); segment < end_segment(task); ++segment) {
      attend(task, segment, scratch.segment);
      merge(task, scratch.segment, scratch.total);
    }
    write(task, rows, unit, scratch.total);
  });
}

void BatchAttention::run_split(const Attention& op, KVCache& cache, const AttentionRows& rows, int segments) {
  partials_.resize(std::max(partials_.size(), units_.size() * static_cast<size_t>(segments)));
  const int units = static_cast<int>(units_.size());
  team_.run(units * segments, [&](int number, int) {
    const int unit = number % units, segment = number / units;  // heads of a block lie side by side
    const AttentionTask task = task_of(op, cache, rows, units_[unit]);
    if (segment < first_segment(task) || segment >= end_segment(task)) return;
    Partial& partial = partials_[unit * segments + segment];
    partial.values.resize(static_cast<size_t>(kMaxQueries) * task.value_size);
    attend(task, segment, partial);
  });
  for (size_t number = 0; number < units_.size(); ++number) {
    const AttentionTask task = task_of(op, cache, rows, units_[number]);
    Partial& total = scratch_[0].total;
    reset(total, task.value_size);
    for (int segment = first_segment(task); segment < end_segment(task); ++segment) {
      merge(task, partials_[number * segments + segment], total);
    }
    write(task, rows, units_[number], total);
  }
}

void BatchAttention::attend(const AttentionTask& task, int segment, Partial& partial) const {
  AttentionState state{.maximum = {}, .sum = {}, .values = partial.values.data()};
  kernel_(task, segment * kSegment, state);
  std::copy_n(state.maximum, task.queries, partial.maximum);
  std::copy_n(state.sum, task.queries, partial.sum);
}

void BatchAttention::reset(Partial& partial, int value_size) {
  std::fill_n(partial.maximum, kMaxQueries, -INFINITY);
  std::fill_n(partial.sum, kMaxQueries, 0.0f);
  partial.values.assign(static_cast<size_t>(kMaxQueries) * value_size, 0.0f);
}

void BatchAttention::merge(const AttentionTask& task, const Partial& segment, Partial& total) {
  for (int i = 0; i < task.queries; ++i) {
    const int64_t at = static_cast<int64_t>(i) * task.value_size;
    add_segment(total.maximum[i], total.sum[i], total.values.data() + at, segment.maximum[i], segment.sum[i],
                segment.values.data() + at, task.value_size);
  }
}

void BatchAttention::write(const AttentionTask& task, const AttentionRows& rows, const Unit& unit, Partial& total) {
  for (int i = 0; i < task.queries; ++i) {
    const int64_t row = unit.tile.row + i / unit.heads;
    const float* values = total.values.data() + static_cast<int64_t>(i) * task.value_size;
    float* to = rows.out + row * rows.out_stride + (unit.head + i % unit.heads) * task.value_size;
    const float factor = 1.0f / total.sum[i];
    for (int d = 0; d < task.value_size; ++d) to[d] = values[d] * factor;
  }
}

}  // namespace corral
