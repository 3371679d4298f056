#include "attention.h"

#include <algorithm>
#include <cmath>

#include "half.h"

namespace corral {
namespace {

// One query over one tile: positions [begin, end) of the tile at `tile`.
void attend_tile(const AttentionTask& task, int query, int begin, int end, AttentionState& state) {
  const int dim = task.value_size;
  const float cap = task.softcap * kLog2E;
  float scores[kTile];
  float best = state.maximum[query];
  for (int p = begin; p < end; ++p) {
    const uint16_t* key = task.keys + task.blocks[p / kKvBlock] * task.block_stride + p % kKvBlock;
    float dot = 0;
    for (int d = 0; d < task.key_size; ++d) dot += task.q[query][d] * half_to_float(key[d * kKvBlock]);
    scores[p - begin] = dot * (task.scale * kLog2E);
    if (task.softcap > 0) scores[p - begin] = cap * std::tanh(scores[p - begin] / cap);
    best = std::max(best, scores[p - begin]);
  }
  const float decay = std::exp2(state.maximum[query] - best);
  state.maximum[query] = best;
  state.sum[query] *= decay;
  float* total = state.values + query * dim;
  for (int d = 0; d < dim; ++d) total[d] *= decay;
  for (int p = begin; p < end; ++p) {
    const float weight = std::exp2(scores[p - begin] - best);
    const uint16_t* value = task.values + task.blocks[p / kKvBlock] * task.block_stride + p % kKvBlock * dim;
    state.sum[query] += weight;
    for (int d = 0; d < dim; ++d) total[d] += weight * half_to_float(value[d]);
  }
}

}  // namespace

void attend_segment_scalar(const AttentionTask& task, int begin, AttentionState& state) {
  for (int query = 0; query < task.queries; ++query) {
    state.maximum[query] = -INFINITY;
    state.sum[query] = 0;
    std::fill_n(state.values + query * task.value_size, task.value_size, 0.0f);
    for (int tile = begin; tile < begin + kSegment; tile += kTile) {
      const int from = std::max(tile, task.first[query]), to = std::min(tile + kTile, task.end[query]);
      if (from < to) attend_tile(task, query, from, to, state);
    }
  }
}

void add_segment(float& total_maximum, float& total_sum, float* total_values, float maximum, float sum,
                 const float* values, int value_size) {
  if (sum == 0) return;  // the query saw nothing of it
  const float best = std::max(total_maximum, maximum);
  const float decay = std::exp2(total_maximum - best), weight = std::exp2(maximum - best);
  total_maximum = best;
  total_sum = total_sum * decay + sum * weight;
  for (int d = 0; d < value_size; ++d) total_values[d] = total_values[d] * decay + values[d] * weight;
}

}  // namespace corral
