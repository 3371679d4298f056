#include "profile.h"

namespace corral {

void Profile::turn(bool on) {
  on_ = on;
  team_.time_waits(on);
  if (on) seconds_.clear();
}

void Profile::add(const std::string& kind, std::chrono::duration<double> taken) {
  const double waited = team_.take_waited();
  seconds_[kind] += taken.count() - waited;
  seconds_["waiting"] += waited;
}

}  // namespace corral
