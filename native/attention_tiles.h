// Attention written once for vectors of any width. For files built with one instruction set's flags: `Vector` is a
// class of its operations, and everything here is local to the file that includes it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "attention.h"

namespace corral {
namespace {

// The blocks of one tile. Those that no query sees stand for the nearest one that some query does.
struct Tile {
  int start;  // first position
  const uint16_t *keys[kTile / kKvBlock], *values[kTile / kKvBlock];
  // What is prefetched while the keys and the values are read: as many bytes as these, some 16 KB ahead.
  const uint16_t *after_keys[kTile / kKvBlock], *after_values[kTile / kKvBlock];
};

constexpr int kLine = 32;       // halves of a cache line
constexpr int kShortHead = 64;  // up to this size a tile's keys and values are 16 KB

// Positions of a tile that some of the queries in hand see.
struct Range {
  int begin, end;
};

template <class Vector>
using Scores = float[Vector::kQueries][kTile];

// As many vectors a query as keep Q queries' sums in registers.
template <class Vector, int Q>
constexpr int kVectors = std::min<int>(std::bit_floor(unsigned{Vector::kSums} / Q), kTile / Vector::kLanes);

// 2^x for x of 0 or less, within 2 units of the last place; 0 below -125 and of NaN.
template <class Vector>
inline typename Vector::Floats power_of_two(typename Vector::Floats x) {
  const auto whole = Vector::all(12582912.0f);  // 1.5 * 2^23: the last bits of a sum are x to the nearest integer
  const auto n = Vector::add(x, whole);
  const auto r = Vector::subtract(x, Vector::subtract(n, whole));
  auto p = Vector::all(0.0013264727f);
  for (const float factor : {0.009671513f, 0.055507336f, 0.24022242f, 0.693147f, 1.0f}) {
    p = Vector::add_product(Vector::all(factor), p, r);
  }
  return Vector::shift(p, n, x);
}

inline void prefetch(const uint16_t* p) { __builtin_prefetch(p, 0, 2); }

// sums[i][j] += factor(i) * row(j). The fewer of both wait in registers, so that all sums can stay in theirs.
template <class Vector, int Q, int N, class Factor, class Row>
inline void add_products(typename Vector::Floats (&sums)[Q][N], const Factor& factor, const Row& row) {
  typename Vector::Floats held[std::min(Q, N)];
  if constexpr (Q < N) {
    for (int i = 0; i < Q; ++i) held[i] = factor(i);
    for (int j = 0; j < N; ++j) {
      const auto one = row(j);
      for (int i = 0; i < Q; ++i) sums[i][j] = Vector::add_product(sums[i][j], held[i], one);
    }
  } else {
    for (int j = 0; j < N; ++j) held[j] = row(j);
    for (int i = 0; i < Q; ++i) {
      const auto one = factor(i);
      for (int j = 0; j < N; ++j) sums[i][j] = Vector::add_product(sums[i][j], one, held[j]);
    }
  }
}

// scores[i][at ...] = q[i] . keys * scale for Q queries and N vectors of positions.
template <class Vector, int Q, int N>
void score_some(const AttentionTask& task, const float* const* q, const Tile& tile, int at, Scores<Vector>& scores) {
  constexpr int kLanes = Vector::kLanes, kRows = kLine / kKvBlock;
  typename Vector::Floats sums[Q][N];
  const uint16_t *keys[N], *after[N];
  for (int j = 0; j < N; ++j) {
    const int position = at + j * kLanes;
    keys[j] = tile.keys[position / kKvBlock] + position % kKvBlock;
    after[j] = tile.after_keys[position / kKvBlock];
    for (int i = 0; i < Q; ++i) sums[i][j] = Vector::all(0);
  }
  for (int line = 0; line < task.key_size; line += kRows) {
    for (int j = 0; j < N; ++j) {
      if (j * kLanes % kKvBlock == 0) prefetch(after[j] + line * kKvBlock);
    }
    for (int d = line; d < line + kRows; ++d) {
      add_products<Vector, Q, N>(
          sums, [&](int i) { return Vector::all(q[i][d]); },
          [&](int j) { return Vector::load_halves(keys[j] + d * kKvBlock); });
    }
  }
  const auto scale = Vector::all(task.scale * kLog2E);
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < N; ++j) Vector::store(scores[i] + at + j * kLanes, Vector::multiply(sums[i][j], scale));
  }
}

