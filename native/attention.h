// Attention of queries that share a kv head, over the blocks of one sequence.
#pragma once

#include <cstdint>

#include "kv_cache.h"

namespace corral {

constexpr int kMaxQueries = 24;  // of a task; a kernel takes as many at a time as keep their sums in registers
constexpr int kTile = 64;        // positions of one softmax step
constexpr int kSegment = 256;    // positions of one partial result

// Queries that see positions of the same sequence through the same kv head: heads of a group, and rows of a prompt.
struct AttentionTask {
  const uint16_t* keys;    // of the kv head in block 0, [Dk][16]; block b lies b * block_stride further
  const uint16_t* values;  // likewise, [16][Dv]
  const int32_t* blocks;   // the sequence's block table; entries that no query sees may be anything
  int64_t block_stride;
  int key_size, value_size;  // Dk and Dv, of a head
  float scale;
  float softcap;  // scores s become softcap * tanh(s / softcap); 0 = they stay
  int queries;
  const float* q[kMaxQueries];  // [Dk] each
  int first[kMaxQueries];       // a query sees the positions first to end
  int end[kMaxQueries];
  // What is likely read after this task, to come nearer meanwhile: the kv head in the first blocks of another.
  const uint16_t* next[kTile / kKvBlock];
};

constexpr float kLog2E = 1.44269504f;  // scores are multiplied by it: powers of 2 are shorter to compute than of e

// What a query has gathered: the largest score, the sum of 2^(score - maximum), and values weighted by the same.
struct AttentionState {
  float maximum[kMaxQueries];
  float sum[kMaxQueries];
  float* values;  // [queries][Dv]
};

// Fills `state` from the positions of [begin, begin + kSegment). A query that sees none of them gets maximum = -inf
// and sum = 0. Tiles lie at fixed positions and a query's arithmetic never depends on the queries beside it.
using AttendSegment = void (*)(const AttentionTask& task, int begin, AttentionState& state);

void attend_segment_scalar(const AttentionTask& task, int begin, AttentionState& state);
#if defined(__x86_64__)
void attend_segment_avx2(const AttentionTask& task, int begin, AttentionState& state);
void attend_segment_avx512(const AttentionTask& task, int begin, AttentionState& state);
#elif defined(__aarch64__)
void attend_segment_neon(const AttentionTask& task, int begin, AttentionState& state);
#endif

// Adds one query's segment to its running total, both [Dv] values with their maximum and sum. Segments come in
// ascending order.
void add_segment(float& total_maximum, float& total_sum, float* total_values, float maximum, float sum,
                 const float* values, int value_size);

}  // namespace corral
