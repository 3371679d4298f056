// One attention op over all the rows of a batch: cuts it into units and lets the team take them.
#pragma once

#include <vector>

#include "attention.h"
#include "batch.h"
#include "ops.h"
#include "team.h"

namespace corral {

// Queries [N, heads * Dk] and results [N, heads * Dv], or of the wanted rows alone: the first row, and how far apart rows lie.
struct AttentionRows {
  const float* q;
  size_t q_stride;
  float* out;
  size_t out_stride;
};

class BatchAttention {
 public:
  BatchAttention(Team& team, AttendSegment kernel) : team_(team), kernel_(kernel), scratch_(team.size()) {}

  // A new step: the batch must outlive its runs.
  void start(const Batch& batch);
  // rows.out = attention of rows.q over the cache; `selected`: they are the wanted rows alone.
  void run(const Attention& op, KVCache& cache, bool selected, const AttentionRows& rows);

 private:
  // Rows at consecutive positions of one sequence, which go through the kernel together.
  struct Tile {
    int sequence, row, rows, position;
  };
  // Queries that share a kv head: `heads` query heads of each of a tile's rows.
  struct Unit {
    Tile tile;
    int kv_head, head, heads;
  };
  // Results of one segment, or a running total.
  struct Partial {
    float maximum[kMaxQueries], sum[kMaxQueries];
    std::vector<float> values;  // [kMaxQueries, Dv]
  };
  struct Scratch {
    Partial segment, total;
  };

  void cut_units(const Attention& op, const KVCache& cache, bool selected);
  void cut_tiles(int rows_of_a_tile, bool selected);
  AttentionTask task_of(const Attention& op, KVCache& cache, const AttentionRows& rows, const Unit& unit) const;
  void announce(const Unit& unit, KVCache& cache, AttentionTask& task) const;
  void run_whole(const Attention& op, KVCache& cache, const AttentionRows& rows);
  void run_split(const Attention& op, KVCache& cache, const AttentionRows& rows, int segments);
  void attend(const AttentionTask& task, int segment, Partial& partial) const;
  static void reset(Partial& partial, int value_size);
  static void merge(const AttentionTask& task, const Partial& segment, Partial& total);
  static void write(const AttentionTask& task, const AttentionRows& rows, const Unit& unit, Partial& total);

  Team& team_;
  AttendSegment kernel_;
  const Batch* batch_ = nullptr;
  std::vector<int32_t> all_rows_;
  int tile_rows_ = 0;  // how tiles_ were cut, if they were
  bool tiles_selected_ = false;
  std::vector<Tile> tiles_;
  std::vector<Unit> units_;
  std::vector<Scratch> scratch_;   // one a thread
  std::vector<Partial> partials_;  // [units, segments] of a split run
};

}  // namespace corral
