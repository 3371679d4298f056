#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace corral {
namespace {

constexpr int kStretch = 1024;  // logits of one partial sum

double uniform_from(uint64_t seed) {
  for (int round = 0; round < 2; ++round) {  // splitmix64
    seed += 0x9e3779b97f4a7c15u;
    seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9u;
    seed = (seed ^ seed >> 27) * 0x94d049bb133111ebu;
    seed ^= seed >> 31;
  }
  return static_cast<double>(seed >> 11) * 0x1p-53;
}

void penalize(float* logits, const SamplingRow& row) {
  for (size_t i = 0; i < row.bias_ids.size(); ++i) logits[row.bias_ids[i]] += row.bias_values[i];
  for (size_t i = 0; i < row.penalty_ids.size(); ++i) {
    float& logit = logits[row.penalty_ids[i]];
    if (row.penalty_repeats[i]) logit = logit > 0 ? logit / row.repetition : logit * row.repetition;
    const int count = row.penalty_counts[i];
    if (count > 0) logit -= row.frequency * static_cast<float>(count) + row.presence;
  }
}

}  // namespace

void Sampler::sample(float* logits, const SamplingRow& row, SampledRow& result) {
  std::fill_n(result.top_tokens, kTopTokens, -1);
  std::fill_n(result.top_logprobs, kTopTokens, 0.0f);
  result.logprob = 0;
  result.token = row.target;
  if (row.target < 0) {
    raw_.clear();
    for (int32_t id : row.bias_ids) raw_.push_back({logits[id], id});
    for (int32_t id : row.penalty_ids) raw_.push_back({logits[id], id});
    penalize(logits, row);
    result.token = choose(logits, row);
    for (const Candidate& raw : raw_) logits[raw.id] = raw.logit;
  }
  if (result.token != kFailed && (row.target >= 0 || row.logprobs >= 0)) score(logits, row, result);
}

// Log-probs of the token and of the alternatives to it, from the raw logits.
void Sampler::score(const float* logits, const SamplingRow& row, SampledRow& result) {
  const float maximum = kernels_.maximum(logits, vocab_);
  if (!std::isfinite(maximum)) {
    result.token = kFailed;
    return;
  }
  const double total = maximum + std::log(kernels_.exp_sum(logits, maximum, 1.0f, vocab_));
  result.logprob = static_cast<float>(logits[result.token] - total);
  if (row.logprobs <= 0) return;
  take_top(logits, row.logprobs, std::numeric_limits<float>::lowest());
  for (size_t i = 0; i < candidates_.size(); ++i) {
    result.top_tokens[i] = candidates_[i].id;
    result.top_logprobs[i] = static_cast<float>(candidates_[i].logit - total);
  }
}

int32_t Sampler::choose(const float* logits, const SamplingRow& row) {
  maximum_ = kernels_.maximum(logits, vocab_);
  if (!std::isfinite(maximum_)) return kFailed;
  if (row.temperature == 0) return kernels_.next_at_least(logits, maximum_, 0, vocab_);
  inverse_temperature_ = std::min(1.0f / row.temperature, std::numeric_limits<float>::max());
  const double uniform = uniform_from(row.seed);
  const bool by_count = row.top_k > 0 && row.top_k < vocab_;
  float floor = std::numeric_limits<float>::lowest();
  if (row.min_p > 0) floor = maximum_ + row.temperature * std::log(row.min_p);
  if (by_count) {
    take_top(logits, row.top_k, floor);
  } else if (row.min_p > 0) {
    take_all(logits, floor);
  } else if (row.top_p < 1) {
    const double total = kernels_.exp_sum(logits, maximum_, inverse_temperature_, vocab_);
    // All the tokens below this weight together weigh less than what the nucleus may leave out.
    const double least = (1.0 - row.top_p) * total / vocab_ * 0.999;
    take_all(logits, maximum_ + row.temperature * static_cast<float>(std::log(std::min(least, 1.0))));
    keep_nucleus(row.top_p, total);
    return draw(uniform);
  } else {
    return draw_from_all(logits, uniform);
  }
  if (row.top_p < 1) keep_nucleus(row.top_p, weights());
  return draw(uniform);
}

