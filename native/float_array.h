// Memory for rows of floats.
#pragma once

#include <cstddef>
#include <memory>

namespace corral {

struct FreeFloats {
  void operator()(float* floats) const;
};
// 64-byte aligned; becomes resident as it is written.
using FloatArray = std::unique_ptr<float[], FreeFloats>;
FloatArray allocate_floats(size_t count);

}  // namespace corral
