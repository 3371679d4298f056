// From rows of logits to tokens: log-probabilities, penalties, filters, draw.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "candidates.h"
#include "pointwise.h"

namespace corral {

constexpr int kTopTokens = 20;
constexpr int kFailed = -1;  // the token of a row whose logits are not numbers, or all banned

// How to treat one row; neutral values switch a filter off. COLUMNS in executors/batch.py has the same layout.
struct SamplingColumns {
  float temperature;  // 0 = greedy
  int32_t top_k;      // <= 0 = off
  float top_p;        // 1 = off
  float min_p;        // 0 = off
  float repetition, presence, frequency;
  int32_t logprobs;  // -1 = none, else how many alternatives
  int32_t target;    // >= 0: score this token, sample nothing
  int32_t index;     // of the token in its sequence; with the seed all that a draw depends on beside the logits
  uint64_t seed;
};

struct SamplingRow : SamplingColumns {
  const uint32_t* mask;  // a bit a token, set = allowed; nullptr = all are
  std::span<const int32_t> penalty_ids, penalty_counts;
  std::span<const int32_t> bias_ids;
  std::span<const float> bias_values;
};

struct SampledRow {
  int32_t token;
  float logprob;           // of the raw distribution; 0 where not wanted
  int32_t* top_tokens;     // [kTopTokens], -1 pads
  float* top_logprobs;     // [kTopTokens], 0 pads
};

constexpr int kStretch = 512;  // logits that are looked at together

// The order is vLLM's: mask, bias, repetition, frequency and presence, then greedy, or temperature, min_p, top_k, top_p,
// draw; log-probs are of the raw logits. Every filter is exact; among equal logits the lower id goes first.
//
// The logits of a row are never all in memory: each stretch of the vocabulary passes by once, in any order and on any
// thread. A stretch leaves its largest logit, where it must its sum of exponentials (added up in ascending order of
// the stretches), and candidates; a token that this does not settle is found by computing its one stretch again.
class Sampler {
 public:
  // Computes raw logits [begin, end) of a row once more, end <= begin + kStretch: the same bits as before.
  using LookAgain = std::function<float*(int begin, int end)>;

  Sampler(const PointwiseKernels& kernels, int vocab, int threads);

  int stretches() const { return (vocab_ + kStretch - 1) / kStretch; }
  // Forgets the rows before; every stretch of each of these must follow.
  void start(std::span<const SamplingRow> rows);
  // The raw logits of a stretch, which become the changed ones.
  void add(int thread, int row, int stretch, float* logits);
  void finish(int row, const LookAgain& look_again, SampledRow& result) const;

 private:
  // How a row's token is found.
  enum class Way { Given, Greedy, All, Count, Floor, Nucleus };

  struct StretchSum {
    float maximum;  // NaN if any logit is
    double sum;     // of exp((logit - maximum) / temperature), 0 where it is not needed
  };
  struct Row {
    SamplingRow asked;
    Way way;
    float inverse_temperature;
    std::vector<StretchSum> raw, changed;        // [stretches]; raw only where log-probs are wanted
    std::vector<int32_t> changes, change_starts;  // numbers of biases, then of penalties, by stretch
  };
  // What one thread keeps of one row.
  struct Seen {
    Candidates raw, changed;
    StretchSum total;
  };

  bool scored(const Row& row) const { return row.asked.target >= 0 || row.asked.logprobs >= 0; }
  Way way_of(const SamplingRow& row) const;
  void sort_changes(Row& row) const;
  void change(const Row& row, int stretch, float* logits) const;
  int length(int stretch) const;
  StretchSum sum(const float* logits, int n, float inverse_temperature) const;
  float nucleus_floor(const Row& row, float maximum, double total) const;
  Candidates gather(int row, Candidates Seen::*which) const;
  void score(int row, const LookAgain& look_again, SampledRow& result) const;
  int32_t choose(int row, const LookAgain& look_again) const;
  int32_t choose_largest(const Row& row, float maximum, const LookAgain& look_again) const;
  int32_t draw_from_all(const Row& row, const Weights& weights, const LookAgain& look_again) const;
  int32_t draw_from_candidates(int row, const Weights& weights) const;
  float* changed_again(const Row& row, int stretch, const LookAgain& look_again) const;

  const PointwiseKernels& kernels_;
  const int vocab_, threads_;
  size_t count_ = 0;
  std::vector<Row> rows_;
  std::vector<Seen> seen_;  // [threads][rows]
};

}  // namespace corral
