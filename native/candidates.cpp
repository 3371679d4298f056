#include "candidates.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace corral {
namespace {

constexpr size_t kLeastRoom = 256;

std::ptrdiff_t offset(size_t index) { return static_cast<std::ptrdiff_t>(index); }

}  // namespace

float Weights::of(float logit) const { return std::exp((logit - maximum) * inverse_temperature); }

void Candidates::start(size_t most) {
  most_ = most;
  room_ = kLeastRoom;
  floor_ = std::numeric_limits<float>::lowest();
  list_.clear();
}

void Candidates::add(const PointwiseKernels& kernels, const float* logits, int first, int n, float maximum) {
  if (!(maximum >= floor_)) return;
  for (int i = kernels.next_at_least(logits, floor_, 0, n); i < n; i = kernels.next_at_least(logits, floor_, i + 1, n)) {
    list_.push_back({logits[i], first + i});
    if (list_.size() >= room_) prune();
  }
}

void Candidates::add(const Candidates& other) {
  raise(other.floor_);  // a floor holds for the row's whole vocabulary, whichever thread found it
  list_.insert(list_.end(), other.list_.begin(), other.list_.end());
}

void Candidates::prune() {
  std::erase_if(list_, [this](const Candidate& candidate) { return candidate.logit < floor_; });
  if (list_.size() > most_) {
    std::nth_element(list_.begin(), list_.begin() + offset(most_ - 1), list_.end());
    list_.resize(most_);
    raise(list_.back().logit);
  }
  room_ = std::max(kLeastRoom, 2 * list_.size());
}

void Candidates::sort_by_likelihood() {
  prune();
  std::sort(list_.begin(), list_.end());
}

void Candidates::sort_by_id() {
  prune();
  std::sort(list_.begin(), list_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

void Candidates::keep_nucleus(float mass, double total, const Weights& weights) {
  const double goal = mass * total;
  double sum = 0;
  size_t sorted = 0;
  for (size_t step = 128; sorted < list_.size(); step *= 4) {
    const size_t end = std::min(list_.size(), sorted + step);
    const auto begin = list_.begin() + offset(sorted), last = list_.begin() + offset(end);
    if (end < list_.size()) std::nth_element(begin, last, list_.end());
    std::sort(begin, last);
    for (; sorted < end; ++sorted) {
      sum += weights.of(list_[sorted].logit);
      if (sum < goal) continue;
      list_.resize(sorted + 1);
      return;
    }
  }
}

double Candidates::total(const Weights& weights) const {
  return std::accumulate(list_.begin(), list_.end(), 0.0,
                         [&](double sum, const Candidate& candidate) { return sum + weights.of(candidate.logit); });
}

int32_t Candidates::draw(double uniform, const Weights& weights) const {
  double left = uniform * total(weights);
  int32_t chosen = -1;
  for (const Candidate& candidate : list_) {
    const double mass = weights.of(candidate.logit);
    if (mass == 0) continue;
    chosen = candidate.id;
    left -= mass;
    if (left < 0) break;
  }
  return chosen;
}

}  // namespace corral
