#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "attention.h"
#include "exp_avx2.h"

namespace corral {
namespace {

// The blocks of one tile that any of the queries sees, and the positions in them.
struct Tile {
  int start;             // first position of the tile
  int begin, end;        // positions that some query sees, relative to start
  const uint16_t* keys[kTile / kKvBlock];
  const uint16_t* values[kTile / kKvBlock];
};

using Scores = float[kMaxQueries][kTile];

__m256 load_halves(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// scores[i][16 * block ...] = q[i] . keys, for Q queries and B neighbouring blocks.
template <int Q, int B>
void score_blocks(const AttentionTask& task, const Tile& tile, int block, Scores& scores) {
  __m256 sums[Q][2 * B];
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < 2 * B; ++j) sums[i][j] = _mm256_setzero_ps();
  }
  for (int d = 0; d < task.head_dim; ++d) {
    __m256 keys[2 * B];
    for (int j = 0; j < 2 * B; ++j) keys[j] = load_halves(tile.keys[block + j / 2] + d * kKvBlock + j % 2 * 8);
    for (int i = 0; i < Q; ++i) {
      const __m256 q = _mm256_broadcast_ss(task.q[i] + d);
      for (int j = 0; j < 2 * B; ++j) sums[i][j] = _mm256_fmadd_ps(q, keys[j], sums[i][j]);
    }
  }
  const __m256 scale = _mm256_set1_ps(task.scale);
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < 2 * B; ++j) {
      _mm256_store_ps(scores[i] + block * kKvBlock + j * 8, _mm256_mul_ps(sums[i][j], scale));
    }
  }
}

// Scores of one query become weights; returns what its earlier values are to be multiplied by.
float weigh(const AttentionTask& task, int query, const Tile& tile, float* scores, AttentionState& state) {
  const int low = tile.begin / 8 * 8, high = (tile.end + 7) / 8 * 8;
  const int begin = std::max(task.first[query] - tile.start, low), end = std::min(task.end[query] - tile.start, high);
  if (begin >= end) {
    std::fill(scores + low, scores + high, 0.0f);
    return 1.0f;
  }
  std::fill(scores + low, scores + begin, -INFINITY);
  std::fill(scores + end, scores + high, -INFINITY);
  __m256 largest = _mm256_set1_ps(state.maximum[query]);
  for (int i = low; i < high; i += 8) largest = _mm256_max_ps(largest, _mm256_load_ps(scores + i));
  const float best = max_lane(largest);
  const float decay = std::exp(state.maximum[query] - best);
  const __m256 bests = _mm256_set1_ps(best);
  __m256 sum = _mm256_setzero_ps();
  for (int i = low; i < high; i += 8) {
    const __m256 weight = exp_avx2(_mm256_sub_ps(_mm256_load_ps(scores + i), bests));
    _mm256_store_ps(scores + i, weight);
    sum = _mm256_add_ps(sum, weight);
  }
  state.maximum[query] = best;
  state.sum[query] = state.sum[query] * decay + sum_lanes(sum);
  return decay;
}

// values[i][d ... d + 8W] = values * decay[i] + weights[i] . tile's values.
template <int Q, int W>
void gather(const AttentionTask& task, const Tile& tile, const Scores& weights, const float* decay, int d,
            float* values) {
  const int dim = task.head_dim;
  __m256 sums[Q][W];
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < W; ++j) {
      sums[i][j] = _mm256_mul_ps(_mm256_loadu_ps(values + i * dim + d + 8 * j), _mm256_set1_ps(decay[i]));
    }
  }
  for (int t = tile.begin; t < tile.end; ++t) {
    const uint16_t* from = tile.values[t / kKvBlock] + t % kKvBlock * dim + d;
    __m256 row[W];
    for (int j = 0; j < W; ++j) row[j] = load_halves(from + 8 * j);
    for (int i = 0; i < Q; ++i) {
      const __m256 weight = _mm256_broadcast_ss(weights[i] + t);
      for (int j = 0; j < W; ++j) sums[i][j] = _mm256_fmadd_ps(weight, row[j], sums[i][j]);
    }
  }
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < W; ++j) _mm256_storeu_ps(values + i * dim + d + 8 * j, sums[i][j]);
  }
}

template <int Q>
void attend_tile(const AttentionTask& task, const Tile& tile, AttentionState& state) {
  constexpr int kBlocks = Q == 1 ? 4 : Q <= 3 ? 2 : 1;  // at a time, so that 8 to 12 sums are under way
  constexpr int kWidth = Q == 1 ? 8 : Q <= 3 ? 4 : 2;
  alignas(32) Scores scores;
  int block = tile.begin / kKvBlock;
  const int blocks = (tile.end + kKvBlock - 1) / kKvBlock;
  for (; block + kBlocks <= blocks; block += kBlocks) score_blocks<Q, kBlocks>(task, tile, block, scores);
  for (; block < blocks; ++block) score_blocks<Q, 1>(task, tile, block, scores);
  float decay[Q];
  for (int i = 0; i < Q; ++i) decay[i] = weigh(task, i, tile, scores[i], state);
  int d = 0;
  for (; d + 8 * kWidth <= task.head_dim; d += 8 * kWidth) {
    gather<Q, kWidth>(task, tile, scores, decay, d, state.values);
  }
  for (; d < task.head_dim; d += 8) gather<Q, 1>(task, tile, scores, decay, d, state.values);
}

template <int Q>
void attend(const AttentionTask& task, int begin, AttentionState& state) {
  const int first = std::max(begin, *std::min_element(task.first, task.first + Q));
  const int end = std::min(begin + kSegment, *std::max_element(task.end, task.end + Q));
  for (int start = first / kTile * kTile; start < end; start += kTile) {
    Tile tile{start, std::max(first - start, 0), std::min(end - start, kTile), {}, {}};
    for (int block = tile.begin / kKvBlock; block * kKvBlock < tile.end; ++block) {
      const int64_t offset = task.blocks[start / kKvBlock + block] * task.block_stride;
      tile.keys[block] = task.keys + offset;
      tile.values[block] = task.values + offset;
    }
    attend_tile<Q>(task, tile, state);
  }
}

template <int... Q>
constexpr auto attend_table(std::integer_sequence<int, Q...>) {
  return std::to_array<AttendSegment>({attend<Q + 1>...});
}

}  // namespace

void attend_segment_avx2(const AttentionTask& task, int begin, AttentionState& state) {
  static constexpr auto kTable = attend_table(std::make_integer_sequence<int, kMaxQueries>());
  std::fill_n(state.maximum, task.queries, -INFINITY);
  std::fill_n(state.sum, task.queries, 0.0f);
  std::fill_n(state.values, task.queries * task.head_dim, 0.0f);
  kTable[static_cast<size_t>(task.queries - 1)](task, begin, state);
}

}  // namespace corral