template <class Vector, int Q, int N>
void score(const AttentionTask& task, const float* const* q, const Tile& tile, Range range, Scores<Vector>& scores) {
  constexpr int kStep = N * Vector::kLanes;
  for (; range.begin + kStep <= range.end; range.begin += kStep) {
    score_some<Vector, Q, N>(task, q, tile, range.begin, scores);
  }
  if constexpr (N > 1) score<Vector, Q, N / 2>(task, q, tile, range, scores);
}

// Scores s become cap * tanh(s / cap).
template <class Vector>
void cap_scores(float cap, int queries, Range range, Scores<Vector>& scores) {
  const auto one = Vector::all(1.0f), zero = Vector::all(0.0f), inverse = Vector::all(1.0f / cap);
  for (int i = 0; i < queries; ++i) {
    for (int t = range.begin; t < range.end; t += Vector::kLanes) {
      const auto z = Vector::multiply(Vector::load(scores[i] + t), inverse);
      const auto size = Vector::larger(z, Vector::subtract(zero, z));
      const auto e = power_of_two<Vector>(Vector::multiply(size, Vector::all(-2 * kLog2E)));
      const auto tanh = Vector::divide(Vector::subtract(one, e), Vector::add(one, e));
      const auto signed_tanh = Vector::add(Vector::with_sign(tanh, z), Vector::subtract(z, z));  // NaN stays
      Vector::store(scores[i] + t, Vector::multiply(Vector::all(cap), signed_tanh));
    }
  }
}

// Scores become weights; `decay` is what each query's earlier sums are to be multiplied by. `range` is whole vectors.
template <class Vector>
void weigh(const AttentionTask& task, int first, int queries, const Tile& tile, Range range, Scores<Vector>& scores,
           float* decay, AttentionState& state) {
  float sums[Vector::kQueries];
  for (int i = 0; i < queries; ++i) {
    float* const row = scores[i];
    const int begin = std::max(task.first[first + i] - tile.start, range.begin);
    const int end = std::min(task.end[first + i] - tile.start, range.end);
    decay[i] = sums[i] = 0;  // of the logarithm, so far
    if (begin >= end) {
      std::fill(row + range.begin, row + range.end, 0.0f);
      continue;
    }
    if (begin > range.begin) std::fill(row + range.begin, row + begin, -INFINITY);
    if (end < range.end) std::fill(row + end, row + range.end, -INFINITY);
    auto largest = Vector::all(state.maximum[first + i]);
    for (int t = range.begin; t < range.end; t += Vector::kLanes) {
      largest = Vector::larger(largest, Vector::load(row + t));
    }
    const float best = Vector::max_lane(largest);
    const auto bests = Vector::all(best);
    auto sum = Vector::all(0);
    for (int t = range.begin; t < range.end; t += Vector::kLanes) {
      const auto weight = power_of_two<Vector>(Vector::subtract(Vector::load(row + t), bests));
      Vector::store(row + t, weight);
      sum = Vector::add(sum, weight);
    }
    sums[i] = Vector::sum_lanes(sum);
    decay[i] = state.maximum[first + i] - best;
    state.maximum[first + i] = best;
  }
  for (int i = 0; i < queries; i += Vector::kLanes) {
    Vector::store(decay + i, power_of_two<Vector>(Vector::load(decay + i)));
  }
  for (int i = 0; i < queries; ++i) state.sum[first + i] = state.sum[first + i] * decay[i] + sums[i];
}

// values[i][d ...] = values * decay[i] + weights[i] . the tile's values, for Q queries and N vectors of a head.
template <class Vector, int Q, int N>
void gather_some(const Tile& tile, Range range, const Scores<Vector>& weights, const float* decay, int dim, int d,
                 float* values) {
  constexpr int kLanes = Vector::kLanes;
  typename Vector::Floats sums[Q][N];
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < N; ++j) {
      sums[i][j] = Vector::multiply(Vector::load(values + i * dim + d + kLanes * j), Vector::all(decay[i]));
    }
  }
  for (int begin = range.begin, end; begin < range.end; begin = end) {
    const int slot = begin % kKvBlock, block = begin / kKvBlock;
    end = std::min(begin - slot + kKvBlock, range.end);
    const uint16_t* from = tile.values[block] + slot * dim + d;
    const uint16_t* after = tile.after_values[block] + d * kKvBlock + slot * N * kLanes;  // line after line
    for (int t = begin; t < end; ++t, from += dim, after += N * kLanes) {
      for (int j = 0; j < N; ++j) {
        if (kLanes * j % kLine == 0) prefetch(after + kLanes * j);
      }
      add_products<Vector, Q, N>(
          sums, [&](int i) { return Vector::all(weights[i][t]); },
          [&](int j) { return Vector::load_halves(from + kLanes * j); });
    }
  }
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < N; ++j) Vector::store(values + i * dim + d + kLanes * j, sums[i][j]);
  }
}

