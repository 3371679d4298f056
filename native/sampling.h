// From one row of logits to a token: log-probabilities, penalties, filters, draw.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pointwise.h"

namespace corral {

constexpr int kTopTokens = 20;
constexpr int kFailed = -1;  // the token of a row whose logits are not numbers, or all banned

// How to treat one row; neutral values switch a filter off.
struct SamplingRow {
  int target;         // >= 0: score this token, sample nothing
  float temperature;  // 0 = greedy
  int top_k;          // <= 0 = off
  float top_p;        // 1 = off
  float min_p;        // 0 = off
  float repetition, presence, frequency;
  uint64_t seed;  // all that a draw depends on beside the logits
  int logprobs;   // -1 = none, else how many alternatives
  std::span<const int32_t> penalty_ids, penalty_counts;
  std::span<const uint8_t> penalty_repeats;
  std::span<const int32_t> bias_ids;
  std::span<const float> bias_values;
};

struct SampledRow {
  int32_t token;
  float logprob;           // of the raw distribution; 0 where not wanted
  int32_t* top_tokens;     // [kTopTokens], -1 pads
  float* top_logprobs;     // [kTopTokens], 0 pads
};

// One thread's scratch. The order is vLLM's: bias, repetition, frequency and presence, then greedy, or
// temperature, min_p, top_k, top_p, draw; log-probs are of the raw logits. Every filter is exact; among equal logits the lower id goes first.
class Sampler {
 public:
  Sampler(const PointwiseKernels& kernels, int vocab) : kernels_(kernels), vocab_(vocab) {}

  // Borrows the logits [vocab]: they are as before when it returns.
  void sample(float* logits, const SamplingRow& row, SampledRow& result);

 private:
  struct Candidate {
    float logit;
    int32_t id;
    bool operator<(const Candidate& other) const {
      return logit != other.logit ? logit > other.logit : id < other.id;
    }
  };

  void score(const float* logits, const SamplingRow& row, SampledRow& result);
  int32_t choose(const float* logits, const SamplingRow& row);
  int32_t draw_from_all(const float* logits, double uniform);
  void take_top(const float* logits, int count, float floor);
  void take_all(const float* logits, float floor);
  void keep_nucleus(float mass, double total);
  int32_t draw(double uniform) const;
  float weight(float logit) const;
  double weights() const;

  const PointwiseKernels& kernels_;
  const int vocab_;
  float maximum_ = 0;  // of the logits that are being sampled
  float inverse_temperature_ = 1;
  std::vector<Candidate> candidates_;
  std::vector<double> sums_;
  std::vector<Candidate> raw_;  // what bias and penalties replaced
};

}  // namespace corral
