// Where the time of steps goes, by kind of region.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "team.h"

namespace corral {

// While it is off a region costs one look at a flag.
class Profile {
 public:
  explicit Profile(Team& team) : team_(team) {}

  // Begins anew, or stops: what was measured stays.
  void turn(bool on);
  // Seconds of the calling thread by kind, and those it waited for the rest of the team as "waiting".
  const std::map<std::string, double>& seconds() const { return seconds_; }

  template <class Body>
  void measure(const std::string& kind, const Body& body) {
    if (!on_) return body();
    const auto begin = Clock::now();
    body();
    add(kind, Clock::now() - begin);
  }

 private:
  using Clock = std::chrono::steady_clock;

  void add(const std::string& kind, std::chrono::duration<double> taken);

  Team& team_;
  bool on_ = false;
  std::map<std::string, double> seconds_;
};

}  // namespace corral
