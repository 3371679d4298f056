#include "profile.h"

#include <algorithm>

namespace corral {

size_t Profile::kind(const std::string& name) {
  const auto found = std::find(names_.begin(), names_.end(), name);
  const auto number = static_cast<size_t>(found - names_.begin());
  if (found == names_.end()) names_.push_back(name);
  return number;
}

void Profile::turn(bool on) {
  on_ = on;
  team_.time_waits(on);
  if (on) seconds_.assign(names_.size(), 0);
}

std::map<std::string, double> Profile::seconds() const {
  std::map<std::string, double> found;
  for (size_t i = 0; i < seconds_.size(); ++i) found[names_[i]] = seconds_[i];
  return found;
}

void Profile::add(size_t kind) {
  const auto now = Clock::now();
  const double waited = team_.take_waited();
  seconds_[kind] += std::chrono::duration<double>(now - last_).count() - waited;
  seconds_[0] += waited;
  last_ = now;
}

}  // namespace corral
