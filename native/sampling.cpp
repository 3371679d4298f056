#include "sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

namespace corral {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

uint64_t scramble(uint64_t x) {  // as splitmix64 does
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// A row's number in [0, 1).
double uniform_of(const SamplingColumns& row) {
  uint64_t seed = scramble(row.seed + static_cast<uint64_t>(row.index) * kGolden);
  for (int round = 0; round < 2; ++round) seed = scramble(seed + kGolden);
  return static_cast<double>(seed >> 11) * 0x1p-53;
}

void penalize(float& logit, const SamplingRow& row, size_t i) {
  logit = logit > 0 ? logit / row.repetition : logit * row.repetition;
  const int count = row.penalty_counts[i];
  if (count > 0) logit -= row.frequency * static_cast<float>(count) + row.presence;
}

template <class Sums>
float maximum_of(const Sums& sums) {
  float maximum = -INFINITY;
  for (const auto& sum : sums) {
    if (std::isnan(sum.maximum)) return NAN;
    maximum = std::max(maximum, sum.maximum);
  }
  return maximum;
}

template <class Sums>
double total_of(const Sums& sums, const Weights& weights) {
  return std::accumulate(sums.begin(), sums.end(), 0.0,
                         [&](double total, const auto& sum) { return total + sum.sum * weights.of(sum.maximum); });
}

}  // namespace

Sampler::Sampler(const PointwiseKernels& kernels, int vocab, int threads)
    : kernels_(kernels), vocab_(vocab), threads_(threads) {}

void Sampler::start(std::span<const SamplingRow> rows) {
  count_ = rows.size();
  rows_.resize(std::max(rows_.size(), count_));
  seen_.resize(std::max(seen_.size(), count_ * static_cast<size_t>(threads_)));
  const auto all = static_cast<size_t>(vocab_);
  for (size_t i = 0; i < count_; ++i) {
    Row& row = rows_[i];
    row.asked = rows[i];
    row.way = way_of(row.asked);
    row.inverse_temperature = std::min(1.0f / row.asked.temperature, std::numeric_limits<float>::max());
    row.changed.resize(static_cast<size_t>(stretches()));
    if (scored(row)) row.raw.resize(row.changed.size());
    sort_changes(row);
    for (size_t thread = 0; thread < static_cast<size_t>(threads_); ++thread) {
      Seen& seen = seen_[thread * count_ + i];
      seen.raw.start(static_cast<size_t>(std::max(row.asked.logprobs, 1)));
      seen.changed.start(row.way == Way::Count ? static_cast<size_t>(row.asked.top_k) : all);
      seen.total = {-INFINITY, 0};
    }
  }
}

Sampler::Way Sampler::way_of(const SamplingRow& row) const {
  if (row.target >= 0) return Way::Given;
  if (row.temperature == 0) return Way::Greedy;
  if (row.top_k > 0 && row.top_k < vocab_) return Way::Count;
  if (row.min_p > 0) return Way::Floor;
  return row.top_p < 1 ? Way::Nucleus : Way::All;
}

// Counts, then places: the order within a stretch stays, biases before penalties.
void Sampler::sort_changes(Row& row) const {
  const auto biases = row.asked.bias_ids, penalties = row.asked.penalty_ids;
  row.changes.resize(biases.size() + penalties.size());
  if (row.changes.empty() || row.way == Way::Given) return row.change_starts.clear();
  const auto stretch_of = [&](size_t i) {
    return static_cast<size_t>((i < biases.size() ? biases[i] : penalties[i - biases.size()]) / kStretch);
  };
  row.change_starts.assign(static_cast<size_t>(stretches()) + 2, 0);
  for (size_t i = 0; i < row.changes.size(); ++i) ++row.change_starts[stretch_of(i) + 2];
  std::partial_sum(row.change_starts.begin(), row.change_starts.end(), row.change_starts.begin());
  for (size_t i = 0; i < row.changes.size(); ++i) {
    row.changes[static_cast<size_t>(row.change_starts[stretch_of(i) + 1]++)] = static_cast<int32_t>(i);
  }
}

void Sampler::change(const Row& row, int stretch, float* logits) const {
  if (row.asked.mask != nullptr) kernels_.mask(logits, row.asked.mask + stretch * (kStretch / 32), length(stretch));
  if (row.change_starts.empty()) return;
  const SamplingRow& asked = row.asked;
  const int first = stretch * kStretch;
  const auto at = static_cast<size_t>(stretch);
  for (int32_t entry = row.change_starts[at]; entry < row.change_starts[at + 1]; ++entry) {
    const auto i = static_cast<size_t>(row.changes[static_cast<size_t>(entry)]);
    if (i < asked.bias_ids.size()) {
      logits[asked.bias_ids[i] - first] += asked.bias_values[i];
    } else {
      const size_t penalty = i - asked.bias_ids.size();
      penalize(logits[asked.penalty_ids[penalty] - first], asked, penalty);
    }
  }
}

int Sampler::length(int stretch) const { return std::min(kStretch, vocab_ - stretch * kStretch); }

Sampler::StretchSum Sampler::sum(const float* logits, int n, float inverse_temperature) const {
  const float maximum = kernels_.maximum(logits, n);
  return {maximum, std::isfinite(maximum) ? kernels_.exp_sum(logits, maximum, inverse_temperature, n) : 0};
}

void Sampler::add(int thread, int number, int stretch, float* logits) {
  Row& row = rows_[static_cast<size_t>(number)];
  Seen& seen = seen_[static_cast<size_t>(thread) * count_ + static_cast<size_t>(number)];
  const int first = stretch * kStretch, n = length(stretch);
  if (scored(row)) {
    const StretchSum& raw = row.raw[static_cast<size_t>(stretch)] = sum(logits, n, 1.0f);
    if (row.asked.logprobs > 0) seen.raw.add(kernels_, logits, first, n, raw.maximum);
  }
  if (row.way == Way::Given) return;
  change(row, stretch, logits);
  StretchSum& changed = row.changed[static_cast<size_t>(stretch)];
  if (row.way == Way::All || row.way == Way::Nucleus) {
    changed = sum(logits, n, row.inverse_temperature);
  } else {
    changed = {kernels_.maximum(logits, n), 0};
  }
  if (row.way == Way::Floor) {
    seen.changed.raise(changed.maximum + row.asked.temperature * std::log(row.asked.min_p));
  }
  if (row.way == Way::Nucleus && std::isfinite(changed.maximum)) {  // what a thread has seen weighs no more than everything
    const Weights weights{std::max(seen.total.maximum, changed.maximum), row.inverse_temperature};
    seen.total = {weights.maximum, total_of(std::array{seen.total, changed}, weights)};
    seen.changed.raise(nucleus_floor(row, seen.total.maximum, seen.total.sum));
  }
  if (row.way >= Way::Count) seen.changed.add(kernels_, logits, first, n, changed.maximum);
}

// All the tokens below this logit together weigh less than what the nucleus may leave out.
float Sampler::nucleus_floor(const Row& row, float maximum, double total) const {
  const double least = (1.0 - row.asked.top_p) * total / vocab_ * 0.999;
  return maximum + row.asked.temperature * static_cast<float>(std::log(std::min(least, 1.0)));
}

Candidates Sampler::gather(int number, Candidates Seen::*which) const {
  Candidates all = seen_[static_cast<size_t>(number)].*which;
  for (size_t thread = 1; thread < static_cast<size_t>(threads_); ++thread) {
    all.add(seen_[thread * count_ + static_cast<size_t>(number)].*which);
  }
  return all;
}

void Sampler::finish(int number, const LookAgain& look_again, SampledRow& result) const {
  const Row& row = rows_[static_cast<size_t>(number)];
  std::fill_n(result.top_tokens, kTopTokens, -1);
  std::fill_n(result.top_logprobs, kTopTokens, 0.0f);
  result.logprob = 0;
  result.token = row.way == Way::Given ? row.asked.target : choose(number, look_again);
  if (result.token != kFailed && scored(row)) score(number, look_again, result);
}

// Log-probs of the token and of the alternatives to it, from the raw logits.
void Sampler::score(int number, const LookAgain& look_again, SampledRow& result) const {
  const Row& row = rows_[static_cast<size_t>(number)];
  const float maximum = maximum_of(row.raw);
  if (!std::isfinite(maximum)) {
    result.token = kFailed;
    return;
  }
  const double total = maximum + std::log(total_of(row.raw, Weights{maximum, 1.0f}));
  result.logprob = static_cast<float>(*look_again(result.token, result.token + 1) - total);
  if (row.asked.logprobs <= 0) return;
  Candidates alternatives = gather(number, &Seen::raw);
  alternatives.sort_by_likelihood();
  for (size_t i = 0; i < alternatives.list().size(); ++i) {
    result.top_tokens[i] = alternatives.list()[i].id;
    result.top_logprobs[i] = static_cast<float>(alternatives.list()[i].logit - total);
  }
}

int32_t Sampler::choose(int number, const LookAgain& look_again) const {
  const Row& row = rows_[static_cast<size_t>(number)];
  const float maximum = maximum_of(row.changed);
  if (!std::isfinite(maximum)) return kFailed;
  if (row.way == Way::Greedy) return choose_largest(row, maximum, look_again);
  const Weights weights{maximum, row.inverse_temperature};
  if (row.way == Way::All) return draw_from_all(row, weights, look_again);
  return draw_from_candidates(number, weights);
}

float* Sampler::changed_again(const Row& row, int stretch, const LookAgain& look_again) const {
  float* logits = look_again(stretch * kStretch, stretch * kStretch + length(stretch));
  change(row, stretch, logits);
  return logits;
}

int32_t Sampler::choose_largest(const Row& row, float maximum, const LookAgain& look_again) const {
  int stretch = 0;
  while (row.changed[static_cast<size_t>(stretch)].maximum != maximum) ++stretch;
  const float* logits = changed_again(row, stretch, look_again);
  return stretch * kStretch + kernels_.next_at_least(logits, maximum, 0, length(stretch));
}

// No filter: first a stretch by its weight, then a token of it.
int32_t Sampler::draw_from_all(const Row& row, const Weights& weights, const LookAgain& look_again) const {
  double left = uniform_of(row.asked) * total_of(row.changed, weights);
  double within = 0;
  int drawn = 0;  // the last stretch that weighs anything, should rounding lead beyond it
  for (int stretch = 0; stretch < stretches() && left >= 0; ++stretch) {
    const StretchSum& sum = row.changed[static_cast<size_t>(stretch)];
    const double mass = sum.sum * weights.of(sum.maximum);
    if (mass == 0) continue;
    drawn = stretch;
    within = left;
    left -= mass;
  }
  const float* logits = changed_again(row, drawn, look_again);
  int32_t chosen = kFailed;
  for (int i = 0; i < length(drawn); ++i) {
    const double mass = weights.of(logits[i]);
    if (mass == 0) continue;
    chosen = drawn * kStretch + i;
    within -= mass;
    if (within < 0) break;
  }
  return chosen;
}

int32_t Sampler::draw_from_candidates(int number, const Weights& weights) const {
  const Row& row = rows_[static_cast<size_t>(number)];
  const SamplingRow& asked = row.asked;
  Candidates kept = gather(number, &Seen::changed);
  if (asked.min_p > 0) kept.raise(weights.maximum + asked.temperature * std::log(asked.min_p));
  double total = 0;
  if (row.way == Way::Nucleus) {
    total = total_of(row.changed, weights);
    kept.raise(nucleus_floor(row, weights.maximum, total));
  }
  if (row.way == Way::Count) {
    kept.sort_by_likelihood();
  } else if (row.way == Way::Floor) {
    kept.sort_by_id();
  } else {
    kept.prune();
  }
  if (row.way != Way::Nucleus) total = kept.total(weights);
  if (asked.top_p < 1) kept.keep_nucleus(asked.top_p, total, weights);
  return kept.draw(uniform_of(asked), weights);
}

}  // namespace corral