template <class Vector, int Q, int N>
void gather(const Tile& tile, Range range, const Scores<Vector>& weights, const float* decay, int dim, int d,
            float* values) {
  constexpr int kStep = N * Vector::kLanes;
  for (; d + kStep <= dim; d += kStep) gather_some<Vector, Q, N>(tile, range, weights, decay, dim, d, values);
  if constexpr (N > 1) gather<Vector, Q, N / 2>(tile, range, weights, decay, dim, d, values);
}

// Queries first to first + Q of the task over one tile.
template <class Vector, int Q>
void attend_some(const AttentionTask& task, int first, const Tile& tile, AttentionState& state) {
  constexpr int kLanes = Vector::kLanes, kWide = kVectors<Vector, Q>;
  const int begin = std::max(*std::min_element(task.first + first, task.first + first + Q) - tile.start, 0);
  const int end = std::min(*std::max_element(task.end + first, task.end + first + Q) - tile.start, kTile);
  if (begin >= end) return;
  const Range whole{begin / kLanes * kLanes, (end + kLanes - 1) / kLanes * kLanes};
  alignas(64) Scores<Vector> scores;
  alignas(64) float decay[kMaxQueries];
  score<Vector, Q, kWide>(task, task.q + first, tile, whole, scores);
  if (task.softcap > 0) cap_scores<Vector>(task.softcap * kLog2E, Q, whole, scores);
  weigh<Vector>(task, first, Q, tile, whole, scores, decay, state);
  gather<Vector, Q, kWide>(tile, {begin, end}, scores, decay, task.value_size, 0,
                           state.values + first * task.value_size);
}

template <class Vector>
using AttendSome = void (*)(const AttentionTask& task, int first, const Tile& tile, AttentionState& state);

template <class Vector, int... Q>
constexpr auto attend_table(std::integer_sequence<int, Q...>) {
  return std::to_array<AttendSome<Vector>>({attend_some<Vector, Q + 1>...});
}

template <class Vector>
bool takes_heads_of(const AttentionTask& task) {
  return task.key_size % Vector::kLanes == 0 && task.value_size % Vector::kLanes == 0;
}

// For heads that the vectors take.
template <class Vector>
void attend_segment(const AttentionTask& task, int begin, AttentionState& state) {
  static constexpr auto kTable = attend_table<Vector>(std::make_integer_sequence<int, Vector::kQueries>());
  std::fill_n(state.maximum, task.queries, -INFINITY);
  std::fill_n(state.sum, task.queries, 0.0f);
  std::fill_n(state.values, task.queries * task.value_size, 0.0f);
  const int first = *std::min_element(task.first, task.first + task.queries);
  const int end = *std::max_element(task.end, task.end + task.queries);
  const auto keys = [&](int position) {
    return task.keys + task.blocks[std::clamp(position, first, end - 1) / kKvBlock] * task.block_stride;
  };
  const int64_t to_values = task.values - task.keys;
  const bool is_short = task.key_size <= kShortHead && task.value_size <= kShortHead;
  const int passes = (task.queries + Vector::kQueries - 1) / Vector::kQueries;
  for (int start = std::max(begin, first) / kTile * kTile; start < std::min(begin + kSegment, end); start += kTile) {
    Tile tile{start, {}, {}, {}, {}};
    for (int i = 0; i < kTile / kKvBlock; ++i) {
      const int position = start + i * kKvBlock;
      tile.keys[i] = keys(position);
      tile.values[i] = tile.keys[i] + to_values;
      const uint16_t* next = position + kTile < end ? keys(position + kTile) : task.next[i];
      tile.after_keys[i] = is_short ? next : tile.values[i];
      tile.after_values[i] = is_short ? next + to_values : next;
    }
    for (int pass = 0; pass < passes; ++pass) {
      const int from = task.queries * pass / passes, to = task.queries * (pass + 1) / passes;
      kTable[static_cast<size_t>(to - from - 1)](task, from, tile, state);
    }
  }
}

}  // namespace
}  // namespace corral
