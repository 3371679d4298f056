// The logits of one row that may be drawn, kept while the vocabulary passes by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "pointwise.h"

namespace corral {

struct Candidate {
  float logit;
  int32_t id;
  // Likelier first, the lower id among equals.
  bool operator<(const Candidate& other) const { return logit != other.logit ? logit > other.logit : id < other.id; }
};

// How much a logit weighs beside the largest one.
struct Weights {
  float maximum, inverse_temperature;
  float of(float logit) const;
};

// The candidates that reach a floor, and of these the `most` largest. Whatever order the vocabulary's parts are added
// in, and on whatever threads, the set is the same.
class Candidates {
 public:
  // Begins with none, and the lowest floor.
  void start(size_t most);
  // From now on candidates below this logit are dropped.
  void raise(float floor) { floor_ = floor > floor_ ? floor : floor_; }
  // Logits of tokens [first, first + n), the largest of which is `maximum`.
  void add(const PointwiseKernels& kernels, const float* logits, int first, int n, float maximum);
  void add(const Candidates& other);

  // Drops the candidates below the floor, and those beyond the `most` largest.
  void prune();
  // Prunes and sorts, so that the list no longer depends on the order in which parts were added.
  void sort_by_likelihood();
  void sort_by_id();

  // Keeps the fewest, likeliest first, whose weights reach mass * total; at least one.
  void keep_nucleus(float mass, double total, const Weights& weights);
  double total(const Weights& weights) const;
  int32_t draw(double uniform, const Weights& weights) const;  // -1 if there is none
  const std::vector<Candidate>& list() const { return list_; }

 private:
  size_t most_ = 0, room_ = 0;
  float floor_ = 0;
  std::vector<Candidate> list_;
};

}  // namespace corral