// The `count` largest of the logits that are at least `floor`, in order.
void Sampler::take_top(const float* logits, int count, float floor) {
  candidates_.clear();
  const size_t wanted = static_cast<size_t>(count), room = std::max<size_t>(2 * wanted, 256);
  for (int i = kernels_.next_at_least(logits, floor, 0, vocab_); i < vocab_;
       i = kernels_.next_at_least(logits, floor, i + 1, vocab_)) {
    candidates_.push_back({logits[i], i});
    if (candidates_.size() < room) continue;
    const auto last = candidates_.begin() + count - 1;
    std::nth_element(candidates_.begin(), last, candidates_.end());
    candidates_.resize(wanted);
    // An equal logit further on has a higher id and so loses.
    floor = std::nextafter(last->logit, std::numeric_limits<float>::infinity());
  }
  std::sort(candidates_.begin(), candidates_.end());
  if (candidates_.size() > wanted) candidates_.resize(wanted);
}

void Sampler::take_all(const float* logits, float floor) {
  candidates_.clear();
  for (int i = kernels_.next_at_least(logits, floor, 0, vocab_); i < vocab_;
       i = kernels_.next_at_least(logits, floor, i + 1, vocab_)) {
    candidates_.push_back({logits[i], i});
  }
}

// Keeps the fewest candidates, likeliest first, whose weights reach mass * total; at least one.
void Sampler::keep_nucleus(float mass, double total) {
  const double goal = mass * total;
  double sum = 0;
  size_t sorted = 0;
  for (size_t step = 128; sorted < candidates_.size(); step *= 4) {
    const size_t end = std::min(candidates_.size(), sorted + step);
    const auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted);
    const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(end);
    if (end < candidates_.size()) std::nth_element(begin, last, candidates_.end());
    std::sort(begin, last);
    for (; sorted < end; ++sorted) {
      sum += weight(candidates_[sorted].logit);
      if (sum < goal) continue;
      candidates_.resize(sorted + 1);
      return;
    }
  }
}

float Sampler::weight(float logit) const { return std::exp((logit - maximum_) * inverse_temperature_); }

double Sampler::weights() const {
  return std::accumulate(candidates_.begin(), candidates_.end(), 0.0,
                         [this](double sum, const Candidate& c) { return sum + weight(c.logit); });
}

int32_t Sampler::draw(double uniform) const {
  double left = uniform * weights();
  int32_t chosen = kFailed;
  for (const Candidate& candidate : candidates_) {
    const double mass = weight(candidate.logit);
    if (mass == 0) continue;
    chosen = candidate.id;
    left -= mass;
    if (left < 0) break;
  }
  return chosen;
}

// No filter: partial sums over stretches of the vocabulary, then a walk through one stretch.
int32_t Sampler::draw_from_all(const float* logits, double uniform) {
  sums_.clear();
  for (int i = 0; i < vocab_; i += kStretch) {
    sums_.push_back(kernels_.exp_sum(logits + i, maximum_, inverse_temperature_, std::min(kStretch, vocab_ - i)));
  }
  double left = uniform * std::accumulate(sums_.begin(), sums_.end(), 0.0);
  size_t stretch = 0;
  while (stretch + 1 < sums_.size() && left >= sums_[stretch]) left -= sums_[stretch++];
  while (sums_[stretch] == 0) --stretch;  // rounding at the very end; some stretch holds the maximum
  const int begin = static_cast<int>(stretch) * kStretch, end = std::min(begin + kStretch, vocab_);
  int32_t chosen = kFailed;
  for (int i = begin; i < end; ++i) {
    const double mass = weight(logits[i]);
    if (mass == 0) continue;
    chosen = i;
    left -= mass;
    if (left < 0) break;
  }
  return chosen;
}

}  // namespace corral
