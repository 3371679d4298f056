#include "float_array.h"

#include <cstdlib>
#include <new>

#include "huge_pages.h"

namespace corral {

void FreeFloats::operator()(float* floats) const { std::free(floats); }

FloatArray allocate_floats(size_t count) {
  const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
  // A matmul's results go to as many small pages as there are rows.
  if (bytes >= kHugePage / 2) return FloatArray(static_cast<float*>(allocate_huge_pages(bytes)));
  auto* floats = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (floats == nullptr) throw std::bad_alloc();
  return FloatArray(floats);
}

}  // namespace corral
