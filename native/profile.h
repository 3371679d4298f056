// Where the time of steps goes, by kind of region.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "team.h"

namespace corral {

// While it is off a region costs one look at a flag; on, a look at the clock.
class Profile {
 public:
  explicit Profile(Team& team) : team_(team) {}

  // The number of a kind of region.
  size_t kind(const std::string& name);
  // Begins anew, or stops: what was measured stays.
  void turn(bool on);
  // Seconds of the calling thread by kind, and those it waited for the rest of the team as "waiting".
  std::map<std::string, double> seconds() const;

  // The regions of a step follow.
  void begin() {
    if (on_) last_ = Clock::now();
  }
  // A region of this kind has ended.
  void end(size_t kind) {
    if (on_) add(kind);
  }

 private:
  using Clock = std::chrono::steady_clock;

  void add(size_t kind);

  Team& team_;
  bool on_ = false;
  Clock::time_point last_;
  std::vector<std::string> names_{"waiting"};
  std::vector<double> seconds_;  // of each name; empty before the first measurement
};

}  // namespace corral
